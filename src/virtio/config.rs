//! The configuration space and the feature bits (VIRTIO 1.3, 5.2.3 and 5.2.4).
#![forbid(unsafe_code)]

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::units::SectorSize;

/// Bytes of configuration space that are defined here: up to and including
/// the padding after `write_zeroes_may_unmap`.
pub const CONFIG_BYTES: usize = 60;

/// The offset of the `writeback` byte, the only one that a driver may write.
pub const WRITEBACK_OFFSET: u32 = 32;

/// The most data segments that one read or write is announced to have. With
/// the header and the status it fills a ring of 128, QEMU's default.
pub const SEG_MAX: u32 = 126;

/// The most bytes that one data segment is announced to have.
pub const SIZE_MAX: u32 = 1 << 20;

/// The most ranges in one DISCARD or WRITE_ZEROES request.
pub const MAX_RANGES: usize = 16;

/// The most 512-byte sectors in one range of a DISCARD request: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// The most 512-byte sectors in one range of a WRITE_ZEROES request: 64 MiB,
/// since each of them may have to be encrypted and written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;

/// The physical block that guests should align to, as a power of two times
/// the sector size: 4096 bytes in both cases.
fn physical_block_exp(sector_size: SectorSize) -> u8 {
    match sector_size {
        SectorSize::B512 => 3,
        SectorSize::B4096 => 0,
    }
}

/// What the guest is told about the disk.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size of the disk in 512-byte sectors.
    pub capacity: u64,
    /// Logical block size.
    pub sector_size: SectorSize,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether DISCARD is offered, and WRITE_ZEROES may deallocate.
    pub discard: bool,
    /// How many virtqueues there are, 1 or more.
    pub num_queues: u16,
}

impl Shape {
    /// The device features of this disk, the transport's included.
    pub fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_CONFIG_WCE,
            blk::VIRTIO_BLK_F_MQ,
        ];
        if self.read_only {
            bits.push(blk::VIRTIO_BLK_F_RO);
        } else {
            bits.push(blk::VIRTIO_BLK_F_WRITE_ZEROES);
            if self.discard {
                bits.push(blk::VIRTIO_BLK_F_DISCARD);
            }
        }
        bits.iter().fold(0, |all, bit| all | 1 << bit)
    }

    /// The configuration space, little-endian, with the given write cache mode.
    pub fn config(&self, writeback: bool) -> [u8; CONFIG_BYTES] {
        let sectors = self.sector_size.sectors() as u32;
        let mut space = [0; CONFIG_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| {
            space[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.capacity.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        // 16..20 geometry: not offered.
        put(20, &(self.sector_size.bytes() as u32).to_le_bytes());
        put(24, &[physical_block_exp(self.sector_size)]);
        // 25 alignment_offset, 26..28 min_io_size in logical blocks.
        put(26, &(8 / sectors as u16).to_le_bytes());
        // 28..32 opt_io_size: none is better than another.
        put(WRITEBACK_OFFSET as usize, &[writeback as u8]);
        put(34, &self.num_queues.to_le_bytes());
        if !self.read_only {
            if self.discard {
                put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
                put(40, &(MAX_RANGES as u32).to_le_bytes());
                put(44, &sectors.to_le_bytes());
            }
            put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
            put(52, &(MAX_RANGES as u32).to_le_bytes());
            put(56, &[self.discard as u8]);
        }
        space
    }
}

/// Whether writes may complete before they are durable, by what the driver
/// negotiated (VIRTIO 1.3, 5.2.5): never if it can neither flush nor choose, else as the
/// `writeback` byte says. Where the driver may not set the byte it stays as
/// the operator wants it: a driver that flushes is content with a disk that
/// keeps everything anyhow.
pub fn write_cache(negotiated: u64, writeback_byte: bool) -> bool {
    let has = |bit: u32| negotiated & (1 << bit) != 0;
    let chooses = has(blk::VIRTIO_BLK_F_CONFIG_WCE);
    writeback_byte && (chooses || has(blk::VIRTIO_BLK_F_FLUSH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            capacity: 0x1234,
            sector_size: SectorSize::B4096,
            read_only: false,
            discard: true,
            num_queues: 3,
        }
    }

    /// Offsets as in the `virtio_blk_config` of the Linux headers.
    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        let space = shape().config(true);
        let u32_at = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        assert_eq!(space[..8], 0x1234u64.to_le_bytes());
        assert_eq!((u32_at(8), u32_at(12)), (SIZE_MAX, SEG_MAX));
        assert_eq!((u32_at(20), space[24]), (4096, 0));
        assert_eq!(space[32], 1);
        assert_eq!(space[34..36], [3, 0]);
        assert_eq!(
            (u32_at(36), u32_at(40), u32_at(44)),
            (MAX_DISCARD_SECTORS, 16, 8)
        );
        assert_eq!((u32_at(48), u32_at(52)), (MAX_WRITE_ZEROES_SECTORS, 16));
        assert_eq!(space[56], 1);
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let features = Shape {
            read_only: true,
            ..shape()
        }
        .features();
        assert_ne!(features & (1 << blk::VIRTIO_BLK_F_RO), 0);
        assert_eq!(features & (1 << blk::VIRTIO_BLK_F_DISCARD), 0);
        assert_eq!(features & (1 << blk::VIRTIO_BLK_F_WRITE_ZEROES), 0);
    }

    #[test]
    fn the_write_cache_follows_what_was_negotiated() {
        let (flush, wce) = (
            1 << blk::VIRTIO_BLK_F_FLUSH,
            1 << blk::VIRTIO_BLK_F_CONFIG_WCE,
        );
        for (negotiated, byte, cached) in [
            (0, true, false),
            (flush, true, true),
            (flush, false, false),
            (flush | wce, true, true),
            (flush | wce, false, false),
        ] {
            assert_eq!(write_cache(negotiated, byte), cached);
        }
    }
}
