//! A worker that a guest has taken over says that all data was moved: its manager
//! looks into the journal before it believes that.

use sealblk::manager::disks::Disks;
use sealblk::manager::model::{Attach, PaceChange, RekeyChange, RekeyState, StartRekey};
use sealblk::plane::moving::Go;
use sealblk::rekey::{Direction, Kind};
use sealblk::worker::packet::Packet;
use serde_json::Value;

use super::between::{Between, Trick};
use super::lab::{Lab, detach_unused, run, until, us};
use super::rekey::{load, proven, slow, under_way, until_ended, until_state, work};
use super::support::registers::Registers;

/// What the worker says of the moving of its data is not true.
struct Lies;

impl Trick for Lies {
    fn change(&mut self, said: &mut Packet) {
        let mut value = serde_json::from_slice(&said.bytes).unwrap();
        lie(&mut value);
        said.bytes = value.to_string().into_bytes();
    }
}

/// Says that all was moved.
fn lie(said: &mut Value) {
    match said {
        Value::Object(object) if object.contains_key("phase") => {
            object["phase"] = "done".into();
            object["boundary"] = match object["direction"].as_str() {
                Some("back") => 0.into(),
                _ => object["size"].clone(),
            };
        }
        Value::Object(object) => object.values_mut().for_each(lie),
        _ => {}
    }
}

fn request(lab: &Lab) -> Attach {
    Attach {
        header: Some(lab.path("a.header")),
        ..lab.request("a.img")
    }
}

fn go(go: Go, limit: Option<u64>) -> RekeyChange {
    let pace = PaceChange {
        limit,
        ..PaceChange::default()
    };
    RekeyChange { go: Some(go), pace }
}

/// A disk whose data is being moved, and rests in the middle.
async fn half_moved(disks: &Disks, lab: &Lab, name: &str, kind: Kind) -> Registers {
    disks.attach(&us(), request(lab)).await.unwrap();
    let mut load = load(lab, 21);
    work(&mut load, 300);
    let wanted = StartRekey {
        kind,
        confirm: (kind == Kind::Decrypt).then(|| name.to_owned()),
        pace: PaceChange {
            limit: Some(512 << 10),
            ..PaceChange::default()
        },
        ..slow(&[name.to_owned()])
    };
    disks.rekey(&us(), wanted).await.unwrap();
    until(disks, name, "something was moved", |info| {
        let rekey = info.rekey.as_ref();
        rekey.is_some_and(|rekey| rekey.boundary > rekey.size / 4)
    })
    .await;
    let pause = go(Go::Pause, None);
    disks.change_rekey(&us(), name, pause).await.unwrap();
    let paused = until_state(disks, name, RekeyState::Paused).await;
    let rekey = paused.rekey.unwrap();
    assert!(rekey.boundary < rekey.size, "it rests before its end");
    load.leave();
    load
}

fn connect(load: &mut Registers, lab: &Lab) {
    tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
}

fn lab() -> Lab {
    let lab = Lab::new();
    let header = [
        "--header",
        "a.header",
        "--header-area",
        "64K",
        "--zero-units",
    ];
    lab.home.create("a.img", &header);
    lab
}

#[test]
fn a_rekey_does_not_end_because_a_worker_says_so() {
    for direction in [Direction::Forward, Direction::Back] {
        let lab = lab();
        let name = lab.name("a.img");
        run(async {
            let disks = lab.open().await;
            let mut load = half_moved(&disks, &lab, &name, Kind::Rekey).await;
            if direction == Direction::Back {
                disks.turn_rekey(&us(), &name, direction).await.unwrap();
                // Until the journal has it, too.
                let boundary = || disks.get(&name).unwrap().rekey.unwrap().boundary;
                let before = boundary();
                // So slowly that it is not at its end before it is paused.
                let resume = go(Go::Run, Some(64 << 10));
                disks.change_rekey(&us(), &name, resume).await.unwrap();
                until(&disks, &name, "something was moved back", |info| {
                    let rekey = info.rekey.as_ref();
                    rekey.is_some_and(|rekey| rekey.boundary < before)
                })
                .await;
                let pause = go(Go::Pause, None);
                disks.change_rekey(&us(), &name, pause).await.unwrap();
                until_state(&disks, &name, RekeyState::Paused).await;
                assert!(boundary() > 0, "it rests before its end");
            }
            disks.close().await;
            drop(disks);
            let liar = Between::before(&lab, &name, Lies);
            let disks = lab.open().await;
            let info = until(&disks, &name, "the manager has looked", |info| {
                let rekey = info.rekey.as_ref();
                rekey.is_some_and(|rekey| rekey.problem.is_some())
            });
            let rekey = info.await.rekey.unwrap();
            let message = rekey.problem.unwrap().message;
            assert!(message.contains("left to be moved"), "{message}");
            assert_eq!(rekey.state, RekeyState::Finishing);
            assert_eq!(under_way(&lab), Some(Kind::Rekey));

            liar.leave();
            until_state(&disks, &name, RekeyState::Paused).await;
            connect(&mut load, &lab);
            work(&mut load, 50);
            let resume = go(Go::Run, Some(0));
            disks.change_rekey(&us(), &name, resume).await.unwrap();
            until_ended(&disks, &name).await;
            tokio::task::block_in_place(|| load.check_all());
            proven(&lab, &mut load).await;
        });
    }
}

#[test]
fn a_disk_is_not_plain_because_a_worker_says_so() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let mut load = half_moved(&disks, &lab, &name, Kind::Decrypt).await;
        disks.close().await;
        drop(disks);
        let _liar = Between::before(&lab, &name, Lies);
        let disks = lab.open().await;
        until_state(&disks, &name, RekeyState::Plain).await;
        detach_unused(&disks, &name).await;
        // Its key would be gone with the header.
        assert_eq!(under_way(&lab), Some(Kind::Decrypt));

        disks.attach(&us(), request(&lab)).await.unwrap();
        until_state(&disks, &name, RekeyState::Paused).await;
        disks
            .turn_rekey(&us(), &name, Direction::Back)
            .await
            .unwrap();
        connect(&mut load, &lab);
        work(&mut load, 50);
        let resume = go(Go::Run, Some(0));
        disks.change_rekey(&us(), &name, resume).await.unwrap();
        until_ended(&disks, &name).await;
        tokio::task::block_in_place(|| load.check_all());
        proven(&lab, &mut load).await;
    });
}
