//! Space for a disk that has no header: an ephemeral one, whose key is in one
//! process alone and whose data is worth nothing after that.
//!
//! In a directory it is a file without a name (`O_TMPFILE`), so that it goes
//! with the last process that has it open, however that ends. On a block device
//! it is the device, which is claimed and discarded.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;
use uuid::Uuid;

use super::device::{Access, Device};
use super::error::Error;
use super::occupied;
use super::undo::wipe_ends;

/// Makes space for `size` bytes: in the directory `place`, or on the block device
/// of that name. What can be recognised on a device is destroyed with `force` only.
///
/// # Errors
/// [`Error::Place`] if `place` is something else, [`Error::TooSmall`],
/// [`Error::Occupied`], [`Error::InUse`], [`Error::Io`].
pub fn make(place: &Path, size: u64, force: bool) -> Result<File, Error> {
    let kind = std::fs::metadata(place);
    let kind = kind
        .map_err(|error| Error::opening("open", place, error))?
        .file_type();
    if kind.is_dir() {
        let file = nameless(place).map_err(|error| Error::io("make a file in", place, error))?;
        let sized = file.set_len(size);
        sized.map_err(|error| Error::io("make a file in", place, error))?;
        return Ok(file);
    }
    if !kind.is_block_device() {
        return Err(Error::Place {
            why: format!(
                "{} is neither a directory nor a block device",
                place.display()
            ),
            next: "name one of these for an ephemeral disk to take its space from".into(),
        });
    }
    let device = Device::open(place, Access::ReadWrite)?;
    device.lock(Access::ReadWrite)?;
    let actual = device.len()?;
    if actual < size {
        return Err(Error::TooSmall {
            path: place.into(),
            actual,
            needed: size,
        });
    }
    match occupied::recognise(&device)? {
        Some(found) if !force => {
            return Err(Error::Occupied {
                path: place.into(),
                found,
            });
        }
        // Where nothing can be discarded, it must not be found all the same.
        Some(_) => wipe_ends(device.file(), actual)
            .map_err(|error| device.error("wipe the old contents of", error))?,
        None => {}
    }
    give_back(device.file());
    let file = device.file().try_clone();
    file.map_err(|error| device.error("duplicate the descriptor of", error))
}

/// Gives all space back to what lies below, at once and not only when nobody has
/// the file open any more. What cannot be given back is noise: its key is gone.
pub fn give_back(file: &File) {
    let all = || -> io::Result<()> {
        let length = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(file, punch, 0, length)?)
    };
    if let Err(error) = all() {
        tracing::debug!(%error, "the space of an ephemeral disk was not discarded");
    }
}

/// A file in `directory` that no path leads to.
fn nameless(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, flags, mode) {
        Ok(file) => Ok(file.into()),
        // Some file systems have no such files. Of one with a name, a crash
        // between the two calls leaves the name, of an empty file.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
            let path = directory.join(format!(".sealblk-ephemeral-{}", Uuid::new_v4()));
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, mode)?;
            std::fs::remove_file(&path)?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    #[test]
    fn space_in_a_directory_has_no_name_and_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = make(directory.path(), 1 << 20, false).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(
            (meta.len(), meta.nlink(), meta.mode() & 0o777),
            (1 << 20, 0, 0o600)
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        file.write_all_at(&[1; 65536], 4096).unwrap();
        file.sync_all().unwrap();
        assert!(file.metadata().unwrap().blocks() > 0);
        give_back(&file);
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.blocks()), (1 << 20, 0));
    }

    #[test]
    fn nothing_else_is_taken_for_space() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = make(&path, 4096, true).unwrap_err();
        assert!(error.to_string().contains("neither a directory"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let missing = directory.path().join("missing");
        assert!(matches!(
            make(&missing, 4096, true),
            Err(Error::Open { .. })
        ));
    }
}
