//! Small files that say what to do, or whom to trust: nobody else must have
//! written them.

use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use super::find;

/// Why a file is not taken for ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsafe {
    /// Everybody can change it.
    #[error("everybody can write to it (mode {0:04o})")]
    Mode(u32),
    /// Its owner can.
    #[error("its owner is user {owner}, and must be user {us} (who runs this) or root")]
    Owner {
        /// Whose it is.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// What is read from it is not what is in it.
    #[error("it is not a regular file")]
    NotRegular,
}

impl Unsafe {
    /// The one that an error of [`read_own`] is about, if it is one.
    pub fn of(error: &io::Error) -> Option<&Unsafe> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<Unsafe> for io::Error {
    fn from(cause: Unsafe) -> Self {
        io::Error::new(io::ErrorKind::PermissionDenied, cause)
    }
}

/// What is in the file at `path`, of at most `max` bytes, which belongs to root
/// or ourselves and cannot be written by everybody. Never waits for anybody: what
/// is no file is refused. `/dev/null` is an empty one.
///
/// # Errors
/// [`Unsafe`], [`super::Refused::Link`]; [`io::ErrorKind::FileTooLarge`]; as the
/// system says.
pub fn read_own(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let found = find(path)?;
    let meta = found.metadata()?;
    let us = rustix::process::geteuid().as_raw();
    let kind = meta.file_type();
    if kind.is_char_device() && meta.rdev() == rustix::fs::makedev(1, 3) {
        return Ok(Vec::new());
    }
    if !kind.is_file() {
        return Err(match kind.is_dir() {
            true => io::ErrorKind::IsADirectory.into(),
            false => Unsafe::NotRegular.into(),
        });
    }
    if meta.uid() != 0 && meta.uid() != us {
        let owner = meta.uid();
        return Err(Unsafe::Owner { owner, us }.into());
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o002 != 0 {
        return Err(Unsafe::Mode(mode).into());
    }
    let mut bytes = Vec::new();
    found
        .open_to_read()?
        .take(max + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn each_fault_is_told() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        let mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        std::fs::write(&path, "four").unwrap();
        for good in [0o600, 0o644, 0o660] {
            mode(good);
            assert_eq!(read_own(&path, 4).unwrap(), b"four");
        }
        let long = read_own(&path, 3).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::FileTooLarge);
        mode(0o602);
        let error = read_own(&path, 4).unwrap_err();
        assert_eq!(Unsafe::of(&error), Some(&Unsafe::Mode(0o602)));
        assert_eq!(read_own(Path::new("/dev/null"), 0).unwrap(), b"");
        let error = read_own(Path::new("/dev/zero"), 4).unwrap_err();
        assert_eq!(Unsafe::of(&error), Some(&Unsafe::NotRegular));
        let directory = read_own(home.path(), 4).unwrap_err();
        assert_eq!(directory.kind(), io::ErrorKind::IsADirectory);
        let missing = read_own(&home.path().join("missing"), 4).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let fifo = home.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let error = read_own(&fifo, 4).unwrap_err();
        assert_eq!(Unsafe::of(&error), Some(&Unsafe::NotRegular));
    }
}
