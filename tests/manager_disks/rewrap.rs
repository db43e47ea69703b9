//! Other wraps for the volume of a disk that is served.

use std::sync::Arc;

use async_trait::async_trait;
use sealblk::error::Kind;
use sealblk::keys::{Access, KeySets};
use sealblk::kms::file;
use sealblk::rewrap::{Change, Error, Subject};
use sealblk::rotation::Follow;
use sealblk::volume::{Inspection, Location, Wrap};

use super::lab::{BY_FORCE, Lab, kill, run, until, until_running, us};
use super::support::front_end::FrontEnd;
use super::support::server::key_file;

const DATA: [u8; 4096] = [0x5a; 4096];

fn wraps(lab: &Lab) -> Vec<Wrap> {
    let location = Location {
        data: lab.path("a.img"),
        header: None,
    };
    let inspection = Inspection::of(&location).unwrap();
    assert!(inspection.found().is_whole());
    inspection.description().unwrap().token.wraps
}

/// The change by which a volume follows the platform key.
pub async fn follow(keys: &KeySets) -> Arc<Follow> {
    let version = keys.current_version(&us(), "default").await.unwrap();
    let current = keys.renew(&us(), "default", &version).await.unwrap();
    Arc::new(Follow { current })
}

fn write(front: &mut FrontEnd, sector: u64) {
    tokio::task::block_in_place(|| {
        front.write(sector, &DATA);
        assert_eq!(front.read(sector, 4096), DATA);
    });
}

#[test]
fn a_served_disk_gets_other_wraps_and_later_managers_know() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut front = lab.connect("a.img").await;
        write(&mut front, 0);
        let path = key_file(lab.home.directory());
        let old = wraps(&lab)[0].key_version.parse().unwrap();
        let version = file::update(&path, |file| file.add_version()).unwrap();
        let change = follow(&lab.keys()).await;
        let rewrap = async || {
            let change = change.clone();
            disks.rewrap(&us(), &name, Access::OwnKeySet, change).await
        };
        let done = rewrap().await.unwrap();
        assert!(done.changed);
        assert_eq!(wraps(&lab), done.after);
        assert_eq!(done.after[0].key_version, version.to_string());
        // Once more finds it done.
        assert!(!rewrap().await.unwrap().changed);
        write(&mut front, 8);
        let shown = async || {
            until(&disks, &name, "it is shown", |info| {
                info.key_version.as_deref() == Some(&version.to_string())
            })
            .await
        };
        shown().await;

        file::update(&path, |file| file.set_enabled(old, false)).unwrap();
        kill(lab.workers()[0]);
        until(&disks, &name, "another worker", |info| info.restarts == 1).await;
        until_running(&disks, &name).await;
        drop(front);
        let mut front = lab.connect("a.img").await;
        write(&mut front, 16);

        // The worker tells the next manager, and has the key.
        disks.close().await;
        drop(disks);
        let mut settings = lab.settings();
        settings.keep_deks = false;
        let disks = lab.open_with(settings).await;
        let info = until_running(&disks, &name).await;
        assert_eq!(info.key_version, Some(version.to_string()));
        assert!(disks.has_key(&name).await, "its worker has it");
        drop(front);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        assert!(!disks.has_key(&name).await, "nobody keeps it");
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        let gone = disks
            .rewrap(&us(), &name, Access::OwnKeySet, change.clone())
            .await;
        assert_eq!(gone.unwrap_err().kind(), Kind::NotFound);
    });
}

/// What an impossible change makes of the wraps.
#[derive(Debug)]
struct Breaks(fn(&mut Vec<Wrap>));

#[async_trait]
impl Change for Breaks {
    async fn next(&self, subject: &mut Subject<'_>) -> Result<Option<Vec<Wrap>>, Error> {
        let mut wraps = subject.wraps().to_vec();
        (self.0)(&mut wraps);
        Ok(Some(wraps))
    }
}

#[test]
fn a_wrap_that_does_not_open_takes_no_place() {
    let lab = Lab::with_volume("a.img");
    lab.home.create("b.img", &[]);
    let name = lab.name("a.img");
    let before = wraps(&lab);
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        for (breaks, kind) in [
            (Breaks(|wraps| wraps[0].bytes[40] ^= 1), Kind::Key),
            (
                Breaks(|wraps| wraps[0].provider = "vault".into()),
                Kind::Key,
            ),
            (
                Breaks(|wraps| wraps[0].key_version = "77".into()),
                Kind::Corrupt,
            ),
            (Breaks(Vec::clear), Kind::Refused),
        ] {
            let change = Arc::new(breaks);
            let done = disks.rewrap(&us(), &name, Access::OwnKeySet, change).await;
            let failure = done.unwrap_err();
            assert_eq!(failure.kind(), kind, "{failure}");
            assert_eq!(wraps(&lab), before);
        }
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}
