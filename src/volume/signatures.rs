//! What well-known contents of a disk look like.
//!
//! Facts of the formats, each the shortest piece that its own tools check.
#![forbid(unsafe_code)]

/// Where a signature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Bytes from the start.
    Start(u64),
    /// Bytes before the end.
    End(u64),
}

/// One signature.
#[derive(Clone, Copy, Debug)]
pub struct Signature {
    /// What it is a sign of, with its article.
    pub what: &'static str,
    /// Where it is.
    pub at: At,
    /// What is there.
    pub bytes: &'static [u8],
    /// Whether the disk is inside of it, in another form: an image format, or
    /// encryption.
    pub container: bool,
}

const fn start(what: &'static str, offset: u64, bytes: &'static [u8]) -> Signature {
    Signature {
        what,
        at: At::Start(offset),
        bytes,
        container: false,
    }
}

/// The same of what a disk is inside of.
const fn around(what: &'static str, offset: u64, bytes: &'static [u8]) -> Signature {
    Signature {
        container: true,
        ..start(what, offset, bytes)
    }
}

const fn end(what: &'static str, before: u64, bytes: &'static [u8]) -> Signature {
    Signature {
        what,
        at: At::End(before),
        bytes,
        container: false,
    }
}

const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
const LUKS2_SECOND: &str = "a second LUKS2 header";
const SWAP: &str = "swap space";
const MD_RAID: &str = "a member of an md array";
const LVM: &str = "an LVM physical volume";
const GPT: &str = "a GPT partition table";
const GPT_BACKUP: &str = "the backup of a GPT partition table";

/// The signatures, the more telling ones first: an MBR signature is also in
/// FAT and NTFS file systems, and before every GPT.
pub const SIGNATURES: &[Signature] = &[
    around(
        "a disk in pieces, which sealblk is moving",
        0,
        &crate::shift::BEGINNING,
    ),
    around("a LUKS1 header", 0, b"LUKS\xba\xbe\x00\x01"),
    around("a LUKS2 header", 0, b"LUKS\xba\xbe\x00\x02"),
    start(LUKS2_SECOND, 0x4000, b"SKUL\xba\xbe"),
    start(LUKS2_SECOND, 0x8000, b"SKUL\xba\xbe"),
    start(LUKS2_SECOND, 0x1_0000, b"SKUL\xba\xbe"),
    start(LUKS2_SECOND, 0x2_0000, b"SKUL\xba\xbe"),
    start(LUKS2_SECOND, 0x4_0000, b"SKUL\xba\xbe"),
    start(LUKS2_SECOND, 0x8_0000, b"SKUL\xba\xbe"),
    start(LUKS2_SECOND, 0x10_0000, b"SKUL\xba\xbe"),
    start(LUKS2_SECOND, 0x20_0000, b"SKUL\xba\xbe"),
    start(LUKS2_SECOND, 0x40_0000, b"SKUL\xba\xbe"),
    around("a qcow2 image", 0, b"QFI\xfb"),
    around("a VMDK image", 0, b"KDMV"),
    around("a VMDK image", 0, b"COWD"),
    around("a VMDK descriptor", 0, b"# Disk DescriptorFile"),
    around("a VHDX image", 0, b"vhdxfile"),
    around("a VHD image", 0, b"conectix"),
    end("a VHD image", 512, b"conectix"),
    around("a VDI image", 0x40, b"\x7f\x10\xda\xbe"),
    around("a QED image", 0, b"QED\0"),
    around("a Parallels image", 0, b"WithoutFreeSpace"),
    around("a Parallels image", 0, b"WithouFreSpacExt"),
    around("a BitLocker volume", 3, b"-FVE-FS-"),
    start("an NTFS file system", 3, b"NTFS    "),
    start("an exFAT file system", 3, b"EXFAT   "),
    start("a FAT file system", 0x36, b"FAT12   "),
    start("a FAT file system", 0x36, b"FAT16   "),
    start("a FAT file system", 0x52, b"FAT32   "),
    start("an XFS file system", 0, b"XFSB"),
    start("an ext2, ext3 or ext4 file system", 0x438, b"\x53\xef"),
    start("a Btrfs file system", 0x1_0040, b"_BHRfS_M"),
    start("a bcachefs file system or bcache device", 0x1018, BCACHE),
    start("an F2FS file system", 0x400, b"\x10\x20\xf5\xf2"),
    start("an EROFS file system", 0x400, b"\xe2\xe1\xf5\xe0"),
    start("a SquashFS file system", 0, b"hsqs"),
    start("a JFS file system", 0x8000, b"JFS1"),
    start("a ReiserFS file system", 0x1_0034, b"ReIsEr"),
    start(
        "a GFS2 file system",
        0x1_0000,
        b"\x01\x16\x19\x70\0\0\0\x01",
    ),
    start("an ISO 9660 file system", 0x8001, b"CD001"),
    start("a UDF file system", 0x8001, b"BEA01"),
    start(SWAP, 0xff6, b"SWAPSPACE2"),
    start(SWAP, 0xff6, b"SWAP-SPACE"),
    start(SWAP, 0xfff6, b"SWAPSPACE2"),
    start(LVM, 0, b"LABELONE"),
    start(LVM, 0x200, b"LABELONE"),
    start(LVM, 0x400, b"LABELONE"),
    start(LVM, 0x600, b"LABELONE"),
    start(MD_RAID, 0, b"\xfc\x4e\x2b\xa9"),
    start(MD_RAID, 0x1000, b"\xfc\x4e\x2b\xa9"),
    start(GPT, 0x200, b"EFI PART"),
    start(GPT, 0x1000, b"EFI PART"),
    end(GPT_BACKUP, 0x200, b"EFI PART"),
    end(GPT_BACKUP, 0x1000, b"EFI PART"),
    start("an MBR partition table or boot sector", 0x1fe, b"\x55\xaa"),
];

/// Where the superblock of an md array of an old format is: its place
/// depends on the length of the device in more than one way.
pub fn md_at_end(length: u64) -> [Option<u64>; 2] {
    let version_1_0 = (length / 512)
        .checked_sub(16)
        .map(|sector| (sector & !7) * 512);
    let version_0_90 = (length & !0xffff).checked_sub(0x1_0000);
    [version_1_0, version_0_90]
}

/// What an md superblock at the end begins with.
pub const MD_MAGIC: &[u8] = b"\xfc\x4e\x2b\xa9";

/// The name of what [`md_at_end`] finds.
pub const MD_WHAT: &str = MD_RAID;
