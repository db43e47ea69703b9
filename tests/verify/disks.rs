//! Encrypted disks, and those that only seem to be.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use sealblk::config::{Config, Overrides};
use sealblk::keys::Context;
use sealblk::secret::Dek;
use sealblk::units::{Bytes, SectorSize};
use sealblk::volume::{CreateOptions, Location, Plan};

use super::lab::{DISK, DISPROVED, Lab, PROVED, SIZE, UNDECIDED, contents, encrypt};
use super::support::server::{key_file, succeed};
use super::volume_support::{ok, random};

#[test]
fn an_encrypted_volume_is_proved_in_full_and_by_a_sample() {
    for (sector_size, options) in [
        (SectorSize::B512, &[][..]),
        (SectorSize::B4096, &["--sector-size", "4096"][..]),
        (SectorSize::B512, &["--zero-units"][..]),
    ] {
        let lab = Lab::filled(options, sector_size);
        let full = lab.verify(&["--full"]).expect(PROVED, &[]);
        let units = (SIZE / sector_size.bytes()) as u64;
        assert_eq!(full.report["scope"]["looked_at"], units);
        assert_eq!(full.report["scope"]["full"], true);
        assert_eq!(full.check("units")["facts"]["written"], units);
        let legible = full.check("decrypted")["facts"]["legible"].as_u64();
        // A sixteenth is decrypted, of which an eighth is noise.
        assert!(legible.unwrap() > units / 32, "{full:#?}");
        let sampled = lab.verify(&["--sample", "500"]).expect(PROVED, &[]);
        let looked_at = sampled.report["scope"]["looked_at"].as_u64().unwrap();
        assert!(looked_at > units / 3 && looked_at < units, "{looked_at}");
        assert_eq!(sampled.report["requester"]["role"], "local");
        assert_eq!(sampled.report["disk"]["key_set"], "default");
    }
}

#[test]
fn a_sample_can_be_drawn_again() {
    let lab = Lab::filled(&[], SectorSize::B512);
    let first = lab.verify(&["--sample", "200"]).expect(PROVED, &[]);
    let seed = first.report["scope"]["seed"].as_str().unwrap();
    let again = lab.verify(&["--sample", "200", "--seed", seed]);
    let again = again.expect(PROVED, &[]);
    assert_eq!(first.report["scope"], again.report["scope"]);
    assert_eq!(
        first.check("whole"),
        again.check("whole"),
        "to the last byte"
    );
    let other = lab.verify(&["--sample", "200"]).expect(PROVED, &[]);
    assert_ne!(other.report["scope"]["seed"], seed);
    assert_ne!(first.check("whole"), other.check("whole"));
}

#[test]
fn a_detached_header_is_found_where_it_is() {
    let lab = Lab::new();
    lab.create(&["--header", "disk.hdr"]);
    let location = Location {
        data: lab.path(DISK),
        header: Some(lab.path("disk.hdr")),
    };
    succeed(
        lab.sealblk(&[
            "volume",
            "export-dek",
            DISK,
            "--header",
            "disk.hdr",
            "--to",
            "dek",
        ])
        .arg("--i-understand-that-this-key-decrypts-the-disk"),
    );
    let dek = sealblk::secret::Secret::copy_of(&fs::read(lab.path("dek")).unwrap());
    let dek = Dek::try_from(dek.unwrap()).unwrap();
    let stored = encrypt(&dek, SectorSize::B512, &contents(SIZE));
    let file = File::options().write(true).open(&location.data).unwrap();
    file.write_all_at(&stored, 0).unwrap();
    lab.verify(&["--full", "--header", "disk.hdr"])
        .expect(PROVED, &[]);
    // The data alone is no volume, and not called plain for that: nobody can
    // tell.
    lab.verify(&["--full"])
        .expect(DISPROVED, &[("header", "failed")]);
}

#[test]
fn plaintext_behind_a_header_is_found_with_and_without_the_key() {
    for (sector_size, options) in [
        (SectorSize::B512, &[][..]),
        (
            SectorSize::B4096,
            &["--sector-size", "4096", "--zero-units"][..],
        ),
    ] {
        let lab = Lab::with_volume(options);
        lab.store(0, &contents(SIZE));
        let zeroes = match sector_size {
            SectorSize::B512 => "unknown",
            SectorSize::B4096 => "passed",
        };
        let others = [
            ("whole", "failed"),
            ("units", "failed"),
            ("zeroes", zeroes),
            ("decrypted", "unknown"),
        ];
        let found = lab.verify(&["--full"]).expect(DISPROVED, &others);
        let facts = &found.check("units")["facts"];
        // None of them is what it should be; of the noise nobody can tell.
        let [shaped, plaintext] = ["shaped", "plaintext"].map(|name| facts[name].as_u64().unwrap());
        assert!(
            shaped > (SIZE / sector_size.bytes()) as u64 / 2,
            "{found:#?}"
        );
        assert_eq!(shaped, plaintext);
        lab.verify(&["--sample", "100"]).expect(DISPROVED, &others);
        let without = [&others[..], &[("key", "unknown")]].concat();
        lab.verify(&["--no-key"]).expect(DISPROVED, &without);
    }
}

#[test]
fn a_single_unit_of_plaintext_is_found() {
    let text = include_bytes!("../../docs/architecture.md");
    let ramp: Vec<u8> = (0..4096).map(|i| i as u8).collect();
    for (sector_size, options) in [
        (SectorSize::B512, &[][..]),
        (SectorSize::B4096, &["--sector-size", "4096"][..]),
    ] {
        let unit = sector_size.bytes();
        let lab = Lab::filled(options, sector_size);
        let stored = fs::read(lab.path(DISK)).unwrap();
        for (number, plain) in [
            (7, &text[..unit]),
            (700, &ramp[..unit]),
            (SIZE / unit - 1, &[0xff; 4096][..unit]),
        ] {
            lab.store(number * unit, plain);
            let found = lab.verify(&["--full"]);
            // Of 4096 equal bytes the whole shows it, too.
            let whole = found.check("whole")["outcome"].as_str().unwrap().to_owned();
            let found = found.expect(DISPROVED, &[("units", "failed"), ("whole", &whole)]);
            let facts = &found.check("units")["facts"];
            assert_eq!(facts["first_units"], serde_json::json!([number]));
            assert_eq!(
                (&facts["shaped"], &facts["plaintext"]),
                (&1.into(), &1.into())
            );
            assert!(
                found
                    .errors
                    .contains(&format!("at byte {} of", number * unit))
            );
            let place = (1 << 20) + number * unit;
            lab.store(number * unit, &stored[place..place + unit]);
        }
        lab.verify(&["--full"]).expect(PROVED, &[]);
    }
}

/// Zeroes that are neither a hole nor what the format says are zeroes.
#[test]
fn a_single_unit_of_zeroes_that_nothing_explains_is_told() {
    let lab = Lab::filled(&[], SectorSize::B512);
    lab.store(5000 * 512, &[0; 512]);
    let found = lab.verify(&["--full"]);
    let found = found.expect(UNDECIDED, &[("zeroes", "unknown")]);
    assert_eq!(found.check("zeroes")["facts"]["units"], 1);
}

#[test]
fn holes_and_zero_units_are_explained() {
    for (options, written) in [(&[][..], 40), (&["--zero-units"][..], 40)] {
        let lab = Lab::with_volume(options);
        let empty = [
            ("whole", "unknown"),
            ("units", "unknown"),
            ("decrypted", "unknown"),
        ];
        let found = lab.verify(&["--full"]).expect(UNDECIDED, &empty);
        assert_eq!(found.report["scope"]["bytes"], 0, "holes are not read");
        let stored = encrypt(&lab.dek(), SectorSize::B512, &contents(SIZE));
        let part = written * 4096;
        lab.store(0, &stored[..part]);
        lab.store(SIZE - part, &stored[SIZE - part..]);
        let found = lab.verify(&["--full"]).expect(PROVED, &[]);
        let facts = &found.check("zeroes")["facts"];
        let zero = (SIZE - 2 * part) / 512;
        assert_eq!(
            (&facts["units"], &facts["holes"]),
            (&zero.into(), &zero.into())
        );
        lab.verify(&["--sample", "300"]).expect(PROVED, &[]);
        // A copy without holes: only the format's own flag explains them.
        let copy = fs::read(lab.path(DISK)).unwrap();
        fs::write(lab.path(DISK), copy).unwrap();
        match options.is_empty() {
            true => lab
                .verify(&["--full"])
                .expect(UNDECIDED, &[("zeroes", "unknown")]),
            false => lab.verify(&["--full"]).expect(PROVED, &[]),
        };
    }
}

#[test]
fn wrong_tweaks_are_named() {
    for (sector_size, options) in [
        (SectorSize::B512, &[][..]),
        (SectorSize::B4096, &["--sector-size", "4096"][..]),
    ] {
        let unit = sector_size.bytes();
        let lab = Lab::with_volume(options);
        let plain = contents(SIZE + unit);
        let shifted = encrypt(&lab.dek(), sector_size, &plain);
        // Each unit has the tweak of the next one.
        lab.store(0, &shifted[unit..]);
        for arguments in [&["--full"][..], &["--sample", "50"]] {
            let found = lab.verify(arguments);
            let found = found.expect(DISPROVED, &[("decrypted", "failed")]);
            let says = found.check("decrypted")["says"].as_str().unwrap();
            assert!(says.contains("that of the next unit"), "{says}");
        }
        if sector_size == SectorSize::B4096 {
            // Counted in units, and not in sectors.
            let dek = lab.dek();
            let units = plain[..SIZE].chunks(unit).enumerate();
            let stored = units.flat_map(|(number, plain)| encrypt_one(&dek, number, plain));
            lab.store(0, &stored.collect::<Vec<u8>>());
            let found = lab.verify(&["--full"]);
            let found = found.expect(DISPROVED, &[("decrypted", "failed")]);
            let says = found.check("decrypted")["says"].as_str().unwrap();
            assert!(says.contains("in the place of sectors"), "{says}");
        }
    }
}

/// A unit with a tweak of one's own.
fn encrypt_one(dek: &Dek, tweak: usize, plain: &[u8]) -> Vec<u8> {
    use aes::Aes256;
    use aes::cipher::{Array, KeyInit as _};
    let key = |half: &[u8]| Aes256::new(&Array::try_from(half).unwrap());
    let (data, second) = dek.bytes().split_at(32);
    let xts = xts_mode::Xts128::new(key(data), key(second));
    let mut out = plain.to_vec();
    xts.encrypt_sector(&mut out, (tweak as u128).to_le_bytes().into());
    out
}

#[test]
fn the_same_tweak_for_all_units_is_found() {
    let lab = Lab::with_volume(&[]);
    let dek = lab.dek();
    let stored: Vec<u8> = contents(SIZE)
        .chunks(512)
        .flat_map(|unit| encrypt(&dek, SectorSize::B512, unit))
        .collect();
    lab.store(0, &stored);
    let found = lab.verify(&["--full"]);
    assert_eq!(found.status, DISPROVED, "{found:#?}");
    assert_eq!(found.check("repeats")["outcome"], "failed");
    assert!(found.check("repeats")["facts"]["equal_beginnings"].as_u64() > Some(1000));
    // And no tweak at all, within a unit.
    let mut stored = encrypt(&dek, SectorSize::B512, &contents(SIZE));
    stored.copy_within(512 * 99..512 * 99 + 16, 512 * 99 + 16);
    lab.store(0, &stored);
    let found = lab
        .verify(&["--full"])
        .expect(DISPROVED, &[("repeats", "failed")]);
    assert_eq!(found.check("repeats")["facts"]["equal_neighbours"], 1);
}

#[test]
fn data_of_another_key_is_not_proved() {
    let lab = Lab::with_volume(&[]);
    let other = Dek::generate().unwrap();
    lab.store(0, &encrypt(&other, SectorSize::B512, &contents(SIZE)));
    // It is encrypted, and nothing shows that it is with this key.
    let found = lab.verify(&["--full"]);
    let found = found.expect(UNDECIDED, &[("decrypted", "unknown")]);
    assert!(found.errors.contains("another key"), "{}", found.errors);
    // So is what a guest has encrypted by itself, on a disk that is right.
    let noise = encrypt(&lab.dek(), SectorSize::B512, &random(SIZE));
    lab.store(0, &noise);
    lab.verify(&["--full"])
        .expect(UNDECIDED, &[("decrypted", "unknown")]);
}

#[test]
fn a_wrapped_key_that_is_not_the_one_of_the_header_is_found() {
    let lab = Lab::new();
    let overrides = Overrides {
        key_file: Some(key_file(lab.home.directory())),
        ..Overrides::default()
    };
    let config = Config::load(Some(&lab.path("sealblk.toml")), overrides).unwrap();
    let location = Location {
        data: lab.path(DISK),
        header: None,
    };
    let options = CreateOptions {
        size: Some(Bytes(SIZE as u64)),
        header_area: Bytes(1 << 20),
        ..CreateOptions::default()
    };
    let plan = Plan::new(&location, options).unwrap();
    let (wrapped, described) = (Dek::generate().unwrap(), Dek::generate().unwrap());
    let binding = plan.binding().bytes();
    let keys = config.key_sets();
    let context = Context::local(None);
    let wrapping = keys.wrap(&context, "default", &wrapped, &binding);
    let wraps = sealblk::runtime::block_on(wrapping).unwrap().unwrap();
    drop(plan.write(&described, "default", wraps).unwrap());
    lab.store(0, &encrypt(&described, SectorSize::B512, &contents(SIZE)));
    let others = [("key", "failed"), ("decrypted", "unknown")];
    let found = lab.verify(&["--full"]).expect(DISPROVED, &others);
    assert!(
        found
            .errors
            .contains("not the key that the header describes"),
        "{found:#?}"
    );
}

#[test]
fn without_the_key_it_is_not_proved_and_what_is_wrong_is_found() {
    let lab = Lab::filled(&[], SectorSize::B512);
    let without = [("key", "unknown"), ("decrypted", "unknown")];
    lab.verify(&["--full", "--no-key"])
        .expect(UNDECIDED, &without);
    // The same if the service does not answer, or denies the key.
    fs::rename(lab.path("platform.key"), lab.path("away")).unwrap();
    let found = lab.verify(&["--full"]).expect(UNDECIDED, &without);
    assert!(found.errors.contains("platform.key"), "{found:#?}");
    fs::rename(lab.path("away"), lab.path("platform.key")).unwrap();
    let keys = succeed(&mut lab.home.sealblk(&["key", "list", "--json"]));
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    succeed(
        lab.home
            .sealblk(&["key", "disable"])
            .arg(keys["latest"].as_str().unwrap()),
    );
    lab.verify(&["--full"]).expect(UNDECIDED, &without);
    lab.store(512 * 777, &[b'x'; 512]);
    let others = [&without[..], &[("units", "failed")]].concat();
    lab.verify(&["--full", "--no-key"])
        .expect(DISPROVED, &others);
}

#[test]
fn what_is_not_a_whole_volume_is_not_proved() {
    let lab = Lab::filled(&[], SectorSize::B512);
    let good = fs::read(lab.path(DISK)).unwrap();
    // One copy of the header.
    let mut bytes = good.clone();
    bytes[5000] ^= 1;
    fs::write(lab.path(DISK), &bytes).unwrap();
    let found = lab
        .verify(&["--full"])
        .expect(UNDECIDED, &[("header", "unknown")]);
    assert!(found.errors.contains("volume repair"), "{found:#?}");
    // Both.
    bytes[5000 + (64 << 10)] ^= 1;
    fs::write(lab.path(DISK), &bytes).unwrap();
    lab.verify(&["--full"])
        .expect(UNDECIDED, &[("header", "unknown")]);
    // The end is missing.
    fs::write(lab.path(DISK), &good[..good.len() - 512]).unwrap();
    lab.verify(&["--full"])
        .expect(UNDECIDED, &[("length", "unknown")]);
    // No header at all.
    fs::write(lab.path(DISK), &good[1 << 20..]).unwrap();
    lab.verify(&[]).expect(DISPROVED, &[("header", "failed")]);
    // Somebody else's LUKS2 device: encrypted perhaps, and not by us.
    fs::write(lab.path(DISK), vec![0; 32 << 20]).unwrap();
    let key = lab.path("passphrase");
    fs::write(&key, "secret").unwrap();
    let disk = lab.path(DISK);
    let [disk, key] = [&disk, &key].map(|path| path.to_str().unwrap());
    ok(
        "cryptsetup",
        &[
            "luksFormat",
            "-q",
            "--type",
            "luks2",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            disk,
            key,
        ],
    );
    lab.verify(&[]).expect(UNDECIDED, &[("header", "unknown")]);
}

#[test]
fn what_cannot_be_tried_has_no_verdict() {
    let lab = Lab::with_volume(&[]);
    lab.home
        .refused(&["verify", "missing.img"])
        .expect(3, &["missing.img"], "exists");
    lab.home
        .refused(&["verify", "."])
        .expect(2, &["a directory"], "regular file");
}
