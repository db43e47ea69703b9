//! The life of a worker process.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rustix::event::Timespec;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::connection::Connection;
use super::control::{Control, Estate};
use super::freeze::Freezer;
use super::hygiene;
use super::moving::{self, Mover};
use super::news::{Memo, News};
use super::parcel::{Parcel, Role};
use super::protocol::{Answer, Contents, Fault, Request, Start, Status};
use crate::engine::Disk;
use crate::engine::stats::Stats;
use crate::error::{Failure, Kind, io_kind};
use crate::logging;
use crate::plane::{self, Plane};
use crate::secret::Dek;
use crate::store::Store;
use crate::vhost::{Listener, Server};

/// How long the manager that started us may take to say what to serve.
const PATIENCE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// Is a worker, until the disk has been served.
///
/// # Errors
/// When no manager started this process, or the disk cannot be served.
pub fn run() -> Result<(), Failure> {
    if !hygiene::is_started_by_manager() {
        return Err(Failure::new(
            Kind::Usage,
            "a worker is started by the manager, for a disk that is attached",
            Some(
                "run `sealblk attach`, or `sealblk serve` to serve a volume without a manager"
                    .into(),
            ),
        ));
    }
    let connection = hygiene::take_connection()
        .and_then(|socket| hygiene::close_up().map(|()| socket))
        .and_then(|socket| Connection::greet(socket, false))
        .map_err(failed("a worker cannot begin"))?;
    let Some((id, start, parcel)) = await_start(&connection).map_err(failed("no disk to serve"))?
    else {
        // The manager has ended or changed its mind. There is nothing to tell.
        return Ok(());
    };
    logging::init(start.log);
    hygiene::show_name(&start.name);
    let span = tracing::error_span!("disk", name = start.name, path = %start.volume.display());
    let _span = span.entered();
    let (control, plane) = match prepare(connection, start, parcel) {
        Ok(prepared) => prepared,
        Err((connection, failure)) => {
            let fault = Fault::from(&failure);
            let answer = Answer::Failed { fault };
            let _ = connection.answer(id, answer, &Parcel::default());
            return Err(failure);
        }
    };
    serve(id, control, plane)
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::new(io_kind(&error), format!("{what}: {error}"), None)
}

/// What to serve, or nothing when the manager closes the connection.
fn await_start(connection: &Connection) -> io::Result<Option<(u64, Start, Parcel)>> {
    loop {
        connection.wait(PATIENCE)?;
        match connection.next_call() {
            Ok(None) => return Ok(None),
            Ok(Some((call, parcel))) => match call.request {
                Request::Start(start) => return Ok(Some((call.id, *start, parcel))),
                _ => connection.answer(call.id, Answer::Unsupported, &Parcel::default())?,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Puts the disk together.
#[allow(clippy::result_large_err, reason = "once in a process")]
fn prepare(
    connection: Connection,
    start: Start,
    parcel: Parcel,
) -> Result<(Control, Plane), (Connection, Failure)> {
    let manager_uid = match connection.peer_uid() {
        Ok(uid) => uid,
        Err(error) => return Err((connection, failed("who is the manager?")(error))),
    };
    match build(start, parcel) {
        Ok(parts) => {
            let control = Control {
                manager: Some(connection),
                manager_uid,
                managers: parts.managers,
                signals: parts.signals,
                news: parts.news,
                estate: parts.estate,
                disk: parts.disk,
                notices: parts.plane.notices(),
                stopper: parts.plane.stopper(),
                stopping: false,
                stop_call: None,
                freezer: parts.freezer,
                freeze_call: None,
                mover: parts.mover,
            };
            Ok((control, parts.plane))
        }
        Err(failure) => Err((connection, failure)),
    }
}

struct Parts {
    managers: OwnedFd,
    signals: UnixStream,
    news: Arc<News>,
    estate: Estate,
    disk: Arc<Disk>,
    plane: Plane,
    freezer: Freezer,
    mover: Mover,
}

fn build(start: Start, mut parcel: Parcel) -> Result<Parts, Failure> {
    let broken = || failed("what the manager sent cannot be served");
    let spec = &start.spec;
    let files = parcel.take_all(Role::Queue);
    if files.len() != usize::from(spec.queues) {
        let what = format!("{} queues came for {}", files.len(), spec.queues);
        return Err(broken()(io::Error::other(what)));
    }
    let files = files.into_iter().map(File::from).collect();
    let store = Store::of(files, (spec.data_offset, spec.size), start.direct);
    let dek = match start.contents {
        Contents::Volume => parcel.need(Role::Dek).and_then(Dek::receive),
        // That of a lost disk encrypts nothing.
        Contents::Ephemeral | Contents::Lost => Dek::generate(),
    };
    let dek = dek.map_err(broken())?;
    // One manager or another reads what is counted there.
    let stats = match parcel.take(Role::Statistics) {
        Some(memory) => {
            let stats = Stats::attach(memory.as_fd(), spec.queues).or_else(|error| {
                tracing::warn!(%error, "nobody can read the statistics of this disk");
                Stats::private(spec.queues)
            })?;
            parcel.add(Role::Statistics, memory);
            stats
        }
        None => Stats::private(spec.queues)?,
    };
    // What a crash has left is brought to rest before anybody is served.
    let (mut disk, ready) = match &start.moving {
        None => (plane::disk(spec, store, &dek, stats)?, None),
        Some(task) => {
            let mut ready = moving::recover(spec, task, &dek, &mut parcel)?;
            let old = ready.old_transform();
            let old = old.ok_or_else(|| broken()(io::ErrorKind::NotFound.into()))?;
            (plane::disk_of(spec, store, old, stats), Some(ready))
        }
    };
    if start.contents == Contents::Lost {
        disk = disk.without_contents();
    }
    // A key that was made here stays here.
    let keep_dek = start.keep_dek && start.contents == Contents::Volume;

    let news = News::new().map_err(broken())?;
    let memo = parcel.need(Role::Memo).map_err(broken())?;
    let managers = parcel.need(Role::Managers).map_err(broken())?;
    let front_ends = parcel.need(Role::FrontEnds).map_err(broken())?;
    // The estate is what the parcel still has, and these two.
    parcel.share(Role::Memo, &memo).map_err(broken())?;
    parcel
        .share(Role::FrontEnds, &front_ends)
        .map_err(broken())?;
    let memo = Memo::new(memo);
    let has_failed = memo.has_failed().map_err(broken())?;
    let disk = Arc::new(disk.remembering(has_failed, {
        let news = news.clone();
        Box::new(move || {
            memo.note();
            news.changed();
        })
    }));
    // Before there is a front end.
    disk.hold().set(start.mode);
    let mut freezer = Freezer::new(disk.clone(), news.clone());
    if let Some(timeout_ms) = start.frozen_ms {
        freezer.begin(timeout_ms)?;
    }
    let mover = Mover::new(disk.clone(), news.clone());
    let mover = match ready {
        Some(ready) => mover.with(ready)?,
        None => mover,
    };
    let server = Server::new(disk.clone(), Listener::received(front_ends))
        .map_err(failed("cannot make an eventfd"))?
        .telling({
            let news = news.clone();
            Box::new(move |connected| news.front_end(connected))
        });
    server.notices().on_change({
        let news = news.clone();
        Box::new(move || news.changed())
    });
    let signals = signals().map_err(failed("cannot handle signals"))?;
    Ok(Parts {
        managers,
        signals,
        news,
        freezer,
        mover,
        disk: disk.clone(),
        plane: Plane::new(disk, server, start.volume.clone()),
        estate: Estate {
            dek: keep_dek.then_some(dek),
            start,
            parcel,
        },
    })
}

/// Is readable when somebody wants this process to end.
fn signals() -> io::Result<UnixStream> {
    let (signals, write) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        pipe::register(signal, write.try_clone()?)?;
    }
    Ok(signals)
}

/// Serves until the end, which is told to the manager last of all.
fn serve(id: u64, control: Control, plane: Plane) -> Result<(), Failure> {
    let news = control.news.clone();
    let span = tracing::Span::current();
    thread::Builder::new()
        .name("disk".into())
        .spawn(move || {
            let _span = span.entered();
            let panicked = Failure::new(Kind::Internal, "the thread of the disk panicked", None);
            let mut end = Ender {
                news,
                fault: Some(Fault::from(&panicked)),
            };
            let plane = plane;
            end.fault = plane.run().err().map(|error| Fault::from(&error.into()));
            // The keys are wiped before anybody is told that it is over.
            drop(plane);
        })
        .map_err(failed("cannot start a thread"))?;
    if let Some(manager) = &control.manager {
        let status = Status {
            sync_failed: control.sync_failed(),
            mode: control.disk.hold().mode(),
            frozen: control.freezer.frozen(),
            ..Status::default()
        };
        // A manager that is gone by now, another will follow.
        let _ = manager.answer(id, Answer::Started { status }, &Parcel::default());
    }
    tracing::info!("serving");
    match control.run() {
        Ok(None) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(Some(fault)) => Err(fault.into()),
        Err(error) => Err(failed("the worker cannot go on")(error)),
    }
}

/// Tells that the data plane has ended, also if its thread panics.
struct Ender {
    news: Arc<News>,
    fault: Option<Fault>,
}

impl Drop for Ender {
    fn drop(&mut self) {
        self.news.ended(self.fault.take());
    }
}
