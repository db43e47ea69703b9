//! Reads and writes: what goes in comes out, whatever its shape.

use super::support::front_end::Options;
use super::support::request::{Request, S_OK};
use super::{CAPACITY, Disk, Numbers, QUEUES};

pub fn blocks_of_every_size_are_read_back(disk: &Disk) {
    let mut front_end = disk.connect();
    let mut numbers = Numbers::new(1);
    let mut block = 5;
    for blocks in [1, 2, 3, 7, 8, 9, 31, 32, 33, 127, 128, 129] {
        let data = numbers.bytes(blocks * disk.unit);
        let sector = disk.sector(block);
        front_end.write(sector, &data);
        assert!(
            front_end.read(sector, data.len()) == data,
            "{blocks} blocks"
        );
        // Block by block, so that each one's own number is seen to count.
        for (at, one) in data.chunks(disk.unit).enumerate() {
            let sector = disk.sector(block + at as u64);
            assert!(front_end.read(sector, one.len()) == one);
        }
        block += blocks as u64 + 3;
    }
    let last = disk.sector(disk.blocks() - 1);
    let data = numbers.bytes(disk.unit);
    front_end.write(last, &data);
    front_end.write(0, &data);
    front_end.flush();
    assert!(front_end.read(last, disk.unit) == data);
    assert!(front_end.read(0, disk.unit) == data);
}

pub fn random_requests_agree_with_a_model(disk: &Disk) {
    let mut front_end = disk.connect_with(Options {
        queues: QUEUES,
        ..Options::default()
    });
    let mut numbers = Numbers::new(2);
    // A part of the disk, so that requests meet each other's data often.
    let blocks = (2 << 20) / disk.unit as u64;
    let mut model = numbers.bytes((2 << 20) as usize);
    front_end.write(0, &model[..1 << 20]);
    front_end.write(2048, &model[1 << 20..]);
    for round in 0..600 {
        let first = numbers.below(blocks);
        let count = 1 + numbers.below((blocks - first).min(65_536 / disk.unit as u64));
        let range = first as usize * disk.unit..(first + count) as usize * disk.unit;
        let sector = disk.sector(first);
        let cuts: Vec<usize> = (0..numbers.below(6))
            .map(|_| 1 + numbers.below(range.len() as u64) as usize)
            .collect();
        let skew = numbers.below(64) as usize;
        let queue = numbers.below(QUEUES as u64) as usize;
        if numbers.below(2) == 0 {
            let data = numbers.bytes(range.len());
            let request = Request::write(sector, &data).cut(&cuts).skewed(skew);
            front_end.succeed(queue, request);
            model[range].copy_from_slice(&data);
        } else {
            let request = Request::read(sector, range.len()).cut(&cuts).skewed(skew);
            let found = front_end.succeed(queue, request).data;
            assert!(found == model[range], "round {round}, sector {sector}");
        }
    }
    let mut found = front_end.read(0, 1 << 20);
    found.extend(front_end.read(2048, 1 << 20));
    assert!(found == model);
}

pub fn descriptors_may_cut_blocks_at_any_byte(disk: &Disk) {
    let mut front_end = disk.connect();
    let data = Numbers::new(3).bytes(4 * disk.unit);
    let unit = disk.unit;
    let shapes: [&[usize]; 8] = [
        &[1],
        &[15, 1, 16, 17],
        &[unit - 1, 2],
        &[unit + 1],
        &[unit, unit, unit],
        &[3 * unit + 7],
        &[64, 448, 1, 1, 1, 1, 1, 1],
        &[100, 100, 100, 100, 100, 100, 100, 100, 100, 100],
    ];
    for (at, shape) in shapes.iter().enumerate() {
        let sector = disk.sector(10 * at as u64);
        for skew in [0, 1, 13] {
            let write = Request::write(sector, &data).cut(shape).skewed(skew);
            front_end.succeed(0, write);
            assert!(front_end.read(sector, data.len()) == data, "{shape:?}");
            let read = Request::read(sector, data.len()).cut(shape).skewed(skew);
            assert!(front_end.succeed(0, read).data == data, "{shape:?}");
        }
    }
}

pub fn as_many_segments_as_announced_are_served(disk: &Disk) {
    let mut front_end = disk.connect_with(Options {
        queue_size: 256,
        ..Options::default()
    });
    let seg_max = front_end.config().unwrap().seg_max as usize;
    assert!(seg_max > 0, "SEG_MAX is announced");
    let segments = seg_max.min(254);
    // The same number of bytes in each, however few: the blocks are cut up.
    let size = (16 * disk.unit).div_ceil(segments);
    let data = Numbers::new(4).bytes((size * segments).next_multiple_of(disk.unit));
    let mut cuts = vec![size; segments - 1];
    cuts[0] += data.len() - size * segments;
    let sector = disk.sector(77);
    front_end.succeed(0, Request::write(sector, &data).cut(&cuts));
    let found = front_end.succeed(0, Request::read(sector, data.len()).cut(&cuts));
    assert!(found.data == data);
}

pub fn large_requests_are_served(disk: &Disk) {
    let mut front_end = disk.connect_with(Options {
        memory: 32 << 20,
        ..Options::default()
    });
    let size_max = match front_end.config().unwrap().size_max as usize {
        0 => usize::MAX,
        limit => limit,
    };
    let mut numbers = Numbers::new(5);
    for len in [128 << 10, 1 << 20, 4 << 20] {
        let data = numbers.bytes(len);
        let segment = len.min(size_max);
        let cuts = vec![segment; len / segment];
        let sector = disk.sector(100);
        front_end.succeed(0, Request::write(sector, &data).cut(&cuts));
        let read = Request::read(sector, len).cut(&cuts);
        assert!(front_end.succeed(0, read).data == data, "{len} bytes");
    }
}

pub fn requests_in_flight_on_all_queues_do_not_mix(disk: &Disk) {
    let mut front_end = disk.connect_with(Options {
        queues: QUEUES,
        ..Options::default()
    });
    let mut numbers = Numbers::new(6);
    let per_queue = 32u64;
    let blocks = 8;
    for round in 0..4 {
        let mut expected = Vec::new();
        for at in 0..per_queue * QUEUES as u64 {
            let data = numbers.bytes(blocks * disk.unit);
            let sector = disk.sector(at * blocks as u64 + round);
            let queue = at as usize % QUEUES;
            front_end
                .submit(queue, Request::write(sector, &data).skewed(at as usize % 3))
                .unwrap();
            expected.push((sector, data));
        }
        for queue in 0..QUEUES {
            while front_end.in_flight(queue) > 0 {
                assert_eq!(front_end.complete(queue).unwrap().1.status, S_OK);
            }
        }
        // Read back on another queue than the one that wrote.
        let mut tickets = std::collections::HashMap::new();
        for (at, (sector, data)) in expected.iter().enumerate() {
            let queue = (at + 1) % QUEUES;
            let read = Request::read(*sector, data.len());
            tickets.insert(front_end.submit(queue, read).unwrap(), data);
        }
        for queue in 0..QUEUES {
            while front_end.in_flight(queue) > 0 {
                let (ticket, outcome) = front_end.complete(queue).unwrap();
                assert_eq!(outcome.status, S_OK);
                assert!(&outcome.data == tickets[&ticket], "round {round}");
            }
        }
    }
}

pub fn data_survives_a_new_connection(disk: &Disk) {
    let data = Numbers::new(7).bytes(64 * disk.unit);
    let sector = disk.sector(1000);
    for _ in 0..5 {
        let mut front_end = disk.connect();
        front_end.write(sector, &data);
        front_end.flush();
        drop(front_end);
        let mut front_end = disk.connect_with(Options {
            queue_size: 16,
            ..Options::default()
        });
        assert!(front_end.read(sector, data.len()) == data);
    }
}

pub fn a_front_end_that_leaves_in_mid_flight_tears_no_block(disk: &Disk) {
    let blocks = 256usize;
    let block = |byte: u8| vec![byte; disk.unit];
    for round in 1..6u8 {
        let mut front_end = disk.connect_with(Options {
            queue_size: 1024,
            ..Options::default()
        });
        for at in 0..blocks {
            let sector = disk.sector(at as u64 * 3);
            front_end
                .submit(0, Request::write(sector, &block(round)))
                .unwrap();
        }
        drop(front_end);
        let mut front_end = disk.connect();
        for at in 0..blocks {
            let found = front_end.read(disk.sector(at as u64 * 3), disk.unit);
            let whole = (0..=round).any(|byte| found == block(byte));
            // A sparse encrypted volume holds noise where nobody wrote.
            let never_written = found.iter().any(|byte| *byte > round) && round == 1;
            assert!(whole || never_written, "block {at} of round {round}");
        }
        // Whatever was lost: a known state for the next round.
        for at in 0..blocks {
            front_end.write(disk.sector(at as u64 * 3), &block(round));
        }
    }
    assert!(blocks as u64 * 3 * (disk.unit as u64) < CAPACITY);
}
