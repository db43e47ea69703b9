//! Disks that are nowhere but here: the worker makes the key, keeps it to
//! itself, and with the worker all that was on the disk is gone.
//!
//! A guest that has such a disk must not find it empty all of a sudden, under
//! its mounted file system. So the next worker of it, which has neither key nor
//! data, serves it as *lost*: every request fails, until somebody detaches it.
//! After a restart of the host there is no such guest, and the disk begins anew,
//! empty. Which of the two it is, the record tells: it says in which boot of the
//! host the disk was served, before its worker is started.
#![forbid(unsafe_code)]

use uuid::Uuid;

use super::{Data, Opened, Supervisor};
use crate::audit::Event;
use crate::config;
use crate::error::{Failure, Kind};
use crate::manager::disks::blocking;
use crate::manager::model::DiskState;
use crate::manager::state::Scratch;
use crate::prepare;
use crate::units::SectorSize;
use crate::vhost::SocketParams;
use crate::volume::{Layout, scratch};
use crate::worker::protocol::Contents;

/// Where the kernel tells one boot of the host from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This boot of the host. One that cannot be told is taken for the same one.
fn boot() -> String {
    let id = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    id.trim().to_owned()
}

fn lost() -> Failure {
    Failure::new(
        Kind::Io,
        "the worker of this ephemeral disk ended, and with it the key: what was on the disk is \
         lost, and all requests fail",
        Some("detach the disk, and attach it again: it is empty then".into()),
    )
}

impl Opened {
    /// Space for an ephemeral disk.
    ///
    /// # Errors
    /// See [`scratch::make`].
    pub fn scratch(
        wanted: &Scratch,
        force: bool,
        disk: &config::Disk,
        serve: &config::Serve,
    ) -> Result<Self, prepare::Error> {
        prepare::check_cpus(serve)?;
        let layout = Layout {
            data_offset: 0,
            size: wanted.size,
            sector_size: SectorSize::from_bytes(wanted.sector_size.into()).unwrap_or_default(),
            iv_tweak: 0,
            // What was never written, or was given back, reads as zeroes.
            zero_units: true,
        };
        let file = scratch::make(&disk.volume, wanted.size, force)?;
        Ok(Opened {
            data: Data::Scratch(file),
            spec: prepare::spec_of(disk, serve, Uuid::new_v4(), layout),
            socket: SocketParams::of(disk, serve),
        })
    }
}

impl Supervisor {
    /// What a next worker is to serve.
    pub(super) fn contents(&self) -> Contents {
        match (&self.record.ephemeral, self.contents_lost) {
            (None, _) => Contents::Volume,
            (Some(_), false) => Contents::Ephemeral,
            (Some(_), true) => Contents::Lost,
        }
    }

    /// The worker is gone.
    pub(super) fn lose_contents(&mut self) {
        if self.record.ephemeral.is_some() && !self.contents_lost {
            tracing::error!("{}", lost());
            self.shared.record(Event::DiskLost {
                disk: &self.record.name,
                path: &self.record.volume,
            });
            self.contents_lost = true;
        }
    }

    /// What people are shown of a disk that is served without contents.
    pub(super) fn show_loss(&self) {
        if self.contents_lost {
            self.entry.fail(DiskState::Failed, &lost());
        }
    }

    /// There is no worker of a disk that is on record: whoever had it in this
    /// boot has lost it, and nobody has it from an earlier one.
    pub(super) fn look_at_boot(&mut self) {
        let served_in = self.record.ephemeral.as_ref();
        let Some(served_in) = served_in.map(|scratch| scratch.served_in.clone()) else {
            return;
        };
        if served_in.is_some_and(|then| then == boot()) {
            self.lose_contents();
        } else {
            // On record before its worker is started.
            self.recorded = false;
        }
    }

    /// Notes on the record in which boot the disk is served.
    pub(super) fn note_boot(&mut self) {
        if let Some(scratch) = &mut self.record.ephemeral {
            scratch.served_in = Some(boot());
        }
    }

    /// A worker could not be started: the next one gets space that nobody had.
    pub(super) fn begin_afresh(&mut self) {
        if self.record.ephemeral.is_some() && !self.served_before && !self.contents_lost {
            self.entry.forget_volume();
            self.held = None;
        }
    }

    /// Gives the space of an ephemeral disk back, which nobody can read any more.
    pub(super) async fn give_back_space(&self) {
        if let (Some(_), Some(held)) = (&self.record.ephemeral, self.held.clone()) {
            let given = blocking(move || scratch::give_back(&held.files.data)).await;
            if let Err(failure) = given {
                tracing::warn!("the space of an ephemeral disk: {failure}");
            }
        }
    }
}
