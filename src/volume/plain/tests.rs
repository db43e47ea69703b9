use std::fs;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::error::Explain as _;
use crate::units::SectorSize;

const SIZE: u64 = 1 << 20;

fn wrap() -> Wrap {
    serde_json::from_value(serde_json::json!({
        "key_set": "k", "provider": "file", "key_id": "k", "key_version": "v",
        "alg": "A256GCM", "bound": "aad:1", "bytes": "AAAA",
    }))
    .unwrap()
}

/// A plain disk in a directory of its own.
struct Disk {
    directory: tempfile::TempDir,
    location: Location,
}

impl Disk {
    fn new(length: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let location = Location {
            data: directory.path().join("disk.raw"),
            header: Some(directory.path().join("disk.header")),
        };
        let disk = Disk {
            directory,
            location,
        };
        let bytes: Vec<u8> = (0..length).map(|at| (at / 512) as u8 ^ at as u8).collect();
        fs::write(&disk.location.data, bytes).unwrap();
        disk
    }

    fn put(&self, bytes: &[u8], at: u64) -> &Self {
        let file = fs::File::options().write(true).open(&self.location.data);
        file.unwrap().write_all_at(bytes, at).unwrap();
        self
    }

    fn data(&self) -> Vec<u8> {
        fs::read(&self.location.data).unwrap()
    }

    fn header(&self) -> &std::path::Path {
        self.location.header.as_ref().unwrap()
    }

    fn plan(&self) -> Result<PlainPlan, Error> {
        PlainPlan::new(&self.location, options(), 0)
    }

    /// What is left is the disk, and nothing else.
    fn assert_untouched(&self, data: &[u8]) {
        assert!(self.data() == data, "the data was touched");
        let files = fs::read_dir(self.directory.path()).unwrap().count();
        assert_eq!(files, 1, "something was left behind");
    }
}

fn options() -> CreateOptions {
    CreateOptions {
        header_area: Bytes(64 << 10),
        ..CreateOptions::default()
    }
}

#[test]
fn a_plain_disk_gets_a_header_and_stays_as_it_is() {
    for header_is_there in [false, true] {
        let disk = Disk::new(SIZE);
        // Whatever a guest has on it: also what it encrypts itself is none of ours,
        // once somebody has said so.
        disk.put(b"EFI PART", 512).put(b"\x55\xaa", 510);
        if header_is_there {
            fs::write(disk.header(), vec![0; 8192]).unwrap();
        }
        let data = disk.data();
        let plan = disk.plan().unwrap();
        assert_eq!(plan.size(), Bytes(SIZE));
        let (facts, binding) = (plan.facts(), plan.binding());
        let dek = Dek::generate().unwrap();
        let mut journal = None;
        let volume = plan.write::<Error>(&dek, "k", vec![wrap()], |file, area| {
            // There is room for it, and no header yet.
            assert!(file.metadata().unwrap().len() >= area.end);
            let mut start = vec![1; area.start as usize];
            file.read_exact_at(&mut start, 0).unwrap();
            assert!(start.iter().all(|&byte| byte == 0), "there is a header");
            file.write_all_at(b"SBLKJRNL", area.start).unwrap();
            journal = Some(area);
            Ok(())
        });
        let volume = volume.unwrap();
        assert_eq!(volume.rekey_facts(), Some(facts.clone()));
        assert_eq!(volume.binding(), binding.bytes());
        assert_eq!((facts.kind, facts.size), (Kind::Encrypt, SIZE));
        assert_eq!(Some(volume.journal_area().unwrap()), journal);
        assert_eq!(volume.layout().sector_size, SectorSize::B512);
        volume.verify_dek(&dek).unwrap();
        assert!(volume.check_settled("serve").is_err());
        drop(volume);
        assert!(disk.data() == data, "the data was touched");
        let mut volume = Volume::open(&disk.location, Access::ReadWrite).unwrap();
        assert_eq!(volume.rekey_facts(), Some(facts));
        let area = journal.unwrap();
        let header = fs::read(disk.header()).unwrap();
        assert!(header[area.start as usize..].starts_with(b"SBLKJRNL"));
        volume.finish_rekey().unwrap();
        assert_eq!((volume.rekey(), volume.token().version), (None, 1));
        volume.verify_dek(&dek).unwrap();
    }
}

#[test]
fn an_encryption_that_was_taken_back_leaves_a_plain_disk() {
    let disk = Disk::new(SIZE);
    let data = disk.data();
    let dek = Dek::generate().unwrap();
    let plan = disk.plan().unwrap();
    let mut volume = plan
        .write::<Error>(&dek, "k", vec![wrap()], |_, _| Ok(()))
        .unwrap();
    volume.finish_decrypt().unwrap();
    assert!(volume.token().plain.is_some());
    assert!(volume.verify_dek(&dek).is_err());
    assert!(disk.data() == data);
}

/// What a guest has on a plain disk is its own affair: also LUKS.
#[test]
fn a_disk_that_a_guest_encrypts_itself_opens_while_it_is_encrypted() {
    let disk = Disk::new(SIZE);
    let inner = Location {
        data: disk.location.data.clone(),
        header: None,
    };
    let size = CreateOptions {
        size: Some(Bytes(SIZE - (64 << 10))),
        force: true,
        ..options()
    };
    let dek = Dek::generate().unwrap();
    let made = Plan::new(&inner, size).unwrap();
    drop(made.write(&dek, "inner", vec![wrap()]).unwrap());
    let error = disk.plan().unwrap_err();
    assert!(matches!(&error, Error::Occupied { found, .. } if found.what == "a LUKS2 header"));

    let forced = CreateOptions {
        force: true,
        ..options()
    };
    let plan = PlainPlan::new(&disk.location, forced, 0).unwrap();
    let volume = plan.write::<Error>(&dek, "k", vec![wrap()], |_, _| Ok(()));
    drop(volume.unwrap());
    let mut volume = Volume::open(&disk.location, Access::ReadWrite).unwrap();
    // Once all of it is encrypted there cannot be a header.
    volume.finish_rekey().unwrap();
    drop(volume);
    let error = Volume::open(&disk.location, Access::ReadWrite).unwrap_err();
    assert!(matches!(error, Error::OtherVolume { .. }), "{error}");
}

#[test]
fn what_is_no_plain_disk_is_refused_and_stays() {
    let check = |disk: &Disk, options: CreateOptions, offset, part: &str| {
        let data = disk.data();
        let error = PlainPlan::new(&disk.location, options, offset).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        disk.assert_untouched(&data);
        error
    };
    for (magic, what) in [
        (&b"QFI\xfb"[..], "a qcow2 image"),
        (b"KDMV", "a VMDK image"),
        (b"vhdxfile", "a VHDX image"),
        (b"LUKS\xba\xbe\x00\x01", "a LUKS1 header"),
    ] {
        let disk = Disk::new(SIZE);
        disk.put(magic, 0);
        check(&disk, options(), 0, what);
    }
    let disk = Disk::new(SIZE);
    let large = CreateOptions {
        size: Some(Bytes(2 * SIZE)),
        ..options()
    };
    check(&disk, large, 0, "keeps its size");
    check(&disk, options(), 4096, "no header of that length");
    check(&disk, options(), (64 << 10) + 512, "no header");
    check(&disk, options(), SIZE, "needed");
    let small = CreateOptions {
        header_area: Bytes(32 << 10),
        ..options()
    };
    // Found when the header is made up; nothing has been written by then.
    let data = disk.data();
    let plan = PlainPlan::new(&disk.location, small, 0).unwrap();
    let dek = Dek::generate().unwrap();
    let error = plan.write::<Error>(&dek, "k", vec![wrap()], |_, _| Ok(()));
    assert!(matches!(error, Err(Error::CannotBegin { .. })), "{error:?}");
    disk.assert_untouched(&data);

    let odd = Disk::new(SIZE + 100);
    let error = check(&odd, options(), 0, "not a number of sectors");
    assert!(error.help().unwrap().contains(&(SIZE + 512).to_string()));
    let odd = Disk::new(SIZE + 512);
    let large_units = CreateOptions {
        sector_size: SectorSize::B4096,
        ..options()
    };
    let error = check(&odd, large_units, 0, "not a number of sectors");
    assert!(error.help().unwrap().contains("--sector-size 512"));
    check(&Disk::new(0), options(), 0, "needed");

    let inline = Location {
        header: None,
        ..disk.location.clone()
    };
    let error = PlainPlan::new(&inline, options(), 0).unwrap_err();
    assert!(error.to_string().contains("--header"), "{error}");
    let absent = Location {
        data: disk.directory.path().join("absent"),
        ..disk.location.clone()
    };
    let error = PlainPlan::new(&absent, options(), 0).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::NotFound);
    disk.assert_untouched(&data);
}

#[test]
fn a_header_is_not_put_over_anything_even_with_force() {
    let disk = Disk::new(SIZE);
    fs::write(disk.header(), b"a letter").unwrap();
    for force in [false, true] {
        let options = CreateOptions { force, ..options() };
        let error = PlainPlan::new(&disk.location, options, 0).unwrap_err();
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
    }
    assert_eq!(fs::read(disk.header()).unwrap(), b"a letter");
}

#[test]
fn a_disk_in_use_is_left_alone() {
    let disk = Disk::new(SIZE);
    let dek = Dek::generate().unwrap();
    let plan = disk.plan().unwrap();
    assert!(matches!(disk.plan().unwrap_err(), Error::Busy { .. }));
    drop(plan.write::<Error>(&dek, "k", vec![wrap()], |_, _| Ok(())));
}

#[test]
fn a_journal_that_cannot_be_written_leaves_a_plain_disk() {
    let disk = Disk::new(SIZE);
    let data = disk.data();
    let dek = Dek::generate().unwrap();
    let plan = disk.plan().unwrap();
    let failed = plan.write(&dek, "k", vec![wrap()], |file, area| {
        file.write_all_at(b"SBLKJRNL", area.start).unwrap();
        Err(Error::Options("no".into()))
    });
    assert!(failed.is_err());
    disk.assert_untouched(&data);
    // A header file that was there is zero again.
    for length in [4096, 128 << 10] {
        let zeroes = vec![0; length];
        fs::write(disk.header(), &zeroes).unwrap();
        let plan = disk.plan().unwrap();
        let failed = plan.write(&dek, "k", vec![wrap()], |file, area| {
            file.write_all_at(b"SBLKJRNL", area.start).unwrap();
            Err(Error::Options("no".into()))
        });
        assert!(failed.is_err());
        assert!(fs::read(disk.header()).unwrap() == zeroes, "{length}");
    }
}

/// As it is when something moved the data to make room for a header.
#[test]
fn a_disk_may_begin_behind_the_place_of_a_header() {
    let disk = Disk::new(SIZE);
    let dek = Dek::generate().unwrap();
    let plan = PlainPlan::new(&disk.location, options(), 64 << 10).unwrap();
    assert_eq!(plan.facts().data_offset, 64 << 10);
    assert_eq!(plan.size(), Bytes(SIZE - (64 << 10)));
    let volume = plan.write::<Error>(&dek, "k", vec![wrap()], |_, _| Ok(()));
    assert_eq!(volume.unwrap().layout().data_offset, 64 << 10);
}
