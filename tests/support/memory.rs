//! Guest memory: a memfd that a server maps as well, and the placing of
//! requests in it, with guard bytes around each piece.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::request::Request;

/// One shared mapping. All access is by copy, since the server changes it.
pub struct GuestMemory {
    file: OwnedFd,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, lives until its drop, and
// is only touched by copies and atomics through raw pointers.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; concurrent copies race no worse than the server does.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    pub fn new(len: usize) -> Arc<Self> {
        let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len as u64).unwrap();
        // SAFETY: a fresh mapping at an address of the kernel's choice
        // replaces nothing.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .unwrap();
        Arc::new(GuestMemory {
            file,
            start: NonNull::new(start.cast()).unwrap(),
            len,
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The address of a byte in this process.
    pub fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: checked above to lie within the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.pointer(offset, bytes.len());
        // SAFETY: `to` has room for that many bytes; `bytes` is memory of ours
        // and cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let from = self.pointer(offset, len);
        // SAFETY: `from` has that many bytes; `bytes` is memory of ours.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) }
        bytes
    }

    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        let to = self.pointer(offset, len);
        // SAFETY: `to` has room for that many bytes.
        unsafe { std::ptr::write_bytes(to, byte, len) }
    }

    fn atomic(&self, offset: usize) -> &AtomicU16 {
        let at = self.pointer(offset, 2);
        assert!(at.cast::<u16>().is_aligned());
        // SAFETY: aligned, within the mapping, which lives as long as `self`.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    /// The 64 bits at an offset, which are all 0 afterwards.
    pub fn take_u64(&self, offset: usize) -> u64 {
        let at = self.pointer(offset, 8);
        assert!(at.cast::<u64>().is_aligned());
        // SAFETY: as for `atomic`.
        let word = unsafe { AtomicU64::from_ptr(at.cast()) };
        u64::from_le(word.swap(0, Ordering::SeqCst))
    }

    pub fn load_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic(offset).load(Ordering::SeqCst))
    }

    pub fn store_u16(&self, offset: usize, value: u16) {
        self.atomic(offset).store(value.to_le(), Ordering::SeqCst);
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; no pointer into it outlives self.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A piece of guest memory, by offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub offset: usize,
    pub len: usize,
}

/// A request whose data lies in guest memory.
#[derive(Debug)]
pub struct Placed {
    block: Piece,
    pub outs: Vec<Piece>,
    pub ins: Vec<Piece>,
}

const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xa5;
/// What readable data holds before the server writes to it.
const STALE_BYTE: u8 = 0xdb;

/// Hands out pieces of guest memory.
pub struct Arena {
    pub memory: Arc<GuestMemory>,
    /// Offset and length of what is free.
    free: BTreeMap<usize, usize>,
}

impl Arena {
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        let free = BTreeMap::from([(0, memory.len())]);
        Arena { memory, free }
    }

    /// `len` bytes, starting at a multiple of 64.
    pub fn take(&mut self, len: usize) -> Piece {
        let len = len.next_multiple_of(64).max(64);
        let (&offset, &room) = self
            .free
            .iter()
            .find(|(_, room)| **room >= len)
            .expect("guest memory is used up: give the front end more");
        self.free.remove(&offset);
        if room > len {
            self.free.insert(offset + len, room - len);
        }
        Piece { offset, len }
    }

    fn give_back(&mut self, piece: Piece) {
        let Piece {
            mut offset,
            mut len,
        } = piece;
        if let Some(next) = self.free.remove(&(offset + len)) {
            len += next;
        }
        if let Some((&before, &room)) = self.free.range(..offset).next_back()
            && before + room == offset
        {
            offset = before;
            len += room;
        }
        self.free.insert(offset, len);
    }

    /// Lays the request's data out, each segment between guard bytes.
    pub fn place(&mut self, request: &Request) -> Placed {
        let outs = cut(request.out.len(), &request.cuts);
        let ins = cut(request.in_len, &request.cuts);
        let room = |len: &usize| (len + request.skew).next_multiple_of(64) + GUARD;
        let total = GUARD + outs.iter().chain(&ins).map(room).sum::<usize>();
        let block = self.take(total);
        self.memory.fill(block.offset, block.len, GUARD_BYTE);

        let mut at = block.offset + GUARD;
        let mut pieces = outs.iter().chain(&ins).map(|len| {
            let piece = Piece {
                offset: at + request.skew,
                len: *len,
            };
            at += room(len);
            piece
        });
        let outs: Vec<Piece> = pieces.by_ref().take(outs.len()).collect();
        let ins: Vec<Piece> = pieces.collect();

        let mut rest = &request.out[..];
        for piece in &outs {
            let (now, later) = rest.split_at(piece.len);
            self.memory.write(piece.offset, now);
            rest = later;
        }
        for piece in &ins {
            self.memory.fill(piece.offset, piece.len, STALE_BYTE);
        }
        Placed { block, outs, ins }
    }

    /// The bytes in the writable segments; frees the memory. Panics if the
    /// server wrote anywhere else.
    pub fn finish(&mut self, placed: Placed, request: &Request) -> Vec<u8> {
        let mut block = self.memory.read(placed.block.offset, placed.block.len);
        let within = |piece: &Piece| {
            let start = piece.offset - placed.block.offset;
            start..start + piece.len
        };
        let take = |block: &mut [u8], pieces: &[Piece]| {
            let mut bytes = Vec::new();
            for piece in pieces {
                bytes.extend_from_slice(&block[within(piece)]);
                block[within(piece)].fill(GUARD_BYTE);
            }
            bytes
        };
        let out = take(&mut block, &placed.outs);
        let data = take(&mut block, &placed.ins);
        assert!(out == request.out, "the server changed data to be written");
        assert!(
            block.iter().all(|byte| *byte == GUARD_BYTE),
            "the server wrote outside the buffers of the request"
        );
        self.give_back(placed.block);
        data
    }
}

/// `len` cut into the given sizes, and one piece more for what is left.
fn cut(len: usize, sizes: &[usize]) -> Vec<usize> {
    let mut left = len;
    let mut pieces = Vec::new();
    for size in sizes {
        let piece = left.min(*size);
        if piece > 0 {
            pieces.push(piece);
        }
        left -= piece;
    }
    if left > 0 {
        pieces.push(left);
    }
    pieces
}
