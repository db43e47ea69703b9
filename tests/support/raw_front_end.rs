//! A front end that does as it is told, right or wrong.
//!
//! Guest memory is two regions: the rings at guest address [`RINGS`], data at
//! [`DATA`]. Their user addresses are others on purpose, so that a server that
//! takes one for the other finds nothing.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use super::memory::{Arena, GuestMemory, Placed};
use super::message::{self as m, Messages, Region};
use super::raw_queue::{Descriptor, RawQueue, Used, indirect, link, readable, writable};
use super::request::{self, Config, Outcome, Request, S_OK, S_UNTOUCHED};
use super::server::{DEADLINE, eventually};

/// Guest address of the region that the rings are in.
pub const RINGS: u64 = 0x10_0000;
/// Guest address of the region that headers, data and status bytes are in.
pub const DATA: u64 = 0x1_4000_0000;
/// How far user addresses are from guest addresses.
const USER: u64 = 0x7000_0000_0000;

pub const RINGS_LEN: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
pub struct RawOptions {
    pub queues: u32,
    pub queue_size: u16,
    /// Where the first ring begins, in bytes of its region: a multiple of 16.
    pub rings_at: usize,
    /// The virtio feature bits to accept where they are offered.
    pub features: u64,
    /// Bytes of the data region.
    pub memory: usize,
    /// Whether to give the server a channel for what it has to say.
    pub channel: bool,
    /// Whether to keep what is in flight from one server to the next.
    pub inflight: bool,
}

impl Default for RawOptions {
    fn default() -> Self {
        RawOptions {
            queues: 1,
            queue_size: 64,
            rings_at: 0,
            features: request::ALL_FEATURES,
            memory: 8 << 20,
            channel: false,
            inflight: false,
        }
    }
}

impl RawOptions {
    /// Everything that is offered, without these feature bits.
    pub fn without(features: u64) -> Self {
        RawOptions {
            features: request::ALL_FEATURES & !features,
            ..RawOptions::default()
        }
    }
}

/// How a request's descriptors stand in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Direct,
    /// All of them in an indirect table.
    Indirect,
    /// Header, data and status share descriptors: one readable, one writable.
    Merged,
}

/// A request that was made available.
#[derive(Debug)]
pub struct Submitted {
    pub head: u16,
    request: Request,
    placed: Placed,
    /// Offset of the status byte.
    status: usize,
    form: Form,
}

pub struct RawFrontEnd {
    pub messages: Messages,
    pub queues: Vec<RawQueue>,
    pub features: u64,
    pub protocol_features: u64,
    /// What the server says by itself comes here, if it was given the other end.
    pub channel: Option<UnixStream>,
    wants_channel: bool,
    wants_inflight: bool,
    /// What the server has said of it, and the memory.
    pub inflight: Option<(Vec<u8>, OwnedFd)>,
    rings: Arc<GuestMemory>,
    pub arena: Arena,
}

impl RawFrontEnd {
    /// Connects and sets everything up as QEMU does, up to enabled rings.
    pub fn connect(socket: &Path, options: &RawOptions) -> io::Result<RawFrontEnd> {
        let mut front_end = Self::negotiate(socket, options)?;
        front_end.set_memory()?;
        for index in 0..options.queues {
            front_end.start_queue(index, 0)?;
            front_end.enable(index, true)?;
        }
        Ok(front_end)
    }

    /// Connects and negotiates features, but sets up neither memory nor rings.
    pub fn negotiate(socket: &Path, options: &RawOptions) -> io::Result<RawFrontEnd> {
        let mut front_end = Self::silent(socket, options)?;
        front_end.greet(options.features)?;
        Ok(front_end)
    }

    /// Connects anew with the rings and the memory as they are, and goes on
    /// behind the last used entry, as QEMU does when a server has gone.
    pub fn reconnect(&mut self, socket: &Path) -> io::Result<()> {
        self.messages = Messages::connect(socket)?;
        self.greet(self.features)?;
        self.set_memory()?;
        for index in 0..self.queues.len() as u32 {
            let base = self.queues[index as usize].used_idx();
            self.start_queue(index, base)?;
            self.enable(index, true)?;
        }
        Ok(())
    }

    fn greet(&mut self, features: u64) -> io::Result<()> {
        let messages = &mut self.messages;
        messages.tell_unacknowledged(m::SET_OWNER, &[])?;
        let features = messages.ask(m::GET_FEATURES, &[])?.number()? & features;
        let offered = messages.ask(m::GET_PROTOCOL_FEATURES, &[])?.number()?;
        let mut wanted = m::PF_MQ | m::PF_REPLY_ACK | m::PF_CONFIG | m::PF_CONFIGURE_MEM_SLOTS;
        if self.wants_channel {
            wanted |= m::PF_BACKEND_REQ;
        }
        if self.wants_inflight {
            wanted |= m::PF_INFLIGHT_SHMFD;
        }
        let protocol_features = offered & wanted;
        messages.tell_unacknowledged(m::SET_PROTOCOL_FEATURES, &protocol_features.to_le_bytes())?;
        if self.wants_channel {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_read_timeout(Some(DEADLINE))?;
            messages.tell(m::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
            self.channel = Some(ours);
        }
        messages.tell(m::SET_FEATURES, &features.to_le_bytes(), &[])?;
        self.features = features;
        self.protocol_features = protocol_features;
        if self.wants_inflight {
            self.keep_inflight()?;
        }
        Ok(())
    }

    /// Gives the server what is kept of the requests in flight. What there is not
    /// yet, the server makes.
    fn keep_inflight(&mut self) -> io::Result<()> {
        let (told, memory) = match self.inflight.take() {
            Some(kept) => kept,
            None => {
                let size = self.queues[0].size();
                let asked = m::inflight(0, 0, self.queues.len() as u16, size);
                let mut reply = self.messages.ask(m::GET_INFLIGHT_FD, &asked)?;
                let memory = reply.files.pop().expect("a file with the reply");
                (reply.payload, memory)
            }
        };
        let given = self
            .messages
            .tell(m::SET_INFLIGHT_FD, &told, &[memory.as_fd()]);
        self.inflight = Some((told, memory));
        given
    }

    /// Connects, and says nothing.
    pub fn silent(socket: &Path, options: &RawOptions) -> io::Result<RawFrontEnd> {
        let rings = GuestMemory::new(RINGS_LEN);
        let stride = RawQueue::bytes(options.queue_size);
        let queues = (0..options.queues as usize)
            .map(|index| {
                let at = options.rings_at + index * stride;
                RawQueue::new(Arc::clone(&rings), at, options.queue_size)
            })
            .collect();
        Ok(RawFrontEnd {
            messages: Messages::connect(socket)?,
            queues,
            features: 0,
            protocol_features: 0,
            channel: None,
            wants_channel: options.channel,
            wants_inflight: options.inflight,
            inflight: None,
            rings,
            arena: Arena::new(GuestMemory::new(options.memory)),
        })
    }

    /// The memory that the rings are in.
    pub fn rings(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.rings)
    }

    pub fn rings_region(&self) -> Region {
        Region {
            guest: RINGS,
            len: self.rings.len() as u64,
            user: RINGS + USER,
            file_offset: 0,
        }
    }

    pub fn data_region(&self) -> Region {
        Region {
            guest: DATA,
            len: self.arena.memory.len() as u64,
            user: DATA + USER,
            file_offset: 0,
        }
    }

    /// SET_MEM_TABLE with both regions.
    pub fn set_memory(&mut self) -> io::Result<()> {
        let table = Region::table(&[self.rings_region(), self.data_region()]);
        let data = Arc::clone(&self.arena.memory);
        self.messages
            .tell(m::SET_MEM_TABLE, &table, &[self.rings.fd(), data.fd()])
    }

    /// The same with the memory of another one, whatever has become of that.
    pub fn set_memory_of(&mut self, other: &RawFrontEnd) -> io::Result<()> {
        let table = Region::table(&[other.rings_region(), other.data_region()]);
        let files = [other.rings.fd(), other.arena.memory.fd()];
        self.messages.tell(m::SET_MEM_TABLE, &table, &files)
    }

    /// Starts a ring at an available index, without enabling it.
    pub fn start_queue(&mut self, index: u32, base: u16) -> io::Result<()> {
        let queue = &self.queues[index as usize];
        let (descriptors, available, used) = queue.areas();
        let user = |offset: usize| RINGS + USER + offset as u64;
        let addresses = m::vring_addr(index, user(descriptors), user(used), user(available));
        let messages = &mut self.messages;
        messages.tell(
            m::SET_VRING_NUM,
            &m::vring_state(index, queue.size().into()),
            &[],
        )?;
        messages.tell(m::SET_VRING_BASE, &m::vring_state(index, base.into()), &[])?;
        messages.tell(m::SET_VRING_ADDR, &addresses, &[])?;
        let number = u64::from(index).to_le_bytes();
        messages.tell(m::SET_VRING_CALL, &number, &[queue.call.as_fd()])?;
        messages.tell(m::SET_VRING_KICK, &number, &[queue.kick.as_fd()])
    }

    /// SET_VRING_ENABLE.
    pub fn enable(&mut self, index: u32, on: bool) -> io::Result<()> {
        self.messages
            .tell(m::SET_VRING_ENABLE, &m::vring_state(index, on.into()), &[])
    }

    /// GET_VRING_BASE: stops the ring and returns its next available index.
    pub fn stop_queue(&mut self, index: u32) -> io::Result<u16> {
        let reply = self
            .messages
            .ask(m::GET_VRING_BASE, &m::vring_state(index, 0))?;
        Ok(u16::from_le_bytes(reply.payload[4..6].try_into().unwrap()))
    }

    /// GET_CONFIG of so many bytes.
    pub fn config_bytes(&mut self, offset: u32, len: usize) -> io::Result<Vec<u8>> {
        let reply = self
            .messages
            .ask(m::GET_CONFIG, &m::config_space(offset, 0, &vec![0; len]))?;
        if reply.payload.len() != 12 + len {
            return Err(io::Error::other(format!(
                "asked for {len} bytes, got a payload of {}",
                reply.payload.len()
            )));
        }
        Ok(reply.payload[12..].to_vec())
    }

    /// Waits for the server to say that the configuration has changed.
    pub fn config_changed(&mut self) {
        let mut message = [0; 12];
        let channel = self.channel.as_mut().expect("a channel");
        channel.read_exact(&mut message).unwrap();
        // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, no payload.
        let words = [2u32, m::VERSION, 0].map(u32::to_le_bytes).concat();
        assert_eq!(message[..], words);
    }

    /// Whether the server has said anything that was not read.
    pub fn heard_something(&mut self) -> bool {
        let channel = self.channel.as_mut().expect("a channel");
        channel.set_nonblocking(true).unwrap();
        let heard = channel.read(&mut [0; 1]).is_ok();
        channel.set_nonblocking(false).unwrap();
        heard
    }

    pub fn config(&mut self) -> io::Result<Config> {
        Ok(Config::parse(&self.config_bytes(0, request::CONFIG_BYTES)?))
    }

    /// SET_CONFIG of the writeback byte.
    pub fn set_writeback(&mut self, on: bool) -> io::Result<()> {
        let payload = m::config_space(request::CONFIG_WRITEBACK, 0, &[on.into()]);
        self.messages.tell(m::SET_CONFIG, &payload, &[])
    }

    /// Copies bytes into the data region; returns their guest address.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let piece = self.arena.take(bytes.len());
        self.arena.memory.write(piece.offset, bytes);
        DATA + piece.offset as u64
    }

    /// What stands at a guest address of the data region.
    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        self.arena.memory.read((address - DATA) as usize, len)
    }

    /// Makes a request available and kicks.
    pub fn submit(&mut self, queue: usize, request: Request, form: Form) -> Submitted {
        let submitted = self.publish(queue, request, form);
        self.queues[queue].kick();
        submitted
    }

    /// Makes a request available without a kick.
    pub fn publish(&mut self, queue: usize, request: Request, form: Form) -> Submitted {
        let placed = self.arena.place(&request);
        let (chain, status) = match form {
            Form::Merged => self.merged(&request),
            Form::Direct | Form::Indirect => self.separate(&request, &placed),
        };
        let head = match form {
            Form::Indirect => {
                let table = self.table(chain);
                self.queues[queue].put_chain(vec![table])
            }
            _ => self.queues[queue].put_chain(chain),
        };
        self.queues[queue].publish(head);
        Submitted {
            head,
            request,
            placed,
            status,
            form,
        }
    }

    fn separate(&mut self, request: &Request, placed: &Placed) -> (Vec<Descriptor>, usize) {
        let status = self.put(&[S_UNTOUCHED]);
        let mut chain = vec![readable(self.put(&request.header()), 16)];
        let guest = |offset: usize| DATA + offset as u64;
        chain.extend(placed.outs.iter().map(|p| readable(guest(p.offset), p.len)));
        chain.extend(placed.ins.iter().map(|p| writable(guest(p.offset), p.len)));
        chain.push(writable(status, 1));
        (chain, (status - DATA) as usize)
    }

    fn merged(&mut self, request: &Request) -> (Vec<Descriptor>, usize) {
        let mut out = request.header().to_vec();
        out.extend(&request.out);
        let into = self.put(&vec![S_UNTOUCHED; request.in_len + 1]);
        let chain = vec![
            readable(self.put(&out), out.len()),
            writable(into, request.in_len + 1),
        ];
        (chain, (into - DATA) as usize + request.in_len)
    }

    /// Puts a chain into an indirect table; returns the descriptor for it.
    pub fn table(&mut self, mut chain: Vec<Descriptor>) -> Descriptor {
        link(0, &mut chain);
        let bytes: Vec<u8> = chain.iter().flat_map(Descriptor::bytes).collect();
        indirect(self.put(&bytes), bytes.len())
    }

    /// Waits for the next used entry of a queue.
    pub fn used(&mut self, queue: usize) -> Used {
        eventually("the server returned a descriptor chain", || {
            self.queues[queue].take_used()
        })
    }

    /// What came of a request whose used entry was taken.
    pub fn outcome(&mut self, submitted: Submitted, used: Used) -> Outcome {
        assert_eq!(used.id, u32::from(submitted.head));
        let in_len = submitted.request.in_len;
        let status = self.arena.memory.read(submitted.status, 1)[0];
        let mut data = self.arena.finish(submitted.placed, &submitted.request);
        if submitted.form == Form::Merged {
            data = self.arena.memory.read(submitted.status - in_len, in_len);
        }
        Outcome {
            status,
            used_len: used.len,
            data,
        }
    }

    /// Submits a request to an otherwise idle queue and waits for it.
    pub fn run(&mut self, queue: usize, request: Request, form: Form) -> Outcome {
        let submitted = self.submit(queue, request, form);
        let used = self.used(queue);
        self.outcome(submitted, used)
    }

    /// As [`run`](Self::run); panics unless the status is OK.
    pub fn succeed(&mut self, queue: usize, request: Request, form: Form) -> Outcome {
        let outcome = self.run(queue, request, form);
        assert_eq!(outcome.status, S_OK);
        outcome
    }
}
