//! A worker that goes on with a disk that another process serves, as soon as that
//! one hands it over.
//!
//! All that takes time is done before. Then, in this order: it is given the session;
//! it takes the turn and marks its files; it takes over the session, and its rings
//! run, and carry out nothing; it says that it serves; it carries out what there is.
//! What fails before that leaves the disk with the other process.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::cord::Cord;
use super::news::Memo;
use super::parcel::{Parcel, Role};
use super::peer::{Heir, Peer, Session};
use super::process::{self, Parts, build, failed};
use super::protocol::{Answer, Fault, HAND_OVER, Start};
use super::turn::{self, Turn};
use crate::engine::Crew;
use crate::error::{Failure, Kind};
use crate::sandbox;

/// How long the turn may take to come, from a process that has let go of it or ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// What there is before the session comes.
enum Prepared {
    /// Everything.
    All(Box<Parts>),
    /// Data of the disk is being moved: how far, is known when the other process rests.
    Files(Box<Start>, Parcel),
}

/// Succeeds the worker at the other end of what came with `parcel`.
///
/// # Errors
/// When it cannot. The disk is served by the other process then, as before.
pub fn run(
    connection: Connection,
    id: u64,
    start: Start,
    mut parcel: Parcel,
) -> Result<(), Failure> {
    let tell = |answer| {
        // A manager that is gone by now, another will follow.
        let _ = connection.answer(id, answer, &Parcel::default());
    };
    // While it may: by this, the other process can end this one.
    let cord = Cord::tie();
    // Before anything is done with what came.
    let report = sandbox::shut_worker(&start.walls);
    if let Err(failure) = report.settle(start.walls.required) {
        let fault = Fault::from(&failure);
        tell(Answer::Failed { fault });
        return Err(failure);
    }
    let prepare = |parcel: &mut Parcel| -> Result<(Peer, Turn, Memo), Failure> {
        let lost = || failed("what the manager sent is not enough to go on with a disk");
        let memo = parcel.need(Role::Memo).map_err(lost())?;
        parcel.share(Role::Memo, &memo).map_err(lost())?;
        Ok((
            Peer::new(parcel.need(Role::Peer).map_err(lost())?),
            Turn::new(parcel.need(Role::Turn).map_err(lost())?),
            Memo::new(memo),
        ))
    };
    let prepared = process::muster(&start).and_then(|crew| {
        let tools = prepare(&mut parcel)?;
        let prepared = match start.moving {
            Some(_) => Prepared::Files(Box::new(start), parcel),
            None => Prepared::All(Box::new(build(start, parcel, &crew, true)?)),
        };
        Ok((crew, tools, prepared))
    });
    let (crew, (peer, turn, memo), prepared) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            let fault = Fault::from(&failure);
            tell(Answer::Failed { fault });
            return Err(failure);
        }
    };
    let mut answer = Parcel::default();
    let tied = cord.and_then(|cord| {
        answer.add(Role::Cord, cord.end()?);
        Ok(cord)
    });
    let cord = match tied {
        Ok(cord) => cord,
        Err(error) => {
            let failure = failed("a worker cannot begin")(error);
            let fault = Fault::from(&failure);
            tell(Answer::Failed { fault });
            return Err(failure);
        }
    };
    let prepared_answer = Answer::Prepared { version: HAND_OVER };
    let _ = connection.answer(id, prepared_answer, &answer);
    drop(answer);
    let session = peer.receive();
    let Some(session) = session.map_err(failed("a session cannot be taken over"))? else {
        tracing::info!("nothing is handed over");
        return Ok(());
    };
    let begun = Instant::now();
    let taken =
        take(&turn, &crew, prepared, &memo, session).and_then(|parts| match peer.is_cancelled() {
            false => Ok(parts),
            true => Err(Failure::new(
                Kind::Io,
                "the worker that served the disk does not wait any longer",
                Some("check the load of this host, and try again".into()),
            )),
        });
    let parts = match taken {
        Ok(parts) => parts,
        Err(failure) => {
            let fault = Fault::from(&failure);
            // Everything that was taken went with the attempt, but for this.
            let _ = turn.release();
            let _ = peer.say(
                Heir::Failed {
                    fault: fault.clone(),
                },
                &Parcel::default(),
            );
            tell(Answer::Failed { fault });
            return Err(failure);
        }
    };
    // From here on this process serves, whoever is there to hear it, and nobody ends it.
    drop(cord);
    let _ = peer.say(Heir::Serving, &Parcel::default());
    parts.disk.hold().set(parts.estate.start.mode);
    tracing::info!(took = ?begun.elapsed(), "took over the disk");
    drop(peer);
    let parts = Parts {
        turn: Some(turn),
        ..parts
    };
    match parts.into_control(connection) {
        Ok((control, plane)) => process::serve(id, control, plane),
        Err((_, failure)) => Err(failure),
    }
}

/// Takes the turn, and everything else: the rings run, and carry out nothing.
fn take(
    turn: &Turn,
    crew: &Arc<Crew>,
    prepared: Prepared,
    memo: &Memo,
    session: Session,
) -> Result<Parts, Failure> {
    let locked = || failed("the locks of the disk cannot be taken");
    let busy = || {
        Failure::new(
            Kind::Busy,
            "the worker that served the disk has not let go of it",
            Some("try again".into()),
        )
    };
    if !turn.take(PATIENCE).map_err(locked())? {
        return Err(busy());
    }
    let none = None::<File>;
    let mut parts = match prepared {
        Prepared::All(mut parts) => {
            let marked = parts.disk.shape().read_only
                || turn::mark(parts.disk.store().files(), none, PATIENCE).map_err(locked())?;
            if !marked {
                return Err(busy());
            }
            if let Some(left) = session.frozen_ms {
                parts.freezer.begin(left)?;
            }
            *parts
        }
        Prepared::Files(mut start, parcel) => {
            let (roles, fds) = (parcel.roles(), parcel.fds());
            let of = |wanted: Role| {
                let all = roles.iter().zip(&fds);
                all.filter(move |(role, _)| **role == wanted)
                    .map(|(_, fd)| fd.as_fd())
            };
            let (queues, mover) = (of(Role::Queue), of(Role::Mover).next());
            if !turn::mark(queues, mover, PATIENCE).map_err(locked())? {
                return Err(busy());
            }
            drop(fds);
            start.frozen_ms = session.frozen_ms;
            build(*start, parcel, crew, true)?
        }
    };
    parts.managers = Some(session.managers);
    // It may have failed since this was asked for first.
    if memo.has_failed().map_err(locked())? {
        parts.disk.sync_failed_elsewhere();
    }
    if let Some(exported) = session.exported {
        let taken: io::Result<()> = parts.plane.take_over(exported);
        taken.map_err(failed(
            "the session with the front end cannot be taken over",
        ))?;
        // Before anybody could take the disk for one that is not used.
        parts.news.front_end(true);
    }
    Ok(parts)
}
