//! The data path in this process, under an independent front end: what a
//! guest writes is on disk as AES-256-XTS ciphertext at the right place, comes
//! back as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;

use sealblk::crypt::Params;
use sealblk::units::SectorSize;

mod support;

use support::in_process::{BYTES, OFFSET, Served};
use support::request::{Range, Request, S_IOERR, S_OK};

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// How a disk is made: its file is on a file system, or in memory.
const MEDIA: [fn(Params, bool) -> Served; 2] = [Served::new, Served::in_memory];

#[test]
fn what_is_written_is_ciphertext_in_its_place_and_comes_back() {
    let sizes = [SectorSize::B512, SectorSize::B4096];
    for (served, sector_size) in MEDIA.iter().flat_map(|on| sizes.map(|size| (on, size))) {
        let served = served(
            Params {
                sector_size,
                ..Params::default()
            },
            false,
        );
        let before = served.plaintext();
        let mut front = served.connect(1);
        let unit = sector_size.bytes();
        let mut model = before.clone();
        // Sizes around the unit, the page, the largest block and beyond, cut
        // at places that fit nothing.
        for (sector, len, cuts) in [
            (0u64, unit, vec![]),
            (8, 3 * unit, vec![1, 100, 7]),
            (64, 65536, vec![4096; 15]),
            (1024, 256 << 10, vec![12345, 99999]),
            (2048, (1 << 20) + unit, vec![300_000, 300_001]),
            (BYTES / 512 - 8, 4096, vec![]),
        ] {
            let data = random(len);
            front.succeed(0, Request::write(sector, &data).cut(&cuts));
            let at = sector as usize * 512;
            model[at..at + len].copy_from_slice(&data);
            let back = front.succeed(0, Request::read(sector, len).cut(&cuts));
            assert!(back.data == data, "{len} bytes at {sector}");
            assert_eq!(back.used_len as usize, len + 1);
        }
        front.flush();
        assert!(served.plaintext() == model, "unit {unit}");
        let raw = std::fs::read(served.path("disk")).unwrap();
        assert!(raw[..OFFSET as usize].iter().all(|byte| *byte == 0));
        for unit in model
            .chunks(unit)
            .filter(|unit| unit.iter().any(|b| *b != 0))
            .take(8)
        {
            assert!(
                !contains(&raw, &unit[..32]),
                "plaintext in the backing file"
            );
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn discarded_and_zeroed_space_reads_as_zeroes() {
    for served in MEDIA {
        discard_and_zero(&served(
            Params {
                zero_units: true,
                ..Params::default()
            },
            true,
        ));
    }
}

fn discard_and_zero(served: &Served) {
    let mut front = served.connect(2);
    let data = random(1 << 20);
    front.write(0, &data);
    let range = Range::new;
    front.discard(&[range(16, 16), range(100, 300)]);
    front.write_zeroes(&[range(1000, 8)]);
    front.write_zeroes(&[range(1100, 8).unmap(), range(1200, 1).unmap()]);
    let mut model = data;
    for (sector, sectors) in [(16, 16), (100, 300), (1000, 8), (1100, 8), (1200, 1)] {
        model[sector * 512..(sector + sectors) * 512].fill(0);
    }
    assert!(front.read(0, 1 << 20) == model);
    // Deallocated, not written over; and written over, not deallocated.
    let raw = std::fs::read(served.path("disk")).unwrap();
    let stored = |sector: usize| &raw[OFFSET as usize + sector * 512..][..512];
    assert!(stored(104).iter().all(|byte| *byte == 0));
    assert!(stored(1000).iter().any(|byte| *byte != 0));
}

#[test]
fn a_truncated_file_is_an_error_and_never_data() {
    for served in MEDIA {
        truncate(&served(Params::default(), false));
    }
}

fn truncate(served: &Served) {
    let mut front = served.connect(1);
    front.write(0, &random(4096));
    let file = File::options()
        .write(true)
        .open(served.path("disk"))
        .unwrap();
    file.set_len(OFFSET + 4096 + 512).unwrap();
    assert_eq!(front.run(0, Request::read(0, 4096)).status, S_OK);
    // Part of it is there, part of it is not.
    for len in [1024, 65536, 1 << 20] {
        assert_eq!(front.run(0, Request::read(8, len)).status, S_IOERR);
    }
    assert_eq!(front.run(0, Request::read(0, 4096)).status, S_OK);
}

/// There is more in flight than there are buffers, and each answer is its own.
#[test]
fn many_requests_at_once_get_their_own_data() {
    for served in MEDIA {
        let served = served(Params::default(), false);
        let mut front = served.connect(1);
        let data = random(8 << 20);
        for (number, chunk) in data.chunks(256 << 10).enumerate() {
            front
                .submit(0, Request::write(number as u64 * 512, chunk))
                .unwrap();
        }
        while front.in_flight(0) > 0 {
            assert_eq!(front.complete(0).unwrap().1.status, S_OK);
        }
        let mut asked = std::collections::HashMap::new();
        for number in 0..32 {
            let id = front.submit(0, Request::read(number * 512, 256 << 10));
            asked.insert(id.unwrap(), number as usize * (256 << 10));
        }
        while front.in_flight(0) > 0 {
            let (id, answer) = front.complete(0).unwrap();
            assert_eq!(answer.status, S_OK);
            let at = asked.remove(&id).unwrap();
            assert!(answer.data == data[at..][..256 << 10], "the data at {at}");
        }
        assert!(asked.is_empty());
    }
}
