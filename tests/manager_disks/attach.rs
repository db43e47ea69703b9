//! Attaching and detaching.

use sealblk::error::Kind;
use sealblk::manager::model::DiskState;

use super::lab::{GENTLY, Lab, actor, run};

#[test]
fn a_disk_is_attached_used_and_detached() {
    let lab = Lab::with_volume("a.img");
    run(async {
        let disks = lab.open().await;
        let info = disks.attach(&actor(), lab.request("a.img")).await.unwrap();
        assert_eq!(info.state, DiskState::Running);
        assert_eq!(lab.workers(), [info.pid.unwrap()]);
        let mut front_end = lab.connect("a.img").await;
        let data = vec![0xa5; 64 << 10];
        front_end.write(8, &data);
        front_end.flush();
        assert!(front_end.read(8, data.len()) == data);
        drop(front_end);

        disks.detach(&actor(), "a.img", GENTLY).await.unwrap();
        assert!(disks.list().is_empty());
        assert!(lab.workers().is_empty());
        assert!(!lab.path("a.img.sock").exists());
        let image = std::fs::read(lab.path("a.img")).unwrap();
        assert!(!image.windows(512).any(|part| part == &data[..512]));
        // Nothing keeps it from being attached once more.
        disks.attach(&actor(), lab.request("a.img")).await.unwrap();
        assert!(lab.connect("a.img").await.read(8, data.len()) == data);
        let error = disks.detach(&actor(), "b.img", GENTLY).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    });
}
