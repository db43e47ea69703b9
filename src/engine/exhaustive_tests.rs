//! Positions of rings, records of what is in flight, and pages of the dirty log: every
//! number there is of 16 bits, and every edge of a page.

use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::super::dirty::DirtyLog;
use super::*;

/// Each position that a ring can have, five times over: what was taken is answered
/// once, and found again from each.
#[test]
fn a_ring_goes_round_all_positions() {
    let mut guest = Guest::at(0);
    let mut vring = guest.vring();
    let mut segments = Vec::new();
    for step in 0..5 * 65_536u32 {
        // From one in flight to as many as there are descriptors.
        while guest.sent.len() <= (step % u32::from(RING)) as usize && guest.send() {}
        let parsed = vring.pop(&LIMITS, &mut segments).expect("one was sent");
        vring.push(&parsed.completion, Ok(0));
        guest.take_answers();
        if step % 509 == 0 {
            guest.check();
        }
    }
    assert_eq!(guest.seen, guest.get16(USED + 2));
    assert!(guest.requests >= 5 * 65_536);
}

/// Where the parts of what is kept are: see `engine::inflight`.
const VERSION: usize = 8;
const ENTRIES: usize = 10;
const LAST: usize = 12;
const WRITTEN: usize = 14;
const FIRST: usize = 16;

/// Each index that was written down, and each that the ring can have as far as it
/// makes a difference: 65,536 times 12.
#[test]
fn what_was_answered_is_known_for_each_index() {
    let memory = Arc::new(MmapRegion::new(stride(RING)).unwrap());
    let kept = memory.as_volatile_slice();
    for written in 0..=u16::MAX {
        for answered in [0, 1, 2, 3, 4, 7, 8, 9, 10, 255, 0x8000, u16::MAX] {
            let used = written.wrapping_add(answered);
            kept.write_obj(1u16, VERSION).unwrap();
            kept.write_obj(RING, ENTRIES).unwrap();
            kept.write_obj(5u16, LAST).unwrap();
            kept.write_obj(written, WRITTEN).unwrap();
            // Answered last is 5, and before that 2, 7, 5 again.
            let mut in_flight = [1u8, 0, 1, 0, 0, 1, 0, 1];
            let next = [0u16, 0, 7, 0, 0, 2, 0, 5];
            for head in 0..usize::from(RING) {
                let at = FIRST + 16 * head;
                kept.write_obj(in_flight[head], at).unwrap();
                kept.write_obj(next[head], at + 6).unwrap();
                kept.write_obj(100 - head as u64, at + 8).unwrap();
            }
            let part = Part::new(memory.clone(), 0, RING).unwrap();
            let found = part.recover(RING, used);
            if answered > RING {
                let fault = found.err();
                assert_eq!(fault, Some(Fault::Index { written, used }), "{answered}");
                continue;
            }
            let mut head = 5u16;
            for _ in 0..answered {
                in_flight[usize::from(head)] = 0;
                head = next[usize::from(head)];
            }
            let found = found.unwrap();
            // The counters go down, so that the order is the other way round.
            let left = (0..RING)
                .rev()
                .filter(|it| in_flight[usize::from(*it)] == 1);
            let left: Vec<u16> = left.collect();
            assert_eq!(found.unfinished, left, "{written} {answered}");
            let behind = used.wrapping_add(left.len() as u16);
            assert_eq!(found.next_avail, Some(behind));
            assert_eq!(kept.read_obj::<u16>(WRITTEN).unwrap(), used);
        }
    }
}

/// From each edge of each page to each edge of each other, in a log of 24 pages; and
/// what reaches beyond it, up to the end of all addresses.
#[test]
fn a_page_is_marked_if_a_byte_of_it_was_written() {
    const PAGES: u64 = 24;
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGES / 8).unwrap();
    let shared = file.try_clone().unwrap();
    let region = MmapRegion::from_file(FileOffset::new(shared, 0), (PAGES / 8) as usize);
    let log = DirtyLog::new(region.unwrap());
    let edges = |page: u64| {
        let at = page * 4096;
        [at, at + 1, at + 2048, at + 4095]
    };
    let far = [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, 1 << 32];
    let starts: Vec<u64> = (0..=PAGES).flat_map(edges).chain(far).collect();
    let lengths: Vec<u64> = (0..=PAGES + 1)
        .flat_map(|page| {
            [
                page * 4096,
                page * 4096 + 1,
                (page * 4096).saturating_sub(1),
            ]
        })
        .chain(far)
        .collect();
    for &start in &starts {
        for &len in &lengths {
            file.write_all_at(&[0; (PAGES / 8) as usize], 0).unwrap();
            let done = log.mark(start, len);
            let mut marked = [0; (PAGES / 8) as usize];
            file.read_exact_at(&mut marked, 0).unwrap();
            let end = u128::from(start) + u128::from(len);
            let fits = len == 0 || end <= u128::from(PAGES * 4096);
            assert_eq!(done.is_ok(), fits, "{len} bytes at {start}");
            for page in 0..PAGES {
                let first = u128::from(page * 4096);
                let touched = fits && len > 0 && u128::from(start) < first + 4096 && first < end;
                let is = marked[(page / 8) as usize] & (1 << (page % 8)) != 0;
                assert_eq!(is, touched, "page {page}: {len} bytes at {start}");
            }
        }
    }
}
