//! What a disk costs that does nothing: no CPU, and hardly any memory, also
//! when it has done something before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealblk::crypt::Params;

mod support;

use support::front_end::{FrontEnd, Options};
use support::home::{Guard, Home};
use support::in_process::Served;
use support::request::Request;
use support::server::{at_rest, eventually, sealblk, succeed};

/// A file of each thread of a process whose name begins so.
fn threads(process: &str, name: &str, file: &str) -> BTreeMap<PathBuf, String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let found = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let comm = std::fs::read_to_string(task.join("comm")).ok()?;
        let text = std::fs::read_to_string(task.join(file)).ok()?;
        comm.starts_with(name).then_some((task, text))
    });
    found.collect()
}

/// A field of `/proc/PID/smaps_rollup`, in KiB.
fn memory(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

/// How many times the queue threads of a process have left the CPU by themselves.
fn sleeps(process: &str) -> Vec<String> {
    let statuses = threads(process, "vq", "status").into_values();
    let sleeps = statuses.map(|text| {
        let line = text.lines().find(|line| line.starts_with("voluntary_ctxt"));
        line.unwrap().to_owned()
    });
    sleeps.collect()
}

/// How many queues of this process have buffers: mappings that are aligned to
/// huge pages, for which the kernel was asked for such pages or gave them.
fn buffers() -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut count = 0;
    let mut size = 0;
    for line in maps.lines() {
        let mut words = line.split(' ');
        let range = words.next().unwrap_or_default();
        if let Some((start, end)) = range.split_once('-') {
            let bounds = [start, end].map(|text| usize::from_str_radix(text, 16));
            if let [Ok(start), Ok(end)] = bounds {
                size = if start % (2 << 20) == 0 {
                    end - start
                } else {
                    0
                };
            }
        }
        // The kernel was asked for huge pages, or gave them from the pool.
        let is_flags = line.starts_with("VmFlags:");
        if is_flags && size > 0 && line.split(' ').any(|flag| flag == "hg" || flag == "ht") {
            count += size / (2 << 20);
        }
    }
    count
}

#[test]
fn buffers_are_taken_for_work_and_given_back_after_it() {
    let served = Served::new(Params::default(), false);
    let mut front = served.connect(2);
    // No data, no buffers.
    front.succeed(0, Request::get_id());
    front.flush();
    assert_eq!(buffers(), 0);
    for _ in 0..3 {
        // On a busy machine they can rest before they are counted.
        eventually("the queue that works has one", || {
            front.write(0, &[7; 4096]);
            (buffers() == 1).then_some(())
        });
        eventually("each queue has its own", || {
            front.write(0, &[7; 4096]);
            front.succeed(1, Request::read(0, 4096));
            (buffers() == 2).then_some(())
        });
        eventually("they rest", || (buffers() == 0).then_some(()));
    }
    // Whoever rests is woken by nobody: nothing is pending in any ring.
    let before = at_rest("they sleep", || sleeps("self"));
    assert_eq!(before.len(), 2);
    let other = Served::new(Params::default(), false);
    let mut busy = other.connect(1);
    for _ in 0..200 {
        busy.write(0, &[7; 4096]);
    }
    let after = sleeps("self");
    assert!(
        before.iter().all(|count| after.contains(count)),
        "{before:?} {after:?}"
    );
    // And comes back with what it had.
    assert_eq!(front.read(0, 4096), [7; 4096]);
}

/// A daemon, its disks, and a front end with two queues for each.
struct Many {
    front_ends: Vec<FrontEnd>,
    workers: Vec<u32>,
    _daemon: Guard,
    home: Home,
}

const DISKS: usize = 64;

impl Many {
    fn new() -> Many {
        let home = Home::new();
        let directory = home.directory().display();
        let text = format!(
            "[daemon]\nsocket = \"{directory}/api.sock\"\nstate_dir = \"{directory}/state\"\n\
             run_dir = \"{directory}/run\"\n[audit]\nenabled = false\n[serve]\nqueues = 2\n"
        );
        std::fs::write(home.path("sealblk.toml"), text).unwrap();
        let log = std::fs::File::create(home.path("log")).unwrap();
        let daemon = command(home.directory(), &["daemon"])
            .stderr(log)
            .spawn()
            .unwrap();
        let mut many = Many {
            front_ends: vec![],
            workers: vec![],
            _daemon: Guard(daemon),
            home,
        };
        let home = &many.home;
        eventually("the daemon", || {
            home.path("api.sock").exists().then_some(())
        });
        for number in 0..DISKS {
            let name = format!("{number}.img");
            home.create(&name, &[]);
            let socket = format!("{name}.sock");
            let attach = ["attach", &name, "--socket", &socket, "--json"];
            let disk = succeed(&mut command(home.directory(), &attach));
            let disk: serde_json::Value = serde_json::from_str(&disk).unwrap();
            many.workers.push(disk["pid"].as_u64().unwrap() as u32);
            many.front_ends.push(connect(&home.path(&socket)));
        }
        many
    }
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = sealblk(directory);
    command.arg("--config").arg(directory.join("sealblk.toml"));
    command.args(arguments).current_dir(directory);
    command
}

impl Drop for Many {
    fn drop(&mut self) {
        for pid in &self.workers {
            let pid = rustix::process::Pid::from_raw(*pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn connect(socket: &Path) -> FrontEnd {
    let options = Options {
        queues: 2,
        memory: 1 << 20,
        ..Options::default()
    };
    FrontEnd::connect(socket, &options).unwrap()
}

/// What each takes for itself. Their program is in memory once for all.
#[test]
fn sixty_four_idle_disks_take_little_memory_and_no_cpu() {
    let mut many = Many::new();
    let own = |pid: &u32| memory(*pid, "Private_Dirty:") + memory(*pid, "Private_Clean:");
    for pid in &many.workers {
        eventually("both queues run", || {
            (sleeps(&pid.to_string()).len() == 2).then_some(())
        });
        let own = own(pid);
        assert!(own <= 8 << 10, "process {pid} has {own} KiB");
    }
    let share: u64 = many.workers.iter().map(|pid| memory(*pid, "Pss:")).sum();
    let each = share / DISKS as u64;
    assert!(
        each <= 8 << 10,
        "{each} KiB each, with their share of the program"
    );
    println!(
        "{each} KiB each, of which {} are its own",
        own(&many.workers[7])
    );

    // One works, and the others do not notice.
    let idle: Vec<String> = many.workers[1..].iter().map(u32::to_string).collect();
    let look = || -> Vec<_> {
        let look = |pid: &String| (sleeps(pid), threads(pid, "", "schedstat"));
        idle.iter().map(look).collect()
    };
    let before = at_rest("they rest", look);
    for _ in 0..300 {
        many.front_ends[0].write(0, &[1; 4096]);
    }
    assert_eq!(look(), before);
    // With both queues at work it is still little.
    for queue in [0, 1] {
        for _ in 0..40 {
            many.front_ends[0]
                .submit(queue, Request::write(0, &[1; 4096]))
                .unwrap();
        }
        while many.front_ends[0].in_flight(queue) > 0 {
            many.front_ends[0].complete(queue).unwrap();
        }
    }
    let busy = own(&many.workers[0]);
    assert!(busy <= 12 << 10, "{busy} KiB");
}
