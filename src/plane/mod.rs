//! The data plane of one disk: a cipher, a store and a socket, put together
//! and served until it is told to stop.
//!
//! What enters: opened files, a listening socket, the data encryption key, and
//! a [`Spec`] that says what to make of them. `serve` and the worker processes
//! share it. Nothing here opens a path, knows formats or key sets, or decides
//! when to end.
#![forbid(unsafe_code)]

pub mod moving;
mod spec;

pub use spec::Spec;
#[cfg(test)]
pub(crate) use spec::tests::sample as sample_spec;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::crypt::{self, SectorCipher, Transform};
use crate::engine::stats::{self, Stats};
use crate::engine::{Disk, DiskParams};
use crate::error::{Explain, Kind, io_kind};
use crate::secret::Dek;
use crate::store::Store;
use crate::units::Bytes;
use crate::vhost::{Ended, Exported, Notices, Rest, Server, Stopper};

/// A queue without work for so long gives back its buffers. To take them again
/// takes some tenths of a millisecond.
const REST_AFTER: Duration = Duration::from_secs(30);

/// Why a disk is not served any more, or was not served well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was written is not known to be on the disk below.
    #[error("what guests wrote last to {path} may be lost")]
    NotDurable {
        /// The volume.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Front ends cannot be accepted any more.
    #[error("a socket failed")]
    Socket(#[source] io::Error),
    /// The kernel has failed a ring, and the walls let no other be made.
    #[error("the io_uring of a queue is lost")]
    Ring(#[source] io::Error),
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::NotDurable { .. } => Kind::Io,
            Error::Socket(source) | Error::Ring(source) => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::NotDurable { .. } => "check the disk below, for example with `dmesg`; then let \
                 the guest check its file systems"
                .into(),
            Error::Socket(_) => "check the limits of the process (`ulimit -a`)".into(),
            Error::Ring(_) => {
                "look at the log of the kernel (`dmesg`), and serve the disk anew".into()
            }
        })
    }
}

/// Makes a disk that can be served, and that counts what it does in `stats`.
///
/// # Errors
/// When the cipher engine fails its known answers or has no memory for keys.
pub fn disk(spec: &Spec, store: Store, dek: &Dek, stats: Stats) -> Result<Disk, crypt::Error> {
    let params = crypt::Params {
        sector_size: spec.sector_size,
        iv_tweak: spec.iv_tweak,
        zero_units: spec.zero_units,
    };
    let cipher = SectorCipher::new(spec.engine, dek, params)?;
    Ok(disk_of(spec, store, Transform::Cipher(cipher), stats))
}

/// The same with data that is stored as `transform` says.
pub fn disk_of(spec: &Spec, store: Store, transform: Transform, stats: Stats) -> Disk {
    Disk::new(DiskParams {
        transform,
        store,
        bytes: spec.size,
        read_only: spec.read_only,
        discard: spec.discard,
        serial: spec.serial_bytes(),
        num_queues: spec.queues,
        cpus: spec.cpus.clone(),
        queue_size: spec.queue_size,
        write_cache: spec.write_cache,
        poll: spec.poll(),
        rest_after: REST_AFTER,
        stats,
        rate_limits: spec.limits.clone(),
        on_error: spec.on_error,
        stuck_after: Duration::from_millis(spec.stuck_after_ms),
    })
}

/// A disk with the server that gives front ends access to it.
pub struct Plane {
    disk: Arc<Disk>,
    server: Server,
    path: PathBuf,
}

impl Plane {
    /// `server` serves `disk`, the data of the volume at `path`.
    pub fn new(disk: Arc<Disk>, server: Server, path: PathBuf) -> Self {
        Plane { disk, server, path }
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// What ends it.
    pub fn stopper(&self) -> Stopper {
        self.server.stopper()
    }

    /// What front ends are told of, and have read.
    pub fn notices(&self) -> Arc<Notices> {
        self.server.notices()
    }

    /// What has it come to rest, for another process to go on.
    pub fn rest(&self) -> Rest {
        self.server.rest()
    }

    /// Takes over the session of another process: see [`Server::take_over`].
    ///
    /// # Errors
    /// When it cannot be one of this disk, or cannot be served here.
    pub fn take_over(&self, exported: Exported) -> io::Result<()> {
        self.server.take_over(exported)
    }

    /// Serves front ends until stopped, and then makes durable what they wrote. One
    /// that was handed over is left as it is: what was written is as durable as it
    /// was, and whoever goes on answers for it.
    ///
    /// # Errors
    /// When that fails, or front ends cannot be accepted any more.
    pub fn run(&self) -> Result<(), Error> {
        let failed = |error| match self.disk.crew().has_lost() {
            true => Error::Ring(error),
            false => Error::Socket(error),
        };
        if self.server.run().map_err(failed)? == Ended::HandedOver {
            tracing::info!("handed over");
            return Ok(());
        }
        let synced = self.disk.sync_now();
        let done = self.disk.stats().snapshot();
        let total = done.total();
        tracing::info!(
            requests = total.requests,
            errors = total.errors,
            read = %Bytes(done.requests(stats::Kind::Read).bytes),
            written = %Bytes(done.requests(stats::Kind::Write).bytes),
            "served"
        );
        synced.map_err(|source| Error::NotDurable {
            path: self.path.clone(),
            source,
        })
    }
}
