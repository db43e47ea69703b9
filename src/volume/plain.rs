//! A header for a disk that is there already, and plain: the volume that it makes
//! is one whose data is being encrypted, and of which nothing is encrypted yet.
//!
//! The data is not touched, and stays as long as it is. The header is a file of
//! its own, since there is no room for one with the data.
#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::Range;

use uuid::Uuid;

use super::binding::Binding;
use super::create::{Plan, existing};
use super::description::{ALIGNMENT, Description};
use super::device::{Access, Device};
use super::devices::{Devices, Location};
use super::error::Error;
use super::luks2::copies;
use super::luks2::metadata::Requirement;
use super::occupied::{recognise_container, search};
use super::open::{Volume, check_fits};
use super::options::CreateOptions;
use super::rekey::operation;
use super::token::{Token, Wrap};
use super::undo::Undo;
use crate::rekey::{Facts, Kind};
use crate::secret::Dek;
use crate::units::{Bytes, SECTOR_BYTES};

/// A header for a plain disk that could be made: everything is checked, what
/// exists is locked and nothing is written.
#[derive(Debug)]
pub struct PlainPlan {
    pub(super) plan: Plan,
    pub(super) id: Uuid,
}

impl PlainPlan {
    /// Checks the options and looks at what is there. The disk is what follows
    /// `data_offset` in the data file: all of it, unless something moved it there
    /// to make room. `options.size` and `options.preallocate` are not for disks
    /// that are there already; `options.force` only permits a disk that looks as
    /// if it were an image of another format, or encrypted.
    ///
    /// # Errors
    /// [`Error::Options`] for wishes that cannot be granted, [`Error::Occupied`]
    /// when there is something in the place of the header, or the data is no plain
    /// disk; [`Error::Busy`] and [`Error::InUse`].
    pub fn new(
        location: &Location,
        options: CreateOptions,
        data_offset: u64,
    ) -> Result<Self, Error> {
        options.check()?;
        check_options(location, &options, data_offset)?;
        let absent = |path: &std::path::Path| {
            let source = std::io::ErrorKind::NotFound.into();
            Error::opening("open", path, source)
        };
        let data = existing(&location.data)?.ok_or_else(|| absent(&location.data))?;
        let header = match &location.header {
            Some(path) => existing(path)?,
            None => None,
        };
        let size = size_of(&data, &options, data_offset)?;
        if !options.force
            && let Some(found) = recognise_container(&data)?
        {
            return Err(Error::Occupied {
                path: data.path().into(),
                found,
            });
        }
        if let Some(header) = &header
            && let (Some(found), _) = search(header)?
        {
            return Err(Error::Occupied {
                path: header.path().into(),
                found,
            });
        }
        let plan = Plan {
            uuid: options.uuid.unwrap_or_else(Uuid::new_v4),
            location: location.clone(),
            options,
            size,
            data_offset,
            data: Some(data),
            header,
            searched: None,
        };
        plan.check_distinct()?;
        plan.check_room()?;
        Ok(PlainPlan {
            plan,
            id: Uuid::new_v4(),
        })
    }

    /// What the key has to be wrapped for.
    pub fn binding(&self) -> Binding {
        self.plan.binding()
    }

    /// What the keys of the operation are derived from.
    pub fn facts(&self) -> Facts {
        Facts {
            id: self.id,
            kind: Kind::Encrypt,
            binding: self.binding().bytes(),
            data_offset: self.plan.data_offset,
            size: self.plan.size,
        }
    }

    /// The size of the disk in bytes.
    pub fn size(&self) -> Bytes {
        Bytes(self.plan.size)
    }

    /// Makes the volume, of which nothing is encrypted yet, and returns it open
    /// and locked. `begin` writes the journal into the area that it is given, and
    /// returns once it is on stable storage: not before that is there a header.
    ///
    /// # Errors
    /// When writing fails, or `begin` does. A header file that was created is
    /// removed again. The data is as it was in any case.
    pub fn write<E: From<Error>>(
        self,
        dek: &Dek,
        key_set: &str,
        wraps: Vec<Wrap>,
        begin: impl FnOnce(&File, Range<u64>) -> Result<(), E>,
    ) -> Result<Volume, E> {
        let rekey = operation(&self.facts(), None);
        let plan = self.plan;
        let token = Token::new(key_set, plan.options.zero_units, wraps).with_rekey(Some(rekey));
        let mut header = plan.header_for(dek, &token)?;
        let path = plan.header_path().to_owned();
        header
            .metadata
            .set_requirement(Requirement::Rekey)
            .map_err(|fault| Error::header(&path, fault))?;
        check_fits(&header, &path)?;
        // What cannot be opened afterwards is not made.
        let area = Description::of(&header, &path)?.journal_area(&path)?;

        let mut undo = Undo::default();
        let device = match plan.header {
            Some(device) => device,
            None => undo.create(&path)?,
        };
        undo.prepare(
            &device,
            plan.options.header_area.0,
            &CreateOptions::default(),
        )?;
        let devices = Devices {
            data: plan.data.ok_or(Error::NothingUnderWay { path })?,
            header: Some(device),
        };
        devices.check_distinct()?;
        let device = devices.header();
        undo.header_follows(device, area.end)?;
        begin(device.file(), area)?;
        {
            let _lock = device.lock_header(Access::ReadWrite)?;
            copies::create(&mut device.file(), &header)
                .map_err(|error| device.error("write the header of", error))?;
        }
        undo.sync_directories()?;
        // Not before the header says so, and is found: a crash would make the disk
        // longer.
        let end = plan.data_offset + plan.size;
        undo.prepare(&devices.data, end, &CreateOptions::default())?;
        let volume = Volume::of(devices, Access::ReadWrite)?;
        undo.disarm();
        Ok(volume)
    }
}

fn check_options(
    location: &Location,
    options: &CreateOptions,
    data_offset: u64,
) -> Result<(), Error> {
    let refuse = |text: &str| Err(Error::Options(text.into()));
    if location.header.is_none() {
        return refuse(
            "a plain disk has no room for a header: say with --header in which file it is to be",
        );
    }
    if options.size.is_some() || options.preallocate {
        return refuse("a disk that is there already keeps its size, and the space that it has");
    }
    if data_offset != 0
        && (!data_offset.is_multiple_of(ALIGNMENT) || data_offset < options.header_area.0)
    {
        return refuse("the data starts where no header of that length fits before it");
    }
    Ok(())
}

/// All that the file has is the disk.
fn size_of(data: &Device, options: &CreateOptions, data_offset: u64) -> Result<u64, Error> {
    let (length, unit) = (data.len()?, options.sector_size.bytes() as u64);
    let size = length.saturating_sub(data_offset);
    if size == 0 {
        return Err(Error::TooSmall {
            path: data.path().into(),
            actual: length,
            needed: data_offset + unit,
        });
    }
    if !size.is_multiple_of(unit) {
        return Err(Error::Size {
            why: format!(
                "{} has {size} bytes of data, which are not a number of sectors of {unit} bytes",
                data.path().display()
            ),
            next: match size.is_multiple_of(SECTOR_BYTES) {
                true => "choose sectors of 512 bytes: --sector-size 512".into(),
                false => format!(
                    "make it longer: truncate --size {} FILE",
                    data_offset + size.next_multiple_of(unit)
                ),
            },
        });
    }
    Ok(size)
}

#[cfg(test)]
mod tests;
