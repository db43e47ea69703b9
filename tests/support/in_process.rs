//! A disk that this process serves itself, put together from the library's
//! parts: for what cannot be seen from outside of the server.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sealblk::crypt::{Engine, Params, SectorCipher, Transform};
use sealblk::engine::stats::{self, Reader, Stats};
use sealblk::engine::throttle::Limits;
use sealblk::engine::trouble::OnError;
use sealblk::engine::{Disk, DiskParams};
use sealblk::secret::Dek;
use sealblk::store::{DirectMode, Store};
use sealblk::units::Sector;
use sealblk::vhost::{Listener, Server, SocketParams, Stopper};
use tempfile::TempDir;

use super::front_end::{FrontEnd, Options};

/// Size of the disk.
pub const BYTES: u64 = 16 << 20;
/// Where its data begins in the backing file.
pub const OFFSET: u64 = 1 << 20;

pub struct Served {
    directory: TempDir,
    pub disk: Arc<Disk>,
    dek: Dek,
    params: Params,
    stats: OwnedFd,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new(params: Params, discard: bool) -> Served {
        Served::with_limits(params, discard, &Limits::default())
    }

    pub fn with_limits(params: Params, discard: bool, limits: &Limits) -> Served {
        Served::with(params, discard, limits, vec![])
    }

    /// With the threads of its queues on these CPUs.
    pub fn with(params: Params, discard: bool, limits: &Limits, cpus: Vec<u16>) -> Served {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Served::below(directory, params, discard, limits, cpus)
    }

    /// With its file in memory.
    pub fn in_memory(params: Params, discard: bool) -> Served {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let served = Served::below(directory, params, discard, &Limits::default(), vec![]);
        assert!(served.disk.store().is_in_memory(), "/dev/shm is no tmpfs");
        served
    }

    fn below(
        directory: TempDir,
        params: Params,
        discard: bool,
        limits: &Limits,
        cpus: Vec<u16>,
    ) -> Served {
        let file = File::create_new(directory.path().join("disk")).unwrap();
        file.set_len(OFFSET + BYTES).unwrap();
        let errors = (OnError::Report, Duration::from_secs(30));
        Served::on(directory, &file, params, discard, limits, cpus, errors)
    }

    /// On a file of `OFFSET + BYTES`, with what is done when that fails, and how long
    /// it may take.
    pub fn over(directory: TempDir, file: &File, errors: (OnError, Duration)) -> Served {
        let params = Params {
            zero_units: true,
            ..Params::default()
        };
        let limits = Limits::default();
        Served::on(directory, file, params, true, &limits, vec![], errors)
    }

    fn on(
        directory: TempDir,
        file: &File,
        params: Params,
        discard: bool,
        limits: &Limits,
        cpus: Vec<u16>,
        (on_error, stuck_after): (OnError, Duration),
    ) -> Served {
        let dek = Dek::generate().unwrap();
        let store = Store::open(
            file.as_fd(),
            (OFFSET, BYTES),
            params.sector_size,
            (false, DirectMode::Auto),
            2,
        );
        let stats = stats::create(2).unwrap();
        let disk = Disk::new(DiskParams {
            transform: Transform::Cipher(
                SectorCipher::new(Engine::Portable, &dek, params).unwrap(),
            ),
            store: store.unwrap_or_else(|error| panic!("{error}: {file:?}")),
            bytes: BYTES,
            read_only: false,
            discard,
            serial: *b"in-process\0\0\0\0\0\0\0\0\0\0",
            num_queues: 2,
            cpus,
            queue_size: 256,
            write_cache: true,
            poll: Duration::from_micros(20),
            rest_after: Duration::from_millis(200),
            stats: Stats::attach(stats.as_fd(), 2).unwrap(),
            rate_limits: limits.clone(),
            on_error,
            stuck_after,
        });
        let listener = Listener::bind(&SocketParams {
            path: directory.path().join("socket"),
            mode: 0o600,
            group: None,
        });
        let disk = Arc::new(disk);
        let server = Server::new(disk.clone(), listener.unwrap()).unwrap();
        Served {
            directory,
            disk,
            dek,
            params,
            stats,
            stopper: server.stopper(),
            thread: Some(std::thread::spawn(move || {
                server.run().unwrap();
            })),
        }
    }

    pub fn connect(&self, queues: usize) -> FrontEnd {
        let options = Options {
            queues,
            ..Options::default()
        };
        FrontEnd::connect(&self.path("socket"), &options).unwrap()
    }

    /// Ends the server, as a signal would.
    pub fn stop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The statistics, as another process would see them.
    pub fn stats(&self) -> Reader {
        Reader::open(self.stats.as_fd()).unwrap()
    }

    /// The key that it was made with.
    pub fn dek(&self) -> &Dek {
        &self.dek
    }

    /// The disk, decrypted without the data path.
    pub fn plaintext(&self) -> Vec<u8> {
        self.decrypted(&[(BYTES, Some(&self.dek))])
    }

    /// The same where it has other keys, each up to that byte, or none.
    pub fn decrypted(&self, parts: &[(u64, Option<&Dek>)]) -> Vec<u8> {
        let bytes = std::fs::read(self.path("disk")).unwrap();
        let mut data = bytes[OFFSET as usize..].to_vec();
        let mut start = 0;
        for (end, dek) in parts {
            if let Some(dek) = dek {
                let oracle = SectorCipher::new(Engine::Portable, dek, self.params).unwrap();
                let part = &mut data[start as usize..*end as usize];
                oracle.decrypt_in_place(Sector(start / 512), part);
            }
            start = *end;
        }
        data
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}
