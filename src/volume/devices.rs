//! The files of a volume together: data, and header if that is detached.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::description::Description;
use super::device::{Access, Device};
use super::error::Error;
use super::luks2::binary::{Flaw, text};
use super::luks2::copies::{self, Found, Lost};
use super::occupied::recognise;
use super::token::Rekey;

/// Where a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The data: a regular file or block device. Also the header, unless that
    /// is detached.
    pub data: PathBuf,
    /// The detached header, if it has one.
    pub header: Option<PathBuf>,
}

/// The open files of a volume.
#[derive(Debug)]
pub(super) struct Devices {
    pub data: Device,
    pub header: Option<Device>,
}

impl Devices {
    /// Opens what `location` names, without locks.
    pub fn open(location: &Location, access: Access) -> Result<Self, Error> {
        let data = Device::open(&location.data, access)?;
        let header = location
            .header
            .as_deref()
            .map(|path| Device::open(path, access))
            .transpose()?;
        let devices = Devices { data, header };
        devices.check_distinct()?;
        Ok(devices)
    }

    pub fn check_distinct(&self) -> Result<(), Error> {
        match &self.header {
            Some(header) if header.is_same(&self.data)? => Err(Error::SameFile {
                path: self.data.path().into(),
            }),
            _ => Ok(()),
        }
    }

    /// Takes the use lock of each.
    pub fn lock(&self, access: Access) -> Result<(), Error> {
        self.data.lock(access)?;
        self.header
            .as_ref()
            .map_or(Ok(()), |header| header.lock(access))
    }

    /// What holds the header.
    pub fn header(&self) -> &Device {
        self.header.as_ref().unwrap_or(&self.data)
    }

    /// Reads both header copies, which nobody may be rewriting meanwhile.
    pub fn read_header(&self) -> Result<Found, Error> {
        let device = self.header();
        let _lock = device.lock_header(Access::ReadOnly)?;
        self.read_locked_header()
    }

    /// The same, while the caller has the header lock.
    pub fn read_locked_header(&self) -> Result<Found, Error> {
        let device = self.header();
        copies::read(&device.file()).map_err(|lost| no_header(device, lost))
    }

    /// Checks that the data is the one the header describes, as far as can be
    /// seen without the key, and returns its length.
    pub fn check_data(&self, description: &Description) -> Result<u64, Error> {
        let layout = description.layout;
        if self.header.is_none() && layout.data_offset == 0 {
            return Err(Error::DetachedHeader {
                path: self.data.path().into(),
            });
        }
        let actual = self.data.len()?;
        let token = &description.token;
        if token.plain.is_some() {
            // It belongs to somebody else now.
            return Ok(actual);
        }
        // What a guest keeps on a plain disk is its own affair, whatever it looks like.
        let has_plain = token.rekey.as_ref().is_some_and(Rekey::is_partly_plain);
        if self.header.is_some()
            && let Ok(own) = copies::read(&self.data.file())
        {
            // Ciphertext does not have a right checksum by chance.
            let data_uuid = text(&own.header.binary.uuid).into_owned();
            let header_uuid = description.uuid.to_string();
            let is_other = layout.data_offset == 0 || data_uuid != header_uuid;
            if is_other && !has_plain {
                return Err(Error::OtherVolume {
                    path: self.data.path().into(),
                    data_uuid,
                    header_uuid,
                });
            }
            if !is_other {
                self.check_same_time(&own, description)?;
            }
        }
        let needed = layout.end();
        match actual < needed {
            true => Err(Error::Shorter {
                path: self.data.path().into(),
                actual,
                needed,
            }),
            false => Ok(actual),
        }
    }
}

impl Devices {
    /// Checks that the volume's `own` header, beside which another one is used, has
    /// the same key and the same operation under way: a backup from before a new
    /// key would have the data read, and written, with the old one.
    fn check_same_time(&self, own: &Found, used: &Description) -> Result<(), Error> {
        let Ok(own) = Description::of(&own.header, self.data.path()) else {
            return Ok(());
        };
        let same = own.digest.same_key(&used.digest) && own.token.rekey == used.token.rekey;
        match same {
            true => Ok(()),
            false => Err(Error::StaleHeader {
                path: self.header().path().into(),
                data: self.data.path().into(),
            }),
        }
    }
}

fn no_header(device: &Device, lost: Lost) -> Error {
    let nothing = matches!(lost.primary, Flaw::NoMagic | Flaw::CutOff) && lost.no_trace();
    let path = device.path().to_owned();
    match nothing {
        true => Error::NotAVolume {
            path,
            found: recognise(device).ok().flatten(),
        },
        false => Error::BothDamaged { path, lost },
    }
}
