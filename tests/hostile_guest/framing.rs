//! Chains that cannot be followed, or in which header or status byte cannot be
//! found: there may be no place for a status, but there is never a success.

use super::Expect::NoSuccess;
use super::support::raw_front_end::DATA;
use super::support::raw_queue::{Descriptor, NEXT, WRITE, readable, writable};
use super::support::request::*;
use super::{Case, Chain, RawFrontEnd};

/// The descriptor, with a next one.
pub fn linked(descriptor: Descriptor, next: u16) -> Descriptor {
    Descriptor {
        flags: descriptor.flags | NEXT,
        next,
        ..descriptor
    }
}

/// Descriptors just as they are, at the end of the table, which the good
/// request of the check does not come near.
fn literal(raw: &mut RawFrontEnd, descriptors: &[Descriptor]) -> Chain {
    raw.queues[0].put_literally(FIRST, descriptors);
    Chain {
        head: FIRST,
        status: None,
    }
}

/// Where [`literal`] puts the first descriptor.
const FIRST: u16 = 48;

pub const LINKS: &[Case] = &[
    Case {
        name: "a descriptor that is its own next",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = [linked(raw.head(T_OUT, 0), FIRST)];
            literal(raw, &chain)
        },
    },
    Case {
        name: "a loop of three descriptors, with a status byte in it",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let status = raw.status();
            let chain = [
                linked(raw.head(T_OUT, 0), FIRST + 1),
                linked(raw.source(512), FIRST + 2),
                linked(status, FIRST),
            ];
            Chain {
                status: Some(status.address),
                ..literal(raw, &chain)
            }
        },
    },
    Case {
        name: "a next index outside the table",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = [linked(raw.head(T_OUT, 0), 64)];
            literal(raw, &chain)
        },
    },
    Case {
        name: "a next index of 65,535",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = [
                linked(raw.head(T_IN, 0), FIRST + 1),
                linked(raw.target(512), u16::MAX),
            ];
            literal(raw, &chain)
        },
    },
    Case {
        name: "a first descriptor outside the table",
        expect: NoSuccess,
        qemu: true,
        build: |_| Chain {
            head: 64,
            status: None,
        },
    },
    Case {
        name: "a first descriptor of 65,535",
        expect: NoSuccess,
        qemu: true,
        build: |_| Chain {
            head: u16::MAX,
            status: None,
        },
    },
    Case {
        name: "a descriptor that was never filled in",
        expect: NoSuccess,
        qemu: true,
        build: |raw| literal(raw, &[Descriptor::default()]),
    },
    Case {
        name: "descriptors with every flag",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let all = Descriptor {
                flags: u16::MAX,
                next: FIRST + 1,
                ..raw.head(T_IN, 0)
            };
            literal(raw, &[all, all])
        },
    },
    Case {
        name: "memory to read behind memory to write",
        expect: NoSuccess,
        qemu: false,
        build: |raw| {
            let chain = vec![raw.target(512), raw.head(T_IN, 0), raw.source(512)];
            raw.with_status(chain)
        },
    },
];

pub const HEADERS_AND_STATUS_BYTES: &[Case] = &[
    Case {
        name: "only a status byte",
        expect: NoSuccess,
        qemu: true,
        build: |raw| raw.with_status(vec![]),
    },
    Case {
        name: "only a header",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_FLUSH, 0)];
            raw.without_status(chain)
        },
    },
    Case {
        name: "a write with no status byte",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, 0), raw.source(512)];
            raw.without_status(chain)
        },
    },
    Case {
        name: "a header of 15 bytes",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = vec![Descriptor {
                len: 15,
                ..raw.head(T_FLUSH, 0)
            }];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a header of 8 bytes and a buffer to write",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = vec![
                Descriptor {
                    len: 8,
                    ..raw.head(T_IN, 0)
                },
                raw.target(512),
            ];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a header that the device may write",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = vec![Descriptor {
                flags: WRITE,
                ..raw.head(T_FLUSH, 0)
            }];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a header in no region",
        expect: NoSuccess,
        qemu: true,
        build: |raw| raw.with_status(vec![readable(64, 16)]),
    },
    Case {
        name: "a header over the end of a region",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let end = DATA + raw.data_region().len;
            raw.with_status(vec![readable(end - 8, 16)])
        },
    },
    Case {
        name: "a status byte in no region",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let chain = vec![raw.head(T_OUT, 0), raw.source(512), writable(64, 1)];
            raw.without_status(chain)
        },
    },
    Case {
        name: "a status byte that the device may only read",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let status = raw.put(&[S_UNTOUCHED]);
            let chain = vec![raw.head(T_FLUSH, 0), readable(status, 1)];
            Chain {
                status: Some(status),
                ..raw.without_status(chain)
            }
        },
    },
    Case {
        name: "a status descriptor of no length",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let status = raw.put(&[S_UNTOUCHED]);
            let chain = vec![raw.head(T_FLUSH, 0), writable(status, 0)];
            Chain {
                status: Some(status),
                ..raw.without_status(chain)
            }
        },
    },
    Case {
        name: "a header of no length before the real one",
        expect: NoSuccess,
        qemu: false,
        build: |raw| {
            // A write beyond the end: it may not succeed by being misread.
            let at = raw.put(&header(T_OUT, super::SECTORS));
            let chain = vec![readable(at, 0), readable(at, 16), raw.source(512)];
            raw.with_status(chain)
        },
    },
];
