//! What an edited, damaged or older journal does: nothing, or it is refused.

#[path = "exhaustive_tests.rs"]
mod exhaustive;

use std::io;
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::buffer::Buffer;
use super::keys::SectorTag;
use super::record::{self, State};
use super::{Direction, Error, Facts, Geometry, Journal, Keys, Kind, Medium, Position};
use crate::secret::{Dek, Secret};
use crate::units::SectorSize;

const SLOT: usize = 4096;
const SIZE: u64 = 1 << 20;
const HEAD: usize = 64;

/// A file in memory, in which things can be edited.
#[derive(Clone)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Medium for Memory {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        buffer.copy_from_slice(&self.0.lock().unwrap()[at..at + buffer.len()]);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        self.0.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn facts() -> Facts {
    Facts {
        id: Uuid::from_u128(9),
        kind: Kind::Encrypt,
        binding: b"a volume".to_vec(),
        data_offset: 0,
        size: SIZE,
    }
}

fn keys(facts: &Facts) -> Keys {
    let bytes: Vec<u8> = (0..64).collect();
    let dek = Dek::try_from(Secret::copy_of(&bytes).unwrap()).unwrap();
    match facts.kind {
        Kind::Rekey => Keys::derive(facts, Some(&dek), Some(&dek)),
        Kind::Encrypt => Keys::derive(facts, None, Some(&dek)),
        Kind::Decrypt => Keys::derive(facts, Some(&dek), None),
    }
    .unwrap()
}

fn journal(memory: &Memory, facts: &Facts) -> Journal<Memory> {
    journal_of(memory, facts, &keys(facts).into())
}

fn journal_of(memory: &Memory, facts: &Facts, keys: &Arc<Keys>) -> Journal<Memory> {
    let geometry = Geometry::new(facts, SectorSize::B512).unwrap();
    Journal::new(memory.clone(), 0..2 * SLOT as u64, keys.clone(), geometry).unwrap()
}

fn at(direction: Direction, boundary: u64) -> Position {
    Position {
        direction,
        boundary,
    }
}

fn tags(count: usize) -> Vec<SectorTag> {
    (0..count).map(|i| [i as u8; 16]).collect()
}

/// Records 3 and 4, which cover 8 and 16 sectors.
fn under_way() -> Memory {
    let memory = Memory(Arc::new(Mutex::new(vec![0; 2 * SLOT])));
    let mut journal = journal(&memory, &facts());
    journal.create().unwrap();
    let position = at(Direction::Forward, 0);
    journal.write(position, 4096, &[&tags(8)]).unwrap();
    journal
        .write(position, 8192, &[&tags(8), &tags(8)])
        .unwrap();
    memory
}

#[test]
fn a_record_is_as_the_page_has_it() {
    let memory = under_way();
    let bytes = memory.0.lock().unwrap().clone();
    let keys = keys(&facts());
    for (slot, sequence, sectors) in [(0, 4u64, 16), (1, 3, 8)] {
        let mut expected = b"SBLKJRNL".to_vec();
        let length = 64 + 16 * sectors + 32;
        expected.extend([0, 0, 0, 1]);
        expected.extend((length as u32).to_be_bytes());
        expected.extend(facts().id.as_bytes());
        expected.extend(sequence.to_be_bytes());
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend(0u64.to_be_bytes());
        expected.extend((sectors as u64 * 512).to_be_bytes());
        expected.extend((0..sectors).flat_map(|i| [i as u8 % 8; 16]));
        let mac = keys.record(&expected);
        expected.extend(mac.as_ref());
        let found = &bytes[slot * SLOT..(slot + 1) * SLOT];
        assert_eq!(found[..length], expected);
        assert!(found[length..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn any_bit_of_one_record_costs_nothing_and_of_both_the_journal() {
    let memory = under_way();
    let keys = keys(&facts()).into();
    let read = || journal_of(&memory, &facts(), &keys).read();
    let whole = memory.0.lock().unwrap().clone();
    let newest = read().unwrap();
    assert_eq!((newest.sequence, newest.covered), (4, 8192));
    let lengths = [record::length(8192), record::length(4096)];
    for (slot, length) in lengths.into_iter().enumerate() {
        for bit in 0..8 * length {
            memory.0.lock().unwrap()[slot * SLOT + bit / 8] ^= 1 << (bit % 8);
            let found = read().unwrap();
            // The other record is there; and it is enough (the simulator's part).
            assert_eq!(found.sequence, [3, 4][slot], "bit {bit} of slot {slot}");
            let other = (1 - slot) * SLOT;
            memory.0.lock().unwrap()[other + bit / 8 % 96] ^= 1 << (bit % 8);
            let both = read();
            assert!(matches!(both, Err(Error::Unauthentic)), "bit {bit}");
            memory.0.lock().unwrap().copy_from_slice(&whole);
        }
    }
    // Behind a record nothing is read.
    memory.0.lock().unwrap()[lengths[0]] ^= 1;
    assert_eq!(read().unwrap(), newest);
}

#[test]
fn a_header_that_says_something_else_proves_no_record() {
    let memory = under_way();
    let mut edited = vec![facts(); 6];
    edited[0].id = Uuid::nil();
    edited[1].kind = Kind::Decrypt;
    edited[2].kind = Kind::Rekey;
    edited[3].binding[0] ^= 1;
    edited[4].data_offset = 512;
    edited[5].size *= 2;
    for facts in edited {
        let found = journal(&memory, &facts).read();
        assert!(matches!(found, Err(Error::Unauthentic)), "{facts:?}");
    }
    // Slots that were exchanged are refused; a slot that is in both is as well.
    let whole = memory.0.lock().unwrap().clone();
    let (even, odd) = whole.split_at(SLOT);
    for [first, second] in [[odd, even], [even, even], [odd, odd]] {
        memory.0.lock().unwrap()[..SLOT].copy_from_slice(first);
        memory.0.lock().unwrap()[SLOT..].copy_from_slice(second);
        let found = journal(&memory, &facts()).read();
        assert!(matches!(found, Err(Error::Inconsistent(_))));
    }
}

/// Fields that no sealblk writes, with a MAC that is right.
#[test]
fn an_authentic_record_that_makes_no_sense_is_refused() {
    let keys = keys(&facts());
    let mut buffer = Buffer::zeroed(0);
    let state = State {
        position: at(Direction::Back, 8192),
        covered: 4096,
        sequence: 6,
    };
    record::encode(&keys, &state, &[&tags(8)], &mut buffer);
    let length = record::length(4096);
    let decode = |bytes: &[u8]| record::decode(&keys, 512, 0, bytes);
    assert_eq!(decode(&buffer[..length]).unwrap().unwrap().state, state);
    let edits: &[(usize, &[u8])] = &[
        (0, b"X"),
        (11, &[2]),
        (15, &[1]),
        (16, &[1]),
        (39, &[7]),
        (32, &[0; 8]),
        (32, &[0x40]),
        (32, &[0xff; 8]),
        (40, &[0]),
        (40, &[3]),
        (41, &[1]),
        (47, &[1]),
        (55, &[1]),
        // Beyond the end of the disk; less than what is covered below it.
        (48, &(SIZE + 512).to_be_bytes()),
        (48, &3584u64.to_be_bytes()),
        (56, &3584u64.to_be_bytes()),
        (56, &0u64.to_be_bytes()),
        (56, &u64::MAX.to_be_bytes()),
        (56, &(u64::MAX - 511).to_be_bytes()),
    ];
    for (at, edit) in edits {
        let mut bytes = buffer[..length - 32].to_vec();
        bytes[*at..at + edit.len()].copy_from_slice(edit);
        let mac = keys.record(&bytes);
        bytes.extend_from_slice(mac.as_ref());
        let found = decode(&bytes);
        assert!(
            matches!(found, Err(Error::Inconsistent(_))),
            "{edit:?} at {at}: {found:?}"
        );
    }
    for length in [0, 31, 32, HEAD + 31, length - 16] {
        let found = decode(&buffer[..length]);
        assert!(matches!(found, Ok(None)), "{length}");
    }
}

/// A copy of the whole journal that was made earlier is authentic: it cannot be
/// told from the journal by itself, but by a number that was seen before.
#[test]
fn an_older_journal_is_told_by_its_number_alone() {
    let memory = under_way();
    let older = memory.0.lock().unwrap().clone();
    let mut newer = journal(&memory, &facts());
    newer.newest().unwrap();
    let state = newer.rest(at(Direction::Forward, 8192)).unwrap();
    // One old record beside a new one is harmless: the new one counts.
    memory.0.lock().unwrap()[SLOT..].copy_from_slice(&older[SLOT..]);
    let newest = journal(&memory, &facts()).read().unwrap();
    assert_eq!(newest, state);
    memory.0.lock().unwrap().copy_from_slice(&older);
    let found = journal(&memory, &facts()).read().unwrap();
    assert!(found.sequence < state.sequence);
    assert!(matches!(
        found.check_not_before(state.sequence),
        Err(Error::Older { found: 4, known }) if known == state.sequence
    ));
    state.check_not_before(state.sequence).unwrap();
}

#[test]
fn an_attempt_that_failed_takes_no_number_again_and_no_other_slot() {
    let memory = under_way();
    let mut journal = journal(&memory, &facts());
    journal.newest().unwrap();
    // Record 5 may have been written, and torn.
    let position = at(Direction::Forward, 4096);
    assert_eq!(journal.write(position, 0, &[]).unwrap().sequence, 7);
    assert_eq!(journal.write(position, 0, &[]).unwrap().sequence, 8);
}

#[test]
fn a_journal_has_room_and_is_wiped_as_a_whole() {
    let geometry = Geometry::new(&facts(), SectorSize::B4096).unwrap();
    let memory = Memory(Arc::new(Mutex::new(vec![0xaa; 5 * SLOT])));
    let new = |area| Journal::new(memory.clone(), area, keys(&facts()), geometry);
    for (area, room) in [(4096..4096, 0), (0..8191, 8191)] {
        assert!(matches!(new(area), Err(Error::Small { bytes, .. }) if bytes == room));
    }
    assert!(matches!(new(512..8704), Err(Error::Unfit(_))));
    let other = Facts {
        size: 2 * SIZE,
        ..facts()
    };
    let geometry = Geometry::new(&other, SectorSize::B512).unwrap();
    let refused = Journal::new(memory.clone(), 0..8192, keys(&facts()), geometry);
    assert!(matches!(refused, Err(Error::Unfit(_))));

    let mut journal = new(4096..5 * SLOT as u64).unwrap();
    // 506 tags of 16 bytes, in whole blocks of the disk.
    assert_eq!(journal.capacity(), 63 * 4096);
    assert!(record::length(journal.capacity()) <= 2 * SLOT);
    assert_eq!(journal.create().unwrap().sequence, 2);
    assert_eq!(journal.read().unwrap().sequence, 2);
    journal.wipe().unwrap();
    assert!(matches!(journal.read(), Err(Error::Unauthentic)));
    let bytes = memory.0.lock().unwrap().clone();
    assert!(bytes[..SLOT].iter().all(|byte| *byte == 0xaa));
    assert!(bytes[SLOT..].iter().all(|byte| *byte == 0));
}
