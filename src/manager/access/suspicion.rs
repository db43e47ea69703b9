//! Uses of keys that contradict what is known: reasons to ask a service before
//! it is its turn.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::keys::{KeyUse, Operation, Witness};
use crate::kms::Class;

/// The key sets whose service said something else to somebody.
#[derive(Debug, Default)]
pub struct Suspicions {
    state: Mutex<State>,
    raised: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those that are denied, as far as is known.
    denied: BTreeSet<String>,
    suspected: BTreeSet<String>,
}

impl Suspicions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These key sets are denied now, and no others.
    pub fn set_denied(&self, denied: BTreeSet<String>) {
        self.state().denied = denied;
    }

    /// Those that were suspected since this was asked last.
    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.state().suspected)
    }

    /// Waits for a suspicion.
    pub async fn raised(&self) {
        self.raised.notified().await;
    }
}

impl Witness for Suspicions {
    fn key_used(&self, used: &KeyUse<'_>) -> io::Result<()> {
        // The questions of the poll itself are no news to it.
        if used.operation == Operation::Check || !used.service_asked {
            return Ok(());
        }
        let denied = match used.outcome.map_err(|error| error.class()) {
            Ok(()) => false,
            Err(Class::Denied(_)) => true,
            Err(_) => return Ok(()),
        };
        let mut state = self.state();
        if state.denied.contains(used.key_set) != denied {
            state.suspected.insert(used.key_set.into());
            drop(state);
            self.raised.notify_one();
        }
        Ok(())
    }
}
