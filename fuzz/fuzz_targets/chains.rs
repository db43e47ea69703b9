//! Requests of a guest, laid out in descriptor chains of every form, against a real
//! server with a real disk; and a model that knows what each has to come to.
//!
//! Whatever the chain is: it is returned once, with the status and the length that the
//! model expects; the guest's memory has changed exactly where it says, and the
//! disk has the data that was written, and no other.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sealblk::units::SectorSize;
use sealblk::vhost::{Listener, Server, SocketParams};
use sealblk_fuzz::chain::{
    Descriptor, Expected, INDIRECT, NEXT, WRITE, World, endangers_rings, walk,
};
use sealblk_fuzz::disk::{self, BYTES, Shape, eventually};
use sealblk_fuzz::driver::put;
use sealblk_fuzz::front_end::{DATA, DATA_BYTES, FrontEnd};
use sealblk_fuzz::source::Source;
use vm_memory::{Bytes, GuestAddress};

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Where whole disks are read to: above what requests use.
const WHOLE: u64 = DATA + DATA_BYTES - BYTES;

/// A server that lives as long as the process, and its front end.
struct Lab {
    front_end: FrontEnd,
    world: World,
    backing: File,
    /// Where the next data and the next table go.
    data: u64,
    table: u64,
}

thread_local! {
    /// Of each kind of disk.
    static LABS: RefCell<[Option<Lab>; 4]> = const { RefCell::new([const { None }; 4]) };
}

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    let which = source.below(4);
    LABS.with_borrow_mut(|labs| {
        let lab = labs[which].get_or_insert_with(|| Lab::new(which));
        for _ in 0..24 {
            lab.submit(&mut source);
            if source.is_empty() {
                break;
            }
        }
        lab.check_disk();
    });
});

impl Lab {
    fn new(which: usize) -> Self {
        // SAFETY: no handler is set. What Rust's own start does for every program.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let shape = Shape {
            sector_size: match which & 1 {
                0 => SectorSize::B512,
                _ => SectorSize::B4096,
            },
            // One in four, of either size.
            read_only: which == 3,
            queues: 2,
        };
        let backing = disk::backing();
        let disk = Arc::new(disk::disk(&backing, shape));
        let features = disk.shape().features() | PROTOCOL_FEATURES;
        let name = format!("sealblk-chains-{}-{which}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = Listener::bind(&SocketParams {
            path: path.clone(),
            mode: 0o600,
            group: None,
        });
        let server = Server::new(disk, listener.expect("a socket")).expect("an eventfd");
        std::thread::spawn(move || server.run());
        let socket = UnixStream::connect(&path).expect("the server listens");
        let _ = std::fs::remove_file(path);
        let mut front_end = FrontEnd::new(socket, BYTES / 512, 256);
        front_end.set_up(features);
        let tables = front_end.places(0).tables.0;
        let mut lab = Lab {
            front_end,
            world: World {
                disk: vec![0; BYTES as usize],
                data: vec![0; DATA_BYTES as usize],
                sector_size: shape.sector_size,
                read_only: shape.read_only,
            },
            backing,
            data: DATA,
            table: tables,
        };
        // What nobody has written reads as zeroes.
        lab.check_disk();
        lab
    }

    /// Lays out one request, has it done, and looks at what has come of it.
    fn submit(&mut self, source: &mut Source<'_>) {
        let mut chain = self.request(source);
        let places = self.front_end.places(0);
        let indirect = source.byte() & 1 == 1;
        let first = if indirect { 0 } else { source.byte().into() };
        let first = first % (places.size - chain.len() as u16);
        link(&mut chain, first);
        if source.rarely() {
            for _ in 0..=source.below(3) {
                self.distort(&mut chain, source);
            }
        }
        let table = match indirect {
            true => self.room_for_table(chain.len() as u64),
            false => places.descriptors,
        };
        let memory = self.front_end.memory();
        for (index, descriptor) in chain.iter().enumerate() {
            let at = table + 16 * (u64::from(first) + index as u64);
            put(memory, at, &descriptor.bytes());
        }
        let mut head = first;
        if indirect {
            head = u16::from(source.byte());
            let mut outer = [Descriptor {
                address: table,
                len: 16 * chain.len() as u32,
                flags: INDIRECT,
                next: 0,
            }];
            if source.rarely() {
                self.distort(&mut outer, source);
            }
            put(
                memory,
                places.descriptors + 16 * u64::from(head),
                &outer[0].bytes(),
            );
        }
        let chain = walk(memory, places.descriptors, places.size, head);
        if chain.as_deref().is_some_and(endangers_rings) {
            return;
        }
        // Half a chain may have a part that goes there, too.
        if chain.is_none() && self.may_endanger(indirect, table) {
            return;
        }
        self.carry_out(head, chain.as_deref());
    }

    /// A broken chain is known by its parts alone, all of which have to be harmless.
    fn may_endanger(&self, indirect: bool, table: u64) -> bool {
        let places = self.front_end.places(0);
        let memory = self.front_end.memory();
        let mut all = vec![(places.descriptors, u64::from(places.size))];
        if indirect {
            all.push((table, 64));
        }
        all.into_iter().any(|(table, count)| {
            (0..count).any(|index| {
                let mut bytes = [0; 16];
                let at = GuestAddress(table + 16 * index);
                if memory.read_slice(&mut bytes, at).is_err() {
                    return true;
                }
                let address = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
                let len = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
                let one = Descriptor {
                    address,
                    len,
                    flags,
                    next: 0,
                };
                flags & WRITE != 0 && endangers_rings(&[one])
            })
        })
    }

    fn carry_out(&mut self, head: u16, chain: Option<&[Descriptor]>) -> Expected {
        let expected = self.world.carry_out(chain);
        self.front_end.offer(0, head);
        eventually("the chain is returned", || self.front_end.is_idle());
        let (id, len) = self.front_end.returned(0);
        assert_eq!(id, u32::from(head), "another chain is returned");
        let (least, most) = expected.len;
        assert!(
            (least..=most).contains(&len),
            "{len} for {expected:?} of {chain:?}"
        );
        let memory = self.front_end.memory();
        self.world.compare(memory, &expected.loose);
        if expected.disk_is_open {
            self.read_disk();
        }
        expected
    }

    /// Header, data and status of a request that is mostly right.
    fn request(&mut self, source: &mut Source<'_>) -> Vec<Descriptor> {
        let kind = source.pick(&[0u32, 1, 1, 0, 13, 4, 8, 11]);
        let kind = source.mostly(kind, Source::u32);
        let unit = self.world.sector_size.sectors();
        let capacity = BYTES / 512;
        let sector = u64::from(source.u16()) * unit % capacity;
        let sector = source.mostly(sector, |source| match source.below(3) {
            0 => capacity - u64::from(source.byte()),
            1 => u64::from(source.u16()),
            _ => source.odd_number(),
        });
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let mut chain = self.given(source, &header);
        match kind {
            0 | 1 => self.payload(kind == 0, unit * 512, source, &mut chain),
            8 => {
                let len = source.mostly(20, |source| source.byte().into());
                chain.push(self.piece(source, len, true));
            }
            11 | 13 => {
                let bytes = self.ranges(kind, unit, source);
                chain.extend(self.given(source, &bytes));
            }
            _ => {}
        }
        let merged = chain.last().is_some_and(|last| last.flags & WRITE != 0);
        match (merged && source.byte() & 1 == 1, chain.last_mut()) {
            // The status byte ends the last piece of data.
            (true, Some(last)) => last.len += 1,
            _ => chain.push(self.piece(source, 1, true)),
        }
        chain
    }

    /// Data of whole units, cut into pieces of any length.
    fn payload(
        &mut self,
        takes: bool,
        unit: u64,
        source: &mut Source<'_>,
        chain: &mut Vec<Descriptor>,
    ) {
        let mut left = (unit * (1 + u64::from(source.byte() & 15))) as u32;
        left = source.mostly(left, |source| source.u16().into());
        for last in [false, false, false, false, false, true] {
            let len = match source.below(4) {
                _ if last => left,
                0 => left,
                1 => left.min(512),
                2 => left.min(source.byte().into()),
                _ => left.min(4096),
            };
            let piece = self.piece(source, len, takes);
            if !takes {
                let fill = source.byte();
                let bytes: Vec<u8> = (0..len).map(|at| fill.wrapping_add(at as u8)).collect();
                self.write(piece.address, &bytes);
            }
            chain.push(piece);
            left -= len;
            if left == 0 {
                return;
            }
        }
    }

    fn ranges(&self, kind: u32, unit: u64, source: &mut Source<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..=source.below(4) {
            let sector = u64::from(source.u16()) * unit % (BYTES / 512);
            let most = (BYTES / 512 - sector).min(64) as u32;
            let sectors = (unit as u32 * (1 + u32::from(source.byte() & 7))).min(most);
            let sector = source.mostly(sector, Source::odd_number);
            let sectors = source.mostly(sectors, Source::u32);
            let flags = match kind {
                13 => u32::from(source.byte() & 1),
                _ => 0,
            };
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(source.mostly(flags, Source::u32).to_le_bytes());
        }
        bytes
    }

    /// Bytes that the device reads, in one or two descriptors.
    fn given(&mut self, source: &mut Source<'_>, bytes: &[u8]) -> Vec<Descriptor> {
        let cut = source.mostly(bytes.len(), |source| source.below(17).min(bytes.len()));
        let (first, second) = bytes.split_at(cut);
        let parts = [first, second].into_iter().filter(|part| !part.is_empty());
        parts
            .map(|part| {
                let piece = self.piece(source, part.len() as u32, false);
                self.write(piece.address, part);
                piece
            })
            .collect()
    }

    /// Room below where whole disks go, which nothing else in the chain uses.
    fn piece(&mut self, source: &mut Source<'_>, len: u32, writable: bool) -> Descriptor {
        let room = u64::from(len) + u64::from(source.byte() & 7);
        if self.data + room > WHOLE {
            self.data = DATA;
        }
        let address = self.data;
        self.data += room;
        Descriptor {
            address,
            len,
            flags: if writable { WRITE } else { 0 },
            next: 0,
        }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        put(self.front_end.memory(), address, bytes);
        let at = (address - DATA) as usize;
        self.world.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn room_for_table(&mut self, entries: u64) -> u64 {
        let (start, end) = self.front_end.places(0).tables;
        if self.table + 16 * 64.max(entries) > end {
            self.table = start;
        }
        let table = self.table;
        self.table += 16 * entries;
        table
    }

    /// Changes one field of one descriptor.
    fn distort(&self, chain: &mut [Descriptor], source: &mut Source<'_>) {
        let at = source.below(chain.len());
        let descriptor = &mut chain[at];
        match source.below(8) {
            0 => descriptor.flags ^= WRITE,
            1 => descriptor.flags ^= NEXT,
            2 => descriptor.flags = source.u16(),
            3 => descriptor.next = source.u16() % 300,
            4 => descriptor.len = source.odd_number() as u32,
            5 => descriptor.len = descriptor.len.wrapping_add(source.byte().into()),
            6 => descriptor.address = DATA + DATA_BYTES - u64::from(source.u16()),
            _ => descriptor.address = source.odd_number(),
        }
    }

    /// The whole disk, as the device gives it out.
    fn read_disk(&mut self) {
        let is = self.whole_disk();
        self.world.disk = is;
    }

    fn whole_disk(&mut self) -> Vec<u8> {
        let (header, status) = (DATA, DATA + 16);
        self.write(header, &[0; 16]);
        let chain = [
            (header, 16, NEXT),
            (WHOLE, BYTES as u32, NEXT | WRITE),
            (status, 1, WRITE),
        ];
        let table = self.front_end.places(0).descriptors;
        for (index, (address, len, flags)) in chain.into_iter().enumerate() {
            let descriptor = Descriptor {
                address,
                len,
                flags,
                next: index as u16 + 1,
            };
            let at = table + 16 * index as u64;
            put(self.front_end.memory(), at, &descriptor.bytes());
        }
        self.front_end.offer(0, 0);
        eventually("the disk is read", || self.front_end.is_idle());
        let memory = self.front_end.memory();
        let mut bytes = vec![0; BYTES as usize];
        memory
            .read_slice(&mut bytes, GuestAddress(WHOLE))
            .expect("there is memory");
        let told: u8 = memory.read_obj(GuestAddress(status)).expect("as above");
        assert_eq!(told, 0, "the disk cannot be read");
        self.world.data[16] = 0;
        let at = (WHOLE - DATA) as usize;
        self.world.data[at..].copy_from_slice(&bytes);
        bytes
    }

    fn check_disk(&mut self) {
        let is = self.whole_disk();
        if is != self.world.disk {
            let at = is.iter().zip(&self.world.disk).position(|(a, b)| a != b);
            panic!("the disk has other data at {at:#x?}");
        }
        assert!(
            disk::is_intact(&self.backing),
            "written outside of the disk"
        );
    }
}

fn link(chain: &mut [Descriptor], first: u16) {
    let last = chain.len().saturating_sub(1);
    for (index, descriptor) in chain[..last].iter_mut().enumerate() {
        descriptor.flags |= NEXT;
        descriptor.next = first + index as u16 + 1;
    }
}
