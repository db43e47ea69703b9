//! A guest whose worker is killed under it, again and again, while fio verifies.
//!
//! Or whose worker is upgraded, which QEMU does not notice either.
//!
//! `SEALBLK_KILLS=200 cargo test --test guest killed -- --nocapture` does it that
//! often, and prints how long the disk was away.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sealblk::config::{Config, Overrides};
use sealblk::keys::{Actor, Context};
use sealblk::manager::disks::{Disks, Pace, Settings};
use sealblk::manager::model::{Attach, Detach, DiskInfo, NewSize, UpgradeDisk};
use sealblk::sandbox::calls;

use crate::MIB;
use crate::intruder::{end_alone_by, threads, try_permitted, try_refused};
use crate::machine::{Guest, oldest_qemu};
use crate::server::{eventually, key_file, sealblk, succeed};

const SIZE: u64 = 16 * MIB;
const LARGER: u64 = 24 * MIB;

/// A worker is started again so soon each time: these deaths are no defect of it.
const DOWN: Duration = Duration::from_millis(100);

/// What a kill may take on a slow machine, and all else.
const SECONDS_EACH: u32 = 6;
const SECONDS: u32 = 300;

#[test]
fn a_guest_does_not_notice_that_its_worker_is_killed() {
    kill_under_fio(3, &[]);
}

#[test]
fn a_guest_does_not_notice_that_its_worker_is_upgraded() {
    under_fio(3, &[], Trouble::Upgrade);
}

/// What becomes of the worker.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Kill,
    Upgrade,
}

#[test]
fn a_guest_of_an_old_qemu_does_not_notice_either() {
    kill_under_fio(2, oldest_qemu());
}

/// The worker that serves, whatever becomes of the test.
struct Attached<'a>(&'a Path);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let wanted = format!("sealblk\0worker\0{}", name(self.0));
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            if let (true, Some(pid)) = (command.starts_with(wanted.as_bytes()), pid) {
                kill(pid);
            }
        }
    }
}

fn name(directory: &Path) -> String {
    directory.file_name().unwrap().to_str().unwrap().to_owned()
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    let _ = kill_process(pid, Signal::KILL);
}

/// What an intruder would do in each thread of the worker, while the guest works; and
/// what he would end by: the first time a ring of his own, which nobody looks at.
fn try_the_walls(worker: u32, time: u32) {
    // QEMU may have connected just now, and its queues be started soon.
    let (threads, queues) = eventually("both queues are started", || {
        let threads = threads(worker);
        let queues = threads.iter().filter(|(name, _)| name.starts_with("vq"));
        let queues: Vec<_> = queues.map(|(_, thread)| *thread).collect();
        (queues.len() == 2).then_some((threads, queues))
    });
    let others = [worker, threads["disk"]];
    for thread in others.iter().chain(&queues) {
        try_refused(*thread, worker);
        try_permitted(*thread, worker);
    }
    let all: Vec<_> = calls::ONLY_BEFORE.iter().chain(calls::DEADLY).collect();
    let call = all[(time as usize - 1) / 2 % all.len()];
    // The manager is in this process: what it collects first nobody else is told of.
    end_alone_by(worker, call);
}

fn kill_under_fio(default: u32, qemu: &[&str]) {
    under_fio(default, qemu, Trouble::Kill);
}

fn under_fio(default: u32, qemu: &[&str], trouble: Trouble) {
    let kills = std::env::var("SEALBLK_KILLS").map_or(default, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let key = ["key", "init", "--key-file"];
    succeed(
        Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .args(key)
            .arg(key_file(path)),
    );
    let size = SIZE.to_string();
    let create = ["volume", "create", "--size", &size];
    succeed(sealblk(path).args(create).arg(path.join("disk.img")));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let _end = Attached(path);
    runtime.block_on(async {
        let overrides = Overrides {
            key_file: Some(key_file(path)),
            ..Overrides::default()
        };
        let config = Config::load(Some(Path::new("/dev/null")), overrides).unwrap();
        let settings = Settings {
            worker: env!("CARGO_BIN_EXE_sealblk").into(),
            restart: Pace {
                first: DOWN,
                most: DOWN,
            },
            ..Settings::new(path.join("state"), path.join("run"))
        };
        let disks = Disks::open(settings, Arc::new(config.key_sets()))
            .await
            .unwrap();
        let us = Context::new(Actor::this_process("operator"), None);
        let attach = Attach {
            volume: path.join("disk.img"),
            header: None,
            socket: path.join("disk.sock"),
            name: Some(name(path)),
            options: toml::from_str("queues = 2").unwrap(),
            wait: false,
            incoming: false,
            dry_run: false,
            break_glass: false,
            even_if_denied: false,
            recovery_key_file: None,
            ephemeral: None,
        };
        disks.attach(&us, attach).await.unwrap();
        let limit = (SECONDS + kills * SECONDS_EACH).to_string();
        let mut guest = Guest::new("killed")
            .on(&path.join("disk.sock"))
            .args(&["--queues", "2", "--timeout", &limit])
            .args(match trouble {
                Trouble::Kill => &["--reconnect"],
                // A connection that is lost is lost for good.
                Trouble::Upgrade => &[],
            })
            .args(qemu)
            .env("LARGER", &LARGER.to_string())
            .start();
        tokio::task::block_in_place(|| guest.wait_for_line("fio begins"));
        let start = Instant::now();
        let mut pauses = Vec::new();
        for restarts in 1..=kills {
            // At an instant that follows no rule, with fio at work.
            let instant = u64::from(start.elapsed().subsec_nanos()) % 400;
            tokio::time::sleep(Duration::from_millis(200 + instant)).await;
            let pid = disks.get(&name(path)).unwrap().pid.unwrap();
            let killed = Instant::now();
            if trouble == Trouble::Upgrade {
                let wanted = UpgradeDisk::default();
                let upgraded = disks.upgrade(&us, &name(path), wanted).await.unwrap();
                assert_ne!(upgraded.disk.pid, Some(pid));
                assert_eq!((upgraded.disk.restarts, upgraded.disk.front_end), (0, true));
                pauses.push(Duration::from_micros(upgraded.pause_us.unwrap()));
                continue;
            }
            match restarts % 2 {
                0 => kill(pid),
                _ => tokio::task::block_in_place(|| try_the_walls(pid, restarts)),
            }
            until(&disks, &name(path), |info| {
                info.restarts == restarts && info.front_end
            })
            .await;
            pauses.push(killed.elapsed());
            if restarts % 2 == 1 {
                let error = disks.get(&name(path)).unwrap().last_error.unwrap();
                assert!(error.message.contains("(SIGSYS)"), "{}", error.message);
            }
        }
        let all = start.elapsed();
        let larger = NewSize {
            size: Some(LARGER),
            preallocate: false,
        };
        disks.resize(&us, &name(path), larger).await.unwrap();
        let output = tokio::task::block_in_place(|| guest.succeed()).text("output");
        assert!(output.contains("no errors in the kernel's log"), "{output}");
        let said = output.lines().last().unwrap_or_default();
        pauses.sort_unstable();
        println!(
            "{kills} {} in {all:.1?}, {} for {:.1?}, at most {:.1?}; {said}",
            match trouble {
                Trouble::Kill => "kills",
                Trouble::Upgrade => "upgrades",
            },
            match trouble {
                Trouble::Kill => "QEMU was away",
                Trouble::Upgrade => "requests waited",
            },
            pauses[pauses.len() / 2],
            pauses[pauses.len() - 1],
        );
        until(&disks, &name(path), |info| !info.front_end).await;
        disks
            .detach(&us, &name(path), Detach { force: false })
            .await
            .unwrap();
    });
}

/// Waits until that is so of the disk.
async fn until(disks: &Disks, name: &str, so: impl Fn(&DiskInfo) -> bool) {
    let mut changes = disks.subscribe();
    let waiting = async {
        loop {
            changes.borrow_and_update();
            if disks.get(name).is_some_and(|info| so(&info)) {
                return;
            }
            changes.changed().await.unwrap();
        }
    };
    let patience = Duration::from_secs(30);
    let in_time = tokio::time::timeout(patience, waiting).await;
    assert!(in_time.is_ok(), "{:?}", disks.get(name));
}
