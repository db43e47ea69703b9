//! Each policy, at a real OpenBao whose operator takes the right to use the key
//! away and leaves that to see it.

use std::time::Duration;

use rustix::process::Signal;

use super::super::faulty_proxy::Fault;
use super::super::support::daemon::kill;
use super::super::support::home::refused;
use super::super::support::raw_front_end::{Form, RawFrontEnd, RawOptions, Submitted};
use super::super::support::request::{Request, S_IOERR, S_OK};
use super::super::support::server::{eventually, succeed};
use super::{Load, events, hasty_lab, lab, queue_cpu, wait_for_polls};

/// Nothing errors, nothing is lost, nothing is carried out, and it takes no CPU;
/// a manager that is started again changes nothing of that.
#[test]
fn a_paused_guest_waits_and_goes_on() {
    let mut lab = lab("pause");
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let load = Load::start(lab.connect("a"));
    load.wait_for(100);
    // It is asked all the time, and nothing comes of that.
    wait_for_polls(&lab, 2);
    assert_eq!(lab.show("a")["state"], "running");

    lab.service.deny();
    let disk = lab.until("a", "paused");
    let denial = &disk["denial"];
    assert_eq!(denial["key_set"], "prod");
    assert_eq!(denial["on_denied"], "pause");
    assert_eq!(denial["in_force"], true);
    assert_eq!(disk["last_error"], denial["problem"]);
    assert_eq!(denial["problem"]["kind"], "key");
    let message = denial["problem"]["message"].as_str().unwrap();
    assert!(message.contains("permission denied"), "{message}");
    assert!(denial["problem"]["help"].is_string(), "{disk}");
    // What was in flight is completed.
    wait_for_polls(&lab, 1);
    let done = load.done();
    let cpu = queue_cpu(&disk["pid"]);
    wait_for_polls(&lab, 1);
    // It may look once whether there is work, as it does for 30 s after the last. Who
    // spins uses all of this second.
    let used = queue_cpu(&disk["pid"]) - cpu;
    assert!(used < Duration::from_millis(20), "it used {used:?}");
    assert_eq!(load.done(), done);
    let state = |state: &str| {
        let label = format!("state={state:?}");
        lab.metric("sealblk_disk_state", &[&label])
    };
    eventually("metrics tell", || (state("paused") == 1.0).then_some(()));
    let denied = ["key_set=\"prod\"", "state=\"denied\""];
    assert_eq!(lab.metric("sealblk_key_set_state", &denied), 1.0);
    let since = lab.metric("sealblk_key_set_denied_timestamp_seconds", &["prod"]);
    assert!(since > 1e9, "{since}");
    let name = lab.disk("a");
    let shown = succeed(&mut lab.daemon.sealblk(&["show", &name]));
    assert!(shown.contains("its requests wait until"), "{shown}");
    assert!(shown.contains("help: "), "{shown}");
    assert!(succeed(&mut lab.daemon.sealblk(&["list"])).contains("paused"));

    lab.daemon.restart();
    let again = lab.until("a", "paused");
    assert_eq!(again["pid"], disk["pid"]);
    wait_for_polls(&lab, 3);
    assert_eq!(lab.show("a")["state"], "paused");
    assert_eq!(load.done(), done);

    lab.service.permit();
    let disk = lab.until("a", "running");
    assert!(disk["denial"].is_null(), "{disk}");
    load.wait_for(100);
    load.finish();
    // It runs before that is on record.
    eventually("its release is on record", || {
        (!events(&lab, &["disk_released"]).is_empty()).then_some(())
    });
    let told = events(
        &lab,
        &["key_denied", "disk_held", "key_restored", "disk_released"],
    );
    let names: Vec<&str> = told
        .iter()
        .map(|it| it["event"].as_str().unwrap())
        .collect();
    // The second manager does not know when it began.
    let expected = [
        "key_denied",
        "disk_held",
        "key_denied",
        "key_restored",
        "disk_released",
    ];
    assert_eq!(names, expected);
    assert_eq!(told[0]["on_denied"], "pause");
    assert_eq!(told[1]["action"], "pause");
    assert_eq!(told[1]["disk"], name);
    assert_eq!(told[4]["disk"], name);
    succeed(&mut lab.daemon.sealblk(&["audit", "verify"]));
}

/// The requests are in the guest's ring, and not in the worker.
#[test]
fn a_paused_disk_stays_paused_when_its_worker_dies() {
    let mut lab = hasty_lab("pause");
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let socket = lab.socket("a");
    let mut front = RawFrontEnd::connect(&socket, &RawOptions::default()).unwrap();
    front.succeed(0, Request::write(0, &[1; 4096]), Form::Direct);
    lab.service.deny();
    let before = lab.until("a", "paused");
    let waiting: Vec<_> = [
        Request::write(0, &[2; 4096]),
        Request::write(8, &[3; 4096]),
        Request::flush(),
        Request::read(0, 4096),
        Request::get_id(),
    ]
    .into_iter()
    .map(|request| front.submit(0, request, Form::Direct))
    .collect();
    wait_for_polls(&lab, 1);
    assert!(front.queues[0].take_used().is_none());

    // Nor does it take a manager that knows why.
    lab.service.set_all(&Fault::Refuse);
    lab.daemon.restart();
    assert_eq!(lab.until("a", "paused")["pid"], before["pid"]);
    kill(before["pid"].as_u64().unwrap() as u32, Signal::KILL);
    let after = eventually("another worker serves", || {
        let disk = lab.show("a");
        (disk["state"] == "paused" && disk["restarts"] == 1).then_some(disk)
    });
    assert_ne!(after["pid"], before["pid"]);
    front.reconnect(&socket).unwrap();
    // The front end is let in, and told what the disk is.
    assert_eq!(front.config().unwrap().capacity, 8192);
    wait_for_polls(&lab, 2);
    assert!(front.queues[0].take_used().is_none());
    assert_eq!(lab.show("a")["state"], "paused");

    lab.service.permit();
    lab.service.set_all(&Fault::None);
    let mut waiting: Vec<_> = waiting.into_iter().map(Some).collect();
    for _ in 0..waiting.len() {
        let used = front.used(0);
        let is =
            |it: &Option<Submitted>| it.as_ref().is_some_and(|it| u32::from(it.head) == used.id);
        let place = waiting.iter().position(is).expect("each is answered once");
        let submitted = waiting[place].take().unwrap();
        assert_eq!(front.outcome(submitted, used).status, S_OK);
    }
    let read = front.run(0, Request::read(0, 8192), Form::Direct);
    assert_eq!(read.data, [[2; 4096], [3; 4096]].concat());
}

#[test]
fn a_disk_that_fails_can_be_used_again_without_a_restart() {
    let lab = lab("fail");
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let mut front = lab.connect("a");
    front.write(0, &[7; 4096]);
    lab.service.deny();
    lab.until("a", "failing");
    for request in [
        Request::write(0, &[8; 4096]),
        Request::read(0, 4096),
        Request::flush(),
    ] {
        assert_eq!(front.run(0, request).status, S_IOERR);
    }
    // What the guest asks of the device, and not of its data.
    assert!(!front.id().is_empty());
    wait_for_polls(&lab, 2);
    assert_eq!(front.run(0, Request::read(0, 4096)).status, S_IOERR);
    // Also by another worker, which takes over what the front end has set up.
    let before = lab.show("a")["pid"].clone();
    let path = format!("/v1/disks/{}/upgrade", lab.disk("a"));
    let reply = lab.daemon.ask("POST", &path, Some("{}"));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_ne!(lab.show("a")["pid"], before);
    assert_eq!(lab.show("a")["state"], "failing");
    assert_eq!(front.run(0, Request::read(0, 4096)).status, S_IOERR);
    lab.service.permit();
    lab.until("a", "running");
    assert_eq!(front.read(0, 4096), [7; 4096], "nothing was written");
    front.write(0, &[9; 4096]);
    front.flush();
    assert_eq!(front.read(0, 4096), [9; 4096]);
}

#[test]
fn by_default_disks_run_on_and_it_is_told() {
    let lab = lab("continue");
    lab.make(&["a", "b"]);
    assert_eq!(lab.attach("a").status, 201);
    let load = Load::start(lab.connect("a"));
    lab.service.deny();
    let disk = eventually("it is told", || {
        let disk = lab.show("a");
        (disk["denial"]["in_force"] == true).then_some(disk)
    });
    assert_eq!(disk["state"], "running");
    load.wait_for(100);
    // No group key that is in memory opens another volume.
    let reply = lab.attach("b");
    assert_eq!(reply.json()["kind"], "key", "{reply:?}");
    load.wait_for(100);
    lab.service.permit();
    eventually("it is over", || {
        lab.show("a")["denial"].is_null().then_some(())
    });
    load.finish();
}

/// Who can cut off the network cannot undo a denial, nor bring one about.
#[test]
fn silence_neither_denies_nor_restores() {
    let lab = hasty_lab("pause");
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let load = Load::start(lab.connect("a"));
    for fault in [
        Fault::Refuse,
        Fault::http("503 Service Unavailable", "", r#"{"errors": ["sealed"]}"#),
        Fault::http("429 Too Many Requests", "Retry-After: 1\r\n", "{}"),
    ] {
        lab.service.set_all(&fault);
        wait_for_polls(&lab, 2);
        let disk = lab.show("a");
        assert_eq!(disk["state"], "running", "{disk}");
        assert!(disk["denial"].is_null(), "{disk}");
        load.wait_for(20);
    }
    lab.service.set_all(&Fault::None);
    lab.service.deny();
    lab.until("a", "paused");
    lab.service.set_all(&Fault::Refuse);
    lab.service.permit();
    wait_for_polls(&lab, 3);
    assert_eq!(lab.show("a")["state"], "paused");
    lab.service.set_all(&Fault::None);
    lab.until("a", "running");
    load.finish();
}

/// A disk that is paused can be taken away, and nobody waits for its requests.
#[test]
fn a_paused_disk_can_be_detached_and_frozen() {
    let lab = lab("pause");
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let mut front = lab.connect("a");
    front.write(0, &[1; 4096]);
    lab.service.deny();
    lab.until("a", "paused");
    for _ in 0..20 {
        front.submit(0, Request::write(0, &[2; 4096])).unwrap();
    }
    // Reasons of their own: neither ends the other.
    let name = lab.disk("a");
    succeed(&mut lab.daemon.sealblk(&["freeze", &name]));
    let disk = lab.show("a");
    assert_eq!(disk["state"], "paused");
    assert_eq!(disk["frozen"]["complete"], true);
    lab.service.permit();
    lab.until("a", "frozen");
    assert!(front.try_complete(0).is_none());
    lab.service.deny();
    lab.until("a", "paused");
    succeed(&mut lab.daemon.sealblk(&["thaw", &name]));
    assert_eq!(lab.show("a")["state"], "paused");
    assert!(front.try_complete(0).is_none());

    let detach = std::time::Instant::now();
    succeed(&mut lab.daemon.sealblk(&["detach", "--force", &name]));
    assert!(detach.elapsed() < Duration::from_secs(15), "it was killed");
    assert!(front.try_complete(0).is_none());
    assert!(lab.daemon.workers().is_empty());
    // What was acknowledged is there, and what was not is not.
    lab.service.permit();
    let attached = eventually("its key can be used", || {
        let reply = lab.attach("a");
        (reply.status == 201).then_some(reply)
    });
    assert_eq!(attached.json()["state"], "running");
    assert_eq!(lab.connect("a").read(0, 4096), [1; 4096]);
}

/// Who is asked for the key of a disk keeps nobody from taking it away.
#[test]
fn a_volume_is_let_go_while_its_service_is_silent() {
    let lab = hasty_lab("pause");
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    wait_for_polls(&lab, 1);
    lab.service.set_all(&Fault::Silent);
    let taken = || lab.service.proxies[0].taken();
    let before = taken();
    eventually("it is asked", || (taken() > before).then_some(()));
    succeed(&mut lab.daemon.sealblk(&["detach", &lab.disk("a")]));
    // It has its lock by now, and no key.
    refused(&mut lab.attach_command("a", &[])).expect(9, &["\"prod\""], "");
}
