//! Manager and worker: while a disk is attached, and when it is not any more.

use std::path::PathBuf;

use serde_json::json;

use super::key_needles::Needles;
use super::key_search::{Hit, outside, search};
use super::process_memory::{wait_until_idle, without_secret_memory};
use super::serving::{export, platform_key, use_disk};
use super::support::daemon::{Daemon, command, configure};
use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::server::succeed;
use super::threads::{Ending, search as search_registers};

/// A manager into whose memory root can look, and so into that of its workers.
pub fn daemon(home: Home, key_sets: &str) -> Daemon {
    configure(&home, "", key_sets);
    let mut daemon = command(&home);
    without_secret_memory(&mut daemon);
    Daemon::run(home, daemon)
}

/// Attaches a volume: the socket of its disk, and the process that serves it.
pub fn attach(daemon: &Daemon, volume: &str) -> (PathBuf, u32) {
    let socket = daemon.home.path(&format!("{volume}.sock"));
    let request = json!({
        "volume": daemon.home.path(volume),
        "socket": socket,
        "name": volume,
    });
    let reply = daemon.ask("POST", "/v1/disks", Some(&request.to_string()));
    assert_eq!(reply.status, 201, "{reply:?}");
    let pid = reply.json()["pid"].as_u64().unwrap();
    (socket, u32::try_from(pid).unwrap())
}

pub fn detach(daemon: &Daemon, volume: &str) {
    let reply = daemon.ask("DELETE", &format!("/v1/disks/{volume}"), None);
    assert!((200..300).contains(&reply.status), "{reply:?}");
}

/// Panics if a process has keys where they may not be, in memory or registers.
pub fn assert_kept(pid: u32, needles: &Needles, who: &str) -> Vec<Hit> {
    wait_until_idle(pid);
    let registers = search_registers(pid, needles);
    let hits = search(pid, needles);
    assert!(outside(&hits).is_empty(), "{who}: {:?}", outside(&hits));
    assert!(registers.is_empty(), "{who}: {registers:#?}");
    hits
}

fn names(name: &str) -> String {
    // Names of disks are the host's.
    format!("{name}-{}", std::process::id())
}

#[test]
fn an_attached_disk_has_its_key_in_secret_memory_and_a_detached_one_nowhere() {
    let home = Home::new();
    let volume = names("a");
    home.create(&volume, &[]);
    let dek = export(&home, &volume);
    let platform = platform_key(&home);
    let deks = Needles::new().dek("the DEK", &dek);
    let keks = Needles::new()
        .aes("the platform key", &platform)
        .bytes("the platform key", &platform);
    let daemon = daemon(home, "");
    let manager = daemon.server.pid();

    // Twice, so that what the first time leaves is there the second time.
    for round in 0..2 {
        let (socket, worker) = attach(&daemon, &volume);
        let mut front = FrontEnd::connect(&socket, &Options::default()).unwrap();
        use_disk(&mut front);
        for (pid, who) in [(manager, "the manager"), (worker, "the worker")] {
            let hits = assert_kept(pid, &deks, who);
            let there = hits.iter().any(|hit| hit.what.contains("the key itself"));
            assert!(there, "{who} keeps the key, and this finds it: {hits:?}");
            let hits = assert_kept(pid, &keks, who);
            assert!(hits.is_empty(), "{who}: {hits:?}");
        }
        drop(front);
        let ending = Ending::of(worker);
        let hits = std::thread::scope(|scope| {
            scope.spawn(|| detach(&daemon, &volume));
            ending.look(|pid| search(pid, &deks))
        });
        assert!(
            hits.is_empty(),
            "round {round}, the worker that ends: {hits:?}"
        );
        for needles in [&deks, &keks] {
            let hits = assert_kept(manager, needles, "the manager without disks");
            assert!(hits.is_empty(), "round {round}, the manager: {hits:?}");
        }
    }
}

#[test]
fn a_rekey_leaves_neither_key_where_it_may_not_be_and_the_old_one_nowhere() {
    let home = Home::new();
    let volume = names("b");
    home.create(&volume, &[]);
    let old = Needles::new().dek("the old DEK", &export(&home, &volume));
    let daemon = daemon(home, "");
    let manager = daemon.server.pid();
    let (socket, worker) = attach(&daemon, &volume);
    let mut front = FrontEnd::connect(&socket, &Options::default()).unwrap();
    use_disk(&mut front);
    succeed(&mut daemon.sealblk(&["rekey", &volume, "--start", "--watch"]));
    use_disk(&mut front);
    let new = Needles::new().dek("the new DEK", &export(&daemon.home, &volume));
    for (pid, who) in [(manager, "the manager"), (worker, "the worker")] {
        let hits = assert_kept(pid, &old, who);
        assert!(hits.is_empty(), "{who}: {hits:?}");
        let hits = assert_kept(pid, &new, who);
        assert!(!hits.is_empty(), "{who} has the new key, and this finds it");
    }
    drop(front);
    let ending = Ending::of(worker);
    std::thread::scope(|scope| {
        scope.spawn(|| detach(&daemon, &volume));
        let hits = ending.look(|pid| [search(pid, &old), search(pid, &new)].map(|hits| hits.len()));
        assert_eq!(hits, [0, 0], "the worker that ends");
    });
    let hits = assert_kept(manager, &new, "the manager without disks");
    assert!(hits.is_empty(), "{hits:?}");
}
