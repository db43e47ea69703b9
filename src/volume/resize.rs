//! Another size for a volume.
//!
//! The size stands in the header, and is what counts: what the data file has
//! beyond it is neither read nor written. So the order is
//!
//! - to grow: the file gets longer, and that is on stable storage
//!   ([`Volume::extend`]); then the header says so ([`Volume::set_size`]);
//! - to shrink: the header says so; then the file gets shorter
//!   ([`Volume::cut_off`]).
//!
//! The header is replaced as every update of it is. So at each instant one
//! header counts, the old or the new one, and the file is as long as either
//! says. While the data is being re-encrypted the size stays: the keys of the
//! journal are derived from it. What a crash leaves is a file that is longer than it has to be, which
//! repeating the change mends.
#![forbid(unsafe_code)]

use rustix::fs::{FallocateFlags, fallocate};

use super::description::Layout;
use super::error::Error;
use super::occupied::data_between;
use super::open::Volume;
use crate::units::Bytes;

/// What would be lost by making a volume smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Bytes that the guest would not see any more.
    pub bytes: u64,
    /// How many of them are stored as something else than zeroes.
    pub written: u64,
}

/// Whether a disk of that size can be, as far as the size itself goes.
///
/// # Errors
/// [`Error::Size`].
pub fn check_size(layout: &Layout, size: u64) -> Result<(), Error> {
    let unit = layout.sector_size.bytes() as u64;
    let wrong = |why: String, next: String| Err(Error::Size { why, next });
    if size == 0 {
        return wrong(
            "a volume has at least one sector".into(),
            format!("say {unit} or more"),
        );
    }
    if !size.is_multiple_of(unit) {
        let below = size / unit * unit;
        return wrong(
            format!("{size} bytes are not a number of sectors of {unit} bytes"),
            format!("say {} or {}", below.max(unit), below.saturating_add(unit)),
        );
    }
    let end = layout.data_offset.checked_add(size);
    match end.is_some_and(|end| i64::try_from(end).is_ok()) {
        true => Ok(()),
        false => wrong(
            "no file can be that large".into(),
            "choose a smaller size".into(),
        ),
    }
}

impl Volume {
    /// Whether the data is on a block device.
    pub fn is_block(&self) -> bool {
        self.devices.data.is_block()
    }

    /// The largest size that the data file has room for as it is.
    ///
    /// # Errors
    /// When its length cannot be found.
    pub fn room(&self) -> Result<u64, Error> {
        let layout = self.layout();
        let unit = layout.sector_size.bytes() as u64;
        let length = self.devices.data.len()?;
        Ok(length.saturating_sub(layout.data_offset) / unit * unit)
    }

    /// Makes the data file long enough for a disk of `size` bytes, durably; with
    /// `preallocate`, the new space is reserved. It never gets shorter.
    ///
    /// # Errors
    /// [`Error::UnderWay`]; [`Error::Size`] for a size that cannot be, [`Error::TooSmall`] for a
    /// block device that has not so much, [`Error::Io`].
    pub fn extend(&self, size: u64, preallocate: bool) -> Result<(), Error> {
        let layout = self.layout();
        let _here = self.keep_here()?;
        self.check_writable()?;
        self.check_settled("resize")?;
        check_size(&layout, size)?;
        let (data, end) = (&self.devices.data, layout.data_offset + size);
        let actual = data.len()?;
        if data.is_block() {
            if preallocate {
                return Err(Error::Size {
                    why: "a block device has its space already".into(),
                    next: "leave the preallocation out".into(),
                });
            }
            return match actual < end {
                true => Err(Error::TooSmall {
                    path: data.path().into(),
                    actual,
                    needed: end,
                }),
                false => Ok(()),
            };
        }
        if actual < end {
            let extended = data.file().set_len(end);
            extended.map_err(|error| data.error("set the length of", error))?;
        }
        if preallocate && size > layout.size {
            let (from, bytes) = (layout.end(), size - layout.size);
            let reserved = fallocate(data.file(), FallocateFlags::empty(), from, bytes);
            reserved.map_err(|error| data.error("reserve the space of", error))?;
        }
        // The header must not say what the file may lose.
        let synced = data.file().sync_all();
        synced.map_err(|error| data.error("synchronise", error))
    }

    /// Writes into the header that the guest sees `size` bytes. After a crash at
    /// any instant the header has either the old or the new size.
    ///
    /// # Errors
    /// As [`Volume::set_token`]; [`Error::UnderWay`]; [`Error::TooSmall`] if the data file does not
    /// reach so far.
    pub fn set_size(&mut self, size: u64) -> Result<(), Error> {
        let layout = self.layout();
        self.check_settled("resize")?;
        check_size(&layout, size)?;
        let needed = layout.data_offset + size;
        let actual = self.devices.data.len()?;
        if actual < needed {
            return Err(Error::TooSmall {
                path: self.devices.data.path().into(),
                actual,
                needed,
            });
        }
        if size == layout.size {
            return self.check_writable();
        }
        self.rewrite(|header| header.metadata.set_segment_size(size))
    }

    /// Gives back what the data file has beyond the end of the disk. A block
    /// device keeps it. Returns how many bytes that are.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::UnderWay`], [`Error::Io`].
    pub fn cut_off(&self) -> Result<u64, Error> {
        self.check_writable()?;
        self.check_settled("resize")?;
        let (data, end) = (&self.devices.data, self.layout().end());
        let actual = data.len()?;
        if data.is_block() || actual <= end {
            return Ok(0);
        }
        let cut = data
            .file()
            .set_len(end)
            .and_then(|()| data.file().sync_all());
        cut.map_err(|error| data.error("set the length of", error))?;
        Ok(actual - end)
    }

    /// What would be lost with `size` bytes. What stands there is encrypted, so
    /// that nobody can see what it is without the key; but space that was never
    /// written, or was given back, is a hole or zeroes.
    ///
    /// # Errors
    /// When reading fails.
    pub fn loss(&self, size: u64) -> Result<Loss, Error> {
        let layout = self.layout();
        let from = layout.data_offset.saturating_add(size).min(layout.end());
        let data = &self.devices.data;
        let written = data_between(data, from, layout.end());
        Ok(Loss {
            bytes: layout.end() - from,
            written: written.map_err(|error| data.error("read", error))?,
        })
    }

    fn check_writable(&self) -> Result<(), Error> {
        match self.access() {
            super::Access::ReadWrite => Ok(()),
            super::Access::ReadOnly => Err(Error::ReadOnly {
                path: self.data_path().into(),
            }),
        }
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = Bytes(self.bytes);
        match self.written {
            0 => write!(f, "the last {bytes}, in which nothing is stored"),
            written => write!(
                f,
                "the last {bytes}, in which {} hold data, or what was data once",
                Bytes(written)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Dek;
    use crate::volume::{Access, CreateOptions, Location, Plan, Wrap};
    use std::os::unix::fs::FileExt as _;

    const SIZE: u64 = 1 << 20;
    const AREA: u64 = 64 << 10;

    fn volume(detached: bool) -> (tempfile::TempDir, Location, Volume) {
        let directory = tempfile::tempdir().unwrap();
        let location = Location {
            data: directory.path().join("data"),
            header: detached.then(|| directory.path().join("header")),
        };
        let options = CreateOptions {
            size: Some(Bytes(SIZE)),
            header_area: Bytes(AREA),
            ..CreateOptions::default()
        };
        let plan = Plan::new(&location, options).unwrap();
        let wrap: Wrap = serde_json::from_value(serde_json::json!({
            "key_set": "default", "provider": "file", "key_id": "k", "key_version": "v",
            "alg": "A256GCM", "bound": "aad:1", "bytes": "AAAA",
        }))
        .unwrap();
        let dek = Dek::generate().unwrap();
        let volume = plan.write(&dek, "default", vec![wrap]).unwrap();
        (directory, location, volume)
    }

    #[test]
    fn a_volume_grows_and_shrinks_in_its_header_and_its_file() {
        for detached in [false, true] {
            let (_directory, location, mut volume) = volume(detached);
            let offset = if detached { 0 } else { AREA };
            let length = || std::fs::metadata(&location.data).unwrap().len();
            volume.extend(3 * SIZE, false).unwrap();
            assert_eq!(volume.layout().size, SIZE, "the header still says so");
            assert_eq!(length(), offset + 3 * SIZE);
            assert_eq!(volume.room().unwrap(), 3 * SIZE);
            volume.set_size(3 * SIZE).unwrap();
            assert_eq!(volume.layout().size, 3 * SIZE);
            drop(volume);
            let mut volume = Volume::open(&location, Access::ReadWrite).unwrap();
            assert_eq!(volume.layout().size, 3 * SIZE);
            // Two updates, one for each copy; nothing was to be repaired.
            assert_eq!((volume.description().seqid, volume.repaired()), (2, None));

            volume.set_size(SIZE).unwrap();
            assert_eq!(length(), offset + 3 * SIZE);
            assert_eq!(volume.cut_off().unwrap(), 2 * SIZE);
            assert_eq!((length(), volume.cut_off().unwrap()), (offset + SIZE, 0));
            drop(volume);
            let volume = Volume::open(&location, Access::ReadOnly).unwrap();
            assert_eq!(volume.layout().size, SIZE);
            assert!(matches!(
                volume.extend(SIZE, false),
                Err(Error::ReadOnly { .. })
            ));
        }
    }

    #[test]
    fn the_header_never_says_more_than_the_file_has() {
        let (_directory, _, mut volume) = volume(false);
        let error = volume.set_size(2 * SIZE).unwrap_err();
        assert!(matches!(error, Error::TooSmall { .. }), "{error}");
        assert_eq!(volume.description().seqid, 1);
        for wrong in [0, 511, SIZE + 1, u64::MAX / 512 * 512] {
            assert!(volume.extend(wrong, false).is_err(), "{wrong}");
            assert!(volume.set_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(volume.room().unwrap(), SIZE);
    }

    #[test]
    fn reserved_space_is_there() {
        use std::os::unix::fs::MetadataExt as _;
        let (_directory, location, volume) = volume(false);
        let blocks = || std::fs::metadata(&location.data).unwrap().blocks() * 512;
        let before = blocks();
        volume.extend(2 * SIZE, true).unwrap();
        assert!(blocks() >= before + SIZE, "{} after {before}", blocks());
    }

    #[test]
    fn what_would_be_lost_is_what_was_written_beyond_the_new_end() {
        let (_directory, location, volume) = volume(false);
        let file = std::fs::File::options()
            .write(true)
            .open(&location.data)
            .unwrap();
        file.write_all_at(&[1; 4096], AREA + 4096).unwrap();
        let half = SIZE / 2;
        let loss = volume.loss(half).unwrap();
        assert_eq!((loss.bytes, loss.written), (half, 0));
        // Written zeroes are as good as a hole.
        file.write_all_at(&[0; 8192], AREA + half).unwrap();
        assert_eq!(volume.loss(half).unwrap().written, 0);
        file.write_all_at(&[1; 512], AREA + SIZE - 512).unwrap();
        let loss = volume.loss(half).unwrap();
        assert_eq!((loss.bytes, loss.written), (half, 512));
        assert!(loss.to_string().contains("512 bytes hold data"), "{loss}");
        assert_eq!(volume.loss(2 * SIZE).unwrap().bytes, 0);
    }
}
