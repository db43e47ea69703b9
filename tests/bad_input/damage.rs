//! Volumes that are not what they were, or never were one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::support::front_end::{FrontEnd, Options};
use super::support::home::{Home, SIZE};
use super::support::server::succeed;
use super::{DATA, assert_serves, untouched, written};

/// Bytes of one header copy, up to the second one, as `volume create` makes it.
fn copy_bytes(home: &Home) -> usize {
    let header = fs::read(home.path("disk.img")).unwrap();
    // `hdr_size` of the binary header, big-endian.
    u64::from_be_bytes(header[8..16].try_into().unwrap()) as usize
}

/// Changes both header copies and makes their checksums right again, as
/// somebody would who tampers with more than bits: the text `from`, which
/// there has to be, becomes `to`, of the same length.
fn edit_header(home: &Home, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let size = copy_bytes(home);
    let file = File::options()
        .read(true)
        .write(true)
        .open(home.path("disk.img"))
        .unwrap();
    for copy in 0..2u64 {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, copy * size as u64).unwrap();
        let at = bytes
            .windows(from.len())
            .position(|window| window == from.as_bytes());
        let at = at.unwrap_or_else(|| panic!("no {from:?} in the header"));
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        // The checksum is taken with its own field being zero.
        bytes[448..512].fill(0);
        let sum = Sha256::digest(&bytes);
        bytes[448..480].copy_from_slice(&sum);
        file.write_all_at(&bytes, copy * size as u64).unwrap();
    }
}

/// What stands behind `"key":"` in the header.
fn json_text(home: &Home, key: &str) -> String {
    let header = fs::read(home.path("disk.img")).unwrap();
    let text = String::from_utf8_lossy(&header[4096..copy_bytes(home)]).into_owned();
    let start = text
        .find(&format!("\"{key}\":\""))
        .expect("the key is there")
        + key.len()
        + 4;
    text[start..].split('"').next().unwrap().to_owned()
}

#[test]
fn a_tampered_token() {
    let home = written();
    let wrapped = json_text(&home, "bytes");
    // Another last letter but two of the base64 text: a bit of the tag.
    let at = wrapped.len() - 6;
    let other = if &wrapped[at..=at] == "A" { "B" } else { "A" };
    let tampered = format!("{}{other}{}", &wrapped[..at], &wrapped[at + 1..]);
    edit_header(&home, &wrapped, &tampered);
    let refusal = untouched(&home, || home.serve_refused(&[]));
    refusal.expect(8, &["cannot unwrap the volume's key"], "backup");
    edit_header(&home, &tampered, &wrapped);
    assert_serves(&home, &["disk.img"]);
}

/// The wrapped key is bound to the volume: it does not open another one, nor
/// this one under another identity.
#[test]
fn a_token_of_another_volume() {
    let home = written();
    home.create("other.img", &[]);
    let (own, others) = (json_text(&home, "bytes"), {
        let header = fs::read(home.path("other.img")).unwrap();
        let text = String::from_utf8_lossy(&header[4096..16384]).into_owned();
        let start = text.find("\"bytes\":\"").unwrap() + 9;
        text[start..].split('"').next().unwrap().to_owned()
    });
    edit_header(&home, &own, &others);
    let refusal = untouched(&home, || home.serve_refused(&[]));
    refusal.expect(8, &["cannot unwrap the volume's key"], "backup");
}

#[test]
fn a_tampered_digest() {
    let home = written();
    let digest = json_text(&home, "digest");
    let other = format!(
        "{}{}",
        if digest.starts_with('A') { "B" } else { "A" },
        &digest[1..]
    );
    edit_header(&home, &digest, &other);
    let refusal = untouched(&home, || home.serve_refused(&[]));
    refusal.expect(8, &["not the data encryption key", "disk.img"], "backup");
}

fn damage(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn both_header_copies_are_damaged() {
    let home = written();
    let image = home.path("disk.img");
    let config = format!(
        "[daemon]\nstate_dir = \"{}\"\n",
        home.path("state").display()
    );
    fs::write(home.path("sealblk.toml"), config).unwrap();
    let volume = |arguments: &[&str]| {
        let config = ["--config", "sealblk.toml", "volume"];
        succeed(&mut home.sealblk(&[&config[..], arguments].concat()));
    };
    volume(&["backup-header", "disk.img", "--to", "backup"]);
    damage(&image, 5000);
    damage(&image, copy_bytes(&home) as u64 + 5000);
    let refusal = untouched(&home, || home.serve_refused(&[]));
    refusal.expect(7, &["both header copies", "disk.img"], "restore-header");
    // The next step that the message names works.
    volume(&["restore-header", "disk.img", "--from", "backup"]);
    assert_serves(&home, &["disk.img"]);
}

#[test]
fn one_header_copy_is_damaged() {
    let home = written();
    let image = home.path("disk.img");
    let size = copy_bytes(&home) as u64;
    let good = fs::read(&image).unwrap();
    for copy in 0..2 {
        damage(&image, copy * size + 5000);
        let damaged = fs::read(&image).unwrap();
        let server = home.serve(&["disk.img", "--read-only"]);
        let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
        assert!(front_end.read(0, DATA.len()) == DATA);
        drop((front_end, server));
        assert!(
            fs::read(&image).unwrap() == damaged,
            "written although read-only"
        );

        assert_serves(&home, &["disk.img"]);
        succeed(&mut home.sealblk(&["volume", "verify-header", "disk.img"]));
        let repaired = fs::read(&image).unwrap();
        assert!(repaired[2 * size as usize..] == good[2 * size as usize..]);
    }
}

#[test]
fn a_truncated_file() {
    let home = written();
    let image = home.path("disk.img");
    let file = File::options().write(true).open(&image).unwrap();
    let whole = file.metadata().unwrap().len();
    file.set_len(whole - 512).unwrap();
    let refusal = untouched(&home, || home.serve_refused(&[]));
    let (is, was) = ((whole - 512).to_string(), whole.to_string());
    refusal.expect(
        7,
        &["disk.img", &is, &was],
        &format!("truncate --size {was}"),
    );
    let refusal = untouched(&home, || home.serve_refused(&["--read-only"]));
    assert_eq!(refusal.status, 7);
    // What the message proposes works.
    file.set_len(whole).unwrap();
    assert_serves(&home, &["disk.img"]);

    for len in [0, 1, 4095, 4096, 20_000] {
        file.set_len(len).unwrap();
        let refusal = untouched(&home, || home.serve_refused(&[]));
        assert!(
            [7, 11].contains(&refusal.status),
            "{len} bytes: {refusal:?}"
        );
        assert!(refusal.error.contains("disk.img"), "{refusal:?}");
    }
}

#[test]
fn a_grown_file() {
    let home = written();
    let file = File::options()
        .write(true)
        .open(home.path("disk.img"))
        .unwrap();
    let whole = file.metadata().unwrap().len();
    file.write_all_at(&[0x55; 700], whole).unwrap();
    let server = home.serve(&["disk.img"]);
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert!(front_end.read(0, DATA.len()) == DATA);
    assert_eq!(front_end.config().unwrap().capacity, SIZE / 512);
    front_end.write(SIZE / 512 - 1, &[1; 512]);
    front_end.flush();
    let image = fs::read(home.path("disk.img")).unwrap();
    assert!(
        image[whole as usize..] == [0x55; 700],
        "the rest stays as it is"
    );
}

#[test]
fn what_is_not_a_volume() {
    let home = Home::new();
    fs::write(home.path("zeroes"), vec![0; 1 << 20]).unwrap();
    fs::write(home.path("empty"), "").unwrap();
    File::create(home.path("ext4"))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(home.directory());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        succeed(&mut command);
    };
    run("mkfs.ext4", &["-q", "ext4"]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "qcow2", "8M"]);
    fs::write(home.path("passphrase"), "something").unwrap();
    File::create(home.path("luks"))
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    run(
        "cryptsetup",
        &[
            "luksFormat",
            "--batch-mode",
            "--type",
            "luks2",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "luks",
            "passphrase",
        ],
    );
    for (name, cause) in [
        ("zeroes", "zeroes"),
        ("empty", "empty"),
        ("ext4", "ext"),
        ("qcow2", "qcow2"),
        ("luks", "no sealblk token"),
    ] {
        let serve = ["serve", name, "--socket", "disk.sock"];
        let refusal = untouched(&home, || home.refused(&serve));
        refusal.expect(11, &[name, cause], "");
    }
}

#[test]
fn a_detached_header_alone_and_data_without_it() {
    let home = Home::new();
    home.create("data.img", &["--header", "header"]);
    let serve = |volume: &'static str| ["serve", volume, "--socket", "disk.sock"];
    untouched(&home, || home.refused(&serve("header"))).expect(
        2,
        &["header", "detached"],
        "--header",
    );
    untouched(&home, || home.refused(&serve("data.img"))).expect(11, &["data.img"], "--header");
    let whole = File::options()
        .write(true)
        .open(home.path("data.img"))
        .unwrap();
    whole.set_len(SIZE - 4096).unwrap();
    let both = [
        "serve",
        "data.img",
        "--header",
        "header",
        "--socket",
        "disk.sock",
    ];
    untouched(&home, || home.refused(&both)).expect(7, &["data.img"], "truncate");
}
