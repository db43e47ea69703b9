//! No space, a size limit, a disk below that loses writes, no O_DIRECT.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::support::front_end::{FrontEnd, Options};
use super::support::home::{Home, SIZE};
use super::support::request::{F_FLUSH, Request, S_IOERR, S_OK};
use super::support::server::{Server, succeed};
use super::untouched;

fn connect(server: &Server) -> FrontEnd {
    FrontEnd::connect(server.socket(), &Options::default()).unwrap()
}

const PIECE: usize = 64 << 10;

/// Writes all of the disk, piece by piece; returns the status of each.
fn fill(front_end: &mut FrontEnd, byte: u8) -> Vec<u8> {
    (0..SIZE / PIECE as u64)
        .map(|at| {
            let sector = at * (PIECE / 512) as u64;
            front_end
                .run(0, Request::write(sector, &[byte; PIECE]))
                .status
        })
        .collect()
}

/// After some writes failed: those that succeeded are there, and, with space
/// again, all succeed.
fn assert_recovers(front_end: &mut FrontEnd, statuses: &[u8], byte: u8, make_room: impl FnOnce()) {
    assert!(statuses.contains(&S_OK), "{statuses:?}");
    assert!(statuses.contains(&S_IOERR), "{statuses:?}");
    assert!(
        statuses
            .iter()
            .all(|status| [S_OK, S_IOERR].contains(status))
    );
    let check = |front_end: &mut FrontEnd| {
        for (at, status) in statuses.iter().enumerate() {
            let data = front_end.read((at * PIECE / 512) as u64, PIECE);
            assert!(*status != S_OK || data == [byte; PIECE], "piece {at}");
        }
    };
    front_end.flush();
    check(front_end);
    make_room();
    check(front_end);
    let statuses = fill(front_end, byte + 1);
    assert!(
        statuses.iter().all(|status| *status == S_OK),
        "{statuses:?}"
    );
    front_end.flush();
    assert!(front_end.read(0, PIECE) == [byte + 1; PIECE]);
}

/// RLIMIT_FSIZE fails writes beyond it, and sends a signal that by default
/// kills: the guest gets I/O errors, and the server lives.
#[test]
fn a_limit_on_file_sizes_is_an_error_of_the_guest() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img"]);
    let mut front_end = connect(&server);
    let pid = Pid::from_raw(server.pid() as i32);
    let whole = fs::metadata(home.path("disk.img")).unwrap().len();
    let limit = |current| {
        let limit = Rlimit {
            current,
            maximum: None,
        };
        prlimit(pid, Resource::Fsize, limit).unwrap();
    };
    limit(Some(whole - SIZE / 2));
    let statuses = fill(&mut front_end, 1);
    server.assert_running("writes beyond a limit");
    assert_recovers(&mut front_end, &statuses, 1, || limit(None));
    drop(front_end);
    assert_eq!(server.terminate().code(), Some(0));
}

#[test]
fn a_volume_beyond_the_limit_on_file_sizes_is_not_made() {
    let home = Home::new();
    let refusal = untouched(&home, || {
        let mut command = Command::new("sh");
        command
            .args(["-c", "ulimit -f 1024; exec \"$@\"", "sh"])
            .arg(env!("CARGO_BIN_EXE_sealblk"))
            .arg("--key-file")
            .arg(home.path("platform.key"))
            .args(["volume", "create", "big.img", "--size", "64M"])
            .current_dir(home.directory());
        super::support::home::refused(&mut command)
    });
    refusal.expect(10, &["big.img"], "ulimit -f");
}

/// A small file system of its own, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(home: &Home, options: &[&str]) -> Small {
        let at = home.path("small");
        fs::create_dir(&at).unwrap();
        run("mount", &[options, &[at.to_str().unwrap()]].concat());
        Small(at)
    }

    fn tmpfs(home: &Home, size: &str) -> Small {
        Small::new(
            home,
            &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"],
        )
    }

    /// ext4 in a file: it has O_DIRECT, and delays allocation without.
    fn ext4(home: &Home) -> Small {
        let image = home.path("ext4");
        fs::File::create(&image).unwrap().set_len(26 << 20).unwrap();
        run(
            "mkfs.ext4",
            &["-q", "-O", "^has_journal", image.to_str().unwrap()],
        );
        Small::new(home, &["-o", "loop", image.to_str().unwrap()])
    }

    /// Uses up what is free, but for so many bytes.
    fn leave(&self, bytes: u64) -> PathBuf {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let path = self.0.join("ballast");
        let file = fs::File::create(&path).unwrap();
        let take = free.saturating_sub(bytes);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    succeed(&mut command)
}

#[test]
#[ignore = "needs root, to mount"]
fn a_volume_that_finds_no_space_is_not_made() {
    let home = Home::new();
    let small = Small::tmpfs(&home, "2M");
    for (size, more) in [
        ("8M", &["--preallocate"][..]),
        ("1M", &["--header-area", "4M", "--preallocate"]),
    ] {
        let create = ["volume", "create", "small/disk.img", "--size", size];
        let refusal = home.refused(&[&create[..], more].concat());
        refusal.expect(10, &["small/disk.img", "No space left"], "free some space");
        assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0, "left behind");
    }
}

/// Serves a sparse volume in a file system that fills up.
fn guest_writes(home: &Home, small: &Small, arguments: &[&str]) {
    let size = SIZE.to_string();
    succeed(&mut home.sealblk(&["volume", "create", "small/disk.img", "--size", &size]));
    let ballast = small.leave(SIZE / 2);
    let mut server = home.serve(&[&["small/disk.img"], arguments].concat());
    let mut front_end = connect(&server);
    let statuses = fill(&mut front_end, 1);
    assert_recovers(&mut front_end, &statuses, 1, || {
        fs::remove_file(ballast).unwrap()
    });
    drop(front_end);
    assert_eq!(server.terminate().code(), Some(0), "{}", server.messages());
}

#[test]
#[ignore = "needs root, to mount"]
fn a_full_file_system_is_an_error_of_the_guest_and_passes() {
    let home = Home::new();
    let small = Small::tmpfs(&home, "20M");
    guest_writes(&home, &small, &["--direct", "never"]);
    drop(small);
    let home = Home::new();
    let small = Small::ext4(&home);
    guest_writes(&home, &small, &["--direct", "always"]);
}

#[test]
#[ignore = "needs root, to mount"]
fn without_o_direct_it_is_refused_or_falls_back() {
    let home = Home::new();
    // ext4 on a device with 4096-byte sectors has no O_DIRECT of 512 bytes.
    let image = home.path("image");
    fs::File::create(&image).unwrap().set_len(40 << 20).unwrap();
    let device = run(
        "losetup",
        &[
            "--find",
            "--show",
            "--sector-size",
            "4096",
            image.to_str().unwrap(),
        ],
    );
    let device = Loop(device.trim().into());
    run("mkfs.ext4", &["-q", &device.0]);
    let _small = Small::new(&home, &[&device.0]);
    let size = SIZE.to_string();
    for (sector_size, direct) in [("512", false), ("4096", true)] {
        let name = format!("small/{sector_size}.img");
        let create = [
            "volume",
            "create",
            &name,
            "--size",
            &size,
            "--sector-size",
            sector_size,
        ];
        succeed(&mut home.sealblk(&create));
        if !direct {
            let always = [
                "serve",
                &name,
                "--socket",
                "disk.sock",
                "--direct",
                "always",
            ];
            let before = fs::read(home.path(&name)).unwrap();
            home.refused(&always)
                .expect(11, &["O_DIRECT", "512", &name], "--direct auto");
            assert!(fs::read(home.path(&name)).unwrap() == before);
        }
        let server = home.serve(&[&name, "--queues", "3"]);
        let mut front_end = connect(&server);
        front_end.write(8, &[3; 4096]);
        front_end.flush();
        assert!(front_end.read(8, 4096) == [3; 4096]);
        assert_eq!(opened_direct(&server, &home.path(&name)), direct);
        let said = server
            .messages()
            .matches("goes through the page cache")
            .count();
        assert_eq!(said, usize::from(!direct), "{}", server.messages());
        drop(server);
        fs::remove_file(home.path("disk.log")).unwrap();
    }
}

/// Whether the server has the file open with O_DIRECT.
fn opened_direct(server: &Server, path: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{}", server.pid()));
    fs::read_dir(proc.join("fd"))
        .unwrap()
        .flatten()
        .any(|entry| {
            let flags = || -> Option<i32> {
                let info = fs::read_to_string(proc.join("fdinfo").join(entry.file_name())).ok()?;
                let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
                i32::from_str_radix(line.trim(), 8).ok()
            };
            fs::read_link(entry.path()).is_ok_and(|to| to == path)
                && flags().is_some_and(|flags| flags & libc::O_DIRECT != 0)
        })
}

struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A block device that takes writes into the page cache and cannot keep them:
/// a loop device over a file that finds no space. The flush fails, and so
/// does every later one; with a write-through cache the write itself fails;
/// and a server that could not make its data durable does not end with 0.
#[test]
#[ignore = "needs root, to mount and for loop devices"]
fn a_flush_that_failed_is_never_forgotten() {
    for cache in ["writeback", "writethrough"] {
        let home = Home::new();
        let small = Small::tmpfs(&home, "24M");
        let image = small.0.join("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let device = Loop(
            run("losetup", &["--find", "--show", image.to_str().unwrap()])
                .trim()
                .into(),
        );
        let create = ["volume", "create", &device.0, "--header-area", "1M"];
        succeed(&mut home.sealblk(&create));
        let ballast = small.leave(0);
        let arguments = [
            "serve",
            &device.0,
            "--socket",
            "disk.sock",
            "--direct",
            "never",
            "--cache",
            cache,
        ];
        let mut server = home.start("disk.sock", home.sealblk(&arguments));
        let mut front_end = connect(&server);
        assert!(front_end.has(F_FLUSH));
        let write =
            |front_end: &mut FrontEnd| front_end.run(0, Request::write(2048, &[1; PIECE])).status;
        let flush = |front_end: &mut FrontEnd| front_end.run(0, Request::flush()).status;
        let expected = if cache == "writeback" { S_OK } else { S_IOERR };
        assert_eq!(write(&mut front_end), expected);
        assert_eq!(flush(&mut front_end), S_IOERR);
        // Even where there is space again, and the kernel has forgotten.
        fs::remove_file(ballast).unwrap();
        assert_eq!(flush(&mut front_end), S_IOERR);
        drop(front_end);
        let mut front_end = connect(&server);
        assert_eq!(flush(&mut front_end), S_IOERR);
        drop(front_end);
        let status = server.terminate();
        assert_eq!(status.code(), Some(10), "{}", server.messages());
        assert!(
            server.messages().contains("error: "),
            "{}",
            server.messages()
        );
        assert!(
            server.messages().contains(&device.0),
            "{}",
            server.messages()
        );
    }
}
