//! A disk in memory, as the real server serves it, with margins that nobody may
//! write to.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::crypt::{Engine, Params, SectorCipher, Transform};
use sealblk::engine::stats::Stats;
use sealblk::engine::{Disk, DiskParams};
use sealblk::secret::{Dek, Secret};
use sealblk::store::{DirectMode, Store};
use sealblk::units::SectorSize;

/// Bytes of the disk, and of what is before and after it in its file.
pub const BYTES: u64 = 256 << 10;
const MARGIN: u64 = 8 << 10;
const CANARY: u8 = 0xc5;

/// How a disk is.
#[derive(Clone, Copy)]
pub struct Shape {
    pub sector_size: SectorSize,
    pub read_only: bool,
    pub queues: usize,
}

/// A file for a disk, with nothing on it.
pub fn backing() -> File {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(BYTES + 2 * MARGIN).expect("room");
    let canary = [CANARY; MARGIN as usize];
    file.write_all_at(&canary, 0).expect("memory");
    file.write_all_at(&canary, MARGIN + BYTES).expect("memory");
    file
}

/// Whether nobody has written outside of the disk, nor changed the file's length.
pub fn is_intact(file: &File) -> bool {
    let mut margin = [0; MARGIN as usize];
    [0, MARGIN + BYTES].into_iter().all(|at| {
        file.read_exact_at(&mut margin, at).is_ok() && margin.iter().all(|byte| *byte == CANARY)
    })
}

/// The disk in a file.
pub fn disk(file: &File, shape: Shape) -> Disk {
    let params = Params {
        sector_size: shape.sector_size,
        iv_tweak: 0,
        zero_units: true,
    };
    let key: [u8; 64] = std::array::from_fn(|at| at as u8);
    let key = Secret::copy_of(&key).expect("locked memory");
    let dek = Dek::try_from(key).expect("two different keys");
    let access = (shape.read_only, DirectMode::Auto);
    let data = (MARGIN, BYTES);
    let store = Store::open(file.as_fd(), data, params.sector_size, access, shape.queues);
    let cipher = SectorCipher::new(Engine::best(), &dek, params);
    Disk::new(DiskParams {
        transform: Transform::Cipher(cipher.expect("the best engine works")),
        store: store.expect("the file is there"),
        bytes: BYTES,
        read_only: shape.read_only,
        discard: true,
        serial: *b"fuzz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        num_queues: shape.queues as u16,
        queue_size: 256,
        write_cache: true,
        poll: Duration::from_micros(20),
        stats: Stats::private(shape.queues as u16).expect("anonymous memory"),
        rate_limits: Default::default(),
        on_error: Default::default(),
        stuck_after: Duration::from_secs(30),
        cpus: vec![],
        rest_after: Duration::from_millis(50),
    })
}

/// How long a server may take for anything. The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that has to come.
///
/// # Panics
/// When it does not.
pub fn eventually(what: &str, mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    for turn in 0u32.. {
        if come() {
            return;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        match turn {
            ..50 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}
