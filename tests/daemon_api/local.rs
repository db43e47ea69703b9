//! Other users of the host, and what a disk's names can hold.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::roles::{Identity, open_to_all};
use super::support::daemon::{self, Daemon};
use super::support::home::{Home, refused};
use super::support::server::{eventually, succeed};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The socket at which a worker accepts managers is out of reach of others; and
/// where it is not, they are turned away, because of who they are.
#[test]
#[ignore = "needs root, to become another user"]
fn a_stranger_gets_nothing_from_a_worker() {
    let daemon = open_to_all("");
    let volume = daemon.home.create("guarded-1.img", &[]);
    let attach = ["attach", "--name", "guarded-1", "--socket"];
    let socket = daemon.home.path("guarded-1.sock");
    succeed(daemon.sealblk(&attach).arg(&socket).arg(volume));
    let workers = daemon.home.path("run/workers");
    let control = fs::read_dir(&workers).unwrap().next().unwrap();
    let control = control.unwrap().path();
    let connect = || {
        let kind = SocketType::SEQPACKET;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&control)?)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    let them = Identity::user(60000);
    let refused = them.does(|| connect().map(drop).unwrap_err());
    assert_eq!(refused, rustix::io::Errno::ACCESS);
    // Should somebody open it to everybody.
    for path in [daemon.home.path("run"), workers.clone()] {
        chmod(&path, 0o755);
    }
    chmod(&control, 0o666);
    let before = daemon.workers();
    let heard = them.does(|| {
        let mut stream = fs::File::from(connect().unwrap());
        let mut heard = Vec::new();
        let end = stream.read_to_end(&mut heard);
        (heard, end.is_ok())
    });
    assert_eq!(heard.0, Vec::<u8>::new(), "{heard:?}");
    // And the disk goes on, with its manager.
    assert_eq!(daemon.workers(), before);
    let disk = daemon.get("/v1/disks/guarded-1").json();
    assert_eq!(disk["state"], "running", "{disk}");
}

/// Nobody else can put directories of their own in place of those of a manager.
#[test]
fn a_manager_keeps_nothing_below_what_others_can_change() {
    let home = Home::new();
    let loose = home.path("loose");
    fs::create_dir(&loose).unwrap();
    let text = daemon::configure(&home, "", "");
    let text = fs::read_to_string(text).unwrap();
    for name in ["state", "run"] {
        let own = home.path(name).display().to_string();
        let moved = loose.join(name).display().to_string();
        fs::write(home.path("sealblk.toml"), text.replace(&own, &moved)).unwrap();
        for mode in [0o777, 0o770] {
            chmod(&loose, mode);
            refused(&mut daemon::command(&home)).expect(
                4,
                &[&moved, "others than root", loose.to_str().unwrap()],
                "chmod go-w",
            );
        }
        // In a directory such as /tmp they cannot.
        chmod(&loose, 0o1777);
        let server = home.start("api.sock", daemon::command(&home));
        drop(server);
        fs::remove_dir_all(loose.join(name)).unwrap();
    }
}

#[test]
fn the_lock_of_a_manager_is_no_link() {
    let home = Home::new();
    daemon::configure(&home, "", "");
    fs::create_dir(home.path("state")).unwrap();
    chmod(&home.path("state"), 0o700);
    fs::write(home.path("precious"), "precious").unwrap();
    symlink("../precious", home.path("state/manager.lock")).unwrap();
    let refusal = refused(&mut daemon::command(&home));
    assert!(refusal.error.contains("manager.lock"), "{refusal:?}");
    let precious = fs::read_to_string(home.path("precious")).unwrap();
    assert_eq!(precious, "precious");
}

/// A program is run by the path that was looked at, and not by a link to it, which
/// may lead elsewhere by then.
#[test]
fn a_program_is_run_where_it_is_and_not_where_a_link_leads() {
    let daemon = Daemon::start();
    let (real, link) = (daemon.home.path("sealblk-real"), daemon.home.path("link"));
    // By another process: no child that another test is just starting has it open for
    // writing, so that it could not be run.
    let mut copy = std::process::Command::new("cp");
    succeed(copy.arg(env!("CARGO_BIN_EXE_sealblk")).arg(&real));
    chmod(&real, 0o755);
    symlink(&real, &link).unwrap();
    let upgrade = |binary: &Path| {
        let wanted = serde_json::json!({ "binary": binary }).to_string();
        daemon.ask("POST", "/v1/upgrade", Some(&wanted))
    };
    // Of a link that others can exchange, it counts for nothing where it leads.
    let loose = daemon.home.path("loose");
    fs::create_dir(&loose).unwrap();
    symlink(&real, loose.join("link")).unwrap();
    chmod(&loose, 0o777);
    let reply = upgrade(&loose.join("link"));
    assert_ne!(reply.status, 200, "{reply:?}");
    assert!(reply.body.contains("can change"), "{reply:?}");
    let reply = upgrade(&link);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["binary"], real.to_str().unwrap());
}

/// What a name of a file holds is no line of the log, no line of a list, and
/// nothing that a terminal acts upon.
#[test]
fn names_forge_no_lines_and_move_no_cursor() {
    let daemon = Daemon::start();
    let evil = "evil\u{1b}[2J\n2026-01-01T00:00:00Z ERROR forged\r.img";
    let volume = daemon.home.create(evil, &[]);
    let attach = ["attach", "--name", "evil-1", "--socket"];
    let socket = daemon.home.path("evil-1.sock");
    succeed(daemon.sealblk(&attach).arg(&socket).arg(&volume));
    let acts = |c: char| c.is_control() && c != '\n';
    for command in [&["list"][..], &["show", "evil-1"], &["list", "--json"]] {
        let shown = succeed(&mut daemon.sealblk(command));
        assert!(shown.contains("evil"), "{shown:?}");
        assert!(!shown.contains(acts), "{shown:?}");
        let forged = shown.lines().find(|line| line.starts_with("2026-01-01T"));
        assert_eq!(forged, None, "{shown:?}");
    }
    // Of one that is not there, in an error, in the log and in the audit log.
    let missing = daemon.home.path(&format!("missing-{evil}"));
    let mut command = daemon.sealblk(&["attach", "--name", "evil-2", "--socket"]);
    let output = command.arg(daemon.home.path("evil-2.sock")).arg(missing);
    let output = output.output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains(acts), "{said:?}");
    let log = eventually("the log tells it", || {
        let log = daemon.server.messages();
        log.contains("evil").then_some(log)
    });
    assert!(!log.contains(acts), "{log:?}");
    assert!(
        !log.lines().any(|line| line.starts_with("2026-01-01T")),
        "{log:?}"
    );
    let audit = fs::read_to_string(daemon.home.path("audit.jsonl")).unwrap();
    for line in audit.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
        assert!(!line.contains(acts), "{line:?}");
    }
}
