//! Real devices and file systems that are full, shrink, or are gone.
//!
//! Those that need root, loop devices and the right to mount run only when asked
//! for: `cargo test --test faults -- --ignored`.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use sealblk::engine::trouble::OnError;
use tempfile::TempDir;

use super::lab::{Lab, USED};
use super::support::history::seed;
use super::support::in_process::{BYTES, OFFSET, Served};
use super::support::registers::Registers;
use super::support::request::{Range, Request, S_IOERR, S_OK};
use super::support::server::{DEADLINE, eventually, succeed};

const ERRORS: (OnError, Duration) = (OnError::Stop, Duration::from_secs(30));

fn place() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn load(served: &Served) -> Registers {
    let mut load = Registers::new(USED, 2, true, seed());
    load.connect(&served.path("socket")).unwrap();
    load
}

fn await_stopped(served: &Served, errno: &[i32]) {
    let standing = eventually("it is stopped", || served.disk.trouble().standing());
    let last = standing.last.errno;
    assert!(standing.stopped && errno.contains(&last), "{standing:?}");
}

fn await_going(served: &Served) {
    eventually("it goes on", || {
        served.disk.trouble().standing().is_none().then_some(())
    });
}

/// The file ends before the disk does, and then it does not any more.
#[test]
fn a_file_that_was_cut_short_is_waited_for() {
    let lab = Lab::new(OnError::Stop);
    let mut load = lab.load(seed());
    assert!(load.run(200, DEADLINE));
    load.drain();
    let below = lab.served.path("disk");
    let whole = std::fs::read(&below).unwrap();
    let file = File::options().write(true).open(&below).unwrap();
    file.set_len(OFFSET).unwrap();
    // A write would make it longer: what is read is not there.
    load.leave();
    let mut front = lab.served.connect(1);
    front.submit(0, Request::read(8, 4096)).unwrap();
    await_stopped(&lab.served, &[0]);
    std::fs::write(&below, &whole).unwrap();
    assert_eq!(front.complete(0).unwrap().1.status, S_OK);
    await_going(&lab.served);
    drop(front);
    load.connect(&lab.served.path("socket")).unwrap();
    load.check_all();
}

/// The device is pulled out, and does not come back: nobody hangs, whoever asks.
#[test]
fn a_device_that_is_gone_keeps_nobody_from_ending() {
    for policy in [OnError::Report, OnError::Stop, OnError::Retry] {
        let mut lab = Lab::new(policy);
        let mut load = lab.load(seed());
        assert!(load.run(100, DEADLINE));
        // A flush is told that it failed, whoever waits.
        load.tolerant = true;
        lab.disk.pull_out();
        if policy == OnError::Report {
            assert!(load.run(100, DEADLINE));
            assert!(load.failed[0] > 0 && load.failed[1] > 0);
        } else {
            load.run(1 << 40, Duration::from_millis(100));
            let standing = eventually("it waits", || lab.served.disk.trouble().standing());
            assert_eq!(standing.stopped, policy == OnError::Stop);
            assert_eq!(load.failed[..2], [0; 2], "reads and writes wait");
        }
        let start = Instant::now();
        load.leave();
        let mut front = lab.served.connect(1);
        front.submit(0, Request::read(0, 4096)).unwrap();
        if policy != OnError::Report {
            eventually("it waits", || lab.served.disk.trouble().standing());
            lab.served.disk.trouble().give_up();
        }
        assert_eq!(front.complete(0).unwrap().1.status, S_IOERR);
        drop(front);
        lab.served.stop();
        assert!(start.elapsed() < DEADLINE);
    }
}

struct Mount(PathBuf);

impl Mount {
    /// An ext4 of so many bytes.
    fn ext4(place: &TempDir, bytes: u64) -> Mount {
        let image = place.path().join("fs.img");
        File::create_new(&image).unwrap().set_len(bytes).unwrap();
        succeed(
            Command::new("mkfs.ext4")
                .args(["-q", "-m", "0"])
                .arg(&image),
        );
        let at = place.path().join("fs");
        std::fs::create_dir(&at).unwrap();
        succeed(
            Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &at]),
        );
        Mount(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_full_file_system_stops_the_disk_until_there_is_room() {
    let outside = place();
    let mount = Mount::ext4(&outside, 64 << 20);
    let path = mount.0.join("disk");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(OFFSET + BYTES).unwrap();
    let served = Served::over(place(), &file, ERRORS);
    let mut load = load(&served);
    assert!(load.run(20, DEADLINE));
    for _ in 0..2 {
        // Until there is no block left.
        let filler = mount.0.join("filler");
        let mut full = File::create(&filler).unwrap();
        let piece = vec![1; 64 << 10];
        while std::io::Write::write_all(&mut full, &piece).is_ok() {}
        let small = vec![1; 512];
        while std::io::Write::write_all(&mut full, &small).is_ok() {}
        let _ = full.sync_all();
        load.run(1 << 40, Duration::from_millis(300));
        await_stopped(&served, &[libc::ENOSPC]);
        drop(full);
        std::fs::remove_file(&filler).unwrap();
        load.drain();
        await_going(&served);
        assert!(load.run(100, DEADLINE));
        // Give back what it took, so that it is in need of some again.
        load.drain();
        load.leave();
        let mut front = served.connect(1);
        front.discard(&[Range::new(0, (USED / 512) as u32)]);
        drop(front);
        load.assume(0, 0, USED / 512);
        load.connect(&served.path("socket")).unwrap();
    }
    assert_eq!(load.failed, [0; 3]);
    load.check_all();
}

struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_device_that_shrinks_is_waited_for() {
    let outside = place();
    let below = outside.path().join("device.img");
    let file = File::create_new(&below).unwrap();
    file.set_len(OFFSET + BYTES).unwrap();
    let show = ["--find", "--show", "--direct-io=off"];
    let device = succeed(Command::new("losetup").args(show).arg(&below));
    let device = Loop(device.trim().to_owned());
    let opened = File::options()
        .read(true)
        .write(true)
        .open(&device.0)
        .unwrap();
    let served = Served::over(place(), &opened, ERRORS);
    let mut load = load(&served);
    assert!(load.run(200, DEADLINE));
    load.drain();
    let resize = |bytes: u64| {
        file.set_len(bytes).unwrap();
        succeed(Command::new("losetup").args(["--set-capacity", &device.0]));
    };
    // All that was written is below that.
    resize(OFFSET + USED);
    load.leave();
    let mut front = served.connect(1);
    let (beyond, errnos) = (
        (USED + 4096) / 512,
        [0, libc::EIO, libc::ENOSPC, libc::ENXIO],
    );
    for request in [
        Request::read(beyond, 4096),
        Request::write(beyond, &[1; 4096]),
    ] {
        front.submit(0, request).unwrap();
        await_stopped(&served, &errnos);
        resize(OFFSET + BYTES);
        assert_eq!(front.complete(0).unwrap().1.status, S_OK);
        await_going(&served);
        resize(OFFSET + USED);
    }
    resize(OFFSET + BYTES);
    drop(front);
    load.connect(&served.path("socket")).unwrap();
    load.check_all();
}
