//! The file or block device that holds the data of a disk.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, StatxFlags};

use super::arena::{Arena, PAGE};
use crate::error::{Explain, Kind, io_kind};
use crate::units::SectorSize;

/// Whether the page cache of the host is bypassed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectMode {
    /// With O_DIRECT where the file system allows it at the disk's sector size.
    #[default]
    Auto,
    /// With O_DIRECT, or not at all.
    Always,
    /// Through the page cache.
    Never,
}

/// Why a backing file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened again for data.
    #[error("cannot open the data of the volume")]
    Open(#[source] io::Error),
    /// O_DIRECT was demanded.
    #[error("O_DIRECT with {sector_size}-byte sectors is not possible here")]
    NoDirect {
        /// The sector size of the volume.
        sector_size: SectorSize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Reading the first sector fails.
    #[error("cannot read the data of the volume")]
    Read(#[source] io::Error),
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Open(source) | Error::Read(source) => io_kind(source),
            Error::NoDirect { .. } => Kind::Unsupported,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Open(_) => "check the mode and owner of the volume".into(),
            Error::Read(_) => "check the disk below, for example with `dmesg`".into(),
            Error::NoDirect { .. } => "use `--direct auto`, a volume with 4096-byte sectors, or \
                 another file system"
                .into(),
        })
    }
}

/// The data area of a volume: `len` bytes from `offset` on.
///
/// Every queue has an open file description of its own: the kernel reports a
/// failed write-back once to each (errseq), so that no queue's flush succeeds
/// because another's has taken the error.
#[derive(Debug)]
pub struct Store {
    files: Vec<File>,
    offset: u64,
    len: AtomicU64,
    direct: bool,
    in_memory: bool,
}

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

impl Store {
    /// Opens the file behind `file` once more for data, so that its flags are
    /// ours alone. No path is looked up: the descriptor names the file.
    ///
    /// # Errors
    /// When the file cannot be opened or read, or O_DIRECT was demanded and
    /// the file system refuses it.
    pub fn open(
        file: BorrowedFd<'_>,
        (offset, len): (u64, u64),
        sector_size: SectorSize,
        (read_only, mode): (bool, DirectMode),
        queues: usize,
    ) -> Result<Self, Error> {
        let reopen = |flags: OFlags| -> io::Result<File> {
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let access = match read_only {
                true => OFlags::RDONLY,
                false => OFlags::RDWR,
            };
            let opened = rustix::fs::open(path, access | OFlags::CLOEXEC | flags, Mode::empty())?;
            Ok(File::from(opened))
        };
        let probe = |file: &File| probe(file, offset, len.min(sector_size.bytes() as u64) as usize);
        let all = |flags: OFlags| -> io::Result<Vec<File>> {
            (0..queues.max(1)).map(|_| reopen(flags)).collect()
        };
        if mode != DirectMode::Never {
            let direct = all(OFlags::DIRECT).and_then(|files| {
                check_alignment(&files[0], sector_size)?;
                probe(&files[0])?;
                Ok(files)
            });
            match (direct, mode) {
                (Ok(files), _) => return Ok(Store::of(files, (offset, len), true)),
                (Err(source), DirectMode::Always) => {
                    return Err(Error::NoDirect {
                        sector_size,
                        source,
                    });
                }
                (Err(error), _) => tracing::warn!(
                    %error,
                    "the file system refuses O_DIRECT with {sector_size}-byte sectors: \
                     I/O goes through the page cache of the host"
                ),
            }
        }
        let files = all(OFlags::empty()).map_err(Error::Open)?;
        probe(&files[0]).map_err(Error::Read)?;
        Ok(Store::of(files, (offset, len), false))
    }

    /// A data area of files that somebody else has opened with [`Store::open`]
    /// and handed over. Nothing is opened or read.
    pub fn of(files: Vec<File>, (offset, len): (u64, u64), direct: bool) -> Self {
        let in_memory = files.first().is_some_and(|file| {
            rustix::fs::fstatfs(file).is_ok_and(|of| IN_MEMORY.contains(&(of.f_type as u64)))
        });
        Store {
            files,
            offset,
            len: AtomicU64::new(len),
            direct,
            in_memory,
        }
    }

    /// The files, one for each queue, to be handed over.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Where the byte at `offset` of the disk lies in the file.
    pub fn position(&self, offset: u64) -> u64 {
        debug_assert!(
            offset < self.len.load(Ordering::Relaxed),
            "requests are checked before"
        );
        self.offset + offset
    }

    /// From now on there are `len` bytes.
    ///
    /// # Errors
    /// When the file or device does not reach so far.
    pub fn grow(&self, len: u64) -> io::Result<()> {
        let Some(file) = self.files.first() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        // The metadata of a block device says 0. The position of the
        // descriptor is nobody's: all I/O says where.
        let actual = rustix::fs::seek(file, SeekFrom::End(0))?;
        let needed = self.offset.checked_add(len);
        if needed.is_none_or(|needed| needed > actual) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the data file has {actual} bytes, and {len} are needed after the first {}",
                    self.offset
                ),
            ));
        }
        self.len.fetch_max(len, Ordering::Relaxed);
        Ok(())
    }

    /// Whether O_DIRECT is in use.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether the files are in memory, so that reading and writing them never
    /// waits for a device.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Makes everything that has been written durable, waiting for it.
    ///
    /// # Errors
    /// What `fdatasync(2)` says of any of the descriptors.
    pub fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(File::sync_data)
    }

    /// The file of a queue.
    pub(super) fn file(&self, queue: usize) -> &File {
        &self.files[queue % self.files.len()]
    }
}

/// Asks what alignment O_DIRECT needs here (since Linux 6.1). A read would not
/// show it where the file has a hole, as new volumes do.
fn check_alignment(file: &File, sector_size: SectorSize) -> io::Result<()> {
    let flags = AtFlags::EMPTY_PATH;
    let Ok(stat) = rustix::fs::statx(file, "", flags, StatxFlags::DIOALIGN) else {
        return Ok(());
    };
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    let fits = |align: u32, unit: usize| align > 0 && unit.is_multiple_of(align as usize);
    // What is left of a short operation starts at any data unit of a buffer.
    let unit = sector_size.bytes();
    let fit = fits(stat.stx_dio_offset_align, unit) && fits(stat.stx_dio_mem_align, unit);
    match !known || fit {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Reads one sector at the unluckiest alignment that requests may have: this
/// is how a file system that wants more than a sector says so.
fn probe(file: &File, offset: u64, bytes: usize) -> io::Result<()> {
    let mut arena = Arena::new(PAGE)?;
    let Some(block) = arena.allocate(PAGE) else {
        return Err(io::ErrorKind::OutOfMemory.into());
    };
    // SAFETY: no ring knows this arena.
    let buffer = unsafe { arena.bytes(&block, bytes) };
    file.read_exact_at(buffer, offset)?;
    if file.metadata()?.len() >= offset + 2 * bytes as u64 {
        file.read_exact_at(buffer, offset + bytes as u64)?;
    }
    arena.release(block);
    Ok(())
}
