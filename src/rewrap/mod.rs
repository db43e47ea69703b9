//! Giving a volume other wraps of its key: the same key, wrapped by another
//! key or another version, once more, or once less.
//!
//! What is wanted is a [`Change`]: a function from wraps to wraps. This room
//! carries it out, wherever the wraps are kept, whether the volume is served or
//! not. The order is what makes it safe:
//!
//! 1. the wraps are read: from the header, or from the key store that it names.
//!    What an interrupted move (`relocate`) left elsewhere is cleared away;
//! 2. the change says which wraps shall follow;
//! 3. each wrap that was not there before is *proven*: it is opened, and what
//!    comes out is the key that the digest of the header describes;
//! 4. the wraps are replaced as a whole. In a header: both copies, one after the
//!    other (`Volume::set_token`), which overwrites the old ones. In a key store:
//!    the entry is replaced if it is still the one that was read, and read back.
//!
//! After a crash at any instant the volume has the old wraps or the new ones,
//! and either open it. Carrying a change out once more finds it done and writes
//! nothing, so that whoever was interrupted simply begins again.
//!
//! This room knows the format and the key sets; it knows no disks, and does not
//! decide what is wanted. The volume is open for writing, and nobody else of
//! this process rewrites its header meanwhile.
#![forbid(unsafe_code)]

mod error;
mod glass;
mod subject;

pub use error::Error;
pub use glass::{Add, Remove, Second};
pub use subject::{KeyFrom, Subject};

use async_trait::async_trait;

use crate::key_store::Stored;
use crate::keys::{Context, KeySets};
use crate::relocate::{self, Place};
use crate::secret::Dek;
use crate::volume::{Volume, Wrap};

/// What is wanted of the wraps of a volume.
#[async_trait]
pub trait Change: std::fmt::Debug + Send + Sync {
    /// The wraps that shall follow those of `subject`. `None`: it has them
    /// already.
    ///
    /// # Errors
    /// When they cannot be had. Nothing has changed then.
    async fn next(&self, subject: &mut Subject<'_>) -> Result<Option<Vec<Wrap>>, Error>;

    /// Opens a wrap that [`Change::next`] has made, which proves it. What it
    /// opens to is compared with the volume's digest by the caller.
    ///
    /// # Errors
    /// When it does not open.
    async fn open(&self, subject: &Subject<'_>, wrap: &Wrap) -> Result<Dek, Error> {
        subject.open(wrap).await
    }
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewrapped {
    /// The wraps as they were.
    pub before: Vec<Wrap>,
    /// The wraps as they are.
    pub after: Vec<Wrap>,
    /// Where they are.
    pub place: Place,
    /// Whether something was written. If not, it had been done before.
    pub changed: bool,
}

/// Carries `change` out on `volume`. The data encryption key, where the change
/// asks for it, comes from where `key` says.
///
/// # Errors
/// See [`Error`]. The volume has the wraps that it had, and repeating the call
/// is safe. Only where the write itself failed it may have the new ones.
pub async fn rewrap(
    keys: &KeySets,
    context: &Context,
    volume: &mut Volume,
    key: KeyFrom,
    change: &dyn Change,
) -> Result<Rewrapped, Error> {
    let context = Context {
        volume: Some(volume.uuid()),
        ..context.clone()
    };
    volume.check_not_plain()?;
    let place = Place::of(volume.token());
    if volume.token().copy_in.is_some() {
        // Else the copy would differ from what counts, and nobody could tell
        // whether it is still needed.
        relocate::relocate(keys, &context, volume, &place, false).await?;
    }
    let stored = match &place {
        Place::Header => None,
        Place::Store(name) => Some(keys.fetch(&context, name, volume.uuid()).await?),
    };
    let before = match &stored {
        Some(stored) => stored.entry.wraps.clone(),
        None => volume.token().wraps.clone(),
    };
    if before.is_empty() {
        return Err(Error::Erased);
    }
    let mut subject = Subject::new(keys, &context, volume, before.clone(), key);
    let next = change.next(&mut subject).await?;
    let after = match next {
        Some(after) if after != before => after,
        _ => {
            return Ok(Rewrapped {
                after: before.clone(),
                before,
                place,
                changed: false,
            });
        }
    };
    if after.is_empty() {
        return Err(Error::NoneLeft);
    }
    for wrap in after.iter().filter(|wrap| !before.contains(wrap)) {
        let dek = change.open(&subject, wrap).await?;
        subject.volume().verify_dek(&dek)?;
    }
    drop(subject);
    match (&place, stored) {
        (Place::Store(name), Some(stored)) => {
            replace_stored(keys, &context, volume, name, stored, &after).await?;
        }
        _ => {
            let token = volume.token().clone().with_wraps(after.clone());
            volume.set_token(token)?;
        }
    }
    Ok(Rewrapped {
        before,
        after,
        place,
        changed: true,
    })
}

/// Replaces the entry of a volume in a key store, if it is still the one that
/// was read, and reads it back.
async fn replace_stored(
    keys: &KeySets,
    context: &Context,
    volume: &Volume,
    store: &str,
    Stored { entry, version }: Stored,
    wraps: &[Wrap],
) -> Result<(), Error> {
    let key_set = volume.token().key_set.clone();
    let next = entry.next(key_set, wraps.to_vec());
    keys.store(context, store, &next, Some(&version)).await?;
    let back = keys.fetch(context, store, volume.uuid()).await?;
    match back.entry.wraps == wraps {
        true => Ok(()),
        false => Err(Error::NotKept {
            store: store.into(),
        }),
    }
}
