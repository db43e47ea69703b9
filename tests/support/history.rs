//! A load of reads and writes that judges what it is given: for each sector it is
//! known what was written and acknowledged, and a read returns that or something
//! newer. It goes on with a server that replaces one which was killed, as QEMU
//! does, and counts that every request is answered once.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::raw_front_end::{DATA, RawFrontEnd, RawOptions};
use super::raw_queue::{Descriptor, indirect, link, readable, writable};
use super::request::{Range, Request, S_OK, S_UNTOUCHED, SECTOR};
use super::server::DEADLINE;

const QUEUES: u32 = 2;
const RING: u16 = 128;
/// Descriptors that a request has to itself: header, data, status, and room.
const DESCRIPTORS: u16 = 4;
const DEPTH: u16 = RING / DESCRIPTORS;
/// The most sectors of a request.
const MOST: u64 = 64;
/// Guest memory of a request: a page for header, status and table, then data.
const ROOM: usize = 4096 + MOST as usize * SECTOR;
/// The sectors that lie beside one another, wherever their chunk is on the disk.
pub const CHUNK: u64 = MOST;
/// How many sectors the load is on, unless it is told.
const SECTORS: u64 = 2048;

/// Numbers that look as if by chance.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// What was written to a sector, by numbers that grow.
#[derive(Clone, Copy, Default)]
struct Register {
    acknowledged: u64,
    sent: u64,
}

#[derive(Debug)]
enum Doing {
    Flush,
    Write {
        sector: u64,
        sectors: u64,
    },
    /// With what was acknowledged of each sector at its start.
    Read {
        sector: u64,
        least: Vec<u64>,
    },
}

/// What the guest writes to a sector for the time of that number. Every eighth
/// is zeroes.
fn content(sector: u64, number: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if !number.is_multiple_of(8) {
        for (at, word) in bytes.chunks_exact_mut(16).zip(0u64..) {
            at[..8].copy_from_slice(&(sector << 8 | word).to_le_bytes());
            at[8..].copy_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

pub struct Load {
    pub front_end: RawFrontEnd,
    socket: PathBuf,
    dice: Dice,
    registers: Vec<Register>,
    /// Where on the disk each [`CHUNK`] of them begins.
    chunks: Vec<u64>,
    /// How long nothing may happen before that is a failure.
    pub patience: Duration,
    /// The longest time of late that nothing was answered in.
    pub longest: Duration,
    last: Instant,
    /// What each request of each queue is doing.
    doing: Vec<Vec<Option<Doing>>>,
    pub answered: u64,
    /// How many requests were taken by servers that did not answer them.
    pub taken_over: u64,
    /// How often the connection was lost.
    pub reconnects: u64,
    free: Vec<VecDeque<u16>>,
}

impl Load {
    /// Connects, and writes all sectors once. Panics where something is wrong.
    pub fn start(socket: &Path, seed: u64) -> Load {
        let chunks: Vec<u64> = (0..SECTORS).step_by(CHUNK as usize).collect();
        let mut load = Load::on_zeroes(socket, seed, &chunks);
        for sector in (0..SECTORS).step_by(MOST as usize) {
            load.write(0, sector, MOST);
            load.front_end.queues[0].kick();
            load.settle();
        }
        load
    }

    /// Connects to a disk that has zeroes in these [`CHUNK`]s, as a new one does.
    pub fn on_zeroes(socket: &Path, seed: u64, chunks: &[u64]) -> Load {
        let options = RawOptions {
            queues: QUEUES,
            queue_size: RING,
            memory: (QUEUES as usize * usize::from(DEPTH) * ROOM).next_multiple_of(4096),
            inflight: true,
            ..RawOptions::default()
        };
        let front_end = RawFrontEnd::connect(socket, &options).unwrap();
        assert!(front_end.protocol_features & super::message::PF_INFLIGHT_SHMFD != 0);
        let none = || (0..DEPTH).map(|_| None).collect();
        let mut load = Load {
            front_end,
            socket: socket.to_owned(),
            dice: Dice(seed),
            registers: Vec::new(),
            chunks: Vec::new(),
            patience: DEADLINE,
            longest: Duration::ZERO,
            last: Instant::now(),
            doing: (0..QUEUES).map(|_| none()).collect(),
            answered: 0,
            taken_over: 0,
            reconnects: 0,
            free: (0..QUEUES).map(|_| (0..DEPTH).collect()).collect(),
        };
        load.grow(chunks);
        load
    }

    /// There is more of the disk: zeroes, beginning at these sectors.
    pub fn grow(&mut self, chunks: &[u64]) {
        self.chunks.extend(chunks);
        let sectors = self.chunks.len() * CHUNK as usize;
        self.registers.resize(sectors, Register::default());
    }

    fn sectors(&self) -> u64 {
        self.registers.len() as u64
    }

    /// Where that sector is on the disk.
    fn place(&self, sector: u64) -> u64 {
        self.chunks[(sector / CHUNK) as usize] + sector % CHUNK
    }

    /// How many of so many sectors lie beside one another from there on.
    fn beside(&self, sector: u64, sectors: u64) -> u64 {
        let first = self.place(sector);
        let together = |ahead: &u64| self.place(sector + ahead) == first + ahead;
        (0..sectors).take_while(together).count() as u64
    }

    /// Waits for what is in flight, and hangs up.
    pub fn leave(&mut self) {
        self.settle();
        self.front_end.messages.hang_up();
    }

    /// Comes back after that.
    pub fn enter(&mut self) {
        self.reconnect();
        self.last = Instant::now();
    }

    /// Keeps both queues full for that long, through as many servers as there are.
    pub fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.fill();
            self.look();
        }
    }

    /// Goes on until something is answered.
    pub fn until_answered(&mut self) {
        let (before, start) = (self.answered, Instant::now());
        while self.answered == before {
            self.fill();
            self.look();
            assert!(
                start.elapsed() < self.patience,
                "nothing is answered any more"
            );
        }
    }

    /// Waits for all that is in flight, and reads every sector.
    pub fn finish(&mut self) {
        self.settle();
        for sector in (0..self.sectors()).step_by(MOST as usize) {
            self.read(1, sector, MOST);
            self.front_end.queues[1].kick();
            self.settle();
        }
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.doing.iter().flatten().flatten().count()
    }

    fn settle(&mut self) {
        let start = Instant::now();
        while self.in_flight() > 0 {
            self.look();
            let left = self.in_flight();
            assert!(start.elapsed() < self.patience, "{left} requests are lost");
        }
    }

    /// Sends requests until there is no room.
    pub fn fill(&mut self) {
        for queue in 0..QUEUES as usize {
            let mut sent = false;
            while !self.free[queue].is_empty() {
                let sectors = 1 + self.dice.below(MOST);
                let sector = self.dice.below(self.sectors() - sectors + 1);
                let sectors = self.beside(sector, sectors);
                match self.dice.below(16) {
                    0 => self.send(queue, Doing::Flush, Request::flush()),
                    1..=9 => self.write(queue, sector, sectors),
                    _ => self.read(queue, sector, sectors),
                }
                sent = true;
            }
            if sent {
                self.front_end.queues[queue].kick();
            }
        }
    }

    /// No driver has two writes to a sector in flight: one of those that are free
    /// is taken instead, or none.
    fn write(&mut self, queue: usize, sector: u64, sectors: u64) {
        let at = |sector: u64| sector as usize;
        let is_free = |register: &Register| register.acknowledged == register.sent;
        let range = &mut self.registers[at(sector)..at(sector + sectors)];
        let sectors = range
            .iter()
            .take_while(|register| is_free(register))
            .count() as u64;
        if sectors == 0 {
            return self.read(queue, sector, 1);
        }
        // All of a request is zeroes, or nothing.
        let number = range
            .iter()
            .map(|register| register.sent)
            .max()
            .unwrap_or(0)
            + 1;
        let mut data = Vec::new();
        for (sector, register) in (sector..).zip(&mut range[..at(sectors)]) {
            register.sent = number;
            data.extend(content(sector, number));
        }
        let place = self.place(sector);
        let request = match number % 8 {
            0 => Request::write_zeroes(&[Range::new(place, sectors as u32)]),
            _ => Request::write(place, &data),
        };
        self.send(queue, Doing::Write { sector, sectors }, request);
    }

    fn read(&mut self, queue: usize, sector: u64, sectors: u64) {
        let range = sector as usize..(sector + sectors) as usize;
        let least = self.registers[range].iter().map(|r| r.acknowledged);
        let doing = Doing::Read {
            sector,
            least: least.collect(),
        };
        self.send(
            queue,
            doing,
            Request::read(self.place(sector), sectors as usize * SECTOR),
        );
    }

    /// Where the memory of a request begins.
    fn room(queue: usize, slot: u16) -> usize {
        (queue * usize::from(DEPTH) + usize::from(slot)) * ROOM
    }

    fn send(&mut self, queue: usize, doing: Doing, request: Request) {
        let slot = self.free[queue].pop_front().expect("room for a request");
        let start = Self::room(queue, slot);
        let memory = &self.front_end.arena.memory;
        memory.write(start, &request.header());
        memory.write(start + 16, &[S_UNTOUCHED]);
        memory.write(start + 4096, &request.out);
        memory.fill(start + 4096 + request.out.len(), request.in_len, 0xdb);
        let guest = |offset: usize| DATA + (start + offset) as u64;
        let mut chain = vec![readable(guest(0), 16)];
        match (request.out.len(), request.in_len) {
            (0, 0) => {}
            (0, len) => chain.push(writable(guest(4096), len)),
            (len, _) => chain.push(readable(guest(4096), len)),
        }
        chain.push(writable(guest(16), 1));
        let head = slot * DESCRIPTORS;
        let chain = match slot % 2 {
            0 => {
                link(head, &mut chain);
                chain
            }
            _ => {
                link(0, &mut chain);
                let table: Vec<u8> = chain.iter().flat_map(Descriptor::bytes).collect();
                memory.write(start + 64, &table);
                vec![indirect(guest(64), table.len())]
            }
        };
        let ring = &mut self.front_end.queues[queue];
        ring.put_literally(head, &chain);
        ring.publish(head);
        self.doing[queue][usize::from(slot)] = Some(doing);
    }

    /// Takes answers, and goes to the next server if this one is gone.
    fn look(&mut self) {
        let mut idle = true;
        for queue in 0..QUEUES as usize {
            while let Some(used) = self.front_end.queues[queue].take_used() {
                idle = false;
                self.judge(queue, used.id);
            }
        }
        if !idle {
            self.longest = self.longest.max(self.last.elapsed());
            self.last = Instant::now();
        }
        if idle && self.front_end.messages.is_over() {
            self.reconnect();
        } else if idle {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// How many requests are noted as taken and not answered.
    fn noted(&self) -> u64 {
        let (_, memory) = self.front_end.inflight.as_ref().expect("it is kept");
        let mut bytes = vec![0; rustix::fs::fstat(memory).unwrap().st_size as usize];
        rustix::io::pread(memory, &mut bytes, 0).unwrap();
        let parts = bytes.chunks(bytes.len() / QUEUES as usize);
        let entries = parts.flat_map(|part| part[16..].chunks(16).take(RING.into()));
        entries.filter(|entry| entry[0] == 1).count() as u64
    }

    fn reconnect(&mut self) {
        let start = Instant::now();
        self.taken_over += self.noted();
        self.reconnects += 1;
        // A server may die while it is talked to.
        while let Err(error) = self.front_end.reconnect(&self.socket) {
            let why = error.kind();
            assert!(
                start.elapsed() < self.patience,
                "no server: {error} ({why:?})"
            );
            assert!(
                !matches!(why, io::ErrorKind::Other | io::ErrorKind::WouldBlock),
                "{error}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn judge(&mut self, queue: usize, id: u32) {
        let (slot, rest) = (id / u32::from(DESCRIPTORS), id % u32::from(DESCRIPTORS));
        assert_eq!(rest, 0, "{id} is the head of no chain");
        let doing = self.doing[queue]
            .get_mut(slot as usize)
            .and_then(Option::take);
        let doing = doing.unwrap_or_else(|| panic!("{id} of queue {queue} is answered twice"));
        let slot = slot as u16;
        let start = Self::room(queue, slot);
        let memory = &self.front_end.arena.memory;
        let status = memory.read(start + 16, 1);
        assert_eq!(status, [S_OK], "of {doing:?}");
        match doing {
            Doing::Flush => {}
            Doing::Write { sector, sectors } => {
                let range = sector as usize..(sector + sectors) as usize;
                for register in &mut self.registers[range] {
                    register.acknowledged = register.sent;
                }
            }
            Doing::Read { sector, least } => {
                let data = memory.read(start + 4096, least.len() * SECTOR);
                for ((bytes, least), sector) in data.chunks(SECTOR).zip(least).zip(sector..) {
                    let most = self.registers[sector as usize].sent;
                    let mut may_be = (least..=most).map(|number| content(sector, number));
                    assert!(
                        may_be.any(|content| content == bytes),
                        "sector {sector} has {:x?}, and not a write of {least} to {most}",
                        &bytes[..16]
                    );
                }
            }
        }
        self.free[queue].push_back(slot);
        self.answered += 1;
    }
}

/// Least, middle and largest of these.
pub fn spread(mut times: Vec<Duration>) -> (Duration, Duration, Duration) {
    times.sort_unstable();
    (times[0], times[times.len() / 2], times[times.len() - 1])
}

/// How often something is killed: what the variable says, or little.
pub fn kills(default: u32) -> u32 {
    std::env::var("SEALBLK_KILLS").map_or(default, |text| text.parse().unwrap())
}

/// Where the numbers of a run begin: what the variable says, or anything.
pub fn seed() -> u64 {
    let seed = std::env::var("SEALBLK_SEED").map_or_else(
        |_| {
            u64::from(std::process::id()) << 20 | u64::from(Instant::now().elapsed().subsec_nanos())
        },
        |text| text.parse().unwrap(),
    );
    eprintln!("SEALBLK_SEED={seed}");
    seed
}
