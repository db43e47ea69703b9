//! Volumes on block devices, and in a file system that fills up.
//!
//! Needs root, loop devices and the right to mount, so these run only when
//! asked for: `cargo test --test volume_block_device -- --ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod volume_support;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sealblk::error::{Explain as _, Kind};
use sealblk::secret::Dek;
use sealblk::volume::{Access, CreateOptions, Error, Location, Plan, Searched, Volume};
use volume_support::*;

/// A loop device over a sparse file.
struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    fn new(place: &Place, size: u64) -> Self {
        let file = place.path("disk");
        File::create(&file).unwrap().set_len(size).unwrap();
        let device = ok("losetup", &["--find", "--show", text(&file)]);
        Loop {
            device: device.trim().into(),
            file,
        }
    }

    fn location(&self) -> Location {
        Location {
            data: self.device.clone().into(),
            header: None,
        }
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        let device = File::options().write(true).open(&self.device).unwrap();
        device.write_all_at(bytes, offset).unwrap();
        device.sync_all().unwrap();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.device]);
    }
}

struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf, arguments: &[&str]) -> Self {
        std::fs::create_dir(&at).unwrap();
        ok("mount", &[arguments, &[text(&at)]].concat());
        Mount(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[text(&self.0)]);
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_volume_fills_a_block_device() {
    let place = Place::new();
    let disk = Loop::new(&place, 40 * MIB + 512);
    let (mut volume, dek) = create_with(&disk.location(), CreateOptions::default());
    assert_eq!(volume.layout().size, 24 * MIB + 512);
    // The kernel keeps others off, whatever name they use for it.
    let alias = Location {
        data: place.path("alias"),
        header: None,
    };
    let number = ok(
        "lsblk",
        &[
            "--nodeps",
            "--noheadings",
            "--output",
            "MAJ:MIN",
            &disk.device,
        ],
    );
    let (major, minor) = number.trim().split_once(':').unwrap();
    ok("mknod", &[text(&alias.data), "b", major, minor]);
    let error = Volume::open(&alias, Access::ReadWrite).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    let error = Volume::open(&disk.location(), Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    volume.set_token(volume.token().clone()).unwrap();
    drop(volume);
    ok("cryptsetup", &["isLuks", &disk.device]);
    let volume = Volume::open(&alias, Access::ReadWrite).unwrap();
    volume.verify_dek(&dek).unwrap();
    drop(volume);
    // A smaller device than the header says.
    let file = File::options().write(true).open(&disk.file).unwrap();
    file.set_len(30 * MIB).unwrap();
    ok("losetup", &["--set-capacity", &disk.device]);
    let error = Volume::open(&disk.location(), Access::ReadOnly).unwrap_err();
    assert!(matches!(error, Error::Shorter { .. }), "{error}");
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_mounted_device_is_refused_even_with_force() {
    let place = Place::new();
    let disk = Loop::new(&place, 64 * MIB);
    ok("mkfs.ext4", &["-q", &disk.device]);
    let force = CreateOptions {
        force: true,
        ..CreateOptions::default()
    };
    let mounted = Mount::new(place.path("mnt"), &[&disk.device]);
    let error = Plan::new(&disk.location(), force.clone()).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert_eq!(error.kind(), Kind::Busy);
    drop(mounted);
    let error = Plan::new(&disk.location(), CreateOptions::default()).unwrap_err();
    assert!(error.to_string().contains("ext4"), "{error}");
    let (volume, _) = create_with(&disk.location(), force);
    drop(volume);
    let found = run("blkid", &["--probe", &disk.device]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(
        found.contains("crypto_LUKS") && !found.contains("ext4"),
        "{found}"
    );
}

#[test]
#[ignore = "needs root and loop devices"]
fn of_a_large_device_both_ends_are_searched_and_wiped() {
    let place = Place::new();
    let size = 1024 * MIB;
    let disk = Loop::new(&place, size);
    for offset in [31 * MIB, size - 3 * MIB, size - 1] {
        disk.write(b"x", offset);
        let error = Plan::new(&disk.location(), CreateOptions::default()).unwrap_err();
        assert!(error.to_string().contains(&offset.to_string()), "{error}");
        disk.write(b"\0", offset);
    }
    disk.write(b"x", size - 1);
    disk.write(b"x", 500 * MIB);
    let force = CreateOptions {
        force: true,
        ..CreateOptions::default()
    };
    let plan = Plan::new(&disk.location(), force).unwrap();
    assert!(plan.leaves_old_contents());
    let dek = Dek::generate().unwrap();
    drop(plan.write(&dek, "set", vec![wrap("set")]).unwrap());
    let device = File::open(&disk.device).unwrap();
    let byte = |offset| {
        let mut byte = [0];
        device.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    };
    assert_eq!((byte(size - 1), byte(500 * MIB)), (0, b'x'));

    // What was in the middle was not seen, and the search says so.
    let other = Loop::new(&Place::new(), size);
    other.write(b"x", 500 * MIB);
    let plan = Plan::new(&other.location(), CreateOptions::default()).unwrap();
    assert_eq!(plan.searched(), Some(Searched::Ends));
}

#[test]
#[ignore = "needs root and loop devices"]
fn wishes_that_a_device_cannot_grant_are_refused() {
    let place = Place::new();
    let disk = Loop::new(&place, 20 * MIB);
    let error = Plan::new(&disk.location(), options(10 * MIB)).unwrap_err();
    assert!(matches!(error, Error::TooSmall { .. }), "{error}");
    let preallocate = CreateOptions {
        preallocate: true,
        ..CreateOptions::default()
    };
    let error = Plan::new(&disk.location(), preallocate).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
#[ignore = "needs root and the right to mount"]
fn a_header_that_finds_no_space_leaves_nothing_behind() {
    let place = Place::new();
    let small = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"];
    let full = Mount::new(place.path("full"), &small);
    let location = Location {
        data: full.0.join("volume"),
        header: None,
    };
    let write = || {
        let plan = Plan::new(&location, options(MIB)).unwrap();
        let dek = Dek::generate().unwrap();
        let error = plan.write(&dek, "set", vec![wrap("set")]).unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{error}");
        assert!(error.help().unwrap().contains("free some space"));
    };
    write();
    assert_eq!(entries(&full.0), 0);
    // An existing file of zeroes is one again.
    let existing = File::create(&location.data).unwrap();
    existing.set_len(18 * MIB).unwrap();
    write();
    assert_eq!(existing.metadata().unwrap().len(), 18 * MIB);
    let left = std::fs::read(&location.data).unwrap();
    assert!(left.iter().all(|&byte| byte == 0));
}

#[test]
#[ignore = "needs root and the right to mount"]
fn a_read_only_file_system_is_named() {
    let place = Place::new();
    let tmpfs = Mount::new(place.path("ro"), &["-t", "tmpfs", "tmpfs"]);
    let location = Location {
        data: tmpfs.0.join("volume"),
        header: None,
    };
    drop(create(&location, MIB));
    ok("mount", &["-o", "remount,ro", text(&tmpfs.0)]);
    let error = Volume::open(&location, Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), Kind::Permission, "{error}");
    assert!(error.help().unwrap().contains("mounted read-only"));
    Volume::open(&location, Access::ReadOnly).unwrap();
}
