//! A disk that is served answers every virtio-blk request as VIRTIO 1.2 says,
//! with every feature bit and without it.
//!
//! The cases know only a socket and the disk's size and block size. They run
//! against sealblk with both sector sizes, and against QEMU's storage daemon,
//! which shows that it is not sealblk's own idea of virtio that is tested.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "serve_requests/data.rs"]
mod data;
#[path = "serve_requests/errors.rs"]
mod errors;
#[path = "serve_requests/features.rs"]
mod features;
#[path = "serve_requests/rings.rs"]
mod rings;
#[path = "serve_requests/volume.rs"]
mod volume;
#[path = "serve_requests/zeroes.rs"]
mod zeroes;

mod support;

use support::front_end::{FrontEnd, Options};
use support::raw_front_end::{RawFrontEnd, RawOptions};
use support::server::{Server, Volume, serve_with_qemu, serve_with_sealblk};

/// Bytes of every disk here.
const CAPACITY: u64 = 32 << 20;
/// Queues of every disk here.
const QUEUES: usize = 4;

/// A served disk and what a case may know of it.
struct Disk {
    server: Server,
    /// The disk's block size in bytes.
    unit: usize,
}

impl Disk {
    fn qemu_512() -> Disk {
        Disk::qemu(512, "on")
    }

    fn qemu_4096() -> Disk {
        Disk::qemu(4096, "on")
    }

    fn qemu_read_only() -> Disk {
        Disk::qemu(512, "off")
    }

    fn qemu(unit: usize, writable: &str) -> Disk {
        let export = format!(",writable={writable},num-queues={QUEUES},logical-block-size={unit}");
        Disk {
            server: serve_with_qemu(CAPACITY, &export),
            unit,
        }
    }

    fn sealblk_512() -> Disk {
        Disk::discarding(Volume::new(CAPACITY, 512))
    }

    fn sealblk_4096() -> Disk {
        Disk::discarding(Volume::new(CAPACITY, 4096))
    }

    /// Discards need zero units: what is given back has to read as zeroes.
    fn discarding(volume: Volume) -> Disk {
        let volume = volume.create_with(&["--zero-units"]);
        Disk::sealblk(volume.serve_with(&["--discard", "pass"]))
    }

    fn sealblk_read_only() -> Disk {
        Disk::sealblk(Volume::new(CAPACITY, 512).serve_with(&["--read-only"]))
    }

    fn sealblk(volume: Volume) -> Disk {
        let volume = volume.serve_with(&["--queues", "4", "--queue-size", "1024"]);
        Disk {
            server: serve_with_sealblk(&volume),
            unit: volume.sector_size as usize,
        }
    }

    fn connect(&self) -> FrontEnd {
        self.connect_with(Options::default())
    }

    fn connect_with(&self, options: Options) -> FrontEnd {
        FrontEnd::connect(self.server.socket(), &options).unwrap()
    }

    fn connect_raw(&self) -> RawFrontEnd {
        self.connect_raw_with(RawOptions::default())
    }

    fn connect_raw_with(&self, options: RawOptions) -> RawFrontEnd {
        RawFrontEnd::connect(self.server.socket(), &options).unwrap()
    }

    /// The number of the 512-byte sector that a block starts with.
    fn sector(&self, block: u64) -> u64 {
        block * self.unit as u64 / 512
    }

    /// How many blocks the disk has.
    fn blocks(&self) -> u64 {
        CAPACITY / self.unit as u64
    }
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 up to but without `end`.
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// Runs the cases that every server passes against one kind of disk, and then
/// those that are named.
macro_rules! every_case {
    ($disk:ident $(, $room:ident::$case:ident)* $(,)?) => {
        cases! { $disk,
            $($room::$case,)*
            data::blocks_of_every_size_are_read_back,
            data::random_requests_agree_with_a_model,
            data::descriptors_may_cut_blocks_at_any_byte,
            data::as_many_segments_as_announced_are_served,
            data::large_requests_are_served,
            data::requests_in_flight_on_all_queues_do_not_mix,
            data::data_survives_a_new_connection,
            errors::types_that_nobody_knows_are_unsupported,
            errors::nothing_outside_the_disk_can_be_reached,
            errors::a_request_without_data_is_answered,
            errors::the_identity_has_at_most_20_bytes,
            features::what_the_design_promises_is_offered,
            features::each_feature_can_be_declined,
            features::the_configuration_space_is_right_at_every_length,
            features::the_write_cache_can_be_switched,
            rings::every_descriptor_layout_is_served,
            rings::used_length_counts_what_was_written,
            rings::calls_come_when_the_event_index_asks_for_them,
            rings::calls_can_be_switched_off_without_event_index,
            rings::kicks_are_wanted_whenever_the_server_sleeps,
            rings::a_ring_stops_and_goes_on_where_it_was,
            rings::indices_wrap_around,
            rings::memory_regions_come_and_go,
            zeroes::zeroes_read_back_and_neighbours_stay,
            zeroes::several_ranges_in_one_request,
            zeroes::flags_are_checked,
            zeroes::malformed_ranges_are_refused,
        }
    };
}

macro_rules! cases {
    ($disk:ident, $($room:ident::$case:ident,)*) => {
        mod $disk {
            $(#[test]
            fn $case() {
                super::$room::$case(&super::Disk::$disk());
            })*
        }
    };
}

every_case!(
    sealblk_512,
    data::a_front_end_that_leaves_in_mid_flight_tears_no_block,
    errors::partial_blocks_are_refused,
    zeroes::ranges_beyond_the_limits_are_refused,
);
every_case!(
    sealblk_4096,
    data::a_front_end_that_leaves_in_mid_flight_tears_no_block,
    errors::partial_blocks_are_refused,
    zeroes::ranges_beyond_the_limits_are_refused,
);
cases!(sealblk_read_only, errors::a_read_only_disk_stays_as_it_is,);

// QEMU 10.0's storage daemon sometimes aborts in an assertion when a front end
// leaves in mid flight, and with 4096-byte blocks it serves parts of them.
every_case!(
    qemu_512,
    errors::partial_blocks_are_refused,
    zeroes::ranges_beyond_the_limits_are_refused,
);
every_case!(qemu_4096);
cases!(qemu_read_only, errors::a_read_only_disk_stays_as_it_is,);
