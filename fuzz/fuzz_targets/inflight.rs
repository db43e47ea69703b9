//! What a front end has kept of the requests in flight, which may be anything, and
//! what a queue makes of it.
//!
//! Whatever is there: finding out ends, what is found fits the ring, each chain is
//! found once, and in order; and what the queue writes down after that is found by
//! the next one, whatever the front end writes elsewhere.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sealblk::engine::inflight::{Part, Recovered, stride};
use sealblk_fuzz::source::Source;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// Entries of the part, at most.
const MOST: u16 = 64;

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    let count = source.pick(&[16, MOST, 1, 3]);
    let ring = source.pick(&[16, MOST, 1, 128]);
    let mut used = source.u16();
    let memory = Arc::new(MmapRegion::<()>::new(stride(MOST)).expect("memory"));
    let plausible = source.byte() & 1 == 0;
    let contents = source.take(stride(count));
    let put = |bytes: &[u8], at: usize| {
        let all = memory.as_volatile_slice();
        all.write_slice(bytes, at).expect("within the part");
    };
    put(contents, 0);
    if plausible {
        // No features, version 1, so many entries; then indices of the input.
        put(&[0; 8], 0);
        put(&[1, 0, count as u8, 0], 8);
    }
    let part = || Part::new(memory.clone(), 0, count).expect("there is room");
    let Ok(found) = part().recover(ring, used) else {
        return;
    };
    check(&found, ring, used);
    let mut outstanding: Vec<u16> = found.unfinished;
    let mut tracker = found.tracker;
    while !source.is_empty() {
        match source.below(4) {
            0 | 1 => {
                let head = source.u16() % ring;
                if head < count && !outstanding.contains(&head) {
                    tracker.taken(head);
                    outstanding.push(head);
                }
            }
            2 if !outstanding.is_empty() => {
                let head = outstanding.remove(source.below(256) % outstanding.len());
                tracker.answering(head);
                // Whether it is in the used ring when the process ends.
                if source.rarely() {
                    used = used.wrapping_add(1);
                    break;
                }
                used = used.wrapping_add(1);
                tracker.answered(head, used);
            }
            // Chains that no ring has: they leave no trace.
            _ => {
                let head = count.saturating_add(source.u16());
                tracker.taken(head);
                tracker.answering(head);
                tracker.answered(head, used);
            }
        }
    }
    drop(tracker);
    let again = part().recover(ring, used).expect("we have written it");
    check(&again, ring, used);
    let mut there = again.unfinished.clone();
    there.sort_unstable();
    let mut wanted = outstanding;
    wanted.sort_unstable();
    assert_eq!(there, wanted);
    // Finding out changes nothing.
    let third = part().recover(ring, used).expect("it was right");
    assert_eq!(third.unfinished, again.unfinished);
});

fn check(found: &Recovered, ring: u16, used: u16) {
    let mut heads = found.unfinished.clone();
    assert!(heads.iter().all(|head| *head < ring));
    let next = used.wrapping_add(heads.len() as u16);
    assert!(found.next_avail.is_none_or(|there| there == next));
    heads.sort_unstable();
    heads.dedup();
    assert_eq!(heads.len(), found.unfinished.len());
}
