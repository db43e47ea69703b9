//! What tells others that it serves: notifications, the pid file, the socket.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use super::Notified;
use super::support::front_end::{FrontEnd, Options};
use super::support::home::{Guard, Home, refused};
use super::support::server::eventually;

#[test]
fn the_service_manager_is_told_when_it_serves_and_when_it_stops() {
    let home = Home::with_volume();
    let notified = Notified::new(&home);
    let mut command = home.serve_command(&["disk.img", "--pid-file", "pid"]);
    command.env("NOTIFY_SOCKET", &notified.path);
    let child = command.stderr(std::process::Stdio::null()).spawn();
    let mut child = Guard(child.unwrap());
    assert_eq!(notified.next(), "READY=1");
    // Ready means ready: no waiting from here on.
    let connected = UnixStream::connect(home.path("disk.sock"));
    let pid = fs::read_to_string(home.path("pid"));
    let process = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(notified.next(), "STOPPING=1");
    let status = eventually("it has ended", || child.0.try_wait().unwrap());
    connected.unwrap();
    assert_eq!(pid.unwrap(), format!("{}\n", child.0.id()));
    assert_eq!(status.code(), Some(0));
    assert!(!home.path("pid").exists());
    assert!(!home.path("disk.sock").exists());
    assert!(!notified.has_more());
}

#[test]
fn what_cannot_be_served_is_never_ready_and_leaves_nothing() {
    let home = Home::with_volume();
    home.create("other.img", &[]);
    let notified = Notified::new(&home);
    fs::write(home.path("taken"), "precious").unwrap();
    let names = |home: &Home| {
        let mut names: Vec<_> = fs::read_dir(home.directory())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names(&home);
    // The first volume is fine; the second, its socket, or the pid file is not.
    for (second, socket, pid_file, status) in [
        ("missing.img", "second.sock", "pid", 3),
        ("taken", "second.sock", "pid", 11),
        ("other.img", "taken", "pid", 6),
        ("other.img", "nowhere/second.sock", "pid", 3),
        ("other.img", "second.sock", "nowhere/pid", 3),
    ] {
        let command = home.sealblk(&[
            "serve",
            "disk.img",
            second,
            "--socket",
            "disk.sock",
            "--socket",
            socket,
            "--pid-file",
            pid_file,
        ]);
        let refusal = refused(&mut notified.by(command));
        assert_eq!(refusal.status, status, "{refusal:?}");
        assert!(!notified.has_more(), "told to be ready: {refusal:?}");
        assert_eq!(names(&home), before, "{refusal:?}");
    }
    assert_eq!(fs::read(home.path("taken")).unwrap(), b"precious");
}

#[test]
fn a_pid_file_that_another_process_took_over_stays() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img", "--pid-file", "pid"]);
    eventually("the pid file is written", || {
        (fs::read_to_string(home.path("pid")).ok()? == format!("{}\n", server.pid())).then_some(())
    });
    fs::write(home.path("pid"), "1\n").unwrap();
    assert_eq!(server.terminate().code(), Some(0));
    assert_eq!(fs::read_to_string(home.path("pid")).unwrap(), "1\n");
}

/// Mode bits and group of the socket of a server with these arguments.
fn socket(home: &Home, arguments: &[&str]) -> (u32, u32) {
    let server = home.serve(&[&["disk.img"], arguments].concat());
    // It listens before mode and group are its own? Then this would race.
    let meta = fs::metadata(server.socket()).unwrap();
    (meta.permissions().mode() & 0o7777, meta.gid())
}

#[test]
fn the_socket_has_the_mode_and_the_group_that_were_asked_for() {
    let home = Home::with_volume();
    let own = fs::metadata(home.path("disk.img")).unwrap().gid();
    assert_eq!(socket(&home, &[]), (0o600, own));
    assert_eq!(socket(&home, &["--socket-mode", "0660"]), (0o660, own));
    let group = own.to_string();
    let by_number = ["--socket-group", group.as_str()];
    assert_eq!(socket(&home, &by_number), (0o660, own));
    let both = ["--socket-group", &group, "--socket-mode", "0620"];
    assert_eq!(socket(&home, &both), (0o620, own));

    let refusal = home.serve_refused(&["--socket-group", &group, "--socket-mode", "0600"]);
    refusal.expect(2, &["0600", "does not let group"], "0660");
    // As everywhere, what the parser of the command line refuses is status 2.
    let open_to_all = home
        .serve_command(&["disk.img", "--socket-mode", "0666"])
        .output();
    assert_eq!(open_to_all.unwrap().status.code(), Some(2));
}

#[test]
#[ignore = "needs root, to use another group and another user"]
fn whoever_is_in_the_socket_group_can_connect_and_nobody_else() {
    let home = Home::with_volume();
    fs::set_permissions(home.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = home.serve(&["disk.img", "--socket-group", "nogroup"]);
    let meta = fs::metadata(server.socket()).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 65534));
    let connect = |group: u32| {
        std::thread::scope(|scope| {
            let attempt = scope.spawn(|| {
                // SAFETY: this changes the identity of the calling thread
                // alone, which ends with it.
                unsafe {
                    libc::setfsgid(group);
                    libc::setfsuid(1234);
                }
                UnixStream::connect(server.socket()).map(drop)
            });
            attempt.join().unwrap()
        })
    };
    connect(65534).unwrap();
    let error = connect(1234).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    FrontEnd::connect(server.socket(), &Options::default()).unwrap();
}

#[test]
#[ignore = "needs root, to become another user"]
fn a_group_that_may_not_be_given_is_refused_and_leaves_no_socket() {
    let home = Home::with_volume();
    fs::set_permissions(home.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    for name in ["disk.img", "platform.key"] {
        std::os::unix::fs::chown(home.path(name), Some(65534), Some(65534)).unwrap();
    }
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_sealblk"))
        .arg("--key-file")
        .arg(home.path("platform.key"))
        .args(["serve", "disk.img", "--socket", "disk.sock"])
        .args(["--socket-group", "root"])
        .current_dir(home.directory());
    refused(&mut command).expect(4, &["disk.sock", "group 0"], "member of");
    assert!(!home.path("disk.sock").exists());
}
