//! Queues run on the CPUs that they were given, in turns; and CPUs that are not
//! there are refused before anything is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use rustix::thread::{CpuSet, sched_getaffinity};
use sealblk::crypt::Params;
use sealblk::engine::throttle::Limits;

mod support;

use support::home::Home;
use support::in_process::Served;
use support::server::eventually;

/// The CPUs that the threads of queues may run on, by the threads' names.
fn queues() -> BTreeMap<String, String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let found = tasks.filter_map(|task| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).ok()?;
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        let name = value("Name:")?;
        let cpus = value("Cpus_allowed_list:")?;
        name.starts_with("vq").then_some((name, cpus))
    });
    found.collect()
}

#[test]
fn queues_are_spread_over_their_cpus() {
    let permitted = sched_getaffinity(None).unwrap();
    let all = (0..CpuSet::MAX_CPU).filter(|cpu| permitted.is_set(*cpu));
    let mut cpus: Vec<u16> = all.map(|cpu| cpu as u16).collect();
    cpus.reverse();
    let served = Served::with(Params::default(), false, &Limits::default(), cpus.clone());
    let mut front = served.connect(2);
    for queue in [0, 1] {
        front.succeed(queue, support::request::Request::read(0, 512));
    }
    let found = eventually("both queues", || Some(queues()).filter(|it| it.len() == 2));
    for queue in [0, 1] {
        let cpu = cpus[queue % cpus.len()].to_string();
        assert_eq!(found[&format!("vq{queue}")], cpu, "{found:?}");
    }
}

#[test]
fn cpus_that_cannot_be_used_are_refused() {
    let home = Home::new();
    home.create("a.img", &[]);
    let serve = ["serve", "a.img", "--socket", "a.sock", "--cpus"];
    let refused = |cpus: &str| home.refused(&[&serve[..], &[cpus]].concat());
    refused("0,1023").expect(2, &["CPU 1023"], "--cpus");
    assert!(!home.path("a.sock").exists());
}
