//! What is said to the thread that moves data, and what it says.

use std::num::NonZeroU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::thread::Worker;
use super::{Error, Go, Orders, Pace, Phase, Progress, Ready, is_over};
use crate::engine::Disk;
use crate::rekey::{self, Direction, Handle, Kind, Mover, Options};
use crate::secret::scrub_stack;

/// Is told that the phase has changed.
pub(super) type Told = Box<dyn Fn() + Send + Sync>;

/// The data of a disk that is being moved. It rests when this is dropped.
pub struct Moving {
    control: Arc<Control>,
    disk: Arc<Disk>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and its owner share.
pub(super) struct Control {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    handle: Handle,
    told: Told,
    id: uuid::Uuid,
    kind: Kind,
}

/// What is wanted of the thread, and what it does.
pub(super) struct Wanted {
    pub go: Go,
    pub pace: Pace,
    pub direction: Direction,
    /// It shall end, at rest.
    pub stop: bool,
    pub phase: Phase,
    pub fault: Option<String>,
    /// Counts orders: who failed tries again when there is another one.
    pub orders: u64,
}

impl From<Pace> for rekey::Pace {
    fn from(pace: Pace) -> Self {
        rekey::Pace {
            bytes_per_second: pace.limit.and_then(NonZeroU64::new),
            latency: pace.latency_us.map(Duration::from_micros),
        }
    }
}

impl Control {
    pub fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this is so, or for so long.
    pub fn wait<'w>(
        &'w self,
        wanted: MutexGuard<'w, Wanted>,
        time: Duration,
        mut so: impl FnMut(&Wanted) -> bool,
    ) -> MutexGuard<'w, Wanted> {
        self.changed
            .wait_timeout_while(wanted, time, |wanted| !so(wanted))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// It does something else.
    pub fn set_phase(&self, mut wanted: MutexGuard<'_, Wanted>, phase: Phase, why: Option<String>) {
        let changed = wanted.phase != phase || wanted.fault != why;
        wanted.phase = phase;
        wanted.fault = why;
        drop(wanted);
        if changed {
            (self.told)();
        }
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    fn change(&self, change: impl FnOnce(&mut Wanted, &Handle)) {
        let mut wanted = self.lock();
        wanted.orders += 1;
        change(&mut wanted, &self.handle);
        drop(wanted);
        self.changed.notify_all();
    }
}

impl Moving {
    pub(super) fn begin(ready: Ready, disk: &Arc<Disk>, told: Told) -> Result<Self, Error> {
        let Ready {
            task,
            spec,
            journal,
            data,
            geometry,
            transforms,
            old: _,
            new,
            position,
        } = ready;
        let over = is_over(position, spec.size);
        // What has come to its end stays there, whatever was wanted before.
        let direction = match over {
            true => position.direction,
            false => task.direction.unwrap_or(position.direction),
        };
        disk.begin_move(new, position)?;
        let keeper = disk
            .fence()
            .keeper()
            .ok_or(crate::engine::fence::Error::UnderWay)?;
        let keeper = Arc::new(keeper);
        let options = Options {
            pace: task.pace.into(),
            ..Options::default()
        };
        let mover = Mover::new(
            journal,
            data,
            keeper.clone(),
            geometry,
            transforms,
            position,
            options,
        )?;
        let handle = mover.handle();
        handle.turn(direction);
        let control = Arc::new(Control {
            wanted: Mutex::new(Wanted {
                go: task.go,
                pace: task.pace,
                direction,
                stop: false,
                phase: match (over, task.go) {
                    (true, _) => Phase::Done,
                    (false, Go::Run) => Phase::Moving,
                    (false, Go::Pause) => Phase::Paused,
                },
                fault: None,
                orders: 0,
            }),
            changed: Condvar::new(),
            handle,
            told,
            id: task.facts.id,
            kind: task.facts.kind,
        });
        let worker = Worker::new(control.clone(), mover, keeper);
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new()
            .name("mover".into())
            .spawn(move || {
                let _span = span.entered();
                worker.run();
                scrub_stack();
            })
            .map_err(Error::Thread)?;
        Ok(Moving {
            control,
            disk: disk.clone(),
            thread: Some(thread),
        })
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let wanted = self.control.lock();
        let moved = self.control.handle.progress();
        Progress {
            id: self.control.id,
            kind: self.control.kind,
            direction: wanted.direction,
            phase: wanted.phase,
            boundary: moved.position.boundary,
            size: moved.size,
            moved: moved.moved,
            rate: moved.rate,
            region: moved.region,
            sequence: moved.sequence,
            go: wanted.go,
            pace: wanted.pace,
            fault: wanted.fault.clone(),
        }
    }

    /// Has it go on otherwise.
    ///
    /// # Errors
    /// [`Error::Over`]: it has come to its end, and does not go the other way any
    /// more.
    pub fn order(&self, orders: Orders) -> Result<(), Error> {
        let mut late = false;
        self.control.change(|wanted, handle| {
            if let Some(pace) = orders.pace {
                // The thread takes its priority between two runs.
                if pace.priority != wanted.pace.priority {
                    handle.rest();
                }
                wanted.pace = pace;
                handle.set_pace(pace.into());
            }
            match orders.direction {
                Some(direction) if direction != wanted.direction => {
                    late = wanted.phase == Phase::Done;
                    if !late {
                        wanted.direction = direction;
                        handle.turn(direction);
                    }
                }
                _ => {}
            }
            if let Some(go) = orders.go {
                wanted.go = go;
                if go == Go::Pause {
                    handle.rest();
                }
            }
        });
        match late {
            true => Err(Error::Over),
            false => Ok(()),
        }
    }

    /// Ends it where all was moved: the disk has one way to store its data again,
    /// and the key of the other one is wiped.
    ///
    /// # Errors
    /// When not all was moved: it goes on then.
    pub fn end(mut self) -> Result<Ended, (Self, Error)> {
        if self.progress().phase != Phase::Done {
            return Err((self, Error::NotDone));
        }
        let direction = self.progress().direction;
        self.stop();
        match self.disk.end_move() {
            Ok(()) => Ok(Ended { direction }),
            Err(error) => Err((self, error.into())),
        }
    }

    /// Comes to rest, and ends the thread.
    fn stop(&mut self) {
        self.control.change(|wanted, handle| {
            wanted.stop = true;
            handle.rest();
        });
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that moves data has panicked");
        }
    }
}

/// How it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which way all data was moved.
    pub direction: Direction,
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.stop();
    }
}
