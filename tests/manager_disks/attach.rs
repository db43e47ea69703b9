//! Attaching and detaching.

use std::os::unix::net::UnixListener;

use sealblk::error::{Failure, Kind};
use sealblk::manager::model::{Attach, DiskState};
use uuid::Uuid;

use super::lab::{BY_FORCE, GENTLY, Lab, detach_unused, run, until, us};
use super::support::home::SIZE;

/// It is refused for this reason, and the next step mentions `next`.
fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Failure>,
    kind: Kind,
    cause: &str,
    next: &str,
) {
    let failure = result.unwrap_err();
    assert_eq!(failure.kind(), kind, "{failure}");
    assert!(failure.to_string().contains(cause), "{cause:?}: {failure}");
    let help = failure.help().unwrap_or_default();
    assert!(help.contains(next), "{next:?}: {help}");
}

#[test]
fn a_disk_is_attached_used_and_detached() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let mut changes = disks.subscribe();
        let before = *changes.borrow_and_update();
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        assert_eq!(info.state, DiskState::Running);
        assert_eq!(lab.workers(), [info.pid.unwrap()]);
        assert_eq!(info.size, Some(SIZE));
        assert_eq!(info.key_set.as_deref(), Some("default"));
        assert_eq!(info.provider.as_deref(), Some("file"));
        assert!(info.key_version.is_some() && info.last_error.is_none());
        assert!(*changes.borrow_and_update() > before, "nobody is told");
        assert_eq!(disks.list(), [info]);

        let mut front_end = lab.connect("a.img").await;
        let data = vec![0xa5; 64 << 10];
        front_end.write(8, &data);
        front_end.flush();
        assert!(front_end.read(8, data.len()) == data);
        drop(front_end);
        detach_unused(&disks, &name).await;
        assert!(disks.list().is_empty());
        assert!(lab.workers().is_empty());
        assert!(!lab.path("a.img.sock").exists());
        let image = std::fs::read(lab.path("a.img")).unwrap();
        assert!(!image.windows(512).any(|part| part == &data[..512]));

        // Nothing keeps it from being attached once more.
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        assert!(lab.connect("a.img").await.read(8, data.len()) == data);
        let none = disks.detach(&us(), "b.img", GENTLY).await;
        assert_refused(none, Kind::NotFound, "b.img", "sealblk list");
    });
}

#[test]
fn what_a_disk_has_is_no_other_disks() {
    let lab = Lab::with_volume("a.img");
    lab.home.create("b.img", &[]);
    lab.home.create("c.img", &["--header", "c.header"]);
    std::fs::hard_link(lab.path("a.img"), lab.path("alias.img")).unwrap();
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let attach = |change: &dyn Fn(&mut Attach)| {
            let mut request = lab.request("b.img");
            change(&mut request);
            let disks = &disks;
            async move { disks.attach(&us(), request).await }
        };
        let volume = attach(&|it| it.volume = lab.path("a.img")).await;
        assert_refused(volume, Kind::Busy, &name, "detach that disk");
        let alias = attach(&|it| it.volume = lab.path("alias.img")).await;
        assert_refused(alias, Kind::Busy, &name, "detach that disk");
        let socket = attach(&|it| it.socket = lab.path("a.img.sock")).await;
        assert_refused(socket, Kind::Busy, &name, "another socket");
        let taken = attach(&|it| it.name = Some(name.clone())).await;
        assert_refused(taken, Kind::Busy, &name, "another name");
        let header = attach(&|it| it.header = Some(lab.path("a.img"))).await;
        assert_refused(header, Kind::Busy, &name, "detach that disk");
        // Nor does anybody outside of this manager get the volume.
        let serve = ["serve", "a.img", "--socket", "other.sock"];
        let pid = format!("process {}", std::process::id());
        let refusal = lab.home.refused(&serve);
        assert_eq!(refusal.status, 5, "{refusal:?}");
        assert!(refusal.error.contains("in use"), "{refusal:?}: {pid}");

        let mut detached = lab.request("c.img");
        detached.header = Some(lab.path("c.header"));
        let info = disks.attach(&us(), detached).await.unwrap();
        assert_eq!(info.header, Some(lab.path("c.header")));
        lab.connect("c.img").await.write(0, &[1; 512]);
        let header = attach(&|it| it.header = Some(lab.path("c.header"))).await;
        assert_refused(header, Kind::Busy, &lab.name("c.img"), "detach that disk");
        assert_eq!(disks.list().len(), 2);
    });
}

#[test]
fn of_many_who_attach_one_volume_one_does() {
    let lab = Lab::with_volume("a.img");
    run(async {
        let disks = lab.open().await;
        let mut attempts = tokio::task::JoinSet::new();
        for number in 0..6 {
            let (disks, mut request) = (disks.clone(), lab.request("a.img"));
            request.name = Some(format!("{}-{number}", lab.name("a.img")));
            request.socket = lab.path(&format!("{number}.sock"));
            attempts.spawn(async move { disks.attach(&us(), request).await });
        }
        let outcomes = attempts.join_all().await;
        let (good, bad): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(good.len(), 1);
        for failure in bad {
            assert_eq!(failure.unwrap_err().kind(), Kind::Busy);
        }
        assert_eq!(lab.workers().len(), 1);
        assert_eq!(disks.list().len(), 1);
    });
}

#[test]
fn what_cannot_be_attached_leaves_nothing() {
    let lab = Lab::with_volume("a.img");
    std::fs::write(lab.path("text"), "no volume").unwrap();
    run(async {
        let disks = lab.open().await;
        let attach = |change: &dyn Fn(&mut Attach)| {
            let mut request = lab.request("a.img");
            change(&mut request);
            let disks = &disks;
            async move { disks.attach(&us(), request).await }
        };
        let relative = attach(&|it| it.volume = "a.img".into()).await;
        assert_refused(relative, Kind::Usage, "not absolute", "begin it with /");
        for bad in ["", "..", "a/b", "a b", &"x".repeat(65)] {
            let named = attach(&|it| it.name = Some(bad.to_owned())).await;
            assert_refused(named, Kind::Usage, "not a name", "letters");
        }
        let options = serde_json::json!({"pid_file": "/run/a.pid"});
        let options = serde_json::from_value::<sealblk::config::Options>(options).unwrap();
        let pid_file = attach(&|it| it.options = options.clone()).await;
        assert_refused(pid_file, Kind::Usage, "no pid file", "leave it out");
        let same = attach(&|it| it.socket = lab.path("a.img")).await;
        assert_refused(same, Kind::Usage, "two purposes", "path of its own");
        let missing = attach(&|it| it.volume = lab.path("missing")).await;
        assert_refused(missing, Kind::NotFound, "missing", "");
        let text = attach(&|it| it.volume = lab.path("text")).await;
        assert_refused(text, Kind::Unsupported, "not a volume", "");
        let nowhere = attach(&|it| it.socket = lab.path("no/such/directory.sock")).await;
        assert_refused(nowhere, Kind::NotFound, "directory.sock", "exists");
        let other = UnixListener::bind(lab.path("taken.sock")).unwrap();
        let taken = attach(&|it| it.socket = lab.path("taken.sock")).await;
        assert_refused(taken, Kind::Busy, "taken.sock", "another");
        drop(other);
        lab.hide_key();
        let no_key = disks.attach(&us(), lab.request("a.img")).await;
        assert!(no_key.is_err());
        lab.show_key();

        assert!(disks.list().is_empty());
        assert!(lab.workers().is_empty());
        let left = |directory: &str| std::fs::read_dir(lab.path(directory)).unwrap().count();
        assert_eq!((left("state/disks"), left("run/workers")), (0, 0));
        assert!(!lab.path("a.img.sock").exists());
        // And the volume is not locked.
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
    });
}

#[test]
fn a_disk_without_a_name_is_called_by_its_uuid_and_gets_its_options() {
    let lab = Lab::new();
    lab.home
        .create("a.img", &["--sector-size", "4096", "--zero-units"]);
    run(async {
        let mut settings = lab.settings();
        let table = serde_json::json!({"queues": 3, "engine": "portable", "serial": "of-serve"});
        settings.serve = serde_json::from_value(table).unwrap();
        let disks = lab.open_with(settings).await;
        let mut request = lab.request("a.img");
        request.name = None;
        let options = serde_json::json!({"discard": "pass", "queues": 2});
        request.options = serde_json::from_value(options).unwrap();
        let info = disks.attach(&us(), request).await.unwrap();
        assert_eq!(info.name.parse::<Uuid>().ok(), info.uuid);
        assert_eq!(info.sector_size, Some(4096));
        assert_eq!(info.engine.as_deref(), Some("portable"));
        let mut front_end = lab.connect("a.img").await;
        assert_eq!(front_end.max_queues(), Some(2), "what is asked for wins");
        let serial = info.uuid.unwrap().simple().to_string();
        assert_eq!(front_end.id(), &serial.as_bytes()[..20]);
        drop(front_end);
        detach_unused(&disks, &info.name).await;

        let mut read_only = lab.request("a.img");
        read_only.options = serde_json::from_value(serde_json::json!({"read_only": true})).unwrap();
        let info = disks.attach(&us(), read_only).await.unwrap();
        assert!(info.read_only);
    });
}

#[test]
fn a_disk_in_use_is_detached_by_force_alone() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut front_end = lab.connect("a.img").await;
        front_end.write(0, &[7; 4096]);
        // The worker tells of it, and may take a moment.
        until(&disks, &name, "a front end", |info| info.front_end).await;
        let gently = disks.detach(&us(), &name, GENTLY).await;
        assert_refused(gently, Kind::Busy, &name, "--force");
        assert!(front_end.read(0, 4096) == [7; 4096], "it serves on");
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        assert!(lab.workers().is_empty() && disks.list().is_empty());
        drop(front_end);

        // What was written without a flush is there: it ended in good order.
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        assert!(lab.connect("a.img").await.read(0, 4096) == [7; 4096]);
    });
}

#[test]
fn thirty_disks_are_attached_at_once() {
    const COUNT: usize = 30;
    let lab = Lab::new();
    let files: Vec<String> = (0..COUNT).map(|number| format!("{number}.img")).collect();
    for file in &files {
        lab.home.create(file, &[]);
    }
    run(async {
        let disks = lab.open().await;
        let mut attaching = tokio::task::JoinSet::new();
        for file in &files {
            let (disks, mut request) = (disks.clone(), lab.request(file));
            request.options = serde_json::from_value(serde_json::json!({"queues": 1})).unwrap();
            attaching.spawn(async move { disks.attach(&us(), request).await.unwrap() });
        }
        let infos = attaching.join_all().await;
        assert_eq!(infos.len(), COUNT);
        assert_eq!(lab.workers().len(), COUNT);
        for (number, file) in files.iter().enumerate() {
            lab.connect(file).await.write(0, &[number as u8 + 1; 512]);
        }
        for (number, file) in files.iter().enumerate() {
            let own = [number as u8 + 1; 512];
            assert!(lab.connect(file).await.read(0, 512) == own, "{file}");
        }
        let mut detaching = tokio::task::JoinSet::new();
        for file in &files {
            let (disks, name) = (disks.clone(), lab.name(file));
            detaching.spawn(async move { detach_unused(&disks, &name).await });
        }
        detaching.join_all().await;
        assert!(lab.workers().is_empty() && disks.list().is_empty());
    });
}
