//! What other users of the host put where we look: links, second names, FIFOs,
//! files of their own, locks.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use sealblk::paths;
use sealblk::vhost::{Listener, SocketParams};

use super::support::home::{Guard, Home, refused};
use super::support::server::{eventually, key_file, succeed};
use super::support::tree;
use super::{assert_serves, untouched, written};

/// Somebody else.
const THEM: u32 = 60_000;

/// How often a race is run.
fn races() -> u32 {
    let races = std::env::var("SEALBLK_RACES").ok();
    races.map_or(3000, |races| races.parse().unwrap())
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory of theirs, in which they can do what they like.
fn their_directory(home: &Home) -> PathBuf {
    chmod(home.directory(), 0o755);
    let path = home.path("theirs");
    fs::create_dir(&path).unwrap();
    chown(&path, Some(THEM), Some(THEM)).unwrap();
    path
}

/// A link of theirs.
fn their_link(to: &Path, at: &Path) {
    symlink(to, at).unwrap();
    lchown(at, Some(THEM), Some(THEM)).unwrap();
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

#[test]
#[ignore = "needs root, for links of another user"]
fn a_link_of_somebody_else_leads_to_no_volume() {
    let home = written();
    let theirs = their_directory(&home);
    their_link(&home.path("disk.img"), &theirs.join("file"));
    their_link(home.directory(), &theirs.join("directory"));
    symlink("theirs/file", home.path("over")).unwrap();
    for path in ["theirs/file", "theirs/directory/disk.img", "over"] {
        let commands: [&[&str]; 5] = [
            &["serve", path, "--socket", "disk.sock"],
            &["volume", "info", path],
            &["verify", path],
            &["volume", "erase", path, "--yes"],
            &["volume", "create", path, "--size", "4M"],
        ];
        for command in commands {
            let refusal = untouched(&home, || home.refused(command));
            // What is refused for another reason before that is refused as well.
            if refusal.status == 4 {
                refusal.expect(4, &["symbolic link", "user 60000"], "name the file itself");
            } else {
                assert_eq!(command[1], "erase", "{refusal:?}");
            }
        }
    }
    // Nor is anything made where such a link leads.
    let create = [
        "volume",
        "create",
        "theirs/directory/new.img",
        "--size",
        "4M",
    ];
    untouched(&home, || home.refused(&create)).expect(4, &["symbolic link"], "itself");
    let key = [
        "key",
        "new-recovery-key",
        "--to",
        "theirs/directory/new.key",
    ];
    untouched(&home, || home.refused(&key)).expect(4, &["symbolic link"], "");

    // Our own links, and root's, are followed.
    symlink("disk.img", home.path("ours")).unwrap();
    assert_serves(&home, &["ours"]);
}

/// Ends what runs beside a test, also when that fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs root, for links of another user"]
fn what_is_exchanged_while_it_is_looked_for_is_the_one_or_refused() {
    let home = Home::new();
    let theirs = their_directory(&home);
    let secret = home.path("secret");
    fs::write(&secret, "secret").unwrap();
    let (name, other) = (theirs.join("name"), theirs.join("other"));
    fs::write(&name, "theirs").unwrap();
    their_link(&secret, &other);
    let directory = theirs.join("directory");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("secret"), "theirs").unwrap();
    let around = theirs.join("around");
    their_link(home.directory(), &around);

    let stop = AtomicBool::new(false);
    let mut seen = [0u32; 4];
    std::thread::scope(|scope| {
        let stop = &stop;
        let _end = End(stop);
        for (one, two) in [(&name, &other), (&directory, &around)] {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).unwrap();
                }
            });
        }
        let mut round = 0;
        // Until each has been met, and the count is full.
        while round < races() || (seen.contains(&0) && round < 1000 * races()) {
            round += 1;
            for (at, path) in [(0, name.clone()), (2, directory.join("secret"))] {
                match paths::find(&path).and_then(|found| found.open_to_read()) {
                    Ok(file) => {
                        assert_eq!(io::read_to_string(file).unwrap(), "theirs");
                        seen[at] += 1;
                    }
                    Err(error) => {
                        assert!(paths::Refused::of(&error).is_some(), "{error}");
                        seen[at + 1] += 1;
                    }
                }
            }
        }
    });
    assert!(!seen.contains(&0), "nothing was exchanged: {seen:?}");
}

#[test]
#[ignore = "needs root, for a directory of another user"]
fn a_second_name_that_somebody_else_gave_a_volume_is_refused() {
    let home = written();
    let theirs = their_directory(&home);
    fs::hard_link(home.path("disk.img"), theirs.join("disk.img")).unwrap();
    let serve = ["serve", "theirs/disk.img", "--socket", "disk.sock"];
    untouched(&home, || home.refused(&serve)).expect(4, &["2 names"], "remove the other names");
    // By its own name it is what it is.
    assert_serves(&home, &["disk.img"]);
    // With one name it may be where it is, whoever has the directory.
    fs::remove_file(home.path("disk.img")).unwrap();
    assert_serves(&home, &["theirs/disk.img"]);
}

#[test]
fn a_fifo_keeps_nobody_waiting() {
    let home = written();
    fifo(&home.path("fifo"));
    let refuse = |arguments: &[&str]| untouched(&home, || home.refused(arguments));
    refuse(&["serve", "fifo", "--socket", "disk.sock"]).expect(2, &["FIFO"], "regular file");
    refuse(&["serve", "disk.img", "--header", "fifo", "--socket", "s"]).expect(2, &["FIFO"], "");
    refuse(&["volume", "info", "fifo"]).expect(2, &["FIFO"], "regular file");
    refuse(&["--config", "fifo", "key", "list"]).expect(4, &["fifo", "regular"], "regular file");
    // A directory that is none, of a socket and of a pid file.
    refuse(&["serve", "disk.img", "--socket", "fifo/disk.sock"]).expect(3, &["fifo/disk.sock"], "");
    let pid = ["--pid-file", "fifo/pid"];
    untouched(&home, || home.serve_refused(&pid)).expect(3, &["fifo/pid"], "");
}

#[test]
fn a_pid_file_takes_the_place_of_a_link_and_leaves_what_it_leads_to() {
    let home = written();
    fs::write(home.path("precious"), "precious").unwrap();
    symlink("precious", home.path("pid")).unwrap();
    fs::hard_link(home.path("precious"), home.path("other")).unwrap();
    for name in ["pid", "other"] {
        let mut server = home.serve(&["disk.img", "--pid-file", name]);
        let pid = format!("{}\n", server.pid());
        eventually("the file has the number", || {
            (fs::read_to_string(home.path(name)).ok()? == pid).then_some(())
        });
        let there = fs::symlink_metadata(home.path(name)).unwrap();
        assert!(there.is_file(), "{there:?}");
        assert_eq!(there.mode() & 0o7777, 0o644);
        assert_eq!(server.terminate().code(), Some(0));
        assert!(!home.path(name).exists());
    }
    assert_eq!(
        fs::read_to_string(home.path("precious")).unwrap(),
        "precious"
    );
    // One that has become something else by the end keeps nobody waiting.
    let mut server = home.serve(&["disk.img", "--pid-file", "pid"]);
    eventually("the file is there", || {
        fs::remove_file(home.path("pid")).ok()
    });
    fifo(&home.path("pid"));
    assert_eq!(server.terminate().code(), Some(0));
    assert!(home.path("pid").symlink_metadata().is_ok());
}

#[test]
#[ignore = "needs root, for files of another user"]
fn a_configuration_of_somebody_else_is_refused() {
    let home = Home::new();
    let config = home.path("sealblk.toml");
    fs::write(&config, "[log]\nlevel = \"info\"\n").unwrap();
    let list = ["--config", "sealblk.toml", "key", "list"];
    succeed(&mut home.sealblk(&list));
    chown(&config, Some(THEM), None).unwrap();
    home.refused(&list)
        .expect(4, &["sealblk.toml", "user 60000", "user 0"], "chown 0");
    chown(&config, Some(0), None).unwrap();
    chmod(&config, 0o666);
    home.refused(&list)
        .expect(4, &["by everybody"], "chmod o-w");
    chmod(&config, 0o644);
    fs::rename(&config, home.path("elsewhere.toml")).unwrap();
    their_link(&home.path("elsewhere.toml"), &config);
    home.refused(&list)
        .expect(4, &["symbolic link", "user 60000"], "name the file itself");
}

/// Whoever can write to the directory puts a link in place of the socket as soon
/// as that is there: to a file that its group would like to write to.
#[test]
fn no_mode_or_group_is_given_to_what_took_the_place_of_a_socket() {
    let home = Home::new();
    let (victim, path) = (home.path("victim"), home.path("made.sock"));
    fs::write(&victim, "").unwrap();
    chmod(&victim, 0o600);
    let stop = AtomicBool::new(false);
    let mut ends = [0u32; 2];
    std::thread::scope(|scope| {
        let _end = End(&stop);
        let link = home.path("link");
        symlink(&victim, &link).unwrap();
        let (victim, path) = (&victim, &path);
        let running = &stop;
        scope.spawn(move || {
            while !running.load(Ordering::Relaxed) {
                // When nothing is there, nothing is exchanged; and back again.
                let _ = rustix::fs::renameat_with(CWD, &link, CWD, path, RenameFlags::EXCHANGE);
                // Who takes a socket away that has just become the link takes that.
                if !link.is_symlink() && !path.is_symlink() {
                    let _ = fs::remove_file(&link);
                    let _ = symlink(victim, &link);
                }
            }
        });
        let params = SocketParams {
            path: path.clone(),
            mode: 0o660,
            group: Some(rustix::process::getegid().as_raw()),
        };
        let mut round = 0;
        // Until it has been lost, and the count is full.
        while round < races() || (ends[1] == 0 && round < 1000 * races()) {
            round += 1;
            match Listener::bind(&params) {
                Ok(_) => ends[0] += 1,
                Err(_) => ends[1] += 1,
            }
            assert_eq!(fs::metadata(victim).unwrap().mode() & 0o7777, 0o600);
        }
    });
    assert!(ends[1] > 0, "the race was never lost: {ends:?}");
}

/// All files below `directory` that others could write to.
fn loose(directory: &Path) -> Vec<(PathBuf, u32)> {
    let all = tree::below(directory, |entry| Ok((entry.path(), entry.metadata()?)));
    let loose = |meta: &fs::Metadata| !meta.is_symlink() && meta.mode() & 0o022 != 0;
    all.into_iter()
        .filter(|(_, meta)| loose(meta))
        .map(|(path, meta)| (path, meta.mode() & 0o7777))
        .collect()
}

#[test]
fn whatever_the_umask_nothing_is_for_others_and_sockets_are_as_configured() {
    for umask in ["0", "077"] {
        let home = Home::new();
        let binary = env!("CARGO_BIN_EXE_sealblk");
        let run = |line: &str| {
            let mut command = Command::new("sh");
            let line = line.replace("sealblk", binary);
            command
                .args(["-c", &format!("umask {umask}; exec {line}")])
                .env("SEALBLK_KEY_FILE", key_file(home.directory()))
                .current_dir(home.directory());
            command
        };
        let key = key_file(home.directory());
        let key = key.display();
        succeed(&mut run(&format!(
            "sealblk --key-file {key} volume create disk.img --size 4M --header disk.header"
        )));
        succeed(&mut run(&format!(
            "sealblk --key-file {key} volume backup-header disk.img --header disk.header --to b"
        )));
        succeed(&mut run("sealblk key new-recovery-key --to recovery"));
        let serve = run(&format!(
            "sealblk --key-file {key} serve disk.img --header disk.header --socket disk.sock \
             --pid-file pid --socket-mode 0600"
        ));
        let server = home.start("disk.sock", serve);
        eventually("it has written its number", || {
            home.path("pid").exists().then_some(())
        });
        assert_eq!(loose(home.directory()), vec![], "umask {umask}");
        let socket = fs::metadata(server.socket()).unwrap();
        assert_eq!(socket.mode() & 0o7777, 0o600);
        for name in ["disk.img", "disk.header", "b", "recovery"] {
            let mode = fs::metadata(home.path(name)).unwrap().mode() & 0o7777;
            assert_eq!(mode, 0o600, "{name} under umask {umask}");
        }
    }
}

/// A process of another user that has a lock on a file that it may read.
fn their_lock(home: &Home, how: &str) -> Guard {
    let script = format!(
        "import fcntl,os,struct,sys,time\n\
         fd=os.open('disk.img',os.O_RDONLY)\n\
         {how}\n\
         open('locked','w').close()\n\
         time.sleep(600)\n"
    );
    let child = Command::new("setpriv")
        .args(["--reuid=60000", "--regid=60000", "--clear-groups"])
        .args(["/usr/bin/python3", "-c", &script])
        .current_dir(home.directory())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let guard = Guard(child);
    eventually("they have the lock", || {
        home.path("locked").exists().then_some(())
    });
    fs::remove_file(home.path("locked")).unwrap();
    guard
}

/// F_OFD_SETLK with a shared lock, which whoever may read a file can take.
const SHARED: &str = "fcntl.fcntl(fd,37,struct.pack('hhqqixxxx',fcntl.F_RDLCK,0,0,0,0))";
const FLOCK: &str = "fcntl.flock(fd,fcntl.LOCK_EX)";

#[test]
#[ignore = "needs root, to become another user"]
fn who_may_read_a_volume_can_lock_it_and_is_named() {
    let home = written();
    chmod(home.directory(), 0o777);
    chmod(&home.path("disk.img"), 0o644);
    let them = their_lock(&home, SHARED);
    let by = format!("process {}", them.0.id());
    untouched(&home, || home.serve_refused(&[])).expect(5, &["disk.img", &by], "stop the other");
    drop(them);
    let them = their_lock(&home, FLOCK);
    untouched(&home, || home.serve_refused(&[])).expect(5, &["disk.img"], "stop the other");
    drop(them);
    assert_serves(&home, &["disk.img"]);
    // Those who may not read it cannot: it is made so.
    chmod(&home.path("disk.img"), 0o600);
    let mut cat = Command::new("setpriv");
    cat.args(["--reuid=60000", "--regid=60000", "--clear-groups", "cat"]);
    let read = cat.arg(home.path("disk.img")).output().unwrap();
    assert!(!read.status.success());
}

#[test]
#[ignore = "needs root, for a socket of another user"]
fn a_socket_that_somebody_else_left_is_replaced_and_one_that_they_serve_is_not() {
    let home = written();
    let theirs = their_directory(&home);
    let path = theirs.join("disk.sock");
    let serve = ["serve", "disk.img", "--socket", "theirs/disk.sock"];
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    lchown(&path, Some(THEM), Some(THEM)).unwrap();
    untouched(&home, || home.refused(&serve)).expect(5, &["theirs/disk.sock"], "");
    drop(listener);
    let server = home.start("theirs/disk.sock", home.sealblk(&serve));
    let there = fs::symlink_metadata(&path).unwrap();
    assert_eq!((there.uid(), there.mode() & 0o7777), (0, 0o600));
    drop(server);
    // Nor is one removed that they put in its place.
    fs::remove_file(&path).ok();
    let mut server = home.start("theirs/disk.sock", home.sealblk(&serve));
    fs::remove_file(&path).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(server.terminate().code(), Some(0), "{}", server.messages());
    assert!(path.exists());
}

#[test]
fn what_a_name_holds_is_not_acted_upon_by_a_terminal() {
    let home = Home::new();
    let evil = "evil\u{1b}[2J\u{9b}31m\u{7f}.img";
    let command = &mut home.sealblk(&["volume", "info", evil]);
    let refusal = refused(command);
    assert_eq!(refusal.status, 3);
    assert!(!refusal.error.contains(char::is_control), "{refusal:?}");
    assert!(!refusal.help.contains(char::is_control), "{refusal:?}");
    assert!(refusal.error.contains("evil\\u001b[2J"), "{refusal:?}");
    home.create(evil, &[]);
    let shown = succeed(&mut home.sealblk(&["volume", "info", evil]));
    let acts = |c: char| c.is_control() && c != '\n';
    assert!(
        !shown.contains(acts) && shown.contains("evil\\u001b[2J"),
        "{shown:?}"
    );
    // As JSON it is what it is, and of the same kind.
    let shown = succeed(&mut home.sealblk(&["volume", "info", "--json", evil]));
    assert!(!shown.contains(acts), "{shown:?}");
    let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert!(value.to_string().contains("evil"));
}
