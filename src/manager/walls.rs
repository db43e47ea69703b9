//! What the manager can reach once it runs.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::key_store;
use crate::keys::Source;
use crate::sandbox::Reach;

/// What a manager with this configuration writes, besides volumes and sockets,
/// which are where `paths` says; and that it listens at no port. Without paths it
/// may do all that its user may: landlock is handed on from one manager to the next
/// in the same process, and there is room for so many.
pub fn of(config: &Config) -> Reach {
    let daemon = &config.daemon;
    let is_bounded = !daemon.paths.is_empty();
    let write = is_bounded.then(|| {
        let mut write = daemon.paths.clone();
        write.extend([daemon.state_dir.clone(), daemon.run_dir.clone()]);
        write.push(beside(&daemon.socket));
        // A worker's output that nobody reads.
        write.push("/dev/null".into());
        // Key sets that the API makes are files beside it.
        write.extend(config.path.as_deref().map(beside));
        write.extend(of_keys(config));
        write
    });
    Reach {
        write,
        read: true,
        listen: is_bounded.then(Vec::new),
        connect: true,
        why: "no paths are configured: volumes can be anywhere",
        ..Reach::default()
    }
}

/// Where a process that uses the key sets of this configuration writes.
pub fn of_keys(config: &Config) -> Vec<PathBuf> {
    let mut write = vec![beside(&config.audit.path())];
    for definition in config.key_sets.values() {
        // A key that is not there is made.
        if let Source::File { path } = &definition.source {
            write.push(beside(path));
        }
    }
    for definition in config.key_stores.values() {
        if let key_store::Definition::Directory(settings) = definition {
            write.push(settings.path.clone());
        }
    }
    write
}

/// The directory that a file is in: it is replaced as a whole.
fn beside(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}
