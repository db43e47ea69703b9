//! The bare file as the disk: the least that any server needs as well. One
//! io_uring for each queue, registered file and buffers, O_DIRECT.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_uring::{IoUring, opcode, types};

use crate::buffers::Buffers;
use crate::job::Job;
use crate::load::{self, Disk, Tally, Window};
use crate::{Result, cpu};

struct Ring<'a> {
    ring: IoUring,
    buffers: &'a Buffers,
    first: usize,
    block: usize,
}

impl<'a> Ring<'a> {
    /// To be called in the thread that uses it.
    fn new(file: &File, buffers: &'a Buffers, first: usize, job: &Job) -> Result<Ring<'a>> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(job.depth.next_power_of_two() as u32)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let pieces: Vec<libc::iovec> = (0..job.depth)
            .map(|slot| libc::iovec {
                iov_base: buffers.pointer(first + slot).cast(),
                iov_len: job.block,
            })
            .collect();
        // SAFETY: the buffers outlive the ring.
        unsafe { ring.submitter().register_buffers(&pieces) }?;
        Ok(Ring {
            ring,
            buffers,
            first,
            block: job.block,
        })
    }
}

impl Disk for Ring<'_> {
    fn queue(&mut self, slot: usize, read: bool, offset: u64) -> Result<()> {
        let buffer = self.buffers.pointer(self.first + slot);
        let (len, index) = (self.block as u32, slot as u16);
        let entry = if read {
            opcode::ReadFixed::new(types::Fixed(0), buffer, len, index)
                .offset(offset)
                .build()
        } else {
            opcode::WriteFixed::new(types::Fixed(0), buffer, len, index)
                .offset(offset)
                .build()
        };
        // SAFETY: the buffer belongs to this slot until its request completed.
        unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) }?;
        Ok(())
    }

    fn exchange(&mut self, completed: &mut Vec<usize>) -> Result<()> {
        self.ring.submit_and_wait(1)?;
        for done in self.ring.completion() {
            if done.result() != self.block as i32 {
                return Err(format!("a request gave {}", done.result()).into());
            }
            completed.push(done.user_data() as usize);
        }
        Ok(())
    }
}

/// Runs the job on each of the rings, in a thread each, and `meanwhile` here.
pub fn drive<T>(
    path: &Path,
    job: &Job,
    queues: usize,
    window: Window,
    cpus: &[usize],
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Vec<Tally>, T)> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    // The end, for block devices as well.
    let disk_bytes = file.seek(SeekFrom::End(0))?;
    let file = &file;
    let buffers = &Buffers::new(job.block, job.depth * queues)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..queues)
            .map(|index| {
                scope.spawn(move || {
                    cpu::pin(cpus, index)?;
                    let mut ring = Ring::new(file, buffers, index * job.depth, job)?;
                    load::run(
                        &mut ring,
                        job,
                        job.places(index, queues, disk_bytes),
                        window,
                    )
                })
            })
            .collect();
        let other = meanwhile();
        let tallies = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a load thread panicked")?)
            .collect::<Result<Vec<Tally>>>();
        Ok((tallies?, other?))
    })
}
