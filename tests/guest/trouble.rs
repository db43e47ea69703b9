//! What may happen to a guest, and to the QEMU that it runs in, while its disk is
//! at work: no leak, no memory used that is not the guest's any more, and the next
//! connection serves.
//!
//! `QEMU=$(qemu/get-qemu-7.2) cargo test --test guest trouble` does it to the oldest
//! QEMU that has to work.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::MIB;
use crate::machine::{Guest, Running, project};
use crate::qmp::Qmp;
use crate::server::{Server, Volume, eventually, serve_with_sealblk, succeed};

const QUEUES: &[&str] = &["--queues", "2"];
/// Writes wait, so that there are requests in flight: an emulated guest on a busy
/// machine takes longer to make them than we take to carry them out.
const IN_FLIGHT: &[&str] = &["--iops-write", "300"];
const PLUGGED: u64 = 256 * MIB;

/// QEMU's memory, as it is mapped by a process: bytes of each mapping, and how many
/// of them were touched there.
fn guest_memory(server: &Server) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{}/smaps", server.pid())).unwrap();
    let mut found = Vec::new();
    let kib = |line: &str| {
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let mut is_memory = false;
    for line in text.lines() {
        if line.starts_with(|first: char| first.is_ascii_hexdigit() && !first.is_uppercase()) {
            is_memory = line.contains("memory-backend-memfd");
        } else if is_memory && line.starts_with("Size:") {
            found.push((kib(line) << 10, 0));
        } else if is_memory && line.starts_with("Rss:") {
            found.last_mut().unwrap().1 = kib(line) << 10;
        }
    }
    found
}

/// The inputs of the job, which the guest is made of itself.
struct Parts {
    directory: tempfile::TempDir,
    guest: PathBuf,
}

impl Parts {
    fn new() -> Parts {
        let directory = tempfile::tempdir().unwrap();
        let compiled = directory.path().join("kexec");
        succeed(
            Command::new("cc")
                .args(["-O1", "-Wall", "-Werror", "-o"])
                .arg(&compiled)
                .arg(project("qemu/guest/kexec.c")),
        );
        succeed(&mut Command::new(project("qemu/build-guest")));
        let guest = std::env::var_os("SEALBLK_GUEST_DIR");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let guest = guest.map_or_else(|| target.join("guest"), PathBuf::from);
        Parts { directory, guest }
    }

    fn guest(&self, server: &Server) -> Guest {
        Guest::new("trouble")
            .served_by(server)
            .args(QUEUES)
            .args(&["--memory", "384", "--max-memory", "2048"])
            .args(&["--allow-reboot", "--reconnect"])
            .input("kexec", &self.directory.path().join("kexec"))
            .input("vmlinuz", &self.guest.join("vmlinuz"))
            .input("initrd", &self.guest.join("initrd"))
            .env("PLUGGED", &PLUGGED.to_string())
            .monitored()
    }
}

#[test]
fn a_guest_and_its_qemu_in_trouble_lose_nothing_that_was_flushed() {
    let parts = Parts::new();
    let options: Vec<&str> = [QUEUES, IN_FLIGHT].concat();
    let mut server = serve_with_sealblk(&Volume::new(32 * MIB, 512).serve_with(&options));
    eventually("it has all that it needs", || {
        server.messages().contains("ready disks").then_some(())
    });
    let before = server.open_files();
    let mut guest = parts.guest(&server).start();
    let mut qmp = guest.qmp();

    guest.wait_for_line("reset me");
    qmp.execute("system_reset", json!({}));
    qmp.wait_for("RESET");
    guest.wait_for_line("back from the reset");
    guest.wait_for_line("back from kexec");
    guest.wait_for_line("drivers came back");

    guest.wait_for_line("let me hang");
    hang(&server, &qmp);
    guest.wait_for_line("verified: hung");

    plug(&mut guest, &mut qmp, &server);

    guest.wait_for_line("kill QEMU");
    qmp.signal(Signal::KILL);
    let said = guest.fail();
    assert!(said.contains("QEMU ended with status 137"), "{said}");
    eventually("nothing of QEMU is left", || {
        let left = (guest_memory(&server).len(), server.open_files());
        (left.0 == 0 && left.1 <= before).then_some(())
    });
    server.assert_running("the death of QEMU");

    // Whoever comes next finds what was flushed.
    let results = parts.guest(&server).succeed();
    assert!(results.text("output").contains("all is as it was flushed"));
}

/// QEMU does not run for a while, with requests in flight. Its disk waits for it,
/// takes no other one meanwhile, and can be looked at.
fn hang(server: &Server, qmp: &Qmp) {
    qmp.signal(Signal::STOP);
    let other = UnixStream::connect(server.socket()).unwrap();
    let asked = [1u32, 1, 0].map(u32::to_le_bytes).concat();
    std::io::Write::write_all(&mut &other, &asked).unwrap();
    other
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let answer = std::io::Read::read(&mut &other, &mut [0; 20]);
    assert!(answer.is_err(), "two front ends are served at once");
    drop(other);
    qmp.signal(Signal::CONT);
}

/// Memory comes, is used by the disk, and goes.
fn plug(guest: &mut Running, qmp: &mut Qmp, server: &Server) {
    guest.wait_for_line("plug memory in");
    let without = guest_memory(server).len();
    let backend = json!({
        "qom-type": "memory-backend-memfd", "id": "more", "size": PLUGGED, "share": true,
    });
    qmp.execute("object-add", backend);
    let dimm = json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" });
    qmp.execute("device_add", dimm);
    guest.wait_for_line("verified: plugged");
    let plugged: Vec<_> = guest_memory(server)
        .into_iter()
        .filter(|(bytes, _)| *bytes == PLUGGED)
        .collect();
    assert!(
        matches!(plugged[..], [(_, touched)] if touched > 0),
        "the disk did not use what was plugged in: {plugged:?}"
    );

    guest.wait_for_line("plug memory out");
    // The guest may refuse while requests are in flight there.
    loop {
        qmp.execute("device_del", json!({ "id": "dimm" }));
        let gone = qmp.wait_for_any(&["DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"]);
        if gone == "DEVICE_DELETED" {
            break;
        }
    }
    qmp.execute("object-del", json!({ "id": "more" }));
    eventually("it is not mapped any more", || {
        (guest_memory(server).len() == without).then_some(())
    });
    guest.wait_for_line("verified: unplugged");
}
