//! One record of the journal, as bytes (`docs/rekey.md`).

use uuid::Uuid;

use super::buffer::{ALIGNMENT, Buffer};
use super::keys::{MAC_BYTES, SectorTag, TAG_BYTES};
use super::{Direction, Error, Keys, Position, SECTOR};

const MAGIC: &[u8; 8] = b"SBLKJRNL";
const VERSION: u32 = 1;
/// The length of what stands before the tags, in bytes.
const HEAD_BYTES: usize = 64;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// How far the operation is.
    pub position: Position,
    /// So many bytes next to the boundary may be in either state: 0 at rest.
    pub covered: u64,
    /// The number of the record.
    pub sequence: u64,
}

impl State {
    /// The first byte of the disk that is covered.
    pub(super) fn covered_from(&self) -> u64 {
        self.position.next(0, self.covered)
    }

    /// Refuses what is older than what was seen before: see [`Error::Older`].
    ///
    /// # Errors
    /// When the record has a lower number than `known`.
    pub fn check_not_before(&self, known: u64) -> Result<(), Error> {
        if self.sequence < known {
            return Err(Error::Older {
                found: self.sequence,
                known,
            });
        }
        Ok(())
    }
}

/// A record that was read, and is authentic.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub state: State,
    /// One for each sector that is covered, by their position.
    pub tags: Vec<SectorTag>,
}

/// How long a record is that covers so much, in bytes.
pub(super) fn length(covered: u64) -> usize {
    HEAD_BYTES + covered as usize / SECTOR * TAG_BYTES + MAC_BYTES
}

/// The most that a record of at most `bytes` bytes can cover: whole blocks.
pub(super) fn most_covered(bytes: u64) -> u64 {
    let tags = bytes.saturating_sub((HEAD_BYTES + MAC_BYTES) as u64) / TAG_BYTES as u64;
    (tags * SECTOR as u64) & !(ALIGNMENT as u64 - 1)
}

/// Writes a record into `buffer`, with zeroes up to the next whole block. `tags`
/// are of what is covered, in parts, by their position.
pub(super) fn encode(keys: &Keys, state: &State, tags: &[&[SectorTag]], buffer: &mut Buffer) {
    let length = length(state.covered);
    buffer.set_length(length.next_multiple_of(ALIGNMENT));
    buffer.fill(0);
    let id = keys.id();
    let fields: [&[u8]; 8] = [
        MAGIC,
        &VERSION.to_be_bytes(),
        &(length as u32).to_be_bytes(),
        id.as_bytes(),
        &state.sequence.to_be_bytes(),
        &[
            direction_byte(state.position.direction),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ],
        &state.position.boundary.to_be_bytes(),
        &state.covered.to_be_bytes(),
    ];
    let tags = tags.iter().map(|part| part.as_flattened());
    let mut at = 0;
    for field in fields.into_iter().chain(tags) {
        buffer[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    let mac = keys.record(&buffer[..at]);
    buffer[at..at + MAC_BYTES].copy_from_slice(mac.as_ref());
}

/// How long the record is that `head`, the first block of a slot, begins, if
/// there is one that fits into so many bytes.
pub(super) fn length_in(head: &[u8], slot: u64) -> Option<usize> {
    if head.get(..8)? != MAGIC {
        return None;
    }
    let length = u32::from_be_bytes(head.get(12..16)?.try_into().ok()?) as usize;
    let fits = length >= HEAD_BYTES + MAC_BYTES && length as u64 <= slot;
    fits.then_some(length)
}

/// The record that `bytes` are, all of them; `None` when they are not authentic.
/// `unit` is the size of a data unit.
///
/// # Errors
/// When they are authentic, and say what cannot be.
pub(super) fn decode(
    keys: &Keys,
    unit: u64,
    slot: u64,
    bytes: &[u8],
) -> Result<Option<Record>, Error> {
    let Some(at) = bytes.len().checked_sub(MAC_BYTES) else {
        return Ok(None);
    };
    let (proved, mac) = bytes.split_at(at);
    if proved.len() < HEAD_BYTES || !keys.proves(proved, mac) {
        return Ok(None);
    }
    let (head, tags) = proved.split_at(HEAD_BYTES);
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let short = |at: usize| (number(at) >> 32) as u32;
    if &head[..8] != MAGIC || short(8) != VERSION {
        return Err(Error::Inconsistent("a newer sealblk made it"));
    }
    if short(12) as usize != bytes.len() || Uuid::from_slice(&head[16..32]) != Ok(keys.id()) {
        return Err(Error::Inconsistent("it is not of this operation"));
    }
    let direction = match number(40) >> 56 {
        1 => Direction::Forward,
        2 => Direction::Back,
        _ => return Err(Error::Inconsistent("it goes in no direction")),
    };
    if number(40) << 8 != 0 {
        return Err(Error::Inconsistent(
            "it has bytes that a newer sealblk uses",
        ));
    }
    let (sequence, boundary, covered) = (number(32), number(48), number(56));
    let room = match direction {
        Direction::Forward => keys.size().checked_sub(boundary),
        Direction::Back => Some(boundary).filter(|boundary| *boundary <= keys.size()),
    };
    if room.is_none_or(|room| covered > room)
        || !boundary.is_multiple_of(unit)
        || !covered.is_multiple_of(unit)
    {
        return Err(Error::Inconsistent("it is of another disk"));
    }
    let (tags, rest) = tags.as_chunks();
    if !rest.is_empty() || tags.len() as u64 != covered / SECTOR as u64 {
        return Err(Error::Inconsistent("it has not a tag for each sector"));
    }
    if sequence == 0 || sequence % 2 != slot || sequence >> 62 != 0 {
        return Err(Error::Inconsistent("it is not in its place"));
    }
    Ok(Some(Record {
        state: State {
            position: Position {
                direction,
                boundary,
            },
            covered,
            sequence,
        },
        tags: tags.to_vec(),
    }))
}

fn direction_byte(direction: Direction) -> u8 {
    match direction {
        Direction::Forward => 1,
        Direction::Back => 2,
    }
}
