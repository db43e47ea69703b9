//! What a header means: the facts of a volume, parsed and checked once.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::path::Path;

use uuid::Uuid;

use super::binding::Binding;
use super::error::Error;
use super::luks2::Header;
use super::luks2::binary::{BINARY_BYTES, text};
use super::luks2::digest::Digest;
use super::luks2::metadata::{ENCRYPTION, Fault, Requirement};
use super::token::{self, Token};
use crate::rekey::{Facts, Kind};
use crate::secret::Dek;
use crate::units::{Bytes, SECTOR_BYTES, SectorSize};

/// What the start of the data, and everything in the header area, is aligned
/// to: the page size, so that header and data never share a page.
pub const ALIGNMENT: u64 = 4096;

/// The least that is needed for a journal: one block for each of its two slots.
pub const MIN_JOURNAL: u64 = 2 * ALIGNMENT;

/// What the subsystem field of our headers says. It shows in `blkid` and
/// `luksDump`; nothing depends on it.
pub const SUBSYSTEM: &str = "sealblk";

/// Where the data of a volume is and how it is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the data starts in the data file, in bytes. A multiple of 4096.
    pub data_offset: u64,
    /// The size of the disk that the guest sees, in bytes. A multiple of the
    /// sector size.
    pub size: u64,
    /// The size of a data unit.
    pub sector_size: SectorSize,
    /// Added to the number of a unit's first 512-byte sector to make its tweak.
    pub iv_tweak: u64,
    /// Whether a data unit whose stored bytes are all zero reads as zeroes.
    pub zero_units: bool,
}

impl Layout {
    /// The smallest length in bytes that the data file may have.
    pub fn end(&self) -> u64 {
        // Checked when the header was parsed.
        self.data_offset + self.size
    }
}

/// The meaning of a header.
#[derive(Clone, Debug)]
pub struct Description {
    /// Which volume it is.
    pub uuid: Uuid,
    /// What people call it. May be empty.
    pub label: String,
    /// Number of the header update that wrote it.
    pub seqid: u64,
    /// Key set and wrapped keys.
    pub token: Token,
    /// Where the data is and how it is encrypted.
    pub layout: Layout,
    /// Proves a data encryption key.
    pub digest: Digest,
    /// Length of both header copies and the keyslots area, in bytes.
    pub header_area: u64,
    /// Length of both header copies, in bytes: what follows is the keyslots area,
    /// or the journal of an operation that is under way.
    pub copies: u64,
    /// How many passphrase keyslots somebody added with cryptsetup.
    pub keyslots: usize,
}

impl Description {
    /// Reads the meaning of a header. `path` is for error messages.
    pub fn of(header: &Header, path: &Path) -> Result<Self, Error> {
        let fault = |fault| Error::header(path, fault);
        let metadata = &header.metadata;
        // First of all: a requirement may change what everything else means.
        let requirement = metadata.requirement().map_err(fault)?;
        let (_, token) = metadata
            .token(token::TYPE)
            .map_err(fault)?
            .ok_or_else(|| without_token(header, path))?;
        let token = Token::from_json(token).map_err(|source| Error::Token {
            path: path.into(),
            source,
        })?;
        let keyslots = metadata.keyslots().map_err(fault)?;
        check_under_way(requirement, &token, keyslots).map_err(fault)?;
        let uuid = text(&header.binary.uuid);
        let uuid = Uuid::try_parse(&uuid)
            .map_err(|_| fault(Fault::Invalid(format!("its UUID is {uuid:?}"))))?;
        let header_area = header_area(header).map_err(fault)?;
        Ok(Description {
            uuid,
            label: text(&header.binary.label).into_owned(),
            seqid: header.binary.seqid,
            layout: layout(header, header_area, token.zero_units).map_err(fault)?,
            token,
            digest: metadata.digest().map_err(fault)?,
            header_area,
            copies: 2 * header.binary.copy_bytes,
            keyslots,
        })
    }

    /// Checks that `dek` is the key of this volume. `path` is for the message.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if it is not.
    pub fn verify_dek(&self, dek: &Dek, path: &Path) -> Result<(), Error> {
        match self.digest.proves(dek) {
            true => Ok(()),
            false => Err(Error::WrongKey { path: path.into() }),
        }
    }

    /// Refuses what can only be done with a volume that is encrypted with one key
    /// from end to end. `what` is what was asked for, as in "cannot … PATH".
    ///
    /// # Errors
    /// [`Error::UnderWay`] and [`Error::Plain`].
    pub fn check_settled(&self, what: &'static str, path: &Path) -> Result<(), Error> {
        match &self.token.rekey {
            Some(rekey) => Err(Error::UnderWay {
                path: path.into(),
                what,
                rekey: rekey.clone(),
            }),
            None => self.check_not_plain(path),
        }
    }

    /// Refuses what can only be done with a volume that has a key.
    ///
    /// # Errors
    /// [`Error::Plain`].
    pub fn check_not_plain(&self, path: &Path) -> Result<(), Error> {
        match &self.token.plain {
            Some(plain) => Err(Error::Plain {
                path: path.into(),
                since: plain.since,
                data_offset: self.layout.data_offset,
            }),
            None => Ok(()),
        }
    }

    /// What the keys of the operation that is under way are derived from.
    pub fn rekey_facts(&self) -> Option<Facts> {
        let rekey = self.token.rekey.as_ref()?;
        Some(self.facts_of(rekey.id, rekey.kind))
    }

    /// The same of an operation that might be.
    pub fn facts_of(&self, id: Uuid, kind: Kind) -> Facts {
        Facts {
            id,
            kind,
            binding: self.binding().bytes(),
            data_offset: self.layout.data_offset,
            size: self.layout.size,
        }
    }

    /// Where the journal of an operation is in the file of the header: what
    /// follows the header copies, up to the end of the header area. `path` is for
    /// the message.
    ///
    /// # Errors
    /// [`Error::CannotBegin`] when there is not enough of it.
    pub fn journal_area(&self, path: &Path) -> Result<Range<u64>, Error> {
        let area = self.copies..self.header_area;
        match area.end - area.start < MIN_JOURNAL {
            true => Err(Error::CannotBegin {
                path: path.into(),
                why: format!(
                    "its header area has {} behind both copies, and the journal takes {} at least",
                    Bytes(area.end - area.start),
                    Bytes(MIN_JOURNAL)
                ),
                next: "copy the volume to one with a larger header area, which gives it a new key \
                       as well: sealblk volume clone"
                    .into(),
            }),
            false => Ok(area),
        }
    }

    /// From where to where the keyslots area is.
    pub(super) fn keyslots_area(&self) -> (u64, u64) {
        (self.copies, self.header_area)
    }

    /// What every wrap of the key is bound to.
    pub fn binding(&self) -> Binding {
        Binding {
            uuid: self.uuid,
            encryption: ENCRYPTION.into(),
            sector_size: self.layout.sector_size,
            iv_tweak: self.layout.iv_tweak,
            zero_units: self.layout.zero_units,
        }
    }
}

/// A LUKS2 device of somebody else's, or one of ours that lost its token.
fn without_token(header: &Header, path: &Path) -> Error {
    match text(&header.binary.subsystem) == SUBSYSTEM {
        true => Error::header(path, invalid("its sealblk token was removed")),
        false => Error::NotSealblk { path: path.into() },
    }
}

fn invalid(what: impl Into<String>) -> Fault {
    Fault::Invalid(what.into())
}

/// Requirement and token say the same of an operation that is under way. One
/// without the other is what an edit leaves.
fn check_under_way(requirement: Requirement, token: &Token, keyslots: usize) -> Result<(), Fault> {
    match (requirement, &token.rekey) {
        (Requirement::None, None) => Ok(()),
        (Requirement::Rekey, None) => Err(invalid(
            "it demands that an operation be known which its token does not have",
        )),
        (Requirement::None, Some(_)) => Err(invalid(
            "its token has an operation under way, and the mandatory requirement was removed",
        )),
        (Requirement::Rekey, Some(_)) if keyslots > 0 => Err(invalid(
            "it has passphrase keyslots where the journal of the operation under way is",
        )),
        (Requirement::Rekey, Some(_)) => Ok(()),
    }
}

fn header_area(header: &Header) -> Result<u64, Fault> {
    let copy = header.binary.copy_bytes;
    if header.metadata.json_size()? != copy - BINARY_BYTES as u64 {
        return Err(invalid("config.json_size contradicts the binary header"));
    }
    let keyslots = header.metadata.keyslots_size()?;
    if !keyslots.is_multiple_of(ALIGNMENT) {
        return Err(invalid("config.keyslots_size is not a multiple of 4096"));
    }
    keyslots
        .checked_add(2 * copy)
        .ok_or_else(|| invalid("config.keyslots_size is impossible"))
}

fn layout(header: &Header, header_area: u64, zero_units: bool) -> Result<Layout, Fault> {
    let segment = header.metadata.segment()?;
    let sector_size = SectorSize::from_bytes(segment.sector_size)
        .ok_or_else(|| Fault::Unsupported(format!("its sector size is {}", segment.sector_size)))?;
    if segment.size == 0 || !segment.size.is_multiple_of(sector_size.bytes() as u64) {
        return Err(invalid(format!(
            "the size of its data, {}, is not a number of sectors",
            segment.size
        )));
    }
    if !segment.offset.is_multiple_of(ALIGNMENT) {
        return Err(Fault::Unsupported(format!(
            "its data starts at {}, which is not a multiple of {ALIGNMENT}",
            segment.offset
        )));
    }
    if segment.offset != 0 && segment.offset < header_area {
        return Err(invalid("its data overlaps its header"));
    }
    let end = segment.offset.checked_add(segment.size);
    if end.is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(invalid("its data ends beyond what a file can hold"));
    }
    if segment
        .iv_tweak
        .checked_add(segment.size / SECTOR_BYTES)
        .is_none()
    {
        return Err(invalid("its iv_tweak is too large"));
    }
    Ok(Layout {
        data_offset: segment.offset,
        size: segment.size,
        sector_size,
        iv_tweak: segment.iv_tweak,
        zero_units,
    })
}
