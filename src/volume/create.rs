//! Making a volume, in two steps: [`Plan`] looks, locks and decides without
//! writing anything; once the key has been wrapped for [`Plan::binding`],
//! [`Plan::write`] makes the volume. A failure leaves what was there before.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use uuid::Uuid;

use super::binding::Binding;
use super::description::SUBSYSTEM;
use super::device::{Access, Device, directory_of};
use super::devices::{Devices, Location};
use super::error::Error;
use super::luks2::binary::{Binary, COPY_BYTES, field};
use super::luks2::digest::Digest;
use super::luks2::metadata::ENCRYPTION;
use super::luks2::{Header, Metadata, Segment, copies};
use super::occupied::{self, Searched};
use super::open::{Volume, check_fits};
use super::options::CreateOptions;
use super::token::{Token, Wrap};
use super::undo::Undo;
use crate::secret::Dek;
use crate::units::Bytes;

/// From this length of the header area on, each copy has [`LARGE_COPY`] bytes.
const ROOMY: u64 = 1 << 20;
/// 60 KiB of JSON: some sixty wrapped keys of 1 KiB.
const LARGE_COPY: u64 = COPY_BYTES[2];
const SMALL_COPY: u64 = COPY_BYTES[0];

/// Writes the first data of a volume into a file, from an offset on.
pub type Fill<'f> = &'f mut dyn FnMut(&File, u64) -> Result<(), Error>;

/// A volume that could be made: everything is checked, what exists is locked
/// and nothing is written.
#[derive(Debug)]
pub struct Plan {
    pub(super) location: Location,
    pub(super) options: CreateOptions,
    pub(super) uuid: Uuid,
    pub(super) size: u64,
    /// Where the data starts in its file.
    pub(super) data_offset: u64,
    pub(super) data: Option<Device>,
    pub(super) header: Option<Device>,
    pub(super) searched: Option<Searched>,
}

impl Plan {
    /// Checks the options and looks at what is there.
    ///
    /// # Errors
    /// [`Error::Options`] for wishes that cannot be granted,
    /// [`Error::Occupied`] when something would be destroyed,
    /// [`Error::Busy`] and [`Error::InUse`] even with `force`.
    pub fn new(location: &Location, options: CreateOptions) -> Result<Self, Error> {
        options.check()?;
        let data = existing(&location.data)?;
        let header = match &location.header {
            Some(path) => existing(path)?,
            None => None,
        };
        let mut plan = Plan {
            uuid: options.uuid.unwrap_or_else(Uuid::new_v4),
            data_offset: match location.header {
                Some(_) => 0,
                None => options.header_area.0,
            },
            location: location.clone(),
            options,
            size: 0,
            data,
            header,
            searched: None,
        };
        plan.check_distinct()?;
        plan.size = plan.decide_size()?;
        plan.check_room()?;
        if !plan.options.force {
            plan.check_free()?;
        }
        Ok(plan)
    }

    /// What the key has to be wrapped for.
    pub fn binding(&self) -> Binding {
        Binding {
            uuid: self.uuid,
            encryption: ENCRYPTION.into(),
            sector_size: self.options.sector_size,
            iv_tweak: 0,
            zero_units: self.options.zero_units,
        }
    }

    /// How much of an existing data file was searched for something that
    /// would be destroyed. `None`: it is new, or the search was not wanted.
    pub fn searched(&self) -> Option<Searched> {
        self.searched
    }

    /// Whether old contents of a block device stay on it, beyond what is
    /// overwritten now, until the guest overwrites them.
    pub fn leaves_old_contents(&self) -> bool {
        self.options.force && self.data.as_ref().is_some_and(Device::is_block)
    }

    /// Makes the volume and returns it open and locked.
    ///
    /// # Errors
    /// When writing fails. A file that was created is removed again, and an
    /// existing one that was all zeroes is so again.
    pub fn write(self, dek: &Dek, key_set: &str, wraps: Vec<Wrap>) -> Result<Volume, Error> {
        if wraps.is_empty() {
            let text = "a volume without a wrapped key could never be opened";
            return Err(Error::Options(text.into()));
        }
        let token = Token::new(key_set, self.options.zero_units, wraps);
        self.write_with(dek, &token, None)
    }

    /// Makes a volume that has data from the beginning: `fill` writes it into
    /// the data file, from the offset that it is given on. Not before that is on
    /// stable storage is there a header, so that what a crash leaves is no volume.
    /// Without `wraps`, they are in `key_store`, which has them already.
    ///
    /// # Errors
    /// As [`Plan::write`], and whatever `fill` says.
    pub fn write_filled(
        self,
        dek: &Dek,
        key_set: &str,
        (wraps, key_store): (Vec<Wrap>, Option<&str>),
        fill: Fill<'_>,
    ) -> Result<Volume, Error> {
        let token = Token::new(key_set, self.options.zero_units, wraps);
        let token = match key_store {
            Some(name) => token.in_key_store(name),
            None => token,
        };
        self.write_with(dek, &token, Some(fill))
    }

    /// The same with the wraps in a key store, which has them already.
    ///
    /// # Errors
    /// As [`Plan::write`].
    pub fn write_referring(
        self,
        dek: &Dek,
        key_set: &str,
        key_store: &str,
    ) -> Result<Volume, Error> {
        let token = Token::new(key_set, self.options.zero_units, Vec::new());
        self.write_with(dek, &token.in_key_store(key_store), None)
    }

    fn write_with(self, dek: &Dek, token: &Token, fill: Option<Fill<'_>>) -> Result<Volume, Error> {
        let header = self.header_for(dek, token)?;
        let (area, offset) = (self.options.header_area.0, self.data_offset);
        let end = offset + self.size;
        let mut undo = Undo::default();

        let data = match self.data {
            Some(device) => device,
            None => undo.create(&self.location.data)?,
        };
        undo.prepare(&data, end, &self.options)?;
        let detached = match (&self.location.header, self.header) {
            (None, _) => None,
            (Some(_), Some(device)) => Some(device),
            (Some(path), None) => Some(undo.create(path)?),
        };
        if let Some(device) = &detached {
            let options = CreateOptions {
                preallocate: false,
                ..self.options.clone()
            };
            undo.prepare(device, area, &options)?;
        }
        let devices = Devices {
            data,
            header: detached,
        };
        // New files were not there to be compared before.
        devices.check_distinct()?;
        let device = devices.header();
        let is_filled = fill.is_some();
        if let Some(fill) = fill {
            fill(devices.data.file(), offset)?;
        }
        if is_filled || devices.header.is_some() {
            devices
                .data
                .file()
                .sync_all()
                .map_err(|error| devices.data.error("synchronise", error))?;
        }
        {
            let _lock = device.lock_header(Access::ReadWrite)?;
            undo.header_follows(device, 2 * header.binary.copy_bytes)?;
            copies::create(&mut device.file(), &header)
                .map_err(|error| device.error("write the header of", error))?;
        }
        undo.sync_directories()?;
        // Reading it back is the proof that there is a volume now.
        let volume = Volume::of(devices, Access::ReadWrite)?;
        undo.disarm();
        Ok(volume)
    }

    /// The path of what is to have the header.
    pub(super) fn header_path(&self) -> &Path {
        self.location.header.as_ref().unwrap_or(&self.location.data)
    }

    pub(super) fn header_for(&self, dek: &Dek, token: &Token) -> Result<Header, Error> {
        let path = self.header_path();
        let fault = |fault| Error::header(path, fault);
        let token = token.to_json().map_err(|source| Error::Token {
            path: path.into(),
            source,
        })?;
        let segment = Segment {
            kind: "crypt".into(),
            offset: self.data_offset,
            size: self.size,
            iv_tweak: 0,
            encryption: ENCRYPTION.into(),
            sector_size: self.options.sector_size.bytes() as u64,
        };
        let digest = Digest::of(dek).map_err(|error| Error::Random(error.into()))?;
        let area = self.options.header_area.0;
        let copy_bytes = match area >= ROOMY {
            true => LARGE_COPY,
            false => SMALL_COPY,
        };
        let too_long = |what| Error::Options(format!("the {what} is too long"));
        let header = Header {
            binary: Binary {
                copy_bytes,
                seqid: 1,
                label: field(&self.options.label).ok_or_else(|| too_long("label"))?,
                uuid: field(&self.uuid.to_string()).ok_or_else(|| too_long("UUID"))?,
                subsystem: field(SUBSYSTEM).ok_or_else(|| too_long("subsystem"))?,
            },
            metadata: Metadata::new(&segment, &digest, token, copy_bytes, area).map_err(fault)?,
        };
        check_fits(&header, path)?;
        Ok(header)
    }

    pub(super) fn check_distinct(&self) -> Result<(), Error> {
        let same = match (&self.data, &self.header) {
            (Some(data), Some(header)) => header.is_same(data)?,
            _ => self.location.header.as_ref() == Some(&self.location.data),
        };
        match same {
            true => Err(Error::SameFile {
                path: self.location.data.clone(),
            }),
            false => Ok(()),
        }
    }

    fn decide_size(&self) -> Result<u64, Error> {
        let sector = self.options.sector_size.bytes() as u64;
        let offset = self.data_offset;
        if let Some(Bytes(size)) = self.options.size {
            return Ok(size);
        }
        let wanted = || {
            Error::Options(format!(
                "say with --size how large the guest's disk is to be: {} has no size yet",
                self.location.data.display()
            ))
        };
        let length = self.data.as_ref().ok_or_else(wanted)?.len()?;
        if length == 0 {
            return Err(wanted());
        }
        let size = length.saturating_sub(offset) / sector * sector;
        match size {
            0 => Err(Error::TooSmall {
                path: self.location.data.clone(),
                actual: length,
                needed: offset + sector,
            }),
            size => Ok(size),
        }
    }

    pub(super) fn check_room(&self) -> Result<(), Error> {
        let too_large =
            || Error::Options("no file can be that large: choose a smaller size".into());
        let end = self.data_offset.checked_add(self.size);
        let end = end
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or_else(too_large)?;
        let needs = [
            (&self.data, end),
            (&self.header, self.options.header_area.0),
        ];
        for (device, needed) in needs {
            let Some(device) = device.as_ref().filter(|device| device.is_block()) else {
                continue;
            };
            let actual = device.len()?;
            if actual < needed {
                return Err(Error::TooSmall {
                    path: device.path().into(),
                    actual,
                    needed,
                });
            }
        }
        match &self.data {
            Some(device) if device.is_block() && self.options.preallocate => Err(Error::Options(
                "--preallocate is for files: a block device has its space already".into(),
            )),
            _ => Ok(()),
        }
    }

    fn check_free(&mut self) -> Result<(), Error> {
        for device in [&self.data, &self.header].into_iter().flatten() {
            let (found, searched) = occupied::search(device)?;
            if let Some(found) = found {
                return Err(Error::Occupied {
                    path: device.path().into(),
                    found,
                });
            }
            self.searched = self.searched.or(Some(searched));
        }
        Ok(())
    }
}

/// Opens and locks what exists; `None` if nothing does.
pub(super) fn existing(path: &Path) -> Result<Option<Device>, Error> {
    // A dangling symbolic link counts as something: creating would fail.
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return match directory_of(path).is_dir() {
                true => Ok(None),
                false => Err(Error::opening("create", path, error)),
            };
        }
        Err(error) => return Err(Error::opening("open", path, error)),
        Ok(_) => {}
    }
    let device = Device::open(path, Access::ReadWrite)?;
    device.lock(Access::ReadWrite)?;
    Ok(Some(device))
}
