//! The memory in which a front end keeps what is in flight, from one server of
//! its disk to the next.
//!
//! It is made here, and given to the front end, which gives it to every process
//! that serves it after that. What is written there, `engine::inflight` knows.
//!
//! Source: vhost-user protocol, "Inflight I/O tracking" and the messages
//! `VHOST_USER_GET_INFLIGHT_FD` and `VHOST_USER_SET_INFLIGHT_FD`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use crate::engine::inflight::{Part, stride};

/// The most entries that a split ring may have (VIRTIO 1.3, 2.7).
const MOST_ENTRIES: u16 = 32768;

/// The memory for all queues of a disk.
pub struct Inflight {
    memory: Arc<MmapRegion>,
    queues: u16,
    entries: u16,
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}

/// Bytes for so many queues, if that is what a disk with `queues` may have.
fn bytes_for(asked: &VhostUserInflight, queues: usize) -> io::Result<usize> {
    let (wanted, entries) = (asked.num_queues, asked.queue_size);
    if wanted == 0 || usize::from(wanted) > queues || entries == 0 || entries > MOST_ENTRIES {
        return Err(invalid(format!(
            "in-flight tracking for {wanted} queues with {entries} entries each, of at most \
             {queues} with {MOST_ENTRIES}"
        )));
    }
    Ok(usize::from(wanted) * stride(entries))
}

/// New memory for what a front end asks, of a disk with so many queues, and what
/// to tell the front end of it.
///
/// # Errors
/// When it asks for too much, or there is no memory.
pub fn create(asked: &VhostUserInflight, queues: usize) -> io::Result<(VhostUserInflight, File)> {
    let bytes = bytes_for(asked, queues)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("sealblk-inflight", flags)?);
    file.set_len(bytes as u64)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    let mut told = *asked;
    told.mmap_size = bytes as u64;
    told.mmap_offset = 0;
    Ok((told, file))
}

impl Inflight {
    /// What a front end has kept, of a disk with so many queues.
    ///
    /// # Errors
    /// When it is not as large as it has to be, or could be cut short while it is
    /// in use, which would end this process.
    pub fn map(kept: &VhostUserInflight, file: File, queues: usize) -> io::Result<Self> {
        let bytes = bytes_for(kept, queues)?;
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK) {
            return Err(invalid(
                "the memory for in-flight tracking is not sealed against being cut short",
            ));
        }
        if kept.mmap_size < bytes as u64 {
            return Err(invalid(format!(
                "the memory for in-flight tracking has {} bytes, and needs {bytes}",
                kept.mmap_size
            )));
        }
        let end = kept.mmap_offset.checked_add(bytes as u64);
        if end.is_none_or(|end| file.metadata().is_ok_and(|there| there.len() < end)) {
            return Err(invalid(
                "the memory for in-flight tracking reaches beyond its file",
            ));
        }
        let memory = MmapRegionBuilder::new(bytes)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .with_file_offset(FileOffset::new(file, kept.mmap_offset))
            .build()
            .map_err(io::Error::other)?;
        Ok(Inflight {
            memory: Arc::new(memory),
            queues: kept.num_queues,
            entries: kept.queue_size,
        })
    }

    /// What the front end said of it, and the memory: somebody else can
    /// [map](Inflight::map) it.
    pub fn told(&self) -> Option<(VhostUserInflight, &File)> {
        let backing = self.memory.file_offset()?;
        let bytes = self.memory.size() as u64;
        let told = VhostUserInflight::new(bytes, backing.start(), self.queues, self.entries);
        Some((told, backing.file()))
    }

    /// The part of a queue. Nothing: the front end keeps none for it.
    pub fn part(&self, queue: usize) -> Option<Part> {
        if queue >= usize::from(self.queues) {
            return None;
        }
        let offset = queue * stride(self.entries);
        Part::new(self.memory.clone(), offset, self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn asked(queues: u16, entries: u16) -> VhostUserInflight {
        VhostUserInflight::new(0, 0, queues, entries)
    }

    #[test]
    fn memory_is_made_once_and_found_again_with_what_is_in_it() {
        let (told, file) = create(&asked(2, 128), 4).unwrap();
        assert_eq!((told.num_queues, told.queue_size), (2, 128));
        assert_eq!((told.mmap_size, told.mmap_offset), (2 * 2112, 0));
        let map = || Inflight::map(&told, file.try_clone().unwrap(), 4).unwrap();
        let found = map().part(1).unwrap().recover(128, 7).unwrap();
        assert_eq!((found.next_avail, found.unfinished.len()), (None, 0));
        let mut tracker = found.tracker;
        tracker.taken(5);
        // The header is 16 bytes, as each entry is.
        let mut bytes = [0; 2 * 2112];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes[..2112], [0; 2112]);
        let part = &bytes[2112..];
        assert_eq!(
            part[..16],
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 128, 0, 0, 0, 7, 0]
        );
        assert_eq!(part[16 * 6], 1);
        let again = map().part(1).unwrap().recover(128, 7).unwrap();
        assert_eq!((again.next_avail, again.unfinished), (Some(8), vec![5]));
        assert!(map().part(2).is_none());
    }

    #[test]
    fn what_no_disk_has_is_neither_made_nor_mapped() {
        for (queues, entries) in [(0, 128), (5, 128), (4, 0), (4, 32769), (65535, 65535)] {
            assert!(create(&asked(queues, entries), 4).is_err());
            let (_, file) = create(&asked(4, 32768), 4).unwrap();
            let kept = VhostUserInflight::new(u64::MAX, 0, queues, entries);
            assert!(Inflight::map(&kept, file, 4).is_err());
        }
    }

    #[test]
    fn memory_that_is_too_short_or_may_become_so_is_refused() {
        let (told, file) = create(&asked(1, 64), 1).unwrap();
        assert!(file.set_len(0).is_err());
        let map = |size, offset, queues, file: &File| {
            let kept = VhostUserInflight::new(size, offset, queues, 64);
            Inflight::map(&kept, file.try_clone().unwrap(), 4).map(drop)
        };
        map(told.mmap_size, 0, 1, &file).unwrap();
        for (size, offset, queues) in [
            (told.mmap_size - 1, 0, 1),
            (told.mmap_size, 4096, 1),
            (told.mmap_size, 1, 1),
            (told.mmap_size, u64::MAX - 4095, 1),
            (u64::MAX, 0, 2),
        ] {
            assert!(map(size, offset, queues, &file).is_err(), "{size} {offset}");
        }
        let loose = tempfile::tempfile().unwrap();
        loose.set_len(1 << 20).unwrap();
        let refused = map(told.mmap_size, 0, 1, &loose).unwrap_err();
        assert!(refused.to_string().contains("sealed"), "{refused}");
    }
}
