//! Firmware and boot loaders use the disk before there is a driver of any
//! guest's, and device resets lose nothing.

use crate::MIB;
use crate::machine::{Guest, project};
use crate::server::{Volume, serve_with_sealblk, succeed};

#[test]
fn seabios_boots_from_the_encrypted_disk() {
    // QEMU's storage daemon has no part in this: the image goes onto the disk
    // through sealblk, written by a guest.
    let server = serve_with_sealblk(&Volume::new(48 * MIB, 512).serve_with(&["--queues", "2"]));
    let image = server.directory().join("boot.img");
    succeed(
        std::process::Command::new(project("qemu/build-boot-image"))
            .args(["--size", "32", "--out"])
            .arg(&image),
    );
    Guest::new("write-image")
        .served_by(&server)
        .raw(&image)
        .succeed();
    Guest::new("booted-from-disk")
        .served_by(&server)
        .args(&["--boot-disk", "--queues", "2"])
        .succeed();
}

#[test]
fn data_outlives_reboots_and_drivers() {
    let server = serve_with_sealblk(&Volume::new(16 * MIB, 512).serve_with(&["--queues", "2"]));
    Guest::new("resets")
        .served_by(&server)
        .args(&["--queues", "2", "--allow-reboot"])
        .env("TIMES", "2")
        .succeed();
}
