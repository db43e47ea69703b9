//! The buffers of one queue: a few megabytes that are allocated once, and
//! handed out in runs of 4 KiB pages.
//!
//! Everything that goes to or comes from the disk passes through here, so
//! the size of the arena bounds what a queue can have in flight, whatever the
//! guest asks for.

use std::io;
use std::ptr::NonNull;

/// The granularity, and the alignment that O_DIRECT may ask for.
pub const PAGE: usize = 4096;

/// The largest run: 64 pages, the bits of one word.
pub const MAX_BLOCK: usize = 64 * PAGE;

/// A run of pages that somebody owns. It is given back explicitly, since what
/// the kernel is still writing to must not be reused.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a block that is not freed is lost to the queue"]
pub struct Block {
    page: u32,
    pages: u32,
}

impl Block {
    /// Where the block starts in the arena, in bytes.
    pub fn offset(&self) -> usize {
        self.page as usize * PAGE
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.pages as usize * PAGE
    }

    /// Never: a block has at least one page.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }
}

/// Page-aligned memory with a bit per page.
pub struct Arena {
    start: NonNull<u8>,
    len: usize,
    /// A set bit is a free page.
    free: Vec<u64>,
    /// The word at which the next search begins.
    hint: usize,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity.
unsafe impl Send for Arena {}

impl Arena {
    /// An arena of at least `bytes`, rounded up to whole words of pages.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let len = bytes.max(1).next_multiple_of(MAX_BLOCK);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Arena {
            start,
            len,
            free: vec![u64::MAX; len / MAX_BLOCK],
            hint: 0,
        })
    }

    /// The whole arena, for registration with the kernel.
    pub fn as_iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.start.as_ptr().cast(),
            iov_len: self.len,
        }
    }

    /// A block of at least `bytes` (at most [`MAX_BLOCK`]), if there is room.
    pub fn allocate(&mut self, bytes: usize) -> Option<Block> {
        debug_assert!(bytes > 0 && bytes <= MAX_BLOCK);
        let pages = bytes.div_ceil(PAGE) as u32;
        let words = self.free.len();
        for step in 0..words {
            let word = (self.hint + step) % words;
            if let Some(bit) = find_run(self.free[word], pages) {
                self.free[word] &= !(mask(pages) << bit);
                self.hint = word;
                return Some(Block {
                    page: word as u32 * 64 + bit,
                    pages,
                });
            }
        }
        None
    }

    /// Gives a block back.
    pub fn release(&mut self, block: Block) {
        let bits = mask(block.pages) << (block.page % 64);
        let word = &mut self.free[block.page as usize / 64];
        debug_assert_eq!(*word & bits, 0, "a block is released once");
        *word |= bits;
    }

    /// The first byte of a block.
    pub fn pointer(&self, block: &Block) -> NonNull<u8> {
        // SAFETY: blocks are made by `allocate`, within the mapping.
        unsafe { self.start.add(block.offset()) }
    }

    /// The first `len` bytes of a block.
    ///
    /// # Safety
    /// The kernel neither reads nor writes the block now: its operation has
    /// completed, or was not submitted yet.
    ///
    /// # Panics
    /// When the block is shorter.
    #[expect(
        clippy::mut_from_ref,
        reason = "blocks do not overlap, and each has one owner"
    )]
    pub unsafe fn bytes(&self, block: &Block, len: usize) -> &mut [u8] {
        assert!(
            len <= block.len(),
            "a block holds what it was allocated for"
        );
        // SAFETY: within the mapping, initialised (zero pages at first), and
        // not accessed by anybody else: the caller owns the block, and the
        // kernel has no part in it.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(block).as_ptr(), len) }
    }

    /// Whether every block was given back.
    pub fn is_whole(&self) -> bool {
        self.free.iter().all(|word| *word == u64::MAX)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more. An
        // unmapping that fails leaks memory, which is all it can do.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// `pages` low bits.
fn mask(pages: u32) -> u64 {
    u64::MAX >> (64 - pages)
}

/// The lowest position of `pages` consecutive set bits.
fn find_run(word: u64, pages: u32) -> Option<u32> {
    // After these steps a bit is set where a run of `pages` begins: each step
    // extends the length of the runs that are known by up to its own size.
    let mut starts = word;
    let mut known = 1;
    while known < pages && starts != 0 {
        let step = known.min(pages - known);
        starts &= starts >> step;
        known += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find_run_slowly(word: u64, pages: u32) -> Option<u32> {
        (0..=64 - pages).find(|bit| word >> bit & mask(pages) == mask(pages))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn runs_are_found_where_a_scan_finds_them(a: u64, b: u64, pages in 1u32..=64) {
            for word in [a, a | b, a & b, u64::MAX, 0, a << 32 | u32::MAX as u64] {
                prop_assert_eq!(find_run(word, pages), find_run_slowly(word, pages));
            }
        }

        #[test]
        fn blocks_never_overlap_and_all_come_back(sizes in prop::collection::vec(1usize..=MAX_BLOCK, 1..200)) {
            let mut arena = Arena::new(1 << 20).unwrap();
            let mut owned: Vec<Block> = Vec::new();
            for size in sizes {
                match arena.allocate(size) {
                    Some(block) => {
                        prop_assert!(block.len() >= size);
                        prop_assert!(block.offset() + block.len() <= arena.len);
                        for other in &owned {
                            prop_assert!(block.offset() >= other.offset() + other.len()
                                || other.offset() >= block.offset() + block.len());
                        }
                        owned.push(block);
                    }
                    None => {
                        let Some(block) = owned.pop() else { panic!("an empty arena refused") };
                        arena.release(block);
                    }
                }
            }
            owned.drain(..).for_each(|block| arena.release(block));
            prop_assert!(arena.is_whole());
        }
    }
}
