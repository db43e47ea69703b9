//! A vhost-user-blk server as the disk, by the `virtio-driver` crate.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::buffers::Buffers;
use crate::job::Job;
use crate::load::{self, Disk, Tally, Window};
use crate::{Result, Wait, cpu};

/// As QEMU has it by default. Three descriptors make a request.
const QUEUE_SIZE: u16 = 256;
/// A server that is silent for so long is taken for dead.
const PATIENCE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

struct Queue<'a> {
    ring: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    called: Arc<EventFd>,
    wait: Wait,
    buffers: &'a Buffers,
    /// The first buffer of this queue.
    first: usize,
    block: usize,
}

impl Disk for Queue<'_> {
    fn queue(&mut self, slot: usize, read: bool, offset: u64) -> Result<()> {
        let buffer = self.buffers.pointer(self.first + slot);
        // SAFETY: the buffer is `block` bytes long, outlives the queue, and
        // belongs to this slot until its request completed.
        unsafe {
            if read {
                self.ring.read_raw(offset, buffer, self.block, slot)?;
            } else {
                self.ring.write_raw(offset, buffer, self.block, slot)?;
            }
        }
        Ok(())
    }

    fn exchange(&mut self, completed: &mut Vec<usize>) -> Result<()> {
        if self.ring.avail_notif_needed() {
            self.notifier.notify()?;
        }
        loop {
            for done in self.ring.completions() {
                if done.ret != 0 {
                    let error = io::Error::from_raw_os_error(-done.ret);
                    return Err(format!("the server failed a request: {error}").into());
                }
                completed.push(done.context);
            }
            if !completed.is_empty() {
                return Ok(());
            }
            match self.wait {
                Wait::Spin => std::hint::spin_loop(),
                Wait::Sleep => {
                    let mut fds = [PollFd::new(&self.called, PollFlags::IN)];
                    if poll(&mut fds, Some(&PATIENCE))? == 0 {
                        return Err("the server does not answer any more".into());
                    }
                    self.called.read()?;
                }
            }
        }
    }
}

/// A front end whose queues are set up.
pub struct Front {
    // They point into memory of the transport: they are dropped first.
    rings: Vec<VirtioBlkQueue<'static, usize>>,
    transport: Box<VirtioBlkTransport>,
}

/// Connects to a server, and sets up its first queues.
pub fn connect(socket: &Path, queues: usize) -> Result<Front> {
    let path = socket.to_str().ok_or("the socket path is not UTF-8")?;
    let features = VirtioFeatureFlags::VERSION_1.bits()
        | VirtioFeatureFlags::RING_EVENT_IDX.bits()
        | VirtioBlkFeatureFlags::all().bits();
    let transport = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features)
        .map_err(|error| format!("cannot connect to {path}: {error}"))?;
    let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
    let rings =
        VirtioBlkQueue::<'static, usize>::setup_queues(&mut *transport, queues, QUEUE_SIZE)?;
    Ok(Front { rings, transport })
}

/// Runs the job on each of the queues, in a thread each, and `meanwhile` here.
pub fn drive<T>(
    socket: &Path,
    job: &Job,
    queues: usize,
    wait: Wait,
    window: Window,
    cpus: &[usize],
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Vec<Tally>, T)> {
    let Front {
        rings,
        mut transport,
    } = connect(socket, queues)?;
    let buffers = Buffers::new(job.block, job.depth * queues)?;
    transport.map_mem_region(buffers.pointer(0) as usize, buffers.len(), buffers.fd(), 0)?;
    let disk_bytes = u64::from(transport.get_config()?.capacity) * 512;

    let result = std::thread::scope(|scope| {
        let threads: Vec<_> = rings
            .into_iter()
            .enumerate()
            .map(|(index, mut ring)| {
                ring.set_used_notif_enabled(wait == Wait::Sleep);
                let mut queue = Queue {
                    ring,
                    notifier: transport.get_submission_notifier(index),
                    called: transport.get_completion_fd(index),
                    wait,
                    buffers: &buffers,
                    first: index * job.depth,
                    block: job.block,
                };
                scope.spawn(move || {
                    cpu::pin(cpus, index)?;
                    load::run(
                        &mut queue,
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
    });
    // The rings, in the threads, pointed into the transport's memory.
    drop(transport);
    result
}
