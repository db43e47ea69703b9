//! What stands at the start of the file while the disk in it is in pieces, so
//! that nobody takes it for a disk: no firmware, kernel or tool finds a partition
//! table or file system there, and people find out what to do.
#![forbid(unsafe_code)]

use uuid::Uuid;

use super::{Error, Land, Way};
use crate::units::SECTOR_BYTES;

/// What the mark begins with.
pub const BEGINNING: [u8; 15] = *b"SEALBLK MOVING ";

const BYTES: usize = SECTOR_BYTES as usize;

/// The first sector of a disk in pieces.
fn sector(id: Uuid, way: Way) -> [u8; BYTES] {
    let (doing, command) = match way {
        Way::Up => ("encrypted", "encrypt"),
        Way::Down => ("decrypted", "decrypt"),
    };
    let text = format!(
        "SEALBLK MOVING {id}\n\
         This disk is being {doing} by sealblk, and is in pieces now. Nothing is lost:\n\
         go on with `sealblk volume {command}`, as it was begun. Until it is done,\n\
         the header of the disk is in a file beside, without which its data is lost.\n"
    );
    debug_assert!(text.as_bytes().starts_with(&BEGINNING));
    let mut sector = [0; BYTES];
    let length = text.len().min(BYTES);
    sector[..length].copy_from_slice(&text.as_bytes()[..length]);
    sector
}

/// Whether the mark of this operation is there.
///
/// # Errors
/// [`Error::Io`].
pub fn is_there(disk: &dyn Land, id: Uuid, way: Way) -> Result<bool, Error> {
    let mut bytes = [0; BYTES];
    let read = disk.read(&mut bytes, 0);
    read.map_err(Error::io("read the disk"))?;
    Ok(bytes == sector(id, way))
}

/// Puts the mark there, durably, over `length` bytes which are kept elsewhere.
/// The first sector comes first: by it one knows that they are.
///
/// # Errors
/// [`Error::Io`].
pub fn put(disk: &dyn Land, id: Uuid, way: Way, length: usize) -> Result<(), Error> {
    let rest = vec![0; length.saturating_sub(BYTES)];
    disk.write(&sector(id, way), 0)
        .and_then(|()| disk.sync())
        .and_then(|()| disk.write(&rest, BYTES as u64))
        .and_then(|()| disk.sync())
        .map_err(Error::io("write to the disk"))
}

/// Puts `head` in its place, durably. The first sector comes last: as long as
/// the mark is there, one knows that this is to be done.
///
/// # Errors
/// [`Error::Io`].
pub fn replace(disk: &dyn Land, head: &[u8]) -> Result<(), Error> {
    let (first, rest) = head.split_at(BYTES.min(head.len()));
    disk.write(rest, BYTES as u64)
        .and_then(|()| disk.sync())
        .and_then(|()| disk.write(first, 0))
        .and_then(|()| disk.sync())
        .map_err(Error::io("write to the disk"))
}
