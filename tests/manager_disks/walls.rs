//! The walls of a worker, tried from its inside while a front end uses the disk.

use sealblk::manager::disks::Settings;
use sealblk::manager::model::DiskState;
use sealblk::sandbox::Walls;
use sealblk::sandbox::calls::{self, Call};
use sealblk::store::ring;

use super::inject::{Answer, Puppet, without_call};
use super::intruder::{end_alone_by, rings, threads, try_permitted, try_refused, try_the_ring};
use super::lab::{BY_FORCE, Lab, run, until, us};
use super::process::{ManagerProcess, REQUIRE_WALLS, log_of};
use super::support::front_end::{FrontEnd, Options};
use super::support::server::eventually;

const DATA: [u8; 4096] = [0x5a; 4096];

const NO_CAPABILITIES: [(&str, &str); 5] = [
    ("CapInh:", "0000000000000000"),
    ("CapPrm:", "0000000000000000"),
    ("CapEff:", "0000000000000000"),
    ("CapBnd:", "0000000000000000"),
    ("CapAmb:", "0000000000000000"),
];

fn status(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim().to_owned()
}

/// What each thread of a worker is refused, and with which answer; the disk is
/// served before, between and after.
#[test]
fn an_intruder_in_a_worker_finds_walls() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let worker = info.pid.unwrap();
        let mut front_end = lab.connect("a.img").await;
        front_end.write(16, &DATA);
        tokio::task::block_in_place(|| {
            let threads = threads(worker);
            let queue = threads.iter().find(|(name, _)| name.starts_with("vq"));
            let inside = [Some(&worker), threads.get("disk"), queue.map(|(_, it)| it)];
            for thread in inside {
                let thread = *thread.expect("control, session and queue have threads");
                try_refused(thread, worker);
                try_permitted(thread, worker);
                assert!(front_end.read(16, DATA.len()) == DATA);
                front_end.write(64, &DATA);
                front_end.flush();
            }
            let (_, queue) = queue.expect("the queue has a thread");
            try_the_ring(*queue, worker, rings(worker)[0]);
            assert!(front_end.read(16, DATA.len()) == DATA);
            front_end.write(64, &DATA);
            front_end.flush();
        });
        // It is still the same one, and takes orders.
        let now = disks.get(&name).unwrap();
        assert_eq!((now.pid, now.restarts), (Some(worker), 0));
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// A ring that is gone is not made anew: another process serves, and has one.
#[test]
fn a_worker_that_has_lost_a_ring_is_replaced() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let worker = info.pid.unwrap();
        let mut front_end = lab.connect("a.img").await;
        front_end.write(16, &DATA);
        front_end.flush();
        tokio::task::block_in_place(|| {
            let mut puppet = Puppet::take(worker);
            for ring in rings(worker) {
                let closed = puppet.call(libc::SYS_close, &[ring]);
                assert_eq!(closed, Answer::Returned(0));
            }
        });
        drop(front_end);
        // Whoever comes first finds that out.
        let socket = lab.path("a.img.sock");
        tokio::task::block_in_place(|| drop(FrontEnd::connect(&socket, &Options::default())));
        let now = until(&disks, &name, "another one serves", |info| {
            info.restarts == 1 && info.state == DiskState::Running
        })
        .await;
        assert_ne!(now.pid, Some(worker));
        let mut front_end = lab.connect("a.img").await;
        assert!(front_end.read(16, DATA.len()) == DATA);
        drop(front_end);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// What a worker is, as the kernel tells others.
#[test]
fn a_worker_is_nobody_and_has_nothing() {
    let lab = Lab::with_volume("a.img");
    run(async {
        let disks = lab.open().await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let worker = info.pid.unwrap();
        let user = sealblk::sandbox::Uids::DEFAULT
            .of_process(worker)
            .to_string();
        let same = [user.as_str(); 4].join("\t");
        for (field, expected) in [
            ("Uid:", same.as_str()),
            ("Gid:", &same),
            ("Groups:", ""),
            ("NoNewPrivs:", "1"),
            ("Seccomp:", "2"),
        ]
        .into_iter()
        .chain(NO_CAPABILITIES)
        {
            assert_eq!(status(worker, field), expected, "{field}");
        }
        // None of its namespaces is ours, and there is nothing in them.
        for namespace in ["net", "ipc", "uts", "mnt", "cgroup"] {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            assert_ne!(of(&worker.to_string()), of("self"), "{namespace}");
        }
        let root = format!("/proc/{worker}/root/");
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
        assert!(std::fs::write(format!("{root}x"), "x").is_err());
        let mounts = std::fs::read_to_string(format!("/proc/{worker}/mounts")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        let devices = std::fs::read_to_string(format!("/proc/{worker}/net/dev")).unwrap();
        let devices = devices.lines().skip(2).map(|line| line.trim().to_owned());
        let used = devices.filter(|line| !line.starts_with("lo:"));
        assert_eq!(used.count(), 0);
        disks
            .detach(&us(), &lab.name("a.img"), BY_FORCE)
            .await
            .unwrap();
    });
}

/// Where workers are to stay root, they are so by name.
#[test]
fn a_worker_that_stays_who_it_was_has_no_capabilities() {
    let lab = Lab::with_volume("a.img");
    run(async {
        let settings = Settings {
            walls: Walls::default(),
            ..lab.settings()
        };
        let disks = lab.open_with(settings).await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let worker = info.pid.unwrap();
        let own = rustix::process::geteuid().to_string();
        assert_eq!(status(worker, "Uid:"), [own.as_str(); 4].join("\t"));
        for (field, expected) in NO_CAPABILITIES {
            assert_eq!(status(worker, field), expected, "{field}");
        }
        lab.connect("a.img").await.write(16, &DATA);
        let name = lab.name("a.img");
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// Whatever nobody but an intruder does ends the worker. The next one serves, and
/// people are told why. The manager is another process, so that it sees how its
/// workers end.
#[test]
fn what_no_worker_does_ends_it() {
    let lab = Lab::with_volume("a.img");
    let directory = lab.home.directory();
    let mut manager = ManagerProcess::start(directory);
    let mut ask = |command: &str| {
        let answer = manager.ask(command);
        assert_eq!(answer.as_deref(), Some("ok"), "{command}");
    };
    let all: Vec<_> = calls::DEADLY.iter().chain(calls::ONLY_BEFORE).collect();
    // Some of them, or all: they are of one table.
    let step = match std::env::var_os("SEALBLK_ALL_CALLS") {
        Some(_) => 1,
        None => 6,
    };
    let told = || {
        let log = std::fs::read_to_string(log_of(directory)).unwrap();
        let told = log.matches("(SIGSYS), for a system call that no worker makes");
        told.count()
    };
    // And each by which rings are made.
    let rings = all.iter().filter(|call| call.name.starts_with("io_uring"));
    for call in all.iter().step_by(step).chain(rings) {
        let before = told();
        ask("attach a.img");
        let worker = lab.workers()[0];
        end_alone_by(worker, call);
        eventually(&format!("people are told of {}", call.name), || {
            (told() > before).then_some(())
        });
        eventually("another worker is there", || {
            lab.workers().into_iter().find(|pid| *pid != worker)
        });
        ask("detach a.img");
    }
}

/// On a kernel without landlock: a warning, or, where all walls are required,
/// nothing is served.
#[test]
fn a_wall_that_a_kernel_lacks_is_told_and_refused_if_it_is_required() {
    let lab = Lab::with_volume("a.img");
    let directory = lab.home.directory();
    let old_kernel = |command: &mut std::process::Command| {
        without_call(command, libc::SYS_landlock_create_ruleset);
    };
    let mut manager = ManagerProcess::start_changed(directory, old_kernel);
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    assert_eq!(manager.ask("detach a.img").as_deref(), Some("ok"));
    let log = std::fs::read_to_string(log_of(directory)).unwrap();
    assert!(log.contains("a wall of the sandbox is missing"), "{log}");
    assert!(log.contains("landlock"), "{log}");
    drop(manager);

    let mut manager = ManagerProcess::start_changed(directory, |command| {
        old_kernel(command.env(REQUIRE_WALLS, "yes"));
    });
    let refused = manager.ask("attach a.img").unwrap();
    assert!(refused.contains("the sandbox is not whole"), "{refused}");
    assert!(refused.contains("landlock: "), "{refused}");
    assert!(lab.workers().is_empty());
    drop(manager);
    // Where it has all of them it serves.
    let mut manager = ManagerProcess::start_changed(directory, |command| {
        command.env(REQUIRE_WALLS, "yes");
    });
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    assert_eq!(manager.ask("detach a.img").as_deref(), Some("ok"));
}

/// The tables of the documentation are those of the code.
#[test]
fn the_system_calls_that_are_documented_are_those_that_are_permitted() {
    let text = std::fs::read_to_string("docs/sandbox.md").unwrap();
    let mut documented = text.lines().filter(|line| {
        line.starts_with("| `") && line.matches(" | ").count() == 2 && !line.contains("yes")
    });
    for table in [
        calls::WORKER,
        calls::SERVE,
        calls::DEADLY,
        calls::ONLY_BEFORE,
        calls::NOBODY,
        calls::NO_PROGRAMS,
        calls::NO_RINGS,
    ] {
        for Call {
            name, only, why, ..
        } in table
        {
            let only: Vec<&str> = only.iter().map(|argument| argument.text).collect();
            let expected = format!("| `{name}` | {} | {why} |", only.join(", "));
            assert_eq!(documented.next(), Some(expected.as_str()));
        }
    }
    assert_eq!(documented.next(), None);
    let items: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("- `IORING_"))
        .collect();
    let all = ring::OPERATIONS.iter().chain(&ring::REGISTRATIONS);
    let expected: Vec<String> = all
        .map(|(name, _)| format!("{}`", name.strip_prefix("IORING_").unwrap()))
        .collect();
    assert_eq!(items, expected);
}
