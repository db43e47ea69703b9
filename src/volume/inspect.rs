//! Looking at a volume without opening it.
#![forbid(unsafe_code)]

use std::fs::File;

use super::description::Description;
use super::device::{Access, Device};
use super::devices::{Devices, Location};
use super::error::Error;
use super::lock;
use super::luks2::copies::Found;
use crate::secret::Dek;

/// A look at a volume that may be in use: no lock is taken, and nothing
/// written.
#[derive(Debug)]
pub struct Inspection {
    devices: Devices,
    found: Found,
}

impl Inspection {
    /// Reads the header of a volume.
    ///
    /// # Errors
    /// When there is no valid header copy, or the files cannot be read.
    pub fn of(location: &Location) -> Result<Self, Error> {
        let devices = Devices::open(location, Access::ReadOnly)?;
        let found = devices.read_header()?;
        Ok(Inspection { devices, found })
    }

    /// The header as it was read, and the state of its copies.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The meaning of the header.
    ///
    /// # Errors
    /// When sealblk cannot use it.
    pub fn description(&self) -> Result<Description, Error> {
        Description::of(&self.found.header, self.devices.header().path())
    }

    /// Checks that the data fits the header, and returns its length in bytes.
    ///
    /// # Errors
    /// As [`super::Volume::open`].
    pub fn check_data(&self, description: &Description) -> Result<u64, Error> {
        self.devices.check_data(description)
    }

    /// Checks that `dek` is the key that the header describes.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if it is not.
    pub fn verify_dek(&self, description: &Description, dek: &Dek) -> Result<(), Error> {
        description.verify_dek(dek, self.devices.header().path())
    }

    /// The device that holds the header.
    pub(super) fn header_device(&self) -> &Device {
        self.devices.header()
    }

    /// The data: read it, and take no lock.
    pub fn data_file(&self) -> &File {
        self.devices.data.file()
    }

    /// Whether the data is on a block device.
    pub fn data_is_block(&self) -> bool {
        self.devices.data.is_block()
    }

    /// Whether somebody has the volume open just now, and who, if that can be
    /// found out.
    ///
    /// # Errors
    /// When the file system has no locks.
    pub fn user(&self) -> Result<Option<Option<u32>>, Error> {
        let data = &self.devices.data;
        let used = lock::in_use(data.file()).map_err(|error| data.error("ask for locks of", error));
        Ok(used?.then(|| lock::holder(data.file())))
    }
}
