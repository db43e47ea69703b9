//! Both copies of a header: which one counts, and how they are rewritten so
//! that a crash at any instant leaves one that does.
//!
//! The rules, which `docs/format.md` argues for and `tests/torn_header.rs`
//! tries at every cut:
//!
//! - A copy counts when its checksum is right and its JSON can be read. Of
//!   two that count, the higher sequence number wins.
//! - A rewrite first overwrites the copy that is *not* being relied upon,
//!   waits until it is on stable storage, and only then touches the other.
//! - A new header gets its magic last, in the one sector that makes it one.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use super::binary::{BINARY_BYTES, Binary, COPY_BYTES, Flaw, Which, checksum_is_right, uuid_hint};
use super::io::HeaderIo;
use super::metadata::Metadata;

/// The smallest piece that storage writes whole.
const SECTOR: usize = 512;

/// What both copies say.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The binary header.
    pub binary: Binary,
    /// The JSON area.
    pub metadata: Metadata,
}

/// What one copy is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Valid, and says what the header says.
    Good,
    /// Valid, but older than the other copy or not the same: an update was
    /// interrupted between the copies.
    Outdated {
        /// Its sequence number.
        seqid: u64,
    },
    /// Not valid.
    Damaged(Flaw),
}

/// A header that was read, and the state of its copies.
#[derive(Clone, Debug)]
pub struct Found {
    /// The header that counts.
    pub header: Header,
    /// State of the copy at offset 0.
    pub primary: State,
    /// State of the copy after it.
    pub secondary: State,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Good => f.write_str("good"),
            State::Outdated { seqid } => write!(f, "outdated (update {seqid})"),
            State::Damaged(flaw) => write!(f, "damaged ({flaw})"),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "primary {}, secondary {}", self.primary, self.secondary)
    }
}

impl Found {
    /// Whether both copies are good and equal.
    pub fn is_whole(&self) -> bool {
        self.primary == State::Good && self.secondary == State::Good
    }

    /// The copy that the header was not taken from, if that one is not good.
    fn broken(&self) -> Option<Which> {
        match (&self.primary, &self.secondary) {
            (State::Good, State::Good) => None,
            (State::Good, _) => Some(Which::Secondary),
            _ => Some(Which::Primary),
        }
    }

    /// The highest sequence number in either copy.
    fn highest_seqid(&self) -> u64 {
        [&self.primary, &self.secondary]
            .into_iter()
            .filter_map(|state| match state {
                State::Outdated { seqid } => Some(*seqid),
                _ => None,
            })
            .fold(self.header.binary.seqid, u64::max)
    }
}

/// Neither copy is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// What is wrong with the copy at offset 0.
    pub primary: Flaw,
    /// What is wrong with the second copy; `None` if no trace of one was found.
    pub secondary: Option<Flaw>,
    /// The UUID in what is left, if there is anything.
    pub uuid: Option<String>,
}

impl Lost {
    /// Whether there was never a LUKS2 header here, as far as can be seen.
    pub fn no_trace(&self) -> bool {
        self.uuid.is_none() && self.secondary.is_none()
    }
}

impl Header {
    /// The bytes of one copy, with a new salt. `None` if the JSON does not fit.
    ///
    /// # Errors
    /// When the random number generator fails.
    pub fn encode(&self, which: Which) -> io::Result<Option<Vec<u8>>> {
        let mut salt = [0; 64];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        Ok(self.binary.encode(which, &self.metadata.text(), &salt))
    }

    /// How many bytes of JSON there are, and how many fit.
    pub fn fill(&self) -> (u64, u64) {
        let room = self.binary.copy_bytes - BINARY_BYTES as u64 - 1;
        (self.metadata.text().len() as u64, room)
    }

    fn encode_fitting(&self, which: Which) -> io::Result<Vec<u8>> {
        let (needed, room) = self.fill();
        self.encode(which)?.ok_or_else(|| {
            let text = format!("the header needs {needed} bytes of JSON and has room for {room}");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })
    }
}

/// Reads one copy at `offset`.
fn read_copy(io: &impl HeaderIo, which: Which, offset: u64) -> Result<Header, Flaw> {
    let unreadable = |error: io::Error| Flaw::Unreadable(error.to_string());
    let mut head = [0; BINARY_BYTES];
    if io.read_at(&mut head, offset).map_err(unreadable)? < BINARY_BYTES {
        return Err(Flaw::CutOff);
    }
    let binary = Binary::parse(&head, which, offset)?;
    let mut copy = vec![0; binary.copy_bytes as usize];
    if io.read_at(&mut copy, offset).map_err(unreadable)? < copy.len() {
        return Err(Flaw::CutOff);
    }
    if !checksum_is_right(&copy) {
        return Err(Flaw::Checksum);
    }
    let metadata =
        Metadata::parse(&copy[BINARY_BYTES..]).map_err(|fault| Flaw::Json(fault.to_string()))?;
    // The bytes were read twice; what was checked is what counts.
    let checked = copy.first_chunk().ok_or(Flaw::CutOff)?;
    let binary = Binary::parse(checked, which, offset)?;
    Ok(Header { binary, metadata })
}

/// Reads both copies and decides which one counts.
///
/// # Errors
/// [`Lost`] when neither is valid.
pub fn read(io: &impl HeaderIo) -> Result<Found, Lost> {
    match read_copy(io, Which::Primary, 0) {
        Ok(primary) => {
            let offset = primary.binary.copy_bytes;
            Ok(match read_copy(io, Which::Secondary, offset) {
                Ok(secondary) => choose(primary, secondary),
                Err(flaw) => Found {
                    header: primary,
                    primary: State::Good,
                    secondary: State::Damaged(flaw),
                },
            })
        }
        Err(primary) => find_secondary(io, primary),
    }
}

fn choose(primary: Header, secondary: Header) -> Found {
    let older = |header: &Header| State::Outdated {
        seqid: header.binary.seqid,
    };
    if primary == secondary {
        Found {
            header: primary,
            primary: State::Good,
            secondary: State::Good,
        }
    } else if secondary.binary.seqid > primary.binary.seqid {
        Found {
            primary: older(&primary),
            header: secondary,
            secondary: State::Good,
        }
    } else {
        Found {
            secondary: older(&secondary),
            header: primary,
            primary: State::Good,
        }
    }
}

/// Without a primary copy its length is unknown, so the second one is looked
/// for wherever it may be ("Metadata Recovery"). The first valid one counts.
fn find_secondary(io: &impl HeaderIo, primary: Flaw) -> Result<Found, Lost> {
    let mut first_flaw = None;
    for offset in COPY_BYTES {
        match read_copy(io, Which::Secondary, offset) {
            Ok(header) => {
                return Ok(Found {
                    header,
                    primary: State::Damaged(primary),
                    secondary: State::Good,
                });
            }
            Err(Flaw::NoMagic | Flaw::CutOff) => {}
            Err(flaw) => _ = first_flaw.get_or_insert((offset, flaw)),
        }
    }
    let hint_at = |offset| {
        let mut head = [0; BINARY_BYTES];
        let length = io.read_at(&mut head, offset).ok()?;
        uuid_hint(&head[..length]).map(|uuid| uuid.into_owned())
    };
    let at = first_flaw.as_ref().map(|(offset, _)| *offset);
    Err(Lost {
        uuid: hint_at(0).or_else(|| at.and_then(hint_at)),
        primary,
        secondary: first_flaw.map(|(_, flaw)| flaw),
    })
}

/// Makes both copies good again, from the one that counts. Returns the copy
/// that was rewritten.
///
/// # Errors
/// When writing fails. The copy that counts is not touched.
pub fn repair(io: &mut impl HeaderIo, found: &Found) -> io::Result<Option<Which>> {
    let Some(which) = found.broken() else {
        return Ok(None);
    };
    write_copy(io, &found.header, which)?;
    Ok(Some(which))
}

/// Replaces the header that `found` describes by `new`, under the next
/// sequence number, which is also set in `new`.
///
/// # Errors
/// When `new` does not fit (nothing is written), or writing fails: then one
/// of the two headers is still there, and [`read`] tells which.
pub fn replace(io: &mut impl HeaderIo, found: &Found, new: &mut Header) -> io::Result<()> {
    let seqid = found.highest_seqid().max(new.binary.seqid).checked_add(1);
    new.binary.seqid =
        seqid.ok_or_else(|| io::Error::other("the header has used up its sequence numbers"))?;
    let order = match found.broken() {
        Some(Which::Secondary) => [Which::Secondary, Which::Primary],
        _ => [Which::Primary, Which::Secondary],
    };
    for which in order {
        write_copy(io, new, which)?;
    }
    Ok(())
}

fn write_copy(io: &mut impl HeaderIo, header: &Header, which: Which) -> io::Result<()> {
    let bytes = header.encode_fitting(which)?;
    io.write_at(&bytes, which.offset(header.binary.copy_bytes))?;
    io.sync()
}

/// Writes a header where none is: everything but the two sectors that make
/// it one, then the primary sector, then the secondary.
///
/// # Errors
/// When it does not fit (nothing is written), or writing fails.
pub fn create(io: &mut impl HeaderIo, header: &Header) -> io::Result<()> {
    let copies = [Which::Primary, Which::Secondary].map(|which| {
        let offset = which.offset(header.binary.copy_bytes);
        header.encode_fitting(which).map(|bytes| (offset, bytes))
    });
    let [primary, secondary] = copies;
    let copies = [primary?, secondary?];
    for (offset, bytes) in &copies {
        let mut body = bytes.clone();
        body[..SECTOR].fill(0);
        io.write_at(&body, *offset)?;
    }
    io.sync()?;
    for (offset, bytes) in &copies {
        io.write_at(&bytes[..SECTOR], *offset)?;
        io.sync()?;
    }
    Ok(())
}
