//! Copying a disk image onto a new volume.
//!
//! What the guest would have read from the image, it reads from the volume, in
//! every sector. Raw images are read by us; the others are read by `qemu-img`,
//! which knows their formats, in a process of its own. It writes to a socket of
//! ours (`nbd`) as to a disk, so that nothing of it is ever on a disk
//! unencrypted.
//!
//! The format is never guessed: a guest that has a raw disk may write on it
//! what looks like the header of another format, which may name any file of the
//! host as its base. So what looks like a format has to be called one by
//! somebody ([`Image::open`]), and images that stand on other files are refused
//! unless that is wanted.
//!
//! What enters: paths of images, and a [`Sink`] that has the volume's cipher.
//! Nothing here knows keys, key sets or headers.
#![forbid(unsafe_code)]

mod error;
mod image;
mod nbd;
mod qemu_img;
mod raw;
mod sink;

pub use error::Error;
pub use image::{Format, Image};
pub use sink::Sink;

/// Copies all of `image` to `sink`, which is at least as large; what is beyond
/// the end of the image reads as zeroes.
///
/// # Errors
/// See [`Error`].
pub fn copy(image: &Image, sink: &Sink<'_>) -> Result<(), Error> {
    // Its last sector may be the beginning of a larger unit. Zeroes come first,
    // since what `qemu-img` writes there is put into what is there.
    let rest = image.size() / sink.unit() * sink.unit();
    sink.zeroes(rest, sink.size - rest)
        .map_err(|source| sink.failed(source))?;
    match image.format() {
        Format::Raw => raw::copy(image, sink),
        Format::Other(format) => qemu_img::copy(image, format, sink),
    }
}
