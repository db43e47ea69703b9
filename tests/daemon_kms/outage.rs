//! Endpoints that go away, one or all, and a manager or a host that starts
//! again meanwhile.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::faulty_proxy::Fault;
use super::lab::Lab;
use super::support::daemon::kill;
use super::support::home::{Guard, refused};
use super::support::server::{eventually, succeed};

/// Each attach asks the service.
const DIRECT: &str = "hierarchy = \"direct\"\ntimeout = \"5s\"\ndeadline = \"5s\"";
const DATA: [u8; 4096] = [0x5a; 4096];

#[test]
fn no_attach_fails_when_the_first_of_three_endpoints_dies() {
    let lab = Lab::new(
        3,
        "hierarchy = \"direct\"\ntimeout = \"10s\"\ndeadline = \"20s\"",
    );
    let names: Vec<String> = (0..20).map(|n| format!("v{n}")).collect();
    lab.make(&names);
    let [first, second, _] = &lab.service.proxies[..] else {
        panic!("there are three");
    };
    // So that attaches are under way there when it dies.
    first.set(Fault::Slow(Duration::from_millis(500)));
    let (before, second_before) = (first.taken(), second.taken());
    std::thread::scope(|scope| {
        let lab = &lab;
        let attaches: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || lab.attach(name)))
            .collect();
        eventually("several attaches ask the first endpoint", || {
            (first.taken() >= before + 3).then_some(())
        });
        first.set(Fault::Refuse);
        for attach in attaches {
            let reply = attach.join().unwrap();
            assert_eq!(reply.status, 201, "{reply:?}");
            assert_eq!(reply.json()["state"], "running");
        }
    });
    assert!(second.taken() > second_before);
    let dead = format!("127.0.0.1:{}", first.port());
    let failed = ["key_set=\"prod\"", &dead, "outcome=\"unreachable\""];
    assert!(lab.metric("sealblk_kms_attempts_total", &failed) >= 3.0);
    for name in &names {
        lab.connect(name).write(0, &DATA);
    }
}

#[test]
fn disks_are_served_on_while_no_endpoint_answers_and_new_ones_wait_if_told_to() {
    let lab = Lab::new(3, DIRECT);
    lab.make(&["a", "b", "c", "d"]);
    assert_eq!(lab.attach("a").status, 201);
    let mut front_end = lab.connect("a");
    front_end.write(0, &DATA);

    lab.service.set_all(&Fault::Refuse);
    front_end.write(8, &DATA);
    front_end.flush();
    assert_eq!(front_end.read(0, 8192), [DATA; 2].concat());
    drop(front_end);
    let mut front_end = lab.connect("a");
    assert_eq!(front_end.read(0, 8192), [DATA; 2].concat());

    let ports: Vec<String> = lab
        .service
        .proxies
        .iter()
        .map(|proxy| format!(":{}", proxy.port()))
        .collect();
    let refusal = refused(&mut lab.attach_command("b", &[]));
    refusal.expect(9, &["\"prod\"", "refuses the connection", &ports[0]], "");
    // Without a deadline each of the three would be waited for, for 5 seconds.
    lab.service.set_all(&Fault::Silent);
    let start = Instant::now();
    refused(&mut lab.attach_command("b", &[])).expect(9, &["\"prod\""], "");
    assert!(
        start.elapsed() < Duration::from_secs(12),
        "{:?}",
        start.elapsed()
    );
    let gone = format!("/v1/disks/{}", lab.disk("b"));
    assert_eq!(lab.daemon.get(&gone).status, 404);

    lab.service.set_all(&Fault::Refuse);
    let left = lab
        .attach_command("c", &["--wait", "--no-block", "--json"])
        .output()
        .unwrap();
    assert!(left.status.success(), "{left:?}");
    let mut waiting = lab.attach_command("d", &["--wait"]);
    let waiting = waiting.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut waiting = Guard(waiting.unwrap());
    for volume in ["c", "d"] {
        let disk = eventually("it waits", || {
            let disk = lab.show(volume);
            (disk["state"] == "waiting").then_some(disk)
        });
        assert_eq!(disk["last_error"]["kind"], "unreachable", "{disk}");
    }
    assert!(waiting.0.try_wait().unwrap().is_none());
    front_end.write(16, &DATA);
    front_end.flush();

    lab.service.set_all(&Fault::None);
    for volume in ["c", "d"] {
        lab.until(volume, "running");
        lab.connect(volume).write(0, &DATA);
    }
    let status = eventually("the command has ended", || waiting.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
    assert_eq!(front_end.read(16, 4096), DATA);
    succeed(&mut lab.attach_command("b", &[]));
}

#[test]
fn a_manager_or_a_host_that_starts_again_finds_its_disks() {
    let mut lab = Lab::new(3, DIRECT);
    lab.make(&["a", "b"]);
    for volume in ["a", "b"] {
        assert_eq!(lab.attach(volume).status, 201);
    }
    let mut front_end = lab.connect("a");
    front_end.write(0, &DATA);
    let workers = lab.daemon.workers();

    lab.service.set_all(&Fault::Refuse);
    lab.daemon.restart();
    for volume in ["a", "b"] {
        let disk = lab.until(volume, "running");
        assert_eq!(disk["pid"], workers[&lab.disk(volume)]);
    }
    front_end.write(8, &DATA);
    front_end.flush();
    assert_eq!(front_end.read(0, 8192), [DATA; 2].concat());
    // The key came from the worker: another one does not need the service.
    kill(workers[&lab.disk("b")], Signal::KILL);
    eventually("another worker serves", || {
        let disk = lab.show("b");
        (disk["state"] == "running" && disk["pid"] != workers[&lab.disk("b")]).then_some(())
    });
    lab.connect("b").write(0, &DATA);

    drop(front_end);
    lab.daemon.lose_power();
    lab.daemon.restart();
    for volume in ["a", "b"] {
        let disk = lab.until(volume, "waiting");
        assert_eq!(disk["last_error"]["kind"], "unreachable", "{disk}");
    }
    assert!(lab.daemon.workers().is_empty());
    lab.service.set_all(&Fault::None);
    for volume in ["a", "b"] {
        lab.until(volume, "running");
    }
    assert_eq!(lab.connect("a").read(0, 8192), [DATA; 2].concat());
    assert_eq!(lab.connect("b").read(0, 4096), DATA);
}
