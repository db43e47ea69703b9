//! Other limits for a disk, while it is served or waits for that.
#![forbid(unsafe_code)]

use std::io;

use tokio::sync::oneshot;

use super::Supervisor;
use crate::config::Limits;
use crate::engine::throttle;
use crate::error::{Failure, Kind, io_kind};
use crate::manager::disks::{blocking, resolve};
use crate::manager::model::DiskInfo;
use crate::manager::state::Record;
use crate::manager::worker_process::Worker;
use crate::worker::parcel::Parcel;
use crate::worker::protocol::{Answer, Request};

/// Who is told what became of other limits.
pub type Limited = oneshot::Sender<Result<DiskInfo, Failure>>;

impl Supervisor {
    /// Gives the disk other limits: on record first, so that they outlive
    /// whatever happens next, and then in its worker, if there is one.
    pub(super) async fn limit(
        &mut self,
        worker: Option<&mut Worker>,
        wanted: Limits,
        reply: Limited,
    ) {
        let outcome = self.try_limit(worker, wanted).await;
        if let Err(failure) = &outcome {
            tracing::warn!("the limits of the disk: {failure}");
        }
        // Who asked may not be waiting any more.
        let _ = reply.send(outcome.map(|()| self.entry.info()));
    }

    async fn try_limit(
        &mut self,
        worker: Option<&mut Worker>,
        wanted: Limits,
    ) -> Result<(), Failure> {
        // By themselves, too, they have to make sense.
        wanted.resolve()?;
        let mut record = self.record.clone();
        record.options.limits = wanted.clone().over(record.options.limits);
        let limits = match self.held {
            Some(_) => wanted.over(Limits::of(&self.limits)).resolve()?,
            None => resolve(&record, &self.shared.serve())?.1.limits,
        };
        if self.recorded {
            let (shared, written) = (self.shared.clone(), record.clone());
            blocking(move || shared.state.write(&written)).await??;
        }
        self.record = record;
        self.limits = limits;
        let shown = Limits::of(&self.limits);
        tracing::info!(limits = %shown, "the disk has other limits");
        self.entry.update(|info| info.limits = shown);
        match worker {
            Some(worker) => tell(worker, &self.limits).await,
            None => Ok(()),
        }
    }

    /// Lets a worker that was taken over know limits that were put on record,
    /// and that it was perhaps not told of. One that does not take them is
    /// served on as it is.
    pub(super) async fn remind(&mut self, worker: &mut Worker) {
        let wanted = limits_on_record(&self.record, &self.limits);
        if wanted == self.limits {
            return;
        }
        if let Err(failure) = tell(worker, &wanted).await {
            tracing::warn!("the limits of the disk: {failure}");
            return;
        }
        self.limits = wanted;
        let shown = Limits::of(&self.limits);
        self.entry.update(|info| info.limits = shown);
    }
}

/// What the record says, and of what it says nothing, what `running` says.
fn limits_on_record(record: &Record, running: &throttle::Limits) -> throttle::Limits {
    let on_record = record.options.limits.clone();
    let wanted = on_record.over(Limits::of(running)).resolve();
    wanted.unwrap_or_else(|_| running.clone())
}

async fn tell(worker: &mut Worker, limits: &throttle::Limits) -> Result<(), Failure> {
    const LATER: &str = "they are on record, and hold when the disk is served by a new worker: \
                         detach it and attach it again, or end its process";
    let request = Request::Limit {
        limits: limits.clone(),
    };
    let failed = |kind, what: String| {
        let message = format!("the worker has not taken the limits: {what}");
        Err(Failure::new(kind, message, Some(LATER.into())))
    };
    match worker.link.call(request, Parcel::default()).await {
        Ok((Answer::Status { .. }, _)) => Ok(()),
        Ok((Answer::Failed { fault }, _)) => failed(fault.kind, fault.message),
        Ok(_) => failed(Kind::Unsupported, "it is of an earlier version".into()),
        Err(error) => failed(io_kind(&error), io::Error::to_string(&error)),
    }
}
