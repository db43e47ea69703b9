//! Start and end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::support::daemon::{Daemon, ask, command, configure};
use super::support::home::{Guard, Home, refused};
use super::support::server::{DEADLINE, eventually};

#[test]
fn it_ends_when_told_and_takes_its_socket_away() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start();
        assert_eq!(daemon.get("/v1/status").status, 200);
        daemon.server.signal(signal);
        assert_eq!(daemon.server.wait().code(), Some(0));
        assert!(!daemon.socket().exists());
    }
}

#[test]
fn one_that_was_killed_is_followed_by_another() {
    let mut daemon = Daemon::start();
    daemon.server.kill();
    assert!(daemon.socket().exists());
    let next = command(&daemon.home);
    daemon.server.restart(next);
    assert_eq!(daemon.get("/v1/status").json()["pid"], daemon.server.pid());
}

#[test]
fn a_second_one_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start();
    let socket = daemon.socket().display().to_string();
    let state = daemon.home.path("state").display().to_string();
    refused(&mut command(&daemon.home)).expect(5, &[&socket], "of its own");
    // With a socket of its own, but the same state; and the other way round.
    let text = fs::read_to_string(daemon.home.path("sealblk.toml")).unwrap();
    for (same, help) in [(&state, "stop that manager"), (&socket, "of its own")] {
        let other = Home::new();
        let ours = |path: &str| {
            path.replace(
                &daemon.home.path("").display().to_string(),
                &other.path("").display().to_string(),
            )
        };
        let text = ours(&text).replace(&ours(same), same);
        fs::write(other.path("sealblk.toml"), text).unwrap();
        refused(&mut command(&other)).expect(5, &[same], help);
    }
    assert_eq!(daemon.get("/v1/status").json()["pid"], daemon.server.pid());
}

#[test]
fn what_is_no_socket_is_not_replaced() {
    let home = Home::new();
    configure(&home, "", "");
    fs::write(home.path("api.sock"), "precious").unwrap();
    refused(&mut command(&home)).expect(6, &["api.sock", "not a socket"], "[daemon]");
    assert_eq!(fs::read(home.path("api.sock")).unwrap(), b"precious");
}

#[test]
fn directories_that_cannot_be_made_are_told() {
    let home = Home::new();
    configure(&home, "", "");
    let text = fs::read_to_string(home.path("sealblk.toml")).unwrap();
    fs::write(home.path("sealblk.toml"), text.replace("/state", "/a/b/c")).unwrap();
    refused(&mut command(&home)).expect(3, &["/a/b/c"], "state_dir");
    assert!(!home.path("api.sock").exists());
}

#[test]
fn the_socket_has_the_mode_that_is_configured() {
    for (setting, mode) in [("", None), ("socket_mode = \"0666\"", Some(0o666))] {
        let daemon = Daemon::configured(setting, "");
        let found = fs::metadata(daemon.socket()).unwrap().permissions().mode() & 0o777;
        match mode {
            Some(mode) => assert_eq!(found, mode),
            // With or without the group, which this host may have.
            None => assert!([0o600, 0o660].contains(&found), "{found:o}"),
        }
        let state = fs::metadata(daemon.home.path("state")).unwrap();
        assert_eq!(state.permissions().mode() & 0o777, 0o700);
    }
}

/// The service manager's side of `sd_notify`.
fn notified(home: &Home) -> UnixDatagram {
    let socket = UnixDatagram::bind(home.path("notify")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn next(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let length = socket.recv(&mut bytes).expect("a notification");
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

#[test]
fn the_service_manager_is_told_what_it_does() {
    let home = Home::new();
    configure(&home, "", "");
    let told = notified(&home);
    let mut command = command(&home);
    command.env("NOTIFY_SOCKET", home.path("notify"));
    let mut server = home.start("api.sock", command);
    assert_eq!(next(&told).trim_end(), "READY=1");
    server.signal(Signal::HUP);
    let reloading = next(&told);
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(next(&told).trim_end(), "READY=1");
    server.signal(Signal::TERM);
    assert_eq!(next(&told).trim_end(), "STOPPING=1");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_while_it_works() {
    let home = Home::new();
    configure(&home, "", "");
    let told = notified(&home);
    let mut script = Command::new("sh");
    // WATCHDOG_PID is the process that is to feed it.
    script
        .args([
            "-c",
            "WATCHDOG_PID=$$ WATCHDOG_USEC=300000 exec \"$0\" \"$@\"",
        ])
        .arg(command(&home).get_program())
        .args(command(&home).get_args())
        .env("NOTIFY_SOCKET", home.path("notify"));
    let _server = home.start("api.sock", script);
    let mut fed = 0;
    eventually("the watchdog is fed", || {
        fed += usize::from(next(&told).trim_end() == "WATCHDOG=1");
        (fed >= 3).then_some(())
    });
}

/// The daemon, started as systemd does with a socket unit: `socket` is its
/// descriptor 3.
fn activated(home: &Home, socket: impl Into<Stdio>) -> Command {
    let mut script = Command::new("sh");
    script
        .arg("-c")
        .arg("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"")
        .arg(command(home).get_program())
        .args(command(home).get_args())
        .stdin(socket)
        .stdout(Stdio::null());
    script
}

#[test]
fn a_socket_that_is_handed_over_is_used_and_left() {
    let home = Home::new();
    configure(&home, "", "");
    let path = home.path("activated.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let log = fs::File::create(home.path("log")).unwrap();
    let start = || {
        let socket: std::os::fd::OwnedFd = listener.try_clone().unwrap().into();
        let mut command = activated(&home, socket);
        command.stderr(log.try_clone().unwrap());
        Guard(command.spawn().unwrap())
    };
    for _ in 0..2 {
        let mut child = start();
        // A client need not wait for the daemon: the socket is there.
        let reply = ask(&path, "GET", "/v1/status", None);
        assert_eq!(reply.json()["socket"], path.to_str().unwrap());
        assert_eq!(reply.json()["pid"], child.0.id());
        assert!(
            !home.path("api.sock").exists(),
            "the configured one is not used"
        );
        let process = rustix::process::Pid::from_child(&child.0);
        rustix::process::kill_process(process, Signal::TERM).unwrap();
        let status = eventually("it has ended", || child.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
        assert!(path.exists());
    }
}

#[test]
fn what_is_handed_over_and_is_no_such_socket_is_refused() {
    let home = Home::new();
    configure(&home, "", "");
    let file = fs::File::create(home.path("file")).unwrap();
    let pair = UnixDatagram::pair().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let fds: [std::os::fd::OwnedFd; 3] = [file.into(), pair.0.into(), tcp.into()];
    for fd in fds {
        let mut child = activated(&home, fd);
        let output = child.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("that systemd handed over"), "{text}");
        assert!(text.contains("help: let the socket unit have"), "{text}");
    }
}
