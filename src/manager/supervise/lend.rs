//! What others need of a disk to give its volume other wraps: the volume, and
//! the key where it is in memory.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Supervisor;
use crate::error::{Failure, Kind};
use crate::manager::disks::Command;
use crate::manager::held::{Baggage, Held, KeyFacts};
use crate::manager::worker_process::Worker;
use crate::secret::Dek;
use crate::worker::parcel::{Parcel, Role};
use crate::worker::protocol::{Answer, Request};

/// What a disk lends. Whoever has it takes the lock of the header
/// (`Entry::header`) before it writes, and lets go of the key before that.
#[derive(Debug)]
pub struct Loan {
    /// The volume.
    pub held: Arc<Held>,
    /// The key, if the manager or the worker keeps it.
    pub dek: Option<Arc<Dek>>,
}

impl Supervisor {
    /// Does what is asked about the wraps of the volume.
    pub(super) async fn lend_or_learn(&mut self, worker: Option<&mut Worker>, command: Command) {
        match command {
            Command::Lend { reply } => {
                // Who asked may not be waiting any more.
                let _ = reply.send(self.lend(worker).await);
            }
            Command::Rewrapped { key } => self.learn(worker, *key).await,
            Command::Begun { begun, reply } => self.begun(worker, *begun, reply).await,
            Command::Orders { orders, reply } => self.order(worker, orders, reply).await,
            Command::Moved { ended } => self.moved(worker, ended).await,
            other => other.refuse(super::freeze::not_served()),
        }
    }

    async fn lend(&mut self, worker: Option<&mut Worker>) -> Result<Loan, Failure> {
        let Some(held) = self.held.clone() else {
            return Err(Failure::new(
                Kind::Busy,
                "the volume of the disk is not open",
                Some("wait until the disk is running".into()),
            ));
        };
        let dek = match (&self.dek, worker) {
            (Some(dek), _) => Some(dek.clone()),
            (None, Some(worker)) => ask(worker).await.map(Arc::new),
            (None, None) => None,
        };
        Ok(Loan { held, dek })
    }

    /// Takes note of other wraps, also for the managers that come later.
    async fn learn(&mut self, worker: Option<&mut Worker>, key: KeyFacts) {
        let key = key.after(self.key.as_ref());
        self.entry.set_key(&key);
        self.key = Some(key.clone());
        let Some(worker) = worker else { return };
        let baggage = Baggage {
            record: self.record.clone(),
            key,
        };
        let told = match serde_json::to_value(baggage) {
            Ok(baggage) => {
                let request = Request::Baggage { baggage };
                let answer = worker.link.call(request, Parcel::default()).await;
                answer.map(drop)
            }
            Err(error) => Err(error.into()),
        };
        // It is shown, and decides nothing.
        if let Err(error) = told {
            tracing::debug!(%error, "the worker does not know of the new wraps");
        }
    }
}

/// The key that a worker keeps, if it does. Whether it is the right one is for
/// who uses it to find out.
async fn ask(worker: &mut Worker) -> Option<Dek> {
    let answer = worker.link.call(Request::Key, Parcel::default()).await;
    let received = match answer {
        Ok((Answer::Key, mut parcel)) => parcel.need(Role::Dek).and_then(Dek::receive),
        // It keeps none, or is of an earlier version.
        Ok(_) => return None,
        Err(error) => Err(error),
    };
    match received {
        Ok(dek) => Some(dek),
        Err(error) => {
            tracing::warn!(%error, "the worker does not hand back the key of the disk");
            None
        }
    }
}
