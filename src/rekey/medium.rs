//! The seam between what is moved and what it is stored on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

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

    /// The first byte from `offset` on that may be something else than a hole,
    /// which reads as zeroes; at most `end`. Who cannot tell says `offset`.
    ///
    /// # Errors
    /// When the device fails.
    fn data_from(&self, offset: u64, end: u64) -> io::Result<u64> {
        let _ = end;
        Ok(offset)
    }
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

    fn data_from(&self, offset: u64, end: u64) -> io::Result<u64> {
        match seek(self, SeekFrom::Data(offset)) {
            Ok(data) => Ok(data.clamp(offset, end)),
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => Ok(end),
            // Devices and file systems that know no holes, and processes that
            // may not ask.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => Ok(offset),
            Err(error) => Err(error.into()),
        }
    }
}

/// What is shared is used as what it is.
macro_rules! shared {
    ($($shared:ty),*) => {$(
        impl<M: Medium + ?Sized + Send> Medium for $shared {
            fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read(buffer, offset)
            }

            fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
                (**self).write(bytes, offset)
            }

            fn sync(&self) -> io::Result<()> {
                (**self).sync()
            }

            fn data_from(&self, offset: u64, end: u64) -> io::Result<u64> {
                (**self).data_from(offset, end)
            }
        }
    )*};
}

shared!(&M, Arc<M>);
