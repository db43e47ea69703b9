//! Chains whose header and status byte are in order, and whose data is not:
//! each gets an error status.

use super::Expect::{NoSuccess, Status};
use super::support::raw_front_end::{DATA, RINGS, RINGS_LEN};
use super::support::raw_queue::{readable, writable};
use super::support::request::*;
use super::{Case, SECTORS};

pub const DIRECTIONS_AND_LENGTHS: &[Case] = &[
    Case {
        name: "a read into memory that is for reading only",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let chain = vec![raw.head(T_IN, 0), raw.source(512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write from memory that is for writing",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, 0), raw.target(512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write with a buffer of each direction",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, 0), raw.source(511), raw.target(1)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a read of 511 bytes",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_IN, 0), raw.target(511)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write of 513 bytes in three pieces",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![
                raw.head(T_OUT, 0),
                raw.source(1),
                raw.source(511),
                raw.source(1),
            ];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a type that does not exist, with a megabyte each way",
        expect: Status(S_UNSUPP),
        qemu: true,
        build: |raw| {
            let chain = vec![
                raw.head(0x1234_5678, u64::MAX),
                raw.source(1 << 20),
                raw.target(1 << 20),
            ];
            raw.with_status(chain)
        },
    },
];

pub const ADDRESSES: &[Case] = &[
    Case {
        name: "a read to an address in no region",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let chain = vec![raw.head(T_IN, 0), writable(0x10, 512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write from an address in no region",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, 0), readable(DATA - 512, 512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a read over the end of a region",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let end = DATA + raw.data_region().len;
            let chain = vec![raw.head(T_IN, 0), writable(end - 256, 512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write from the hole between two regions",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let end = RINGS + RINGS_LEN as u64;
            let chain = vec![raw.head(T_OUT, 0), readable(end - 4, 512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "an address and length that wrap around",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let chain = vec![raw.head(T_IN, 0), writable(u64::MAX - 255, 512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a user address in place of a guest address",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let user = raw.data_region().user;
            let chain = vec![raw.head(T_IN, 0), writable(user, 512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a buffer of nearly 4 GiB",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let chain = vec![raw.head(T_IN, 0), writable(DATA, 0xffff_fe00)];
            raw.with_status(chain)
        },
    },
    Case {
        // The walk over a chain ends where it gets longer than 2^32 bytes
        // (VIRTIO 1.3, 2.7.4.2), so that its status byte is not found.
        name: "lengths whose sum wraps around in 32 bits",
        expect: NoSuccess,
        qemu: false,
        build: |raw| {
            let chain = vec![
                raw.head(T_OUT, 0),
                readable(DATA, 0xffff_fe00),
                readable(DATA, 0x400),
            ];
            raw.with_status(chain)
        },
    },
    Case {
        name: "one good and one bad address",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, 0), raw.source(512), readable(0, 512)];
            raw.with_status(chain)
        },
    },
];

pub const SECTORS_OUT_OF_RANGE: &[Case] = &[
    Case {
        name: "a read behind the end",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_IN, SECTORS), raw.target(512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write over the end",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, SECTORS - 1), raw.source(1024)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write whose byte offset is 0 modulo 2^64",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, 1 << 55), raw.source(512)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write whose last sector is 0 modulo 2^64",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, u64::MAX), raw.source(1024)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a write at a negative sector",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, (-8i64) as u64), raw.source(4096)];
            raw.with_status(chain)
        },
    },
];

fn ranges(raw: &mut super::RawFrontEnd, kind: u32, ranges: &[Range]) -> super::Chain {
    let bytes = Range::bytes(ranges);
    let list = readable(raw.put(&bytes), bytes.len());
    let chain = vec![raw.head(kind, 0), list];
    raw.with_status(chain)
}

pub const RANGES: &[Case] = &[
    Case {
        name: "zeroes behind the end",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| ranges(raw, T_WRITE_ZEROES, &[Range::new(SECTORS, 8)]),
    },
    Case {
        name: "zeroes over all of a larger disk",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| ranges(raw, T_WRITE_ZEROES, &[Range::new(0, u32::MAX)]),
    },
    Case {
        name: "zeroes whose end wraps around",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| ranges(raw, T_WRITE_ZEROES, &[Range::new(u64::MAX, 1)]),
    },
    Case {
        name: "65,536 ranges of zeroes, each behind the end",
        expect: Status(S_IOERR),
        qemu: false,
        build: |raw| ranges(raw, T_WRITE_ZEROES, &vec![Range::new(SECTORS, 1); 65_536]),
    },
    Case {
        name: "zeroes with flags that nobody knows",
        expect: Status(S_UNSUPP),
        qemu: true,
        build: |raw| {
            let flags = 0xffff_fff0;
            let range = Range {
                flags,
                ..Range::new(0, 8)
            };
            ranges(raw, T_WRITE_ZEROES, &[range])
        },
    },
    Case {
        name: "a range cut off in the middle",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_WRITE_ZEROES, 0), raw.source(9)];
            raw.with_status(chain)
        },
    },
    Case {
        name: "zeroes with no range at all",
        expect: Status(S_IOERR),
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_WRITE_ZEROES, 0)];
            raw.with_status(chain)
        },
    },
];
