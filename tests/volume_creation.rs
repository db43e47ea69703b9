//! Making a volume destroys nothing that can be recognised, and a failure
//! leaves what was there before.
//!
//! Needs mkfs.ext4, mkswap, sfdisk, qemu-img and cryptsetup (Debian:
//! e2fsprogs, util-linux, fdisk, qemu-utils, cryptsetup-bin).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod volume_support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use sealblk::error::{Explain as _, Kind};
use sealblk::secret::Dek;
use sealblk::units::{Bytes, SectorSize};
use sealblk::volume::{Access, CreateOptions, Error, Location, Plan, Volume};
use volume_support::*;

fn file(path: &Path, length: u64) -> File {
    let file = File::create_new(path).unwrap();
    file.set_len(length).unwrap();
    file
}

/// Something that makes recognisable contents in a file of 64 MiB.
type Make = fn(&Path);

const CONTENTS: &[(&str, Make)] = &[
    ("an ext2, ext3 or ext4 file system", |path| {
        ok("mkfs.ext4", &["-q", "-F", text(path)]);
    }),
    ("swap space", |path| {
        ok("mkswap", &[text(path)]);
    }),
    ("an MBR partition table or boot sector", |path| {
        let script = path.with_extension("sfdisk");
        fs::write(&script, "label: dos\n,,83\n").unwrap();
        shell(&format!("sfdisk -q {} < {}", text(path), text(&script)));
    }),
    ("a GPT partition table", |path| {
        let script = path.with_extension("sfdisk");
        fs::write(&script, "label: gpt\n,,\n").unwrap();
        shell(&format!("sfdisk -q {} < {}", text(path), text(&script)));
    }),
    ("the backup of a GPT partition table", |path| {
        let script = path.with_extension("sfdisk");
        fs::write(&script, "label: gpt\n,,\n").unwrap();
        shell(&format!("sfdisk -q {} < {}", text(path), text(&script)));
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&vec![0; MIB as usize], 0).unwrap();
    }),
    ("a qcow2 image", |path| {
        ok(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", text(path), "1G"],
        );
    }),
    ("a VHDX image", |path| {
        ok(
            "qemu-img",
            &["create", "-q", "-f", "vhdx", text(path), "1G"],
        );
    }),
    ("a LUKS1 header", |path| {
        luks_format(path, "luks1");
    }),
    ("a LUKS2 header", |path| {
        luks_format(path, "luks2");
    }),
    ("a second LUKS2 header", |path| {
        luks_format(path, "luks2");
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0; 4096], 0).unwrap();
    }),
    ("data that is not zero", |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"!", 40 * MIB + 17).unwrap();
    }),
];

fn shell(command: &str) {
    ok("sh", &["-c", command]);
}

fn luks_format(path: &Path, kind: &str) {
    let key = path.with_extension("key");
    fs::write(&key, "key").unwrap();
    let pbkdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let format = ["luksFormat", "-q", "--type", kind, text(path), text(&key)];
    ok("cryptsetup", &[&format[..], &pbkdf].concat());
}

#[test]
fn recognisable_contents_are_refused_and_untouched_without_force() {
    for (what, make) in CONTENTS {
        let place = Place::new();
        let location = place.location(false);
        file(&location.data, 64 * MIB);
        make(&location.data);
        let before = fs::read(&location.data).unwrap();
        let error = Plan::new(&location, options(MIB)).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        assert!(error.to_string().contains(what), "{error} is not {what}");
        assert!(error.help().unwrap().contains("--force"));
        assert!(fs::read(&location.data).unwrap() == before, "{what}");

        // With a detached header, for the data and for the header alike.
        for (data, header) in [("volume", "new"), ("new", "volume")] {
            let location = Location {
                data: place.path(data),
                header: Some(place.path(header)),
            };
            let error = Plan::new(&location, options(MIB)).unwrap_err();
            assert!(error.to_string().contains(what), "{error} is not {what}");
        }

        let force = CreateOptions {
            force: true,
            ..options(8 * MIB)
        };
        let (volume, _) = create_with(&place.location(false), force);
        assert_eq!(volume.layout().size, 8 * MIB);
        drop(volume);
        let left = fs::read(&location.data).unwrap();
        assert_eq!(left.len() as u64, 24 * MIB);
        assert!(left[128 << 10..].iter().all(|&byte| byte == 0), "{what}");
    }
}

#[test]
fn files_of_zeroes_and_holes_are_taken_as_they_are() {
    for length in [17 * MIB, 17 * MIB + 511, 100 * MIB] {
        let place = Place::new();
        let location = place.location(false);
        let zeroes = file(&location.data, length);
        zeroes.write_all_at(&vec![0; 1 << 20], 3 * MIB).unwrap();
        let (volume, _) = create_with(&location, CreateOptions::default());
        assert_eq!(volume.layout().size, (length - 16 * MIB) / 512 * 512);
        assert_eq!(volume.data_file().metadata().unwrap().len(), length);
    }
}

#[test]
fn the_size_is_what_the_guest_sees() {
    for (detached, sector_size) in [
        (false, SectorSize::B512),
        (false, SectorSize::B4096),
        (true, SectorSize::B512),
        (true, SectorSize::B4096),
    ] {
        let place = Place::new();
        let location = place.location(detached);
        let options = CreateOptions {
            sector_size,
            ..options(10 * MIB)
        };
        let (volume, _) = create_with(&location, options);
        let layout = volume.layout();
        assert_eq!((layout.size, layout.sector_size), (10 * MIB, sector_size));
        let offset = if detached { 0 } else { 16 * MIB };
        assert_eq!(layout.data_offset, offset);
        let meta = volume.data_file().metadata().unwrap();
        assert_eq!(meta.len(), 10 * MIB + offset);
        assert!(meta.blocks() * 512 < MIB, "it must be sparse");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        if let Some(header) = &location.header {
            let meta = header.metadata().unwrap();
            assert_eq!(meta.len(), 16 * MIB);
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        }
        drop(volume);
        let volume = Volume::open(&location, Access::ReadOnly).unwrap();
        assert_eq!(volume.layout(), layout);
    }
}

#[test]
fn preallocation_reserves_the_space() {
    let place = Place::new();
    let options = CreateOptions {
        preallocate: true,
        ..options(4 * MIB)
    };
    let (volume, _) = create_with(&place.location(false), options);
    let meta = volume.data_file().metadata().unwrap();
    assert_eq!(meta.len(), 20 * MIB);
    assert!(meta.blocks() * 512 >= 20 * MIB);
}

#[test]
fn every_option_ends_up_in_the_volume() {
    let place = Place::new();
    let location = place.location(false);
    let uuid = "01234567-89ab-4cde-8f01-23456789abcd".parse().unwrap();
    let options = CreateOptions {
        label: "x".repeat(47),
        uuid: Some(uuid),
        zero_units: true,
        header_area: Bytes(32 << 10),
        ..options(MIB)
    };
    let plan = Plan::new(&location, options).unwrap();
    let binding = plan.binding().bytes();
    let dek = Dek::generate().unwrap();
    let wraps = vec![wrap("set"), wrap("other")];
    plan.write(&dek, "set", wraps.clone()).unwrap();
    let volume = Volume::open(&location, Access::ReadOnly).unwrap();
    assert_eq!(volume.uuid(), uuid);
    assert_eq!(volume.label(), "x".repeat(47));
    assert_eq!(volume.binding(), binding);
    assert_eq!(volume.token().wraps, wraps);
    assert!(volume.layout().zero_units && volume.token().zero_units);
    assert_eq!(volume.layout().data_offset, 32 << 10);
    volume.verify_dek(&dek).unwrap();
}

#[test]
fn wishes_that_cannot_be_granted_are_usage_errors() {
    let base = || options(MIB);
    let wishes: Vec<(&str, CreateOptions)> = vec![
        (
            "how large",
            CreateOptions {
                size: None,
                ..base()
            },
        ),
        ("no size", options(0)),
        ("512-byte sectors", options(1000)),
        (
            "4096-byte sectors",
            CreateOptions {
                sector_size: SectorSize::B4096,
                ..options(512)
            },
        ),
        ("that large", options(u64::MAX / 512 * 512)),
        (
            "at least",
            CreateOptions {
                header_area: Bytes(4096),
                ..base()
            },
        ),
        (
            "at most",
            CreateOptions {
                header_area: Bytes(1 << 30),
                ..base()
            },
        ),
        (
            "multiple of 4 KiB",
            CreateOptions {
                header_area: Bytes(MIB + 512),
                ..base()
            },
        ),
        (
            "47 bytes",
            CreateOptions {
                label: "x".repeat(48),
                ..base()
            },
        ),
        (
            "control characters",
            CreateOptions {
                label: "a\nb".into(),
                ..base()
            },
        ),
    ];
    for (expected, options) in wishes {
        let place = Place::new();
        let location = place.location(false);
        let error = Plan::new(&location, options).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(error.to_string().contains(expected), "{error}: {expected}");
        assert!(!location.data.exists());
    }
}

#[test]
fn nothing_is_written_before_the_key_is_wrapped() {
    for detached in [false, true] {
        let place = Place::new();
        let location = place.location(detached);
        drop(Plan::new(&location, options(MIB)).unwrap());
        assert!(!location.data.exists());
        assert!(!place.path("header").exists());
    }
    let place = Place::new();
    let location = place.location(false);
    let existing = file(&location.data, 32 * MIB);
    let modified = existing.metadata().unwrap().modified().unwrap();
    drop(Plan::new(&location, CreateOptions::default()).unwrap());
    assert_eq!(existing.metadata().unwrap().blocks(), 0);
    assert_eq!(existing.metadata().unwrap().modified().unwrap(), modified);
}

#[test]
fn a_volume_that_nobody_could_open_is_not_made() {
    let place = Place::new();
    let location = place.location(false);
    let plan = Plan::new(&location, options(MIB)).unwrap();
    let error = plan.write(&Dek::generate().unwrap(), "set", vec![]);
    assert!(matches!(error, Err(Error::Options(_))));
    assert!(!location.data.exists());
}

#[test]
fn wraps_that_do_not_fit_the_header_leave_nothing_behind() {
    let place = Place::new();
    let location = place.location(true);
    let plan = Plan::new(&location, options(MIB)).unwrap();
    let mut huge = wrap("set");
    huge.bytes = vec![0; 64 << 10];
    let error = plan.write(&Dek::generate().unwrap(), "set", vec![huge]);
    assert!(matches!(error, Err(Error::HeaderFull { .. })), "{error:?}");
    assert!(!location.data.exists() && !place.path("header").exists());
}

/// tmpfs refuses at once to reserve more than it can ever hold.
#[test]
fn a_full_file_system_leaves_what_was_there_before() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let fs = rustix::fs::statvfs(dir.path()).unwrap();
    let too_much = (fs.f_blocks * fs.f_frsize + (1 << 30)) / 4096 * 4096;
    let full = || CreateOptions {
        preallocate: true,
        ..options(too_much)
    };
    let make = |location: &Location| {
        let plan = Plan::new(location, full()).unwrap();
        let error = plan
            .write(&Dek::generate().unwrap(), "set", vec![wrap("set")])
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{error}");
        let help = error.help().unwrap();
        assert!(help.contains("free some space"), "{help}");
    };
    for header in [None, Some(dir.path().join("header"))] {
        let location = Location {
            data: dir.path().join("new"),
            header,
        };
        make(&location);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    let location = Location {
        data: dir.path().join("existing"),
        header: None,
    };
    let existing = file(&location.data, 8 * MIB);
    make(&location);
    assert_eq!(existing.metadata().unwrap().len(), 8 * MIB);
    assert_eq!(existing.metadata().unwrap().blocks(), 0);
}

#[test]
fn a_second_creation_in_the_same_place_is_refused() {
    let place = Place::new();
    let location = place.location(true);
    let (volume, _) = create(&location, MIB);
    let force = CreateOptions {
        force: true,
        ..options(MIB)
    };
    let error = Plan::new(&location, force).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(volume);
    let error = Plan::new(&location, options(MIB)).unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
    // Two plans for the same new file: the later one finds it taken.
    let place = Place::new();
    let location = place.location(false);
    let (a, b) = (
        Plan::new(&location, options(MIB)).unwrap(),
        Plan::new(&location, options(MIB)).unwrap(),
    );
    let dek = Dek::generate().unwrap();
    let made = a.write(&dek, "set", vec![wrap("set")]).unwrap();
    let error = b.write(&dek, "set", vec![wrap("set")]).unwrap_err();
    assert!(
        matches!(error, Error::Open { what: "create", .. }),
        "{error}"
    );
    drop(made);
    Volume::open(&location, Access::ReadOnly).unwrap();
}

#[test]
fn places_where_no_volume_can_be_are_named() {
    let place = Place::new();
    let cases = [
        (
            place.path("missing/volume"),
            Kind::NotFound,
            "make the directory",
        ),
        (place.dir.path().to_owned(), Kind::Usage, "regular file"),
        ("/dev/null".into(), Kind::Usage, "regular file"),
    ];
    for (data, kind, help) in cases {
        let location = Location { data, header: None };
        let error = Plan::new(&location, options(MIB)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.help().unwrap().contains(help), "{error}");
    }
    let same = Location {
        data: place.path("same"),
        header: Some(place.path("same")),
    };
    let error = Plan::new(&same, options(MIB)).unwrap_err();
    assert!(matches!(error, Error::SameFile { .. }));
    file(&place.path("same"), MIB);
    fs::hard_link(place.path("same"), place.path("link")).unwrap();
    let linked = Location {
        header: Some(place.path("link")),
        ..same
    };
    let error = Plan::new(&linked, options(MIB)).unwrap_err();
    assert!(matches!(error, Error::Busy { .. } | Error::SameFile { .. }));
}
