//! Opening: one user at a time, and a clear error for everything that is
//! wrong with the files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod volume_support;

use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use sealblk::error::{Explain as _, Kind};
use sealblk::units::Bytes;
use sealblk::volume::{Access, CreateOptions, Error, Inspection, Location, Volume};
use volume_support::*;

fn open(location: &Location) -> Result<Volume, Error> {
    Volume::open(location, Access::ReadWrite)
}

fn fails(location: &Location) -> Error {
    for access in [Access::ReadOnly, Access::ReadWrite] {
        Volume::open(location, access).unwrap_err();
    }
    open(location).unwrap_err()
}

#[test]
fn one_writer_or_several_readers() {
    for detached in [false, true] {
        let place = Place::new();
        let location = place.location(detached);
        let (writer, _) = create(&location, MIB);
        assert!(matches!(fails(&location), Error::Busy { .. }));
        drop(writer);
        let readers = [Access::ReadOnly; 2].map(|access| Volume::open(&location, access).unwrap());
        assert!(matches!(open(&location), Err(Error::Busy { .. })));
        drop(readers);
        open(&location).unwrap();
    }
}

#[test]
fn two_volumes_cannot_share_a_detached_header() {
    let place = Place::new();
    let location = place.location(true);
    let (_volume, _) = create(&location, MIB);
    let other = Location {
        data: place.path("other"),
        ..location.clone()
    };
    File::create(&other.data).unwrap().set_len(MIB).unwrap();
    match open(&other) {
        Err(Error::Busy { path, .. }) => assert_eq!(Some(path), location.header),
        other => panic!("{other:?}"),
    }
}

/// Not a test by itself: holds the volume that `HOLD` names until it is killed.
#[test]
#[ignore = "a helper that other tests start as a process"]
fn hold_a_volume() {
    let Some(data) = std::env::var_os("HOLD") else {
        return;
    };
    let location = Location {
        data: data.into(),
        header: None,
    };
    let _volume = open(&location).unwrap();
    println!("held");
    // Until the pipe is closed or the process is killed.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn holder(data: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_a_volume", "--ignored", "--nocapture"])
        .env("HOLD", data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines
            .map_while(Result::ok)
            .any(|line| line.contains("held"))
    );
    child
}

#[test]
fn another_process_is_named_and_its_death_frees_the_volume() {
    let place = Place::new();
    let location = place.location(false);
    drop(create(&location, MIB));
    let mut child = holder(&location.data);
    let error = open(&location).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(
        error.to_string().contains(&child.id().to_string()),
        "{error}"
    );
    let seen = Inspection::of(&location).unwrap().user().unwrap();
    assert_eq!(seen, Some(Some(child.id())));
    child.kill().unwrap();
    child.wait().unwrap();
    open(&location).unwrap();
    assert_eq!(Inspection::of(&location).unwrap().user().unwrap(), None);
}

#[test]
fn qemu_keeps_off_an_open_volume() {
    let place = Place::new();
    let location = place.location(false);
    let (volume, _) = create(&location, MIB);
    let copy = place.path("copy");
    let image = ["convert", "-f", "raw", "-O", "raw"];
    let image = [&image[..], &[text(&location.data), text(&copy)]].concat();
    let refused = run("qemu-img", &image);
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("lock"), "{message}");
    drop(volume);
    ok("qemu-img", &image);
}

#[test]
fn a_truncated_file_is_refused_and_a_longer_one_accepted() {
    for detached in [false, true] {
        let place = Place::new();
        let location = place.location(detached);
        let (volume, _) = create(&location, MIB);
        let (layout, end) = (volume.layout(), volume.layout().end());
        drop(volume);
        let file = File::options().write(true).open(&location.data).unwrap();
        file.set_len(end - 512).unwrap();
        let error = fails(&location);
        assert!(matches!(error, Error::Shorter { .. }), "{error}");
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(
            error.to_string().contains("512 bytes are missing"),
            "{error}"
        );
        assert!(error.help().unwrap().contains(&format!("--size {end}")));

        file.set_len(end + 3 * MIB).unwrap();
        file.write_all_at(b"beyond", end).unwrap();
        let mut volume = open(&location).unwrap();
        assert_eq!(volume.layout(), layout, "the guest must not see it grow");
        volume.set_token(volume.token().clone()).unwrap();
        drop(volume);
        let mut beyond = [0; 6];
        File::open(&location.data)
            .unwrap()
            .read_exact_at(&mut beyond, end)
            .unwrap();
        assert_eq!(&beyond, b"beyond");
    }
}

#[test]
fn a_file_cut_within_its_header_is_not_a_panic() {
    let place = Place::new();
    let location = place.location(false);
    drop(create(&location, MIB));
    let file = File::options().write(true).open(&location.data).unwrap();
    for length in [100 << 10, 64 << 10, 60000, 4096, 4095, 512, 5, 0] {
        file.set_len(length).unwrap();
        let error = fails(&location);
        let kind = error.kind();
        assert!(matches!(kind, Kind::Corrupt | Kind::Unsupported), "{error}");
    }
}

#[test]
fn what_is_not_a_volume_is_named() {
    let place = Place::new();
    let location = place.location(false);
    let missing = fails(&location);
    assert_eq!(missing.kind(), Kind::NotFound);

    let file = File::create(&location.data).unwrap();
    file.set_len(64 * MIB).unwrap();
    let error = fails(&location);
    assert!(
        matches!(error, Error::NotAVolume { found: None, .. }),
        "{error}"
    );
    ok("mkfs.ext4", &["-q", "-F", text(&location.data)]);
    let error = fails(&location);
    assert!(error.to_string().contains("ext4"), "{error}");

    let key = place.path("key");
    fs::write(&key, "key").unwrap();
    for (kind, expected) in [("luks1", "LUKS version 1"), ("luks2", "no sealblk token")] {
        file.set_len(0).unwrap();
        file.set_len(64 * MIB).unwrap();
        let pbkdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let format = ["luksFormat", "-q", "--type", kind];
        let names = [text(&location.data), text(&key)];
        ok("cryptsetup", &[&format[..], &names, &pbkdf].concat());
        let error = fails(&location);
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(expected), "{error}");
    }

    let directory = Location {
        data: place.dir.path().into(),
        header: None,
    };
    assert_eq!(fails(&directory).kind(), Kind::Usage);
    let fifo = place.path("fifo");
    ok("mkfifo", &[text(&fifo)]);
    let fifo = Location {
        data: fifo,
        header: None,
    };
    assert!(fails(&fifo).to_string().contains("a FIFO"));
}

#[test]
fn headers_and_data_that_do_not_belong_together_are_refused() {
    let place = Place::new();
    let detached = place.location(true);
    let header = detached.header.clone().unwrap();
    drop(create(&detached, MIB));
    // The header alone.
    let alone = Location {
        data: header.clone(),
        header: None,
    };
    let error = fails(&alone);
    assert!(matches!(error, Error::DetachedHeader { .. }), "{error}");
    // The data alone.
    let alone = Location {
        data: detached.data.clone(),
        header: None,
    };
    assert!(matches!(fails(&alone), Error::NotAVolume { .. }));
    // The header of one volume with the data of another.
    let inline = Location {
        data: place.path("inline"),
        header: None,
    };
    drop(create(&inline, MIB));
    let mixed = Location {
        data: inline.data.clone(),
        header: Some(header.clone()),
    };
    let error = fails(&mixed);
    assert!(matches!(error, Error::OtherVolume { .. }), "{error}");
    // Twice the same.
    let twice = Location {
        data: inline.data.clone(),
        header: Some(inline.data),
    };
    assert!(matches!(fails(&twice), Error::SameFile { .. }));
    // Data that is shorter than the header's.
    let short = Location {
        data: place.path("short"),
        header: Some(header),
    };
    File::create(&short.data).unwrap().set_len(MIB / 2).unwrap();
    assert!(matches!(fails(&short), Error::Shorter { .. }));
}

/// In a thread of its own, whose file system user is nobody, so that modes
/// also bind when the tests run as root.
fn as_nobody<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: changes the calling thread's file system identity alone.
            unsafe { libc::setfsuid(65534) };
            body()
        });
        thread.join().unwrap()
    })
}

#[test]
fn missing_permissions_are_named() {
    let place = Place::new();
    let location = place.location(false);
    drop(create(&location, MIB));
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(place.dir.path(), 0o755);
    mode(&location.data, 0o000);
    let error = as_nobody(|| fails(&location));
    assert_eq!(error.kind(), Kind::Permission, "{error}");
    assert!(error.help().unwrap().contains("access"));

    mode(&location.data, 0o444);
    as_nobody(|| {
        let error = open(&location).unwrap_err();
        assert_eq!(error.kind(), Kind::Permission, "{error}");
        let mut volume = Volume::open(&location, Access::ReadOnly).unwrap();
        let error = volume.set_token(volume.token().clone()).unwrap_err();
        assert!(matches!(error, Error::ReadOnly { .. }));
    });
    mode(&location.data, 0o600);
}

#[test]
fn reading_never_writes_and_writing_repairs() {
    for detached in [false, true] {
        let place = Place::new();
        let location = place.location(detached);
        drop(create(&location, MIB));
        let path = location.header.as_ref().unwrap_or(&location.data);
        for offset in [0, 64 << 10] {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(b"damage", offset + 5000).unwrap();
            let before = fs::read(path).unwrap();
            let volume = Volume::open(&location, Access::ReadOnly).unwrap();
            assert!(volume.repaired().is_none());
            let inspection = Inspection::of(&location).unwrap();
            assert!(!inspection.found().is_whole());
            assert!(fs::read(path).unwrap() == before);
            drop(volume);
            assert!(open(&location).unwrap().repaired().is_some());
            assert!(Inspection::of(&location).unwrap().found().is_whole());
            assert!(open(&location).unwrap().repaired().is_none());
        }
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"damage", 5000).unwrap();
        file.write_all_at(b"damage", 70000).unwrap();
        let error = fails(&location);
        assert!(matches!(error, Error::BothDamaged { .. }), "{error}");
        assert!(error.help().unwrap().contains("restore-header"));
    }
}

#[test]
fn an_open_volume_is_not_written_over_another_header() {
    let place = Place::new();
    let location = place.location(true);
    let (mut volume, _) = create(&location, MIB);
    // Somebody copies the header of another volume over it.
    let other = Place::new();
    let other_location = other.location(true);
    drop(create(&other_location, MIB));
    fs::copy(other.path("header"), place.path("header")).unwrap();
    let error = volume.set_token(volume.token().clone()).unwrap_err();
    assert!(matches!(error, Error::ChangedUnderneath { .. }), "{error}");
    assert!(fs::read(place.path("header")).unwrap() == fs::read(other.path("header")).unwrap());
}

#[test]
fn tokens_are_replaced_until_the_header_is_full() {
    let place = Place::new();
    let location = place.location(false);
    let options = CreateOptions {
        header_area: Bytes(32 << 10),
        ..options(MIB)
    };
    let (mut volume, dek) = create_with(&location, options);
    let full = loop {
        let mut token = volume.token().clone();
        token.wraps.push(wrap("more"));
        match volume.set_token(token) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::HeaderFull { .. }), "{full}");
    let count = volume.token().wraps.len();
    assert!(count > 20, "{count}");
    assert_eq!(volume.description().seqid, count as u64);
    let mut token = volume.token().clone();
    token.zero_units = true;
    assert!(matches!(volume.set_token(token), Err(Error::Options(_))));
    drop(volume);
    let volume = open(&location).unwrap();
    assert_eq!(volume.token().wraps.len(), count);
    volume.verify_dek(&dek).unwrap();
}
