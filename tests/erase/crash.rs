//! Wherever erasing is cut off, the volume is as it was, or says that it was
//! erased; and the same command finishes it.
//!
//! Fault model: that of `key_store_crash`. That a header which is torn within a
//! write is one of the two is shown with the format itself (`volume::erase`).

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;

use super::key_store_support::{Host, VOLUME};
use super::support::server::succeed;
use super::{Before, assert_erased};

/// The calls that change what a crash leaves behind.
const CALLS: [&str; 6] = [
    "pwrite64",
    "write",
    "renameat",
    "unlinkat",
    "fsync",
    "fallocate",
];

const ERASE: [&str; 5] = ["volume", "erase", VOLUME, "--yes", "--discard"];

/// A volume whose wraps are in its header, and as many in a key store, where an
/// older header has left them: what is most to be destroyed.
struct Template {
    host: Host,
    before: Before,
    files: [(PathBuf, Vec<u8>); 2],
}

impl Template {
    fn new() -> Template {
        let host = Host::with_volume();
        host.move_keys("shared");
        let entry = host.entry("shared");
        let kept = fs::read(&entry).unwrap();
        host.move_keys("header");
        let before = Before::of(&host);
        let volume = host.home.path(VOLUME);
        let image = fs::read(&volume).unwrap();
        Template {
            before,
            files: [(volume, image), (entry, kept)],
            host,
        }
    }

    fn put_back(&self) {
        for (path, content) in &self.files {
            fs::write(path, content).unwrap();
            self.host.chmod(path, 0o600);
        }
    }

    fn killed_at(&self, call: &str, at: u32) -> bool {
        let inject = format!("inject={call}:signal=KILL:when={at}");
        let trace = format!("trace={call}");
        let output = Command::new("strace")
            .args(["-f", "-qq", "-o", "trace", "-e", &trace, "-e", &inject])
            .arg(env!("CARGO_BIN_EXE_sealblk"))
            .args(["--config", "sealblk.toml"])
            .args(ERASE)
            .current_dir(self.host.home.directory())
            .output()
            .unwrap();
        if output.status.success() {
            return false;
        }
        assert_eq!(output.status.signal(), Some(9), "{call} {at}: {output:?}");
        true
    }
}

#[test]
fn erasing_that_is_killed_at_any_call_is_finished_by_repeating_it() {
    let template = Template::new();
    let host = &template.host;
    let (mut untouched, mut begun) = (0, 0);
    for call in CALLS {
        for at in 1.. {
            template.put_back();
            if !template.killed_at(call, at) {
                assert!(host.description().token.erased.unwrap().finished);
                break;
            }
            let what = format!("killed at {call} {at}");
            match host.description().token.erased {
                None => {
                    untouched += 1;
                    assert_eq!(host.dek(), template.before.dek, "{what}");
                    assert_eq!(host.names("shared").len(), 1, "{what}");
                }
                Some(erased) => {
                    begun += 1;
                    // Where something may be left is written down until it is not.
                    let named = erased.key_stores == ["shared"];
                    assert_ne!(named, erased.finished, "{what}");
                    let left = host.names("shared").is_empty();
                    assert!(named || left, "{what}");
                    assert!(host.description().token.wraps.is_empty(), "{what}");
                }
            }
            succeed(&mut host.sealblk(&ERASE));
            assert!(host.description().token.erased.unwrap().finished, "{what}");
            assert_eq!(host.names("shared"), [""; 0], "{what}");
            template.before.assert_absent(&host.home.path(VOLUME));
            assert!(at < 200, "{what}");
        }
    }
    assert_erased(host);
    assert!(
        untouched > 3 && begun > 8,
        "{untouched} untouched, {begun} begun"
    );
    println!("{untouched} untouched, {begun} begun");
}
