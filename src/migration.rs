//! A disk whose guest moves to another host, or comes from one: when this host lets
//! the volume go, when it takes it, and what has to be so for that.
//!
//! What enters: a disk, its files, and what its front end does. Both ends are of one
//! kind, since a guest that was to move and did not goes on where it was. Nothing
//! here asks a key service or writes a header: who takes a volume has its key by
//! then, and finds out that it still is the key.
//!
//! The lock and what is written down of it are `volume::tenure`.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::Disk;
use crate::error::{Explain, Failure, Kind, io_kind};
use crate::secret::Dek;
use crate::units::SECTOR_BYTES;
use crate::vhost::Claims;
use crate::volume::tenure::unmark_io;
use crate::volume::{self, Access, Description, Files, Standing, Tenure, Volume};

/// Is told that something has changed, or has failed.
type Hook = Box<dyn Fn(Option<Failure>) + Send + Sync>;

/// What lets the volume of a disk go, and takes it.
pub struct Migration {
    disk: Arc<Disk>,
    files: Files,
    path: PathBuf,
    tenure: Tenure,
    /// As it stands in `tenure`, which this alone changes while there is a disk.
    held: AtomicBool,
    /// What the volume was when it was last this host's, or when its key was proven.
    before: Mutex<Option<Description>>,
    moving: AtomicBool,
    tell: Hook,
}

/// Why a volume is not let go, or taken.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{} is not let go, since {why}: its guest cannot go on elsewhere", path.display())]
    Kept {
        path: PathBuf,
        why: String,
        help: &'static str,
    },
    #[error("the guest cannot go on here")]
    NotTaken(#[source] volume::Error),
    #[error("{what} {}", path.display())]
    System {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Kept { .. } => Kind::Refused,
            Error::NotTaken(source) => source.kind(),
            Error::System { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Kept { help, .. } => (*help).into(),
            Error::NotTaken(volume::Error::Busy { .. }) => "another host has the volume: if the \
                 guest runs there, nothing is to be done here; if not, detach the disk there"
                .into(),
            Error::NotTaken(source) => return source.help(),
            Error::System { .. } => {
                "check the disk below, and the limits of the process; the volume is locked by \
                 nobody who is not there any more"
                    .into()
            }
        })
    }
}

impl Migration {
    /// For `disk`, whose volume has these `files`. `tell` is called whenever
    /// something changes.
    ///
    /// # Errors
    /// When what is written down cannot be read.
    pub fn new(disk: Arc<Disk>, files: Files, tenure: Tenure, tell: Hook) -> io::Result<Self> {
        Ok(Migration {
            held: AtomicBool::new(tenure.standing()? == Standing::Held),
            path: files.location.data.clone(),
            disk,
            files,
            tenure,
            before: Mutex::new(None),
            moving: AtomicBool::new(false),
            tell,
        })
    }

    /// The same of a volume that this host does not have: its key is `dek`.
    ///
    /// # Errors
    /// When its header cannot be read, or has another key.
    pub fn proven(self, dek: &Dek) -> Result<Self, volume::Error> {
        if !self.held.load(Ordering::SeqCst) {
            let volume = self.read()?;
            volume.verify_dek(dek)?;
            self.remember(volume.description().clone());
        }
        Ok(self)
    }

    /// What this host has of the volume.
    pub fn standing(&self) -> Standing {
        match self.held.load(Ordering::SeqCst) {
            true => Standing::Held,
            // The memory is there for as long as this.
            false => self.tenure.standing().unwrap_or(Standing::Moved),
        }
    }

    /// Whether the front end is moving its guest to another host.
    pub fn is_moving(&self) -> bool {
        self.moving.load(Ordering::SeqCst)
    }

    fn remember(&self, description: Description) {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        *before = Some(description);
    }

    /// The volume, with its header as it is now. It cannot be written through that.
    fn read(&self) -> Result<Volume, volume::Error> {
        let files = self.files.try_clone();
        let files = files.map_err(|error| volume::Error::io("open", &self.path, error))?;
        Volume::of_files(files, Access::ReadOnly)
    }

    fn system(&self, what: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::System { what, path, source }
    }

    fn kept(&self, why: impl Into<String>, help: &'static str) -> Error {
        Error::Kept {
            path: self.path.clone(),
            why: why.into(),
            help,
        }
    }

    /// Fails where more than the guest's requests goes on with the disk.
    fn check_at_rest(&self) -> Result<(), Error> {
        const LATER: &str = "let the guest go on here (`cont` in QEMU's monitor), and move it \
                             when that has ended";
        if self.disk.fence().position().is_some() {
            return Err(self.kept("all its data is being moved to another key", LATER));
        }
        let hold = self.disk.hold();
        if hold.has_freeze() {
            return Err(self.kept("it is frozen for a snapshot", LATER));
        }
        if hold.has_lost() {
            return Err(self.kept(
                "something that the guest wrote may still be on its way to the disk",
                "check the disk below, for example with `dmesg`",
            ));
        }
        Ok(())
    }

    fn try_let_go(&self) -> Result<(), Error> {
        self.check_at_rest()?;
        self.disk.sync_now().map_err(|error| {
            self.kept(
                format!("what the guest wrote is not durable: {error}"),
                "check the disk below, for example with `dmesg`, and let the guest check its \
                 file systems",
            )
        })?;
        let still = self.tenure.still();
        let still = still.map_err(self.system("cannot wait for who writes the header of"))?;
        let volume = self
            .read()
            .map_err(|error| self.kept(error.to_string(), "see there"))?;
        if volume.is_under_way() {
            return Err(self.kept(
                "an operation on all its data is under way",
                "let the guest go on here, and move it when that has ended",
            ));
        }
        self.remember(volume.description().clone());
        self.files.forget_cached();
        // From here on nobody of this host writes, whatever becomes of the rest.
        let noted = still.set(Standing::Moved);
        noted.map_err(self.system("cannot write down who has"))?;
        self.held.store(false, Ordering::SeqCst);
        let unlocked = unmark_io(self.disk.store().files(), &self.path);
        let unlocked = unlocked.and_then(|()| self.files.let_go());
        unlocked.map_err(Error::NotTaken)
    }

    fn try_claim(&self) -> Result<(), Error> {
        let still = self.tenure.still();
        let still = still.map_err(self.system("cannot wait for who decides about"))?;
        self.files.claim().map_err(Error::NotTaken)?;
        let taken = self.judge().and_then(|()| {
            let noted = still.set(Standing::Held);
            noted.map_err(self.system("cannot write down who has"))
        });
        if taken.is_err() {
            let unlocked = unmark_io(self.disk.store().files(), &self.path);
            if let Err(error) = unlocked.and_then(|()| self.files.let_go()) {
                tracing::error!("{error}");
            }
            return taken;
        }
        self.held.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Finds out, with the lock, whether this still is what this host would serve,
    /// and how large it is.
    fn judge(&self) -> Result<(), Error> {
        self.files.forget_cached();
        let volume = self.read().map_err(Error::NotTaken)?;
        let before = {
            let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
            before.clone()
        };
        if let Some(before) = before {
            volume.check_same(&before).map_err(Error::NotTaken)?;
        }
        let size = volume.layout().size;
        if size > self.disk.capacity() * SECTOR_BYTES {
            let grown = self.disk.grow(size);
            grown.map_err(self.system("cannot serve the new size of"))?;
            tracing::info!(size, "the disk has grown meanwhile");
        }
        volume::mark_io(&self.files.data, self.disk.store().files(), &self.path)
            .map_err(Error::NotTaken)
    }
}

impl Claims for Migration {
    fn claim(&self) -> io::Result<()> {
        if self.held.load(Ordering::SeqCst) {
            return Ok(());
        }
        match self.try_claim() {
            Ok(()) => {
                tracing::info!("the volume is this host's: the guest goes on here");
                (self.tell)(None);
                Ok(())
            }
            Err(error) => {
                let failure = Failure::from(error);
                let text = failure.to_string();
                tracing::error!("the volume is not taken: {failure}");
                (self.tell)(Some(failure));
                Err(io::Error::other(text))
            }
        }
    }

    fn let_go(&self) {
        if !self.held.load(Ordering::SeqCst) {
            return;
        }
        match self.try_let_go() {
            Ok(()) => {
                tracing::info!("the volume was let go: the guest goes on at another host");
                (self.tell)(None);
            }
            Err(error) => {
                let failure = Failure::from(error);
                tracing::error!("{failure}");
                (self.tell)(Some(failure));
            }
        }
    }

    fn moving(&self, on: bool) {
        if self.moving.swap(on, Ordering::SeqCst) != on {
            match on {
                true => tracing::info!("the front end begins to move its guest"),
                false => tracing::info!("the front end does not move its guest any more"),
            }
            (self.tell)(None);
        }
    }
}
