//! virtio-blk requests, feature bits and configuration, as VIRTIO 1.2
//! section 5.2 defines them. Written down here a second time on purpose: a
//! constant that sealblk has wrong must not be wrong in its tests as well.

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;
pub const T_SECURE_ERASE: u32 = 14;

pub const S_OK: u8 = 0;
pub const S_IOERR: u8 = 1;
pub const S_UNSUPP: u8 = 2;
/// What a status byte holds before the server writes to it. It is no status,
/// so that a server that forgets to write one cannot look like a success.
pub const S_UNTOUCHED: u8 = 0xee;

pub const F_SIZE_MAX: u64 = 1 << 1;
pub const F_SEG_MAX: u64 = 1 << 2;
pub const F_RO: u64 = 1 << 5;
pub const F_BLK_SIZE: u64 = 1 << 6;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_TOPOLOGY: u64 = 1 << 10;
pub const F_CONFIG_WCE: u64 = 1 << 11;
pub const F_MQ: u64 = 1 << 12;
pub const F_DISCARD: u64 = 1 << 13;
pub const F_WRITE_ZEROES: u64 = 1 << 14;
pub const F_INDIRECT_DESC: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
pub const F_VERSION_1: u64 = 1 << 32;
pub const F_RING_PACKED: u64 = 1 << 34;

/// Every feature bit that the front ends can drive.
pub const ALL_FEATURES: u64 = F_SIZE_MAX
    | F_SEG_MAX
    | F_RO
    | F_BLK_SIZE
    | F_FLUSH
    | F_TOPOLOGY
    | F_CONFIG_WCE
    | F_MQ
    | F_DISCARD
    | F_WRITE_ZEROES
    | F_INDIRECT_DESC
    | F_EVENT_IDX
    | F_PROTOCOL_FEATURES
    | F_VERSION_1;

/// In a segment of WRITE_ZEROES: the range may be deallocated.
pub const UNMAP: u32 = 1;

/// The sector that request headers count in, whatever the disk's block size.
pub const SECTOR: usize = 512;

/// One range of a DISCARD or WRITE_ZEROES request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub sector: u64,
    pub sectors: u32,
    pub flags: u32,
}

impl Range {
    pub fn new(sector: u64, sectors: u32) -> Self {
        Range {
            sector,
            sectors,
            flags: 0,
        }
    }

    pub fn unmap(self) -> Self {
        Range {
            flags: UNMAP,
            ..self
        }
    }

    pub fn bytes(ranges: &[Range]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ranges.len() * 16);
        for range in ranges {
            bytes.extend(range.sector.to_le_bytes());
            bytes.extend(range.sectors.to_le_bytes());
            bytes.extend(range.flags.to_le_bytes());
        }
        bytes
    }
}

/// A request as a driver would make it: header, data either way, and how the
/// data is cut into descriptors.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: u32,
    pub sector: u64,
    /// What the server reads.
    pub out: Vec<u8>,
    /// How many bytes the server may write, the status byte not counted.
    pub in_len: usize,
    /// Sizes of the data's segments; what is left over forms the last one.
    pub cuts: Vec<usize>,
    /// How far the segments start behind a multiple of 64 bytes.
    pub skew: usize,
}

impl Request {
    fn new(kind: u32, sector: u64, out: Vec<u8>, in_len: usize) -> Self {
        Request {
            kind,
            sector,
            out,
            in_len,
            cuts: Vec::new(),
            skew: 0,
        }
    }

    pub fn read(sector: u64, len: usize) -> Self {
        Self::new(T_IN, sector, Vec::new(), len)
    }

    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self::new(T_OUT, sector, data.to_vec(), 0)
    }

    pub fn flush() -> Self {
        Self::new(T_FLUSH, 0, Vec::new(), 0)
    }

    pub fn get_id() -> Self {
        Self::new(T_GET_ID, 0, Vec::new(), 20)
    }

    pub fn discard(ranges: &[Range]) -> Self {
        Self::new(T_DISCARD, 0, Range::bytes(ranges), 0)
    }

    pub fn write_zeroes(ranges: &[Range]) -> Self {
        Self::new(T_WRITE_ZEROES, 0, Range::bytes(ranges), 0)
    }

    /// A request of any type, with whatever data.
    pub fn of_type(kind: u32, out: &[u8], in_len: usize) -> Self {
        Self::new(kind, 0, out.to_vec(), in_len)
    }

    /// Cuts the data into segments of these sizes.
    pub fn cut(mut self, sizes: &[usize]) -> Self {
        self.cuts = sizes.to_vec();
        self
    }

    /// Lets segments start at odd addresses.
    pub fn skewed(mut self, skew: usize) -> Self {
        self.skew = skew;
        self
    }

    pub fn header(&self) -> [u8; 16] {
        header(self.kind, self.sector)
    }
}

/// The 16 bytes that every request starts with.
pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: u8,
    /// `len` of the used ring entry: how many bytes the server says it wrote.
    pub used_len: u32,
    /// What stands in the writable segments, without the status byte.
    pub data: Vec<u8>,
}

/// The configuration space, `struct virtio_blk_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub capacity: u64,
    pub size_max: u32,
    pub seg_max: u32,
    pub blk_size: u32,
    pub writeback: u8,
    pub num_queues: u16,
    pub max_discard_sectors: u32,
    pub max_discard_seg: u32,
    pub discard_sector_alignment: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_write_zeroes_seg: u32,
    pub write_zeroes_may_unmap: u8,
}

/// Where `writeback` stands in the configuration space.
pub const CONFIG_WRITEBACK: u32 = 32;
/// The part of the configuration space up to `write_zeroes_may_unmap`. QEMU
/// before 8.1 asks for the 60 bytes that its padding makes of it.
pub const CONFIG_BYTES: usize = 57;

impl Config {
    /// Reads at least [`CONFIG_BYTES`] bytes.
    pub fn parse(bytes: &[u8]) -> Self {
        assert!(bytes.len() >= CONFIG_BYTES, "{} bytes", bytes.len());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Config {
            capacity: u64::from_le_bytes(bytes[0..8].try_into().unwrap()),
            size_max: u32_at(8),
            seg_max: u32_at(12),
            blk_size: u32_at(20),
            writeback: bytes[CONFIG_WRITEBACK as usize],
            num_queues: u16_at(34),
            max_discard_sectors: u32_at(36),
            max_discard_seg: u32_at(40),
            discard_sector_alignment: u32_at(44),
            max_write_zeroes_sectors: u32_at(48),
            max_write_zeroes_seg: u32_at(52),
            write_zeroes_may_unmap: bytes[56],
        }
    }
}
