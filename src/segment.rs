//! Memory that somebody else may change while we look at it.

use std::ptr::{self, NonNull};

/// A contiguous piece of guest memory.
///
/// The guest may write to it at any time, so it is never turned into a
/// reference: all access goes through raw pointers and volatile-tolerant
/// copies, and what was read is trusted only after it has been copied out.
/// Whoever makes a segment guarantees that the mapping behind it lives until
/// the request that it belongs to has completed.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a segment is an address and a length. What may be done with it is
// argued where it is read or written, on whichever thread that happens.
unsafe impl Send for Segment {}

impl Segment {
    /// A segment of `len` bytes at `start`.
    pub fn new(start: NonNull<u8>, len: usize) -> Self {
        Segment { start, len }
    }

    /// The first byte.
    pub fn as_ptr(self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The length in bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// A place in a scatter list: where the next byte of a request is.
///
/// A request that is handled in chunks keeps one cursor, and each chunk goes
/// on where the one before stopped. Nothing is copied or allocated; segments
/// of length zero are stepped over.
#[derive(Clone, Debug)]
pub struct SegmentCursor<'a> {
    /// The current segment, which is never at its end, and those after it.
    segments: &'a [Segment],
    /// Bytes of the current segment that are behind us.
    offset: usize,
    /// Bytes ahead of us, in all segments.
    remaining: usize,
}

impl<'a> SegmentCursor<'a> {
    /// The start of a scatter list.
    pub fn new(segments: &'a [Segment]) -> Self {
        let mut cursor = SegmentCursor {
            segments,
            offset: 0,
            remaining: segments.iter().map(|segment| segment.len()).sum(),
        };
        cursor.advance(0);
        cursor
    }

    /// `offset` bytes into a scatter list.
    ///
    /// # Panics
    /// When the list is shorter than that.
    pub fn at(segments: &'a [Segment], offset: usize) -> Self {
        let mut cursor = Self::new(segments);
        cursor.advance(offset);
        cursor
    }

    /// How many bytes are ahead.
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// What is contiguous from here on: the rest of the current segment.
    /// Empty only at the end.
    pub fn contiguous(&self) -> Segment {
        match self.segments.first() {
            Some(segment) => {
                // SAFETY: `advance` leaves the offset inside the segment.
                let start = unsafe { segment.start.add(self.offset) };
                Segment::new(start, segment.len() - self.offset)
            }
            None => Segment::new(NonNull::dangling(), 0),
        }
    }

    /// Steps over `count` bytes.
    ///
    /// # Panics
    /// When fewer are left.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "a cursor stays in its list");
        self.remaining -= count;
        self.offset += count;
        while let [first, rest @ ..] = self.segments {
            if self.offset < first.len() {
                break;
            }
            self.offset -= first.len();
            self.segments = rest;
        }
    }

    /// Steps over as many whole units of `UNIT` bytes as are contiguous from
    /// here on, at most `limit`. Gives where they start, and how many: none
    /// where a segment ends inside of the unit, or nothing is left.
    #[inline(always)]
    pub fn take_units<const UNIT: usize>(&mut self, limit: usize) -> (*mut u8, usize) {
        let piece = self.contiguous();
        let units = (piece.len() / UNIT).min(limit);
        let bytes = units * UNIT;
        self.remaining -= bytes;
        if bytes < piece.len() {
            self.offset += bytes;
        } else {
            self.offset = 0;
            self.segments = self.segments.get(1..).unwrap_or_default();
            while let [first, rest @ ..] = self.segments
                && first.is_empty()
            {
                self.segments = rest;
            }
        }
        (piece.as_ptr(), units)
    }

    /// Steps over whole segments that are whole units of `UNIT` bytes, as long
    /// as there are such from here on, at most `limit` units in all. Gives
    /// `each` where they start, and of how many units they are.
    ///
    /// What [`SegmentCursor::take_units`] does at some cost per segment, for
    /// the lists of pages that guests' requests mostly are.
    #[inline(always)]
    pub fn take_whole<const UNIT: usize>(
        &mut self,
        limit: usize,
        mut each: impl FnMut(*mut u8, usize),
    ) {
        if self.offset != 0 {
            return;
        }
        let mut left = limit;
        while let [first, rest @ ..] = self.segments
            && first.len().is_multiple_of(UNIT)
            && first.len() / UNIT <= left
        {
            each(first.as_ptr(), first.len() / UNIT);
            left -= first.len() / UNIT;
            self.segments = rest;
        }
        self.remaining -= (limit - left) * UNIT;
    }

    /// Copies the next `to.len()` bytes out of the segments, and steps over them.
    ///
    /// # Panics
    /// When fewer are left.
    ///
    /// # Safety
    /// The memory of the segments is mapped and readable, and does not overlap `to`.
    pub unsafe fn copy_to(&mut self, to: &mut [u8]) {
        assert!(to.len() <= self.remaining, "a cursor stays in its list");
        let mut done = 0;
        while done < to.len() {
            let piece = self.contiguous();
            let count = piece.len().min(to.len() - done);
            // SAFETY: the caller vouches for the source; the destination has
            // `count` bytes left by the line above.
            unsafe { copy(piece.as_ptr(), to.as_mut_ptr().add(done), count) };
            self.advance(count);
            done += count;
        }
    }

    /// Copies `from` into the segments, and steps over as many bytes.
    ///
    /// # Panics
    /// When fewer are left.
    ///
    /// # Safety
    /// The memory of the segments is mapped and writable, and does not overlap `from`.
    pub unsafe fn copy_from(&mut self, from: &[u8]) {
        assert!(from.len() <= self.remaining, "a cursor stays in its list");
        let mut done = 0;
        while done < from.len() {
            let piece = self.contiguous();
            let count = piece.len().min(from.len() - done);
            // SAFETY: the caller vouches for the destination; the source has
            // `count` bytes left by the line above.
            unsafe { copy(from.as_ptr().add(done), piece.as_ptr(), count) };
            self.advance(count);
            done += count;
        }
    }

    /// Writes `count` zeroes into the segments, and steps over them.
    ///
    /// # Panics
    /// When fewer are left.
    ///
    /// # Safety
    /// The memory of the segments is mapped and writable.
    pub unsafe fn fill_zero(&mut self, mut count: usize) {
        const ZEROES: &[u8] = &[0; 4096];
        while count > 0 {
            let step = count.min(ZEROES.len());
            // SAFETY: as the caller vouches; a constant overlaps no guest memory.
            unsafe { self.copy_from(&ZEROES[..step]) };
            count -= step;
        }
    }
}

/// Copies bytes of which one side may change under our hands.
///
/// Every byte is read once and written once, in words where both sides allow
/// it; the compiler may neither repeat nor split these accesses.
///
/// # Safety
/// `from` is readable and `to` writable for `count` bytes; they do not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    const WORD: usize = size_of::<u64>();
    let byte = |at: usize| {
        // SAFETY: `at < count`, so both addresses are within what the caller vouches for.
        unsafe { ptr::write_volatile(to.add(at), ptr::read_volatile(from.add(at))) };
    };
    let mut at = 0;
    if from.addr() % WORD == to.addr() % WORD {
        while at < count && !(from.addr() + at).is_multiple_of(WORD) {
            byte(at);
            at += 1;
        }
        while count - at >= WORD {
            // SAFETY: a whole word is left on both sides, and both are aligned.
            unsafe {
                let word = ptr::read_volatile(from.add(at).cast::<u64>());
                ptr::write_volatile(to.add(at).cast::<u64>(), word);
            }
            at += WORD;
        }
    }
    while at < count {
        byte(at);
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Cuts a buffer into segments of the given lengths, in order, without gaps.
    fn cut(memory: &mut [u8], lengths: &[usize]) -> Vec<Segment> {
        let base = NonNull::new(memory.as_mut_ptr()).unwrap();
        let mut at = 0;
        lengths
            .iter()
            .map(|&len| {
                // SAFETY: the lengths add up to the size of the buffer at most.
                let segment = Segment::new(unsafe { base.add(at) }, len);
                at += len;
                segment
            })
            .collect()
    }

    proptest! {
        #[test]
        fn chunks_continue_where_the_one_before_stopped(
            lengths in prop::collection::vec(0usize..70, 1..12),
            chunks in prop::collection::vec(0usize..90, 1..12),
            misalign in 0usize..8,
        ) {
            let total: usize = lengths.iter().sum();
            let mut memory: Vec<u8> = (0..total).map(|i| i as u8).collect();
            let expected = memory.clone();
            let segments = cut(&mut memory, &lengths);
            let mut cursor = SegmentCursor::new(&segments);
            let mut seen = Vec::new();
            for chunk in chunks {
                let count = chunk.min(cursor.remaining());
                let before = total - cursor.remaining();
                let other = SegmentCursor::at(&segments, before);
                prop_assert_eq!(other.contiguous().len(), cursor.contiguous().len());
                let mut out = vec![0; misalign + count];
                // SAFETY: the segments lie in `memory`, which nobody else uses.
                unsafe { cursor.copy_to(&mut out[misalign..]) };
                seen.extend_from_slice(&out[misalign..]);
            }
            prop_assert_eq!(seen.len() + cursor.remaining(), total);
            prop_assert_eq!(&seen[..], &expected[..seen.len()]);
        }

        /// Units of four bytes, by whole segments where that is possible.
        #[test]
        fn whole_segments_are_taken_as_their_units_would_be(
            lengths in prop::collection::vec(prop_oneof![Just(0), Just(4), Just(12), 0usize..14], 1..12),
            start in 0usize..20,
            limit in 0usize..20,
        ) {
            let total: usize = lengths.iter().sum();
            let mut memory = vec![0; total];
            let segments = cut(&mut memory, &lengths);
            let mut cursor = SegmentCursor::at(&segments, start.min(total));
            let mut other = cursor.clone();
            let mut units = vec![];
            cursor.take_whole::<4>(limit, |place, count| {
                units.extend((0..count).map(|at| place.wrapping_add(4 * at)));
            });
            prop_assert!(units.len() <= limit);
            for place in &units {
                prop_assert_eq!(other.take_units::<4>(1), (*place, 1));
            }
            prop_assert_eq!(cursor.remaining(), other.remaining());
            prop_assert_eq!(cursor.contiguous().as_ptr(), other.contiguous().as_ptr());
            prop_assert_eq!(cursor.contiguous().len(), other.contiguous().len());
            // It stops only where it has to.
            let piece = cursor.contiguous();
            let whole = segments.iter().any(|segment| {
                segment.as_ptr() == piece.as_ptr() && segment.len() == piece.len()
            });
            let fits = piece.len() / 4 <= limit - units.len() && piece.len().is_multiple_of(4);
            prop_assert!(piece.is_empty() || !whole || !fits);
        }

        #[test]
        fn what_is_copied_in_or_zeroed_lands_in_order(
            lengths in prop::collection::vec(0usize..70, 1..12),
            zeroes in 0usize..5000,
        ) {
            let total: usize = lengths.iter().sum();
            let mut memory = vec![0xaa; total];
            let data: Vec<u8> = (0..total).map(|i| i as u8).collect();
            let segments = cut(&mut memory, &lengths);
            let zeroes = zeroes.min(total);
            let mut cursor = SegmentCursor::new(&segments);
            // SAFETY: the segments lie in `memory`, which nobody else uses.
            unsafe {
                cursor.fill_zero(zeroes);
                cursor.copy_from(&data[zeroes..]);
            }
            prop_assert_eq!(cursor.remaining(), 0);
            prop_assert!(cursor.contiguous().is_empty());
            prop_assert!(memory[..zeroes].iter().all(|&byte| byte == 0));
            prop_assert_eq!(&memory[zeroes..], &data[zeroes..]);
        }
    }

    #[test]
    #[should_panic(expected = "a cursor stays in its list")]
    fn a_cursor_does_not_leave_its_list() {
        let mut memory = [0u8; 8];
        SegmentCursor::at(&cut(&mut memory, &[3, 5]), 9);
    }
}
