//! Paths that lead nowhere, and rights that are missing.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use super::support::home::{Home, Refusal, refused};
use super::support::server::{Server, key_file};
use super::{assert_serves, untouched, written};

#[test]
fn paths_that_are_no_volume() {
    let home = written();
    fs::create_dir(home.path("directory")).unwrap();
    let serve = |volume: &'static str| ["serve", volume, "--socket", "disk.sock"];
    untouched(&home, || home.refused(&serve("missing.img"))).expect(
        3,
        &["missing.img"],
        "spelt right",
    );
    untouched(&home, || home.refused(&serve("nowhere/missing.img"))).expect(
        3,
        &["nowhere/missing.img"],
        "spelt right",
    );
    untouched(&home, || home.refused(&serve("disk.img/missing.img"))).expect(
        3,
        &["disk.img/missing.img"],
        "spelt right",
    );
    untouched(&home, || home.refused(&serve("directory"))).expect(
        2,
        &["directory"],
        "regular file or a block device",
    );
    untouched(&home, || home.refused(&serve("/dev/null"))).expect(
        2,
        &["/dev/null"],
        "regular file or a block device",
    );
    let header = ["--header", "missing.header"];
    untouched(&home, || home.serve_refused(&header)).expect(3, &["missing.header"], "spelt right");
    let header = ["--header", "./disk.img"];
    untouched(&home, || home.serve_refused(&header)).expect(2, &["disk.img"], "");
}

/// `sealblk serve` as user and group 65534, with a key file of its own.
fn as_nobody(home: &Home, arguments: &[&str]) -> Command {
    let key = key_file(home.directory());
    chown(&key, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(home.directory(), Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_sealblk"))
        .arg("--key-file")
        .arg(key)
        .args(["serve", "disk.img", "--socket", "disk.sock"])
        .args(arguments)
        .current_dir(home.directory());
    command
}

#[test]
#[ignore = "needs root, to become another user"]
fn a_volume_without_rights_to_it() {
    let home = written();
    let mode = |mode| fs::set_permissions(home.path("disk.img"), Permissions::from_mode(mode));
    let nobody = |arguments: &[&str]| -> Refusal {
        untouched(&home, || refused(&mut as_nobody(&home, arguments)))
    };
    mode(0o600).unwrap();
    nobody(&[]).expect(4, &["cannot open", "disk.img"], "access to");
    nobody(&["--read-only"]).expect(4, &["cannot open", "disk.img"], "access to");

    // A file that may be read only can be served read-only, and so is told.
    mode(0o444).unwrap();
    nobody(&[]).expect(4, &["cannot open", "disk.img"], "--read-only");
    let server = home.start("disk.sock", as_nobody(&home, &["--read-only"]));
    assert_reads(&server);
    drop(server);
    fs::remove_file(home.path("disk.log")).unwrap();

    // The key file is root's, and for root alone.
    mode(0o666).unwrap();
    let mut command = as_nobody(&home, &[]);
    chown(key_file(home.directory()), Some(0), Some(0)).unwrap();
    untouched(&home, || refused(&mut command)).expect(4, &["platform.key"], "");
}

#[test]
#[ignore = "needs root, to become another user"]
fn a_directory_without_rights_to_it() {
    let home = written();
    chown(home.path("disk.img"), Some(65534), Some(65534)).unwrap();
    let mut command = as_nobody(&home, &[]);
    fs::set_permissions(home.directory(), Permissions::from_mode(0o755)).unwrap();
    untouched(&home, || refused(&mut command)).expect(4, &["disk.sock"], "writable");
    let mut command = as_nobody(&home, &["--pid-file", "/proc/pid"]);
    fs::set_permissions(home.directory(), Permissions::from_mode(0o777)).unwrap();
    let refusal = untouched(&home, || refused(&mut command));
    assert!([3, 4].contains(&refusal.status), "{refusal:?}");
    assert!(refusal.error.contains("/proc/pid"), "{refusal:?}");
}

fn assert_reads(server: &Server) {
    use super::support::front_end::{FrontEnd, Options};
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert!(front_end.read(0, super::DATA.len()) == super::DATA);
}

#[test]
#[ignore = "needs root, to mount"]
fn a_read_only_file_system() {
    let home = written();
    let at = home.path("mounted");
    fs::create_dir(&at).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        assert!(
            Command::new(program)
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
    };
    run(
        "mount",
        &[
            "--bind",
            home.directory().to_str().unwrap(),
            at.to_str().unwrap(),
        ],
    );
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        }
    }
    let _mounted = Unmount(at.clone());
    run("mount", &["-o", "remount,bind,ro", at.to_str().unwrap()]);
    let serve = ["serve", "mounted/disk.img", "--socket", "disk.sock"];
    untouched(&home, || home.refused(&serve)).expect(
        4,
        &["mounted/disk.img", "Read-only file system"],
        "--read-only",
    );
    let server = home.start(
        "disk.sock",
        home.sealblk(&[&serve[..], &["--read-only"]].concat()),
    );
    assert_reads(&server);
    drop(server);
    assert_serves(&home, &["disk.img"]);
}
