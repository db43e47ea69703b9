//! The memory that a front end shares: mapped, and found by the addresses
//! that the front end and the guest use.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::virtio::Memory;

/// The most regions that a front end may share.
pub const MAX_REGIONS: usize = 128;

/// One region, as the front end describes it.
#[derive(Clone)]
struct Region {
    /// Guest physical address.
    guest: u64,
    /// Address in the front end's own address space.
    user: u64,
    bytes: u64,
    mapping: Arc<MmapRegion>,
}

/// The regions, and the view of them that the data path uses.
#[derive(Default)]
pub struct MemoryMap {
    regions: Vec<Region>,
    memory: Arc<Memory>,
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}

/// What is mapped beyond the end of its file ends the process that touches it
/// (SIGBUS), and mapping it is no error. Devices have no size.
fn lies_within(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let there = file.metadata()?;
    if !there.is_file()
        || offset
            .checked_add(bytes)
            .is_some_and(|end| end <= there.len())
    {
        return Ok(());
    }
    Err(invalid(format!(
        "a memory region of {bytes} bytes at byte {offset} reaches beyond its file, which has {}: \
         the front end has to give the memory of its guest its whole size",
        there.len()
    )))
}

impl MemoryMap {
    /// A map of these regions and no others.
    ///
    /// # Errors
    /// When one cannot be mapped, reaches beyond its file, or overlaps another.
    pub fn of(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> io::Result<Self> {
        if regions.len() != files.len() {
            return Err(invalid("a file is missing for a memory region"));
        }
        regions
            .iter()
            .zip(files)
            .map(|(region, file)| Region::map(region, file))
            .collect::<io::Result<Vec<_>>>()
            .and_then(MemoryMap::from_regions)
    }

    /// The same map with one region more.
    ///
    /// # Errors
    /// As [`MemoryMap::of`].
    pub fn with(&self, region: &VhostUserMemoryRegion, file: File) -> io::Result<Self> {
        let mut regions = self.regions.clone();
        regions.push(Region::map(region, file)?);
        MemoryMap::from_regions(regions)
    }

    /// The same map without the region that has these addresses and size.
    ///
    /// # Errors
    /// When there is none.
    pub fn without(&self, region: &VhostUserMemoryRegion) -> io::Result<Self> {
        let (guest, user, bytes) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let mut regions = self.regions.clone();
        regions.retain(|r| (r.guest, r.user, r.bytes) != (guest, user, bytes));
        if regions.len() == self.regions.len() {
            return Err(invalid("there is no such memory region to remove"));
        }
        MemoryMap::from_regions(regions)
    }

    /// What the data path looks addresses up in.
    pub fn memory(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    /// The regions, each with the file that it is in, as somebody else could map them.
    pub fn regions(&self) -> impl Iterator<Item = (VhostUserMemoryRegion, &File)> {
        self.regions.iter().filter_map(|region| {
            let backing = region.mapping.file_offset()?;
            let (file, offset) = (backing.file(), backing.start());
            let told = VhostUserMemoryRegion::new(region.guest, region.bytes, region.user, offset);
            Some((told, file))
        })
    }

    /// Whether nothing is shared.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Where the last of it ends, in guest physical memory.
    pub fn end(&self) -> u64 {
        let ends = self
            .regions
            .iter()
            .map(|region| region.guest + region.bytes);
        ends.max().unwrap_or(0)
    }

    /// The guest physical address of what the front end sees at `user`.
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            (offset < region.bytes).then(|| GuestAddress(region.guest + offset))
        })
    }

    fn from_regions(regions: Vec<Region>) -> io::Result<Self> {
        if regions.len() > MAX_REGIONS {
            return Err(invalid("too many memory regions"));
        }
        if regions.is_empty() {
            return Ok(MemoryMap::default());
        }
        let mut mapped = regions
            .iter()
            .map(|region| {
                GuestRegionMmap::with_arc(region.mapping.clone(), GuestAddress(region.guest))
                    .map(Arc::new)
                    .ok_or_else(|| invalid("a memory region overflows the address space"))
            })
            .collect::<io::Result<Vec<_>>>()?;
        mapped.sort_by_key(|region| region.start_addr());
        let memory = Memory::from_arc_regions(mapped).map_err(io::Error::other)?;
        Ok(MemoryMap {
            regions,
            memory: Arc::new(memory),
        })
    }
}

impl Region {
    fn map(region: &VhostUserMemoryRegion, file: File) -> io::Result<Self> {
        let (guest, user, bytes, offset) = (
            region.guest_phys_addr,
            region.user_addr,
            region.memory_size,
            region.mmap_offset,
        );
        if guest.checked_add(bytes).is_none() || user.checked_add(bytes).is_none() || bytes == 0 {
            return Err(invalid("a memory region is empty or overflows"));
        }
        let len = usize::try_from(bytes).map_err(|_| invalid("a memory region is too large"))?;
        lies_within(&file, offset, bytes)?;
        let mapping = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file, offset))
            .build()
            .map_err(io::Error::other)?;
        // SAFETY: the range is the mapping just made. Guest memory has no
        // business in a core dump of ours.
        unsafe { libc::madvise(mapping.as_ptr().cast(), len, libc::MADV_DONTDUMP) };
        Ok(Region {
            guest,
            user,
            bytes,
            mapping: Arc::new(mapping),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn region(guest: u64, bytes: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(guest, bytes, (1 << 40) + guest, offset)
    }

    fn file(bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    #[test]
    fn a_region_that_reaches_beyond_its_file_is_refused() {
        let file = file(3 * 4096);
        let map = |bytes, offset| {
            let file = file.try_clone().unwrap();
            MemoryMap::of(&[region(0, bytes, offset)], vec![file]).map(drop)
        };
        for (bytes, offset) in [(3 * 4096, 0), (4096, 2 * 4096), (1, 4096)] {
            map(bytes, offset).unwrap();
        }
        for (bytes, offset) in [
            (3 * 4096 + 1, 0),
            (4096, 3 * 4096),
            (2 * 4096, 2 * 4096),
            (1 << 40, 0),
            (4096, u64::MAX - 4095),
        ] {
            let refused = map(bytes, offset).unwrap_err().to_string();
            assert!(refused.contains("beyond its file"), "{refused}");
        }
        // Grown meanwhile, as a front end may do before it tells of more.
        file.set_len(4 * 4096).unwrap();
        map(4096, 3 * 4096).unwrap();
    }

    #[test]
    fn what_has_no_size_is_mapped_all_the_same() {
        let zero = File::options().read(true).write(true).open("/dev/zero");
        MemoryMap::of(&[region(0, 4096, 0)], vec![zero.unwrap()]).unwrap();
    }

    #[test]
    fn a_region_comes_and_goes_without_the_others() {
        let (first, second) = (file(4096), file(2 * 4096));
        second.write_all_at(b"second", 4096).unwrap();
        let map = MemoryMap::of(&[region(0, 4096, 0)], vec![first]).unwrap();
        let more = region(1 << 20, 4096, 4096);
        let both = map.with(&more, second).unwrap();
        assert!(map.guest_address((1 << 40) + (1 << 20)).is_none());
        assert_eq!(
            both.guest_address((1 << 40) + (1 << 20) + 5),
            Some(GuestAddress((1 << 20) + 5))
        );
        use vm_memory::Bytes;
        let mut found = [0; 6];
        let memory = both.memory();
        memory
            .read_slice(&mut found, GuestAddress(1 << 20))
            .unwrap();
        assert_eq!(&found, b"second");
        let again = both.without(&more).unwrap();
        let gone = again.memory().read_slice(&mut found, GuestAddress(1 << 20));
        assert!(gone.is_err());
        assert!(again.without(&more).is_err());
        assert!(both.with(&more, file(2 * 4096)).is_err(), "it overlaps");
    }

    /// Two regions that touch in one address space and not in the other, in each order
    /// and up to the last address that there is: every byte near an edge of any of them.
    #[test]
    fn an_address_is_found_in_its_region_or_in_none() {
        let page = 4096u64;
        let last = u64::MAX - page;
        for (guests, users) in [
            ([0, page], [1 << 40, (1 << 40) + 3 * page]),
            ([8 * page, page], [5 * page, 6 * page]),
            ([last - page, 0], [0, last]),
            ([page, 3 * page], [last - page, last]),
        ] {
            let regions: Vec<VhostUserMemoryRegion> = (0..2)
                .map(|at| VhostUserMemoryRegion::new(guests[at], page, users[at], 0))
                .collect();
            let map = MemoryMap::of(&regions, vec![file(page), file(page)]).unwrap();
            let edges = users
                .into_iter()
                .flat_map(|user| [user, user.wrapping_add(page)]);
            for edge in edges.chain([0, u64::MAX, 1 << 63]) {
                for step in 0..=page + 1 {
                    for user in [edge.wrapping_add(step), edge.wrapping_sub(step)] {
                        let wanted = (0..2).find_map(|at| {
                            let within = u128::from(users[at])..u128::from(users[at] + page);
                            let is = within.contains(&u128::from(user));
                            is.then(|| GuestAddress(guests[at] + (user - users[at])))
                        });
                        assert_eq!(map.guest_address(user), wanted, "{user:#x}");
                    }
                }
            }
            assert_eq!(map.end(), guests.into_iter().max().unwrap() + page);
        }
    }

    #[test]
    fn a_region_that_overflows_is_refused() {
        let edges = [u64::MAX, u64::MAX - 1, u64::MAX - 4095, 1 << 63];
        for far in edges {
            for bytes in [4096, 4097, 1 << 63, u64::MAX] {
                if far.checked_add(bytes).is_some() {
                    continue;
                }
                for (guest, user) in [(far, 0), (0, far), (far, far)] {
                    let region = VhostUserMemoryRegion::new(guest, bytes, user, 0);
                    assert!(MemoryMap::of(&[region], vec![file(4096)]).is_err());
                }
            }
        }
    }
}
