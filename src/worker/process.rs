//! The life of a worker process.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::connection::Connection;
use super::control::{Control, Estate};
use super::freeze::Freezer;
use super::heir;
use super::hygiene;
use super::moving::{self, Mover};
use super::news::{Memo, News};
use super::parcel::{Parcel, Role};
use super::protocol::{Answer, Contents, Fault, Request, Start};
use super::turn::Turn;
use crate::engine::hold::Mode;
use crate::engine::stats::Stats;
use crate::engine::{Crew, Disk, Lookout};
use crate::error::{Failure, Kind, io_kind};
use crate::logging;
use crate::migration::Migration;
use crate::plane::{self, Plane};
use crate::sandbox;
use crate::secret::Dek;
use crate::store::Store;
use crate::vhost::{self, Listener, Server};
use crate::volume::{Files, Location, Tenure};

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
    let told = await_start(&connection).map_err(failed("no disk to serve"))?;
    let Some((id, start, parcel, succeeds)) = told else {
        // The manager has ended or changed its mind. There is nothing to tell.
        return Ok(());
    };
    logging::init_bounded(start.log);
    hygiene::show_name(&start.name);
    vhost::explain_bus_errors(&format!("disk '{}'", start.name))
        .map_err(failed("a worker cannot begin"))?;
    let span = tracing::error_span!("disk", name = start.name, path = %start.volume.display());
    let _span = span.entered();
    if succeeds {
        return heir::run(connection, id, start, parcel);
    }
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

pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::new(io_kind(&error), format!("{what}: {error}"), None)
}

/// What to serve, and whether another process does so far; or nothing when the
/// manager closes the connection.
fn await_start(connection: &Connection) -> io::Result<Option<(u64, Start, Parcel, bool)>> {
    loop {
        connection.wait(PATIENCE)?;
        match connection.next_call() {
            Ok(None) => return Ok(None),
            Ok(Some((call, parcel))) => match call.request {
                Request::Start(start) => return Ok(Some((call.id, *start, parcel, false))),
                Request::Succeed(start) => return Ok(Some((call.id, *start, parcel, true))),
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
    mut parcel: Parcel,
) -> Result<(Control, Plane), (Connection, Failure)> {
    // Before anything is done with what came.
    let report = sandbox::shut_worker(&start.walls);
    if let Err(failure) = report.settle(start.walls.required) {
        return Err((connection, failure));
    }
    let begin = || -> Result<Parts, Failure> {
        let crew = muster(&start)?;
        let turn = parcel.take(Role::Turn).map(Turn::new);
        if let Some(turn) = &turn
            && !turn.take(TURN).map_err(failed("no turn to serve"))?
        {
            return Err(Failure::new(
                Kind::Busy,
                "another process serves the disk",
                Some("end it (`sealblk list` knows one, `fuser` of the volume all)".into()),
            ));
        }
        Ok(Parts {
            turn,
            ..build(start, parcel, &crew, false)?
        })
    };
    match begin() {
        Ok(parts) => parts.into_control(connection),
        Err(failure) => Err((connection, failure)),
    }
}

/// The threads of the queues, and their rings: no others are made from here on, and the
/// last wall stands, before anything that came is looked at.
pub(super) fn muster(start: &Start) -> Result<Arc<Crew>, Failure> {
    let crew = Arc::new(Crew::default());
    let made = crew.muster(start.spec.queues, &start.spec.cpus);
    made.map_err(|error| {
        Failure::new(
            io_kind(&error),
            format!("the io_uring of a queue cannot be made: {error}"),
            Some("see what `sealblk doctor` says of this host".into()),
        )
    })?;
    sandbox::shut_for_good(start.walls.required)?;
    Ok(crew)
}

/// How long to wait for a process that is ending.
const TURN: Duration = Duration::from_secs(1);

impl Parts {
    /// The two halves of a worker.
    #[allow(clippy::result_large_err, reason = "once in a process")]
    pub fn into_control(
        self,
        connection: Connection,
    ) -> Result<(Control, Plane), (Connection, Failure)> {
        let manager_uid = match connection.peer_uid() {
            Ok(uid) => uid,
            Err(error) => return Err((connection, failed("who is the manager?")(error))),
        };
        let Some(managers) = self.managers else {
            let none = io::ErrorKind::NotFound.into();
            return Err((connection, failed("where are managers accepted?")(none)));
        };
        let lookout = Lookout::new(self.disk.clone());
        let control = Control {
            manager: Some(connection),
            manager_uid,
            managers,
            signals: self.signals,
            news: self.news,
            estate: self.estate,
            disk: self.disk,
            notices: self.plane.notices(),
            stopper: self.plane.stopper(),
            stopping: false,
            stop_call: None,
            freezer: self.freezer,
            freeze_call: None,
            mover: self.mover,
            rest: self.plane.rest(),
            turn: self.turn,
            hand_over: None,
            handed_over: None,
            migration: self.migration,
            lookout,
            telling: super::control::TELLING,
        };
        Ok((control, self.plane))
    }
}

/// What a worker is put together from.
pub(super) struct Parts {
    /// Who succeeds another process has that from there.
    pub managers: Option<OwnedFd>,
    pub signals: UnixStream,
    pub news: Arc<News>,
    pub estate: Estate,
    pub disk: Arc<Disk>,
    pub plane: Plane,
    pub freezer: Freezer,
    pub mover: Mover,
    pub migration: Option<Arc<Migration>>,
    pub turn: Option<Turn>,
}

/// Puts a worker together. One that `succeeds` another is paused: it carries out
/// nothing until it is given the mode that it was started with.
pub(super) fn build(
    start: Start,
    mut parcel: Parcel,
    crew: &Arc<Crew>,
    succeeds: bool,
) -> Result<Parts, Failure> {
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
        Contents::Ephemeral if succeeds => parcel.need(Role::Dek).and_then(Dek::receive),
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
            let old = ready.0.old_transform();
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
    let managers = match succeeds {
        true => None,
        false => Some(parcel.need(Role::Managers).map_err(broken())?),
    };
    let front_ends = parcel.need(Role::FrontEnds).map_err(broken())?;
    // The estate is what the parcel still has, and these two.
    parcel.share(Role::Memo, &memo).map_err(broken())?;
    parcel
        .share(Role::FrontEnds, &front_ends)
        .map_err(broken())?;
    let memo = Memo::new(memo);
    let has_failed = memo.has_failed().map_err(broken())?;
    let disk = disk.served_by(crew.clone()).remembering(has_failed, {
        let news = news.clone();
        Box::new(move || {
            memo.note();
            news.changed();
        })
    });
    let disk = disk.telling_trouble({
        let news = news.clone();
        Box::new(move || news.changed())
    });
    let disk = Arc::new(disk);
    // Before there is a front end. One that succeeds another does not even fail
    // requests until it serves: they would be answered that the other one goes on with.
    disk.hold().set(match succeeds {
        true => Mode::Pause,
        false => start.mode,
    });
    let mut freezer = Freezer::new(disk.clone(), news.clone());
    if let Some(timeout_ms) = start.frozen_ms {
        freezer.begin(timeout_ms)?;
    }
    let mover = Mover::new(disk.clone(), news.clone());
    let mover = match ready {
        Some(ready) => mover.with(ready)?,
        None => mover,
    };
    let migration = migration(&start, &disk, &news, &dek, &mut parcel)?;
    let mut server = Server::new(disk.clone(), Listener::received(front_ends))
        .map_err(failed("cannot make an eventfd"))?
        .telling({
            let news = news.clone();
            Box::new(move |connected| news.front_end(connected))
        });
    if let Some(migration) = &migration {
        server = server.claiming(migration.clone());
    }
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
        migration,
        disk: disk.clone(),
        plane: Plane::new(disk, server, start.volume.clone()),
        estate: match start.contents == Contents::Ephemeral {
            true => Estate {
                dek: None,
                own: Some(dek),
                start,
                parcel,
            },
            false => Estate {
                dek: keep_dek.then_some(dek),
                own: None,
                start,
                parcel,
            },
        },
        turn: None,
    })
}

/// What takes the volume and lets it go when a guest moves, where that may be.
fn migration(
    start: &Start,
    disk: &Arc<Disk>,
    news: &Arc<News>,
    dek: &Dek,
    parcel: &mut Parcel,
) -> Result<Option<Arc<Migration>>, Failure> {
    let broken = || failed("what the manager sent cannot be served");
    let tenure = parcel.copy(Role::Tenure).map_err(broken())?;
    let data = parcel.copy(Role::Data).map_err(broken())?;
    let (Some(tenure), Some(data)) = (tenure, data) else {
        return Ok(None);
    };
    let header = parcel.copy(Role::Header).map_err(broken())?;
    let files = Files {
        location: Location {
            data: start.volume.clone(),
            header: header.as_ref().map(|_| "its detached header".into()),
        },
        data: data.into(),
        header: header.map(File::from),
    };
    let news = news.clone();
    let tell = Box::new(move |failure: Option<Failure>| match failure {
        Some(failure) => news.kept(Fault::from(&failure)),
        None => news.changed(),
    });
    let migration = Migration::new(disk.clone(), files, Tenure::of(tenure), tell);
    let migration = migration.map_err(broken())?;
    Ok(Some(Arc::new(migration.proven(dek)?)))
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
pub(super) fn serve(id: u64, control: Control, plane: Plane) -> Result<(), Failure> {
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
        let status = control.status();
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
