//! A hostile front end and a hostile guest, against a real server, real queue
//! threads and a real disk.
//!
//! Whatever they send, with whichever files: nothing panics, the server ends
//! when it is stopped, the next front end is served, no thread and no
//! descriptor is left over, and outside of the volume's data area not a byte
//! of the file has changed.
#![no_main]

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::crypt::{Engine, Params, SectorCipher, Transform};
use sealblk::engine::stats::Stats;
use sealblk::engine::{Disk, DiskParams};
use sealblk::secret::{Dek, Secret};
use sealblk::store::{DirectMode, Store};
use sealblk::units::SectorSize;
use sealblk::vhost::{Listener, Server, SocketParams};
use sealblk_fuzz::front_end::{FrontEnd, QUEUES};
use sealblk_fuzz::source::Source;
use sealblk_fuzz::wire;

/// The disk, and what is before and after it in its file.
const BYTES: u64 = 256 << 10;
const MARGIN: u64 = 8 << 10;
const CANARY: u8 = 0xc5;

/// How long the server may take for anything.
const PATIENCE: Duration = Duration::from_secs(15);

static BACKING: LazyLock<File> = LazyLock::new(|| {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(BYTES + 2 * MARGIN).expect("room");
    let canary = [CANARY; MARGIN as usize];
    file.write_all_at(&canary, 0).expect("memory");
    file.write_all_at(&canary, MARGIN + BYTES).expect("memory");
    // What Rust's own start does for every program.
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    file
});

/// Where the socket is.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("sealblk-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a directory");
    path
});

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Descriptors and threads of this process.
fn census() -> (usize, usize) {
    let count = |path| std::fs::read_dir(path).expect("/proc").count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

fuzz_target!(|bytes: &[u8]| {
    LazyLock::force(&BACKING);
    LazyLock::force(&DIRECTORY);
    let before = census();
    session(bytes);
    // The kernel's own workers for a ring end shortly after it.
    eventually("descriptors and threads are as before", || {
        census() == before
    });
    let mut margin = [0; MARGIN as usize];
    for at in [0, MARGIN + BYTES] {
        BACKING
            .read_exact_at(&mut margin, at)
            .expect("the file has kept its length");
        assert!(
            margin.iter().all(|byte| *byte == CANARY),
            "written outside of the data"
        );
    }
});

fn disk(source: &mut Source<'_>) -> Disk {
    let flags = source.byte();
    let params = Params {
        sector_size: match flags & 1 {
            0 => SectorSize::B512,
            _ => SectorSize::B4096,
        },
        iv_tweak: 0,
        zero_units: flags & 2 == 0,
    };
    let key: [u8; 64] = std::array::from_fn(|at| at as u8);
    let key = Secret::copy_of(&key).expect("locked memory");
    let dek = Dek::try_from(key).expect("two different keys");
    let read_only = flags & 0x0c == 0x0c;
    let data = (MARGIN, BYTES);
    let access = (read_only, DirectMode::Auto);
    let store = Store::open(BACKING.as_fd(), data, params.sector_size, access, QUEUES);
    Disk::new(DiskParams {
        transform: Transform::Cipher(
            SectorCipher::new(Engine::best(), &dek, params).expect("the best engine works"),
        ),
        store: store.expect("the file is there"),
        bytes: BYTES,
        read_only,
        discard: flags & 0x10 == 0,
        serial: *b"fuzz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        num_queues: QUEUES as u16,
        queue_size: 256,
        write_cache: flags & 0x20 == 0,
        poll: Duration::from_micros(if flags & 0x40 == 0 { 0 } else { 20 }),
        stats: Stats::private(QUEUES as u16).expect("anonymous memory"),
        rate_limits: Default::default(),
        on_error: Default::default(),
        stuck_after: Duration::from_secs(30),
        cpus: vec![],
        rest_after: Duration::from_millis(50),
    })
}

fn session(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let disk = Arc::new(disk(&mut source));
    let all = disk.shape().features() | PROTOCOL_FEATURES;
    let ring_size = source.pick(&[16, 256, 4, 1]);
    let end = source.byte();
    let path = DIRECTORY.join("socket");
    let listener = Listener::bind(&SocketParams {
        path: path.clone(),
        mode: 0o600,
        group: None,
    });
    let server = Server::new(disk, listener.expect("a socket")).expect("an eventfd");
    let stopper = server.stopper();
    let server = std::thread::spawn(move || server.run());
    let connect = |ring_size| {
        let socket = UnixStream::connect(&path).expect("the server listens");
        FrontEnd::new(socket, BYTES / 512, ring_size)
    };

    let mut front_end = connect(ring_size);
    follow(&mut front_end, &mut source, all);
    match end % 4 {
        // The front end dies, and the server is stopped.
        0 => drop(front_end.socket().shutdown(Shutdown::Both)),
        // The server is stopped under it.
        1 => {}
        // It hangs up, and hears the rest.
        2 => {
            drop(front_end.socket().shutdown(Shutdown::Write));
            eventually("the session ends", || wire::drain(front_end.socket()));
        }
        // It dies, and the next one must not notice.
        _ => {
            drop(front_end.socket().shutdown(Shutdown::Both));
            let mut next = connect(16);
            next.set_up(all);
            next.submit(&mut Source::new(&[]));
            eventually("the next front end is served", || {
                wire::drain(next.socket());
                next.is_idle()
            });
        }
    }
    stopper.stop();
    eventually("the server ends", || server.is_finished());
    server
        .join()
        .expect("a panic ends the process")
        .expect("the server was stopped");
}

/// Does as the input says.
fn follow(front_end: &mut FrontEnd, source: &mut Source<'_>, all: u64) {
    if source.byte() < 0xe0 {
        // EVENT_IDX and indirect descriptors may be missing.
        front_end.set_up(all & !(u64::from(source.byte() & 3) << 28));
    }
    for _ in 0..64 {
        if source.is_empty() {
            return;
        }
        match source.below(12) {
            0..=3 => front_end.submit(source),
            4..=6 => front_end.send_message(source),
            7 => front_end.scribble(source),
            8 => front_end.jump(source),
            9 => front_end.wait(),
            10 => match source.below(4) {
                0 => front_end.start(source.below(QUEUES), source.u16()),
                1 => front_end.set_up(all),
                _ => drop(wire::drain(front_end.socket())),
            },
            _ => front_end.send_bytes(source),
        }
    }
}

fn eventually(what: &str, mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !come() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}
