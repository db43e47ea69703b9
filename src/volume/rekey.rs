//! How an operation that re-encrypts the data of a volume begins and ends in its
//! header (`docs/rekey.md`, "The order at both ends").
//!
//! Each is one update of the header, as any other: after a crash the operation
//! has not begun, or has; has not ended, or has. What is between, the journal and
//! the data, is not of this room, and neither is any key: they go past it wrapped.
//!
//! To begin: [`Volume::facts_to_begin`]; derive the keys; write the journal into
//! [`Volume::journal_area`] of [`Volume::journal_file`], durably; then
//! [`Volume::begin_rekey`] or [`Volume::begin_decrypt`].
#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use uuid::Uuid;

use super::description::Description;
use super::device::Access;
use super::error::Error;
use super::luks2::Metadata;
use super::luks2::digest::Digest;
use super::luks2::metadata::{Fault, Requirement};
use super::open::Volume;
use super::token::{self, Plain, Rekey, Token, Wrap};
use crate::rekey::{Facts, Kind};
use crate::secret::Dek;
use crate::timestamp::Timestamp;

impl Volume {
    /// The operation that is under way.
    pub fn rekey(&self) -> Option<&Rekey> {
        self.token().rekey.as_ref()
    }

    /// What the keys of the operation that is under way are derived from.
    pub fn rekey_facts(&self) -> Option<Facts> {
        self.description().rekey_facts()
    }

    /// Refuses what can only be done with a volume that is encrypted with one key
    /// from end to end. `what` is what was asked for, as in "cannot … PATH now".
    ///
    /// # Errors
    /// [`Error::UnderWay`] and [`Error::Plain`].
    pub fn check_settled(&self, what: &'static str) -> Result<(), Error> {
        self.description().check_settled(what, self.header_path())
    }

    /// Refuses what can only be done with a volume that has a key, of which an
    /// operation may be under way.
    ///
    /// # Errors
    /// [`Error::Plain`].
    pub fn check_not_plain(&self) -> Result<(), Error> {
        self.description().check_not_plain(self.header_path())
    }

    /// Where the journal is, or would be, in [`Volume::journal_file`].
    ///
    /// # Errors
    /// [`Error::CannotBegin`] when there is no room for one.
    pub fn journal_area(&self) -> Result<Range<u64>, Error> {
        self.description().journal_area(self.header_path())
    }

    /// The file that the journal is in: the one that has the header.
    pub fn journal_file(&self) -> &File {
        self.header_device().file()
    }

    /// The path of what has the header, as it was given.
    pub fn header_path(&self) -> &Path {
        self.header_device().path()
    }

    /// Checks that an operation can be begun on the volume, and returns the facts
    /// of a new one. Nothing is written.
    ///
    /// # Errors
    /// [`Error::CannotBegin`], [`Error::UnderWay`], [`Error::Plain`],
    /// [`Error::ReadOnly`].
    pub fn facts_to_begin(&self, kind: Kind) -> Result<Facts, Error> {
        self.check_may_begin(kind)?;
        Ok(self.description().facts_of(Uuid::new_v4(), kind))
    }

    fn check_may_begin(&self, kind: Kind) -> Result<(), Error> {
        let path = self.header_path();
        if self.access() != Access::ReadWrite {
            return Err(Error::ReadOnly { path: path.into() });
        }
        may_begin(self.description(), kind, path)?;
        let (actual, needed) = (self.header_device().len()?, self.description().header_area);
        match actual < needed {
            true => Err(Error::CannotBegin {
                path: path.into(),
                why: format!("it has {actual} bytes, and its header says {needed}"),
                next: format!("make it as long as that: truncate --size {needed}"),
            }),
            false => Ok(()),
        }
    }

    /// Says in the header that the data is being re-encrypted: from now on `dek`
    /// is the main key, which `wraps` are of. `previous` is the key until now,
    /// encrypted for it. The journal is on stable storage already, and nothing of
    /// the data has been moved.
    ///
    /// # Errors
    /// As [`Volume::facts_to_begin`]; [`Error::HeaderFull`];
    /// [`Error::ChangedUnderneath`]. After [`Error::Io`] it may have begun: open
    /// the volume anew, whose header says so.
    pub fn begin_rekey(
        &mut self,
        facts: &Facts,
        dek: &Dek,
        wraps: Vec<Wrap>,
        previous: Vec<u8>,
    ) -> Result<(), Error> {
        self.check_begins(facts, Kind::Rekey)?;
        let digest = Digest::of(dek).map_err(|error| Error::Random(error.into()))?;
        let rekey = operation(facts, Some(previous));
        let begun = |now: Token| Token { wraps, ..now }.with_rekey(Some(rekey));
        self.write_token(begun, Some(&digest), Requirement::Rekey)
    }

    /// Says in the header that the data is being decrypted. Otherwise as
    /// [`Volume::begin_rekey`]; key and wraps stay.
    ///
    /// # Errors
    /// As there.
    pub fn begin_decrypt(&mut self, facts: &Facts) -> Result<(), Error> {
        self.check_begins(facts, Kind::Decrypt)?;
        let rekey = operation(facts, None);
        let begun = |now: Token| now.with_rekey(Some(rekey));
        self.write_token(begun, None, Requirement::Rekey)
    }

    pub(super) fn check_begins(&self, facts: &Facts, kind: Kind) -> Result<(), Error> {
        self.check_may_begin(kind)?;
        match *facts == self.description().facts_of(facts.id, kind) {
            true => Ok(()),
            false => Err(Error::ChangedUnderneath {
                path: self.header_path().into(),
                what: "an operation was prepared for other facts than it has",
            }),
        }
    }

    /// Everything is encrypted with the main key: the operation ends, and its
    /// journal is destroyed. So end a rekey and an encryption, and a decryption
    /// that was taken back.
    ///
    /// # Errors
    /// [`Error::NothingUnderWay`], and as [`Volume::set_token`]. After
    /// [`Error::Io`] it may have ended: open the volume anew.
    pub fn finish_rekey(&mut self) -> Result<(), Error> {
        self.under_way(&[Kind::Rekey, Kind::Encrypt, Kind::Decrypt])?;
        let ended = |now: Token| now.with_rekey(None);
        self.write_token(ended, None, Requirement::None)?;
        self.destroy_journal();
        Ok(())
    }

    /// A rekey was taken back: everything is encrypted with the `old` key, which
    /// `wraps` are of, and which is the key of the volume again. Key and wraps of
    /// the new one are destroyed.
    ///
    /// # Errors
    /// As [`Volume::finish_rekey`].
    pub fn finish_back(&mut self, old: &Dek, wraps: Vec<Wrap>) -> Result<(), Error> {
        self.under_way(&[Kind::Rekey])?;
        let digest = Digest::of(old).map_err(|error| Error::Random(error.into()))?;
        let ended = |now: Token| Token { wraps, ..now }.with_rekey(None);
        self.write_token(ended, Some(&digest), Requirement::None)?;
        self.destroy_journal();
        Ok(())
    }

    /// All data is plain: it was decrypted, or an encryption was taken back. What
    /// stays is a header that says so, without any key.
    ///
    /// # Errors
    /// As [`Volume::finish_rekey`].
    pub fn finish_decrypt(&mut self) -> Result<(), Error> {
        self.under_way(&[Kind::Decrypt, Kind::Encrypt])?;
        let plain = Plain {
            since: Timestamp::now(),
        };
        let token = Token::of_plain(&self.token().key_set, self.layout().zero_units, plain);
        let rekey = self.rekey().cloned();
        self.replace_by_keyless(token, rekey.as_ref())?;
        self.destroy_journal();
        Ok(())
    }

    /// Fails unless one of `kinds` is under way.
    pub(super) fn under_way(&self, kinds: &[Kind]) -> Result<(), Error> {
        match self.rekey() {
            Some(rekey) if kinds.contains(&rekey.kind) => Ok(()),
            Some(rekey) => Err(Error::UnderWay {
                path: self.header_path().into(),
                what: "end as another operation what is done to",
                rekey: rekey.clone(),
            }),
            None => Err(Error::NothingUnderWay {
                path: self.header_path().into(),
            }),
        }
    }

    fn write_token(
        &mut self,
        next: impl FnOnce(Token) -> Token,
        digest: Option<&Digest>,
        requirement: Requirement,
    ) -> Result<(), Error> {
        let path = self.header_path().to_owned();
        self.rewrite_with_key(|now, header| {
            let token = next(now.token.clone());
            if let Some(rekey) = &token.rekey {
                may_begin(now, rekey.kind, &path)?;
            }
            let json = token.to_json().map_err(|source| Error::Token {
                path: path.clone(),
                source,
            })?;
            write_into(&mut header.metadata, json, digest, requirement)
                .map_err(|fault| Error::header(&path, fault))
        })
    }

    /// Overwrites the journal of an operation that has ended. It holds no key and
    /// no data, and nobody looks for it any more.
    fn destroy_journal(&self) {
        let destroyed = self
            .journal_area()
            .and_then(|area| self.wipe_header(area).map(drop));
        if let Err(error) = destroyed {
            tracing::warn!(
                path = %self.header_path().display(),
                "the journal of the operation that has ended stays behind: {}",
                crate::error::chain(&error)
            );
        }
    }
}

fn write_into(
    metadata: &mut Metadata,
    token: serde_json::Value,
    digest: Option<&Digest>,
    requirement: Requirement,
) -> Result<(), Fault> {
    metadata.replace_token(token::TYPE, token)?;
    metadata.set_requirement(requirement)?;
    digest.map_or(Ok(()), |digest| metadata.replace_digest(digest))
}

/// The operation that has these facts, and begins now.
pub(super) fn operation(facts: &Facts, previous: Option<Vec<u8>>) -> Rekey {
    Rekey {
        id: facts.id,
        kind: facts.kind,
        since: Timestamp::now(),
        previous,
    }
}

fn may_begin(description: &Description, kind: Kind, path: &Path) -> Result<(), Error> {
    let refuse = |why: String, next: &str| {
        Err(Error::CannotBegin {
            path: path.into(),
            why,
            next: next.into(),
        })
    };
    description.check_settled(
        match kind {
            Kind::Rekey => "re-encrypt",
            Kind::Encrypt => "encrypt",
            Kind::Decrypt => "decrypt",
        },
        path,
    )?;
    let token = &description.token;
    if let Some(erased) = &token.erased {
        return refuse(
            format!("it was erased on {}, and has no key", erased.since),
            "name another volume",
        );
    }
    if kind == Kind::Encrypt {
        return refuse(
            "it is encrypted already".into(),
            "to give it a new key, re-encrypt it: sealblk volume rekey",
        );
    }
    if let Some(store) = &token.key_store {
        return refuse(
            format!(
                "its wrapped keys are in key store {store:?}, and have to be in its header \
                 meanwhile"
            ),
            "move them there with `sealblk volume move-keys --to header`, and back to the key store \
             when the operation is done",
        );
    }
    if let Some(store) = &token.copy_in {
        return refuse(
            format!("moving its wrapped keys to or from key store {store:?} was not finished"),
            "finish it first: sealblk volume move-keys --to header",
        );
    }
    if description.keyslots > 0 {
        return refuse(
            format!(
                "it has {} passphrase keyslots, which open its key as it is now, and lie where the \
                 journal has to be",
                description.keyslots
            ),
            "remove them first: cryptsetup luksKillSlot",
        );
    }
    description.journal_area(path).map(drop)
}

#[cfg(test)]
mod tests;
