//! Keys that are taken away and given back while disks are served.

mod memory;
mod policies;
mod rekey;
mod services;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::lab::{Lab, Service, server};
use super::support::front_end::FrontEnd;
use super::support::request::{Request, S_OK};
use super::support::server::eventually;

/// Settings of a key set whose service is asked each second, and has time to
/// answer on a busy machine.
fn settings(on_denied: &str) -> String {
    settings_within(on_denied, "10s")
}

/// The same with the time that a service has to answer.
fn settings_within(on_denied: &str, time: &str) -> String {
    format!(
        "poll = \"1s\"\ndenied_grace = \"1s\"\non_denied = {on_denied:?}\n\
         timeout = {time:?}\ndeadline = {time:?}"
    )
}

fn lab(on_denied: &str) -> Lab {
    Lab::new(1, &settings(on_denied))
}

/// For tests in which the service fails: each question takes all of its time.
fn hasty_lab(on_denied: &str) -> Lab {
    Lab::new(1, &settings_within(on_denied, "2s"))
}

impl Service {
    /// Takes away the right to use the key. That to see it stays.
    fn deny(&self) {
        let name = &self.name;
        let text = format!(
            r#"path "{name}/keys/disks" {{ capabilities = ["read"] }}
            path "{name}/encrypt/disks" {{ capabilities = ["update"] }}"#
        );
        server().post(
            &format!("sys/policies/acl/{name}"),
            json!({ "policy": text }),
        );
    }

    fn permit(&self) {
        server().permit(&self.name, &self.name, "disks");
    }
}

/// Waits until the service was asked so many times more, for whatever it says.
fn wait_for_polls(lab: &Lab, polls: u32) {
    let asked = || {
        lab.metric(
            "sealblk_kms_calls_total",
            &["key_set=\"prod\"", "operation=\"check\""],
        )
    };
    // For the state of the key, and for what disks need.
    let wanted = asked() + 2.0 * f64::from(polls);
    eventually("the service was asked again", || {
        (asked() >= wanted).then_some(())
    });
}

/// The events of the audit log, with the values of some of their members.
fn events(lab: &Lab, names: &[&str]) -> Vec<Value> {
    let text = std::fs::read_to_string(lab.path("audit.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| names.contains(&line["event"].as_str().unwrap()))
        .collect()
}

/// The CPU time of the queue threads of a process, as the kernel counts it.
fn queue_cpu(pid: &Value) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let read = |path: &std::path::Path, file: &str| std::fs::read_to_string(path.join(file));
    let found: Vec<u64> = tasks
        .map(|task| task.unwrap().path())
        .filter(|task| read(task, "comm").unwrap().starts_with("vq"))
        .map(|task| {
            let text = read(&task, "schedstat").unwrap();
            text.split(' ').next().unwrap().parse().unwrap()
        })
        .collect();
    assert!(!found.is_empty());
    Duration::from_nanos(found.iter().sum())
}

/// A guest that writes all the time, with several requests in flight, none of
/// which may fail.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: Option<JoinHandle<(FrontEnd, Vec<u8>)>>,
}

/// Requests in flight, each at a place of its own.
const DEPTH: usize = 8;
const BLOCK: usize = 4096;

impl Load {
    fn start(front: FrontEnd) -> Load {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let thread = {
            let (stop, done) = (stop.clone(), done.clone());
            std::thread::spawn(move || work(front, &stop, &done))
        };
        Load {
            stop,
            done,
            thread: Some(thread),
        }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    fn wait_for(&self, more: usize) {
        let wanted = self.done() + more;
        eventually("requests complete", || {
            (self.done() >= wanted).then_some(())
        });
    }

    /// Completes everything, and reads it back.
    fn finish(mut self) -> FrontEnd {
        self.stop.store(true, Ordering::SeqCst);
        let (mut front, last) = self.thread.take().unwrap().join().unwrap();
        for (place, byte) in last.iter().enumerate() {
            let found = front.read(sector(place), BLOCK);
            assert!(found == [*byte; BLOCK], "block {place} is not as written");
        }
        front
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn sector(place: usize) -> u64 {
    (place * BLOCK / 512) as u64
}

fn work(mut front: FrontEnd, stop: &AtomicBool, done: &AtomicUsize) -> (FrontEnd, Vec<u8>) {
    let mut last = vec![0; DEPTH];
    let mut places = std::collections::HashMap::new();
    let write = |front: &mut FrontEnd, place: usize, byte: u8| {
        let request = Request::write(sector(place), &[byte; BLOCK]);
        let ticket = front.submit(0, request).unwrap();
        (ticket, (place, byte))
    };
    for place in 0..DEPTH {
        let (ticket, what) = write(&mut front, place, 1);
        places.insert(ticket, what);
    }
    while !places.is_empty() {
        let Some((ticket, outcome)) = front.try_complete(0) else {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        };
        assert_eq!(outcome.status, S_OK);
        let (place, byte) = places.remove(&ticket).unwrap();
        last[place] = byte;
        done.fetch_add(1, Ordering::SeqCst);
        if !stop.load(Ordering::SeqCst) {
            let (ticket, what) = write(&mut front, place, byte.wrapping_add(1));
            places.insert(ticket, what);
        }
    }
    (front, last)
}
