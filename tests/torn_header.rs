//! Wherever the power fails while a header is written, the volume keeps a
//! header: the old one or the new one, and nothing in between.
//!
//! Fault model: writes reach the device in pieces of 512 bytes. Before a
//! `sync` returns, any subset of the pieces written since the last `sync` may
//! have reached it, in any order; after it, all have. Checked are every
//! prefix of the pieces, and random subsets. Seeds are fixed by proptest's
//! own reporting: a failure prints the input that caused it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io;
use std::path::Path;

use proptest::prelude::*;
use sealblk::rekey;
use sealblk::secret::Dek;
use sealblk::units::Bytes;
use sealblk::volume::luks2::binary::{Binary, field};
use sealblk::volume::luks2::copies::{self, Found, Header, State};
use sealblk::volume::luks2::digest::Digest;
use sealblk::volume::luks2::{HeaderIo, Metadata, Segment, Which};
use sealblk::volume::{
    Access, Bound, CreateOptions, Description, Location, Plan, Token, Volume, Wrap, token,
};

const COPY: usize = 16 << 10;
const AREA: usize = 64 << 10;
const PIECE: usize = 512;

/// A device that remembers what was written to it, and in which order.
#[derive(Clone)]
struct Recorder {
    before: Vec<u8>,
    now: Vec<u8>,
    /// One list for each stretch between two syncs.
    stretches: Vec<Vec<(usize, Vec<u8>)>>,
    /// How many more writes succeed.
    budget: usize,
}

impl Recorder {
    fn new(image: &[u8]) -> Self {
        Recorder {
            before: image.to_vec(),
            now: image.to_vec(),
            stretches: vec![Vec::new()],
            budget: usize::MAX,
        }
    }

    fn pieces(&self) -> usize {
        self.stretches.iter().map(Vec::len).sum()
    }

    /// The image after the power failed once `count` pieces had been written,
    /// of which those of the unsynced stretch only persist if `keep` says so.
    fn cut(&self, count: usize, mut keep: impl FnMut(usize) -> bool) -> Vec<u8> {
        let mut image = self.before.clone();
        let mut left = count;
        for stretch in &self.stretches {
            let complete = stretch.len() < left;
            for (index, (offset, bytes)) in stretch.iter().enumerate().take(left) {
                if complete || keep(index) {
                    image[*offset..*offset + bytes.len()].copy_from_slice(bytes);
                }
            }
            left = left.saturating_sub(stretch.len());
            if left == 0 {
                break;
            }
        }
        image
    }
}

impl HeaderIo for Recorder {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.now.read_at(buffer, offset)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.budget == 0 {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.budget -= 1;
        self.now.write_at(bytes, offset)?;
        let stretch = self.stretches.last_mut().unwrap();
        for (index, piece) in bytes.chunks(PIECE).enumerate() {
            stretch.push((offset as usize + index * PIECE, piece.to_vec()));
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.stretches.push(Vec::new());
        Ok(())
    }
}

fn token_named(name: &str) -> serde_json::Value {
    let wrap = Wrap {
        key_set: name.into(),
        provider: "file".into(),
        key_id: "k".into(),
        key_version: "1".into(),
        alg: "A256GCM".into(),
        bound: Bound::Aad,
        group: None,
        bytes: name.bytes().cycle().take(3000).collect(),
        extra: Default::default(),
    };
    Token::new(name, false, vec![wrap]).to_json().unwrap()
}

fn header(name: &str, seqid: u64) -> Header {
    let segment = Segment {
        kind: "crypt".into(),
        offset: AREA as u64,
        size: 1 << 20,
        iv_tweak: 0,
        encryption: "aes-xts-plain64".into(),
        sector_size: 512,
    };
    let digest = Digest::of(&Dek::generate().unwrap()).unwrap();
    Header {
        binary: Binary {
            copy_bytes: COPY as u64,
            seqid,
            label: field("torn").unwrap(),
            uuid: field("00112233-4455-6677-8899-aabbccddeeff").unwrap(),
            subsystem: field("sealblk").unwrap(),
        },
        metadata: Metadata::new(
            &segment,
            &digest,
            token_named(name),
            COPY as u64,
            AREA as u64,
        )
        .unwrap(),
    }
}

fn name_in(header: &Header) -> String {
    let (_, token) = header.metadata.token("sealblk").unwrap().unwrap();
    Token::from_json(token).unwrap().key_set
}

/// A device with the header `old`, in one of the states in which an update
/// may find it.
fn device_with_old(start: Start) -> Vec<u8> {
    let mut image = vec![0; AREA];
    copies::create(&mut image, &header("old", 7)).unwrap();
    match start {
        Start::Whole => {}
        Start::NoPrimary => image[..COPY].fill(0xee),
        Start::NoSecondary => image[COPY..2 * COPY].fill(0xee),
        Start::OldSecondary | Start::OldPrimary => {
            let mut older = vec![0; AREA];
            copies::create(&mut older, &header("ancient", 6)).unwrap();
            let range = match start {
                Start::OldPrimary => 0..COPY,
                _ => COPY..2 * COPY,
            };
            image[range.clone()].copy_from_slice(&older[range]);
        }
    }
    image
}

#[derive(Clone, Copy, Debug)]
enum Start {
    Whole,
    NoPrimary,
    NoSecondary,
    OldPrimary,
    OldSecondary,
}

const STARTS: [Start; 5] = [
    Start::Whole,
    Start::NoPrimary,
    Start::NoSecondary,
    Start::OldPrimary,
    Start::OldSecondary,
];

fn update(image: &[u8]) -> Recorder {
    let mut device = Recorder::new(image);
    let found = copies::read(&device).unwrap();
    assert_eq!(name_in(&found.header), "old");
    let mut new = found.header.clone();
    new.metadata
        .replace_token("sealblk", token_named("new"))
        .unwrap();
    copies::replace(&mut device, &found, &mut new).unwrap();
    assert_eq!(new.binary.seqid, 8);
    device
}

/// After a cut: the old or the new header, and a repair makes both copies
/// good and keeps that header. A crash during the repair does no harm either.
fn check_recovery(image: &[u8]) -> (String, Found) {
    let found = copies::read(&image.to_vec()).expect("a header must be left");
    let name = name_in(&found.header);
    assert!(name == "old" || name == "new", "{name}");
    let mut repairing = Recorder::new(image);
    copies::repair(&mut repairing, &found).unwrap();
    for count in (0..=repairing.pieces()).step_by(5) {
        let torn = copies::read(&repairing.cut(count, |_| true)).unwrap();
        assert_eq!(name_in(&torn.header), name, "a torn repair lost the header");
    }
    let repaired = copies::read(&repairing.now).unwrap();
    assert!(repaired.is_whole(), "{repaired}");
    assert_eq!(repaired.header, found.header);
    (name, found)
}

#[test]
fn an_update_cut_after_any_piece_leaves_old_or_new() {
    for start in STARTS {
        let device = update(&device_with_old(start));
        let total = device.pieces();
        assert_eq!(total, 2 * COPY / PIECE);
        let mut names = Vec::new();
        for count in 0..=total {
            names.push(check_recovery(&device.cut(count, |_| true)).0);
        }
        // It changes exactly once, when the first copy is complete.
        let switch = names.iter().position(|name| name == "new").unwrap();
        assert!(switch <= COPY / PIECE, "{start:?}");
        assert!(names[..switch].iter().all(|name| name == "old"));
        assert!(names[switch..].iter().all(|name| name == "new"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_update_of_which_any_pieces_persist_leaves_old_or_new(
        start in 0..STARTS.len(),
        count in 0..=2 * COPY / PIECE,
        kept in prop::collection::vec(any::<bool>(), COPY / PIECE),
    ) {
        let device = update(&device_with_old(STARTS[start]));
        check_recovery(&device.cut(count, |piece| kept[piece]));
    }

    #[test]
    fn a_creation_of_which_any_pieces_persist_leaves_nothing_or_a_volume(
        count in 0..=2 * COPY / PIECE + 2,
        kept in prop::collection::vec(any::<bool>(), 2 * COPY / PIECE),
    ) {
        let mut device = Recorder::new(&vec![0; AREA]);
        copies::create(&mut device, &header("new", 1)).unwrap();
        let image = device.cut(count, |piece| kept[piece]);
        match copies::read(&image) {
            Ok(found) => prop_assert_eq!(name_in(&found.header), "new"),
            Err(lost) => {
                prop_assert!(lost.no_trace(), "half a header: {:?}", lost);
                prop_assert!(!image.windows(6).any(|bytes| bytes == b"LUKS\xba\xbe"));
            }
        }
    }
}

#[test]
fn a_creation_cut_after_any_piece_leaves_nothing_or_a_volume() {
    let mut device = Recorder::new(&vec![0; AREA]);
    copies::create(&mut device, &header("new", 1)).unwrap();
    let total = device.pieces();
    let valid_from = total - 1;
    for count in 0..=total {
        let image = device.cut(count, |_| true);
        match copies::read(&image) {
            Ok(found) => {
                assert!(count >= valid_from, "{count}");
                assert_eq!(found.is_whole(), count == total);
            }
            Err(lost) => {
                assert!(count < valid_from, "{count}");
                assert!(lost.no_trace());
            }
        }
    }
}

#[test]
fn a_write_that_fails_leaves_the_other_copy_alone() {
    for start in STARTS {
        for budget in 0..2 {
            let mut device = Recorder::new(&device_with_old(start));
            let found = copies::read(&device).unwrap();
            let mut new = found.header.clone();
            new.metadata
                .replace_token("sealblk", token_named("new"))
                .unwrap();
            device.budget = budget;
            copies::replace(&mut device, &found, &mut new).unwrap_err();
            let (name, _) = check_recovery(&device.now);
            assert_eq!(name, ["old", "new"][budget], "{start:?}");
        }
    }
}

#[test]
fn repeating_a_failed_update_overwrites_the_right_copy() {
    let mut device = Recorder::new(&device_with_old(Start::Whole));
    let found = copies::read(&device).unwrap();
    let mut new = found.header.clone();
    device.budget = 1;
    copies::replace(&mut device, &found, &mut new).unwrap_err();
    // The primary copy has update 8 now, the secondary still 7.
    let again = copies::read(&device).unwrap();
    assert_eq!(again.header.binary.seqid, 8);
    assert_eq!(again.secondary, State::Outdated { seqid: 7 });
    let mut device = Recorder::new(&device.now);
    let mut newer = again.header.clone();
    copies::replace(&mut device, &again, &mut newer).unwrap();
    let first = device.stretches[0][0].0;
    assert_eq!(first, Which::Secondary.offset(COPY as u64) as usize);
    assert_eq!(copies::read(&device.now).unwrap().header.binary.seqid, 9);
}

#[test]
fn nothing_is_written_when_it_does_not_fit() {
    let image = device_with_old(Start::Whole);
    let mut device = Recorder::new(&image);
    let found = copies::read(&device).unwrap();
    let mut new = found.header.clone();
    let mut huge = token_named("new");
    huge["filler"] = "x".repeat(COPY).into();
    new.metadata.replace_token("sealblk", huge).unwrap();
    copies::replace(&mut device, &found, &mut new).unwrap_err();
    assert_eq!(device.now, image);
}

/// What an operation on the data of a volume does to its header, and what both
/// states are told apart by.
struct Change {
    name: &'static str,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// What the header of an image means: which key it is of, and what is under way.
fn meaning(image: &[u8], deks: &[Dek; 2]) -> (Option<usize>, Option<rekey::Kind>, bool) {
    let found = copies::read(&image.to_vec()).expect("a header must be left");
    let description = Description::of(&found.header, Path::new("torn")).unwrap();
    let key = deks.iter().position(|dek| description.digest.proves(dek));
    let token = &description.token;
    let kind = token.rekey.as_ref().map(|rekey| rekey.kind);
    // Key and wraps belong together, in each state.
    let names: Vec<_> = token.wraps.iter().map(|wrap| wrap.key_id.clone()).collect();
    assert_eq!(
        names,
        key.map(|key| key.to_string())
            .into_iter()
            .collect::<Vec<_>>()
    );
    (key, kind, token.plain.is_some())
}

/// The image of the header file before and after each way in which an operation
/// begins or ends.
fn changes(deks: &[Dek; 2]) -> Vec<Change> {
    let directory = tempfile::tempdir().unwrap();
    let location = Location {
        data: directory.path().join("data"),
        header: Some(directory.path().join("header")),
    };
    let wrap = |key: usize| Wrap {
        key_set: "k".into(),
        provider: "file".into(),
        key_id: key.to_string(),
        key_version: "1".into(),
        alg: "A256GCM".into(),
        bound: Bound::Aad,
        group: None,
        bytes: vec![key as u8; 2000],
        extra: Default::default(),
    };
    let options = CreateOptions {
        size: Some(Bytes(1 << 20)),
        header_area: Bytes(AREA as u64),
        ..CreateOptions::default()
    };
    let plan = Plan::new(&location, options).unwrap();
    drop(plan.write(&deks[0], "k", vec![wrap(0)]).unwrap());
    let image = || std::fs::read(location.header.as_ref().unwrap()).unwrap();
    let mut changes = Vec::new();
    let mut step = |name, work: &dyn Fn(&mut Volume)| {
        let before = image();
        work(&mut Volume::open(&location, Access::ReadWrite).unwrap());
        changes.push(Change {
            name,
            before,
            after: image(),
        });
    };
    let begin_rekey = |volume: &mut Volume| {
        let facts = volume.facts_to_begin(rekey::Kind::Rekey).unwrap();
        let previous = vec![5; token::PREVIOUS_BYTES];
        let wraps = vec![wrap(1)];
        volume
            .begin_rekey(&facts, &deks[1], wraps, previous)
            .unwrap();
    };
    step("begin a rekey", &begin_rekey);
    step("take it back", &|volume| {
        volume.finish_back(&deks[0], vec![wrap(0)]).unwrap();
    });
    step("begin it again", &begin_rekey);
    step("finish it", &|volume| volume.finish_rekey().unwrap());
    let begin_decrypt = |volume: &mut Volume| {
        let facts = volume.facts_to_begin(rekey::Kind::Decrypt).unwrap();
        volume.begin_decrypt(&facts).unwrap();
    };
    step("begin to decrypt", &begin_decrypt);
    step("take that back", &|volume| volume.finish_rekey().unwrap());
    step("begin to decrypt again", &begin_decrypt);
    step("finish to decrypt", &|volume| {
        volume.finish_decrypt().unwrap()
    });
    changes
}

/// Of each copy in turn, as they are written, some pieces are new.
fn torn(change: &Change, count: usize, keep: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut image = change.before.clone();
    let per_copy = COPY / PIECE;
    for piece in 0..count.min(2 * per_copy) {
        // The first copy is synchronised before the second is begun.
        let synced = count > per_copy && piece < per_copy;
        if synced || keep(piece % per_copy) {
            let range = piece * PIECE..(piece + 1) * PIECE;
            image[range.clone()].copy_from_slice(&change.after[range]);
        }
    }
    image
}

fn deks() -> [Dek; 2] {
    [Dek::generate().unwrap(), Dek::generate().unwrap()]
}

#[test]
fn an_operation_whose_begin_or_end_is_cut_off_has_begun_or_ended_or_has_not() {
    let deks = deks();
    let expected = [
        ("begin a rekey", Some(0), Some(1)),
        ("take it back", Some(1), Some(0)),
        ("begin it again", Some(0), Some(1)),
        ("finish it", Some(1), Some(1)),
        ("begin to decrypt", Some(1), Some(1)),
        ("take that back", Some(1), Some(1)),
        ("begin to decrypt again", Some(1), Some(1)),
        ("finish to decrypt", Some(1), None),
    ];
    let changes = changes(&deks);
    assert_eq!(changes.len(), expected.len());
    for (change, (name, key_before, key_after)) in changes.iter().zip(expected) {
        let before = meaning(&change.before, &deks);
        let after = meaning(&change.after, &deks);
        assert_eq!(
            (change.name, before.0, after.0),
            (name, key_before, key_after)
        );
        assert_ne!(before, after, "{name}");
        let mut switched = false;
        for count in 0..=2 * COPY / PIECE {
            let image = torn(change, count, |_| true);
            let now = meaning(&image, &deks);
            assert!(now == before || now == after, "{name} at {count}: {now:?}");
            assert!(!(switched && now == before), "{name} went back at {count}");
            switched |= now == after;
            // What repairs it keeps what counts.
            let found = copies::read(&image).unwrap();
            let mut repaired = image.clone();
            copies::repair(&mut repaired, &found).unwrap();
            assert_eq!(meaning(&repaired, &deks), now, "{name} at {count}");
        }
        assert!(switched);
    }
}

#[test]
fn an_operation_of_whose_begin_or_end_any_pieces_persist_has_begun_or_ended_or_has_not() {
    let deks = deks();
    let changes = changes(&deks);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let strategy = (
        0..changes.len(),
        0..=2 * COPY / PIECE,
        prop::collection::vec(any::<bool>(), COPY / PIECE),
    );
    runner
        .run(&strategy, |(which, count, kept)| {
            let change = &changes[which];
            let now = meaning(&torn(change, count, |piece| kept[piece]), &deks);
            let before = meaning(&change.before, &deks);
            let after = meaning(&change.after, &deks);
            prop_assert!(now == before || now == after, "{}", change.name);
            Ok(())
        })
        .unwrap();
}
