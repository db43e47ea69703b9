//! A guest whose key is taken away for a while: it waits, and goes on as if
//! nothing had been.
//!
//! `SEALBLK_PAUSE_SECONDS=600 cargo test --test guest denied` has it wait for
//! ten minutes.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::machine::Guest;
use crate::manager::Manager;
use crate::openbao::OpenBao;
use crate::server::{eventually, succeed};

/// How long it waits unless somebody says otherwise.
const SECONDS: u64 = 6;

/// What the guest does before and after, at most.
const WORK: u64 = 400;

fn pause() -> Duration {
    let seconds = std::env::var("SEALBLK_PAUSE_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

fn until(manager: &Manager, state: &str) -> Value {
    eventually("the disk is in another state", || {
        Some(manager.disk()).filter(|disk| disk["state"] == state)
    })
}

/// CPU time of the threads of a process, in nanoseconds.
fn cpu(pid: &Value) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let used = tasks.flatten().map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
        let nanoseconds = text.split(' ').next().unwrap();
        nanoseconds.parse::<u64>().unwrap()
    });
    used.sum()
}

#[test]
fn a_guest_waits_while_its_key_is_denied_and_goes_on() {
    let bao = OpenBao::start();
    bao.mount("transit");
    bao.post("transit/keys/disks", json!({}));
    bao.permit("host", "transit", "disks");
    let token = bao.write("token", &bao.token("host"));
    let auth = format!("auth={{ method = \"token\", token = {token:?} }}");
    let manager = Manager::start(vec![]);
    let mut create = vec!["keyset", "create", "prod", "--provider", "vault"];
    let url = bao.url();
    create.extend(["--endpoint", &url, "--key", "disks", "--set", &auth]);
    for setting in ["poll=1s", "denied_grace=1s", "on_denied=pause"] {
        create.extend(["--set", setting]);
    }
    manager.succeed(&create);
    let volume = ["volume", "create", "--key-set", "prod", "--size", "24M"];
    manager.succeed(&[&volume[..], &["disk.img"]].concat());
    succeed(manager.attach().args(["--queues", "2"]));

    let pause = pause();
    let limit = (WORK + pause.as_secs()).to_string();
    let mut guest = Guest::new("rounds")
        .on(&manager.path("disk.sock"))
        .args(&["--queues", "2", "--reconnect", "--timeout", &limit])
        .env("ROUNDS", "3")
        .env("PATIENT", "1")
        .start();
    guest.wait_for_line("round 1 begins");
    // It can be seen still, and used no more.
    let text = r#"path "transit/keys/disks" { capabilities = ["read"] }"#;
    bao.post("sys/policies/acl/host", json!({ "policy": text }));
    let before = until(&manager, "paused");
    let start = Instant::now();

    // Its worker dies meanwhile: QEMU connects to the next one.
    let worker = Pid::from_raw(before["pid"].as_i64().unwrap() as i32).unwrap();
    kill_process(worker, Signal::KILL).unwrap();
    let after = eventually("another worker has it paused", || {
        Some(manager.disk()).filter(|disk| disk["state"] == "paused" && disk["restarts"] == 1)
    });
    eventually("QEMU has connected", || {
        (manager.disk()["front_end"] == true).then_some(())
    });
    let used = cpu(&after["pid"]);
    while start.elapsed() < pause {
        let disk = manager.disk();
        assert_eq!(disk["state"], "paused", "{disk}");
        assert_eq!(disk["pid"], after["pid"], "{disk}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let used = Duration::from_nanos(cpu(&after["pid"]) - used);
    eprintln!("paused for {:?}, with {used:?} of CPU", start.elapsed());
    assert!(
        used < Duration::from_millis(200),
        "{used:?} of CPU while it waits"
    );

    bao.permit("host", "transit", "disks");
    until(&manager, "running");
    let output = guest.succeed().text("output");
    assert!(
        output.contains("3 rounds on 2 queues, all as written"),
        "{output}"
    );
    assert!(output.contains("no errors in the kernel's log"), "{output}");
    manager.detach();
    manager.succeed(&["audit", "verify"]);
}
