//! Who of several hosts has a volume, as far as this one knows, and the lock that
//! moves between them.
//!
//! The use lock (`volume::lock`) is shared by all processes that have the descriptor:
//! a manager and its worker. When a guest moves to another host, the worker lets it
//! go or takes it, at the moment at which the guest's disk stops or starts. Whether
//! it is there is written down in memory that both have ([`Tenure`]), which is
//! changed, and relied on, under a lock of its own: so nobody writes a header just
//! when the worker lets the volume go. That lock goes with the process that has it.
//!
//! ```text
//! lets go   everything durable ─▶ [ written down: moved ─▶ unlocked ]
//! takes     [ locked ─▶ header read and judged ─▶ written down: held ] ─▶ rings start
//! ```
//!
//! A process that ends within the brackets leaves a volume that is locked, and of
//! which it is not written down that it is held: its manager unlocks it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FlockOperation, MemfdFlags};
use serde::{Deserialize, Serialize};

use super::description::Description;
use super::device::{Access, Device};
use super::devices::Devices;
use super::error::Error;
use super::lock;
use super::open::{Files, Volume};
use super::{Location, token};

/// How long whoever has the volume elsewhere may take to let it go: it does that
/// before the guest is started here.
const LETTING_GO: Duration = Duration::from_secs(5);

/// How long to wait for who writes a header, or takes the volume.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a host has of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its use lock.
    #[default]
    Held,
    /// Nothing yet: its guest is to come from another host.
    Incoming,
    /// Nothing any more: its guest was stopped, to go on at another host.
    Moved,
}

impl Standing {
    fn byte(self) -> u8 {
        match self {
            Standing::Held => 0,
            Standing::Incoming => 1,
            Standing::Moved => 2,
        }
    }

    fn of(byte: u8) -> io::Result<Self> {
        match byte {
            0 => Ok(Standing::Held),
            1 => Ok(Standing::Incoming),
            2 => Ok(Standing::Moved),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// What is written down of who has a volume.
#[derive(Debug)]
pub struct Tenure {
    /// One byte in memory, in an open file description of this process alone.
    memory: File,
    /// Who of this process looks at it.
    turn: Mutex<()>,
}

impl Tenure {
    /// New memory in which this is written.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(standing: Standing) -> io::Result<Self> {
        let memory: File = rustix::fs::memfd_create("sealblk-tenure", MemfdFlags::CLOEXEC)?.into();
        memory.write_all_at(&[standing.byte()], 0)?;
        Ok(Tenure::of(memory))
    }

    /// The memory that another process has [shared](Tenure::another).
    pub fn of(memory: impl Into<File>) -> Self {
        Tenure {
            memory: memory.into(),
            turn: Mutex::new(()),
        }
    }

    /// The same memory in a description of its own, for another process.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn another(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.memory.as_raw_fd());
        Ok(File::options().read(true).write(true).open(path)?.into())
    }

    /// What is written there now. It may change at once.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn standing(&self) -> io::Result<Standing> {
        let mut byte = [0];
        self.memory.read_exact_at(&mut byte, 0)?;
        Standing::of(byte[0])
    }

    /// Nobody changes it for as long as what is returned lives. Blocks.
    ///
    /// # Errors
    /// When somebody else has that for too long.
    pub fn still(&self) -> io::Result<Still<'_>> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&self.memory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // flock has no time-out of its own.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Still {
            tenure: self,
            _turn: turn,
        })
    }
}

/// Whoever has this decides who has the volume.
#[derive(Debug)]
pub struct Still<'a> {
    tenure: &'a Tenure,
    _turn: MutexGuard<'a, ()>,
}

impl Still<'_> {
    /// What is written there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn standing(&self) -> io::Result<Standing> {
        self.tenure.standing()
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn set(&self, standing: Standing) -> io::Result<()> {
        self.tenure.memory.write_all_at(&[standing.byte()], 0)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        // Closing the file releases it too; there is nothing else to do.
        let _ = rustix::fs::flock(&self.tenure.memory, FlockOperation::Unlock);
    }
}

impl Files {
    fn each(&self) -> impl Iterator<Item = (&File, &Path)> {
        let header = self.header.as_ref().zip(self.location.header.as_deref());
        std::iter::once((&self.data, self.location.data.as_path())).chain(header)
    }

    /// Takes the use lock of each for writing, as soon as whoever had it has let it
    /// go. Blocks, but not for long.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Dying`], [`Error::Io`]. None is taken then.
    pub fn claim(&self) -> Result<(), Error> {
        let deadline = Instant::now() + LETTING_GO;
        let taken = self.each().try_for_each(|(file, path)| {
            let file = file.try_clone();
            let file = file.map_err(|error| Error::io("lock", path, error))?;
            let device = Device::of(file, path)?;
            loop {
                match device.lock(Access::ReadWrite) {
                    // It has waited a while itself.
                    Err(Error::Busy { .. }) if Instant::now() < deadline => {}
                    done => return done,
                }
            }
        });
        taken.inspect_err(|_| {
            if let Err(error) = self.let_go() {
                tracing::error!("{error}");
            }
        })
    }

    /// Lets the locks go.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn let_go(&self) -> Result<(), Error> {
        self.each().try_for_each(|(file, path)| {
            lock::let_go(file).map_err(|error| Error::io("unlock", path, error))
        })
    }

    /// Has the system forget what it has read of them: somebody else may have
    /// written since. What it keeps all the same, direct I/O does not see.
    pub fn forget_cached(&self) {
        for (file, path) in self.each() {
            if let Err(error) = rustix::fs::fadvise(file, 0, None, Advice::DontNeed) {
                tracing::warn!(%error, path = %path.display(), "what was read of it may stay cached");
            }
        }
    }
}

/// Lets go the marks of those that data is written through, of which nothing is in
/// flight any more ([`mark_io`](super::mark_io)).
///
/// # Errors
/// [`Error::Io`].
pub fn unmark_io(files: &[File], path: &Path) -> Result<(), Error> {
    files
        .iter()
        .try_for_each(lock::let_go)
        .map_err(|error| Error::io("unlock", path, error))
}

impl Volume {
    /// Opens a volume for writing that somebody else has, who will let it go: it is
    /// read and checked, and neither locked nor written until somebody
    /// [claims](Files::claim) it.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn open_incoming(location: &Location) -> Result<Self, Error> {
        let devices = Devices::open(location, Access::ReadWrite)?;
        Self::of(devices, Access::ReadOnly)
    }

    /// Checks that this is still the volume `before`, to be read and written with
    /// the same key: that its header was not replaced, and nothing is under way. It
    /// may have grown, and its key be wrapped in another way.
    ///
    /// # Errors
    /// [`Error::ChangedUnderneath`], [`Error::UnderWay`].
    pub fn check_same(&self, before: &Description) -> Result<(), Error> {
        let now = self.description();
        let changed = |what| {
            Err(Error::ChangedUnderneath {
                path: self.header_device().path().into(),
                what,
            })
        };
        if now.uuid != before.uuid {
            return changed("it has another UUID");
        }
        if now.token.erased.is_some() {
            return changed("it was erased");
        }
        self.check_settled("serve")?;
        if !now.digest.same_key(&before.digest) {
            return changed("it has another key");
        }
        let mut layout = now.layout;
        if layout.size < before.layout.size {
            return changed("it has become smaller");
        }
        layout.size = before.layout.size;
        match layout == before.layout && now.token.plain == before.token.plain {
            true => Ok(()),
            false => changed("its data segment is another one"),
        }
    }

    /// Whether its keys are being changed, or all its data moved.
    pub fn is_under_way(&self) -> bool {
        let token: &token::Token = self.token();
        token.rekey.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::lock::Taken;

    #[test]
    fn what_is_written_down_is_seen_by_all_and_changed_by_one() {
        let ours = Tenure::new(Standing::Incoming).unwrap();
        let theirs = Tenure::of(ours.another().unwrap());
        assert_eq!(theirs.standing().unwrap(), Standing::Incoming);
        let still = theirs.still().unwrap();
        still.set(Standing::Held).unwrap();
        assert_eq!(ours.standing().unwrap(), Standing::Held);
        let busy = FlockOperation::NonBlockingLockExclusive;
        assert!(rustix::fs::flock(&ours.memory, busy).is_err());
        drop(still);
        ours.still().unwrap().set(Standing::Moved).unwrap();
        assert_eq!(theirs.standing().unwrap(), Standing::Moved);
        // It goes with who has it.
        let gone = theirs.still().unwrap();
        std::mem::forget(gone);
        drop(theirs);
        assert_eq!(ours.still().unwrap().standing().unwrap(), Standing::Moved);
    }

    #[test]
    fn a_volume_goes_from_one_to_the_other_and_back() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let location = Location {
            data: named.path().to_owned(),
            header: None,
        };
        let open = || Files {
            location: location.clone(),
            data: File::options()
                .read(true)
                .write(true)
                .open(named.path())
                .unwrap(),
            header: None,
        };
        let (here, there) = (open(), open());
        let again = here.try_clone().unwrap();
        let queue = open().data;
        here.claim().unwrap();
        super::super::mark_io(&here.data, std::slice::from_ref(&queue), named.path()).unwrap();
        assert!(matches!(there.claim(), Err(Error::Busy { .. })));
        // By another descriptor of the same, as a worker has it.
        unmark_io(std::slice::from_ref(&queue), named.path()).unwrap();
        again.let_go().unwrap();
        there.claim().unwrap();
        assert_eq!(lock::take_use(&here.data, true).unwrap(), Taken::No);
        there.let_go().unwrap();
        here.claim().unwrap();
        assert!(lock::in_use(&there.data).unwrap());
    }
}
