//! The seam between what is moved and what it is stored on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// A file, or what stands for it. Tests put a recorder here, and cut it off at
/// every write.
pub trait Medium: Sync {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// When the device fails or ends before that.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// When the device fails or is full. Any part may then have been written.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns once everything written before is on stable storage.
    ///
    /// # Errors
    /// When the device fails: what was written since the last success may be lost.
    fn sync(&self) -> io::Result<()>;
}

impl Medium for File {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
