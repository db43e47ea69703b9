//! What the data plane tells the control loop, and what it leaves behind.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::protocol::Fault;

/// What the threads of the data plane tell the control loop.
pub struct News {
    wake: OwnedFd,
    front_end: AtomicBool,
    changed: AtomicBool,
    moved: AtomicBool,
    ended: Mutex<Option<Option<Fault>>>,
    kept: Mutex<Option<Fault>>,
}

impl News {
    /// None so far.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(News {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            front_end: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            moved: AtomicBool::new(false),
            ended: Mutex::new(None),
            kept: Mutex::new(None),
        }))
    }

    /// A front end has come or gone.
    pub fn front_end(&self, connected: bool) {
        self.front_end.store(connected, Ordering::SeqCst);
        self.changed();
    }

    /// Something else has changed that managers are told.
    pub fn changed(&self) {
        self.changed.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// The volume was not taken, or not let go.
    pub fn kept(&self, fault: Fault) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        self.changed();
    }

    /// Why, if that is so since this was asked last.
    pub fn take_kept(&self) -> Option<Fault> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take()
    }

    /// The moving of data does something else.
    pub fn moved(&self) {
        self.moved.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether that is so since this was asked last.
    pub fn take_moved(&self) -> bool {
        self.moved.swap(false, Ordering::SeqCst)
    }

    /// The data plane has ended.
    pub fn ended(&self, fault: Option<Fault>) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        self.wake();
    }

    /// Has the control loop look at everything.
    pub fn wake(&self) {
        // It only fails when it has been woken 2^64 times.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Whether a front end is connected.
    pub fn has_front_end(&self) -> bool {
        self.front_end.load(Ordering::SeqCst)
    }

    /// Whether something has changed since this was asked last.
    pub fn take_change(&self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }

    /// Waits for no more than what has been told by now.
    pub fn clear(&self) {
        // Nothing to read: nothing was told.
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    /// Whether it would say so.
    pub fn has_change(&self) -> bool {
        self.changed.load(Ordering::SeqCst)
    }

    /// How the data plane ended, if it has.
    pub fn take_end(&self) -> Option<Option<Fault>> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.take()
    }
}

/// Readable when there is something new.
impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// The byte in which it is remembered that an fdatasync has failed: it
/// outlives the process that saw it.
pub struct Memo(File);

impl Memo {
    /// Over that file.
    pub fn new(file: OwnedFd) -> Self {
        Memo(file.into())
    }

    /// Whether one has failed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn has_failed(&self) -> io::Result<bool> {
        let mut byte = [0];
        self.0.read_exact_at(&mut byte, 0)?;
        Ok(byte != [0])
    }

    /// One has failed.
    pub fn note(&self) {
        // The byte is there already, so that no memory is needed for it.
        if let Err(error) = self.0.write_all_at(&[1], 0) {
            tracing::error!(%error, "a restart of this worker would forget the failed fdatasync");
        }
    }
}
