//! QEMU may come and go while sealblk runs, and sealblk while QEMU runs.

use crate::MIB;
use crate::machine::{Guest, oldest_qemu};
use crate::server::{Volume, serve_command, serve_with_sealblk};

#[test]
fn another_qemu_takes_over_the_socket() {
    let mut server = serve_with_sealblk(&Volume::new(32 * MIB, 512).serve_with(&["--queues", "2"]));
    let guest = |qemu: &[&str]| {
        Guest::new("smoke")
            .served_by(&server)
            .args(&["--queues", "2"])
            .args(qemu)
    };
    // Debian 12's QEMU, then the one that is installed, which finds the files.
    guest(oldest_qemu()).env("SEED", "first").succeed();
    guest(&[])
        .env("SEED", "first")
        .env("READ_ONLY", "1")
        .succeed();
    server.assert_running("two guests");
}

#[test]
fn a_guest_does_not_notice_that_sealblk_is_restarted() {
    restart_under_io(&[]);
}

/// Its `reconnect` is counted in seconds, as that of all QEMUs up to 9.1.
#[test]
fn a_guest_of_an_old_qemu_does_not_notice_that_sealblk_is_restarted() {
    restart_under_io(oldest_qemu());
}

fn restart_under_io(qemu: &[&str]) {
    const QUEUES: &[&str] = &["--queues", "2"];
    let volume = Volume::new(24 * MIB, 512).serve_with(QUEUES);
    let mut server = serve_with_sealblk(&volume);
    let mut guest = Guest::new("rounds")
        .served_by(&server)
        .args(QUEUES)
        .args(qemu)
        .args(&["--reconnect"])
        .env("ROUNDS", "4")
        .start();
    for round in 1..=3 {
        guest.wait_for_line(&format!("round {round} begins"));
        let status = server.terminate();
        assert!(status.success(), "{status}: {}", server.messages());
        let command = serve_command(server.directory(), QUEUES);
        server.restart(command);
    }
    guest.succeed();
    server.assert_running("the guest");
}
