//! What a new volume is to be like.
#![forbid(unsafe_code)]

use uuid::Uuid;

use super::description::ALIGNMENT;
use super::error::Error;
use super::luks2::binary::{COPY_BYTES, LABEL_BYTES};
use crate::units::{Bytes, SectorSize};

/// The default length of the header area: room for both copies, for
/// passphrase keyslots in a rescue, and for what later versions keep there.
pub const DEFAULT_HEADER_AREA: Bytes = Bytes(16 << 20);
/// The smallest header area: two copies of the smallest length and nothing else.
pub const MIN_HEADER_AREA: Bytes = Bytes(2 * COPY_BYTES[0]);
/// The largest header area: LUKS2 limits the keyslots area to this.
pub const MAX_HEADER_AREA: Bytes = Bytes(128 << 20);

/// What a new volume is to be like.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// What people call it: at most 47 bytes.
    pub label: String,
    /// Its UUID. A random one if none is given.
    pub uuid: Option<Uuid>,
    /// The size of a data unit.
    pub sector_size: SectorSize,
    /// The size of the disk that the guest sees. If not given, what the
    /// existing file or block device has room for.
    pub size: Option<Bytes>,
    /// Whether to reserve the space now instead of as the guest writes.
    pub preallocate: bool,
    /// Whether a data unit whose stored bytes are all zero reads as zeroes.
    pub zero_units: bool,
    /// Length of the header area, and so where inline data starts.
    pub header_area: Bytes,
    /// Whether what is there already may be destroyed.
    pub force: bool,
}

impl Default for CreateOptions {
    fn default() -> Self {
        CreateOptions {
            label: String::new(),
            uuid: None,
            sector_size: SectorSize::default(),
            size: None,
            preallocate: false,
            zero_units: false,
            header_area: DEFAULT_HEADER_AREA,
            force: false,
        }
    }
}

impl CreateOptions {
    /// Whether the wishes can be granted, as far as that can be said without
    /// looking at any file.
    ///
    /// # Errors
    /// [`Error::Options`].
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::Options(text));
        let area = self.header_area;
        if !(MIN_HEADER_AREA..=MAX_HEADER_AREA).contains(&area) {
            return refuse(format!(
                "a header area has at least {MIN_HEADER_AREA} and at most {MAX_HEADER_AREA}, not {area}"
            ));
        }
        if !area.0.is_multiple_of(ALIGNMENT) {
            return refuse(format!(
                "a header area of {area} is not a multiple of 4 KiB"
            ));
        }
        if self.label.len() >= LABEL_BYTES || self.label.chars().any(char::is_control) {
            return refuse("a label has at most 47 bytes and no control characters".into());
        }
        let sector = self.sector_size.bytes() as u64;
        match self.size {
            Some(Bytes(0)) => refuse("a disk of no size is of no use".into()),
            Some(size) if !size.0.is_multiple_of(sector) => refuse(format!(
                "a size of {size} is not a number of {sector}-byte sectors"
            )),
            _ => Ok(()),
        }
    }
}
