//! Wrong keys, damaged volumes, missing rights, full file systems: each is
//! refused with the status that `docs/cli.md` lists, one line that names the
//! cause and one with the next step; and whatever was there is there still,
//! byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "bad_input/damage.rs"]
mod damage;
#[path = "bad_input/full.rs"]
mod full;
#[path = "bad_input/keys.rs"]
mod keys;
#[path = "bad_input/others.rs"]
mod others;
#[path = "bad_input/paths.rs"]
mod paths;

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use support::front_end::{FrontEnd, Options};
use support::home::{Home, Refusal};

/// What the guest has written to `disk.img`, from its first sector on.
const DATA: [u8; 8192] = [0x42; 8192];

/// A volume on which a guest has written [`DATA`].
fn written() -> Home {
    let home = Home::with_volume();
    write_data(&home, &["disk.img"]);
    home
}

fn write_data(home: &Home, serve: &[&str]) {
    let mut server = home.serve(serve);
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    front_end.write(0, &DATA);
    front_end.flush();
    drop(front_end);
    assert_eq!(server.terminate().code(), Some(0), "{}", server.messages());
    std::fs::remove_file(home.path("disk.log")).unwrap();
}

/// Serves, and finds what was written.
fn assert_serves(home: &Home, arguments: &[&str]) {
    let server = home.serve(arguments);
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert!(front_end.read(0, DATA.len()) == DATA);
}

/// All files of a home, with their contents.
fn everything(home: &Home) -> BTreeMap<PathBuf, Vec<u8>> {
    std::fs::read_dir(home.directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// Runs something that has to be refused, and to change no file.
fn untouched(home: &Home, attempt: impl FnOnce() -> Refusal) -> Refusal {
    let before = everything(home);
    let refusal = attempt();
    let after = everything(home);
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after), "{refusal:?}");
    for (path, bytes) in &before {
        assert!(
            after[path] == *bytes,
            "{} changed: {refusal:?}",
            path.display()
        );
    }
    refusal
}
