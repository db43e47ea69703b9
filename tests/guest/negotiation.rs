//! What guests and sealblk agree on, with the options that operators give QEMU.

use virtio_bindings::{virtio_blk as blk, virtio_config, virtio_ring};

use crate::MIB;
use crate::machine::{Guest, Results, oldest_qemu};
use crate::server::{Server, Volume, image_in, serve_command, serve_with_sealblk};

/// Bit 34, of the packed ring.
const RING_PACKED: u32 = 34;

#[test]
fn four_large_queues_and_the_split_ring_even_if_packed_is_asked_for() {
    let server = serve(&["--queues", "4"]);
    let results = Guest::new("negotiated")
        .served_by(&server)
        .args(&["--queues", "4", "--smp", "4"])
        .args(&["--device-options", "packed=on,queue-size=1024"])
        .succeed();
    assert_eq!(results.text("queues"), "4");
    assert_eq!(results.text("read_only"), "0");
    for feature in [
        blk::VIRTIO_BLK_F_SEG_MAX,
        blk::VIRTIO_BLK_F_BLK_SIZE,
        blk::VIRTIO_BLK_F_FLUSH,
        blk::VIRTIO_BLK_F_CONFIG_WCE,
        blk::VIRTIO_BLK_F_MQ,
        blk::VIRTIO_BLK_F_WRITE_ZEROES,
        virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
        virtio_ring::VIRTIO_RING_F_EVENT_IDX,
        virtio_config::VIRTIO_F_VERSION_1,
    ] {
        assert!(has(&results, feature), "feature {feature} is missing");
    }
    for feature in [RING_PACKED, blk::VIRTIO_BLK_F_RO, blk::VIRTIO_BLK_F_DISCARD] {
        assert!(!has(&results, feature), "feature {feature} is there");
    }
}

#[test]
fn an_operator_may_keep_the_write_cache_from_the_guest() {
    let server = serve(&["--queues", "1", "--serial", "an-operator-chose-it"]);
    let results = Guest::new("negotiated")
        .served_by(&server)
        .args(&["--device-options", "config-wce=off"])
        .args(oldest_qemu())
        .succeed();
    assert!(!has(&results, blk::VIRTIO_BLK_F_CONFIG_WCE));
    assert_eq!(results.text("cache_type"), "write back");
    assert_eq!(results.text("serial"), "an-operator-chose-it");
}

#[test]
fn a_read_only_disk_is_read_only_in_the_guest() {
    let mut server = serve(&[]);
    assert!(server.terminate().success());
    let image = image_in(server.directory());
    let before = std::fs::read(&image).unwrap();
    let command = serve_command(server.directory(), &["--read-only"]);
    server.restart(command);
    let results = Guest::new("negotiated").served_by(&server).succeed();
    assert_eq!(results.text("read_only"), "1");
    assert!(has(&results, blk::VIRTIO_BLK_F_RO));
    assert!(std::fs::read(&image).unwrap() == before, "it was written");
}

#[test]
fn more_queues_than_are_served_are_refused_by_qemu() {
    let mut server = serve(&["--queues", "2"]);
    for qemu in [&[], oldest_qemu()] {
        let said = Guest::new("negotiated")
            .served_by(&server)
            .args(&["--queues", "3"])
            .args(qemu)
            .fail();
        assert!(said.contains("maximum number of queues"), "{said}");
        server.assert_running("a QEMU that wants too many queues");
    }
}

fn serve(arguments: &[&'static str]) -> Server {
    serve_with_sealblk(&Volume::new(8 * MIB, 512).serve_with(arguments))
}

fn has(results: &Results, feature: u32) -> bool {
    let bits = results.text("features");
    bits.as_bytes()[feature as usize] == b'1'
}
