//! Requests that cannot be carried out get the right status, and do nothing.

use super::support::front_end::FrontEnd;
use super::support::raw_front_end::Form;
use super::support::request::{
    F_RO, Range, Request, S_IOERR, S_OK, S_UNSUPP, T_IN, T_SECURE_ERASE,
};
use super::{CAPACITY, Disk, Numbers};

/// The number of 512-byte sectors.
const SECTORS: u64 = CAPACITY / 512;

pub fn types_that_nobody_knows_are_unsupported(disk: &Disk) {
    let mut front_end = disk.connect();
    // 2, 3 and 7 were SCSI and barriers once, 10 is GET_LIFETIME.
    for kind in [2, 3, 5, 6, 7, 10, T_SECURE_ERASE, 99, 0x4000_0000, u32::MAX] {
        for (out, into) in [(0, 0), (512, 0), (0, 512), (16, 24)] {
            let request = Request::of_type(kind, &vec![7; out], into);
            let outcome = front_end.run(0, request);
            assert_eq!(outcome.status, S_UNSUPP, "type {kind}, {out}/{into}");
        }
    }
    front_end.read(0, disk.unit);
}

pub fn nothing_outside_the_disk_can_be_reached(disk: &Disk) {
    let mut front_end = disk.connect();
    let last = disk.sector(disk.blocks() - 1);
    let data = Numbers::new(11).bytes(disk.unit);
    front_end.write(last, &data);
    let two = [1; 8192];
    let units = [data.len(), 2 * data.len()];
    for sector in [
        SECTORS,
        SECTORS + disk.sector(1),
        disk.sector(1 << 40),
        // 512 times these is 0, 512 and 4096 modulo 2^64.
        1 << 55,
        (1 << 55) + 1,
        (1 << 55) + 8,
        u64::MAX / 512,
        u64::MAX - 7,
        u64::MAX,
    ] {
        for len in units {
            let read = front_end.run(0, Request::read(sector, len));
            assert_eq!(read.status, S_IOERR, "read at {sector}");
            let write = front_end.run(0, Request::write(sector, &two[..len]));
            assert_eq!(write.status, S_IOERR, "write at {sector}");
        }
    }
    // From the last block over the end.
    let read = front_end.run(0, Request::read(last, 2 * disk.unit));
    assert_eq!(read.status, S_IOERR);
    let write = front_end.run(0, Request::write(last, &two[..2 * disk.unit]));
    assert_eq!(write.status, S_IOERR);
    assert!(front_end.read(last, disk.unit) == data, "partly written");
}

pub fn partial_blocks_are_refused(disk: &Disk) {
    let mut front_end = disk.connect();
    let data = Numbers::new(12).bytes(2 * disk.unit);
    front_end.write(0, &data);
    let mut lengths = vec![1, 511, 513, disk.unit - 1, disk.unit + 1];
    if disk.unit == 4096 {
        lengths.extend([512, 4096 + 512]);
    }
    for len in lengths {
        let read = front_end.run(0, Request::read(0, len));
        assert_eq!(read.status, S_IOERR, "read of {len} bytes");
        let write = front_end.run(0, Request::write(0, &vec![9; len]));
        assert_eq!(write.status, S_IOERR, "write of {len} bytes");
    }
    if disk.unit == 4096 {
        for sector in [1, 7, 9] {
            let read = front_end.run(0, Request::read(sector, 4096));
            assert_eq!(read.status, S_IOERR, "read at {sector}");
            let write = front_end.run(0, Request::write(sector, &[9; 4096]));
            assert_eq!(write.status, S_IOERR, "write at {sector}");
        }
    }
    assert!(front_end.read(0, data.len()) == data);
}

pub fn a_request_without_data_is_answered(disk: &Disk) {
    let mut front_end = disk.connect();
    for request in [Request::read(0, 0), Request::write(0, &[])] {
        let outcome = front_end.run(0, request);
        assert!([S_OK, S_IOERR].contains(&outcome.status), "{outcome:?}");
        assert!(outcome.used_len <= 1, "{outcome:?}");
    }
    front_end.read(0, disk.unit);
}

pub fn the_identity_has_at_most_20_bytes(disk: &Disk) {
    let mut front_end = disk.connect();
    let id = front_end.id();
    assert!(!id.is_empty() && id.len() <= 20);
    assert!(id.iter().all(u8::is_ascii_graphic), "{id:?}");
    drop(front_end);
    let mut front_end = disk.connect();
    assert_eq!(front_end.id(), id, "the same in every connection");
    drop(front_end);

    // A longer buffer gets no more than 20 bytes; a shorter one no more than
    // it holds, which the guard bytes around it show.
    let mut raw = disk.connect_raw();
    for len in [0, 1, 19, 21, 512] {
        let request = Request::of_type(super::support::request::T_GET_ID, &[], len);
        let outcome = raw.run(0, request, Form::Direct);
        assert!([S_OK, S_IOERR].contains(&outcome.status), "{len} bytes");
        if outcome.status == S_OK {
            let whole = len.min(id.len());
            assert_eq!(outcome.data[..whole], id[..whole], "{len} bytes");
        }
    }
}

pub fn a_read_only_disk_stays_as_it_is(disk: &Disk) {
    let mut front_end = disk.connect();
    assert!(front_end.has(F_RO));
    let before = everything(disk, &mut front_end);
    let range = [Range::new(0, 8)];
    for request in [
        Request::write(0, &vec![1; disk.unit]),
        Request::write(disk.sector(disk.blocks() - 1), &vec![1; disk.unit]),
        Request::discard(&range),
        Request::write_zeroes(&range),
        Request::write_zeroes(&[range[0].unmap()]),
    ] {
        let kind = request.kind;
        let outcome = front_end.run(0, request);
        // Discards that are not offered at all are unsupported.
        let refused = [S_IOERR, S_UNSUPP].contains(&outcome.status);
        assert!(refused, "type {kind} gave {}", outcome.status);
        assert!(kind != 1 || outcome.status == S_IOERR);
    }
    front_end.flush();
    front_end.id();
    assert!(everything(disk, &mut front_end) == before);
    assert!(
        front_end
            .run(0, Request::of_type(T_IN, &[], 0))
            .data
            .is_empty()
    );
}

fn everything(disk: &Disk, front_end: &mut FrontEnd) -> Vec<u8> {
    let blocks = (1 << 20) / disk.unit as u64;
    let starts = (0..disk.blocks()).step_by(blocks as usize);
    starts
        .flat_map(|block| front_end.read(disk.sector(block), 1 << 20))
        .collect()
}
