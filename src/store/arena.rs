//! The buffers of one queue: a few megabytes that are taken at once, and handed
//! out in runs of 4 KiB pages.
//!
//! Everything that goes to or comes from the disk passes through here, so
//! the size of the arena bounds what a queue can have in flight, whatever the
//! guest asks for.

use std::io;
use std::ptr::NonNull;

use super::mapping::Mapping;

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

/// Page-aligned memory with a bit per page. It may be given back while no block
/// is in use: an arena without memory hands out nothing.
pub struct Arena {
    memory: Option<Mapping>,
    len: usize,
    /// A set bit is a free page.
    free: Vec<u64>,
    /// The word at which the next search begins.
    hint: usize,
}

impl Arena {
    /// An arena of at least `bytes`, rounded up to whole words of pages.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mut arena = Self::without_memory(bytes);
        arena.fill()?;
        Ok(arena)
    }

    /// An arena that has to be [filled](Arena::fill) before it is of any use.
    pub fn without_memory(bytes: usize) -> Self {
        let len = bytes.max(1).next_multiple_of(MAX_BLOCK);
        Arena {
            memory: None,
            len,
            free: vec![u64::MAX; len / MAX_BLOCK],
            hint: 0,
        }
    }

    /// Takes memory, if it has none.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn fill(&mut self) -> io::Result<()> {
        if self.memory.is_none() {
            self.memory = Some(Mapping::new(self.len)?);
        }
        Ok(())
    }

    /// Whether there is memory.
    pub fn is_filled(&self) -> bool {
        self.memory.is_some()
    }

    /// Gives the memory back, if nobody owns a block of it. The kernel must not
    /// have it registered any more.
    pub fn clear(&mut self) {
        if self.is_whole() {
            self.memory = None;
        }
    }

    /// Gives the memory back: whoever owned blocks of it is gone. The kernel must
    /// not know it any more.
    pub fn abandon(&mut self) {
        self.memory = None;
        self.free.fill(u64::MAX);
    }

    /// Leaves the memory to the kernel for good: it may write to it at any time.
    pub fn forget(&mut self) {
        std::mem::forget(self.memory.take());
    }

    /// The whole arena, for registration with the kernel. Empty without memory.
    pub fn as_iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.start().as_ptr().cast(),
            iov_len: self.memory.as_ref().map_or(0, Mapping::len),
        }
    }

    fn start(&self) -> NonNull<u8> {
        self.memory
            .as_ref()
            .map_or(NonNull::dangling(), Mapping::start)
    }

    /// A block of at least `bytes` (at most [`MAX_BLOCK`]), if there is room.
    pub fn allocate(&mut self, bytes: usize) -> Option<Block> {
        debug_assert!(bytes > 0 && bytes <= MAX_BLOCK);
        // Without memory there are no blocks.
        self.memory.as_ref()?;
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
        debug_assert!(self.is_filled(), "memory stays while there is a block");
        // SAFETY: blocks are made by `allocate`, within the mapping, which stays
        // as long as there are any.
        unsafe { self.start().add(block.offset()) }
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

    #[test]
    fn memory_comes_and_goes_while_no_block_is_in_use() {
        let mut arena = Arena::without_memory(2 << 20);
        assert!(!arena.is_filled() && arena.allocate(1).is_none());
        assert_eq!(arena.as_iovec().iov_len, 0);
        arena.fill().unwrap();
        let block = arena.allocate(5000).unwrap();
        // SAFETY: no ring knows this arena.
        unsafe { arena.bytes(&block, 5000) }.fill(7);
        arena.clear();
        // SAFETY: the same.
        assert_eq!(unsafe { arena.bytes(&block, 5000) }, [7; 5000]);
        arena.release(block);
        arena.clear();
        assert!(!arena.is_filled() && arena.allocate(1).is_none());
        arena.fill().unwrap();
        let block = arena.allocate(MAX_BLOCK).unwrap();
        // SAFETY: the same.
        assert_eq!(unsafe { arena.bytes(&block, 5000) }, [0; 5000]);
        arena.release(block);
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
