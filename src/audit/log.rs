//! Appending to the log.
//!
//! Several processes may do so: each takes the lock of the file, looks
//! whether it still is the file of that name and where it ends, and appends.
//! What is written in one go is the line, before it what it takes to go on
//! after a crash, and, in a new file, the line that ties it to the one before.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;

use super::Settings;
use super::error::{Cause, Error};
use super::event::{Body, Event, Outcome, Record};
use super::head::{self, Head};
use super::line::{Hash, LINE_MAX, TornBytes, VERSION, seal};
use super::place::{Place, Purpose};
use super::resume::{last_of_rotated, resume};
use crate::keys::Actor;
use crate::timestamp::Moment;

/// How long to wait for other processes. They hold the lock for one line.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to sleep between two looks at the lock.
const LOOK: Duration = Duration::from_millis(1);

/// A log that is appended to. Any thread may do so.
///
/// [`Log::record`] waits for the disk, and for other processes that append:
/// an asynchronous caller has it run where it may block.
#[derive(Debug)]
pub struct Log {
    settings: Settings,
    writer: Mutex<Writer>,
}

#[derive(Debug, Default)]
struct Writer {
    place: Option<Arc<Place>>,
    file: Option<Open>,
    /// The last line that we know of.
    known: Option<Head>,
}

#[derive(Debug)]
struct Open {
    file: Arc<File>,
    /// Where it ended when `known` was its last line.
    end: Option<u64>,
}

/// Events of the log itself.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Own {
    /// The first line of all.
    AuditOpened,
    /// The first line of a file that follows another.
    AuditRotated {
        /// The last line in the files that are removed now.
        #[serde(skip_serializing_if = "Option::is_none")]
        removed_through: Option<u64>,
    },
    /// What is before this line is not as it was left.
    Recovered {
        /// What a crash left of a line.
        #[serde(skip_serializing_if = "Option::is_none")]
        torn: Option<TornBytes>,
        /// The number of the last line that was found, where there had been
        /// later ones.
        #[serde(skip_serializing_if = "Option::is_none")]
        lost_after: Option<u64>,
    },
}

impl Log {
    /// The log that `settings` describe. Nothing is opened yet: commands that
    /// record nothing do not need it.
    pub fn new(settings: Settings) -> Self {
        Log {
            settings,
            writer: Mutex::default(),
        }
    }

    /// The same, and it can be written now.
    ///
    /// # Errors
    /// When it cannot be, or holds something else.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let log = Log::new(settings);
        let opened = log.lock_writer().check(&log.settings);
        opened.map_err(|cause| cause.at(&log.settings.path))?;
        Ok(log)
    }

    /// The file that is written.
    pub fn path(&self) -> &std::path::Path {
        &self.settings.path
    }

    /// Records that `actor` did something. It is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be recorded. Whatever was asked for must then not be
    /// given.
    pub fn record(
        &self,
        actor: &Actor,
        event: Event<'_>,
        outcome: impl Into<Outcome>,
    ) -> Result<(), Error> {
        self.append(&Record {
            actor,
            event,
            outcome: outcome.into(),
            correlation: None,
            took: None,
        })
    }

    /// The same with all that may be told of it.
    ///
    /// # Errors
    /// As [`Log::record`].
    pub fn append(&self, record: &Record<'_>) -> Result<(), Error> {
        self.lock_writer()
            .append(&self.settings, record)
            .map_err(|cause| cause.at(&self.settings.path))
    }

    fn lock_writer(&self) -> std::sync::MutexGuard<'_, Writer> {
        // A thread that panicked has at worst left `end` behind, which only
        // makes the file be looked at again.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lock of the file that is written.
struct Locked(Arc<File>);

impl Drop for Locked {
    fn drop(&mut self) {
        // It ends with the process at the latest.
        let _ = flock(&*self.0, FlockOperation::Unlock);
    }
}

/// Takes the lock of `file`, if it is free soon.
pub(super) fn wait_for(file: &File, operation: FlockOperation) -> Result<(), Cause> {
    let start = Instant::now();
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if start.elapsed() < PATIENCE => {
                thread::sleep(LOOK);
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(Cause::Locked(PATIENCE)),
            Err(error) => return Err(Cause::io("lock")(error.into())),
        }
    }
}

/// The lines that are being made up, each bound to the one before.
struct Chain {
    last: Option<Head>,
    text: Vec<u8>,
}

impl Chain {
    fn next(&self) -> (u64, Hash) {
        match self.last {
            Some(last) => (last.seq.saturating_add(1), last.hash),
            None => (1, Hash::NONE),
        }
    }

    fn push<E: Serialize>(&mut self, body: &Body<'_, E>) -> Result<(), Cause> {
        let seq = body.seq;
        let body = serde_json::to_vec(body)
            .map_err(|error| Cause::io("write")(std::io::Error::other(error)))?;
        if body.len() > LINE_MAX / 2 {
            return Err(Cause::TooLong(body.len()));
        }
        let (line, hash) = seal(body);
        self.text.extend_from_slice(&line);
        self.last = Some(Head { seq, hash });
        Ok(())
    }

    fn own(&mut self, event: Own, actor: &Actor) -> Result<(), Cause> {
        let (seq, prev) = self.next();
        self.push(&Body {
            v: VERSION,
            seq,
            time: Moment::now(),
            event: &event,
            actor,
            outcome: &Outcome::Ok,
            correlation: None,
            took_us: None,
            prev,
        })
    }
}

/// What is to be done after the text is on disk.
struct Plan {
    text: Vec<u8>,
    last: Head,
    /// Where it goes.
    at: u64,
    /// Rotated files that are then no longer kept.
    remove: Vec<u64>,
}

enum Next {
    Write(Plan),
    Rotate,
}

impl Writer {
    fn check(&mut self, settings: &Settings) -> Result<(), Cause> {
        let place = self.place(settings)?;
        let (file, _locked) = self.lock(&place)?;
        let length = file.metadata().map_err(Cause::io("examine"))?.len();
        resume(&place, &file, length).map(drop)
    }

    fn append(&mut self, settings: &Settings, record: &Record<'_>) -> Result<(), Cause> {
        let place = self.place(settings)?;
        loop {
            let (file, locked) = self.lock(&place)?;
            let plan = match self.plan(&place, &file, settings, record)? {
                Next::Write(plan) => plan,
                Next::Rotate => {
                    place.rotate()?;
                    tracing::info!(head = ?self.known.map(|head| head.to_string()), "rotated the audit log");
                    // The lock is let go; whoever is first begins the new file.
                    self.file = None;
                    continue;
                }
            };
            self.write(&place, &file, plan)?;
            drop(locked);
            return Ok(());
        }
    }

    fn place(&mut self, settings: &Settings) -> Result<Arc<Place>, Cause> {
        if let Some(place) = &self.place {
            return Ok(place.clone());
        }
        let place = Arc::new(Place::of(&settings.path, Purpose::Write)?);
        self.place = Some(place.clone());
        Ok(place)
    }

    /// The file of that name, locked.
    fn lock(&mut self, place: &Place) -> Result<(Arc<File>, Locked), Cause> {
        loop {
            let file = match &self.file {
                Some(open) => open.file.clone(),
                None => {
                    let file = Arc::new(place.open_to_append()?);
                    self.file = Some(Open {
                        file: file.clone(),
                        end: None,
                    });
                    file
                }
            };
            wait_for(&file, FlockOperation::NonBlockingLockExclusive)?;
            let locked = Locked(file.clone());
            // It may have been rotated while we waited.
            if place.is_current(&file)? {
                return Ok((file, locked));
            }
            self.file = None;
        }
    }

    /// What has to be written now.
    fn plan(
        &mut self,
        place: &Place,
        file: &File,
        settings: &Settings,
        record: &Record<'_>,
    ) -> Result<Next, Cause> {
        let at = file.metadata().map_err(Cause::io("examine"))?.len();
        let mut chain = Chain {
            last: self.known,
            text: Vec::new(),
        };
        let unchanged = self.file.as_ref().and_then(|open| open.end) == Some(at);
        let (mut begins, mut may_rotate) = (false, true);
        let mut remove = Vec::new();
        if !unchanged {
            let found = resume(place, file, at)?;
            if found.open_end {
                chain.text.push(b'\n');
                may_rotate = false;
            }
            begins = !found.begun;
            let lost_after = self.lost(place, found.last, &mut chain.last)?;
            if found.torn.is_some() || lost_after.is_some() {
                tracing::warn!(
                    path = %place.path().display(),
                    torn_bytes = found.torn.map_or(0, |torn| torn.bytes),
                    lost_after,
                    "the audit log was cut off; going on after it (see `sealblk audit verify`)"
                );
                let torn = found.torn;
                chain.own(Own::Recovered { torn, lost_after }, record.actor)?;
            }
            if begins {
                let rotated = place.rotated()?;
                if let Some(&newest) = rotated.last() {
                    place.like_rotated(file, newest)?;
                }
                remove = surplus(&rotated, settings.keep);
                let own = match (rotated.is_empty(), remove.last()) {
                    (true, _) => Own::AuditOpened,
                    (false, None) => Own::AuditRotated {
                        removed_through: None,
                    },
                    (false, Some(&last)) => Own::AuditRotated {
                        removed_through: last_of_rotated(place, last)?.map(|head| head.seq),
                    },
                };
                chain.own(own, record.actor)?;
            }
        }
        let (seq, prev) = chain.next();
        chain.push(&record.body(seq, prev))?;
        let Chain {
            last: Some(last),
            text,
        } = chain
        else {
            return Err(Cause::TooLong(0));
        };
        let full = at + text.len() as u64 > settings.max_size;
        if full && at > 0 && may_rotate && !begins {
            return Ok(Next::Rotate);
        }
        Ok(Next::Write(Plan {
            text,
            last,
            at,
            remove,
        }))
    }

    /// Sets `last` to the line to go on after. That is the last one that was
    /// `found`, unless there was a later or another one: then the chain goes
    /// on after that one, so that the gap stays to be seen. Returns where the
    /// gap begins.
    fn lost(
        &self,
        place: &Place,
        found: Option<Head>,
        last: &mut Option<Head>,
    ) -> Result<Option<u64>, Cause> {
        let noted = head::read(place)?.unwrap_or_else(|why| {
            tracing::warn!(path = %place.head_path().display(), why, "the head of the audit log is not readable");
            None
        });
        let seq = |head: &Option<Head>| head.map_or(0, |head| head.seq);
        let expected = std::cmp::max_by_key(noted, self.known, seq);
        let gone = seq(&expected) >= seq(&found) && expected != found;
        *last = if gone { expected } else { found };
        Ok(gone.then(|| seq(&found)))
    }

    fn write(&mut self, place: &Place, file: &File, plan: Plan) -> Result<(), Cause> {
        let open = self.file.as_mut();
        let done = (&*file)
            .write_all(&plan.text)
            .map_err(Cause::io("write"))
            .and_then(|()| file.sync_data().map_err(Cause::io("sync")));
        if let Err(cause) = done {
            // Not recorded, so it should not be found either. If this fails,
            // it is found to be torn, or to be a line more than was needed.
            let _ = file.set_len(plan.at);
            let _ = open.map(|open| open.end = None);
            return Err(cause);
        }
        self.known = Some(plan.last);
        if let Some(open) = open {
            // The name of a file that is new to us may not be lasting yet.
            if open.end.is_none() {
                place.sync()?;
            }
            open.end = Some(plan.at + plan.text.len() as u64);
        }
        // What follows is no reason to say that the record is not there.
        if let Err(cause) = head::write(place, plan.last) {
            tracing::warn!(path = %place.head_path().display(), %cause, "cannot note the head of the audit log");
        }
        if let Err(cause) = plan
            .remove
            .iter()
            .try_for_each(|&number| place.remove(number))
        {
            tracing::warn!(path = %place.path().display(), %cause, "an old audit log stays");
        }
        Ok(())
    }
}

/// All but the last `keep`.
fn surplus(rotated: &[u64], keep: Option<u32>) -> Vec<u64> {
    let keep = keep.map_or(usize::MAX, |keep| keep as usize);
    rotated[..rotated.len().saturating_sub(keep)].to_vec()
}
