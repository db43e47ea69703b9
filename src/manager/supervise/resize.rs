//! Another size for a disk, while it is served or waits for that.
//!
//! The order, of which each step is done before the next one begins:
//!
//! 1. the data file gets longer, durably ([`Step::Extended`]);
//! 2. the header says the new size ([`Step::HeaderResized`]), which is the
//!    moment at which the disk has it, for good;
//! 3. the worker serves it, and tells the front end ([`Step::Resized`]).
//!
//! A crash before 2 leaves a file that is longer than the volume: nobody sees
//! that, and the same request finishes it. After 2 a new worker, and a new
//! manager's look at a worker that it finds, go by the header
//! ([`Supervisor::catch_up`]). Nothing is on record beside that.
#![forbid(unsafe_code)]

use std::io;

use tokio::sync::oneshot;

use super::Supervisor;
use crate::error::{Failure, Kind, io_kind};
use crate::manager::disks::{Step, blocking, no_header};
use crate::manager::model::{DiskInfo, NewSize};
use crate::manager::worker_process::Worker;
use crate::units::Bytes;
use crate::volume::Volume;
use crate::worker::parcel::Parcel;
use crate::worker::protocol::{Answer, Request};

/// Who is told what became of another size.
pub type Resized = oneshot::Sender<Result<DiskInfo, Failure>>;

impl Supervisor {
    /// Makes the disk larger: its file, its header, and then its worker, if
    /// there is one.
    pub(super) async fn resize(
        &mut self,
        worker: Option<&mut Worker>,
        wanted: NewSize,
        reply: Resized,
    ) {
        let outcome = self.try_resize(worker, wanted).await;
        if let Err(failure) = &outcome {
            tracing::warn!("the size of the disk: {failure}");
        }
        // Who asked may not be waiting any more.
        let _ = reply.send(outcome.map(|()| self.entry.info()));
    }

    async fn try_resize(
        &mut self,
        worker: Option<&mut Worker>,
        wanted: NewSize,
    ) -> Result<(), Failure> {
        let Some(held) = self.held.clone() else {
            return Err(Failure::new(
                Kind::Busy,
                "the volume of the disk is not open",
                Some("wait until the disk is running".into()),
            ));
        };
        if self.record.ephemeral.is_some() {
            return Err(no_header(&self.record.name));
        }
        if self.freezing.is_some() {
            return Err(Failure::new(
                Kind::Busy,
                "the disk is frozen for a snapshot, which its header is a part of",
                Some("thaw it first (`sealblk thaw`), or wait until its time is over".into()),
            ));
        }
        if held.spec.read_only {
            return Err(Failure::new(
                Kind::Usage,
                "the disk is attached read-only",
                Some("detach it, and attach it without read_only".into()),
            ));
        }
        // Nobody else rewrites the header meanwhile.
        let header = self.entry.header.lock().await;
        let (shared, of) = (self.shared.clone(), held.clone());
        let grown = blocking(move || -> Result<u64, Failure> {
            let mut volume = of.volume()?;
            let size = decide(&volume, &wanted)?;
            volume.extend(size, wanted.preallocate)?;
            shared.settings.step(Step::Extended);
            volume.set_size(size)?;
            shared.settings.step(Step::HeaderResized);
            Ok(size)
        });
        let size = grown.await??;
        drop(header);
        // Its header was read when it had another size.
        self.fresh = None;
        tracing::info!(size = %Bytes(size), "the disk has another size");
        self.serve_size(worker, size).await?;
        self.shared.settings.step(Step::Resized);
        Ok(())
    }

    /// Has workers serve a size that the header says by now.
    async fn serve_size(&mut self, worker: Option<&mut Worker>, size: u64) -> Result<(), Failure> {
        if let Some(held) = &self.held {
            held.set_size(size);
        }
        let told = match worker {
            Some(worker) => tell(worker, size).await,
            None => Ok(None),
        };
        if told.is_ok() {
            self.entry.update(|info| info.size = Some(size));
        }
        if let Ok(Some(status)) = &told {
            self.entry.set_status(*status);
        }
        told.map(drop)
    }

    /// Lets a worker that was taken over know of a size that was written into
    /// the header, and that it was perhaps not told of.
    pub(super) async fn catch_up(&mut self, worker: &mut Worker) {
        let has_header = self.record.ephemeral.is_none();
        let held = self.held.clone();
        let Some(held) = held.filter(|held| has_header && !held.spec.read_only) else {
            return;
        };
        let header = self.keep_header().await;
        let read = blocking({
            let held = held.clone();
            move || held.volume().map(|volume| volume.layout().size)
        });
        let size = match read.await.and_then(|read| read) {
            Ok(size) => size,
            Err(failure) => {
                return tracing::warn!("the header of a disk that is served: {failure}");
            }
        };
        drop(header);
        if size <= held.spec.size {
            return;
        }
        match self.serve_size(Some(worker), size).await {
            Ok(()) => {
                tracing::info!(size = %Bytes(size), "finished what another manager had begun")
            }
            Err(failure) => tracing::warn!("the size of the disk: {failure}"),
        }
    }
}

/// The size that is meant.
fn decide(volume: &Volume, wanted: &NewSize) -> Result<u64, Failure> {
    let now = volume.layout().size;
    let size = match wanted.size {
        Some(size) => size,
        None => volume.room()?,
    };
    match size < now {
        true => Err(Failure::new(
            Kind::Refused,
            format!(
                "the disk has {}, and would be cut to {}: a disk that is attached can only grow",
                Bytes(now),
                Bytes(size)
            ),
            Some(
                "let the guest give up that space, detach the disk, and use `sealblk volume resize \
                 --shrink`"
                    .into(),
            ),
        )),
        false => Ok(size),
    }
}

async fn tell(
    worker: &mut Worker,
    size: u64,
) -> Result<Option<crate::worker::protocol::Status>, Failure> {
    const LATER: &str = "the volume has the new size, and a new worker serves it: detach the disk \
                         and attach it again, or end its process";
    let failed = |kind, what: String| {
        let message = format!("the worker has not taken the new size: {what}");
        Err(Failure::new(kind, message, Some(LATER.into())))
    };
    let request = Request::Resize { size };
    match worker.link.call(request, Parcel::default()).await {
        Ok((Answer::Status { status }, _)) => Ok(Some(status)),
        Ok((Answer::Failed { fault }, _)) => failed(fault.kind, fault.message),
        Ok(_) => failed(Kind::Unsupported, "it is of an earlier version".into()),
        Err(error) => failed(io_kind(&error), io::Error::to_string(&error)),
    }
}
