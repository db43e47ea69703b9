//! A worker that a guest has taken over, and what it can tell a manager.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sealblk::manager::model::DiskState;
use sealblk::worker::packet;
use sealblk::worker::parcel::{Parcel, Role};
use serde_json::{Value, json};

use super::lab::{Lab, kill, run, until, until_running};
use super::process::ManagerProcess;
use super::support::server::eventually;

/// What it says to one manager, and what the manager makes of it.
struct Lie {
    hello: Value,
    chatter: usize,
    change: fn(&mut Value, &Path),
    /// In the words of no other one: what was noticed last stays to be seen.
    noticed: &'static str,
}

fn hello() -> Value {
    json!({"message": "hello", "protocol": 1, "version": "0", "pid": 1, "serving": true,
           "fds": ["process"]})
}

fn lies() -> Vec<Lie> {
    let lie = |change, noticed| Lie {
        hello: hello(),
        chatter: 0,
        change,
        noticed,
    };
    vec![
        lie(
            |start, _| start["baggage"]["record"]["id"] = json!(uuid::Uuid::new_v4()),
            "another disk",
        ),
        lie(
            |start, directory| start["socket"]["path"] = json!(directory.join("precious")),
            "not where it should be",
        ),
        lie(|start, _| start["spec"] = json!(7), "expected struct Spec"),
        lie(|start, _| *start = json!("nonsense"), "nonsense"),
        Lie {
            chatter: 100,
            ..lie(|_, _| (), "does not answer")
        },
        Lie {
            hello: json!({"message": "hello", "protocol": 2, "version": "9\u{1b}", "pid": 1,
                          "serving": true, "fds": ["process"]}),
            ..lie(|_, _| (), "protocol")
        },
        Lie {
            hello: json!({"message": "changed", "status": {"front_end": true, "errors": 0,
                          "sync_failed": false}, "fds": []}),
            ..lie(|_, _| (), "who it is")
        },
    ]
}

/// Tells all lies, one to each connection, and is gone after the last.
fn lie(listener: &OwnedFd, directory: &Path, record: &Value, noticed: &mpsc::Receiver<()>) {
    let elsewhere = UnixListener::bind(directory.join("elsewhere.sock")).unwrap();
    for lie in lies() {
        let socket = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).unwrap();
        let own = rustix::process::getpid();
        let flags = rustix::process::PidfdFlags::empty();
        let process = rustix::process::pidfd_open(own, flags).unwrap();
        let count = lie.hello["fds"].as_array().unwrap().len();
        let say = |what: &Value, fds: &[std::os::fd::BorrowedFd<'_>]| {
            // The manager may have had enough.
            let _ = packet::send(&socket, what.to_string().as_bytes(), fds);
        };
        say(&lie.hello, &[process.as_fd()][..count]);
        for _ in 0..lie.chatter {
            let status = json!({"front_end": true, "errors": 0, "sync_failed": false});
            say(&json!({"message": "changed", "status": status}), &[]);
        }
        let mut start = json!({
            "name": "a", "volume": "/etc/shadow", "direct": false, "keep_dek": true,
            "spec": {"uuid": uuid::Uuid::nil(), "data_offset": 0, "size": 4096,
                     "sector_size": 512, "iv_tweak": 0, "zero_units": false,
                     "engine": "portable", "direct": "never", "read_only": false,
                     "discard": false, "serial": "", "queues": 1, "queue_size": 16,
                     "write_cache": true, "poll_us": 0},
            "socket": {"path": record["socket"], "device": 1, "inode": 1},
            "log": {"level": "info", "format": "text"},
            "baggage": {"record": record, "key": {"key_set": "x", "provider": null,
                        "key_id": null, "key_version": null}},
        });
        (lie.change)(&mut start, directory);
        let mut parcel = Parcel::default();
        for role in [Role::Data, Role::Memo] {
            parcel.add(role, tempfile::tempfile().unwrap());
        }
        parcel.share(Role::FrontEnds, &elsewhere).unwrap();
        let status = json!({"front_end": true, "errors": 0, "sync_failed": false});
        let adopted = json!({"answer": "adopted", "start": start, "status": status});
        let answer = json!({"message": "answer", "id": 1, "answer": adopted,
                            "fds": serde_json::to_value(parcel.roles()).unwrap()});
        if lie.chatter == 0 {
            say(&answer, &parcel.fds());
        }
        noticed.recv().unwrap();
    }
}

#[test]
fn a_worker_is_believed_nothing_about_others() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    let mut manager = ManagerProcess::start(lab.home.directory());
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    manager.kill();
    lab.workers().into_iter().for_each(kill);
    eventually("the worker is gone", || {
        lab.workers().is_empty().then_some(())
    });
    std::fs::write(lab.path("precious"), "data").unwrap();

    let record = std::fs::read(lab.path(&format!("state/disks/{name}.json"))).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let id = record["id"].as_str().unwrap();
    let control = lab.path(&format!("run/workers/{id}.sock"));
    std::fs::remove_file(&control).unwrap();
    let listener = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&control).unwrap()).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    let (notice, noticed) = mpsc::channel();
    let directory = lab.home.directory().to_owned();
    let liar = std::thread::spawn(move || lie(&listener, &directory, &record, &noticed));

    run(async {
        let disks = lab.open().await;
        for lie in lies() {
            let info = until(&disks, &name, lie.noticed, |info| {
                let problem = info.last_error.as_ref();
                problem.is_some_and(|problem| problem.message.contains(lie.noticed))
            });
            let info = info.await;
            // It may be trying again by now.
            let waits = matches!(info.state, DiskState::Waiting | DiskState::Attaching);
            assert!(waits, "{info:?}");
            assert_eq!((info.pid, info.uuid), (None, None), "{info:?}");
            let message = info.last_error.unwrap().message;
            assert!(!message.contains('\u{1b}'), "{message:?}");
            notice.send(()).unwrap();
        }
        // Nobody is there any more: now there is a worker of the manager's own.
        until_running(&disks, &name).await;
        lab.connect("a.img").await.write(0, &[1; 512]);
    });
    liar.join().unwrap();
    assert_eq!(std::fs::read(lab.path("precious")).unwrap(), b"data");
}
