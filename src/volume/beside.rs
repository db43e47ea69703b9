//! Headers in files beside a disk: what an interrupted beginning has left there.
#![forbid(unsafe_code)]

use std::path::Path;

use super::device::{Access, Device};
use super::error::Error;
use super::luks2::HeaderIo as _;
use super::luks2::binary::COPY_BYTES;
use super::luks2::copies;

/// What a record of a journal may begin with.
const MAGICS: [&[u8; 8]; 2] = [b"SBLKJRNL", b"SBLKSHFT"];

/// Whether there is a header at `path`. Where there is none, but the journal of
/// an operation that was cut off before its header was there, that is removed:
/// no data was moved, and nothing depends on it.
///
/// # Errors
/// [`Error::Busy`] when somebody has it open, [`Error::Io`].
pub fn clear_unfinished(path: &Path) -> Result<bool, Error> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        // Whatever else is wrong with it, opening it says.
        _ => {}
    }
    let device = Device::open(path, Access::ReadWrite)?;
    device.lock(Access::ReadWrite)?;
    let found = {
        let _lock = device.lock_header(Access::ReadOnly)?;
        copies::read(&device.file())
    };
    match found {
        Ok(_) => return Ok(true),
        Err(lost) if !lost.no_trace() => return Ok(true),
        Err(_) => {}
    }
    if device.is_block() || !has_journal(&device)? {
        return Ok(false);
    }
    tracing::warn!(
        path = %path.display(),
        "an operation was cut off before it had begun: what it has left there is removed"
    );
    std::fs::remove_file(path).map_err(|error| device.error("remove", error))?;
    Ok(false)
}

/// Whether nothing but a journal is there: where the first header copy begins there
/// are zeroes, and behind both copies there is a record.
fn has_journal(device: &Device) -> Result<bool, Error> {
    let read = |at: u64| -> Result<[u8; 512], Error> {
        let mut bytes = [0; 512];
        let count = device.file().read_at(&mut bytes, at);
        count.map_err(|error| device.error("read", error))?;
        Ok(bytes)
    };
    if read(0)?.iter().any(|&byte| byte != 0) {
        return Ok(false);
    }
    for copy in COPY_BYTES {
        let sector = read(2 * copy)?;
        if MAGICS.iter().any(|magic| sector.starts_with(*magic)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Location;

    #[test]
    fn only_what_an_interrupted_beginning_leaves_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("header");
        assert!(!clear_unfinished(&path).unwrap());
        let mut bytes = vec![0; 1 << 20];
        std::fs::write(&path, &bytes).unwrap();
        assert!(!clear_unfinished(&path).unwrap());
        assert!(path.exists(), "an empty file may be used");
        bytes[(128 << 10)..(128 << 10) + 8].copy_from_slice(MAGICS[0]);
        // The header was about to be written, and its first sector was not.
        bytes[4096] = b'{';
        std::fs::write(&path, &bytes).unwrap();
        assert!(!clear_unfinished(&path).unwrap());
        assert!(!path.exists());
        bytes[100] = 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(!clear_unfinished(&path).unwrap());
        assert!(path.exists(), "somebody else's");
        let location = Location {
            data: path.clone(),
            header: None,
        };
        assert!(crate::volume::Volume::open(&location, Access::ReadOnly).is_err());
    }
}
