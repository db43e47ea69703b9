//! Takes requests apart for the engines that work on many units at once.
//!
//! Work is handed to an engine in batches of units, each with its own tweak,
//! source and target: scatter lists then cost the engine nothing, and it can
//! keep its pipelines full across segment borders.
//!
//! Units that lie whole in one segment go straight between guest memory and
//! our buffer. A unit that a segment border cuts is put together in our
//! buffer, which is where it has to go, or comes from, anyway.

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use crate::secret::registers;
use crate::segment::{Segment, SegmentCursor};
use crate::units::SectorSize;

/// Units in a batch: 128 KiB at 512 bytes, so that what a batch costs once
/// does not show, and the lists stay in the first-level cache.
pub(super) const BATCH: usize = 256;
/// Entries past the end of the lists: engines may look this far ahead, with no
/// effect on what they do.
pub(super) const SPARE: usize = 24;

/// A tweak as it is in memory: little-endian, as the standard has it.
pub(super) type Tweak = [u8; 16];

/// Tweaks of consecutive units; what is past those asked for is undefined.
#[repr(C, align(64))]
pub(super) struct Tweaks([MaybeUninit<Tweak>; BATCH + SPARE]);

impl Tweaks {
    fn new() -> Self {
        Tweaks([MaybeUninit::uninit(); BATCH + SPARE])
    }

    /// Sets one of them.
    #[cfg(any(feature = "aws-lc", feature = "fips"))]
    pub(super) fn set(&mut self, at: usize, tweak: Tweak) {
        self.0[at].write(tweak);
    }

    /// The first of [`BATCH`] and some to spare, aligned to 64 bytes.
    pub(super) fn as_mut_ptr(&mut self) -> *mut Tweak {
        self.0.as_mut_ptr().cast()
    }
}

/// Units to be encrypted or decrypted, between a buffer of ours, where they
/// are contiguous, and places of which each unit has its own. Such a place is
/// in guest memory, or, for a unit that cannot be there, the same as ours. It
/// overlaps our buffer nowhere else.
pub(super) struct Batch {
    count: usize,
    ours: *mut u8,
    tweaks: Tweaks,
    places: [MaybeUninit<*mut u8>; BATCH + SPARE],
}

/// One unit of a batch.
pub(super) struct Unit {
    /// Its tweak: that of its first block.
    pub(super) tweak: Tweak,
    /// Where it is in our buffer.
    pub(super) ours: *mut u8,
    /// Its other place.
    pub(super) place: *mut u8,
}

impl Batch {
    fn new() -> Self {
        Batch {
            count: 0,
            ours: ptr::null_mut(),
            tweaks: Tweaks::new(),
            places: [MaybeUninit::uninit(); BATCH + SPARE],
        }
    }

    /// Starts over, with the next units of a request of which `done` bytes are
    /// behind us; `ours` is where they are in our buffer.
    #[inline]
    fn start<const UNIT: usize>(
        &mut self,
        engine: &impl Engine,
        first: u64,
        done: usize,
        len: usize,
        ours: *mut u8,
    ) {
        self.count = ((len - done) / UNIT).min(BATCH);
        self.ours = ours;
        let first = first.wrapping_add((done / 512) as u64);
        let step = (UNIT / 512) as u64;
        engine.tweaks(first, step, self.count, &mut self.tweaks);
    }

    /// Sets the places of units from `at` on, which are contiguous there. Units
    /// after them may get addresses that are to be set again.
    #[inline(always)]
    fn place<const UNIT: usize>(&mut self, at: usize, units: usize, place: *mut u8) {
        let step = if UNIT == 512 { 8 } else { 1 };
        assert!(at < BATCH && units <= BATCH - at);
        for first in (0..units).step_by(step) {
            let place = place.wrapping_add(first * UNIT);
            for i in 0..step {
                // SAFETY: `at + first` is less than `BATCH`, and there are
                // more than seven entries to spare.
                let slot = unsafe { self.places.get_unchecked_mut(at + first + i) };
                slot.write(place.wrapping_add(i * UNIT));
            }
        }
    }

    /// Ends the list: those who look ahead find the last address again.
    #[inline(always)]
    fn end<const UNIT: usize>(&mut self) {
        let last = self.places[self.count - 1];
        let ahead = if UNIT == 512 { SPARE } else { 2 };
        self.places[self.count..][..ahead].fill(last);
    }

    /// How many units there are, at most [`BATCH`].
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The tweaks from that of unit `at` on, and some to spare.
    pub(super) fn tweaks(&self, at: usize) -> *const Tweak {
        self.tweaks.0[at..].as_ptr().cast()
    }

    /// Unit `at` in our buffer, and those after it.
    pub(super) fn ours<const UNIT: usize>(&self, at: usize) -> *mut u8 {
        self.ours.wrapping_add(at * UNIT)
    }

    /// The places of unit `at` and those after it, and some to spare: 24 for
    /// units of 512 bytes, two for others.
    pub(super) fn places(&self, at: usize) -> *const *mut u8 {
        self.places[at..].as_ptr().cast()
    }

    /// One of them.
    ///
    /// # Panics
    /// When there are not that many.
    pub(super) fn unit<const UNIT: usize>(&self, at: usize) -> Unit {
        assert!(at < self.count);
        // SAFETY: an engine sees a batch after the first `count` are set.
        unsafe {
            Unit {
                tweak: self.tweaks.0[at].assume_init(),
                ours: self.ours::<UNIT>(at),
                place: self.places[at].assume_init(),
            }
        }
    }

    /// If the unit is all zero in our buffer, writes zeroes to its place.
    /// Looks at 8 bytes of one that is not.
    ///
    /// # Safety
    /// As [`Engine::decrypt`], for this unit.
    pub(super) unsafe fn settle_zero<const UNIT: usize>(&self, at: usize) -> bool {
        let unit = self.unit::<UNIT>(at);
        // SAFETY: as the caller vouches, with a unit's length.
        unsafe {
            let stored = slice::from_raw_parts(unit.ours, UNIT);
            if stored.first_chunk() != Some(&[0; 8]) || stored.iter().any(|&byte| byte != 0) {
                return false;
            }
            if unit.place != unit.ours {
                let place = Segment::new(NonNull::new_unchecked(unit.place), UNIT);
                SegmentCursor::new(&[place]).fill_zero(UNIT);
            }
        }
        true
    }
}

/// What an engine does.
pub(super) trait Engine {
    /// Encrypts the numbers of `count` units, at most [`BATCH`]: the first is
    /// `first`, and each after it `step` higher.
    fn tweaks(&self, first: u64, step: u64, count: usize, to: &mut Tweaks);

    /// Encrypts units of `UNIT` bytes, 512 or 4096, from their places to our buffer.
    ///
    /// # Safety
    /// The places are readable and our buffer is writable.
    unsafe fn encrypt<const UNIT: usize>(&self, batch: &Batch);

    /// Decrypts units of `UNIT` bytes, 512 or 4096, from our buffer to their
    /// places. With `zero_units`, those that are all zero give zeroes.
    ///
    /// # Safety
    /// Our buffer is readable and the places are writable.
    unsafe fn decrypt<const UNIT: usize>(&self, batch: &Batch, zero_units: bool);
}

/// Encrypts `len` bytes, whole units, from the segments to `to`. The first
/// unit has the number `first`.
///
/// # Safety
/// The cursor has `len` bytes left, in readable memory; `to` is writable, and
/// overlaps the segments nowhere, or is the same memory in one segment.
pub(super) unsafe fn encrypt(
    engine: &impl Engine,
    unit: SectorSize,
    first: u64,
    from: &mut SegmentCursor<'_>,
    to: *mut u8,
    len: usize,
) {
    // SAFETY: the same contract.
    unsafe {
        match unit {
            SectorSize::B512 => encrypt_units::<512>(engine, first, from, to, len),
            SectorSize::B4096 => encrypt_units::<4096>(engine, first, from, to, len),
        }
    }
    registers::clear();
}

/// Decrypts `len` bytes, whole units, from `from` to the segments. The first
/// unit has the number `first`.
///
/// # Safety
/// The cursor has `len` bytes left, in writable memory; `from` is readable and
/// writable, and overlaps the segments nowhere, or is the same memory in one
/// segment.
pub(super) unsafe fn decrypt(
    engine: &impl Engine,
    unit: SectorSize,
    first: u64,
    zero_units: bool,
    from: *mut u8,
    len: usize,
    to: &mut SegmentCursor<'_>,
) {
    // SAFETY: the same contract.
    unsafe {
        match unit {
            SectorSize::B512 => decrypt_units::<512>(engine, first, zero_units, from, len, to),
            SectorSize::B4096 => decrypt_units::<4096>(engine, first, zero_units, from, len, to),
        }
    }
    registers::clear();
}

/// Encrypts whole units where they stand.
pub(super) fn encrypt_in_place(
    engine: &impl Engine,
    unit: SectorSize,
    first: u64,
    buffer: &mut [u8],
) {
    let segment = [as_segment(buffer)];
    let (start, len) = (segment[0].as_ptr(), segment[0].len());
    let mut from = SegmentCursor::new(&segment);
    // SAFETY: one segment that is the same memory as the target.
    unsafe { encrypt(engine, unit, first, &mut from, start, len) };
}

/// Decrypts whole units where they stand.
pub(super) fn decrypt_in_place(
    engine: &impl Engine,
    unit: SectorSize,
    first: u64,
    zero_units: bool,
    buffer: &mut [u8],
) {
    let segment = [as_segment(buffer)];
    let (start, len) = (segment[0].as_ptr(), segment[0].len());
    let mut to = SegmentCursor::new(&segment);
    // SAFETY: one segment that is the same memory as the source.
    unsafe { decrypt(engine, unit, first, zero_units, start, len, &mut to) };
}

/// A buffer of ours as a segment.
fn as_segment(buffer: &mut [u8]) -> Segment {
    let len = buffer.len();
    Segment::new(NonNull::from(buffer).cast(), len)
}

/// [`encrypt`], for units of `UNIT` bytes.
///
/// # Safety
/// As [`encrypt`].
unsafe fn encrypt_units<const UNIT: usize>(
    engine: &impl Engine,
    first: u64,
    from: &mut SegmentCursor<'_>,
    to: *mut u8,
    len: usize,
) {
    let mut batch = Batch::new();
    // A copy that no function is given the address of stays in registers.
    let mut cursor = from.clone();
    let mut done = 0;
    while done < len {
        batch.start::<UNIT>(engine, first, done, len, to.wrapping_add(done));
        let mut at = 0;
        while at < batch.count {
            cursor.take_whole::<UNIT>(batch.count - at, |place, units| {
                batch.place::<UNIT>(at, units, place);
                at += units;
            });
            if at == batch.count {
                break;
            }
            let (place, units) = cursor.take_units::<UNIT>(batch.count - at);
            if units > 0 {
                batch.place::<UNIT>(at, units, place);
                at += units;
            } else {
                let ours = batch.ours::<UNIT>(at);
                let mut moved = cursor.clone();
                // SAFETY: our buffer has this unit left, and the cursor as much.
                unsafe { moved.copy_to(slice::from_raw_parts_mut(ours, UNIT)) };
                cursor = moved;
                batch.place::<UNIT>(at, 1, ours);
                at += 1;
            }
        }
        batch.end::<UNIT>();
        // SAFETY: as the caller vouches, for the places set above.
        unsafe { engine.encrypt::<UNIT>(&batch) };
        done += batch.count * UNIT;
    }
    *from = cursor;
}

/// [`decrypt`], for units of `UNIT` bytes.
///
/// # Safety
/// As [`decrypt`].
unsafe fn decrypt_units<const UNIT: usize>(
    engine: &impl Engine,
    first: u64,
    zero_units: bool,
    from: *mut u8,
    len: usize,
    to: &mut SegmentCursor<'_>,
) {
    let mut batch = Batch::new();
    let mut done = 0;
    while done < len {
        batch.start::<UNIT>(engine, first, done, len, from.wrapping_add(done));
        // As in `encrypt_units`, a copy that stays in registers.
        let mut cursor = to.clone();
        let mut cut = false;
        let mut at = 0;
        while at < batch.count {
            cursor.take_whole::<UNIT>(batch.count - at, |place, units| {
                batch.place::<UNIT>(at, units, place);
                at += units;
            });
            if at == batch.count {
                break;
            }
            let (place, units) = cursor.take_units::<UNIT>(batch.count - at);
            if units > 0 {
                batch.place::<UNIT>(at, units, place);
                at += units;
            } else {
                cut = true;
                batch.place::<UNIT>(at, 1, batch.ours::<UNIT>(at));
                let mut moved = cursor.clone();
                moved.advance(UNIT);
                cursor = moved;
                at += 1;
            }
        }
        batch.end::<UNIT>();
        // SAFETY: as the caller vouches, for the places set above; `to` is
        // still where the batch starts.
        unsafe {
            engine.decrypt::<UNIT>(&batch, zero_units);
            if cut {
                copy_cut::<UNIT>(&batch, to.clone());
            }
        }
        *to = cursor;
        done += batch.count * UNIT;
    }
}

/// Copies the units of a batch that segment borders cut to where they belong,
/// now that they are plain in our buffer.
///
/// # Safety
/// The cursor has the bytes of the batch left, in writable memory, and our
/// buffer overlaps none of it.
unsafe fn copy_cut<const UNIT: usize>(batch: &Batch, mut to: SegmentCursor<'_>) {
    for at in 0..batch.count {
        let unit = batch.unit::<UNIT>(at);
        if unit.place == unit.ours {
            // SAFETY: as the caller vouches; the unit is initialised.
            unsafe { to.copy_from(slice::from_raw_parts(unit.ours, UNIT)) };
        } else {
            to.advance(UNIT);
        }
    }
}
