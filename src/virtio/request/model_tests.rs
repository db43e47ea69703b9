//! The parser against a model that sees a chain as two lists of byte
//! addresses, and knows nothing of segments, regions or streaming.

#[path = "exhaustive_tests.rs"]
mod exhaustive;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::config::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS};

/// Where the ring lies, and where two adjacent regions of data lie.
const RING: u64 = 0x1000;
const DATA: u64 = 0x10_0000;
const DATA_BYTES: u64 = 0x8000;
const RING_SIZE: u16 = 16;

const CAPACITY: u64 = 64;

#[derive(Clone, Debug)]
struct Part {
    writable: bool,
    address: u64,
    len: u32,
}

/// How the chain ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Well,
    /// The last descriptor names this one as its successor.
    At(u16),
}

#[derive(Clone, Debug)]
struct Case {
    parts: Vec<Part>,
    end: End,
    indirect: bool,
    kind: u32,
    sector: u64,
    /// What follows the header in readable memory.
    payload: Vec<u8>,
    limits: Limits,
}

fn part() -> impl Strategy<Value = Part> {
    let address = prop_oneof![
        8 => DATA..DATA + 2 * DATA_BYTES - 0x3000,
        1 => Just(DATA + 2 * DATA_BYTES - 700),
        1 => Just(DATA + DATA_BYTES - 100),
        1 => any::<u64>(),
        1 => Just(u64::MAX - 5),
    ];
    let len = prop_oneof![
        4 => Just(512u32), 2 => Just(1), 2 => Just(16), 2 => Just(4096), 1 => Just(0),
        1 => 0u32..2000, 1 => Just(511), 1 => Just(513), 1 => Just(32), 1 => any::<u32>(),
    ];
    (any::<bool>(), address, len).prop_map(|(writable, address, len)| Part {
        writable,
        address,
        len,
    })
}

/// Mostly what drivers send: header, data, status.
fn usual(kind: u32, data: Vec<Part>) -> Vec<Part> {
    let at = |address, len, writable| Part {
        writable,
        address,
        len,
    };
    let takes = matches!(kind, 0 | 8);
    let mut parts = vec![at(DATA + 0x7f00, 16, false)];
    parts.extend(data.into_iter().map(|part| Part {
        writable: takes,
        ..part
    }));
    parts.push(at(DATA + 0x7e00, 1, true));
    parts
}

fn case() -> impl Strategy<Value = Case> {
    let kind = prop_oneof![
        prop::sample::select(vec![0u32, 0, 1, 1, 4, 8, 11, 11, 13, 13, 14, 2]),
        any::<u32>(),
    ];
    let sector = prop_oneof![0..CAPACITY + 2, any::<u64>(), Just(u64::MAX)];
    let range = (0..CAPACITY, 0u32..20, 0u32..3).prop_map(|(sector, sectors, flags)| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    });
    let payload = prop::collection::vec(range, 0..20).prop_map(|ranges| ranges.concat());
    let end = prop_oneof![9 => Just(End::Well), 1 => (0..20u16).prop_map(End::At)];
    let limits =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(large, read_only, discard)| {
            Limits {
                capacity: CAPACITY,
                sector_size: if large {
                    SectorSize::B4096
                } else {
                    SectorSize::B512
                },
                read_only,
                discard,
            }
        });
    (kind, prop::collection::vec(part(), 0..8), any::<bool>()).prop_flat_map(
        move |(kind, parts, sane)| {
            let parts = if sane { usual(kind, parts) } else { parts };
            (
                Just(kind),
                Just(parts),
                end.clone(),
                any::<bool>(),
                sector.clone(),
                payload.clone(),
                limits.clone(),
            )
                .prop_map(|(kind, parts, end, indirect, sector, payload, limits)| {
                    Case {
                        parts,
                        end,
                        indirect,
                        kind,
                        sector,
                        payload,
                        limits,
                    }
                })
        },
    )
}

fn memory() -> Memory {
    Memory::from_ranges(&[
        (GuestAddress(RING), 0x4000),
        (GuestAddress(DATA), DATA_BYTES as usize),
        (GuestAddress(DATA + DATA_BYTES), DATA_BYTES as usize),
    ])
    .unwrap()
}

/// Lays the chain out, and takes it from the ring as the device does.
fn run(case: &Case, memory: &Memory, segments: &mut Vec<Segment>) -> Parsed {
    let table = if case.indirect { RING + 0x2000 } else { RING };
    for (index, part) in case.parts.iter().enumerate() {
        let last = index + 1 == case.parts.len();
        let (next, flag) = match (last, case.end) {
            (false, _) => (index as u16 + 1, 1u16),
            (true, End::Well) => (0, 0),
            // A loop back, or out of the table.
            (true, End::At(next)) if usize::from(next) < case.parts.len() => (next, 1),
            (true, End::At(next)) => (RING_SIZE + next, 1),
        };
        let flags = flag | if part.writable { 2 } else { 0 };
        let at = |offset| GuestAddress(table + 16 * index as u64 + offset);
        memory.write_obj(part.address, at(0)).unwrap();
        memory.write_obj(part.len, at(8)).unwrap();
        memory.write_obj(flags, at(12)).unwrap();
        memory.write_obj(next, at(14)).unwrap();
    }
    if case.indirect {
        memory.write_obj(table, GuestAddress(RING)).unwrap();
        memory
            .write_obj(16 * case.parts.len() as u32, GuestAddress(RING + 8))
            .unwrap();
        memory.write_obj(4u16, GuestAddress(RING + 12)).unwrap();
    }
    // One available chain, with descriptor 0 as its head.
    memory.write_obj(1u16, GuestAddress(RING + 0x1002)).unwrap();
    let mut queue = Queue::new(RING_SIZE).unwrap();
    queue.set_desc_table_address(Some(RING as u32), Some(0));
    queue.set_avail_ring_address(Some(RING as u32 + 0x1000), Some(0));
    queue.set_used_ring_address(Some(RING as u32 + 0x1800), Some(0));
    queue.set_ready(true);
    let chain = queue.iter(memory).unwrap().next().unwrap();
    parse(chain, memory, &case.limits, segments)
}

/// Puts header and payload where the readable descriptors say.
fn give(case: &Case, memory: &Memory) {
    let mut bytes = case.kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(case.sector.to_le_bytes());
    bytes.extend(&case.payload);
    for (address, byte) in addresses(case, false).into_iter().zip(bytes) {
        let _ = memory.write_obj(byte, GuestAddress(address));
    }
}

/// At most so many bytes of a part are followed one by one.
const FOLLOWED: u32 = 5000;

fn addresses(case: &Case, writable: bool) -> Vec<u64> {
    let parts = case.parts.iter().filter(|part| part.writable == writable);
    parts
        .flat_map(|part| {
            (0..u64::from(part.len.min(FOLLOWED))).map(|n| part.address.wrapping_add(n))
        })
        .collect()
}

fn is_mapped(part: &Part) -> bool {
    let end = part.address.checked_add(u64::from(part.len));
    part.len == 0 || (part.address >= DATA && end.is_some_and(|end| end <= DATA + 2 * DATA_BYTES))
}

/// A chain has at most 2^32 bytes (VIRTIO 1.3, 2.7.4.2); it is cut off there.
fn is_too_long(case: &Case) -> bool {
    let bytes: u64 = case.parts.iter().map(|part| u64::from(part.len)).sum();
    bytes > u64::from(u32::MAX)
}

/// Whether all that the device has to touch is mapped. Where the guest gives
/// data, of the writable memory that is the status byte alone.
fn needed_is_mapped(case: &Case) -> bool {
    let gives: u64 = case
        .parts
        .iter()
        .filter(|p| !p.writable)
        .map(|p| u64::from(p.len))
        .sum();
    let last = case.parts.iter().rposition(|p| p.writable && p.len > 0);
    case.parts
        .iter()
        .enumerate()
        .all(|(index, part)| match part.writable && gives > 16 {
            false => is_mapped(part),
            true if Some(index) == last => part
                .address
                .checked_add(u64::from(part.len) - 1)
                .is_some_and(|end| (DATA..DATA + 2 * DATA_BYTES).contains(&end)),
            true => true,
        })
}

/// What the specification says of the case.
fn expected(case: &Case, memory: &Memory) -> Result<Vec<(u64, u64)>, Reject> {
    let (gives, takes) = (addresses(case, false), addresses(case, true));
    let ended = matches!(case.end, End::Well);
    let first_writable = case.parts.iter().position(|p| p.writable && p.len > 0);
    let ordered = case.parts[first_writable.unwrap_or(case.parts.len())..]
        .iter()
        .all(|part| part.writable || part.len == 0);
    let bad = !ended || !ordered || is_too_long(case) || !needed_is_mapped(case);
    if bad || gives.len() < 16 || takes.is_empty() {
        return Err(Reject::IoError);
    }
    let byte = |address: u64| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
    let number = |at: &[u64]| {
        at.iter()
            .rev()
            .fold(0u64, |sum, a| sum << 8 | u64::from(byte(*a)))
    };
    let (kind, sector) = (number(&gives[..4]), number(&gives[8..16]));
    let data = match kind {
        0 | 8 => takes.len() - 1,
        _ => gives.len() - 16,
    } as u64;
    let one_way = match kind {
        0 | 8 => gives.len() == 16,
        1 | 11 | 13 => takes.len() == 1,
        _ => true,
    };
    let unit = case.limits.sector_size.bytes() as u64;
    let fits = |sector: u64, bytes: u64| {
        bytes > 0
            && bytes.is_multiple_of(unit)
            && sector.is_multiple_of(unit / 512)
            && u128::from(sector) + u128::from(bytes) / 512 <= u128::from(CAPACITY)
    };
    let io = |good: bool| if good { Ok(()) } else { Err(Reject::IoError) };
    match kind {
        0 | 1 => {
            io(one_way && fits(sector, data) && !(kind == 1 && case.limits.read_only))?;
            Ok(vec![(sector, data)])
        }
        4 => Ok(vec![]),
        8 => io(one_way && data > 0).map(|()| vec![]),
        11 if !case.limits.discard => Err(Reject::Unsupported),
        11 | 13 => {
            io(one_way && !case.limits.read_only)?;
            io(data > 0 && data.is_multiple_of(16) && data <= 256)?;
            let mut extents = Vec::new();
            for range in gives[16..].chunks(16) {
                let (sector, sectors) = (number(&range[..8]), number(&range[8..12]));
                let flags = number(&range[12..]);
                let (known, most) = match kind {
                    11 => (0, MAX_DISCARD_SECTORS),
                    _ => (1, MAX_WRITE_ZEROES_SECTORS),
                };
                if flags & !known != 0 {
                    return Err(Reject::Unsupported);
                }
                io(sectors <= u64::from(most) && fits(sector, sectors * 512))?;
                extents.push((sector, sectors * 512));
            }
            Ok(extents)
        }
        _ => Err(Reject::Unsupported),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_parser_agrees_with_the_model(case in case()) {
        // A chain longer than the ring is cut off, which is another test.
        let followed = case.parts.iter().all(|part| part.len <= FOLLOWED || !is_mapped(part));
        prop_assume!(followed && !case.parts.is_empty());
        let memory = memory();
        give(&case, &memory);
        let expected = expected(&case, &memory);
        let mut segments = Vec::with_capacity(MAX_SEGMENTS);
        let parsed = run(&case, &memory, &mut segments);
        let got = parsed.request.map(|request| match request {
            Request::Read(extent) | Request::Write(extent) => vec![extent],
            Request::Discard(extents) | Request::WriteZeroes(extents) => extents.to_vec(),
            Request::Flush | Request::GetId => vec![],
        });
        let got = got.map(|list| list.iter().map(|e| (e.sector.0, e.bytes)).collect::<Vec<_>>());
        prop_assert_eq!(&got, &expected);
        if let Ok(Request::Read(extent) | Request::Write(extent)) = parsed.request {
            // The segments are the data: each byte once, in order.
            let host = |address| {
                let slice = memory.get_slices(GuestAddress(address), 1, Permissions::Read);
                slice.unwrap().next().unwrap().unwrap().ptr_guard().as_ptr() as usize
            };
            let mut wanted: Vec<usize> = match parsed.request {
                Ok(Request::Read(_)) => addresses(&case, true),
                _ => addresses(&case, false)[16..].to_vec(),
            }.into_iter().map(host).collect();
            wanted.truncate(extent.bytes as usize);
            let covered: Vec<usize> = segments
                .iter()
                .flat_map(|s| (0..s.len()).map(|n| s.as_ptr() as usize + n))
                .collect();
            prop_assert_eq!(covered, wanted);
        }
        // The answer goes into the last writable byte, wherever that is.
        if let Some(part) = case.parts.iter().rev().find(|part| part.writable && part.len > 0)
            && matches!(case.end, End::Well)
            && is_mapped(part)
            && !is_too_long(&case)
        {
            let status = GuestAddress(part.address + u64::from(part.len) - 1);
            memory.write_obj(0xeeu8, status).unwrap();
            // SAFETY: `memory` is still mapped.
            unsafe { parsed.completion.write(Err(Reject::Unsupported)) };
            prop_assert_eq!(memory.read_obj::<u8>(status).unwrap(), 2);
        }
    }
}
