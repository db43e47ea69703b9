//! DISCARD and WRITE_ZEROES: ranges, limits and flags.

use super::support::front_end::FrontEnd;
use super::support::request::*;
use super::{CAPACITY, Disk, Numbers};

const SECTORS: u64 = CAPACITY / 512;

/// 64 blocks of noise at the start of the disk.
fn noise(disk: &Disk, front_end: &mut FrontEnd, seed: u64) -> Vec<u8> {
    let data = Numbers::new(seed).bytes(64 * disk.unit);
    front_end.write(0, &data);
    data
}

fn range(disk: &Disk, block: u64, blocks: u64) -> Range {
    Range::new(disk.sector(block), disk.sector(blocks) as u32)
}

fn zero(disk: &Disk, data: &mut [u8], block: usize, blocks: usize) {
    data[block * disk.unit..(block + blocks) * disk.unit].fill(0);
}

pub fn zeroes_read_back_and_neighbours_stay(disk: &Disk) {
    let mut front_end = disk.connect();
    let config = front_end.config().unwrap();
    let most = u64::from(config.max_write_zeroes_sectors) / disk.sector(1);
    for (seed, (block, blocks)) in [(0, 1), (1, 1), (7, 9), (8, 16), (3, 60), (63, 1)]
        .into_iter()
        .enumerate()
    {
        for unmap in [false, true] {
            let mut expected = noise(disk, &mut front_end, seed as u64);
            let mut ranges = [range(disk, block, blocks.min(most))];
            if unmap {
                ranges[0] = ranges[0].unmap();
            }
            front_end.write_zeroes(&ranges);
            zero(
                disk,
                &mut expected,
                block as usize,
                blocks.min(most) as usize,
            );
            let found = front_end.read(0, expected.len());
            assert!(found == expected, "{blocks} at {block}, unmap {unmap}");
        }
    }
    // After a discard the range may hold anything, and the rest what it held.
    let expected = noise(disk, &mut front_end, 40);
    front_end.discard(&[range(disk, 8, 16)]);
    let found = front_end.read(0, expected.len());
    assert!(found[..8 * disk.unit] == expected[..8 * disk.unit]);
    assert!(found[24 * disk.unit..] == expected[24 * disk.unit..]);
    // And it can be written again.
    let again = noise(disk, &mut front_end, 41);
    assert!(front_end.read(0, again.len()) == again);
}

pub fn several_ranges_in_one_request(disk: &Disk) {
    let mut front_end = disk.connect();
    let config = front_end.config().unwrap();
    let count = u64::from(config.max_write_zeroes_seg.min(16));
    let mut expected = noise(disk, &mut front_end, 42);
    // The ranges are not in order, and the descriptors cut them anywhere.
    let ranges: Vec<Range> = (0..count)
        .map(|at| range(disk, (at * 7 % 16) * 4 + 1, 2))
        .collect();
    for at in 0..count as usize {
        zero(disk, &mut expected, (at * 7 % 16) * 4 + 1, 2);
    }
    let request = Request::write_zeroes(&ranges).cut(&[5, 16, 1]);
    front_end.succeed(0, request);
    assert!(front_end.read(0, expected.len()) == expected);

    let count = u64::from(config.max_discard_seg.min(16));
    let ranges: Vec<Range> = (0..count).map(|at| range(disk, at * 4, 1)).collect();
    front_end.discard(&ranges);
    let found = front_end.read(0, expected.len());
    for block in (0..64).filter(|block| block % 4 != 0) {
        let bytes = block * disk.unit..(block + 1) * disk.unit;
        assert!(found[bytes.clone()] == expected[bytes], "block {block}");
    }
}

pub fn ranges_beyond_the_limits_are_refused(disk: &Disk) {
    let mut front_end = disk.connect();
    let config = front_end.config().unwrap();
    let expected = noise(disk, &mut front_end, 43);
    let kinds = [
        (T_DISCARD, config.max_discard_sectors),
        (T_WRITE_ZEROES, config.max_write_zeroes_sectors),
    ];
    for (kind, limit) in kinds {
        let mut bad = vec![
            Range::new(SECTORS, disk.sector(1) as u32),
            Range::new(SECTORS - disk.sector(1), disk.sector(2) as u32),
            Range::new(1 << 55, disk.sector(1) as u32),
            Range::new(u64::MAX - 7, disk.sector(1) as u32),
            Range::new(u64::MAX, u32::MAX),
            Range::new(0, u32::MAX),
        ];
        if let Some(over) = limit.checked_add(disk.sector(1) as u32) {
            bad.push(Range::new(0, over));
        }
        for range in bad {
            let request = Request::of_type(kind, &Range::bytes(&[range]), 0);
            let outcome = front_end.run(0, request);
            assert_eq!(outcome.status, S_IOERR, "type {kind}, {range:?}");
        }
        if disk.unit == 4096 {
            for range in [Range::new(1, 8), Range::new(0, 1), Range::new(7, 2)] {
                let request = Request::of_type(kind, &Range::bytes(&[range]), 0);
                let outcome = front_end.run(0, request);
                assert_eq!(outcome.status, S_IOERR, "type {kind}, {range:?}");
            }
        }
    }
    assert!(front_end.read(0, expected.len()) == expected);
}

/// VIRTIO 1.2, section 5.2.6.2: unknown flags, and unmap in a discard.
pub fn flags_are_checked(disk: &Disk) {
    let mut front_end = disk.connect();
    let expected = noise(disk, &mut front_end, 44);
    let with = |flags: u32| Range {
        flags,
        ..range(disk, 0, 4)
    };
    for flags in [1, 2, 1 << 31, u32::MAX] {
        let outcome = front_end.run(0, Request::discard(&[with(flags)]));
        assert_eq!(outcome.status, S_UNSUPP, "discard with flags {flags:#x}");
    }
    for flags in [2, 3, 1 << 31, u32::MAX] {
        let outcome = front_end.run(0, Request::write_zeroes(&[with(flags)]));
        assert_eq!(outcome.status, S_UNSUPP, "zeroes with flags {flags:#x}");
    }
    assert!(front_end.read(0, expected.len()) == expected);
}

pub fn malformed_ranges_are_refused(disk: &Disk) {
    let mut front_end = disk.connect();
    let expected = noise(disk, &mut front_end, 45);
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        for len in [0, 1, 8, 15] {
            let outcome = front_end.run(0, Request::of_type(kind, &vec![0; len], 0));
            assert_ne!(outcome.status, S_OK, "type {kind}, {len} bytes");
        }
    }
    assert!(front_end.read(0, expected.len()) == expected);
}
