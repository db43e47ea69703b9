//! What the manager holds of a disk, for as long as it is attached: with this
//! a worker can be started at any time, whatever has become of paths and keys.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::state::Record;
use crate::engine::stats;
use crate::keys::ledger::KnownWrap;
use crate::plane::Spec;
use crate::secret::Dek;
use crate::vhost::SocketFile;
use crate::volume::{Access, Files, Location, Standing, Tenure, Volume, Wrap};
use crate::worker::parcel::{Parcel, Role};
use crate::worker::protocol::Start;

/// What a volume says about its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    /// The key set of the volume.
    pub key_set: String,
    /// The provider that its key was wrapped by.
    pub provider: Option<String>,
    /// The key that it was wrapped by.
    pub key_id: Option<String>,
    /// The version of that key.
    pub key_version: Option<String>,
    /// All key sets that its key is wrapped by, its own one first.
    #[serde(default)]
    pub key_sets: Vec<String>,
    /// All its wraps.
    #[serde(default)]
    pub wraps: Vec<KnownWrap>,
    /// The key set that opened it, or `recovery-key`, if that was break-glass
    /// access.
    #[serde(default)]
    pub break_glass: Option<String>,
}

impl KeyFacts {
    /// What `volume` says by itself: little, if its wraps are in a key store.
    pub fn of(volume: &Volume) -> Self {
        let token = volume.token();
        Self::new(&token.key_set, &token.wraps)
    }

    /// What these wraps of a volume in `key_set` say.
    pub fn new(key_set: &str, wraps: &[Wrap]) -> Self {
        let own = |wrap: &&Wrap| wrap.key_set == key_set;
        let wrap = wraps.iter().find(own).or(wraps.first());
        let mut key_sets = vec![key_set.to_owned()];
        for wrap in wraps {
            if !key_sets.contains(&wrap.key_set) {
                key_sets.push(wrap.key_set.clone());
            }
        }
        KeyFacts {
            key_set: key_set.into(),
            key_sets,
            wraps: wraps.iter().map(KnownWrap::from).collect(),
            provider: wrap.map(|wrap| wrap.provider.clone()),
            key_id: wrap.map(|wrap| wrap.key_id.clone()),
            key_version: wrap.map(|wrap| wrap.key_version.clone()),
            break_glass: None,
        }
    }

    /// The same of a volume that was opened by one of `wraps`.
    #[must_use]
    pub fn opened_by(mut self, wraps: &[Wrap], opened: usize) -> Self {
        let by = wraps.get(opened).map(|wrap| wrap.key_set.clone());
        self.break_glass = by.filter(|by| *by != self.key_set);
        self
    }

    /// These facts, in the place of those `before`. What opened the volume does
    /// not change by its wraps being written anew.
    #[must_use]
    pub fn after(mut self, before: Option<&KeyFacts>) -> Self {
        let kept = before.and_then(|before| before.break_glass.clone());
        if self.break_glass.is_none() {
            self.break_glass = kept.filter(|it| self.key_sets.contains(it));
        }
        self
    }
}

/// What a worker keeps for the managers that come later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baggage {
    /// The desired state of its disk.
    pub record: Record,
    /// The key, as it was when the disk was attached. Of an ephemeral disk,
    /// nothing.
    pub key: KeyFacts,
}

/// The listening socket of a disk. It stays where it is when this is dropped,
/// since workers go on without a manager.
#[derive(Debug)]
pub struct FrontEnds {
    /// Listens.
    pub socket: OwnedFd,
    /// Where.
    pub file: SocketFile,
}

/// The volume of a disk, open and locked.
#[derive(Debug)]
pub struct Held {
    /// The files, which hold the lock.
    pub files: Files,
    /// What the lock is for.
    pub access: Access,
    /// What the data plane has to know, as it was when the volume was opened.
    pub spec: Spec,
    /// Bytes of the data by now.
    size: AtomicU64,
    /// Remembers a failed fdatasync from one worker to the next.
    pub memo: File,
    /// The memory in which the workers count I/O, one after the other.
    pub statistics: Option<OwnedFd>,
    /// Where it is written down whether this host has it. Nothing: it has, and it
    /// does not move.
    pub tenure: Option<Arc<Tenure>>,
}

impl Held {
    /// A volume that was just opened, of which this host has so much.
    ///
    /// # Errors
    /// When there are no more descriptors, or there is no memory.
    pub fn of(volume: &Volume, spec: Spec, standing: Standing) -> io::Result<Self> {
        let statistics = stats::create(spec.queues).map_err(io::Error::other)?;
        Ok(Held {
            files: volume.files()?,
            access: match spec.read_only {
                true => Access::ReadOnly,
                false => Access::ReadWrite,
            },
            // Who only reads shares it with others as it is.
            tenure: match spec.read_only {
                true => None,
                false => Some(Arc::new(Tenure::new(standing)?)),
            },
            size: AtomicU64::new(spec.size),
            spec,
            memo: new_memo()?,
            statistics: Some(statistics),
        })
    }

    /// Space without a header, for an ephemeral disk.
    ///
    /// # Errors
    /// As [`Held::of`].
    pub fn scratch(data: File, place: PathBuf, spec: Spec) -> io::Result<Self> {
        let statistics = stats::create(spec.queues).map_err(io::Error::other)?;
        Ok(Held {
            files: Files {
                location: Location {
                    data: place,
                    header: None,
                },
                data,
                header: None,
            },
            access: Access::ReadWrite,
            size: AtomicU64::new(spec.size),
            spec,
            memo: new_memo()?,
            statistics: Some(statistics),
            tenure: None,
        })
    }

    /// What a worker handed over that was started by an earlier manager.
    ///
    /// # Errors
    /// When something is missing.
    pub fn adopt(start: &Start, record: &Record, parcel: &mut Parcel) -> io::Result<Self> {
        let location = Location {
            data: record.volume.clone(),
            header: record.header.clone(),
        };
        let header = match &location.header {
            Some(_) => Some(parcel.need(Role::Header)?.into()),
            None => None,
        };
        Ok(Held {
            files: Files {
                location,
                data: parcel.need(Role::Data)?.into(),
                header,
            },
            access: match start.spec.read_only {
                true => Access::ReadOnly,
                false => Access::ReadWrite,
            },
            size: AtomicU64::new(start.spec.size),
            spec: start.spec.clone(),
            memo: parcel.need(Role::Memo)?.into(),
            statistics: parcel.take(Role::Statistics),
            tenure: match parcel.take(Role::Tenure) {
                // A description of our own: that one is the worker's.
                Some(theirs) => {
                    let ours = Tenure::of(Tenure::of(theirs).another()?);
                    Some(Arc::new(ours))
                }
                None => None,
            },
        })
    }

    /// What the data plane of a next worker has to know.
    pub fn current_spec(&self) -> Spec {
        Spec {
            size: self.size.load(Ordering::SeqCst),
            ..self.spec.clone()
        }
    }

    /// The volume has another size, in its header too.
    pub fn set_size(&self, bytes: u64) {
        self.size.store(bytes, Ordering::SeqCst);
    }

    /// What this host has of the volume.
    pub fn standing(&self) -> Standing {
        let written = self.tenure.as_ref().map(|tenure| tenure.standing());
        // Memory that cannot be read says nothing good.
        written.map_or(Standing::Held, |it| it.unwrap_or(Standing::Moved))
    }

    /// The volume, with its header read anew. It has the same lock, and is written
    /// only while it is this host's. Blocks.
    ///
    /// # Errors
    /// When the header cannot be read.
    pub fn volume(&self) -> Result<Volume, crate::error::Failure> {
        let files = self.files.try_clone();
        let files = files.map_err(super::disks::system("cannot copy a descriptor"))?;
        let Some(tenure) = &self.tenure else {
            return Ok(Volume::of_files(files, self.access)?);
        };
        let failed = super::disks::system("cannot wait for who decides about a volume");
        let still = tenure.still().map_err(failed)?;
        // What another host has is not repaired, either.
        let access = match still.standing() {
            Ok(Standing::Held) => self.access,
            _ => Access::ReadOnly,
        };
        let volume = Volume::of_files(files, access)?;
        drop(still);
        Ok(volume.under(tenure.clone()))
    }

    /// All that a worker is given, but for what is made for each worker.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn parcel(&self, front_ends: &FrontEnds, dek: Option<&Dek>) -> io::Result<Parcel> {
        let mut parcel = Parcel::default();
        parcel.share(Role::Data, &self.files.data)?;
        if let Some(header) = &self.files.header {
            parcel.share(Role::Header, header)?;
        }
        parcel.share(Role::FrontEnds, &front_ends.socket)?;
        parcel.share(Role::Memo, &self.memo)?;
        if let Some(statistics) = &self.statistics {
            parcel.share(Role::Statistics, statistics)?;
        }
        if let Some(tenure) = &self.tenure {
            parcel.add(Role::Tenure, tenure.another()?);
        }
        if let Some(dek) = dek {
            parcel.add(Role::Dek, dek.pass()?);
        }
        Ok(parcel)
    }
}

impl Held {
    /// What the next worker tells by that nobody else serves: the memo, opened for that
    /// worker alone. Nobody may keep a copy.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn turn(&self) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", self.memo.as_raw_fd());
        File::options().read(true).write(true).open(path)
    }
}

/// A byte that says that no fdatasync has failed.
fn new_memo() -> io::Result<File> {
    let memo: File = rustix::fs::memfd_create("sealblk-memo", MemfdFlags::CLOEXEC)?.into();
    // Written now, so that writing it later needs no memory.
    memo.write_all_at(&[0], 0)?;
    Ok(memo)
}
