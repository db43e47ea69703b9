//! The memory in which a front end wants to know what was written to its guest's
//! memory. What is written there, `engine::dirty` knows.
//!
//! Source: vhost-user protocol, the message `VHOST_USER_SET_LOG_BASE`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserLog;
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegionBuilder;

use crate::engine::dirty::DirtyLog;

/// `VHOST_F_LOG_ALL`: the feature bit by which a front end has all writes logged.
pub const LOG_ALL: u64 = 1 << 26;

/// The largest log: that of a guest with 64 TiB of addresses.
const MOST_BYTES: u64 = 2 << 30;

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Maps the log that `told` describes.
///
/// # Errors
/// When it reaches beyond its file, is larger than any guest needs, or cannot be
/// mapped.
pub fn map(told: &VhostUserLog, file: File) -> io::Result<Arc<DirtyLog>> {
    let (bytes, offset) = (told.mmap_size, told.mmap_offset);
    if bytes == 0 || bytes > MOST_BYTES {
        return Err(invalid(format!(
            "a log of dirty pages of {bytes} bytes, of at most {MOST_BYTES}"
        )));
    }
    let there = file.metadata()?.len();
    if offset.checked_add(bytes).is_none_or(|end| end > there) {
        return Err(invalid(format!(
            "a log of dirty pages of {bytes} bytes at {offset} of a file that has {there}"
        )));
    }
    let len = usize::try_from(bytes).map_err(|_| invalid("the log is too large".into()))?;
    let memory = MmapRegionBuilder::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED)
        .with_file_offset(FileOffset::new(file, offset))
        .build()
        .map_err(io::Error::other)?;
    Ok(Arc::new(DirtyLog::new(memory)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_fits_into_its_file_or_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let map = |size, offset| {
            let told = VhostUserLog::new(size, offset);
            super::map(&told, file.try_clone().unwrap()).map(drop)
        };
        map(8192, 0).unwrap();
        map(4096, 4096).unwrap();
        map(64, 0).unwrap();
        for (size, offset) in [
            (0, 0),
            (8193, 0),
            (4097, 4096),
            (4096, u64::MAX - 4095),
            (u64::MAX, 1),
            (MOST_BYTES + 1, 0),
            (64, 1),
        ] {
            assert!(map(size, offset).is_err(), "{size} bytes at {offset}");
        }
    }
}
