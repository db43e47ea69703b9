//! The library of a token, which is loaded and initialised once in a process,
//! whichever and however many key sets use it.
//!
//! It is never finalised: PKCS#11 counts one application per process, and ends
//! the sessions of all of it. A process that is forked must not use it; workers
//! are other programs, started by exec, and never do.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as CallError, RvError};
use tokio::sync::Semaphore;

use super::failure;
use crate::error::{Kind, io_kind};
use crate::kms::cluster::Failed;
use crate::kms::{Class, Error};
use crate::paths;
use crate::secret::Secret;

/// How many calls may be in a library at once. One that never returns keeps
/// its place and its thread, so this also bounds what a library that hangs costs.
const CALLS_MAX: usize = 8;

/// A library, by its path.
pub(super) struct Module {
    path: PathBuf,
    library: Mutex<Option<Pkcs11>>,
    refusals: Mutex<Refusals>,
    /// One permit for each call that is under way.
    pub(super) calls: Arc<Semaphore>,
}

/// The last PIN that each token did not take, by its serial number. Trying it
/// again and again would lock the token.
#[derive(Default)]
pub(super) struct Refusals(BTreeMap<String, Secret>);

impl Refusals {
    pub(super) fn contains(&self, serial: &str, pin: &Secret) -> bool {
        self.0.get(serial).is_some_and(|refused| refused == pin)
    }

    pub(super) fn remember(&mut self, serial: &str, pin: Secret) {
        self.0.insert(serial.into(), pin);
    }
}

impl fmt::Debug for Module {
    /// Without the hundred functions of the library.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({})", self.path.display())
    }
}

/// Whether a library was loaded, and may have threads and destructors.
static LOADED: AtomicBool = AtomicBool::new(false);

/// Whether this process runs code of a library that it has loaded.
pub(in crate::kms) fn is_loaded() -> bool {
    LOADED.load(Ordering::Relaxed)
}

static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Module {
    /// The library at `path`. It is not loaded yet.
    pub(super) fn at(path: &Path) -> Arc<Self> {
        let mut modules = lock(&MODULES);
        let module = modules.entry(path.into()).or_insert_with(|| {
            Arc::new(Module {
                path: path.into(),
                library: Mutex::default(),
                refusals: Mutex::default(),
                calls: Arc::new(Semaphore::new(CALLS_MAX)),
            })
        });
        module.clone()
    }

    /// The library, loaded and initialised. May take its time.
    pub(super) fn library(&self) -> Result<Pkcs11, Failed> {
        let mut library = lock(&self.library);
        if let Some(library) = &*library {
            return Ok(library.clone());
        }
        let real = self.check().map_err(Failed::Everywhere)?;
        LOADED.store(true, Ordering::Relaxed);
        let loaded =
            Pkcs11::new(&real).map_err(|error| Failed::Everywhere(self.not_loaded(&error)))?;
        match loaded.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // Somebody else in this process uses it, too.
            Ok(()) | Err(CallError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            // What it talks to may just not be up yet.
            Err(error) => return Err(self.not_initialised(&error).into()),
        }
        tracing::debug!(module = %self.path.display(), "loaded a PKCS#11 library");
        Ok(library.insert(loaded).clone())
    }

    /// Has the library initialised again at its next use.
    pub(super) fn forget(&self) {
        *lock(&self.library) = None;
    }

    /// Which PINs were refused. Whoever logs in holds it meanwhile.
    pub(super) fn refusals(&self) -> MutexGuard<'_, Refusals> {
        lock(&self.refusals)
    }

    /// What is loaded becomes a part of this process, so nobody else may have
    /// put it there, or can put another one there until it is loaded.
    fn check(&self) -> Result<PathBuf, Error> {
        let path = self.path.display();
        let meta = fs::metadata(&self.path).map_err(|error| {
            Error::new(
                Class::Unreachable,
                format!("the PKCS#11 library {path} cannot be used: {error}"),
                "install the library that came with the token, or correct module-path",
            )
            .with_kind(io_kind(&error))
        })?;
        let us = rustix::process::geteuid().as_raw();
        let why = if !meta.is_file() {
            "it is not a regular file".into()
        } else if meta.mode() & 0o022 != 0 {
            let mode = meta.mode() & 0o7777;
            format!("its mode is {mode:04o}: others can change it")
        } else if meta.uid() != us && meta.uid() != 0 {
            format!(
                "its owner is user {}, and must be user {us} (who runs this) or root",
                meta.uid()
            )
        } else {
            match paths::firm(&self.path) {
                Ok(real) => return Ok(real),
                Err(loose) => loose.to_string(),
            }
        };
        Err(Error::new(
            Class::Unreachable,
            format!("the PKCS#11 library {path} is not safe to load: {why}"),
            "name the library that the distribution or the vendor installed",
        )
        .with_kind(Kind::Permission))
    }

    fn not_loaded(&self, error: &CallError) -> Error {
        let next = "install the library that came with the token, for this architecture, or correct module-path";
        Error::new(
            Class::Unreachable,
            format!(
                "{} is not a PKCS#11 library that can be loaded",
                self.path.display()
            ),
            next,
        )
        .with_kind(Kind::Unsupported)
        .with_words(&failure::words(error))
    }

    fn not_initialised(&self, error: &CallError) -> Error {
        Error::new(
            Class::Unreachable,
            format!("the PKCS#11 library {} does not start", self.path.display()),
            "see its own configuration and log: it may not find its device, its server or its files",
        )
        .with_words(&failure::words(error))
    }
}
