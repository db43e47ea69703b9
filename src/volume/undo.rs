//! Making room for a volume, and taking everything back when making it fails.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use super::device::{Access, Device, sync_directory_of};
use super::error::Error;
use super::occupied::{HEAD, TAIL};
use super::options::CreateOptions;

const CHUNK: usize = 1 << 20;

/// What has to be taken back. Dropping it does so, unless it was disarmed.
#[derive(Debug, Default)]
pub struct Undo {
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    /// A file that was created.
    Remove(PathBuf),
    /// A file that was enlarged.
    Shrink(File, u64),
    /// A file whose first bytes were zero.
    Clear(File, u64),
}

impl Undo {
    /// Everything went well.
    pub fn disarm(mut self) {
        self.steps.clear();
    }

    /// Creates and locks a file.
    pub fn create(&mut self, path: &Path) -> Result<Device, Error> {
        let device = Device::create(path)?;
        self.steps.push(Step::Remove(path.to_owned()));
        device.lock(Access::ReadWrite)?;
        Ok(device)
    }

    /// Makes `device` at least `end` bytes long, and with `force` empties it:
    /// a file wholly, a block device at both ends, where whatever it held is
    /// recognised by.
    pub fn prepare(
        &mut self,
        device: &Device,
        end: u64,
        options: &CreateOptions,
    ) -> Result<(), Error> {
        let length = device.len()?;
        if device.is_block() {
            return match options.force {
                true => wipe_ends(device.file(), length)
                    .map_err(|error| device.error("wipe the old contents of", error)),
                false => Ok(()),
            };
        }
        let resize = |length| {
            let result = device.file().set_len(length);
            result.map_err(|error| device.error("set the length of", error))
        };
        if options.force {
            resize(0)?;
        }
        if length < end || options.force {
            if !options.force {
                self.steps.push(Step::Shrink(clone(device)?, length));
            }
            // Destroying the contents of a file for a smaller volume makes it smaller.
            let shrink = options.force && options.size.is_some();
            resize(if shrink { end } else { length.max(end) })?;
        }
        if options.preallocate {
            if !options.force {
                self.steps.push(Step::Clear(clone(device)?, end));
            }
            fallocate(device.file(), FallocateFlags::empty(), 0, end)
                .map_err(|error| device.error("reserve the space of", error))?;
        }
        Ok(())
    }

    /// Makes the names of the files that were created survive a crash.
    pub fn sync_directories(&self) -> Result<(), Error> {
        let created = self.steps.iter().filter_map(|step| match step {
            Step::Remove(path) => Some(path),
            _ => None,
        });
        created
            .into_iter()
            .try_for_each(|path| sync_directory_of(path))
    }

    /// The next thing to be written is a header of that many bytes.
    pub fn header_follows(&mut self, device: &Device, bytes: u64) -> Result<(), Error> {
        self.steps.push(Step::Clear(clone(device)?, bytes));
        Ok(())
    }
}

fn clone(device: &Device) -> Result<File, Error> {
    let clone = device.file().try_clone();
    clone.map_err(|error| device.error("duplicate the descriptor of", error))
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            let result = match &step {
                Step::Remove(path) => std::fs::remove_file(path),
                Step::Shrink(file, length) => file.set_len(*length),
                Step::Clear(file, bytes) => clear(file, *bytes),
            };
            if let Err(error) = result {
                tracing::warn!("cannot undo {step:?} after a failure: {error}");
            }
        }
    }
}

/// Gives the space back, or writes zeroes where that is not possible.
fn clear(file: &File, bytes: u64) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, punch, 0, bytes) {
        Ok(()) => file.sync_all(),
        Err(_) => zero(file, 0, bytes).and_then(|()| file.sync_all()),
    }
}

pub(super) fn wipe_ends(file: &File, length: u64) -> io::Result<()> {
    zero(file, 0, HEAD.min(length))?;
    zero(file, length.saturating_sub(TAIL), length)?;
    file.sync_all()
}

fn zero(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeroes = vec![0; CHUNK];
    let mut position = from;
    while position < to {
        let length = CHUNK.min((to - position) as usize);
        file.write_all_at(&zeroes[..length], position)?;
        position += length as u64;
    }
    Ok(())
}
