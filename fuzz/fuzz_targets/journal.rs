//! Journals of operations on all data, from bytes that anybody may have
//! written; also such as only who has the keys can make, with nonsense in them.
//!
//! Reading and recovering never panic. What is refused is left as it was. What is
//! accepted is a place on the disk, which the mover goes on from to the end; and
//! data that no record covers has the same plaintext then.
#![no_main]

use std::io;
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use sealblk::crypt::{Engine, Params, SectorCipher, Transform};
use sealblk::rekey::{
    Alone, Direction, Error, Facts, Geometry, Journal, Keys, Kind, Medium, Mover, Options, Outcome,
    Transforms, recover,
};
use sealblk::secret::{Dek, Secret};
use sealblk::units::{Sector, SectorSize};
use sealblk_fuzz::source::Source;
use sha2::{Digest, Sha256};
use uuid::Uuid;

const SLOT: usize = 4096;
const SECTORS: usize = 40;
const SIZE: u64 = SECTORS as u64 * 512;
const BINDING: &[u8] = b"a volume";

/// One volume of a kind, in units of one size.
struct Volume {
    kind: Kind,
    geometry: Geometry,
    transforms: Transforms,
    keys: Arc<Keys>,
    /// The key of records, derived here once more.
    records: [u8; 32],
}

static VOLUMES: LazyLock<Vec<Volume>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for kind in [Kind::Rekey, Kind::Encrypt, Kind::Decrypt] {
        for unit in [SectorSize::B512, SectorSize::B4096] {
            all.push(volume(kind, unit));
        }
    }
    all
});

fn volume(kind: Kind, unit: SectorSize) -> Volume {
    let facts = Facts {
        id: Uuid::from_u128(5),
        kind,
        binding: BINDING.to_vec(),
        data_offset: 0,
        size: SIZE,
    };
    let bytes = |seed: u8| -> [u8; 64] { std::array::from_fn(|at| at as u8 ^ seed) };
    let key = |there: bool, seed| there.then(|| bytes(seed));
    let (old, new) = (
        key(kind != Kind::Encrypt, 1),
        key(kind != Kind::Decrypt, 200),
    );
    let dek = |key: &Option<[u8; 64]>| {
        key.map(|key| {
            let secret = Secret::copy_of(&key).expect("locked memory");
            Dek::try_from(secret).expect("two different halves")
        })
    };
    let params = Params {
        sector_size: unit,
        iv_tweak: 0,
        zero_units: true,
    };
    let transform = |dek: Option<Dek>| {
        Arc::new(match dek {
            Some(dek) => Transform::Cipher(
                SectorCipher::new(Engine::best(), &dek, params).expect("an engine"),
            ),
            None => Transform::Plain(unit),
        })
    };
    let keys = Keys::derive(&facts, dek(&old).as_ref(), dek(&new).as_ref()).expect("keys");
    let number = [Kind::Rekey, Kind::Encrypt, Kind::Decrypt]
        .iter()
        .position(|other| *other == kind)
        .expect("one of them") as u8;
    let with_length = |out: &mut Vec<u8>, field: &[u8]| {
        out.extend_from_slice(&(field.len() as u32).to_be_bytes());
        out.extend_from_slice(field);
    };
    let (mut input, mut info) = (Vec::new(), Vec::new());
    for key in [&old, &new] {
        with_length(&mut input, key.as_ref().map_or(&[], |key| &key[..]));
    }
    for field in [
        b"sealblk rekey v1",
        BINDING,
        &[number + 1],
        &0u64.to_be_bytes(),
        &SIZE.to_be_bytes(),
    ] {
        with_length(&mut info, field);
    }
    info.push(1);
    let records = hmac(&hmac(facts.id.as_bytes(), &input), &info);
    Volume {
        kind,
        geometry: Geometry::new(&facts, unit).expect("whole units"),
        transforms: Transforms {
            old: transform(dek(&old)),
            new: transform(dek(&new)),
        },
        keys: keys.into(),
        records,
    }
}

/// HMAC-SHA-256 (RFC 2104) with a key of at most 64 bytes.
fn hmac(key: &[u8], bytes: &[u8]) -> [u8; 32] {
    let pad = |byte: u8| -> [u8; 64] {
        std::array::from_fn(|at| key.get(at).copied().unwrap_or(0) ^ byte)
    };
    let inner = Sha256::new()
        .chain_update(pad(0x36))
        .chain_update(bytes)
        .finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

#[derive(Clone)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn new(bytes: Vec<u8>) -> Self {
        Memory(Arc::new(Mutex::new(bytes)))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("nobody panics").clone()
    }
}

impl Medium for Memory {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.0.lock().expect("nobody panics");
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut all = self.0.lock().expect("nobody panics");
        all[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    let volume = &VOLUMES[source.below(VOLUMES.len())];
    let data: Vec<u8> = (0..SECTORS).flat_map(|at| [at as u8 % 5; 512]).collect();
    let data = Memory::new(data);
    let mut slots = Vec::new();
    for slot in 0..2 {
        slots.extend(record(&mut source, volume, &data, slot));
    }
    while source.rarely() {
        let at = usize::from(source.u16()) % slots.len();
        slots[at] ^= source.byte();
    }
    let header = Memory::new(slots);
    check(volume, &header, &data);
});

/// A slot with a record that is mostly right.
fn record(source: &mut Source<'_>, volume: &Volume, data: &Memory, slot: u64) -> Vec<u8> {
    let unit = volume.geometry.unit().bytes() as u64;
    let units = SIZE / unit;
    let usual = 2 * u64::from(source.byte() % 8 + 1) + slot;
    let sequence = source.mostly(usual, Source::odd_number);
    let back = source.byte() & 1;
    let usual = u64::from(source.byte()) % (units + 1);
    let boundary = source.mostly(usual * unit, Source::odd_number);
    let room = match back {
        0 => units.saturating_sub(boundary / unit),
        _ => boundary / unit,
    };
    let usual = u64::from(source.byte()) % (room.min(units) + 1);
    let covered = source.mostly(usual * unit, Source::odd_number);
    let sectors = source.mostly(covered / 512, |source| u64::from(source.byte()));
    let sectors = sectors.min(200);
    let length = 96 + 16 * sectors;
    let mut bytes = b"SBLKJRNL".to_vec();
    bytes.extend(source.mostly(1, Source::u32).to_be_bytes());
    bytes.extend(source.mostly(length as u32, Source::u32).to_be_bytes());
    bytes.extend(5u128.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    let direction = source.mostly(back + 1, Source::byte);
    bytes.extend([direction, 0, 0, 0, 0, 0, 0, source.mostly(0, Source::byte)]);
    bytes.extend(boundary.to_be_bytes());
    bytes.extend(covered.to_be_bytes());
    let first = match back {
        0 => boundary / 512,
        _ => boundary.wrapping_sub(covered) / 512,
    };
    let data = data.bytes();
    for sector in (first..).take(sectors as usize) {
        let mut tag = [[0; 16]];
        if let Some(stored) = data.chunks(512).nth(sector as usize)
            && source.byte() & 1 == 0
        {
            volume.keys.tag(sector * 512, stored, &mut tag);
        }
        bytes.extend(tag[0]);
    }
    let mac = hmac(&volume.records, &bytes);
    bytes.extend(mac);
    bytes.resize(SLOT, 0);
    bytes
}

fn check(volume: &Volume, header: &Memory, data: &Memory) {
    let journal = || {
        let area = 0..2 * SLOT as u64;
        Journal::new(header.clone(), area, volume.keys.clone(), volume.geometry).expect("room")
    };
    let before = (header.bytes(), data.bytes());
    let mut found = journal();
    let read = found.read();
    let recovered = recover(
        &mut found,
        data.clone(),
        volume.geometry,
        &volume.transforms,
        1,
    );
    let (state, position) = match (read, recovered) {
        (Ok(state), Ok(position)) => (state, position),
        (Err(Error::Unauthentic), Err(Error::Unauthentic))
        | (Err(Error::Inconsistent(_)), Err(Error::Inconsistent(_))) => {
            assert!(
                before == (header.bytes(), data.bytes()),
                "refused, and changed"
            );
            return;
        }
        (read, recovered) => panic!("{read:?}, then {recovered:?}"),
    };
    assert!(position.boundary <= SIZE);
    let again = journal().read().expect("it was recovered");
    assert!(again.position == position && again.covered == 0);
    let plain = (state.covered == 0).then(|| plain_of(volume, &before.1, position.boundary));
    let mut mover = Mover::new(
        found,
        data.clone(),
        Alone,
        volume.geometry,
        volume.transforms.clone(),
        position,
        Options {
            region_least: 4096,
            region_most: 8192,
            ..Options::default()
        },
    )
    .expect("what was recovered goes on");
    assert_eq!(mover.run().expect("memory does not fail"), Outcome::Done);
    let end = match position.direction {
        Direction::Forward => SIZE,
        Direction::Back => 0,
    };
    assert_eq!(mover.position().boundary, end, "{:?}", volume.kind);
    if let Some(plain) = plain {
        assert!(plain_of(volume, &data.bytes(), end) == plain);
    }
}

/// What a guest finds, with that boundary.
fn plain_of(volume: &Volume, stored: &[u8], boundary: u64) -> Vec<u8> {
    let mut plain = stored.to_vec();
    let (new, old) = plain.split_at_mut(boundary as usize);
    volume.transforms.new.decrypt_in_place(Sector(0), new);
    volume
        .transforms
        .old
        .decrypt_in_place(Sector(boundary / 512), old);
    plain
}
