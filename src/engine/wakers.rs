//! What wakes the queue threads of a disk when something has changed that they
//! share: its limits, or whether it runs at all.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The eventfds of the threads that run.
#[derive(Debug, Default)]
pub struct Wakers(Mutex<Vec<Arc<OwnedFd>>>);

impl Wakers {
    fn threads(&self) -> MutexGuard<'_, Vec<Arc<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thread woken by this eventfd, for as long as what is returned
    /// lives.
    pub fn add(self: &Arc<Self>, wake: Arc<OwnedFd>) -> Watch {
        self.threads().push(wake.clone());
        Watch {
            wakers: self.clone(),
            wake,
        }
    }

    /// Wakes all threads.
    pub fn wake_all(&self) {
        for thread in self.threads().iter() {
            // An eventfd that is full wakes as well.
            let _ = rustix::io::write(&**thread, &1u64.to_ne_bytes());
        }
    }
}

/// A thread is woken when something changes.
#[derive(Debug)]
pub struct Watch {
    wakers: Arc<Wakers>,
    wake: Arc<OwnedFd>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let wake = &self.wake;
        self.wakers.threads().retain(|it| !Arc::ptr_eq(it, wake));
    }
}
