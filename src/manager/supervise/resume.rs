//! A disk of which something waits because the disk below fails.
#![forbid(unsafe_code)]

use super::{Limited, Supervisor};
use crate::error::{Failure, Kind, io_kind};
use crate::manager::worker_process::Worker;
use crate::worker::parcel::Parcel;
use crate::worker::protocol::{Answer, Request};

impl Supervisor {
    /// Tries what waits, or fails it. What comes of it, the worker says.
    pub(super) async fn resume(&mut self, worker: &mut Worker, give_up: bool, reply: Limited) {
        // Who asked may not be waiting any more.
        let _ = reply.send(self.try_resume(worker, give_up).await);
    }

    async fn try_resume(
        &mut self,
        worker: &mut Worker,
        give_up: bool,
    ) -> Result<super::DiskInfo, Failure> {
        let request = Request::Resume { give_up };
        let answer = worker.link.call(request, Parcel::default()).await;
        let status = match answer {
            Ok((Answer::Status { status }, _)) => status,
            Ok((Answer::Failed { fault }, _)) => return Err(fault.into()),
            Ok(_) => {
                return Err(Failure::new(
                    Kind::Unsupported,
                    "the worker of the disk is of an earlier version: nothing of it waits",
                    None,
                ));
            }
            Err(error) => {
                return Err(Failure::new(
                    io_kind(&error),
                    format!("the worker of the disk does not answer: {error}"),
                    Some("try again".into()),
                ));
            }
        };
        // Older news may be on their way: they are of the same moment, or before it.
        worker.link.forget_news();
        self.entry.set_status(status);
        if status.trouble.is_none() {
            return Err(Failure::new(
                Kind::Refused,
                "nothing of the disk waits for the disk below: it has gone on by itself",
                None,
            ));
        }
        Ok(self.entry.info())
    }
}
