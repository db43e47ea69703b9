//! A disk that may keep a write as long as the test likes, as one does that does
//! not answer: it reaches the file only then. Who wrote or read is known.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::fuse::{Backing, Fuse, Request, Want};
use super::server::eventually;

/// Someone's access to the file: the process, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub pid: u32,
    pub offset: u64,
    pub write: bool,
}

#[derive(Default)]
struct State {
    keeping: bool,
    kept: Vec<Request>,
    seen: Vec<Access>,
}

struct Shared {
    below: File,
    state: Mutex<State>,
}

/// The disk, which is there as long as this lives.
pub struct SlowDisk {
    shared: Arc<Shared>,
    fuse: Fuse,
}

impl SlowDisk {
    /// Shows `below` as `disk.img` in the new directory `place`.
    pub fn mount(below: &Path, place: &Path) -> SlowDisk {
        let below = File::options().read(true).write(true).open(below);
        let shared = Arc::new(Shared {
            below: below.unwrap(),
            state: Mutex::default(),
        });
        let fuse = Fuse::mount(shared.clone(), place);
        SlowDisk { shared, fuse }
    }

    pub fn file(&self) -> PathBuf {
        self.fuse.file()
    }

    /// From now on keeps all writes, and forgets who has been there.
    pub fn keep_writes(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.keeping = true;
        state.seen.clear();
    }

    /// Waits until so many writes are kept.
    pub fn await_writes(&self, count: usize) {
        eventually("writes are kept", || {
            let state = self.shared.state.lock().unwrap();
            (state.kept.len() >= count).then_some(())
        });
    }

    /// Who has been there since writes are kept.
    pub fn seen(&self) -> Vec<Access> {
        self.shared.state.lock().unwrap().seen.clone()
    }

    /// Carries out what was kept, and keeps nothing any more.
    pub fn release(&self) {
        let kept = {
            let mut state = self.shared.state.lock().unwrap();
            state.keeping = false;
            std::mem::take(&mut state.kept)
        };
        for write in kept {
            write.carry_out(&self.shared.below);
        }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.release();
    }
}

impl Backing for Shared {
    fn bytes(&self) -> u64 {
        self.below.metadata().unwrap().len()
    }

    fn request(&self, request: Request) {
        let pid = request.pid;
        let mut state = self.state.lock().unwrap();
        match request.want {
            Want::Read { offset, .. } => state.seen.push(Access {
                pid,
                offset,
                write: false,
            }),
            Want::Write { offset, .. } => {
                state.seen.push(Access {
                    pid,
                    offset,
                    write: true,
                });
                if state.keeping {
                    state.kept.push(request);
                    return;
                }
            }
            _ => {}
        }
        drop(state);
        request.carry_out(&self.below);
    }
}
