//! Every cipher engine gives the same bytes as the portable one, for requests
//! of every shape, and touches no memory but that of the request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crypt_case;

use std::ptr::NonNull;

use crypt_case::{Case, SplitMix};
use proptest::prelude::*;
use sealblk::crypt::{Engine, Params, SectorCipher};
use sealblk::secret::Dek;
use sealblk::segment::{Segment, SegmentCursor};
use sealblk::units::{Sector, SectorSize};

/// Sector numbers: anywhere, and around where 63 and 64 bits end.
fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..5000u64,
        (0..5000u64).prop_map(|n| (1 << 63) - 2500 + n),
        (0..5000u64).prop_map(|n| u64::MAX - n),
    ]
}

/// Segment lengths: none, pages, whole units, and anything.
fn lengths() -> impl Strategy<Value = Vec<u16>> {
    prop_oneof![
        Just(vec![]),
        Just(vec![4096]),
        Just(vec![512]),
        Just(vec![1536, 512, 3584]),
        prop::collection::vec(0u16..20, 1..8),
        prop::collection::vec(0u16..1500, 1..20),
        prop::collection::vec(any::<u16>(), 1..8),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let request = (any::<bool>(), 0..600usize, sector(), sector(), any::<u64>());
    let zeroes = (
        any::<bool>(),
        prop_oneof![
            Just(0),
            Just(u64::MAX),
            any::<u64>(),
            (0..64u32).prop_map(|bit| 1 << bit)
        ],
    );
    let memory = (
        lengths(),
        any::<u8>(),
        prop_oneof![Just(0), 1..300usize],
        any::<u8>(),
    );
    (request, zeroes, memory).prop_map(
        |(
            (long, units, first, iv_tweak, seed),
            (zero_units, zeroed),
            (lengths, gap, chunk, misaligned),
        )| Case {
            long,
            units,
            first,
            iv_tweak,
            zero_units,
            zeroed,
            seed,
            lengths,
            gap,
            chunk,
            misaligned,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn all_engines_agree_with_the_portable_one(case in case()) {
        case.check();
    }
}

/// Numbers of units one after the other: the ends of the engines' loops, and
/// of their batches.
#[test]
fn all_engines_agree_on_every_length() {
    for (long, units) in [
        (false, (0..40).chain(250..262).chain(511..514)),
        (true, (0..9).chain(0..0).chain(63..65)),
    ] {
        for units in units {
            Case {
                long,
                units,
                first: 8 * units as u64,
                iv_tweak: 0,
                zero_units: true,
                zeroed: if units % 3 == 0 { 1 << (units % 64) } else { 0 },
                seed: units as u64,
                lengths: vec![],
                gap: 0,
                chunk: 0,
                misaligned: 0,
            }
            .check();
        }
    }
}

/// A mapping whose neighbours on both sides are not accessible.
struct Fenced {
    start: NonNull<u8>,
    len: usize,
}

const PAGE: usize = 4096;

impl Fenced {
    fn new(pages: usize) -> Self {
        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
        let len = pages * PAGE;
        // SAFETY: a fresh mapping, of which the inner part is made accessible.
        unsafe {
            let none = ProtFlags::empty();
            let outer = rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len + 2 * PAGE,
                none,
                MapFlags::PRIVATE,
            )
            .unwrap();
            let inner = outer.byte_add(PAGE);
            rustix::mm::mprotect(inner, len, MprotectFlags::READ | MprotectFlags::WRITE).unwrap();
            Fenced {
                start: NonNull::new(inner.cast()).unwrap(),
                len,
            }
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes are mapped, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { rustix::mm::munmap(self.start.as_ptr().sub(PAGE).cast(), self.len + 2 * PAGE) }
            .unwrap();
    }
}

/// At the very start and the very end of a mapping, a read or write outside of
/// the request is a fault.
#[test]
fn no_engine_reads_or_writes_past_the_ends() {
    let dek = Dek::generate().unwrap();
    let (mut guest, mut ours) = (Fenced::new(4), Fenced::new(4));
    for engine in Engine::available() {
        for sector_size in [SectorSize::B512, SectorSize::B4096] {
            let params = Params {
                sector_size,
                zero_units: true,
                ..Params::default()
            };
            let cipher = SectorCipher::new(engine, &dek, params).unwrap();
            for units in 1..=4 * PAGE / sector_size.bytes() {
                let len = units * sector_size.bytes();
                for at in [0, 4 * PAGE - len] {
                    let mut data = vec![0; len];
                    SplitMix(units as u64).fill(&mut data);
                    guest.bytes()[at..][..len].copy_from_slice(&data);
                    // SAFETY: the offset is inside the mapping.
                    let segments = [Segment::new(unsafe { guest.start.add(at) }, len)];
                    // SAFETY: the segment is mapped, and apart from our buffer.
                    unsafe {
                        cipher.encrypt(
                            Sector(0),
                            &mut SegmentCursor::new(&segments),
                            &mut ours.bytes()[at..][..len],
                        )
                    };
                    guest.bytes().fill(0);
                    // SAFETY: as above.
                    unsafe {
                        cipher.decrypt(
                            Sector(0),
                            &mut ours.bytes()[at..][..len],
                            &mut SegmentCursor::new(&segments),
                        )
                    };
                    assert_eq!(guest.bytes()[at..][..len], data);
                }
            }
        }
    }
}

/// A disk's cipher is used by all of its queues at once.
#[test]
fn a_cipher_is_shared_by_threads() {
    let dek = Dek::generate().unwrap();
    for engine in Engine::available() {
        let cipher = SectorCipher::new(engine, &dek, Params::default()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let cipher = &cipher;
                scope.spawn(move || {
                    let mut plain = vec![0; 37 * 512];
                    SplitMix(thread).fill(&mut plain);
                    for round in 0..50 {
                        let first = Sector(thread * 1000 + round);
                        let mut buffer = plain.clone();
                        cipher.encrypt_in_place(first, &mut buffer);
                        assert_ne!(buffer, plain);
                        cipher.decrypt_in_place(first, &mut buffer);
                        assert_eq!(buffer, plain);
                    }
                });
            }
        });
    }
}

#[test]
#[should_panic(expected = "whole data units only")]
fn part_of_a_unit_is_refused() {
    let cipher =
        SectorCipher::new(Engine::best(), &Dek::generate().unwrap(), Params::default()).unwrap();
    cipher.encrypt_in_place(Sector(0), &mut [0; 513]);
}

#[test]
#[should_panic(expected = "starts a unit")]
fn a_sector_inside_a_unit_is_refused() {
    let params = Params {
        sector_size: SectorSize::B4096,
        ..Params::default()
    };
    let cipher = SectorCipher::new(Engine::best(), &Dek::generate().unwrap(), params).unwrap();
    cipher.encrypt_in_place(Sector(4), &mut [0; 4096]);
}

#[test]
#[should_panic(expected = "hold the whole buffer")]
fn segments_shorter_than_the_buffer_are_refused() {
    let cipher =
        SectorCipher::new(Engine::best(), &Dek::generate().unwrap(), Params::default()).unwrap();
    // SAFETY: no segment is there to be read.
    unsafe { cipher.encrypt(Sector(0), &mut SegmentCursor::new(&[]), &mut [0; 512]) };
}
