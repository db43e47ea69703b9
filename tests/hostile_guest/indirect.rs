//! Indirect tables that are no tables, have no end, or are in the wrong place.

use super::Expect::NoSuccess;
use super::framing::linked;
use super::support::raw_front_end::DATA;
use super::support::raw_queue::{Descriptor, INDIRECT, WRITE, indirect, link, readable};
use super::support::request::*;
use super::{Case, Chain, RawFrontEnd};

fn table(raw: &mut RawFrontEnd, table: &[Descriptor]) -> Descriptor {
    let bytes: Vec<u8> = table.iter().flat_map(Descriptor::bytes).collect();
    indirect(raw.put(&bytes), bytes.len())
}

/// A table with a good flush in it, and where its status byte is.
fn flush(raw: &mut RawFrontEnd) -> (Vec<Descriptor>, u64) {
    let status = raw.status();
    let mut chain = vec![raw.head(T_FLUSH, 0), status];
    link(0, &mut chain);
    (chain, status.address)
}

pub const INDIRECT_TABLES: &[Case] = &[
    Case {
        name: "a table in a table",
        expect: NoSuccess,
        qemu: false,
        build: |raw| {
            let (inner, status) = flush(raw);
            let inner = table(raw, &inner);
            let outer = table(raw, &[inner]);
            Chain {
                status: Some(status),
                ..raw.without_status(vec![outer])
            }
        },
    },
    Case {
        name: "a table that contains itself",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let at = raw.put(&[0; 16]);
            let itself = indirect(at, 16);
            raw.arena
                .memory
                .write((at - DATA) as usize, &itself.bytes());
            raw.without_status(vec![itself])
        },
    },
    Case {
        name: "a table of no length",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let at = raw.put(&[0; 64]);
            raw.without_status(vec![indirect(at, 0)])
        },
    },
    Case {
        name: "a table of one and a half descriptors",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let (chain, status) = flush(raw);
            let table = Descriptor {
                len: 24,
                ..table(raw, &chain)
            };
            Chain {
                status: Some(status),
                ..raw.without_status(vec![table])
            }
        },
    },
    Case {
        name: "a table in no region",
        expect: NoSuccess,
        qemu: true,
        build: |raw| raw.without_status(vec![indirect(4096, 64)]),
    },
    Case {
        name: "a table over the end of a region",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let end = DATA + raw.data_region().len;
            raw.without_status(vec![indirect(end - 16, 64)])
        },
    },
    Case {
        name: "a table of nearly 4 GiB",
        expect: NoSuccess,
        qemu: true,
        build: |raw| raw.without_status(vec![indirect(DATA, 0xffff_fff0)]),
    },
    Case {
        name: "a table that is all one long chain",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            // 65,535 readable descriptors: more than any ring has.
            let at = raw.put(&[0; 16]);
            let mut chain = vec![readable(at, 16); 65_535];
            chain.push(raw.status());
            let status = chain[65_535].address;
            link(0, &mut chain);
            let table = table(raw, &chain);
            Chain {
                status: Some(status),
                ..raw.without_status(vec![table])
            }
        },
    },
    Case {
        name: "a loop in a table",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let (mut chain, status) = flush(raw);
            chain[1] = linked(chain[1], 0);
            let table = table(raw, &chain);
            Chain {
                status: Some(status),
                ..raw.without_status(vec![table])
            }
        },
    },
    Case {
        name: "a next index outside the table",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let (mut chain, status) = flush(raw);
            chain[0].next = 2;
            let table = table(raw, &chain);
            Chain {
                status: Some(status),
                ..raw.without_status(vec![table])
            }
        },
    },
    Case {
        name: "a table in the middle of a chain, and the chain goes on",
        expect: NoSuccess,
        qemu: false,
        build: |raw| {
            let inner = [raw.source(512)];
            let table = table(raw, &inner);
            let chain = vec![raw.head(T_OUT, super::SECTORS), table];
            raw.with_status(chain)
        },
    },
    Case {
        name: "a table that the device may write",
        expect: NoSuccess,
        qemu: true,
        build: |raw| {
            let status = raw.status();
            let mut chain = vec![raw.head(T_IN, super::SECTORS), raw.target(512), status];
            link(0, &mut chain);
            let mut table = table(raw, &chain);
            table.flags = INDIRECT | WRITE;
            Chain {
                status: Some(status.address),
                ..raw.without_status(vec![table])
            }
        },
    },
];
