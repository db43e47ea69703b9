//! Towards a disk that is served: the worker that is there already, or else
//! the volume, its key, its place on record, its socket, and a new worker.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::{Data, Opened, Retry, Supervisor, Trouble, Under};
use crate::config;
use crate::engine::hold::Mode;
use crate::error::{Failure, Kind};
use crate::keys::{self, Context};
use crate::kms::Class;
use crate::manager::adopt::{self, Found};
use crate::manager::disks::{Step, blocking, identities, resolve, system};
use crate::manager::held::{FrontEnds, Held, KeyFacts};
use crate::manager::state::Record;
use crate::manager::worker_process::{self, Plan, Worker, control_path};
use crate::prepare::{self, Opening};
use crate::secret::Dek;
use crate::vhost::{Listener, SocketParams};
use crate::volume::{self, Volume};
use crate::worker::protocol::Contents;

/// Nothing changes until somebody mends it.
fn later(failure: impl Into<Failure>) -> Trouble {
    Trouble {
        failure: failure.into(),
        retry: Retry::Later,
    }
}

impl Opened {
    /// `volume`, to be served as `disk` and `serve` say.
    pub fn new(volume: Volume, disk: &config::Disk, serve: &config::Serve) -> Self {
        Opened {
            spec: prepare::spec(disk, serve, &volume),
            socket: SocketParams::of(disk, serve),
            data: Data::Volume(Box::new(volume)),
        }
    }
}

impl Supervisor {
    /// Looks for a worker that an earlier manager started, or to which the
    /// connection broke. Nothing: there is none, for certain.
    pub(super) async fn look_for_worker(&mut self) -> Result<Option<Worker>, Trouble> {
        let control = control_path(&self.shared.workers, &self.record);
        match adopt::adopt(&control, Some(&self.record)).await {
            Ok(Some(found)) => {
                let mut worker = self.take_over(found);
                self.remind(&mut worker).await;
                self.catch_up(&mut worker).await;
                self.catch_up_moving(&mut worker).await;
                Ok(Some(worker))
            }
            Ok(None) => {
                self.maybe_alive = false;
                if let Some(process) = self.lost.take() {
                    // It lives, or did until now, and nobody can reach it. The
                    // lock does not keep it from the volume: that is ours both.
                    process.kill();
                    process.ended().await;
                }
                self.look_at_boot();
                // All workers have been looked for, as far as this disk goes.
                self.tell_begun();
                Ok(None)
            }
            Err(failure) => Err(Trouble {
                failure,
                retry: Retry::Soon(None),
            }),
        }
    }

    /// Takes over a worker with all that it had.
    pub(super) fn take_over(&mut self, found: Found) -> Worker {
        let held = Arc::new(found.held);
        self.entry.set_volume(held.clone(), &found.key);
        self.limits = held.spec.limits.clone();
        self.mode = found.worker.status.mode;
        if self.mode == Mode::Run {
            self.entry.set_believed();
        }
        self.held = Some(held);
        self.key = Some(found.key);
        self.front_ends = Some(Arc::new(found.front_ends));
        self.dek = found.dek.map(Arc::new);
        self.contents_lost = found.contents == Contents::Lost;
        self.maybe_alive = false;
        self.lost = None;
        self.behind = true;
        tracing::info!(pid = found.worker.process.pid, "took over a worker");
        found.worker
    }

    /// A volume that was opened just now.
    pub(super) fn hold(&mut self, opened: Opened) -> Result<(), Failure> {
        let Opened { data, spec, socket } = opened;
        let (held, key, fresh) = match data {
            Data::Volume(volume) => {
                self.shared.marks.check(&volume)?;
                let held = Held::of(&volume, spec, self.record.standing);
                (held, KeyFacts::of(&volume), Some(*volume))
            }
            Data::Scratch(file) => {
                let held = Held::scratch(file, self.record.volume.clone(), spec);
                (held, KeyFacts::default(), None)
            }
        };
        let held = Arc::new(held.map_err(system("cannot keep the volume open"))?);
        self.entry.set_volume(held.clone(), &key);
        self.limits = held.spec.limits.clone();
        self.held = Some(held);
        self.key = Some(key);
        self.socket = Some(socket);
        self.fresh = fresh;
        self.shared.settings.step(Step::Opened);
        Ok(())
    }

    /// The volume and its key, and leave to start a worker. May be given up
    /// at any time: nothing has come of it by then.
    pub(super) async fn obtain(&mut self) -> Result<OwnedSemaphorePermit, Trouble> {
        if self.held.is_none() {
            self.open().await?;
        }
        let permit = self.shared.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|_| {
            later(Failure::new(
                Kind::Internal,
                "nothing is attached any more",
                None,
            ))
        })?;
        if self.contents_lost {
            self.give_back_space().await;
        }
        if self.dek.is_none() && self.record.ephemeral.is_none() {
            self.unwrap().await?;
        }
        Ok(permit)
    }

    async fn open(&mut self) -> Result<(), Trouble> {
        let (disk, serve) = resolve(&self.record, &self.shared.serve()).map_err(later)?;
        let scratch = self.record.ephemeral.clone();
        let standing = self.record.standing;
        let opened = blocking(move || -> Result<_, prepare::Error> {
            if let Some(scratch) = scratch {
                let opened = Opened::scratch(&scratch, false, &disk, &serve)?;
                let paths = [&disk.volume].into_iter().filter(|path| !path.is_dir());
                return Ok((opened, identities(paths.map(PathBuf::as_path))));
            }
            let volume = prepare::open_as(&disk, &serve, standing)?;
            let paths = [Some(&disk.volume), disk.header.as_ref()];
            let files = identities(paths.into_iter().flatten().map(PathBuf::as_path));
            Ok((Opened::new(volume, &disk, &serve), files))
        });
        let (opened, files) = opened.await.map_err(later)?.map_err(|error| Trouble {
            retry: when(&error),
            failure: error.into(),
        })?;
        self.entry.set_files(files);
        self.hold(opened).map_err(later)
    }

    pub(super) async fn unwrap(&mut self) -> Result<(), Trouble> {
        let volume = match (self.fresh.take(), &self.held) {
            (Some(volume), _) => volume,
            (None, Some(held)) => {
                let held = held.clone();
                // Not while somebody rewrites it: the lock of the file is ours both.
                let _alone = self.keep_header().await;
                let read = blocking(move || held.volume()).await.map_err(later)?;
                read.map_err(later)?
            }
            (None, None) => return Ok(()),
        };
        let asked = match self.served_before {
            true => super::of_manager(),
            false => self.context.clone(),
        };
        let context = Context {
            volume: Some(volume.uuid()),
            ..asked
        };
        let keys = self.shared.keys.clone();
        let opening = self.opening.clone();
        let opening = opening.unwrap_or_else(|| on_record(&self.record));
        let opened = prepare::unwrap(&keys, &context, &volume, &opening)
            .await
            .map_err(|error| Trouble {
                retry: when(&error),
                failure: error.into(),
            })?;
        // It takes the time of a thousand hashes.
        let proven = blocking(move || {
            volume.verify_dek(&opened.dek)?;
            let key = KeyFacts::new(&volume.token().key_set, &opened.wraps)
                .opened_by(&opened.wraps, opened.wrap);
            let moving = Under::of(&volume, &opened.dek)?;
            Ok::<_, Failure>((opened.dek, key, moving))
        });
        let (dek, key, moving) = proven.await.map_err(later)?.map_err(later)?;
        self.moving = moving;
        self.entry.set_key(&key);
        self.entry.set_believed();
        self.key = Some(key);
        self.dek = Some(Arc::new(dek));
        self.shared.settings.step(Step::Unwrapped);
        Ok(())
    }

    /// Has the disk on record, makes its socket, and starts its worker.
    pub(super) async fn launch(&mut self, permit: OwnedSemaphorePermit) -> Result<Worker, Trouble> {
        self.put_on_record().await.map_err(later)?;
        self.bind().await?;
        self.look_for_the_end().await?;
        self.forget_what_has_ended().await;
        let (mode, frozen_ms) = (self.mode_at_start(), self.frozen_at_start());
        // The worker of an ephemeral disk makes its key.
        let has_key = self.dek.is_some() || self.record.ephemeral.is_some();
        let plan = self.plan(mode, frozen_ms, self.dek.clone());
        let (Some(plan), true) = (plan, has_key) else {
            let what = "a worker was to be started without a volume or its key";
            return Err(later(Failure::new(Kind::Internal, what, None)));
        };
        let started = worker_process::start(plan, &self.shared.settings).await;
        drop(permit);
        started.map_err(|failure| Trouble {
            failure,
            retry: Retry::Restart,
        })
    }

    /// What a next worker is made of.
    pub(super) fn plan(
        &self,
        mode: Mode,
        frozen_ms: Option<u64>,
        dek: Option<Arc<Dek>>,
    ) -> Option<Plan> {
        Some(Plan {
            record: self.record.clone(),
            held: self.held.clone()?,
            key: self.key.clone()?,
            limits: self.limits.clone(),
            mode,
            frozen_ms,
            front_ends: self.front_ends.clone()?,
            dek,
            contents: self.contents(),
            to_move: self.to_move(),
            control: control_path(&self.shared.workers, &self.record),
            program: self.program.clone(),
        })
    }

    /// Writes down that the disk shall be served.
    pub(super) async fn put_on_record(&mut self) -> Result<(), Failure> {
        if !self.recorded && self.may_record {
            self.note_boot();
            let (shared, record) = (self.shared.clone(), self.record.clone());
            blocking(move || shared.state.write(&record)).await??;
            self.recorded = true;
            self.shared.settings.step(Step::Recorded);
        }
        Ok(())
    }

    async fn bind(&mut self) -> Result<(), Trouble> {
        if self.front_ends.is_some() {
            return Ok(());
        }
        let params = match self.socket.clone() {
            Some(params) => params,
            None => {
                let (disk, serve) = resolve(&self.record, &self.shared.serve()).map_err(later)?;
                SocketParams::of(&disk, &serve)
            }
        };
        let bound = blocking(move || -> Result<_, Failure> {
            let released = Listener::bind(&params)?.release();
            released.map_err(system("cannot copy a descriptor"))
        });
        let (socket, file) = bound.await.map_err(later)?.map_err(later)?;
        self.front_ends = file.map(|file| Arc::new(FrontEnds { socket, file }));
        self.shared.settings.step(Step::Bound);
        Ok(())
    }
}

/// What a disk is opened with that nobody just asked for. A key that is denied
/// is then never got around.
fn on_record(record: &Record) -> Opening {
    Opening {
        access: match record.break_glass {
            true => keys::Access::BreakGlass,
            false => keys::Access::OwnKeySet,
        },
        recovery: None,
    }
}

/// When what failed is worth trying again.
fn when(error: &prepare::Error) -> Retry {
    match error {
        prepare::Error::Key { source, .. } => match source.class() {
            Some(Class::Unreachable | Class::Sealed) => Retry::Soon(None),
            Some(Class::Throttled { retry_after }) => Retry::Soon(retry_after),
            Some(Class::Denied(_)) => Retry::Denied,
            _ => Retry::Later,
        },
        // By a worker that is just ending, perhaps.
        prepare::Error::Volume(volume::Error::Busy { .. } | volume::Error::Dying(_)) => {
            Retry::Soon(None)
        }
        _ => Retry::Later,
    }
}
