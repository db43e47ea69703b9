//! A guest under fio that moves from one host to another and back: two QEMUs, two
//! managers with directories of their own, and one volume.
//!
//! `SEALBLK_MOVES=20 cargo test --test guest migration -- --nocapture` does it that
//! often, and prints for how long the guest was stopped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sealblk::config::{Config, Overrides};
use sealblk::keys::{Actor, Context};
use sealblk::manager::disks::{Disks, Settings};
use sealblk::manager::model::{Attach, Detach, DiskInfo, DiskState, NewSize};
use serde_json::json;

use crate::MIB;
use crate::machine::{Guest, Running, oldest_qemu};
use crate::qmp::Qmp;
use crate::server::{key_file, sealblk, succeed};

const SIZE: u64 = 16 * MIB;
const LARGER: u64 = 24 * MIB;

/// What a move may take on a slow machine, with those that are cancelled, and all else.
const SECONDS_EACH: u32 = 60;
const SECONDS: u32 = 300;

#[test]
fn a_guest_moves_between_hosts_and_back() {
    let moves = std::env::var("SEALBLK_MOVES").map_or(2, |text| text.parse().unwrap());
    move_under_fio(moves, &[End::Early, End::Late, End::Done], &[]);
}

/// Of the migration of emulated guests, QEMU 7.2 can do the first half alone: one
/// guest of six breaks down at the other end, without a disk of ours as well.
#[test]
fn a_guest_of_an_old_qemu_stays_where_it_is_if_that_is_cancelled() {
    move_under_fio(1, &[End::Early, End::Late, End::Late], oldest_qemu());
}

/// A manager with its disk, and its worker, whatever becomes of the test.
struct Host {
    disks: Arc<Disks>,
    name: String,
    directory: PathBuf,
}

impl Host {
    async fn new(directory: &Path, key: &Path) -> Host {
        std::fs::create_dir(directory).unwrap();
        let overrides = Overrides {
            key_file: Some(key.to_owned()),
            ..Overrides::default()
        };
        let config = Config::load(Some(Path::new("/dev/null")), overrides).unwrap();
        let settings = Settings {
            worker: env!("CARGO_BIN_EXE_sealblk").into(),
            ..Settings::new(directory.join("state"), directory.join("run"))
        };
        let keys = Arc::new(config.key_sets());
        let part = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        Host {
            disks: Disks::open(settings, keys).await.unwrap(),
            name: format!("{}-{}", part(directory.parent().unwrap()), part(directory)),
            directory: directory.to_owned(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("disk.sock")
    }

    async fn attach(&self, volume: &Path, incoming: bool) {
        let attach = Attach {
            volume: volume.to_owned(),
            header: None,
            socket: self.socket(),
            name: Some(self.name.clone()),
            options: toml::from_str("queues = 2").unwrap(),
            wait: false,
            break_glass: false,
            even_if_denied: false,
            recovery_key_file: None,
            ephemeral: None,
            incoming,
            dry_run: false,
        };
        self.disks.attach(&us(), attach).await.unwrap();
    }

    async fn until(&self, what: &str, so: impl Fn(&DiskInfo) -> bool) {
        let mut changes = self.disks.subscribe();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                if self.disks.get(&self.name).is_some_and(|info| so(&info)) {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        let info = self.disks.get(&self.name);
        assert!(in_time.is_ok(), "{}: still not {what}: {info:?}", self.name);
    }

    async fn until_state(&self, state: DiskState) {
        self.until(state.as_str(), |info| info.state == state).await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let wanted = format!("sealblk\0worker\0{}", self.name);
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            if let (true, Some(pid)) = (
                command.starts_with(wanted.as_bytes()),
                pid.and_then(Pid::from_raw),
            ) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

fn us() -> Context {
    Context::new(Actor::this_process("operator"), None)
}

/// How a move ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The guest is there.
    Done,
    /// It is cancelled while memory is copied.
    Early,
    /// It is cancelled when the guest was stopped, just before it would go on there.
    Late,
}

fn at_peace<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn guest(host: &Host, qemu: &[&str], limit: &str) -> Guest {
    Guest::new("killed")
        .on(&host.socket())
        .args(&["--queues", "2", "--timeout", limit])
        .args(qemu)
        .env("LARGER", &LARGER.to_string())
        .monitored()
}

/// Has QEMU send its guest to `to`, and that end so. For how many milliseconds the
/// guest was stopped, as QEMU says.
fn migrate(from: &mut Qmp, to: &Path, end: End) -> u64 {
    let pauses = json!({ "capability": "pause-before-switchover", "state": end == End::Late });
    from.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": [pauses] }),
    );
    let bandwidth: u64 = if end == End::Early { 1 << 20 } else { 4 << 30 };
    from.execute(
        "migrate-set-parameters",
        json!({ "max-bandwidth": bandwidth, "downtime-limit": 500 }),
    );
    let uri = format!("unix:{}", to.display());
    from.execute("migrate", json!({ "uri": uri }));
    let mut until = |wanted: &str, transferred: u64| {
        from.poll("query-migrate", |status| {
            let is = status["status"].as_str().unwrap_or_default();
            assert!(is != "failed" || wanted == "failed", "{status}");
            let enough = status["ram"]["transferred"].as_u64().unwrap_or(0) >= transferred;
            (is == wanted && enough).then(|| status.clone())
        })
    };
    let status = match end {
        End::Done => until("completed", 0),
        End::Early => until("active", 1 << 20),
        End::Late => until("pre-switchover", 0),
    };
    if end != End::Done {
        from.execute("migrate_cancel", json!({}));
        from.poll("query-migrate", |status| {
            (status["status"] == "cancelled").then_some(())
        });
        from.poll("query-status", |status| {
            (status["status"] == "running").then_some(())
        });
    }
    status["downtime"].as_u64().unwrap_or(0)
}

/// QEMU with nothing in it yet.
fn await_guest(host: &Host, socket: &Path, how: (&[&str], &str), beside: &Running) -> Running {
    let (qemu, limit) = how;
    let uri = format!("unix:{}", socket.display());
    let started = guest(host, qemu, limit)
        .args(&["--", "-incoming", &uri])
        .start_beside(beside);
    let start = Instant::now();
    while !socket.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "QEMU does not listen"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    started
}

/// Moves a guest so often, each time with all of `ends`: what is not done goes on
/// where it was.
fn move_under_fio(moves: u32, ends: &[End], qemu: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let key = key_file(path);
    let init = ["key", "init", "--key-file"];
    succeed(
        Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .args(init)
            .arg(&key),
    );
    let size = SIZE.to_string();
    let create = ["volume", "create", "--size", &size];
    let volume = path.join("disk.img");
    succeed(sealblk(path).args(create).arg(&volume));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let limit = (SECONDS + moves * SECONDS_EACH).to_string();
    runtime.block_on(async {
        let hosts = [
            Host::new(&path.join("a"), &key).await,
            Host::new(&path.join("b"), &key).await,
        ];
        hosts[0].attach(&volume, false).await;
        let mut first = guest(&hosts[0], qemu, &limit).start();
        at_peace(|| first.wait_for_line("fio begins"));
        // Whoever runs now, and all before, of which the first has the turn.
        let mut guests = vec![first];
        let mut downtimes = Vec::new();
        let mut cancelled = 0;
        for number in 0..moves {
            let (from, to) = (
                &hosts[number as usize % 2],
                &hosts[(number as usize + 1) % 2],
            );
            to.attach(&volume, true).await;
            for &end in ends {
                let socket = path.join(format!("move-{number}-{cancelled}"));
                let mut next =
                    at_peace(|| await_guest(to, &socket, (qemu, &limit), guests.last().unwrap()));
                to.until("connected", |info| info.front_end).await;
                let current = guests.last_mut().unwrap();
                let mut qmp = at_peace(|| current.qmp());
                // Long enough for fio to have written something here.
                tokio::time::sleep(Duration::from_millis(300)).await;
                let downtime = at_peace(|| migrate(&mut qmp, &socket, end));
                if end != End::Done {
                    cancelled += 1;
                    from.until_state(DiskState::Running).await;
                    // QEMU ends when its guest does not come.
                    at_peace(|| {
                        while next.is_running() {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    });
                    to.until("waiting", |info| !info.front_end).await;
                    assert_eq!(to.disks.get(&to.name).unwrap().state, DiskState::Incoming);
                    continue;
                }
                downtimes.push(downtime);
                to.until_state(DiskState::Running).await;
                let moved = from.disks.get(&from.name).unwrap();
                assert_eq!(moved.state, DiskState::Moved, "{moved:?}");
                guests.last_mut().unwrap().assert_running("after its move");
                at_peace(|| qmp.execute("quit", json!({})));
                from.until("without a key", |info| info.pid.is_none()).await;
                from.disks
                    .detach(&us(), &from.name, Detach::default())
                    .await
                    .unwrap();
                guests.push(next);
            }
        }
        let last = &hosts[downtimes.len() % 2];
        // It works there, too.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let larger = NewSize {
            size: Some(LARGER),
            preallocate: false,
        };
        last.disks.resize(&us(), &last.name, larger).await.unwrap();
        let guest = guests.pop().unwrap();
        let output = at_peace(|| guest.succeed()).text("output");
        assert!(output.contains("no errors in the kernel's log"), "{output}");
        let said = output.lines().last().unwrap_or_default();
        downtimes.sort_unstable();
        let median = downtimes.get(downtimes.len() / 2);
        println!(
            "{} moves, {cancelled} more cancelled; milliseconds that the guest was stopped: \
             median {median:?}, worst {:?}; {said}",
            downtimes.len(),
            downtimes.last(),
        );
        last.until("left", |info| !info.front_end).await;
        last.disks
            .detach(&us(), &last.name, Detach::default())
            .await
            .unwrap();
    });
}
