//! What a front end has said of one virtqueue, and the queue thread that
//! follows from it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::inflight::Inflight;
use super::memory::MemoryMap;
use crate::engine::dirty::{DirtyLog, QueueLog};
use crate::engine::inflight::{Fault, Recovered};
use crate::engine::{Disk, QueueStart, RunningQueue, start_queue};

/// Addresses of a ring's parts, in the front end's address space.
#[derive(Clone, Copy)]
pub struct Addresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

/// What was said of a virtqueue that has been stopped, but for its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingFacts {
    /// How many entries it has.
    pub size: u16,
    /// Where its parts are: descriptors, available, used.
    pub addresses: Option<[u64; 3]>,
    /// The next available entry to be taken.
    pub base: u16,
    /// Whether it is enabled.
    pub enabled: bool,
    /// Whether there are the descriptors of these names.
    pub kick: bool,
    /// See `kick`.
    pub call: bool,
    /// See `kick`.
    pub err: bool,
}

/// One virtqueue of the device.
pub struct VirtQueue {
    index: usize,
    /// The most entries that it may have.
    most: u16,
    size: u16,
    addresses: Option<Addresses>,
    /// The next available entry to be taken.
    base: u16,
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
    enabled: bool,
    /// Under which address its used ring is logged, if it is.
    logged_at: Option<u64>,
    running: Option<RunningQueue>,
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

impl VirtQueue {
    pub fn new(index: usize, most: u16) -> Self {
        VirtQueue {
            index,
            most,
            size: most,
            addresses: None,
            base: 0,
            kick: None,
            call: None,
            err: None,
            enabled: false,
            logged_at: None,
            running: None,
        }
    }

    pub fn set_size(&mut self, size: u32) -> io::Result<()> {
        self.size = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= self.most)
            .ok_or_else(|| {
                let most = self.most;
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "the guest's ring has {size} entries, of at most {most}: \
                         serve with a larger --queue-size, or give QEMU a smaller queue-size"
                    ),
                )
            })?;
        Ok(())
    }

    pub fn set_addresses(&mut self, addresses: Addresses) {
        self.addresses = Some(addresses);
    }

    /// Whether the used ring is logged, and under which address.
    pub fn set_logged(&mut self, at: Option<u64>) {
        self.logged_at = at;
    }

    /// What is logged of it: `data` says whether what its requests write is.
    pub fn log(&self, log: Option<&Arc<DirtyLog>>, data: bool) -> Option<QueueLog> {
        let log = log?.clone();
        let ring = self.logged_at;
        (data || ring.is_some()).then_some(QueueLog { log, data, ring })
    }

    /// Has its thread mark what it writes there, from now on.
    pub fn tell_log(&self, log: Option<&Arc<DirtyLog>>, data: bool) {
        if let Some(running) = &self.running {
            running.set_log(self.log(log, data));
        }
    }

    pub fn set_base(&mut self, base: u32) -> io::Result<()> {
        self.base = u16::try_from(base).map_err(|_| invalid("a ring position has 16 bits"))?;
        Ok(())
    }

    pub fn set_kick(&mut self, kick: File) {
        self.stop();
        self.kick = Some(kick);
    }

    pub fn set_call(&mut self, call: Option<File>) {
        match &self.running {
            Some(running) => running.set_call(call),
            None => self.call = call,
        }
    }

    pub fn set_err(&mut self, err: Option<File>) {
        match &self.running {
            Some(running) => running.set_err(err),
            None => self.err = err,
        }
    }

    /// Whether its thread runs.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        if !enabled {
            self.stop();
        }
    }

    /// `VHOST_USER_GET_VRING_BASE`: stops the ring, and gives its position.
    pub fn take_base(&mut self) -> u16 {
        self.stop();
        self.kick = None;
        self.call = None;
        self.base
    }

    /// Waits for the requests in flight, and stops the thread. What waits for the
    /// disk below fails.
    pub fn stop(&mut self) {
        let stopped = self.running.take().and_then(RunningQueue::stop);
        self.has_stopped(stopped);
    }

    /// The same; but what waits for the disk below is left to the next start of
    /// the ring, if the front end keeps what is in flight.
    pub fn leave(&mut self) {
        let stopped = self.running.take().and_then(RunningQueue::leave);
        self.has_stopped(stopped);
    }

    fn has_stopped(&mut self, stopped: Option<QueueStart>) {
        if let Some(stopped) = stopped {
            self.base = stopped.queue.next_avail();
            self.kick = Some(stopped.kick);
            self.call = stopped.call;
            self.err = stopped.err;
        }
    }

    /// What was said of it, with copies of the descriptors (kick, call, err), for
    /// who serves it next. It has to be [stopped](VirtQueue::stop).
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn export(&self) -> io::Result<(RingFacts, [Option<File>; 3])> {
        let copy = |file: &Option<File>| file.as_ref().map(File::try_clone).transpose();
        let addresses = |at: Addresses| [at.descriptors, at.available, at.used];
        let facts = RingFacts {
            size: self.size,
            addresses: self.addresses.map(addresses),
            base: self.base,
            enabled: self.enabled,
            kick: self.kick.is_some(),
            call: self.call.is_some(),
            err: self.err.is_some(),
        };
        let files = [copy(&self.kick)?, copy(&self.call)?, copy(&self.err)?];
        Ok((facts, files))
    }

    /// Takes over what another process [knew](VirtQueue::export) of the ring.
    ///
    /// # Errors
    /// When it has more entries than it may have here.
    pub fn import(&mut self, facts: &RingFacts, files: [Option<File>; 3]) -> io::Result<()> {
        self.set_size(facts.size.into())?;
        self.addresses = facts
            .addresses
            .map(|[descriptors, available, used]| Addresses {
                descriptors,
                available,
                used,
            });
        (self.base, self.enabled) = (facts.base, facts.enabled);
        [self.kick, self.call, self.err] = files;
        Ok(())
    }

    /// Whether it would be started.
    pub fn is_ready(&self, map: &MemoryMap) -> bool {
        self.enabled
            && self.running.is_none()
            && self.addresses.is_some()
            && self.kick.is_some()
            && !map.is_empty()
    }

    /// Starts the thread if all that it needs has been said.
    ///
    /// # Errors
    /// When the ring does not lie in the shared memory, is misaligned, what the
    /// front end has kept cannot be of this ring, or the thread cannot be made.
    pub fn start_if_ready(
        &mut self,
        disk: &Arc<Disk>,
        map: &MemoryMap,
        kept: Option<&Inflight>,
        (event_idx, log): (bool, Option<QueueLog>),
    ) -> io::Result<()> {
        let (true, Some(addresses)) = (self.is_ready(map), self.addresses) else {
            return Ok(());
        };
        let mut queue = self.queue(addresses, map, event_idx)?;
        let inflight = self.recover(&mut queue, kept)?;
        let Some(kick) = self.kick.take() else {
            return Ok(());
        };
        let start = QueueStart {
            index: self.index,
            queue,
            memory: map.memory(),
            kick,
            call: self.call.take(),
            err: self.err.take(),
            inflight,
            log,
        };
        self.running = Some(start_queue(disk.clone(), start)?);
        tracing::debug!(queue = self.index, size = self.size, "virtqueue started");
        Ok(())
    }

    /// Finds out what an earlier process has left, and goes on there: the front
    /// end knows of its death only how far the used ring has come.
    fn recover(&self, queue: &mut Queue, kept: Option<&Inflight>) -> io::Result<Option<Recovered>> {
        let Some(part) = kept.and_then(|kept| kept.part(self.index)) else {
            return Ok(None);
        };
        let broken = |fault: Fault| {
            let index = self.index;
            let what = format!(
                "what the front end has kept of the requests in flight in queue {index} is not \
                 right: {fault}; the guest has to reset its disk"
            );
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let found = part
            .recover(queue.size(), queue.next_used())
            .map_err(broken)?;
        if let Some(next) = found.next_avail {
            queue.set_next_avail(next);
        }
        if !found.unfinished.is_empty() {
            tracing::info!(
                queue = self.index,
                requests = found.unfinished.len(),
                "going on with requests that were in flight when the disk was last served"
            );
        }
        Ok(Some(found))
    }

    fn queue(&self, at: Addresses, map: &MemoryMap, event_idx: bool) -> io::Result<Queue> {
        const OUTSIDE: &str = "a part of the ring is outside of the shared memory";
        let find = |address| map.guest_address(address).ok_or_else(|| invalid(OUTSIDE));
        let mut queue = Queue::new(self.most).map_err(io::Error::other)?;
        queue.try_set_size(self.size).map_err(io::Error::other)?;
        queue
            .try_set_desc_table_address(find(at.descriptors)?)
            .and_then(|()| queue.try_set_avail_ring_address(find(at.available).unwrap_or_default()))
            .and_then(|()| queue.try_set_used_ring_address(find(at.used).unwrap_or_default()))
            .map_err(io::Error::other)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let memory = map.memory();
        // Address 0 is what an unset part has, and no ring lies there.
        if !queue.is_valid(&*memory) || queue.avail_ring() == 0 || queue.used_ring() == 0 {
            return Err(invalid(OUTSIDE));
        }
        let used = queue
            .used_idx(&*memory, Ordering::Acquire)
            .map_err(io::Error::other)?;
        queue.set_next_avail(self.base);
        queue.set_next_used(used.0);
        Ok(queue)
    }
}

impl Drop for VirtQueue {
    fn drop(&mut self) {
        self.stop();
    }
}
