//! Commands that leave the data where it is.

use std::fs;

use sealblk::keys::ledger::Known;
use sealblk::units::SectorSize;
use sealblk::volume::{Access, Location, Volume};

use crate::lab::{Lab, decrypted, disk};

const SIZE: usize = 5 << 20;

/// A volume `disk.img` with data that OpenSSL has encrypted.
fn volume(lab: &Lab, arguments: &[&str], plain: &[u8], unit: SectorSize) -> Vec<u8> {
    let size = plain.len().to_string();
    let mut create = vec!["volume", "create", "disk.img", "--size", &size];
    create.extend(arguments);
    lab.ok(&create);
    let dek = lab.dek(&["disk.img"]);
    let stored: Vec<u8> = plain
        .chunks_exact(unit.bytes())
        .enumerate()
        .flat_map(|(index, bytes)| {
            let tweak = u128::from(index as u64 * unit.sectors()).to_le_bytes();
            let cipher = openssl::symm::Cipher::aes_256_xts();
            openssl::symm::encrypt(cipher, &dek, Some(&tweak), bytes).unwrap()
        })
        .collect();
    lab.write("disk.img", &stored, 16 << 20);
    dek
}

#[test]
fn a_volume_gets_a_new_key_for_all_its_data() {
    for (unit, flag) in [(SectorSize::B512, "512"), (SectorSize::B4096, "4096")] {
        let lab = Lab::new();
        let plain = disk(SIZE, 11);
        let old = volume(&lab, &["--sector-size", flag], &plain, unit);
        lab.ok(&["volume", "backup-header", "disk.img", "--to", "backup"]);
        let done = lab.json(&["volume", "rekey", "disk.img", "--json"]);
        assert_eq!(
            (&done["state"], &done["left"], &done["moved"]),
            (&"done".into(), &0.into(), &SIZE.into())
        );
        let new = lab.dek(&["disk.img"]);
        assert_ne!(old, new);
        let stored = lab.read("disk.img", 16 << 20, SIZE);
        assert!(decrypted(&new, unit, false, &stored) == plain, "{unit}");
        lab.cryptsetup_proves("disk.img", &new);
        assert_eq!(lab.actions(), ["begin", "finish"]);
        // The journal is gone, and the old key with it.
        let area = lab.read("disk.img", 128 << 10, (16 << 20) - (128 << 10));
        assert!(area.iter().all(|&byte| byte == 0));
        let info = lab.json(&["volume", "info", "--json", "disk.img"]);
        assert_eq!(info["wraps"].as_array().unwrap().len(), 1);
        // Once more: it is a volume like any other.
        lab.ok(&["volume", "rekey", "disk.img", "--limit", "1G"]);
        let newest = lab.dek(&["disk.img"]);
        let stored = lab.read("disk.img", 16 << 20, SIZE);
        assert!(decrypted(&newest, unit, false, &stored) == plain);
    }
}

#[test]
fn a_plain_disk_is_encrypted_where_it_is_and_decrypted_again() {
    for (unit, zero_units) in [(SectorSize::B512, false), (SectorSize::B4096, true)] {
        let lab = Lab::new();
        let plain = disk(SIZE, 13);
        lab.write("disk.img", &plain, 0);
        let unit_flag = unit.to_string();
        let mut encrypt = vec!["volume", "encrypt", "disk.img", "--header", "h", "--json"];
        encrypt.extend(["--sector-size", &unit_flag, "--header-area", "1M"]);
        encrypt.extend(zero_units.then_some("--zero-units"));
        let done = lab.json(&encrypt);
        assert_eq!(done["state"], "done");
        assert_eq!(
            fs::metadata(lab.path("disk.img")).unwrap().len(),
            SIZE as u64
        );
        let dek = lab.dek(&["disk.img", "--header", "h"]);
        let stored = lab.read("disk.img", 0, SIZE);
        assert!(
            stored
                .chunks(512)
                .zip(plain.chunks(512))
                .all(|(stored, plain)| {
                    stored != plain || (zero_units && plain.iter().all(|&byte| byte == 0))
                })
        );
        assert!(
            decrypted(&dek, unit, zero_units, &stored) == plain,
            "{unit}"
        );
        lab.cryptsetup_proves("h", &dek);
        let again = lab.fails(6, &encrypt);
        assert!(again.contains("encrypted already"), "{again}");

        let decrypt = ["volume", "decrypt", "disk.img", "--header", "h"];
        let refused = lab.fails(6, &decrypt);
        let uuid = done["uuid"].as_str().unwrap();
        assert!(refused.contains(&format!("--confirm {uuid}")), "{refused}");
        let other = "00112233-4455-6677-8899-aabbccddeeff";
        lab.fails(6, &[&decrypt[..], &["--confirm", other]].concat());
        assert!(lab.read("disk.img", 0, SIZE) == stored, "not confirmed");
        let told = lab.ok(&[&decrypt[..], &["--confirm", uuid]].concat());
        assert!(told.contains("raw disk now"), "{told}");
        assert!(lab.read("disk.img", 0, SIZE) == plain);
        assert_eq!(lab.actions(), ["begin", "finish", "begin", "finish"]);
        let log = fs::read_to_string(lab.path("audit.jsonl")).unwrap();
        let alerts = log
            .lines()
            .filter(|line| line.contains("\"severity\":\"alert\""));
        assert_eq!(
            alerts.count(),
            2,
            "decrypting is an alert, encrypting is not"
        );
        // No key is left in the header.
        let header = fs::read(lab.path("h")).unwrap();
        assert!(!String::from_utf8_lossy(&header).contains("A256GCM"));
        lab.fails(8, &[&decrypt[..], &["--confirm", uuid]].concat());
    }
}

#[test]
fn what_is_prepared_can_be_gone_on_with_or_taken_back() {
    let lab = Lab::new();
    let plain = disk(SIZE, 17);
    lab.write("disk.img", &plain, 0);
    let encrypt = ["volume", "encrypt", "disk.img", "--header", "h"];
    let prepared = lab.ok(&[&encrypt[..], &["--prepare"]].concat());
    assert!(
        prepared.contains("backup-header disk.img --header h"),
        "{prepared}"
    );
    assert!(
        lab.read("disk.img", 0, SIZE) == plain,
        "nothing is encrypted yet"
    );
    let names = ["disk.img", "--header", "h"];
    for other in ["rekey", "decrypt"] {
        let refused = lab.run(&[&["volume", other][..], &names].concat());
        assert!(
            refused.status != 0 && refused.errors.contains("being encrypted"),
            "{refused:?}"
        );
    }
    // Nobody else may have it open meanwhile.
    let location = Location {
        data: lab.path("disk.img"),
        header: Some(lab.path("h")),
    };
    let open = Volume::open(&location, Access::ReadWrite).unwrap();
    let busy = lab.fails(5, &encrypt);
    assert!(busy.contains("in use by process"), "{busy}");
    drop(open);
    lab.ok(&encrypt);
    assert!(lab.read("disk.img", 0, SIZE) != plain);
    let done = lab.run(&[&encrypt[..], &["--back"]].concat());
    assert_eq!(
        done.status, 6,
        "it is done, and cannot be taken back: {done:?}"
    );

    lab.write("other.img", &plain, 0);
    let encrypt = ["volume", "encrypt", "other.img", "--header", "o"];
    lab.ok(&[&encrypt[..], &["--prepare"]].concat());
    let back = lab.ok(&[&encrypt[..], &["--back"]].concat());
    assert!(back.contains("plain again"), "{back}");
    assert!(lab.read("other.img", 0, SIZE) == plain);
}

#[test]
fn what_cannot_be_done_is_refused_with_the_next_step() {
    let lab = Lab::new();
    let encrypt = |name: &str, status: i32, more: &[&str]| {
        let mut arguments = vec!["volume", "encrypt", name, "--header", "h"];
        arguments.extend(more);
        let errors = lab.fails(status, &arguments);
        assert!(!lab.path("h").exists(), "{errors}");
        errors
    };
    encrypt("missing.img", 3, &[]);
    lab.write("empty.img", &[], 0);
    encrypt("empty.img", 2, &[]);
    lab.write("odd.img", &[1; 1000], 0);
    let odd = encrypt("odd.img", 2, &[]);
    assert!(odd.contains("truncate --size 1024"), "{odd}");
    lab.write("disk.img", &[1; 1 << 20], 0);
    lab.write("part.img", &[1; 8704], 0);
    let part = encrypt("part.img", 2, &["--sector-size", "4096"]);
    assert!(part.contains("--sector-size 512"), "{part}");
    let small = encrypt("disk.img", 2, &["--header-area", "32K"]);
    assert!(
        small.contains("journal") && small.contains("larger --header-area"),
        "{small}"
    );
    let set = encrypt("disk.img", 3, &["--key-set", "nowhere"]);
    assert!(set.contains("nowhere"), "{set}");
    lab.ok(&["volume", "create", "volume.img", "--size", "1M"]);
    let volume = encrypt("volume.img", 6, &[]);
    assert!(volume.contains("LUKS2"), "{volume}");
    let way = encrypt("disk.img", 6, &["--back"]);
    assert!(way.contains("not being re-encrypted"), "{way}");

    let none = lab.fails(6, &["volume", "rekey", "volume.img", "--forward"]);
    assert!(none.contains("not being re-encrypted"), "{none}");
    lab.ok(&[
        "volume",
        "create",
        "small.img",
        "--size",
        "1M",
        "--header-area",
        "32K",
    ]);
    let small = lab.fails(6, &["volume", "rekey", "small.img"]);
    assert!(small.contains("volume clone"), "{small}");
    lab.fails(11, &["volume", "rekey", "disk.img"]);
}

#[test]
fn the_ledger_knows_that_what_is_plain_needs_no_key() {
    let lab = Lab::new();
    let ledger = lab.ledger();
    let plain = disk(SIZE, 29);
    lab.write("disk.img", &plain, 0);
    let names = ["disk.img", "--header", "h"];
    let encrypt = [&["volume", "encrypt", "--json"][..], &names].concat();
    let done = lab.json(&encrypt);
    let uuid = done["uuid"].as_str().unwrap();
    let known = ledger.find(uuid.parse().unwrap()).unwrap().unwrap();
    assert_eq!(known.wraps.len(), 1);
    // What a backup of its header needs, it needs all the same.
    lab.ok(&[&["volume", "backup-header", "--to", "backup"][..], &names].concat());
    let decrypt = [&["volume", "decrypt", "--confirm", uuid][..], &names].concat();
    lab.ok(&decrypt);
    assert_eq!(ledger.needing("default").unwrap(), []);
    let known = ledger.find(uuid.parse().unwrap()).unwrap().unwrap();
    assert!(
        known.erased.is_some() && known.backups.len() == 1,
        "{known:?}"
    );
    // One that was cut off before it told the ledger, done again.
    let needing = Known::new(known.uuid, (known.path, known.header), "default", &[]);
    ledger.note(&needing).unwrap();
    lab.fails(8, &decrypt);
    assert_eq!(ledger.needing("default").unwrap(), []);

    // An encryption that was taken back, too.
    let names = ["disk.img", "--header", "other"];
    let encrypt = [&["volume", "encrypt"][..], &names].concat();
    lab.ok(&[&encrypt[..], &["--prepare"]].concat());
    assert_eq!(ledger.needing("default").unwrap().len(), 1);
    lab.ok(&[&encrypt[..], &["--back"]].concat());
    assert_eq!(ledger.needing("default").unwrap(), []);
}
