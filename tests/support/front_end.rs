//! A blocking front end on the `virtio-driver` crate: connection set-up,
//! virtqueues and notifications are its own, and independent of sealblk.
//!
//! Requests are built here on its `Virtqueue`, not with its `VirtioBlkQueue`:
//! that one has no GET_ID, no several ranges in a DISCARD, no unknown types,
//! hides `used.len`, and presets the status byte to 0, so that a server that
//! never writes a status would pass for one that succeeds.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::virtqueue::{Virtqueue, VirtqueueLayout};
use virtio_driver::{
    ByteValued, EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioFeatureFlags,
    VirtioTransport, iovec,
};

use super::memory::{Arena, GuestMemory, Piece, Placed};
use super::request::{self, Config, Outcome, Range, Request, S_OK, S_UNTOUCHED};
use super::server::DEADLINE;

/// What to ask of the server.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub queues: usize,
    /// A power of two.
    pub queue_size: u16,
    /// The feature bits to accept where they are offered.
    pub features: u64,
    /// Bytes of guest memory for data.
    pub memory: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            queues: 1,
            queue_size: 128,
            // The crate's rings have no indirect descriptors, but accepting
            // the feature obliges a driver to nothing.
            features: request::ALL_FEATURES,
            memory: 16 << 20,
        }
    }
}

impl Options {
    /// Everything that is offered, without these feature bits.
    pub fn without(features: u64) -> Self {
        Options {
            features: request::ALL_FEATURES & !features,
            ..Options::default()
        }
    }
}

/// The part of a request that lies beside the ring.
#[derive(Clone, Copy)]
#[repr(C)]
struct Framing {
    header: [u8; 16],
    status: u8,
}

struct Pending {
    ticket: u64,
    request: Request,
    placed: Placed,
}

struct Queue {
    ring: Virtqueue<'static, Framing>,
    notifier: Box<dyn QueueNotifier>,
    called: Arc<EventFd>,
    /// By the index of the chain's first descriptor.
    pending: HashMap<u16, Pending>,
    /// How many used entries were taken, modulo 2^16.
    taken: u16,
}

/// One connection to a vhost-user-blk server. Dropping it disconnects.
pub struct FrontEnd {
    // The queues point into memory of the transport: they are dropped first.
    queues: Vec<Queue>,
    transport: Box<VhostUser<VirtioBlkConfig, Framing>>,
    arena: Arena,
    next_ticket: u64,
}

impl FrontEnd {
    pub fn connect(socket: &Path, options: &Options) -> io::Result<FrontEnd> {
        let path = socket.to_str().expect("a socket path in UTF-8");
        let mut transport = Box::new(VhostUser::<VirtioBlkConfig, Framing>::new(
            path,
            options.features,
        )?);
        let features = VirtioFeatureFlags::from_bits_truncate(transport.get_features());
        let layout =
            VirtqueueLayout::new::<Framing>(options.queues, options.queue_size.into(), features)?;
        let translators: Vec<_> = (0..options.queues)
            .map(|_| transport.iova_translator())
            .collect();
        let memory = transport.alloc_queue_mem(&layout)?.as_mut_ptr();
        let mut rings = Vec::new();
        for (index, translator) in translators.into_iter().enumerate() {
            // SAFETY: the transport mapped `queues * end_offset` bytes, which
            // stay mapped until it is dropped, and each ring gets its own part
            // of them. The rings are dropped before the transport.
            let part = unsafe {
                std::slice::from_raw_parts_mut(
                    memory.add(index * layout.end_offset),
                    layout.end_offset,
                )
            };
            let mut ring = Virtqueue::new(translator, part, options.queue_size, features)?;
            ring.set_used_notif_enabled(true);
            rings.push(ring);
        }
        transport.setup_queues(&rings)?;

        let memory = GuestMemory::new(options.memory);
        transport.map_mem_region(
            memory.pointer(0, memory.len()) as usize,
            memory.len(),
            memory.fd().as_raw_fd(),
            0,
        )?;
        let queues = rings
            .into_iter()
            .enumerate()
            .map(|(index, ring)| Queue {
                ring,
                notifier: transport.get_submission_notifier(index),
                called: transport.get_completion_fd(index),
                pending: HashMap::new(),
                taken: 0,
            })
            .collect();
        Ok(FrontEnd {
            queues,
            transport,
            arena: Arena::new(memory),
            next_ticket: 0,
        })
    }

    /// The feature bits that were negotiated.
    pub fn features(&self) -> u64 {
        self.transport.get_features()
    }

    pub fn has(&self, feature: u64) -> bool {
        self.features() & feature != 0
    }

    /// The number of queues that the server has, by the vhost-user message.
    pub fn max_queues(&self) -> Option<usize> {
        self.transport.max_queues()
    }

    pub fn config(&self) -> io::Result<Config> {
        let raw = self.transport.get_config()?;
        Ok(Config::parse(raw.as_slice()))
    }

    /// Puts a request into the ring and notifies the server if it wants that.
    /// The ticket comes back with the outcome.
    pub fn submit(&mut self, queue: usize, request: Request) -> io::Result<u64> {
        let placed = self.arena.place(&request);
        let memory = Arc::clone(&self.arena.memory);
        let queue = &mut self.queues[queue];
        let id = queue.ring.add_request(|framing, add| {
            *framing = Framing {
                header: request.header(),
                status: S_UNTOUCHED,
            };
            add(slice(&mut framing.header), false)?;
            for piece in &placed.outs {
                add(guest_slice(&memory, piece), false)?;
            }
            for piece in &placed.ins {
                add(guest_slice(&memory, piece), true)?;
            }
            add(slice(std::slice::from_mut(&mut framing.status)), true)
        })?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let pending = Pending {
            ticket,
            request,
            placed,
        };
        assert!(queue.pending.insert(id, pending).is_none());
        if queue.ring.avail_notif_needed() {
            queue.notifier.notify()?;
        }
        Ok(ticket)
    }

    /// The next completion of a queue; sleeps on the call eventfd for it.
    /// Fails with `TimedOut` when nothing comes.
    pub fn complete(&mut self, queue: usize) -> io::Result<(u64, Outcome)> {
        loop {
            if let Some(done) = self.try_complete(queue) {
                return Ok(done);
            }
            let called = &self.queues[queue].called;
            let timeout = Timespec {
                tv_sec: DEADLINE.as_secs() as i64,
                tv_nsec: 0,
            };
            if poll(&mut [PollFd::new(called, PollFlags::IN)], Some(&timeout))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            called.read()?;
        }
    }

    /// A completion of the queue, if there is one by now.
    pub fn try_complete(&mut self, queue: usize) -> Option<(u64, Outcome)> {
        let queue = &mut self.queues[queue];
        let done = queue.ring.completions().next()?;
        let (id, status) = (done.id, done.req.status);
        // Written before the index that said so.
        let (_, used_len) = used_entry(&queue.ring, queue.taken);
        queue.taken = queue.taken.wrapping_add(1);
        let pending = queue
            .pending
            .remove(&id)
            .expect("the server completed a request that was never made");
        let data = self.arena.finish(pending.placed, &pending.request);
        let outcome = Outcome {
            status,
            used_len,
            data,
        };
        Some((pending.ticket, outcome))
    }

    /// How many requests are in flight on a queue.
    pub fn in_flight(&self, queue: usize) -> usize {
        self.queues[queue].pending.len()
    }

    /// Submits one request to an otherwise idle queue and waits for it.
    pub fn run(&mut self, queue: usize, request: Request) -> Outcome {
        assert_eq!(self.in_flight(queue), 0, "use submit and complete");
        let ticket = self.submit(queue, request).unwrap();
        let (done, outcome) = self.complete(queue).unwrap();
        assert_eq!(done, ticket);
        outcome
    }

    /// As [`run`](Self::run); panics unless the status is OK.
    pub fn succeed(&mut self, queue: usize, request: Request) -> Outcome {
        let (kind, sector) = (request.kind, request.sector);
        let outcome = self.run(queue, request);
        assert_eq!(outcome.status, S_OK, "type {kind} at sector {sector}");
        outcome
    }

    pub fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        self.succeed(0, Request::read(sector, len)).data
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) {
        self.succeed(0, Request::write(sector, data));
    }

    pub fn flush(&mut self) {
        self.succeed(0, Request::flush());
    }

    pub fn discard(&mut self, ranges: &[Range]) {
        self.succeed(0, Request::discard(ranges));
    }

    pub fn write_zeroes(&mut self, ranges: &[Range]) {
        self.succeed(0, Request::write_zeroes(ranges));
    }

    /// The disk's identity, up to the first NUL.
    pub fn id(&mut self) -> Vec<u8> {
        let mut id = self.succeed(0, Request::get_id()).data;
        if let Some(end) = id.iter().position(|byte| *byte == 0) {
            id.truncate(end);
        }
        id
    }
}

fn slice(bytes: &mut [u8]) -> iovec {
    iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

fn guest_slice(memory: &GuestMemory, piece: &Piece) -> iovec {
    iovec {
        iov_base: memory.pointer(piece.offset, piece.len).cast(),
        iov_len: piece.len,
    }
}

/// Id and length in the entry of the used ring that is taken next. Only right
/// once the server has filled it.
fn used_entry(ring: &Virtqueue<'static, Framing>, taken: u16) -> (u32, u32) {
    let slot = usize::from(taken % ring.queue_size());
    // SAFETY: the device area is `flags`, `idx` (2 bytes each) and then
    // `queue_size` entries of 8 bytes; it is 4-byte aligned.
    unsafe {
        let entry = ring.device_area_ptr().add(4 + slot * 8).cast::<u32>();
        (entry.read_volatile(), entry.add(1).read_volatile())
    }
}
