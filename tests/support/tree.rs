//! What is below a directory, while somebody may write there.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `look` says of each entry below a directory. A name may go while this looks,
/// since what is written takes the place of another under that one's name: then all is
/// looked at once more.
pub fn below<T>(directory: &Path, look: impl Fn(&DirEntry) -> io::Result<T>) -> Vec<T> {
    let all = || {
        let mut found = Vec::new();
        visit(directory, &mut |entry| {
            found.push(look(entry)?);
            Ok(())
        })?;
        Ok(found)
    };
    for _ in 0..1000 {
        match all() {
            Ok(found) => return found,
            Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => {}
            Err(error) => panic!("{}: {error}", directory.display()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("names go all the time below {}", directory.display());
}

fn visit(directory: &Path, take: &mut impl FnMut(&DirEntry) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        take(&entry)?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), take)?;
        }
    }
    Ok(())
}

/// The regular files below a directory, of which there is one at least, with what is in
/// them.
pub fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let found = below(directory, |entry| {
        let is_file = entry.file_type()?.is_file();
        let read = is_file.then(|| fs::read(entry.path())).transpose()?;
        Ok(read.map(|bytes| (entry.path(), bytes)))
    });
    let found: Vec<_> = found.into_iter().flatten().collect();
    assert!(!found.is_empty(), "no file below {}", directory.display());
    found
}
