//! Disks that have to be not encrypted.

use std::fs;

use super::lab::{DISK, DISPROVED, Found, Lab, PROVED, UNDECIDED, contents};
use super::support::server::succeed;
use super::volume_support::{ok, random};

const PLAIN: [&str; 2] = ["--expect", "plain"];

impl Lab {
    fn plain(&self, disk: &str, how: &[&str]) -> Found {
        self.verify_disk(disk, &[&PLAIN[..], how].concat())
    }

    /// A file system that holds what disks hold.
    fn file_system(&self) -> String {
        let (image, from) = (self.path("ext4.img"), self.path("from"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("contents"), contents(4 << 20)).unwrap();
        let [name, from] = [&image, &from].map(|path| path.to_str().unwrap());
        ok("mkfs.ext4", &["-q", "-F", "-d", from, name, "16M"]);
        name.into()
    }
}

#[test]
fn a_file_system_is_proved_to_be_plain_and_not_to_be_encrypted() {
    let lab = Lab::new();
    lab.file_system();
    for how in [&["--full"][..], &["--sample", "200"]] {
        let found = lab.plain("ext4.img", how).expect(PROVED, &[]);
        let says = found.check("signature")["says"].as_str().unwrap();
        assert!(says.contains("an ext2, ext3 or ext4 file system"), "{says}");
    }
    let found = lab.verify_disk("ext4.img", &[]);
    let found = found.expect(DISPROVED, &[("header", "failed")]);
    assert!(found.errors.contains("--expect plain"), "{found:#?}");
}

#[test]
fn an_image_is_looked_into_as_far_as_its_format_says() {
    let lab = Lab::new();
    let raw = lab.file_system();
    let image = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let plain = image("plain.qcow2");
    ok("qemu-img", &["convert", "-O", "qcow2", &raw, &plain]);
    let found = lab.plain("plain.qcow2", &["--full"]).expect(PROVED, &[]);
    let says = found.check("signature")["says"].as_str().unwrap();
    assert!(says.contains("a qcow2 image"), "{says}");
    // LUKS within qcow2.
    let encrypted = image("encrypted.qcow2");
    let secret = "secret,id=s,data=hush";
    ok(
        "qemu-img",
        &[
            "create",
            "-q",
            "--object",
            secret,
            "-f",
            "qcow2",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            &encrypted,
            "8M",
        ],
    );
    let found = lab.plain("encrypted.qcow2", &["--full"]);
    assert_eq!(found.status, DISPROVED, "{found:#?}");
    assert_eq!(found.check("signature")["outcome"], "failed");
    assert!(found.errors.contains("is encrypted"), "{found:#?}");
}

#[test]
fn what_is_encrypted_is_not_proved_to_be_plain() {
    let lab = Lab::filled(&[], sealblk::units::SectorSize::B512);
    let found = lab.plain(DISK, &["--full"]);
    assert_eq!(found.status, DISPROVED, "{found:#?}");
    assert_eq!(found.check("signature")["outcome"], "failed");
    // Also when nothing is left of the header.
    let data = fs::read(lab.path(DISK)).unwrap()[1 << 20..].to_vec();
    fs::write(lab.path("bare.img"), data).unwrap();
    let failed = [("content", "failed")];
    lab.plain("bare.img", &["--full"])
        .expect(DISPROVED, &failed);
    lab.plain("bare.img", &["--sample", "100"])
        .expect(DISPROVED, &failed);
    // Behind a partition table.
    let mut bytes = random(24 << 20);
    bytes[..1 << 20].fill(0);
    fs::write(lab.path("table.img"), &bytes).unwrap();
    let script = "printf 'label: gpt\\nsize=20M\\n' | sfdisk -q --no-reread table.img";
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    let mut sfdisk = std::process::Command::new("sh");
    succeed(
        sfdisk
            .args(["-c", script])
            .env("PATH", path)
            .current_dir(lab.home.directory()),
    );
    let unknown = [("content", "unknown")];
    lab.plain("table.img", &["--full"])
        .expect(UNDECIDED, &unknown);
    // And LUKS of others.
    let mut luks = vec![0; 1 << 20];
    luks[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x01");
    fs::write(lab.path("luks1.img"), luks).unwrap();
    assert_eq!(lab.plain("luks1.img", &[]).status, DISPROVED);
}

#[test]
fn what_is_empty_is_neither() {
    let lab = Lab::new();
    fs::write(lab.path("empty.img"), vec![0; 1 << 20]).unwrap();
    lab.plain("empty.img", &["--full"])
        .expect(UNDECIDED, &[("content", "unknown")]);
    fs::write(lab.path("none.img"), b"").unwrap();
    lab.plain("none.img", &["--full"])
        .expect(UNDECIDED, &[("content", "unknown")]);
    // What is no whole number of units.
    fs::write(lab.path("text.img"), &contents(100_000)[..70_001]).unwrap();
    lab.plain("text.img", &["--full"]).expect(PROVED, &[]);
}
