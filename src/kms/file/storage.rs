//! Key files on disk: read only when safe, created once, replaced as a whole.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::directory::Directory;
use super::error::{Cause, Change, Error};
use super::keyfile::KeyFile;
use super::text::FILE_MAX;
use crate::secret::Secret;

/// Reads the key file at `path`, if nobody but its owner could have.
///
/// Everything is checked on the one descriptor that is then read, so the path
/// cannot come to mean another file in between.
pub fn read(path: &Path) -> Result<KeyFile, Error> {
    read_open(path)
        .map(|(_, key_file)| key_file)
        .map_err(|cause| cause.at(path))
}

fn read_open(path: &Path) -> Result<(File, KeyFile), Cause> {
    loop {
        let file = open(path)?;
        let parsed = read_text(&file).and_then(|text| KeyFile::parse(&text));
        match parsed {
            Ok(key_file) => return Ok((file, key_file)),
            // The file may have been replaced, and this one overwritten (see
            // `wipe`), between our opening and our reading it.
            Err(Cause::Damaged(_)) if is_unlinked(&file)? => continue,
            Err(cause) => return Err(cause),
        }
    }
}

fn is_unlinked(file: &File) -> Result<bool, Cause> {
    let meta = file.metadata().map_err(|e| Cause::io("examine", e))?;
    Ok(meta.nlink() == 0)
}

fn open(path: &Path) -> Result<File, Cause> {
    // NONBLOCK: opening a FIFO must not wait for its other end.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(Cause::Missing),
        Err(Errno::LOOP) => return Err(Cause::Link),
        Err(Errno::NXIO) => return Err(Cause::NotRegular("a socket")),
        Err(error) => return Err(Cause::io("open", error)),
    };
    let meta = file.metadata().map_err(|e| Cause::io("examine", e))?;
    check(&meta, rustix::process::geteuid().as_raw())?;
    Ok(file)
}

/// Whether a file like this is a safe place for a key of user `us`.
fn check(meta: &Metadata, us: u32) -> Result<(), Cause> {
    let kind = meta.file_type();
    if !kind.is_file() {
        return Err(Cause::NotRegular(if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a FIFO"
        } else if kind.is_block_device() || kind.is_char_device() {
            "a device"
        } else {
            "something else"
        }));
    }
    let mode = meta.mode() & 0o7777;
    if !matches!(mode, 0o600 | 0o400) {
        return Err(Cause::Mode(mode));
    }
    if meta.uid() != us && meta.uid() != 0 {
        return Err(Cause::Owner {
            owner: meta.uid(),
            us,
        });
    }
    Ok(())
}

fn read_text(mut file: &File) -> Result<Secret, Cause> {
    let length = file.metadata().map_err(|e| Cause::io("examine", e))?.len();
    let too_large = || Cause::Damaged(format!("it is larger than {} KiB", FILE_MAX / 1024));
    let length = match usize::try_from(length) {
        Ok(length) if length <= FILE_MAX => length,
        _ => return Err(too_large()),
    };
    // One byte more than it should have, to see its end.
    let mut text = Secret::zeroed(length + 1).map_err(Cause::Memory)?;
    let mut filled = 0;
    while filled < text.len() {
        match file.read(&mut text[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Cause::io("read", e)),
        }
    }
    if filled > length {
        return Err(Cause::Damaged("it grew while it was read".into()));
    }
    Secret::copy_of(&text[..filled]).map_err(Cause::Memory)
}

/// Makes a new key file with one version. Never touches a file that exists.
///
/// The last directory of the path is made if it alone is missing, so that
/// the default path works on a fresh host.
pub fn create(path: &Path) -> Result<KeyFile, Error> {
    let create = || -> Result<KeyFile, Cause> {
        // Before anything else, for the clearer message.
        match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Err(Cause::Exists),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => return Err(Cause::NoDirectory),
            Err(error) => return Err(Cause::io("look for", error)),
        }
        make_parent(path)?;
        let directory = Directory::lock(path)?;
        let key_file = KeyFile::generate().map_err(Cause::Memory)?;
        let text = key_file.to_text().map_err(Cause::Memory)?;
        directory.write_new(&text, None)?;
        directory.publish(RenameFlags::NOREPLACE)?;
        Ok(key_file)
    };
    create().map_err(|cause| cause.at(path))
}

/// Changes the key file at `path` by `change`, which may refuse. Either all
/// of the change is there afterwards, or none of it, also after a crash.
pub fn update<T>(
    path: &Path,
    change: impl FnOnce(&mut KeyFile) -> Result<T, Change>,
) -> Result<T, Error> {
    let update = || -> Result<T, Cause> {
        let directory = Directory::lock(path)?;
        let (old, mut key_file) = read_open(path)?;
        let meta = old.metadata().map_err(|e| Cause::io("examine", e))?;
        let keys_before = key_file.keys();
        let result = change(&mut key_file)?;
        let text = key_file.to_text().map_err(Cause::Memory)?;
        directory.write_new(&text, Some(&meta))?;
        // Opened while it still has its name.
        let destroyed = (key_file.keys() < keys_before).then(|| directory.open_old());
        directory.publish(RenameFlags::empty())?;
        if let Some(old) = destroyed {
            wipe(old, meta.len());
        }
        Ok(result)
    };
    update().map_err(|cause| cause.at(path))
}

/// Overwrites the file that was replaced, so that a removed key does not stay
/// in free blocks. That is all that can be done from here, and not always
/// enough: copy-on-write file systems, flash and backups keep older copies.
fn wipe(old: io::Result<File>, length: u64) {
    let overwrite = || {
        let mut old = old?;
        if old.metadata()?.nlink() > 0 {
            return Err(io::Error::other("it has another hard link"));
        }
        let zeroes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        old.write_all(&zeroes)?;
        old.sync_all()
    };
    if let Err(error) = overwrite() {
        tracing::warn!(%error, "the removed key may still be in the blocks of the replaced key file");
    }
}

fn make_parent(path: &Path) -> Result<(), Cause> {
    let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else {
        return Ok(());
    };
    match rustix::fs::mkdirat(CWD, parent, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            let above = parent.parent().filter(|p| !p.as_os_str().is_empty());
            let above = File::open(above.unwrap_or(Path::new(".")));
            above
                .and_then(|directory| directory.sync_all())
                .map_err(|e| Cause::io("make the directory of", e))
        }
        Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(Cause::NoDirectory),
        Err(error) => Err(Cause::io("make the directory of", error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    /// Works as any user: only root can give a file away, and only others
    /// than root have files that are not root's.
    #[test]
    fn the_owner_must_be_us_or_root() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o600)).unwrap();
        let us = rustix::process::geteuid().as_raw();
        let meta = || std::fs::metadata(file.path()).unwrap();
        check(&meta(), us).unwrap();
        if us == 0 {
            check(&meta(), 12345).unwrap();
            chown(file.path(), Some(12345), None).unwrap();
        }
        let owner = meta().uid();
        check(&meta(), owner).unwrap();
        for other in [0, owner + 1] {
            assert!(
                matches!(check(&meta(), other), Err(Cause::Owner { owner: found, us })
                    if found == owner && us == other)
            );
        }
    }

    #[test]
    fn a_reader_survives_the_overwriting_of_what_it_has_open() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("key");
        create(&path).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut reads = 0;
                        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                            read(&path)?;
                            reads += 1;
                        }
                        Ok::<u32, Error>(reads)
                    })
                })
                .collect();
            for _ in 0..40 {
                let id = update(&path, KeyFile::add_version).unwrap();
                update(&path, |file| file.set_enabled(id, false)).unwrap();
                update(&path, |file| file.remove_version(id)).unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            for reader in readers {
                assert!(reader.join().unwrap().unwrap() > 0);
            }
        });
    }
}
