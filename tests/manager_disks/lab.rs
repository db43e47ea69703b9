//! A directory with volumes and managers for them, whose workers do not
//! outlive the test.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sealblk::config::{Config, Overrides};
use sealblk::keys::{Actor, Context, KeySets};
use sealblk::manager::disks::{Disks, Pace, Settings};
use sealblk::manager::model::{Attach, Detach, DiskInfo, DiskState, Ephemeral};

use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::server::{DEADLINE, key_file};

pub struct Lab {
    pub home: Home,
}

impl Lab {
    pub fn new() -> Lab {
        Lab { home: Home::new() }
    }

    /// With a directory that ephemeral disks get space in.
    pub fn with_space() -> Lab {
        let lab = Lab::new();
        std::fs::create_dir(lab.path("space")).unwrap();
        lab
    }

    /// With a volume of that name.
    pub fn with_volume(name: &str) -> Lab {
        let lab = Lab::new();
        lab.home.create(name, &[]);
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path(name)
    }

    pub fn settings(&self) -> Settings {
        settings(self.home.directory())
    }

    pub fn keys(&self) -> Arc<KeySets> {
        keys(self.home.directory())
    }

    pub async fn open(&self) -> Arc<Disks> {
        self.open_with(self.settings()).await
    }

    pub async fn open_with(&self, settings: Settings) -> Arc<Disks> {
        Disks::open(settings, self.keys()).await.unwrap()
    }

    /// Takes the platform key away, as if its service were gone.
    pub fn hide_key(&self) {
        std::fs::rename(key_file(self.home.directory()), self.path("hidden.key")).unwrap();
    }

    pub fn show_key(&self) {
        std::fs::rename(self.path("hidden.key"), key_file(self.home.directory())).unwrap();
    }

    /// What the disk of the volume `file` is called: as no disk of any other
    /// test.
    pub fn name(&self, file: &str) -> String {
        name(self.home.directory(), file)
    }

    /// What attaches the volume `file`.
    pub fn request(&self, file: &str) -> Attach {
        request(self.home.directory(), file)
    }

    /// A front end at the socket of the volume `file`.
    pub async fn connect(&self, file: &str) -> FrontEnd {
        connect(&self.path(&format!("{file}.sock"))).await
    }

    /// The workers of this directory's disks.
    pub fn workers(&self) -> Vec<u32> {
        workers(self.home.directory())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in self.workers() {
            kill(pid);
        }
    }
}

pub fn settings(directory: &Path) -> Settings {
    Settings {
        worker: env!("CARGO_BIN_EXE_sealblk").into(),
        poll: Duration::from_millis(300),
        retry: Pace {
            first: Duration::from_millis(50),
            most: Duration::from_millis(300),
        },
        ..Settings::new(directory.join("state"), directory.join("run"))
    }
}

pub fn keys(directory: &Path) -> Arc<KeySets> {
    let overrides = Overrides {
        key_file: Some(key_file(directory)),
        ..Overrides::default()
    };
    let config = Config::load(Some(Path::new("/dev/null")), overrides).unwrap();
    Arc::new(config.key_sets())
}

pub fn name(directory: &Path, file: &str) -> String {
    let directory = directory.file_name().unwrap().to_str().unwrap();
    format!("{directory}-{file}")
}

pub fn request(directory: &Path, file: &str) -> Attach {
    Attach {
        volume: directory.join(file),
        header: None,
        socket: directory.join(format!("{file}.sock")),
        name: Some(name(directory, file)),
        options: Default::default(),
        wait: false,
        incoming: false,
        dry_run: false,
        break_glass: false,
        even_if_denied: false,
        recovery_key_file: None,
        ephemeral: None,
    }
}

/// What attaches an ephemeral disk of that name, with space in `space`.
pub fn ephemeral(directory: &Path, file: &str, size: u64) -> Attach {
    Attach {
        volume: directory.join("space"),
        ephemeral: Some(Ephemeral {
            size,
            ..Ephemeral::default()
        }),
        ..request(directory, file)
    }
}

/// Somebody who may attach and detach.
pub fn us() -> Context {
    Context::new(Actor::this_process("operator"), None)
}

pub const GENTLY: Detach = Detach { force: false };
pub const BY_FORCE: Detach = Detach { force: true };

/// A front end connects, off the runtime: it blocks.
pub async fn connect(socket: &Path) -> FrontEnd {
    let socket = socket.to_owned();
    tokio::task::block_in_place(|| FrontEnd::connect(&socket, &Options::default()).unwrap())
}

/// Runs a test on a runtime like the manager's.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

/// Waits until `done` says so of the disk `name`, and returns what is known of it.
pub async fn until(
    disks: &Disks,
    name: &str,
    what: &str,
    done: impl Fn(&DiskInfo) -> bool,
) -> DiskInfo {
    let mut changes = disks.subscribe();
    let waiting = async {
        loop {
            changes.borrow_and_update();
            if let Some(info) = disks.get(name).filter(|info| done(info)) {
                return info;
            }
            changes.changed().await.unwrap();
        }
    };
    match tokio::time::timeout(DEADLINE, waiting).await {
        Ok(info) => info,
        Err(_) => panic!("still not so: {what}: {:?}", disks.get(name)),
    }
}

pub async fn until_running(disks: &Disks, name: &str) -> DiskInfo {
    until(disks, name, "it runs", |info| {
        info.state == DiskState::Running
    })
    .await
}

/// Detaches a disk whose front end has left, once its manager knows.
pub async fn detach_unused(disks: &Disks, name: &str) {
    until(disks, name, "its front end has gone", |info| {
        !info.front_end
    })
    .await;
    disks.detach(&us(), name, GENTLY).await.unwrap();
}

/// Ends a process that this test has caused.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// The processes that serve a disk whose name begins with that directory's.
pub fn workers(directory: &Path) -> Vec<u32> {
    let wanted = format!("sealblk\0worker\0{}", name(directory, ""));
    let is_worker = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.starts_with(wanted.as_bytes())
    };
    let mut found: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_worker)
        .collect();
    found.sort_unstable();
    found
}
