//! Block devices, and files that the kernel uses.
//!
//! They need root, loop devices and the right to mount, so that they run only when
//! asked for: `cargo test --test offline -- --ignored`.

use std::fs::File;
use std::path::PathBuf;

use sealblk::units::SectorSize;

use crate::lab::{Lab, decrypted, disk, read};
use crate::volume_support::{ok, run, text};

/// A loop device over a file.
struct Loop(String);

impl Loop {
    fn of(lab: &Lab, file: &str) -> Self {
        let device = ok("losetup", &["--find", "--show", text(&lab.path(file))]);
        Loop(device.trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.0]);
    }
}

struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[text(&self.0)]);
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn what_is_mounted_is_not_touched() {
    let lab = Lab::new();
    let file = File::create(lab.path("fs.img")).unwrap();
    file.set_len(8 << 20).unwrap();
    ok("mkfs.ext4", &["-q", text(&lab.path("fs.img"))]);
    let device = Loop::of(&lab, "fs.img");
    let encrypt = |disk: &str| {
        let errors = lab.fails(5, &["volume", "encrypt", disk, "--header", "h"]);
        assert!(!lab.path("h").exists());
        errors
    };
    // The file below a loop device has no lock that would tell.
    let errors = encrypt("fs.img");
    assert!(
        errors.contains(&format!("losetup --detach {}", device.0)),
        "{errors}"
    );
    let at = lab.path("mounted");
    std::fs::create_dir(&at).unwrap();
    ok("mount", &[&device.0, text(&at)]);
    let mounted = Mount(at);
    let errors = encrypt(&device.0);
    assert!(errors.contains("in use by the kernel"), "{errors}");
    drop(mounted);
    let encrypt = ["volume", "encrypt", &device.0, "--header", "h"];
    lab.ok(&encrypt);
    let uuid = lab.json(&["volume", "info", "--json", &device.0, "--header", "h"])["uuid"].clone();
    let decrypt = ["volume", "decrypt", &device.0, "--header", "h", "--confirm"];
    lab.ok(&[&decrypt[..], &[uuid.as_str().unwrap()]].concat());
    drop(device);
    ok("e2fsck", &["-f", "-n", text(&lab.path("fs.img"))]);
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_device_gets_a_header_where_there_is_room_for_one() {
    const SIZE: usize = 6 << 20;
    let lab = Lab::new();
    let plain = disk(SIZE, 47);
    lab.write("device", &plain, 0);
    let file = File::options()
        .write(true)
        .open(lab.path("device"))
        .unwrap();
    file.set_len(8 << 20).unwrap();
    let device = Loop::of(&lab, "device");
    let encrypt = [
        "volume",
        "encrypt",
        device.0.as_str(),
        "--header-area",
        "1M",
    ];
    let place = lab.fails(2, &encrypt);
    assert!(place.contains("--state"), "{place}");
    let in_memory = lab.fails(2, &[&encrypt[..], &["--state", "/dev/shm/x"]].concat());
    assert!(in_memory.contains("in memory alone"), "{in_memory}");
    let encrypt = [&encrypt[..], &["--state", "beside"]].concat();
    let full = lab.fails(2, &encrypt);
    assert!(
        full.contains("no room") && full.contains("--size"),
        "{full}"
    );
    let cut = lab.fails(6, &[&encrypt[..], &["--size", "5M"]].concat());
    assert!(cut.contains("behind the size that was named"), "{cut}");
    assert!(read(device.0.as_ref(), 0, SIZE) == plain);
    lab.ok(&[&encrypt[..], &["--size", "6M"]].concat());
    let dek = lab.dek(&[&device.0]);
    let stored = read(device.0.as_ref(), 1 << 20, SIZE);
    assert!(decrypted(&dek, SectorSize::B512, false, &stored) == plain);
    assert!(!lab.path("beside").exists());
    let uuid = lab.json(&["volume", "info", "--json", &device.0])["uuid"].clone();
    let decrypt = [
        "volume",
        "decrypt",
        &device.0,
        "--state",
        "beside",
        "--confirm",
    ];
    lab.ok(&[&decrypt[..], &[uuid.as_str().unwrap()]].concat());
    assert!(read(device.0.as_ref(), 0, SIZE) == plain);
}
