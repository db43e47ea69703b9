//! Commands that end at once: their memory at the instant before it is given
//! back to the kernel, which does not wipe it.

use std::process::{Command, Stdio};

use super::key_needles::Needles;
use super::key_search::search;
use super::process_memory::without_secret_memory;
use super::serving::{export, platform_key, use_disk};
use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::threads::Ending;

/// Runs a command that has to succeed, and panics if it ends with any of these.
fn ends_clean(mut command: Command, needles: &Needles) {
    // What it has in its environment is in its memory: this finds it.
    const CONTROL: &str = "c0ntr0l-t8at-1s-l00ked-f0r-as-we11";
    let control = Needles::new().text("control", CONTROL);
    without_secret_memory(&mut command);
    let what = format!("{command:?}");
    command
        .env("CONTROL", CONTROL)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let ending = Ending::start(&mut command);
    let (hits, found) = ending.look(|pid| (search(pid, needles), search(pid, &control)));
    assert!(!found.is_empty(), "{what}: its memory is another");
    assert!(hits.is_empty(), "{what} ends with {hits:?}");
}

#[test]
fn commands_end_with_no_key_in_their_memory() {
    let home = Home::with_volume();
    let dek = export(&home, "disk.img");
    let platform = platform_key(&home);
    // So that there is something to verify.
    let mut server = home.serve(&["disk.img"]);
    use_disk(&mut FrontEnd::connect(server.socket(), &Options::default()).unwrap());
    assert!(server.terminate().success());
    let needles = Needles::new()
        .dek("the DEK", &dek)
        .aes("the platform key", &platform)
        .bytes("the platform key", &platform);
    let create = ["volume", "create", "other.img", "--size", "1M"];
    ends_clean(home.sealblk(&create), &needles);
    let mut exported = home.sealblk(&["volume", "export-dek", "disk.img"]);
    exported.args([
        "--i-understand-that-this-key-decrypts-the-disk",
        "--to",
        "dek",
    ]);
    ends_clean(exported, &needles);
    ends_clean(home.sealblk(&["verify", "disk.img"]), &needles);
    ends_clean(home.sealblk(&["key", "add-version"]), &needles);
    assert_eq!(export(&home, "disk.img"), dek);
    ends_clean(home.sealblk(&["volume", "rekey", "disk.img"]), &needles);
    let new = export(&home, "disk.img");
    assert_ne!(new, dek);
    let needles = needles.dek("the new DEK", &new);
    ends_clean(home.sealblk(&["verify", "disk.img"]), &needles);
}
