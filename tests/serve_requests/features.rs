//! Feature bits and the configuration space.

use super::support::front_end::Options;
use super::support::raw_front_end::{Form, RawOptions};
use super::support::request::*;
use super::{CAPACITY, Disk, Numbers, QUEUES};

pub fn what_the_design_promises_is_offered(disk: &Disk) {
    let front_end = disk.connect();
    for (name, feature) in [
        ("VERSION_1", F_VERSION_1),
        ("INDIRECT_DESC", F_INDIRECT_DESC),
        ("EVENT_IDX", F_EVENT_IDX),
        ("MQ", F_MQ),
        ("SIZE_MAX", F_SIZE_MAX),
        ("SEG_MAX", F_SEG_MAX),
        ("BLK_SIZE", F_BLK_SIZE),
        ("TOPOLOGY", F_TOPOLOGY),
        ("FLUSH", F_FLUSH),
        ("CONFIG_WCE", F_CONFIG_WCE),
        ("DISCARD", F_DISCARD),
        ("WRITE_ZEROES", F_WRITE_ZEROES),
    ] {
        assert!(front_end.has(feature), "{name} is not offered");
    }
    assert!(!front_end.has(F_RO), "a writable disk is not read-only");
    assert!(front_end.max_queues() >= Some(QUEUES));

    let config = front_end.config().unwrap();
    assert_eq!(config.capacity, CAPACITY / 512);
    assert_eq!(config.blk_size as usize, disk.unit);
    assert_eq!(usize::from(config.num_queues), QUEUES);
    assert!(config.max_discard_seg >= 1 && config.max_discard_sectors >= 8);
    assert!(config.max_write_zeroes_seg >= 1 && config.max_write_zeroes_sectors >= 8);
    let alignment = config.discard_sector_alignment;
    assert!(alignment > 0 && u64::from(alignment) % disk.sector(1) == 0);
}

/// Some guests know few features: SeaBIOS takes VERSION_1 and little more.
pub fn each_feature_can_be_declined(disk: &Disk) {
    let optional = [
        F_INDIRECT_DESC,
        F_EVENT_IDX,
        F_MQ,
        F_SIZE_MAX,
        F_SEG_MAX,
        F_BLK_SIZE,
        F_TOPOLOGY,
        F_FLUSH,
        F_CONFIG_WCE,
        F_FLUSH | F_CONFIG_WCE,
        F_DISCARD,
        F_WRITE_ZEROES,
        ALL_FEATURES & !(F_VERSION_1 | F_PROTOCOL_FEATURES),
    ];
    let mut numbers = Numbers::new(21);
    for declined in optional {
        let mut front_end = disk.connect_with(Options::without(declined));
        assert!(!front_end.has(declined), "{declined:#x} was forced");
        let data = numbers.bytes(8 * disk.unit);
        front_end.write(disk.sector(3), &data);
        assert!(front_end.read(disk.sector(3), data.len()) == data);
        // Without FLUSH a driver sends none, but an answer is due all the same.
        let flushed = front_end.run(0, Request::flush()).status;
        if front_end.has(F_FLUSH) {
            assert_eq!(flushed, S_OK);
        } else {
            assert!([S_OK, S_UNSUPP].contains(&flushed), "{flushed}");
        }
        front_end.config().unwrap();
    }
}

pub fn the_configuration_space_is_right_at_every_length(disk: &Disk) {
    let mut raw = disk.connect_raw();
    let whole = raw.config_bytes(0, 60).unwrap();
    // 60 bytes are what older QEMU asks for, 57 what newer does, 36 is the
    // space before DISCARD, and 8 the capacity alone.
    for len in [57, 36, 33, 8] {
        let part = raw.config_bytes(0, len).unwrap();
        assert!(part == whole[..len], "{len} bytes");
    }
    assert_eq!(Config::parse(&whole), raw.config().unwrap());
}

pub fn the_write_cache_can_be_switched(disk: &Disk) {
    let mut numbers = Numbers::new(22);
    let mut raw = disk.connect_raw();
    for on in [true, false, false, true] {
        raw.set_writeback(on).unwrap();
        assert_eq!(raw.config().unwrap().writeback, u8::from(on));
        let data = numbers.bytes(3 * disk.unit);
        raw.succeed(0, Request::write(0, &data), Form::Direct);
        let found = raw.succeed(0, Request::read(0, data.len()), Form::Direct);
        assert!(found.data == data);
        raw.succeed(0, Request::flush(), Form::Direct);
    }
    drop(raw);
    // Declined, the byte means nothing, and the disk still works.
    let mut raw = disk.connect_raw_with(RawOptions::without(F_CONFIG_WCE));
    raw.succeed(0, Request::write(0, &vec![1; disk.unit]), Form::Direct);
    raw.succeed(0, Request::flush(), Form::Direct);
}
