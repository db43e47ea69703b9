//! What others on the host can see of a key: nothing.

use std::path::Path;

use sealblk::keys::{Actor, Context};
use sealblk::prepare::{self, Opening};
use sealblk::secret::DEK_BYTES;
use sealblk::volume::{Access, Location, Volume};

use super::lab::{Lab, kill, run};
use super::needles::assert_absent;
use super::process::{ManagerProcess, log_of};
use super::support::front_end::{FrontEnd, Options};
use super::support::server::eventually;
use super::support::tree;

/// The key of the volume, as a key service would know it.
fn dek_of(lab: &Lab, file: &str) -> Vec<u8> {
    let location = Location {
        data: lab.path(file),
        header: None,
    };
    let volume = Volume::open(&location, Access::ReadOnly).unwrap();
    let mut bytes = Vec::new();
    run(async {
        let context = Context::new(Actor::this_process("test"), None);
        let opened = prepare::unwrap(&lab.keys(), &context, &volume, &Opening::default()).await;
        bytes.extend_from_slice(opened.unwrap().dek.bytes());
    });
    bytes
}

fn assert_shown_nowhere(pid: u32, dek: &[u8]) {
    for name in ["cmdline", "environ", "maps"] {
        let shown = std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
        assert_absent(&shown, dek, name);
    }
}

fn status(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_key_is_in_no_command_line_environment_log_or_file() {
    let lab = Lab::with_volume("a.img");
    let dek = dek_of(&lab, "a.img");
    assert_eq!(dek.len(), DEK_BYTES);
    let directory = lab.home.directory();
    let mut manager = ManagerProcess::start(directory);
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    let worker = lab.workers()[0];
    assert_shown_nowhere(worker, &dek);
    assert_shown_nowhere(manager.pid(), &dek);
    // Through a restart, and from one manager to the next.
    kill(worker);
    let again = eventually("another worker is there", || {
        lab.workers().into_iter().find(|pid| *pid != worker)
    });
    let socket = lab.path("a.img.sock");
    drop(FrontEnd::connect(&socket, &Options::default()).unwrap());
    assert_shown_nowhere(again, &dek);
    manager.kill();
    let manager = ManagerProcess::start(directory);
    assert_shown_nowhere(manager.pid(), &dek);
    assert_shown_nowhere(again, &dek);
    manager.kill();
    let log = std::fs::read(log_of(directory)).unwrap();
    assert!(!log.is_empty(), "nothing was logged");
    assert_absent(&log, &dek, "the log");
    for (_, bytes) in tree::files(&lab.path("state")) {
        assert_absent(&bytes, &dek, "the state");
    }
}

#[test]
fn a_worker_has_what_it_needs_and_no_more() {
    let lab = Lab::with_volume("a.img");
    let mut manager = ManagerProcess::start(lab.home.directory());
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    let worker = lab.workers()[0];
    assert_eq!(
        std::fs::read(format!("/proc/{worker}/environ")).unwrap(),
        b""
    );
    assert_eq!(status(worker, "NoNewPrivs:"), "1");
    assert!(status(worker, "Name:").starts_with("sb:"));
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.contains("core file"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().filter(|word| *word == "0").count(),
        2
    );
    let link = |name: &str| std::fs::read_link(format!("/proc/{worker}/{name}")).unwrap();
    assert_eq!(link("cwd"), Path::new("/"));
    for fd in [0, 1] {
        assert_eq!(link(&format!("fd/{fd}")), Path::new("/dev/null"));
    }
    // Files: its volume, the log, and what a process has by itself. The
    // manager's own, and the memory that the key came in, are not there; that
    // of its statistics is, and what says who has the volume.
    let fds = std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap();
    for fd in fds {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap();
        let text = target.to_string_lossy();
        let known = target == lab.path("a.img")
            || target == log_of(lab.home.directory())
            || text == "/dev/null"
            || text.starts_with("/memfd:sealblk-memo")
            || text.starts_with("/memfd:sealblk-stats")
            || text.starts_with("/memfd:sealblk-tenure")
            || text.starts_with("socket:")
            || text.starts_with("anon_inode:[eventfd]")
            || text == "anon_inode:[io_uring]";
        assert!(known, "it has {text} open");
    }
}

#[test]
fn a_worker_is_not_started_by_hand() {
    let lab = Lab::new();
    for arguments in [&["worker"][..], &["worker", "a-disk"]] {
        let refusal = lab.home.refused(arguments);
        refusal.expect(2, &["started by the manager"], "sealblk attach");
    }
    let help = super::support::server::succeed(&mut lab.home.sealblk(&["help"]));
    assert!(!help.contains("worker"), "{help}");
}
