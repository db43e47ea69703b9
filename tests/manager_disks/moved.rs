//! A guest moves from one manager's host to another's, and back: one of the two has
//! the volume at every moment, whatever ends meanwhile, and it is never nobody's to
//! take.

use std::path::Path;
use std::sync::Arc;

use sealblk::error::{Failure, Kind};
use sealblk::keys::Access;
use sealblk::kms::file;
use sealblk::manager::disks::{Disks, Settings};
use sealblk::manager::model::{Attach, DiskInfo, DiskState, NewSize, UpgradeDisk, UpgradedDisk};

use super::lab::{BY_FORCE, Lab, detach_unused, kill, run, until, us};
use super::log::{self, Log, end_of, switch_all};
use super::rewrap::follow;
use super::support::home::SIZE;
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::Request;
use super::support::server::key_file;

const MIB: u64 = 1 << 20;

/// A host: a manager with directories of its own, for the one volume of all.
struct Host<'a> {
    lab: &'a Lab,
    name: String,
    settings: Settings,
    disks: Arc<Disks>,
}

impl<'a> Host<'a> {
    async fn new(lab: &'a Lab, name: &str) -> Host<'a> {
        let ours = super::lab::settings(&lab.path(name));
        std::fs::create_dir(lab.path(name)).unwrap();
        Host {
            lab,
            name: lab.name(name),
            disks: open(lab, &ours).await,
            settings: ours,
        }
    }

    /// Its manager ends, and another one begins.
    async fn restart(&mut self) {
        self.disks.close().await;
        // Whoever holds its directories still is on its way out.
        let settings = self.settings.clone();
        let begun = std::mem::replace(&mut self.disks, empty(self.lab).await);
        drop(begun);
        self.disks = open(self.lab, &settings).await;
    }

    fn request(&self, incoming: bool) -> Attach {
        Attach {
            name: Some(self.name.clone()),
            socket: self.socket(),
            incoming,
            ..self.lab.request("disk")
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.settings.run_dir.parent().unwrap().join("disk.sock")
    }

    async fn attach(&self, incoming: bool) -> DiskInfo {
        self.disks
            .attach(&us(), self.request(incoming))
            .await
            .unwrap()
    }

    async fn until(&self, state: DiskState) -> DiskInfo {
        let what = format!("{} {}", self.name, state.as_str());
        until(&self.disks, &self.name, &what, |info| info.state == state).await
    }

    fn state(&self) -> DiskState {
        self.disks.get(&self.name).unwrap().state
    }

    fn pid(&self) -> Option<u32> {
        self.disks.get(&self.name).unwrap().pid
    }

    async fn upgrade(&self) -> Result<UpgradedDisk, Failure> {
        let wanted = UpgradeDisk::default();
        self.disks.upgrade(&us(), &self.name, wanted).await
    }

    async fn resize(&self, size: u64) -> Result<DiskInfo, Failure> {
        let size = NewSize {
            size: Some(size),
            preallocate: false,
        };
        self.disks.resize(&us(), &self.name, size).await
    }
}

async fn open(lab: &Lab, settings: &Settings) -> Arc<Disks> {
    let directory = lab.path("disk").parent().unwrap().to_owned();
    Disks::open(settings.clone(), super::lab::keys(&directory))
        .await
        .unwrap()
}

/// A manager of nothing.
async fn empty(lab: &Lab) -> Arc<Disks> {
    let settings = super::lab::settings(&lab.path("nothing"));
    let _ = std::fs::create_dir(lab.path("nothing"));
    open(lab, &settings).await
}

fn front_end(socket: &Path) -> std::io::Result<RawFrontEnd> {
    log::connect(socket, &RawOptions::default())
}

/// Off the runtime, since it waits for others that are on it.
fn at_peace<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// What QEMU does at the source, up to where the guest may go on elsewhere.
fn send_away(front: &mut RawFrontEnd) {
    let log = Log::below(end_of(RawOptions::default().memory));
    log.announce(&mut front.messages).unwrap();
    switch_all(front, true).unwrap();
    front.enable(0, false).unwrap();
    front.stop_queue(0).unwrap();
}

/// What it does when that is cancelled. Fails when the volume is another host's.
fn take_back(front: &mut RawFrontEnd) -> std::io::Result<()> {
    switch_all(front, false)?;
    let base = front.queues[0].used_idx();
    front.start_queue(0, base)?;
    front.enable(0, true)
}

fn write(front: &mut RawFrontEnd, sector: u64, byte: u8) {
    front.succeed(0, Request::write(sector, &[byte; 8192]), Form::Direct);
}

fn read(front: &mut RawFrontEnd, sector: u64) -> u8 {
    let data = front
        .succeed(0, Request::read(sector, 8192), Form::Direct)
        .data;
    assert!(data.iter().all(|byte| *byte == data[0]));
    data[0]
}

#[test]
fn a_guest_moves_there_and_back_and_one_host_has_its_volume_at_a_time() {
    run(async {
        let lab = Lab::with_volume("disk");
        let mut here = Host::new(&lab, "here").await;
        let there = Host::new(&lab, "there").await;
        here.attach(false).await;
        let mut front = at_peace(|| front_end(&here.socket()).unwrap());
        at_peace(|| write(&mut front, 0, 1));

        // The preflight leaves nothing, and finds out what a move would.
        let trial = Attach {
            dry_run: true,
            ..there.request(true)
        };
        let info = there.disks.attach(&us(), trial.clone()).await.unwrap();
        assert_eq!((info.state, info.size), (DiskState::Incoming, Some(SIZE)));
        assert!(there.disks.list().is_empty() && !there.socket().exists());
        lab.hide_key();
        assert!(there.disks.attach(&us(), trial).await.is_err());
        let refused = there.disks.attach(&us(), there.request(true)).await;
        assert!(refused.is_err() && !there.socket().exists());
        lab.show_key();
        // Whoever does not say so is refused, as ever.
        let refused = there
            .disks
            .attach(&us(), there.request(false))
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy);

        there.attach(true).await;
        assert_eq!(there.state(), DiskState::Incoming);
        let refused = there.resize(16 * MIB).await.unwrap_err();
        assert!(refused.to_string().contains("has not come"), "{refused}");
        // A guest that is started there before it has stopped here is not served.
        assert!(at_peace(|| front_end(&there.socket())).is_err());
        let why = |info: &DiskInfo| info.last_error.as_ref().map(|it| it.kind);
        let busy = |info: &DiskInfo| why(info) == Some(Kind::Busy);
        until(&there.disks, &there.name, "it is said why", busy).await;
        assert_eq!(there.state(), DiskState::Incoming);
        at_peace(|| write(&mut front, 16, 2));

        at_peace(|| send_away(&mut front));
        here.until(DiskState::Moved).await;
        let refused = here.resize(16 * MIB).await.unwrap_err();
        assert!(refused.to_string().contains("was moved"), "{refused}");
        // Nor does its header follow a key: that is the other host's to write.
        let header = || std::fs::read(lab.path("disk")).unwrap()[..32 << 10].to_vec();
        let before = header();
        let key = key_file(lab.home.directory());
        file::update(&key, |file| file.add_version()).unwrap();
        let change = follow(&lab.keys()).await;
        let refused = here
            .disks
            .rewrap(&us(), &here.name, Access::OwnKeySet, change)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("was moved"), "{refused}");
        assert!(header() == before);
        let mut other = at_peace(|| front_end(&there.socket()).unwrap());
        there.until(DiskState::Running).await;
        at_peace(|| {
            assert_eq!((read(&mut other, 0), read(&mut other, 16)), (1, 2));
            write(&mut other, 0, 3);
        });
        // Whoever would go on here as well is not served.
        assert!(at_peace(|| take_back(&mut front)).is_err());
        assert_eq!(here.state(), DiskState::Moved);
        drop(front);
        // Nothing is left of it here but that it was here, also for the next manager.
        until(&here.disks, &here.name, "it is gone", |info| {
            info.pid.is_none()
        })
        .await;
        assert!(!here.socket().exists());
        here.restart().await;
        assert_eq!(here.until(DiskState::Moved).await.pid, None);
        detach_unused(&here.disks, &here.name).await;
        assert!(here.disks.list().is_empty());

        // And back, larger than it went.
        here.attach(true).await;
        there.resize(16 * MIB).await.unwrap();
        at_peace(|| {
            write(&mut other, 12_000, 4);
            send_away(&mut other);
        });
        let mut front = at_peace(|| front_end(&here.socket()).unwrap());
        let info = here.until(DiskState::Running).await;
        assert_eq!(info.size, Some(16 * MIB));
        at_peace(|| {
            assert_eq!(front.config().unwrap().capacity, 16 * MIB / 512);
            assert_eq!((read(&mut front, 0), read(&mut front, 12_000)), (3, 4));
        });
        drop((front, other));
        // It is this host's again, and a next manager serves it as any disk.
        here.restart().await;
        here.until(DiskState::Running).await;
        here.disks
            .detach(&us(), &here.name, BY_FORCE)
            .await
            .unwrap();
        there
            .disks
            .detach(&us(), &there.name, BY_FORCE)
            .await
            .unwrap();
        assert_eq!(lab.workers(), [0u32; 0]);
    });
}

#[test]
fn a_move_that_is_cancelled_goes_on_where_it_was() {
    run(async {
        let lab = Lab::with_volume("disk");
        let here = Host::new(&lab, "here").await;
        let there = Host::new(&lab, "there").await;
        here.attach(false).await;
        there.attach(true).await;
        let mut front = at_peace(|| front_end(&here.socket()).unwrap());
        for round in 0..5u8 {
            at_peace(|| {
                write(&mut front, 8, round);
                send_away(&mut front);
            });
            here.until(DiskState::Moved).await;
            at_peace(|| take_back(&mut front).unwrap());
            here.until(DiskState::Running).await;
            at_peace(|| assert_eq!(read(&mut front, 8), round));
        }
        // Only the log, and no stop: it is still here, and says so.
        let log = Log::below(end_of(RawOptions::default().memory));
        at_peace(|| {
            log.announce(&mut front.messages).unwrap();
            switch_all(&mut front, true).unwrap();
        });
        here.until(DiskState::Migrating).await;
        // No other process takes it over now: the log would stay behind.
        let pid = here.pid();
        let refused = here.upgrade().await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy, "{refused}");
        assert_eq!(here.pid(), pid);
        at_peace(|| {
            write(&mut front, 16, 9);
            switch_all(&mut front, false).unwrap();
        });
        here.until(DiskState::Running).await;
        here.upgrade().await.unwrap();
        assert_ne!(here.pid(), pid);
        at_peace(|| assert_eq!(read(&mut front, 16), 9));
        drop(front);
        here.disks
            .detach(&us(), &here.name, BY_FORCE)
            .await
            .unwrap();
        there
            .disks
            .detach(&us(), &there.name, BY_FORCE)
            .await
            .unwrap();
    });
}

/// Managers and workers end at either side, before and after the volume was let go.
#[test]
fn whoever_ends_meanwhile_a_volume_can_be_taken_by_one() {
    run(async {
        let lab = Lab::with_volume("disk");
        let mut here = Host::new(&lab, "here").await;
        let mut there = Host::new(&lab, "there").await;
        here.attach(false).await;
        there.attach(true).await;
        let mut front = at_peace(|| front_end(&here.socket()).unwrap());
        at_peace(|| write(&mut front, 8, 1));
        // The worker that waits, and then its manager.
        kill(there.pid().unwrap());
        until(&there.disks, &there.name, "another one", |info| {
            info.restarts == 1 && info.state == DiskState::Incoming
        })
        .await;
        there.restart().await;
        there.until(DiskState::Incoming).await;
        assert!(at_peace(|| front_end(&there.socket())).is_err());
        // The manager of a disk that was let go, and its worker.
        at_peace(|| send_away(&mut front));
        here.until(DiskState::Moved).await;
        here.restart().await;
        here.until(DiskState::Moved).await;
        at_peace(|| take_back(&mut front).unwrap());
        here.until(DiskState::Running).await;
        at_peace(|| assert_eq!(read(&mut front, 8), 1));
        at_peace(|| send_away(&mut front));
        here.until(DiskState::Moved).await;
        kill(here.pid().unwrap());
        until(&here.disks, &here.name, "another one", |info| {
            info.restarts == 1 && info.state == DiskState::Moved
        })
        .await;
        // Both could have it now. The other one is faster.
        let mut other = at_peace(|| front_end(&there.socket()).unwrap());
        at_peace(|| assert_eq!(read(&mut other, 8), 1));
        there.until(DiskState::Running).await;
        assert!(at_peace(|| front_end(&here.socket())).is_err());
        // Its worker is killed: the next one has the volume still.
        kill(there.pid().unwrap());
        until(&there.disks, &there.name, "another one", |info| {
            info.restarts >= 1 && info.state == DiskState::Running
        })
        .await;
        assert!(at_peace(|| front_end(&here.socket())).is_err());
        let mut other = at_peace(|| front_end(&there.socket()).unwrap());
        at_peace(|| assert_eq!(read(&mut other, 8), 1));
        drop((front, other));
        here.disks
            .detach(&us(), &here.name, BY_FORCE)
            .await
            .unwrap();
        there
            .disks
            .detach(&us(), &there.name, BY_FORCE)
            .await
            .unwrap();
    });
}

#[test]
fn what_cannot_move_is_refused_before_there_is_a_socket() {
    run(async {
        let lab = Lab::with_volume("disk");
        let there = Host::new(&lab, "there").await;
        for (request, says) in [
            (
                Attach {
                    incoming: true,
                    ..super::lab::ephemeral(lab.path("disk").parent().unwrap(), "tmp", MIB)
                },
                "ephemeral",
            ),
            (
                Attach {
                    options: toml::from_str("read_only = true").unwrap(),
                    ..there.request(true)
                },
                "both may have it",
            ),
            (
                Attach {
                    dry_run: true,
                    ..there.request(false)
                },
                "dry_run",
            ),
        ] {
            let refused = there.disks.attach(&us(), request).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Usage);
            assert!(refused.to_string().contains(says), "{refused}");
        }
        assert!(there.disks.list().is_empty() && !there.socket().exists());
    });
}
