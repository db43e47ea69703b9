//! A disk that fails as a test wants it: by kind of operation, place and count, or
//! by chance from a seed. What it says to have done, it has done.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::fuse::{Backing, Fuse, Request, Want};
use super::registers::Dice;
use super::server::eventually;

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Sync,
    Allocate,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with that number, and nothing is done.
    Errno(i32),
    /// A write fails so, and its first half was done.
    Torn(i32),
    /// So many bytes are done, and that is said.
    Short(usize),
    /// It is done after that time.
    Slow(Duration),
    /// It is done when the disk is healed, and not before.
    Stuck,
}

/// Which operations a fault is for.
#[derive(Clone, Debug)]
pub struct Rule {
    pub kind: Kind,
    /// Bytes of the file: of a sync they mean nothing.
    pub range: Range<u64>,
    /// For so many it is.
    pub count: u64,
    /// Of a thousand, by chance.
    pub chance: u64,
    pub fault: Fault,
}

impl Rule {
    /// For all of that kind, always.
    pub fn of(kind: Kind, fault: Fault) -> Rule {
        Rule {
            kind,
            range: 0..u64::MAX,
            count: u64::MAX,
            chance: 1000,
            fault,
        }
    }

    pub fn within(self, range: Range<u64>) -> Rule {
        Rule { range, ..self }
    }

    pub fn times(self, count: u64) -> Rule {
        Rule { count, ..self }
    }

    pub fn chance(self, chance: u64) -> Rule {
        Rule { chance, ..self }
    }
}

struct State {
    rules: Vec<Rule>,
    dice: Dice,
    stuck: Vec<Request>,
    /// Operations that a fault was for.
    hits: u64,
    seen: Vec<(Kind, u64)>,
}

struct Shared {
    below: File,
    asynchronous: bool,
    state: Mutex<State>,
}

/// The disk, which is there as long as this lives. It is healed when it goes.
pub struct FaultyDisk {
    shared: Arc<Shared>,
    fuse: Fuse,
}

impl FaultyDisk {
    /// Shows `below` as `disk.img` in the new directory `place`.
    pub fn mount(below: &Path, place: &Path, seed: u64) -> FaultyDisk {
        FaultyDisk::mounted(below, place, seed, true)
    }

    /// The same, which does one thing after the other, and on which a write can be
    /// short.
    pub fn mount_sequential(below: &Path, place: &Path, seed: u64) -> FaultyDisk {
        FaultyDisk::mounted(below, place, seed, false)
    }

    fn mounted(below: &Path, place: &Path, seed: u64, asynchronous: bool) -> FaultyDisk {
        let below = File::options().read(true).write(true).open(below);
        let shared = Arc::new(Shared {
            below: below.unwrap(),
            asynchronous,
            state: Mutex::new(State {
                rules: Vec::new(),
                dice: Dice::new(seed),
                stuck: Vec::new(),
                hits: 0,
                seen: Vec::new(),
            }),
        });
        let fuse = Fuse::mount(shared.clone(), place);
        FaultyDisk { shared, fuse }
    }

    pub fn file(&self) -> PathBuf {
        self.fuse.file()
    }

    /// One rule more. The first that fits is followed.
    pub fn fail(&self, rule: Rule) {
        self.shared.state.lock().unwrap().rules.push(rule);
    }

    /// From now on it works, and what was stuck is done.
    pub fn heal(&self) {
        let stuck = {
            let mut state = self.shared.state.lock().unwrap();
            state.rules.clear();
            std::mem::take(&mut state.stuck)
        };
        for request in stuck {
            request.carry_out(&self.shared.below);
        }
    }

    /// Is not there any more, as when it is pulled out.
    pub fn pull_out(&self) {
        self.fuse.pull_out();
    }

    /// How many operations a fault was for.
    pub fn hits(&self) -> u64 {
        self.shared.state.lock().unwrap().hits
    }

    /// How many operations there were since this was asked last.
    pub fn take_seen(&self) -> Vec<(Kind, u64)> {
        std::mem::take(&mut self.shared.state.lock().unwrap().seen)
    }

    /// Waits until so many are stuck.
    pub fn await_stuck(&self, count: usize) {
        eventually("operations are stuck", || {
            let state = self.shared.state.lock().unwrap();
            (state.stuck.len() >= count).then_some(())
        });
    }

    /// Waits until a fault was for so many more than there were.
    pub fn await_hits(&self, count: u64) {
        let before = self.hits();
        eventually("faults", || (self.hits() >= before + count).then_some(()));
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.heal();
    }
}

/// Which kind it is, and what bytes of the file it is about.
fn about(want: &Want) -> Option<(Kind, Range<u64>)> {
    Some(match want {
        Want::Read { offset, len } => (Kind::Read, *offset..offset + *len as u64),
        Want::Write { offset, data } => (Kind::Write, *offset..offset + data.len() as u64),
        Want::Sync { .. } => (Kind::Sync, 0..1),
        Want::Allocate { offset, len, .. } => (Kind::Allocate, *offset..offset + len),
        Want::Resize { .. } => return None,
    })
}

impl State {
    fn fault(&mut self, want: &Want) -> Option<Fault> {
        let (kind, range) = about(want)?;
        self.seen.push((kind, range.start));
        let dice = &mut self.dice;
        let rule = self.rules.iter_mut().find(|rule| {
            let touches = rule.range.start < range.end && range.start < rule.range.end;
            if rule.kind != kind || !touches || rule.count == 0 {
                return false;
            }
            dice.below(1000) < rule.chance
        })?;
        rule.count = rule.count.saturating_sub(1);
        self.hits += 1;
        Some(rule.fault)
    }
}

impl Backing for Shared {
    fn is_asynchronous(&self) -> bool {
        self.asynchronous
    }

    fn bytes(&self) -> u64 {
        self.below.metadata().unwrap().len()
    }

    fn request(&self, request: Request) {
        let mut state = self.state.lock().unwrap();
        let fault = state.fault(&request.want);
        if fault == Some(Fault::Stuck) {
            state.stuck.push(request);
            return;
        }
        drop(state);
        let part = |bytes: usize| match &request.want {
            Want::Write { offset, data } => {
                use std::os::unix::fs::FileExt;
                let bytes = bytes.min(data.len());
                self.below.write_all_at(&data[..bytes], *offset).unwrap();
                bytes
            }
            _ => bytes,
        };
        match fault {
            None | Some(Fault::Stuck) => request.carry_out(&self.below),
            Some(Fault::Errno(errno)) => request.fail(errno),
            Some(Fault::Torn(errno)) => {
                if let Want::Write { data, .. } = &request.want {
                    part(data.len() / 2 / 512 * 512);
                }
                request.fail(errno);
            }
            Some(Fault::Short(bytes)) => match &request.want {
                Want::Write { .. } => {
                    let done = part(bytes);
                    request.wrote(done);
                }
                _ => {
                    let mut data = request.perform(&self.below).unwrap();
                    data.truncate(bytes);
                    request.succeed(&data);
                }
            },
            Some(Fault::Slow(time)) => {
                let below = self.below.try_clone().unwrap();
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    request.carry_out(&below);
                });
            }
        }
    }
}
