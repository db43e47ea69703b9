//! Appending to the log.
//!
//! Several processes may do so: each takes the lock of the file, looks
//! whether it still is the file of that name and where it ends, and appends.
//! What is written in one go is the line, before it what it takes to go on
//! after a crash, and, in a new file, the line that ties it to the one before.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Settings;
use super::chain::{Chain, Own};
use super::error::Cause;
use super::head::{self, Head};
use super::place::{Place, Purpose};
use super::record::Record;
use super::resume::{last_of_rotated, resume};

/// How long to wait for other processes. They hold the lock for one line.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to sleep between two looks at the lock.
const LOOK: Duration = Duration::from_millis(1);

/// What a log knows of its file.
#[derive(Debug, Default)]
pub(super) struct Writer {
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
    pub(super) fn check(&mut self, settings: &Settings) -> Result<(), Cause> {
        let place = self.place(settings)?;
        let (file, _locked) = self.lock(&place)?;
        let length = file.metadata().map_err(Cause::io("examine"))?.len();
        resume(&place, &file, length).map(drop)
    }

    pub(super) fn append(&mut self, settings: &Settings, record: &Record<'_>) -> Result<(), Cause> {
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
        // Line by line: a line that is whole must not stand behind one that a
        // power failure has torn.
        let mut lines = plan.text.split_inclusive(|&byte| byte == b'\n');
        let done = lines.try_for_each(|line| {
            (&*file).write_all(line).map_err(Cause::io("write"))?;
            file.sync_data().map_err(Cause::io("sync"))
        });
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
