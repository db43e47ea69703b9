//! Other wraps for the volumes of this host: of disks that are served, which
//! are not disturbed, and of volumes that are not attached.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::registry::Identity;
use super::{Command, Disks, Entry, blocking, ended, identities};
use crate::error::{Failure, Kind};
use crate::keys::Context;
use crate::manager::held::KeyFacts;
use crate::manager::model::DiskState;
use crate::rewrap::{self, Change, KeyFrom, Rewrapped};
use crate::volume::{Access, Location, Volume};

/// The volumes that are not attached and whose headers are being rewritten:
/// who wants to attach one of them waits for that.
#[derive(Debug, Default)]
pub struct Rewriting {
    files: Mutex<HashSet<Identity>>,
    changes: watch::Sender<()>,
}

/// Files that are being rewritten, until this is dropped.
struct Turn<'r> {
    rewriting: &'r Rewriting,
    files: Vec<Identity>,
}

impl Rewriting {
    fn files(&self) -> MutexGuard<'_, HashSet<Identity>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is told whenever one is rewritten no longer.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Waits until none of these files is rewritten. Whether one was.
    pub async fn wait(&self, files: &[Identity]) -> bool {
        let mut changes = self.changes.subscribe();
        let mut waited = false;
        while files.iter().any(|file| self.files().contains(file)) {
            waited = true;
            // The sender lives as long as this.
            let _ = changes.changed().await;
        }
        waited
    }

    fn begin(&self, files: Vec<Identity>) -> Option<Turn<'_>> {
        let mut taken = self.files();
        if files.iter().any(|file| taken.contains(file)) {
            return None;
        }
        taken.extend(&files);
        Some(Turn {
            rewriting: self,
            files,
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut files = self.rewriting.files();
        for file in &self.files {
            files.remove(file);
        }
        drop(files);
        self.rewriting.changes.send_replace(());
    }
}

impl Disks {
    /// The name of the disk whose volume has this UUID, or is one of these
    /// files.
    pub fn attached(&self, volume: Uuid, location: &Location) -> Option<String> {
        let files = identities(paths(location));
        let disks = self.shared.registry.entries();
        let same = |entry: &&Arc<Entry>| {
            entry.has_volume(volume) || entry.files().iter().any(|is| files.contains(is))
        };
        disks.iter().find(same).map(|entry| entry.info().name)
    }

    /// Carries `change` out on the volume of an attached disk, which is served
    /// on. The key comes from memory where it is kept there, and otherwise
    /// from what `access` permits to be opened.
    ///
    /// # Errors
    /// When there is no such disk, its volume is not open for writing, or the
    /// change cannot be carried out. The volume opens as it did then.
    pub async fn rewrap(
        &self,
        context: &Context,
        name: &str,
        access: crate::keys::Access,
        change: Arc<dyn Change>,
    ) -> Result<Rewrapped, Failure> {
        let context = context.clone();
        let keys = self.shared.keys.clone();
        self.on_volume(name, async move |volume, mut key| {
            key.access = access;
            let done = rewrap::rewrap(&keys, &context, volume, key, &*change).await;
            done.map_err(Failure::from)
        })
        .await
    }

    /// Has `work` done on the volume of an attached disk, whose header nobody
    /// else rewrites meanwhile, with its key where that is in memory. It runs
    /// where it may block. What the volume then says of its key is shown, and
    /// is kept by the worker for later managers.
    ///
    /// # Errors
    /// When there is no such disk, or its volume is not open; or as the work.
    pub async fn on_volume<T, W>(&self, name: &str, work: W) -> Result<T, Failure>
    where
        T: Send + 'static,
        W: AsyncFnOnce(&mut Volume, KeyFrom) -> Result<T, Failure> + Send + 'static,
    {
        let entry = self.entry(name)?;
        let (reply, answer) = oneshot::channel();
        entry.send(Command::Lend { reply }).await?;
        let loan = answer.await.unwrap_or_else(|_| Err(ended()))?;
        let keys = self.shared.keys.clone();
        let owner = entry.clone();
        let handle = tokio::runtime::Handle::current();
        let done = blocking(move || {
            handle.block_on(async {
                let _alone = owner.header.lock().await;
                // It may have been detached while this waited.
                if owner.held().is_none() {
                    return Err(gone());
                }
                let held = loan.held;
                let mut volume = held.volume()?;
                let done = work(&mut volume, KeyFrom::memory(loan.dek)).await?;
                Ok((done, facts(&keys, &volume).await))
            })
        });
        let (done, key) = done.await??;
        if let Some(key) = key {
            let key = Box::new(key);
            // If the disk has just gone, nobody needs to know.
            let _ = entry.send(Command::Rewrapped { key }).await;
        }
        Ok(done)
    }

    /// Whether the key of a disk is in memory: the manager's, or its worker's.
    pub async fn has_key(&self, name: &str) -> bool {
        let Ok(entry) = self.entry(name) else {
            return false;
        };
        let (reply, answer) = oneshot::channel();
        let asked = entry.send(Command::Lend { reply }).await;
        asked.is_ok() && matches!(answer.await, Ok(Ok(loan)) if loan.dek.is_some())
    }

    /// Whether a disk is served now, and its header may be rewritten: also one
    /// whose requests are held because of its key, which another key may end.
    /// That of a frozen disk is left alone until it is thawed.
    pub fn takes_wraps(&self, name: &str) -> bool {
        use DiskState::{Frozen, Incoming, Moved};
        self.get(name).is_some_and(|info| {
            info.state.is_served() && !matches!(info.state, Frozen | Incoming | Moved)
        })
    }

    /// Carries `change` out on a volume that is not attached. Who attaches it
    /// meanwhile waits.
    ///
    /// # Errors
    /// When somebody else has it, or the change cannot be carried out.
    pub async fn rewrap_detached(
        &self,
        context: &Context,
        location: &Location,
        volume: Uuid,
        change: Arc<dyn Change>,
    ) -> Result<Rewrapped, Failure> {
        let (shared, context, location) = (self.shared.clone(), context.clone(), location.clone());
        let handle = tokio::runtime::Handle::current();
        blocking(move || {
            let files = identities(paths(&location));
            let turn = shared.rewriting.begin(files);
            let _turn = turn.ok_or_else(|| busy(&location))?;
            let mut opened = Volume::open(&location, Access::ReadWrite)?;
            if opened.uuid() != volume {
                return Err(replaced(&location, volume, opened.uuid()));
            }
            let key = KeyFrom::default();
            let work = rewrap::rewrap(&shared.keys, &context, &mut opened, key, &*change);
            handle.block_on(work).map_err(Failure::from)
        })
        .await?
    }
}

fn paths(location: &Location) -> impl Iterator<Item = &Path> {
    let header = location.header.as_deref();
    std::iter::once(location.data.as_path()).chain(header)
}

/// What the wraps of a volume say, wherever they are. Nothing, if that cannot
/// be read now: what is known stays.
async fn facts(keys: &crate::keys::KeySets, volume: &Volume) -> Option<KeyFacts> {
    let token = volume.token();
    match &token.key_store {
        None => Some(KeyFacts::of(volume)),
        Some(store) => {
            let stored = keys.stores().get(store, volume.uuid()).await.ok()?;
            Some(KeyFacts::new(&token.key_set, &stored.entry.wraps))
        }
    }
}

fn gone() -> Failure {
    Failure::new(
        Kind::Busy,
        "the disk has just been detached",
        Some("try again".into()),
    )
}

fn busy(location: &Location) -> Failure {
    Failure::new(
        Kind::Busy,
        format!(
            "the header of {} is being rewritten",
            location.data.display()
        ),
        Some("try again".into()),
    )
}

/// Another volume is at the place of one that is known.
pub fn replaced(location: &Location, wanted: Uuid, found: Uuid) -> Failure {
    Failure::new(
        Kind::NotFound,
        format!(
            "{} is volume {found} now, and not {wanted} any more",
            location.data.display()
        ),
        Some("attach the volume once where it is now: it is known there then".into()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_rewritten_by_one_and_the_others_wait() {
        let rewriting = Rewriting::default();
        let (a, b) = ((1, 1), (1, 2));
        let turn = rewriting.begin(vec![a]).unwrap();
        assert!(rewriting.begin(vec![b, a]).is_none());
        assert!(rewriting.begin(vec![b]).is_some());
        let wait = async {
            assert!(!rewriting.wait(&[b]).await);
            let files = [a];
            let waiting = rewriting.wait(&files);
            tokio::pin!(waiting);
            tokio::select! {
                biased;
                _ = &mut waiting => panic!("it is rewritten"),
                () = std::future::ready(()) => {}
            }
            drop(turn);
            assert!(waiting.await);
        };
        crate::runtime::block_on(wait).unwrap();
        assert!(rewriting.begin(vec![b, a]).is_some());
    }
}
