//! Disk images become volumes.

use std::fs;

use sealblk::units::SectorSize;
use sealblk::volume::{Access, Location, Volume};

use crate::lab::{Lab, decrypted, disk};
use crate::volume_support::{ok, text};

const SIZE: usize = 6 << 20;

/// A `disk.raw` and a `disk.qcow2` of the same disk.
fn images(lab: &Lab, plain: &[u8]) {
    lab.write("disk.raw", plain, 0);
    let (raw, qcow2) = (lab.path("disk.raw"), lab.path("disk.qcow2"));
    let convert = [
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        text(&raw),
        text(&qcow2),
    ];
    ok("qemu-img", &convert);
}

#[test]
fn an_image_becomes_a_volume_that_reads_the_same() {
    let lab = Lab::new();
    let plain = disk(SIZE, 29);
    images(&lab, &plain);
    for (unit, zero_units, image) in [
        (SectorSize::B512, false, "disk.qcow2"),
        (SectorSize::B4096, true, "disk.qcow2"),
        (SectorSize::B512, true, "disk.raw"),
        (SectorSize::B4096, false, "disk.raw"),
    ] {
        let unit_flag = unit.to_string();
        let mut import = vec!["volume", "import", image, "volume.img", "--json", "--force"];
        import.extend(["--sector-size", &unit_flag]);
        import.extend(zero_units.then_some("--zero-units"));
        import.extend(image.ends_with("qcow2").then_some("--format=qcow2"));
        let done = lab.json(&import);
        assert_eq!(done["size"], SIZE);
        let dek = lab.dek(&["volume.img"]);
        let stored = lab.read("volume.img", 16 << 20, SIZE);
        assert!(
            decrypted(&dek, unit, zero_units, &stored) == plain,
            "{unit} {image}"
        );
        lab.cryptsetup_proves("volume.img", &dek);
        let written = done["written"].as_u64().unwrap();
        assert_eq!(written < SIZE as u64, zero_units, "{written} were written");
    }
    let log = fs::read_to_string(lab.path("audit.jsonl")).unwrap();
    assert_eq!(log.matches("\"event\":\"volume_imported\"").count(), 4);
}

#[test]
fn a_disk_may_be_larger_than_its_image_and_is_zeroes_there() {
    let lab = Lab::new();
    // It ends in the middle of a sector, and of a larger unit.
    let plain = disk(SIZE - 1000, 31);
    lab.write("disk.raw", &plain, 0);
    let import = ["volume", "import", "disk.raw", "volume.img", "--json"];
    let import = [&import[..], &["--sector-size", "4096"]].concat();
    let refused = lab.fails(2, &import);
    assert!(refused.contains(&format!("--size {SIZE}")), "{refused}");
    let small = lab.fails(2, &[&import[..], &["--size", "1M"]].concat());
    assert!(small.contains("no room"), "{small}");
    lab.ok(&[&import[..], &["--size", "8M"]].concat());
    let dek = lab.dek(&["volume.img"]);
    let stored = lab.read("volume.img", 16 << 20, 8 << 20);
    let mut expected = plain.clone();
    expected.resize(8 << 20, 0);
    assert!(decrypted(&dek, SectorSize::B4096, false, &stored) == expected);
}

#[test]
fn what_cannot_be_imported_is_refused_and_leaves_nothing() {
    let lab = Lab::new();
    let plain = disk(1 << 20, 37);
    images(&lab, &plain);
    let import = |image: &str, status: i32, more: &[&str]| {
        let mut arguments = vec!["volume", "import", image, "volume.img"];
        arguments.extend(more);
        let errors = lab.fails(status, &arguments);
        assert!(!lab.path("volume.img").exists(), "{errors}");
        errors
    };
    // Never guessed: a guest may have written it.
    let ambiguous = import("disk.qcow2", 6, &[]);
    assert!(ambiguous.contains("--format qcow2"), "{ambiguous}");
    import("missing", 3, &[]);
    lab.write("empty", &[], 0);
    import("empty", 2, &[]);
    let wrong = import("disk.raw", 2, &["--format", "qcow2"]);
    assert!(
        wrong.contains("not an image in the format qcow2"),
        "{wrong}"
    );
    // What stands on another file may stand on any.
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "disk.raw"];
    let overlay = lab.path("overlay.qcow2");
    ok("qemu-img", &[&create[..], &[text(&overlay)]].concat());
    let backing = import("overlay.qcow2", 2, &["--format", "qcow2"]);
    assert!(
        backing.contains("disk.raw") && backing.contains("--backing"),
        "{backing}"
    );
    // So does a list of parts, which may name any file of the host.
    let list = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\n\nRW 2048 FLAT \"{}\" 0\n\n\
         ddb.geometry.cylinders = \"1\"\nddb.adapterType = \"ide\"\n",
        text(&lab.path("disk.raw"))
    );
    lab.write("list.vmdk", list.as_bytes(), 0);
    let parts = import("list.vmdk", 2, &["--format", "vmdk"]);
    assert!(
        parts.contains("disk.raw") && parts.contains("--backing"),
        "{parts}"
    );
    lab.ok(&[
        "volume",
        "import",
        "overlay.qcow2",
        "v.img",
        "--format",
        "qcow2",
        "--backing",
    ]);
    let dek = lab.dek(&["v.img"]);
    let stored = lab.read("v.img", 16 << 20, 1 << 20);
    assert!(decrypted(&dek, SectorSize::B512, false, &stored) == plain);
    // One that is damaged, which shows only while it is read: where its first
    // cluster is is no place for one.
    let mut damaged = fs::read(lab.path("disk.qcow2")).unwrap();
    let number = |bytes: &[u8], at: usize| {
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize & !(0x80 << 56)
    };
    let table = number(&damaged, number(&damaged, 40));
    damaged[table + 6] ^= 2;
    fs::write(lab.path("bad.qcow2"), damaged).unwrap();
    let bad = import("bad.qcow2", 10, &["--format", "qcow2"]);
    assert!(bad.contains("qemu-img check"), "{bad}");
    // One that is in use.
    let location = Location {
        data: lab.path("v.img"),
        header: None,
    };
    let open = Volume::open(&location, Access::ReadWrite).unwrap();
    let busy = import("v.img", 5, &["--format", "raw"]);
    assert!(busy.contains("in use"), "{busy}");
    drop(open);
    // Without the program that reads it.
    let mut command = lab.command(&["volume", "import", "disk.qcow2", "volume.img"]);
    let output = command
        .args(["--format", "qcow2"])
        .env("PATH", "/nowhere")
        .output();
    let output = output.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert!(errors.contains("package qemu-utils"), "{errors}");
}
