//! A front end that mostly does as it should, and rarely does not: features, memory
//! tables, single regions, rings, kicks, logs of dirty pages, memory for requests in
//! flight, resets, configuration and the channel of the back end, in an order that
//! makes sense, with files of every kind, while requests run.
//!
//! Whatever it says: nothing panics, the server ends when it is stopped, and serves
//! the next front end; no thread, no descriptor and no mapping is left over; not a
//! byte is written outside of the disk, of the log of dirty pages or of the memory
//! for requests in flight, and with a log in place each page that has changed is
//! marked there.
#![no_main]

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use sealblk::units::SectorSize;
use sealblk::vhost::{Listener, Server, SocketParams};
use sealblk_fuzz::chain::Descriptor;
use sealblk_fuzz::disk::{self, BYTES, Shape, eventually};
use sealblk_fuzz::driver::put;
use sealblk_fuzz::front_end::{DATA, DATA_BYTES, FrontEnd, QUEUES};
use sealblk_fuzz::source::Source;
use sealblk_fuzz::wire as w;
use vm_memory::{Bytes, GuestAddress};

/// `VHOST_USER_F_PROTOCOL_FEATURES` and `VHOST_F_LOG_ALL`.
const PROTOCOL_FEATURES: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;

/// Bytes of a log for all guest memory, and where it is in its file.
const LOG_BYTES: u64 = ((DATA + DATA_BYTES) / 4096).div_ceil(8);
const LOG_OFFSET: u64 = 4096;
const PAGE: u64 = 4096;

static BACKING: LazyLock<File> = LazyLock::new(|| {
    // What Rust's own start does for every program.
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    disk::backing()
});

static SOCKET: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("sealblk-session-{}", std::process::id());
    std::env::temp_dir().join(name)
});

/// Descriptors, threads, and mappings of memory that somebody gave us.
fn census() -> [usize; 3] {
    let count = |path| std::fs::read_dir(path).expect("/proc").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc");
    let given = [
        "memfd:guest",
        "memfd:inflight",
        "memfd:log",
        "sealblk-inflight",
    ];
    let given = maps
        .lines()
        .filter(|line| given.iter().any(|name| line.contains(name)));
    [
        count("/proc/self/fd"),
        count("/proc/self/task"),
        given.count(),
    ]
}

fuzz_target!(|bytes: &[u8]| {
    LazyLock::force(&BACKING);
    LazyLock::force(&SOCKET);
    let before = census();
    session(bytes);
    // The kernel's own workers for a ring end shortly after it.
    eventually("descriptors, threads and mappings are as before", || {
        census() == before
    });
    assert!(disk::is_intact(&BACKING), "written outside of the disk");
});

fn session(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let flags = source.byte();
    let shape = Shape {
        sector_size: match flags & 1 {
            0 => SectorSize::B512,
            _ => SectorSize::B4096,
        },
        read_only: flags & 6 == 6,
        queues: QUEUES,
    };
    let disk = Arc::new(disk::disk(&BACKING, shape));
    let features = disk.shape().features() | PROTOCOL_FEATURES;
    let listener = Listener::bind(&SocketParams {
        path: SOCKET.clone(),
        mode: 0o600,
        group: None,
    });
    let server = Server::new(disk, listener.expect("a socket")).expect("an eventfd");
    let stopper = server.stopper();
    let server = std::thread::spawn(move || server.run());
    let connect = || {
        let socket = UnixStream::connect(&*SOCKET).expect("the server listens");
        FrontEnd::new(socket, BYTES / 512, 256)
    };
    let mut story = Story::new(connect(), features);
    match flags & 0x30 {
        0x30 => story.be_logged(&mut source),
        _ => story.tell(&mut source),
    }
    if flags & 8 == 8 {
        drop(story.front_end.socket().shutdown(Shutdown::Both));
        let mut next = connect();
        next.set_up(features);
        next.submit(&mut Source::new(&[]));
        eventually("the next front end is served", || {
            w::drain(next.socket());
            next.is_idle()
        });
    }
    stopper.stop();
    eventually("the server ends", || server.is_finished());
    let ended = server.join().expect("a panic ends the process");
    ended.expect("the server was stopped");
    story.check_files();
}

fn memfd(name: &str, bytes: u64, seals: Option<SealFlags>) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags).expect("a memfd"));
    file.set_len(bytes).expect("room");
    if let Some(seals) = seals {
        fcntl_add_seals(&file, seals).expect("it is new");
    }
    file
}

/// A front end and its files.
struct Story {
    front_end: FrontEnd,
    features: u64,
    /// Each with a page before and after the log.
    logs: Vec<File>,
    kept: File,
    channel: Vec<OwnedFd>,
    /// Whether each log was said to be where it is.
    usual_logs: bool,
}

impl Story {
    fn new(front_end: FrontEnd, features: u64) -> Self {
        Story {
            front_end,
            features,
            logs: Vec::new(),
            kept: memfd("inflight", 32 << 10, Some(SealFlags::SHRINK)),
            channel: Vec::new(),
            usual_logs: true,
        }
    }

    fn tell(&mut self, source: &mut Source<'_>) {
        let less = u64::from(source.byte() & 3) << 28;
        self.set_up(self.features & !less);
        for _ in 0..48 {
            if source.is_empty() {
                return;
            }
            match source.below(16) {
                0..=3 => self.front_end.submit(source),
                4 => self.front_end.wait(),
                5 => self.log(source),
                6 => self.inflight(source),
                7 => self.stop_and_start(source),
                8 => self.memory(source),
                9 => self.config(source),
                10 => self.backend_channel(source),
                11 => self.reset(source),
                12 => self.features(source),
                13 | 14 => self.front_end.send_message(source),
                _ => self.calls(source),
            }
            w::drain(self.front_end.socket());
        }
    }

    fn say(&self, request: u32, payload: &[u8], files: &[BorrowedFd<'_>], source: &mut Source<'_>) {
        let flags = match source.byte() & 1 {
            0 => w::VERSION,
            _ => w::VERSION | w::NEED_REPLY,
        };
        // Rarely without its files, or with one more.
        let mut files = files.to_vec();
        if source.rarely() {
            match files.pop() {
                Some(file) if source.byte() & 1 == 1 => files.extend([file, file]),
                Some(_) => {}
                None => files.push(self.kept.as_fd()),
            }
        }
        let message = w::message(request, flags, payload.len() as u32, payload);
        w::send(self.front_end.socket(), &message, &files);
    }

    /// A log of dirty pages, mostly for all memory, and the features that use it.
    fn log(&mut self, source: &mut Source<'_>) {
        let rounded = LOG_BYTES.next_multiple_of(PAGE);
        let file = memfd("log", LOG_OFFSET + rounded + PAGE, None);
        let canary = [0xc5; PAGE as usize];
        file.write_all_at(&canary, 0).expect("memory");
        file.write_all_at(&canary, LOG_OFFSET + rounded)
            .expect("memory");
        let usual = (rounded, LOG_OFFSET);
        let (bytes, offset) = source.mostly(usual, |source| match source.below(4) {
            0 => (LOG_BYTES, LOG_OFFSET),
            1 => (source.odd_number(), LOG_OFFSET),
            2 => (rounded, source.odd_number()),
            _ => (1, LOG_OFFSET),
        });
        let payload = [bytes, offset].map(u64::to_le_bytes).concat();
        self.say(w::SET_LOG_BASE, &payload, &[file.as_fd()], source);
        let on = source.byte() & 3 != 3;
        let features = self.features | if on { LOG_ALL } else { 0 };
        self.say(w::SET_FEATURES, &features.to_le_bytes(), &[], source);
        self.usual_logs &= (bytes, offset) == usual;
        self.logs.push(file);
    }

    /// Reads of the guest while there is a log, which is replaced by others: each page
    /// that has changed is marked in the one that was in place.
    fn be_logged(&mut self, source: &mut Source<'_>) {
        let calm = &mut Source::new(&[]);
        self.set_up(self.features);
        self.renew_log(calm);
        for _ in 0..12 {
            if source.is_empty() {
                return;
            }
            if source.below(4) == 3 {
                self.renew_log(calm);
            }
            self.logged_read(source);
        }
    }

    /// What a front end of logs and of the back end's channel has to say before it
    /// uses them: MQ, LOG_SHMFD, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE,
    /// CONFIGURE_MEM_SLOTS.
    fn set_up(&mut self, features: u64) {
        self.front_end.set_up(features);
        let protocol: u64 = 0xb223;
        let calm = &mut Source::new(&[]);
        self.say(w::SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[], calm);
    }

    /// As [`Story::log`], until the server has said that it has it.
    fn renew_log(&mut self, calm: &mut Source<'_>) {
        self.log(calm);
        self.say(w::GET_QUEUE_NUM, &[], &[], calm);
        let mut said = Vec::new();
        eventually("the log is taken", || {
            w::take(self.front_end.socket(), &mut said);
            w::has_answer(&said, w::GET_QUEUE_NUM)
        });
    }

    fn logged_read(&mut self, source: &mut Source<'_>) {
        let (header, status) = (DATA, DATA + 16 + u64::from(source.byte()));
        let sectors = 1 + u64::from(source.byte() & 31);
        let bytes = 4096 * sectors.min(BYTES / 4096);
        let at = DATA + 8192 + u64::from(source.u16());
        let places = self.front_end.places(0);
        let memory = self.front_end.memory();
        let fill = vec![0xaa; DATA_BYTES as usize];
        put(memory, DATA, &fill);
        put(memory, header, &[0; 16]);
        let chain = [(header, 16, 1, 1), (at, bytes, 3, 2), (status, 1, 2, 0)];
        for (index, (address, len, flags, next)) in chain.into_iter().enumerate() {
            let descriptor = Descriptor {
                address,
                len: len as u32,
                flags,
                next,
            };
            put(
                memory,
                places.descriptors + 16 * index as u64,
                &descriptor.bytes(),
            );
        }
        let before = all_data(memory);
        self.front_end.offer(0, 0);
        eventually("the disk is read", || self.front_end.is_idle());
        let after = all_data(self.front_end.memory());
        let pages = before
            .chunks(PAGE as usize)
            .zip(after.chunks(PAGE as usize));
        for (page, (was, is)) in pages.enumerate() {
            let page = DATA / PAGE + page as u64;
            let touched = (page * PAGE) < at + bytes && (page + 1) * PAGE > at;
            let answered = page == status / PAGE;
            assert!(
                was == is || self.is_marked(page),
                "page {page:#x} has changed, unmarked"
            );
            assert!(
                was == is || touched || answered,
                "page {page:#x} is none of the request's"
            );
        }
    }

    fn is_marked(&self, page: u64) -> bool {
        let mut byte = [0];
        let at = LOG_OFFSET + page / 8;
        self.logs.last().is_some_and(|log| {
            log.read_exact_at(&mut byte, at).is_ok() && byte[0] & (1 << (page % 8)) != 0
        })
    }

    /// Memory for requests in flight: asked for, or given.
    fn inflight(&mut self, source: &mut Source<'_>) {
        let bytes = source.mostly(32 << 10, Source::odd_number);
        let offset = source.mostly(0, Source::odd_number);
        let queues = source.mostly(QUEUES as u16, Source::u16);
        let entries = source.mostly(256, Source::u16);
        let payload = w::inflight(bytes, offset, queues, entries);
        match source.below(4) {
            0 => self.say(w::GET_INFLIGHT_FD, &payload, &[], source),
            1 => {
                // Not sealed, or too small.
                let bytes = source.pick(&[32 << 10, 0, 4096]);
                let other = memfd("inflight", bytes, None);
                self.say(w::SET_INFLIGHT_FD, &payload, &[other.as_fd()], source);
            }
            _ => {
                let count = source.below(64);
                let bytes = source.take(count);
                let _ = self
                    .kept
                    .write_all_at(bytes, u64::from(source.u16() & 0x3fff));
                self.say(w::SET_INFLIGHT_FD, &payload, &[self.kept.as_fd()], source);
            }
        }
    }

    /// A ring is stopped, and started again where it was, mostly.
    fn stop_and_start(&mut self, source: &mut Source<'_>) {
        let index = source.below(QUEUES);
        self.say(w::GET_VRING_BASE, &w::state(index as u32, 0), &[], source);
        w::drain(self.front_end.socket());
        if !source.rarely() {
            let base = source.mostly(0, Source::u16);
            self.front_end.start(index, base);
        }
    }

    /// A region more or less, or all of them anew.
    fn memory(&mut self, source: &mut Source<'_>) {
        let bytes = source.pick(&[64 << 10, 4096, 1 << 20]);
        let file = memfd("guest", bytes, None);
        let at = 0x2_0000_0000 + (u64::from(source.byte() & 7) << 20);
        let region = w::Region {
            guest: source.mostly(at, Source::odd_number),
            len: source.mostly(bytes, Source::odd_number),
            user: source.mostly(at + 0x7000_0000_0000, Source::odd_number),
            offset: source.mostly(0, Source::odd_number),
        };
        match source.below(3) {
            0 => self.say(w::REM_MEM_REG, &region.single(), &[], source),
            _ => self.say(w::ADD_MEM_REG, &region.single(), &[file.as_fd()], source),
        }
        if source.rarely() {
            // Cut short while it is mapped: nobody may touch what is not there.
            self.say(w::REM_MEM_REG, &region.single(), &[], source);
        }
    }

    fn config(&mut self, source: &mut Source<'_>) {
        let offset = source.pick(&[0, 32, 20, 255, 256]);
        let len = source.pick(&[60, 1, 0, 256]);
        let value = [source.byte() & 1];
        match source.below(2) {
            0 => self.say(
                w::GET_CONFIG,
                &w::config(offset, len, &vec![0; len as usize]),
                &[],
                source,
            ),
            _ => self.say(w::SET_CONFIG, &w::config(32, 1, &value), &[], source),
        }
    }

    /// The channel on which the back end speaks first, and its other end.
    fn backend_channel(&mut self, source: &mut Source<'_>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        self.say(w::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()], source);
        if source.byte() & 1 == 1 {
            let bytes = source.take(20);
            w::send(&ours, bytes, &[]);
        }
        self.channel.push(ours.into());
    }

    fn reset(&mut self, source: &mut Source<'_>) {
        let request = source.pick(&[w::RESET_DEVICE, w::RESET_OWNER, w::SET_OWNER]);
        self.say(request, &[], &[], source);
        if !source.rarely() {
            self.set_up(self.features);
        }
    }

    fn features(&mut self, source: &mut Source<'_>) {
        let log = if source.byte() & 1 == 1 { LOG_ALL } else { 0 };
        let features = source.mostly(self.features | log, Source::odd_number);
        self.say(w::SET_FEATURES, &features.to_le_bytes(), &[], source);
    }

    /// Other files to be kicked by, and to be told through.
    fn calls(&mut self, source: &mut Source<'_>) {
        let request = source.pick(&[w::SET_VRING_CALL, w::SET_VRING_ERR, w::SET_VRING_KICK]);
        let number = u64::from(source.byte() & 1);
        let null = File::open("/dev/null").expect("it is there");
        let directory = File::open("/").expect("it is there");
        let file = match source.below(4) {
            0 => self.kept.as_fd(),
            1 => directory.as_fd(),
            2 => self.front_end.socket().as_fd(),
            _ => null.as_fd(),
        };
        self.say(request, &number.to_le_bytes(), &[file], source);
    }

    /// Nobody has written around a log that was where it should be.
    fn check_files(&self) {
        let rounded = LOG_BYTES.next_multiple_of(PAGE);
        let mut page = [0; PAGE as usize];
        for log in self.logs.iter().filter(|_| self.usual_logs) {
            for at in [0, LOG_OFFSET + rounded] {
                log.read_exact_at(&mut page, at).expect("memory");
                assert!(
                    page.iter().all(|byte| *byte == 0xc5),
                    "written around a log"
                );
            }
        }
    }
}

fn all_data(memory: &sealblk::virtio::Memory) -> Vec<u8> {
    let mut bytes = vec![0; DATA_BYTES as usize];
    memory
        .read_slice(&mut bytes, GuestAddress(DATA))
        .expect("there is memory");
    bytes
}
