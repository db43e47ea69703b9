//! A front end with guest memory, rings and files, which follows the input.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use sealblk::virtio::Memory;
use vm_memory::{Bytes, FileOffset, GuestAddress};

use crate::driver::{Driver, Places, put};
use crate::source::Source;
use crate::wire::{self as w, Region};

/// Guest address of the region that the rings are in, and of that with data.
pub const RINGS: u64 = 0x10_0000;
pub const DATA: u64 = 0x1_4000_0000;
pub const RINGS_BYTES: u64 = 64 << 10;
pub const DATA_BYTES: u64 = 512 << 10;
const KEPT_BYTES: u64 = 16 << 10;
/// How far user addresses are from guest addresses.
const USER: u64 = 0x7000_0000_0000;

/// Queues that the front end has.
pub const QUEUES: usize = 2;

struct Queue {
    driver: Driver,
    kick: OwnedFd,
    call: OwnedFd,
}

/// The front end's side of one session.
pub struct FrontEnd {
    socket: UnixStream,
    memory: Memory,
    rings: OwnedFd,
    data: OwnedFd,
    queues: Vec<Queue>,
    /// What it keeps of the requests in flight, of its own making.
    kept: OwnedFd,
    /// Files of every other kind.
    strange: Vec<OwnedFd>,
    features: u64,
    ring_size: u16,
}

fn memfd(bytes: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, bytes).expect("room");
    file
}

fn event(count: u32, flags: EventfdFlags) -> OwnedFd {
    eventfd(count, flags | EventfdFlags::CLOEXEC).expect("an eventfd")
}

/// Memory as it has to be for requests in flight.
fn kept() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("inflight", flags).expect("a memfd");
    ftruncate(&file, KEPT_BYTES).expect("room");
    fcntl_add_seals(&file, SealFlags::SHRINK).expect("it is new");
    file
}

/// An eventfd that would block whoever adds to it.
fn saturated() -> OwnedFd {
    let full = event(0, EventfdFlags::empty());
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("room for this");
    full
}

fn strange_files() -> Vec<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let (hung_up, _) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let open = |path: &str, flags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).expect("it is there")
    };
    vec![
        memfd(0),
        memfd(1),
        read,
        write,
        hung_up,
        open("/dev/null", OFlags::RDWR),
        open("/dev/zero", OFlags::RDWR),
        open("/", OFlags::RDONLY),
        event(1, EventfdFlags::SEMAPHORE),
        saturated(),
    ]
}

impl FrontEnd {
    /// A front end that has said nothing yet, to a disk of `capacity` sectors.
    pub fn new(socket: UnixStream, capacity: u64, ring_size: u16) -> Self {
        let (rings, data) = (memfd(RINGS_BYTES), memfd(DATA_BYTES));
        let file = |fd: &OwnedFd| {
            let file = File::from(fd.try_clone().expect("a descriptor"));
            Some(FileOffset::new(file, 0))
        };
        let memory = Memory::from_ranges_with_files([
            (GuestAddress(RINGS), RINGS_BYTES as usize, file(&rings)),
            (GuestAddress(DATA), DATA_BYTES as usize, file(&data)),
        ]);
        let queues = (0..QUEUES as u64).map(|index| Queue {
            driver: Driver::new(Places::new(
                RINGS + index * RINGS_BYTES / QUEUES as u64,
                ring_size,
                (DATA, DATA + DATA_BYTES),
                capacity,
            )),
            kick: event(0, EventfdFlags::NONBLOCK),
            call: event(0, EventfdFlags::NONBLOCK),
        });
        FrontEnd {
            socket,
            memory: memory.expect("two regions"),
            queues: queues.collect(),
            rings,
            data,
            kept: kept(),
            strange: strange_files(),
            features: 0,
            ring_size,
        }
    }

    /// The socket.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    fn regions() -> [Region; 2] {
        [(RINGS, RINGS_BYTES), (DATA, DATA_BYTES)].map(|(guest, len)| Region {
            guest,
            len,
            user: guest + USER,
            offset: 0,
        })
    }

    fn tell(&self, request: u32, payload: &[u8], files: &[BorrowedFd<'_>]) {
        let bytes = w::message(request, w::VERSION, payload.len() as u32, payload);
        w::send(&self.socket, &bytes, files);
        w::drain(&self.socket);
    }

    /// Everything up to enabled rings, as QEMU does it, with these features.
    pub fn set_up(&mut self, features: u64) {
        self.features = features;
        self.tell(w::SET_OWNER, &[], &[]);
        self.tell(w::GET_FEATURES, &[], &[]);
        // MQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
        self.tell(w::SET_PROTOCOL_FEATURES, &0xb201u64.to_le_bytes(), &[]);
        self.tell(w::SET_FEATURES, &features.to_le_bytes(), &[]);
        let table = Region::table(2, &Self::regions());
        self.tell(
            w::SET_MEM_TABLE,
            &table,
            &[self.rings.as_fd(), self.data.as_fd()],
        );
        (0..QUEUES).for_each(|index| self.start(index, 0));
    }

    /// Sets one ring up, and enables it.
    pub fn start(&mut self, index: usize, base: u16) {
        let queue = &self.queues[index];
        let places = &queue.driver.places;
        let number = (index as u64).to_le_bytes();
        let index = index as u32;
        let at = [places.descriptors, places.used, places.available].map(|at| at + USER);
        self.tell(
            w::SET_VRING_NUM,
            &w::state(index, self.ring_size.into()),
            &[],
        );
        self.tell(w::SET_VRING_BASE, &w::state(index, base.into()), &[]);
        self.tell(w::SET_VRING_ADDR, &w::addresses(index, 0, at), &[]);
        self.tell(w::SET_VRING_CALL, &number, &[queue.call.as_fd()]);
        self.tell(w::SET_VRING_KICK, &number, &[queue.kick.as_fd()]);
        self.tell(w::SET_VRING_ENABLE, &w::state(index, 1), &[]);
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where things are of a ring.
    pub fn places(&self, index: usize) -> Places {
        self.queues[index].driver.places
    }

    /// Makes the chain at `head` available, and kicks.
    pub fn offer(&mut self, index: usize, head: u16) {
        let queue = &mut self.queues[index];
        let (places, available) = (queue.driver.places, queue.driver.available());
        let slot = u64::from(available % places.size);
        let at = places.available + 4 + 2 * slot;
        put(&self.memory, at, &head.to_le_bytes());
        queue
            .driver
            .set_available(&self.memory, available.wrapping_add(1));
        kick(queue);
    }

    /// What the device returned last: the head of a chain, and a length.
    pub fn returned(&self, index: usize) -> (u32, u32) {
        let queue = &self.queues[index].driver;
        let places = queue.places;
        let slot = u64::from(queue.available().wrapping_sub(1) % places.size);
        let at = places.used + 4 + 8 * slot;
        let word = |at| self.memory.read_obj(GuestAddress(at)).unwrap_or(u32::MAX);
        (word(at), word(at + 4))
    }

    /// Makes requests available, and kicks.
    pub fn submit(&mut self, source: &mut Source<'_>) {
        let queue = &mut self.queues[usize::from(source.byte() & 1)];
        for _ in 0..=source.below(8) {
            queue.driver.submit(&self.memory, source);
        }
        kick(queue);
    }

    /// Changes guest memory, under the hands of the device.
    pub fn scribble(&mut self, source: &mut Source<'_>) {
        let at = match source.below(3) {
            0 => RINGS + u64::from(source.u16()),
            1 => DATA + 8 * u64::from(source.u16()),
            _ => self.queues[0].driver.places.used + u64::from(source.byte() % 8),
        };
        let count = source.below(64);
        put(&self.memory, at, source.take(count));
    }

    /// Another available index, right or wrong, and a kick.
    pub fn jump(&mut self, source: &mut Source<'_>) {
        let queue = &mut self.queues[usize::from(source.byte() & 1)];
        let index = queue.driver.available().wrapping_add(source.u16());
        queue.driver.set_available(&self.memory, index);
        kick(queue);
    }

    /// Whether the device has returned as many chains as it was given.
    pub fn is_idle(&self) -> bool {
        self.queues.iter().all(|queue| {
            let used = GuestAddress(queue.driver.places.used + 2);
            let used: u16 = self.memory.read_obj(used).unwrap_or_default();
            used == queue.driver.available()
        })
    }

    /// Lets the device finish, for a short time.
    pub fn wait(&self) {
        for _ in 0..20 {
            if self.is_idle() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    /// Bytes that are no message, with files.
    pub fn send_bytes(&self, source: &mut Source<'_>) {
        let count = source.below(256);
        let bytes = source.take(count);
        let files = self.files(source, 0, &[]);
        w::send(&self.socket, bytes, &files);
    }

    /// A message, whose parts may all be wrong.
    pub fn send_message(&self, source: &mut Source<'_>) {
        let request = source.pick(&w::REQUESTS);
        let request = source.mostly(request, Source::u32);
        let (payload, usual) = self.payload(request, source);
        let files = self.files(source, request, &usual);
        let need_reply = source.byte() & 1 == 1;
        let flags = w::VERSION | if need_reply { w::NEED_REPLY } else { 0 };
        let flags = source.mostly(flags, Source::u32);
        let size = source.mostly(payload.len() as u32, Source::u32);
        w::send(
            &self.socket,
            &w::message(request, flags, size, &payload),
            &files,
        );
    }

    /// What a request carries, and which files go with it.
    fn payload(&self, request: u32, source: &mut Source<'_>) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let index = source.byte() & 1;
        let queue = &self.queues[usize::from(index)];
        let index = source.mostly(u32::from(index), |source| source.odd_number() as u32);
        let state = |number: u32| (w::state(index, number), vec![]);
        match request {
            w::SET_FEATURES => (self.features(source).to_le_bytes().to_vec(), vec![]),
            w::SET_PROTOCOL_FEATURES => {
                let features = source.mostly(0xb201, Source::odd_number);
                (features.to_le_bytes().to_vec(), vec![])
            }
            w::SET_MEM_TABLE => self.table(source),
            w::ADD_MEM_REG | w::REM_MEM_REG => {
                let (region, file) = self.region(source);
                let files = if request == w::ADD_MEM_REG {
                    vec![file]
                } else {
                    vec![]
                };
                (region.single(), files)
            }
            w::SET_VRING_NUM => {
                let size = u32::from(self.ring_size);
                state(source.mostly(size, |source| source.odd_number() as u32))
            }
            w::SET_VRING_BASE => state(source.mostly(0, |source| source.odd_number() as u32)),
            w::SET_VRING_ENABLE => state((source.byte() & 1).into()),
            w::GET_VRING_BASE => state(0),
            w::SET_VRING_ADDR => {
                let places = &queue.driver.places;
                let at = [places.descriptors, places.used, places.available];
                let at = at.map(|at| {
                    source.mostly(at + USER, |source| match source.below(3) {
                        0 => source.odd_number(),
                        1 => RINGS + USER + u64::from(source.u16()),
                        _ => DATA + USER + DATA_BYTES - u64::from(source.u16()),
                    })
                });
                (w::addresses(index, source.byte().into(), at), vec![])
            }
            w::SET_VRING_KICK | w::SET_VRING_CALL | w::SET_VRING_ERR => {
                let none = source.mostly(false, |_| true);
                let number = u64::from(index) | if none { w::NO_FD } else { 0 };
                let file = match request {
                    w::SET_VRING_KICK => &queue.kick,
                    _ => &queue.call,
                };
                let files = if none { vec![] } else { vec![file.as_fd()] };
                (number.to_le_bytes().to_vec(), files)
            }
            w::GET_CONFIG | w::SET_CONFIG => {
                let offset = source.pick(&[32, 0, 33, 60, 255, 256, u32::MAX]);
                let len = source.pick(&[1, 60, 57, 0, 256, 255]);
                let size = source.mostly(len, Source::u32);
                let mut data = source.take(1).to_vec();
                data.resize(len as usize, 0);
                (w::config(offset, size, &data), vec![])
            }
            w::GET_INFLIGHT_FD | w::SET_INFLIGHT_FD => {
                let at = u64::from(source.u16());
                let count = source.below(64);
                let _ = rustix::io::pwrite(&self.kept, source.take(count), at % KEPT_BYTES);
                let bytes = source.mostly(KEPT_BYTES, Source::odd_number);
                let offset = source.mostly(0, Source::odd_number);
                let queues = source.mostly(QUEUES as u16, Source::u16);
                let entries = source.mostly(self.ring_size, Source::u16);
                let files = match request {
                    w::SET_INFLIGHT_FD => vec![self.kept.as_fd()],
                    _ => vec![],
                };
                (w::inflight(bytes, offset, queues, entries), files)
            }
            w::SET_LOG_BASE => (source.take(32).to_vec(), vec![self.data.as_fd()]),
            w::SET_BACKEND_REQ_FD => (vec![], vec![self.strange[2].as_fd()]),
            w::SET_STATUS => (source.u64().to_le_bytes().to_vec(), vec![]),
            w::GET_FEATURES
            | w::GET_PROTOCOL_FEATURES
            | w::SET_OWNER
            | w::RESET_OWNER
            | w::RESET_DEVICE
            | w::GET_QUEUE_NUM
            | w::GET_MAX_MEM_SLOTS
            | w::GET_STATUS => (vec![], vec![]),
            _ => (source.take(64).to_vec(), vec![]),
        }
    }

    /// Feature bits: those of the set-up, some fewer, or anything.
    fn features(&self, source: &mut Source<'_>) -> u64 {
        let some = self.features & !(1 << source.byte() % 64);
        source.mostly(some, Source::odd_number)
    }

    fn region(&self, source: &mut Source<'_>) -> (Region, BorrowedFd<'_>) {
        let which = source.below(2);
        let mut region = Self::regions()[which];
        if source.byte() & 3 == 3 {
            // A third region, of the same file.
            region.guest += 1 << 32;
            region.user += 1 << 32;
        }
        region.len = source.mostly(region.len, Source::odd_number);
        region.guest = source.mostly(region.guest, Source::odd_number);
        region.user = source.mostly(region.user, Source::odd_number);
        region.offset = source.mostly(0, |source| u64::from(source.u16()) << (source.byte() % 48));
        let file = [&self.rings, &self.data][which];
        (region, file.as_fd())
    }

    fn table(&self, source: &mut Source<'_>) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let count = source.mostly(2, |source| source.below(36));
        let (regions, files): (Vec<_>, Vec<_>) = match count {
            2 if source.byte() & 7 != 7 => {
                let files = vec![self.rings.as_fd(), self.data.as_fd()];
                (Self::regions().to_vec(), files)
            }
            _ => (0..count).map(|_| self.region(source)).unzip(),
        };
        let count = source.mostly(count as u32, Source::u32);
        (Region::table(count, &regions), files)
    }

    /// The files to send: the usual ones, rarely others.
    fn files<'a>(
        &'a self,
        source: &mut Source<'_>,
        request: u32,
        usual: &[BorrowedFd<'a>],
    ) -> Vec<BorrowedFd<'a>> {
        let mut files = usual.to_vec();
        // Files are most of what these messages are about.
        let strange = match request {
            w::SET_VRING_KICK | w::SET_VRING_CALL | w::SET_VRING_ERR => source.byte() >= 0xc0,
            _ => source.rarely(),
        };
        if strange {
            files.clear();
            for _ in 0..source.mostly(1, |source| source.below(w::MAX_FILES)) {
                files.push(match source.below(self.strange.len() + 2) {
                    0 => self.socket.as_fd(),
                    1 => self.data.as_fd(),
                    index => self.strange[index - 2].as_fd(),
                });
            }
        }
        files
    }
}

fn kick(queue: &Queue) {
    // Its counter is never full: the input is short.
    let _ = rustix::io::write(&queue.kick, &1u64.to_ne_bytes());
}
