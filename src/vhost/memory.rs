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

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
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

    /// Whether nothing is shared.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
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
