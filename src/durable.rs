//! Small files that are there as a whole or not at all, whatever happens.
//!
//! A file is written beside its place, synced, moved there, and then its
//! directory is synced: after a crash at any instant it has the old or the new
//! contents. For state and configuration; never for anything of a disk.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};
use serde::de::DeserializeOwned;

/// Makes a directory that only its owner can use, with all above it, if it is
/// not there yet.
///
/// # Errors
/// As the system says.
pub fn directory(path: &Path) -> io::Result<()> {
    directory_of_mode(path, 0o700)
}

/// The same with other permissions, which what is made above it has too.
///
/// What is synced in a directory is lost with the directory, unless its own name
/// is synced in the one above.
///
/// # Errors
/// As the system says.
pub fn directory_of_mode(path: &Path, mode: u32) -> io::Result<()> {
    let make = || DirBuilder::new().mode(mode).create(path);
    let made = match (make(), path.parent()) {
        (Err(error), Some(above)) if error.kind() == io::ErrorKind::NotFound => {
            directory_of_mode(above, mode)?;
            make()
        }
        (made, _) => made,
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.and_then(|()| sync_directory(path)),
    }
}

/// Writes `contents` to `path`, in place of what is there.
///
/// # Errors
/// As the system says. What was there is then still there.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    place(path, contents, mode, RenameFlags::empty())
}

/// Writes `contents` to `path`, where nothing must be yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or as the system says.
pub fn create(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    place(path, contents, mode, RenameFlags::NOREPLACE)
}

/// Removes the file at `path`.
///
/// # Errors
/// As the system says.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync_directory(path)
}

/// Removes the file at `path`, if there is one.
///
/// # Errors
/// As the system says.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// What is in the file at `path`, as JSON; nothing if there is no file. `version`
/// says which one it is of, which has to be `known`.
///
/// # Errors
/// As the system says; [`io::ErrorKind::InvalidData`] when it is damaged, or of
/// another version.
pub fn read_json<T: DeserializeOwned>(
    path: &Path,
    known: u32,
    version: impl FnOnce(&T) -> u32,
) -> io::Result<Option<T>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let read: T = serde_json::from_slice(&text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    match version(&read) {
        found if found == known => Ok(Some(read)),
        found => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it has version {found}, and this sealblk reads {known}"),
        )),
    }
}

fn place(path: &Path, contents: &[u8], mode: u32, how: RenameFlags) -> io::Result<()> {
    let beside = Beside::of(path)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside.0)?;
    file.write_all(contents)?;
    file.sync_all()?;
    match rustix::fs::renameat_with(CWD, &beside.0, CWD, path, how) {
        // Some network file systems know no flags.
        Err(rustix::io::Errno::INVAL) if how == RenameFlags::NOREPLACE => {
            fs::hard_link(&beside.0, path)?;
        }
        result => result?,
    }
    sync_directory(path)
}

/// Makes lasting that there is something of the name `path`, or not any more.
///
/// # Errors
/// As the system says.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Should it have become a FIFO meanwhile, nobody waits for its other end.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY);
    options.open(directory)?.sync_all()
}

/// The name of a file in the making, which is removed again if it stays.
struct Beside(PathBuf);

impl Beside {
    fn of(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{:016x}.new", u64::from_ne_bytes(random)));
        Ok(Beside(path.with_file_name(beside)))
    }
}

/// Removes what processes that were killed have left in a directory and in those right
/// below it: files in the making that nobody has touched for `age`. What cannot be looked
/// at or removed stays: it is in nobody's way.
pub fn sweep(directory: &Path, age: Duration) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        if meta.is_dir() {
            sweep_one(&entry.path(), age);
        }
    }
    sweep_one(directory, age);
}

fn sweep_one(directory: &Path, age: Duration) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| is_beside(&entry.file_name()))
    {
        let touched = entry.metadata().and_then(|meta| meta.modified());
        let old = touched.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed >= age));
        if old && fs::remove_file(entry.path()).is_ok() {
            tracing::debug!(path = %entry.path().display(), "removed half of a file");
        }
    }
}

/// Whether [`Beside`] gives such names.
fn is_beside(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let Some(rest) = name.strip_suffix(b".new").filter(|_| name[0] == b'.') else {
        return false;
    };
    let Some((before, random)) = rest.split_at_checked(rest.len().saturating_sub(17)) else {
        return false;
    };
    before.len() > 1 && random[0] == b'.' && random[1..].iter().all(u8::is_ascii_hexdigit)
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Nothing is there after a rename.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn halves_of_files_are_swept_away_and_nothing_else_is() {
        let home = tempfile::tempdir().unwrap();
        let below = home.path().join("below");
        directory(&below.join("deeper")).unwrap();
        let half = Beside::of(&below.join("a.json")).unwrap();
        let half = half.0.clone();
        let other = home.path().join(".a.json.0123456789abcdef.new");
        let deeper = below.join("deeper/.a.0123456789abcdef.new");
        let kept = [
            "a.new",
            ".new",
            ".0123456789abcdef.new",
            ".a.0123456789abcdeg.new",
            "a.json",
        ];
        let kept: Vec<_> = kept.iter().map(|name| below.join(name)).collect();
        let write = |path: &PathBuf| fs::write(path, "{").unwrap();
        kept.iter().chain([&half, &other, &deeper]).for_each(write);
        sweep(home.path(), Duration::from_secs(3600));
        assert!(half.exists() && other.exists(), "somebody may be at them");
        sweep(home.path(), Duration::ZERO);
        assert!(!half.exists() && !other.exists());
        assert!(deeper.exists() && kept.iter().all(|path| path.exists()));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_stays_beside_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        directory(path.parent().unwrap()).unwrap();
        create(&path, b"one", 0o600).unwrap();
        let error = create(&path, b"two", 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace(&path, b"two", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        remove(&path).unwrap();
        assert!(!path.exists());
        replace(&home.path().join("missing/x"), b"", 0o600).unwrap_err();
    }
}
