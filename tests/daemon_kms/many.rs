//! A host with many volumes of one key set.
//!
//! `SEALBLK_VOLUMES=1000 cargo test --test daemon_kms many -- --nocapture`
//! gives the figures of `docs/kms.md`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::support::server::DEADLINE;

fn count(bytes: &[u8], wanted: &str) -> usize {
    let windows = bytes.windows(wanted.len());
    windows
        .filter(|window| *window == wanted.as_bytes())
        .count()
}

/// The memory that a process has for itself, and its part of what it shares.
fn pss_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Pss:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until all disks are served.
fn until_served(lab: &Lab, volumes: usize) {
    let patience = DEADLINE + Duration::from_millis(500) * u32::try_from(volumes).unwrap();
    let start = Instant::now();
    loop {
        let list = lab.daemon.get("/v1/disks").json();
        let disks = list["disks"].as_array().unwrap();
        let served = disks.iter().filter(|disk| disk["state"] == "running");
        let served = served.count();
        if served == volumes {
            return;
        }
        assert!(
            start.elapsed() < patience,
            "{served} of {volumes} are served"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How often the service was asked to unwrap since this was asked.
fn unwraps(lab: &Lab) -> usize {
    let seen = lab.service.proxies[0].seen();
    let path = format!("POST /v1/{}/decrypt/disks ", lab.service.name);
    count(&seen.requests, &path)
}

fn tell_memory(lab: &Lab) {
    let workers: Vec<u64> = lab
        .daemon
        .workers()
        .values()
        .map(|pid| pss_kib(*pid))
        .collect();
    let all: u64 = workers.iter().sum();
    eprintln!(
        "memory: manager {} KiB; workers {} KiB each, {} MiB together",
        pss_kib(lab.daemon.server.pid()),
        all / workers.len() as u64,
        all >> 10
    );
}

#[test]
fn many_volumes_of_a_key_set_cost_one_call() {
    let volumes = std::env::var("SEALBLK_VOLUMES").map_or(100, |text| text.parse().unwrap());
    let mut lab = Lab::new(1, "poll = \"1h\"");
    let names: Vec<String> = (0..volumes).map(|n| format!("v{n}")).collect();
    let start = Instant::now();
    lab.make(&names);
    eprintln!("{volumes} volumes made in {:.1?}", start.elapsed());
    // The first one has its group key opened once, before it is relied on.
    assert_eq!(unwraps(&lab), 1);

    let (start, next) = (Instant::now(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let reply = lab.attach(name);
                    assert_eq!(reply.status, 201, "{reply:?}");
                }
            });
        }
    });
    eprintln!("attached in {:.1?}", start.elapsed());
    until_served(&lab, volumes);
    assert_eq!(unwraps(&lab), 1);
    let asked = |operation: &str| {
        let labels = ["key_set=\"prod\"", operation];
        lab.metric("sealblk_kms_calls_total", &labels)
    };
    assert_eq!(asked("operation=\"unwrap\""), 1.0);
    tell_memory(&lab);

    // A manager that starts again asks for nothing.
    let start = Instant::now();
    lab.daemon.restart();
    until_served(&lab, volumes);
    eprintln!("taken over in {:.1?}", start.elapsed());
    assert_eq!(unwraps(&lab), 0);

    lab.daemon.lose_power();
    let start = Instant::now();
    lab.daemon.restart();
    until_served(&lab, volumes);
    eprintln!("served again after a reboot in {:.1?}", start.elapsed());
    assert_eq!(unwraps(&lab), 1);
    tell_memory(&lab);
    lab.connect("v0").write(0, &[1; 4096]);
}
