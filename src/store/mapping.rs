//! Memory for buffers, in huge pages where there are any.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// The size of a huge page, of those that x86-64 and arm64 have in common.
pub const HUGE: usize = 2 << 20;

/// Pages of our own, zero at first. Nothing of them is in memory before it is
/// touched, but for huge pages of a pool.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity.
unsafe impl Send for Mapping {}

impl Mapping {
    /// So many bytes, a multiple of the page size. Whole huge pages come from
    /// the pool that an administrator has set aside, if something is left
    /// there, and else are asked of the kernel.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn new(len: usize) -> io::Result<Self> {
        if len.is_multiple_of(HUGE) {
            if let Some(mapping) = Self::of_pool(len) {
                return Ok(mapping);
            }
            return Self::aligned(len);
        }
        Self::map(len, MapFlags::PRIVATE)
    }

    fn map(len: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, len })
    }

    /// Huge pages of the pool. They are taken now: a limit of the control group
    /// would else end the process when it touches them.
    fn of_pool(len: usize) -> Option<Self> {
        let huge = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        let mapping = Self::map(len, huge).ok()?;
        mapping.advise(Advice::LinuxPopulateWrite).ok()?;
        Some(mapping)
    }

    /// Aligned to huge pages, so that the kernel can use them where it is let
    /// (`/sys/kernel/mm/transparent_hugepage/enabled`: `always` or `madvise`).
    fn aligned(len: usize) -> io::Result<Self> {
        let mut whole = Self::map(len + HUGE, MapFlags::PRIVATE)?;
        let address = whole.start.as_ptr() as usize;
        let before = address.next_multiple_of(HUGE) - address;
        // SAFETY: within the mapping, which is `HUGE` longer than what is used.
        let start = unsafe { whole.start.add(before) };
        let after = whole.len - before - len;
        // SAFETY: both ends are parts of the mapping that nobody refers to.
        // What cannot be given back is left unused, and so costs nothing.
        unsafe {
            if before > 0 {
                let _ = rustix::mm::munmap(whole.start.as_ptr().cast(), before);
            }
            if after > 0 {
                let _ = rustix::mm::munmap(start.add(len).as_ptr().cast(), after);
            }
        }
        whole.start = start;
        whole.len = len;
        // A kernel without them says no, and does as well.
        let _ = whole.advise(Advice::LinuxHugepage);
        Ok(whole)
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: of a mapping that is ours, and no advice that loses contents.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.len, advice)? };
        Ok(())
    }

    /// The first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more. An
        // unmapping that fails leaks memory, which is all it can do.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// What the kernel says of the mapping that begins there.
    fn smaps(start: NonNull<u8>) -> Vec<String> {
        let all = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = format!("{:x}-", start.as_ptr() as usize);
        let found = all.lines().skip_while(|line| !line.starts_with(&begin));
        found.take(30).map(str::to_owned).collect()
    }

    /// How many bytes of it are in memory.
    fn resident(mapping: &Mapping) -> usize {
        let page = rustix::param::page_size();
        let mut entries = vec![0; mapping.len() / page * 8];
        let first = mapping.start().as_ptr() as usize / page * 8;
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entries, first as u64).unwrap();
        let words = entries.as_chunks::<8>().0.iter();
        // Bit 63: present.
        page * words.filter(|word| word[7] & 0x80 != 0).count()
    }

    #[test]
    fn memory_is_there_zero_and_not_resident_before_it_is_touched() {
        for len in [4096, 3 * 4096, HUGE, 2 * HUGE] {
            let mapping = Mapping::new(len).unwrap();
            assert_eq!(mapping.len(), len);
            // All at once, from a pool, or nothing.
            assert!([0, len].contains(&resident(&mapping)), "{len}");
            let small = Mapping::map(len, MapFlags::PRIVATE).unwrap();
            assert_eq!(resident(&small), 0);
            // SAFETY: within the mapping, which is nobody else's.
            let bytes = unsafe { std::slice::from_raw_parts_mut(mapping.start().as_ptr(), len) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(7);
            assert_eq!(resident(&mapping), len);
            if len >= HUGE {
                assert!((mapping.start().as_ptr() as usize).is_multiple_of(HUGE));
            }
        }
    }

    #[test]
    fn the_kernel_is_asked_for_huge_pages() {
        let mapping = Mapping::aligned(HUGE).unwrap();
        let lines = smaps(mapping.start());
        let flags = lines.iter().find_map(|line| line.strip_prefix("VmFlags:"));
        let flags = flags.unwrap();
        // A kernel without them has no such flag.
        let has = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert_eq!(flags.split(' ').any(|flag| flag == "hg"), has, "{flags}");
    }
}
