//! Erasing a volume: everything that is known of its key is destroyed, and its
//! data is noise from then on.
//!
//! The order is what makes it safe to repeat, and never half done unnoticed:
//!
//! 1. the key stores that have an entry of the volume are looked for, so that
//!    one which does not answer is found out before anything is destroyed;
//! 2. the header is replaced by one that has no key, says that the volume was
//!    erased, and names these stores: durably, first one copy, then the other.
//!    From the first copy on nothing opens the volume by itself;
//! 3. the rest of the header area is overwritten;
//! 4. the entries are destroyed, with all their versions, and looked for again;
//! 5. the header forgets the stores, and says that it is finished.
//!
//! After a crash at any instant the header is the old one, whole, or says that
//! the volume was erased and where something of its key may be still: the same
//! command then finishes it. No key service is asked, and no key opened.
//!
//! Of a volume whose data is being re-encrypted, 2 destroys the previous key as
//! well, and 3 the journal. One of which a part is plain is not erased unless
//! somebody says that this part may stay readable: no key that is destroyed takes
//! it away.
//!
//! The volume is open for writing meanwhile, which nobody else has it then. Who
//! asked, backups of the header, and records are matters of the caller.
#![forbid(unsafe_code)]

mod backups;

pub use backups::{Backup, BackupState, backups};

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::error::{Explain, Kind, chain};
use crate::key_store;
use crate::keys::ledger::Ledger;
use crate::keys::{Context, KeySets};
use crate::rekey;
use crate::timestamp::Timestamp;
use crate::volume::{self, Access, Erased, Location, Rekey, Token, Volume};

/// How to erase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Also if a key store does not answer: what is there then stays until the
    /// same is done again.
    pub force: bool,
    /// Give the space of the data back as well.
    pub discard: bool,
    /// Destroy the keys also of a volume of which a part is plain, which stays
    /// readable.
    pub leave_plain: bool,
}

/// A key store that could not be purged, or not even be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unpurged {
    /// Its name.
    pub key_store: String,
    /// Why.
    pub why: String,
}

/// What was destroyed, and what was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The volume.
    pub uuid: Uuid,
    /// When erasing it was begun: earlier, if this finished it.
    pub since: Timestamp,
    /// How many wrapped keys the header had.
    pub wraps: usize,
    /// Key stores in which an entry was destroyed.
    pub purged: Vec<String>,
    /// Key stores that the volume may have an entry in still.
    pub left: Vec<Unpurged>,
    /// Key stores of this host that the header did not name, and that did not
    /// answer.
    pub unasked: Vec<Unpurged>,
    /// Whether the space of the data was given back; why not, if that failed.
    pub discarded: Option<Result<(), String>>,
    /// Whether a part of its data was plain, and stays readable.
    pub partly_plain: bool,
}

/// Why nothing was destroyed, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume cannot be opened, or its header not be rewritten.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// It is another volume than was meant.
    #[error("{} is volume {found}, and not {wanted}", path.display())]
    OtherVolume {
        /// Where it is.
        path: PathBuf,
        /// What is there.
        found: Uuid,
        /// What was meant.
        wanted: Uuid,
    },
    /// A part of its data is not encrypted.
    #[error(
        "a part of the data of {} is plain: it is being {} since {}. Destroying its keys would \
         leave that part readable",
        path.display(), rekey.doing(), rekey.since
    )]
    StaysReadable {
        /// Where it is.
        path: PathBuf,
        /// What is under way.
        rekey: Rekey,
    },
    /// None of its data is encrypted.
    #[error("the data of {} has been plain since {since}: there is no key of it to be destroyed", path.display())]
    Plain {
        /// Where it is.
        path: PathBuf,
        /// Since when.
        since: Timestamp,
    },
    /// A key store that has the keys of the volume does not answer.
    #[error("the wrapped keys of the volume are in key store {store:?}, and cannot be destroyed")]
    Store {
        /// Its name.
        store: String,
        /// What it says.
        source: Box<key_store::Error>,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Volume(source) => source.kind(),
            Error::OtherVolume { .. } | Error::StaysReadable { .. } | Error::Plain { .. } => {
                Kind::Refused
            }
            Error::Store { source, .. } => source.kind(),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Volume(volume::Error::Busy { by, .. }) => format!(
                "nothing was destroyed: whoever serves a volume has its key in memory. Detach it \
                 first (`sealblk detach`), or let the daemon do so with --force; end what else \
                 uses it{}",
                by.map_or(String::new(), |pid| format!(" (process {pid})"))
            ),
            Error::Volume(volume::Error::BothDamaged { .. }) => "wrapped keys may be legible in \
                 what is left of it: overwrite the start of the volume up to its data (16 MiB \
                 unless it was made with another --header-area) and destroy its entries in key stores; \
                 or restore the header from a backup, and erase it then"
                .into(),
            Error::Volume(source) => return source.help(),
            Error::StaysReadable { rekey, .. } => format!(
                "nothing was destroyed. {}, or overwrite the data itself (blkdiscard --secure, \
                 shred, where what it lies on can do that); --leave-plain destroys the keys all the \
                 same, and what is plain stays",
                match rekey.kind {
                    rekey::Kind::Encrypt => "Let it be encrypted to its end, and erase it then",
                    _ => "Take the decryption back (`sealblk rekey DISK --back`), and erase it then",
                }
            ),
            Error::Plain { .. } => "nothing was destroyed. Overwrite or discard the data itself, as \
                 that of any plain disk"
                .into(),
            Error::OtherVolume { .. } => "nothing was destroyed: name the right one".into(),
            Error::Store { source, .. } => {
                let help = source.help().unwrap_or_default();
                format!(
                    "nothing was destroyed. {help}; or destroy what can be reached now with \
                     --force, and repeat the command when the key store answers"
                )
            }
        })
    }
}

/// Opens the volume at `location`, which nobody else may have open, and erases
/// it; `wanted` is which one it has to be. Notes in the ledger that it needs no
/// key set any more.
///
/// # Errors
/// See [`Error`].
pub async fn at(
    keys: &KeySets,
    ledger: &Ledger,
    context: &Context,
    location: &Location,
    wanted: Option<Uuid>,
    how: How,
) -> Result<Done, Error> {
    let mut volume = open(location, wanted, how)?;
    let done = erase(keys, context, &mut volume, how).await?;
    if done.left.is_empty()
        && let Err(error) = ledger.erased(done.uuid, done.since)
    {
        tracing::warn!(volume = %done.uuid, %error, "the ledger does not say yet that it was erased");
    }
    Ok(done)
}

/// Opens a volume that is to be erased.
///
/// # Errors
/// When somebody else has it open, it is another one than `wanted`, or no
/// volume; or as [`check_data`].
pub fn open(location: &Location, wanted: Option<Uuid>, how: How) -> Result<Volume, Error> {
    let volume = Volume::open(location, Access::ReadWrite)?;
    match wanted {
        Some(wanted) if wanted != volume.uuid() => Err(Error::OtherVolume {
            path: location.data.clone(),
            found: volume.uuid(),
            wanted,
        }),
        _ => {
            check_data(volume.token(), location, how)?;
            Ok(volume)
        }
    }
}

/// Whether destroying the keys makes the data of the volume unreadable, as far
/// as its header says, and if not, whether that is known.
///
/// # Errors
/// [`Error::StaysReadable`] and [`Error::Plain`].
pub fn check_data(token: &Token, location: &Location, how: How) -> Result<(), Error> {
    let path = location.data.clone();
    match (&token.rekey, &token.plain) {
        (Some(rekey), _) if rekey.is_partly_plain() && !how.leave_plain => {
            Err(Error::StaysReadable {
                path,
                rekey: rekey.clone(),
            })
        }
        (_, Some(plain)) => Err(Error::Plain {
            path,
            since: plain.since,
        }),
        _ => Ok(()),
    }
}

/// Erases `volume`, which is open for writing, or finishes erasing it.
///
/// # Errors
/// [`Error::Store`] without `force`, and nothing was destroyed. After
/// [`Error::Volume`] the call can be repeated.
pub async fn erase(
    keys: &KeySets,
    context: &Context,
    volume: &mut Volume,
    how: How,
) -> Result<Done, Error> {
    let (uuid, token) = (volume.uuid(), volume.token().clone());
    let before = token.erased.clone();
    let since = before.as_ref().map_or_else(Timestamp::now, |it| it.since);
    let partly_plain = match (&token.rekey, &before) {
        (Some(rekey), _) => rekey.is_partly_plain(),
        (None, before) => before.as_ref().is_some_and(|before| before.partly_plain),
    };
    let named: BTreeSet<String> = [token.key_store.clone(), token.copy_in.clone()]
        .into_iter()
        .flatten()
        .chain(before.into_iter().flat_map(|before| before.key_stores))
        .collect();
    let (stores, unasked) = stores_with(keys, uuid, &named, how.force).await?;

    let says = |key_stores: &[String], finished| Erased {
        since,
        finished,
        key_stores: key_stores.to_vec(),
        partly_plain,
    };
    volume.erase_keys(says(&stores, false))?;
    let wiped = volume.wipe_header_area()?;
    if wiped > 0 {
        tracing::info!(volume = %uuid, wiped, "overwrote what was behind the header copies");
    }
    let mut done = Done {
        uuid,
        since,
        wraps: token.wraps.len(),
        purged: Vec::new(),
        left: Vec::new(),
        unasked,
        discarded: None,
        partly_plain,
    };
    for store in stores {
        match purge(keys, context, &store, uuid).await {
            Ok(()) => done.purged.push(store),
            Err(error) => {
                tracing::warn!(volume = %uuid, store, "the wrapped keys are there still: {}", chain(&error));
                done.left.push(Unpurged {
                    key_store: store,
                    why: chain(&error),
                });
            }
        }
    }
    let left: Vec<String> = done.left.iter().map(|it| it.key_store.clone()).collect();
    volume.erase_keys(says(&left, left.is_empty()))?;
    if how.discard {
        let discarded = volume.discard_data().map_err(|error| chain(&error));
        done.discarded = Some(discarded);
    }
    Ok(done)
}

/// The key stores to purge: all that the header names, and all others of this
/// host that have an entry of the volume. Beside them, those of the others that
/// do not answer.
async fn stores_with(
    keys: &KeySets,
    uuid: Uuid,
    named: &BTreeSet<String>,
    force: bool,
) -> Result<(Vec<String>, Vec<Unpurged>), Error> {
    let (mut stores, mut unasked) = (named.clone(), Vec::new());
    let others = keys.stores().names();
    let others = others.into_iter().filter(|name| !named.contains(name));
    for name in named.iter().cloned().chain(others) {
        match keys.stores().look(&name, uuid).await {
            // What a crash left of an entry is not seen by looking.
            Ok(None) => {}
            Ok(Some(_))
            | Err(key_store::Error::Entry { .. } | key_store::Error::OtherVolume { .. }) => {
                stores.insert(name);
            }
            Err(error) if named.contains(&name) => {
                if !force {
                    return Err(Error::Store {
                        store: name,
                        source: Box::new(error),
                    });
                }
            }
            Err(error) => {
                tracing::warn!(
                    volume = %uuid,
                    store = name,
                    "it cannot be seen whether this key store has keys of the volume: {}",
                    chain(&error)
                );
                unasked.push(Unpurged {
                    key_store: name,
                    why: chain(&error),
                });
            }
        }
    }
    Ok((stores.into_iter().collect(), unasked))
}

/// Destroys the entry of the volume, and sees that it is not there any more.
async fn purge(
    keys: &KeySets,
    context: &Context,
    store: &str,
    uuid: Uuid,
) -> Result<(), key_store::Error> {
    keys.purge(context, store, uuid).await?;
    match keys.stores().look(store, uuid).await? {
        None => Ok(()),
        Some(_) => {
            let (_, place) = keys.stores().place(store, uuid)?;
            Err(key_store::Error::Conflict {
                store: store.into(),
                place,
            })
        }
    }
}
