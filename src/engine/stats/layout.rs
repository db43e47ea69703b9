//! How statistics lie in memory: version 3, which has what waited while its data
//! was moved from one key to another. (Version 2 brought what limits hold back
//! and how often the kernel was entered.)
//!
//! Everything is 64-bit words in the byte order of the host: a header, then a
//! block for each queue. Whoever changes anything here gives [`VERSION`] a new
//! number: two processes of different versions may meet at this memory.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::{BUCKETS, bucket};
use crate::engine::throttle::Lane;

/// The first word: `sealstat` in ASCII.
pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"sealstat");
/// The second word.
pub(super) const VERSION: u64 = 3;
/// Bytes of the header: a cache line, of which four words are used. The third
/// is the number of queues, the fourth the bytes of a queue's block.
pub(super) const HEADER_BYTES: usize = 64;
/// The most queues that anybody may claim: more than a disk can have, and few
/// enough that a reader does not care.
pub(super) const QUEUES_MAX: u64 = 256;

/// What a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making durable what was written.
    Flush,
    /// Giving space back.
    Discard,
    /// Writing zeroes.
    WriteZeroes,
    /// The serial number.
    GetId,
    /// What is no request, or not permitted: malformed, beyond the end of the
    /// disk, a write to a read-only one. Always an error, and the guest's.
    Invalid,
}

impl Kind {
    /// All of them, in the order in which they lie in memory.
    pub const ALL: [Kind; 7] = [
        Kind::Read,
        Kind::Write,
        Kind::Flush,
        Kind::Discard,
        Kind::WriteZeroes,
        Kind::GetId,
        Kind::Invalid,
    ];

    /// As it stands in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::Discard => "discard",
            Kind::WriteZeroes => "write_zeroes",
            Kind::GetId => "get_id",
            Kind::Invalid => "invalid",
        }
    }
}

/// What the kernel was asked to do. A request may take several of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reading from the data file.
    Read,
    /// Writing to it.
    Write,
    /// Deallocating.
    Punch,
    /// `fdatasync`.
    Sync,
}

impl Operation {
    /// All of them, in the order in which they lie in memory.
    pub const ALL: [Operation; 4] = [
        Operation::Read,
        Operation::Write,
        Operation::Punch,
        Operation::Sync,
    ];

    /// As it stands in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Punch => "punch",
            Operation::Sync => "sync",
        }
    }
}

/// What the cipher does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the disk.
    Encrypt,
    /// To the guest.
    Decrypt,
}

impl Direction {
    /// Both, in the order in which they lie in memory.
    pub const ALL: [Direction; 2] = [Direction::Encrypt, Direction::Decrypt];

    /// As it stands in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Encrypt => "encrypt",
            Direction::Decrypt => "decrypt",
        }
    }
}

/// A number that one thread writes and anybody reads.
#[derive(Debug)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds, on the one thread that writes. Others would lose counts, so that
    /// no locked instruction is needed.
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    #[inline]
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The requests of one kind.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct KindStats {
    pub requests: Counter,
    pub errors: Counter,
    pub bytes: Counter,
    pub nanoseconds: Counter,
    pub buckets: [Counter; BUCKETS],
}

/// The operations of one kind.
#[derive(Debug)]
#[repr(C)]
pub(super) struct OperationStats {
    pub operations: Counter,
    pub errors: Counter,
    pub nanoseconds: Counter,
}

/// One direction of the cipher.
#[derive(Debug)]
#[repr(C)]
pub(super) struct CipherStats {
    pub bytes: Counter,
    pub nanoseconds: Counter,
}

/// What was held back, of one kind.
#[derive(Debug)]
#[repr(C)]
pub(super) struct HeldStats {
    pub requests: Counter,
    pub nanoseconds: Counter,
}

/// All that is counted of one queue.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct QueueStats {
    pub(super) kinds: [KindStats; Kind::ALL.len()],
    pub(super) operations: [OperationStats; Operation::ALL.len()],
    pub(super) cipher: [CipherStats; Direction::ALL.len()],
    /// Requests taken from the ring. Those that were not answered are in flight.
    pub(super) taken: Counter,
    /// Times that the guest signalled.
    pub(crate) kicks: Counter,
    /// Times that the guest was signalled.
    pub(crate) notifications: Counter,
    /// Times that the thread slept.
    pub(crate) sleeps: Counter,
    /// Nanoseconds in which it looked for work instead.
    pub(crate) poll_nanoseconds: Counter,
    /// Times that the kernel was entered through the ring.
    pub(crate) entries: Counter,
    /// By the limits of the disk.
    pub(super) throttled: [HeldStats; Lane::ALL.len()],
    /// While what they touch was moved.
    pub(super) parked: [HeldStats; Lane::ALL.len()],
}

impl QueueStats {
    /// A thread begins to count here, with nothing in flight: what one before
    /// it left unanswered is not.
    pub(crate) fn begin(&self) {
        let answered = |sum: u64, kind: &KindStats| sum.wrapping_add(kind.requests.get());
        self.taken.set(self.kinds.iter().fold(0, answered));
    }

    /// Requests that were taken and not answered.
    pub(crate) fn in_flight(&self) -> u64 {
        let answered = |sum: u64, kind: &KindStats| sum.wrapping_add(kind.requests.get());
        let answered = self.kinds.iter().fold(0, answered);
        self.taken.get().saturating_sub(answered)
    }

    /// Operations of the kernel that have ended.
    pub(crate) fn ended(&self, operation: Operation) -> u64 {
        self.operations[operation as usize].operations.get()
    }

    /// A chain was taken from the ring.
    #[inline]
    pub(crate) fn taken(&self) {
        self.taken.add(1);
    }

    /// A request succeeded, with so much data, after that time.
    #[inline]
    pub(crate) fn succeeded(&self, kind: Kind, bytes: u64, nanoseconds: u64) {
        let stats = &self.kinds[kind as usize];
        stats.bytes.add(bytes);
        stats.answered(nanoseconds);
    }

    /// A request failed after that time.
    #[inline]
    pub(crate) fn failed(&self, kind: Kind, nanoseconds: u64) {
        let stats = &self.kinds[kind as usize];
        stats.errors.add(1);
        stats.answered(nanoseconds);
    }

    /// The kernel ended an operation.
    #[inline]
    pub(crate) fn operated(&self, operation: Operation, failed: bool, nanoseconds: u64) {
        let stats = &self.operations[operation as usize];
        stats.operations.add(1);
        stats.errors.add(failed.into());
        stats.nanoseconds.add(nanoseconds);
    }

    /// A request went on that the limits had held back.
    #[inline]
    pub(crate) fn throttled(&self, lane: Lane, nanoseconds: u64) {
        self.throttled[lane as usize].add(nanoseconds);
    }

    /// A request went on that had waited for a region to be moved.
    pub(crate) fn parked(&self, lane: Lane, nanoseconds: u64) {
        self.parked[lane as usize].add(nanoseconds);
    }

    /// The cipher was given so many bytes.
    #[inline]
    pub(crate) fn ciphered(&self, direction: Direction, bytes: u64) {
        self.cipher[direction as usize].bytes.add(bytes);
    }

    /// The cipher took that time.
    #[inline]
    pub(crate) fn cipher_took(&self, direction: Direction, nanoseconds: u64) {
        self.cipher[direction as usize].nanoseconds.add(nanoseconds);
    }
}

impl HeldStats {
    #[inline]
    fn add(&self, nanoseconds: u64) {
        self.requests.add(1);
        self.nanoseconds.add(nanoseconds);
    }
}

impl KindStats {
    #[inline]
    fn answered(&self, nanoseconds: u64) {
        self.requests.add(1);
        self.nanoseconds.add(nanoseconds);
        self.buckets[bucket(nanoseconds)].add(1);
    }
}

/// Bytes of the whole for so many queues, before rounding up to pages.
pub(super) fn bytes(queues: u16) -> usize {
    HEADER_BYTES + usize::from(queues) * size_of::<QueueStats>()
}

/// The words of the header for so many queues.
pub(super) fn header(queues: u16) -> [u64; 4] {
    [
        MAGIC,
        VERSION,
        queues.into(),
        size_of::<QueueStats>() as u64,
    ]
}
