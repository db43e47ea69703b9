//! Opening a volume: lock, read, check; and rewriting its header.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::description::{Description, Layout};
use super::device::{Access, Device};
use super::devices::{Devices, Location};
use super::error::Error;
use super::luks2::copies;
use super::luks2::metadata::Fault;
use super::luks2::{Header, Which};
use super::tenure::{Standing, Still, Tenure};
use super::token::{self, Token};
use crate::secret::Dek;
use crate::units::Bytes;

/// The open files of a volume. They hold its lock.
#[derive(Debug)]
pub struct Files {
    /// What they were opened as.
    pub location: Location,
    /// The data.
    pub data: File,
    /// The detached header, where the location has one.
    pub header: Option<File>,
}

impl Files {
    /// The same descriptors once more, with the same lock.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Files {
            location: self.location.clone(),
            data: self.data.try_clone()?,
            header: self.header.as_ref().map(File::try_clone).transpose()?,
        })
    }
}

/// A volume that is open and locked. The lock goes when this is dropped or
/// the process ends, however it ends.
#[derive(Debug)]
pub struct Volume {
    pub(super) devices: Devices,
    access: Access,
    description: Description,
    repaired: Option<Which>,
    /// Where it is written down whether this host has it, if it may move.
    tenure: Option<Arc<Tenure>>,
}

impl Volume {
    /// Opens, locks, reads and checks a volume. With [`Access::ReadWrite`] a
    /// damaged or outdated header copy is repaired from the other one.
    ///
    /// # Errors
    /// Each thing that can be wrong has its own [`Error`]; nothing is written
    /// before all checks have passed.
    pub fn open(location: &Location, access: Access) -> Result<Self, Error> {
        let devices = Devices::open(location, access)?;
        devices.lock(access)?;
        Self::of(devices, access)
    }

    /// The same with files that are open and locked for `access` already, as
    /// their descriptors come from another process, or are kept in this one.
    /// They are read anew: what they hold may have changed since.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn of_files(files: Files, access: Access) -> Result<Self, Error> {
        let Files {
            location,
            data,
            header,
        } = files;
        let header = match (header, &location.header) {
            (Some(file), Some(path)) => Some(Device::of(file, path)?),
            _ => None,
        };
        let data = Device::of(data, &location.data)?;
        Self::of(Devices { data, header }, access)
    }

    /// The same descriptors once more. The lock is theirs, too: it goes with
    /// the last of them, in whatever process that is.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn files(&self) -> io::Result<Files> {
        let Devices { data, header } = &self.devices;
        Ok(Files {
            location: Location {
                data: data.path().to_owned(),
                header: header.as_ref().map(|header| header.path().to_owned()),
            },
            data: data.file().try_clone()?,
            header: header
                .as_ref()
                .map(|header| header.file().try_clone())
                .transpose()?,
        })
    }

    /// The same with files that are open and locked already.
    pub(super) fn of(devices: Devices, access: Access) -> Result<Self, Error> {
        Self::of_checked(devices, access, Devices::check_data)
    }

    /// The same with another check of the data.
    pub(super) fn of_checked(
        devices: Devices,
        access: Access,
        check: impl FnOnce(&Devices, &Description) -> Result<u64, Error>,
    ) -> Result<Self, Error> {
        let mut found = devices.read_header()?;
        let mut description = Description::of(&found.header, devices.header().path())?;
        let actual = check(&devices, &description)?;
        let mut repaired = None;
        if access == Access::ReadWrite && !found.is_whole() {
            let device = devices.header();
            let _lock = device.lock_header(Access::ReadWrite)?;
            // It may have changed since it was read.
            found = devices.read_locked_header()?;
            description = Description::of(&found.header, device.path())?;
            repaired = copies::repair(&mut device.file(), &found)
                .map_err(|error| device.error("repair the header of", error))?;
        }
        let path = devices.header().path().display();
        match (&repaired, found.is_whole()) {
            (Some(which), _) => {
                tracing::warn!(%path, "repaired the {which} header copy from the other one");
            }
            (None, false) => {
                tracing::warn!(%path, "one of the two header copies is not good: {found}");
            }
            (None, true) => {}
        }
        let surplus = actual.saturating_sub(description.layout.end());
        // Block devices end where they end.
        let is_plain = description.token.plain.is_some();
        if surplus > 0 && !is_plain && !devices.data.is_block() {
            tracing::warn!(
                path = %devices.data.path().display(),
                "the file is {} longer than the volume; the guest does not see the rest",
                Bytes(surplus),
            );
        }
        Ok(Volume {
            devices,
            access,
            description,
            repaired,
            tenure: None,
        })
    }

    /// The same volume, which is written only while it is this host's.
    #[must_use]
    pub fn under(mut self, tenure: Arc<Tenure>) -> Self {
        self.tenure = Some(tenure);
        self
    }

    /// Keeps the volume this host's for as long as what is returned lives.
    ///
    /// # Errors
    /// [`Error::Elsewhere`], if it is not.
    pub(crate) fn keep_here(&self) -> Result<Option<Still<'_>>, Error> {
        keep_here(self.tenure.as_deref(), self.devices.data.path())
    }

    /// Which volume it is.
    pub fn uuid(&self) -> Uuid {
        self.description.uuid
    }

    /// What people call it. May be empty.
    pub fn label(&self) -> &str {
        &self.description.label
    }

    /// Key set and wrapped keys.
    pub fn token(&self) -> &Token {
        &self.description.token
    }

    /// What every wrap of the key is bound to, as additional authenticated data.
    pub fn binding(&self) -> Vec<u8> {
        self.description.binding().bytes()
    }

    /// Where the data is and how it is encrypted.
    pub fn layout(&self) -> Layout {
        self.description.layout
    }

    /// All facts of the header.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// What it was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The header copy that was repaired when the volume was opened.
    pub fn repaired(&self) -> Option<Which> {
        self.repaired
    }

    /// Checks that `dek` is the key of this volume.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if it is not.
    pub fn verify_dek(&self, dek: &Dek) -> Result<(), Error> {
        self.description
            .verify_dek(dek, self.devices.header().path())
    }

    /// The data file. Its descriptor is buffered and holds the lock: whoever
    /// opens it anew (for `O_DIRECT`, by `/proc/self/fd`) keeps this open too.
    pub fn data_file(&self) -> &File {
        self.devices.data.file()
    }

    /// The path of the data, as it was given.
    pub fn data_path(&self) -> &Path {
        self.devices.data.path()
    }

    /// What holds the header.
    pub(super) fn header_device(&self) -> &Device {
        self.devices.header()
    }

    /// Both header copies as they are now, while the caller has the header lock.
    pub(super) fn read_locked_header(&self) -> Result<copies::Found, Error> {
        self.devices.read_locked_header()
    }

    /// The header was rewritten.
    pub(super) fn set_description(&mut self, description: Description) {
        self.description = description;
    }

    /// Replaces the token, on disk and here. After a crash at any instant
    /// the header has either the old or the new one.
    ///
    /// # Errors
    /// [`Error::HeaderFull`] and [`Error::ChangedUnderneath`] leave everything
    /// as it was. After [`Error::Io`] either token may be on disk; this object
    /// then still has the old one, and the call may be repeated.
    pub fn set_token(&mut self, token: Token) -> Result<(), Error> {
        drop(self.keep_here()?);
        let path = self.devices.header().path();
        if self.access != Access::ReadWrite {
            return Err(Error::ReadOnly { path: path.into() });
        }
        let json = token.to_json().map_err(|source| Error::Token {
            path: path.into(),
            source,
        })?;
        if token.zero_units != self.description.layout.zero_units {
            // Every wrap is bound to the flag, and so is the data.
            return Err(Error::Options(
                "whether a volume has zero units cannot be changed after it was made".into(),
            ));
        }
        if token.rekey.is_some() && token.key_store.is_some() {
            self.check_settled("move the wrapped keys of")?;
        }
        self.rewrite(|header| header.metadata.replace_token(token::TYPE, json))
    }

    /// Changes the header, on disk and here, but neither the key nor what is
    /// under way. After a crash at any instant it is the old or the new one.
    ///
    /// # Errors
    /// As [`Volume::set_token`].
    pub(super) fn rewrite(
        &mut self,
        change: impl FnOnce(&mut Header) -> Result<(), Fault>,
    ) -> Result<(), Error> {
        let path = self.devices.header().path().to_owned();
        let change = |_: &Description, header: &mut Header| {
            change(header).map_err(|fault| Error::header(&path, fault))
        };
        self.rewrite_if(change, |before, after| {
            let kept = after.digest.same_key(&before.digest)
                && after.token.rekey == before.token.rekey
                && after.token.plain == before.token.plain;
            match kept {
                true => Ok(()),
                false => Err(Error::Options(
                    "the key of a volume, and what is under way, change only where an operation \
                     begins or ends"
                        .into(),
                )),
            }
        })
    }

    /// The same for where an operation begins or ends. The change goes by what is
    /// on disk: wraps may be other ones than when the volume was opened.
    pub(super) fn rewrite_with_key(
        &mut self,
        change: impl FnOnce(&Description, &mut Header) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.rewrite_if(change, |_, _| Ok(()))
    }

    fn rewrite_if(
        &mut self,
        change: impl FnOnce(&Description, &mut Header) -> Result<(), Error>,
        permitted: impl FnOnce(&Description, &Description) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let tenure = self.tenure.clone();
        let _here = keep_here(tenure.as_deref(), self.devices.data.path())?;
        let device = self.devices.header();
        let path = device.path();
        if self.access != Access::ReadWrite {
            return Err(Error::ReadOnly { path: path.into() });
        }
        let changed = |what| Error::ChangedUnderneath {
            path: path.into(),
            what,
        };
        let _lock = device.lock_header(Access::ReadWrite)?;
        // From what is on disk, not from memory: cryptsetup may have changed
        // the label, and a failed update may have left one copy behind.
        let found = self.devices.read_locked_header()?;
        let now = Description::of(&found.header, path)?;
        if now.uuid != self.description.uuid {
            return Err(changed("it has another UUID"));
        }
        if now.layout != self.description.layout {
            return Err(changed("its data segment is another one"));
        }
        if !now.digest.same_key(&self.description.digest) {
            return Err(changed("its key digest is another one"));
        }
        if now.token.rekey != self.description.token.rekey {
            return Err(changed("an operation on its data was begun or ended"));
        }
        let mut header = found.header.clone();
        change(&now, &mut header)?;
        check_fits(&header, path)?;
        let description = Description::of(&header, path)?;
        permitted(&now, &description)?;
        copies::replace(&mut device.file(), &found, &mut header)
            .map_err(|error| device.error("rewrite the header of", error))?;
        self.description = Description {
            seqid: header.binary.seqid,
            ..description
        };
        Ok(())
    }
}

fn keep_here<'a>(tenure: Option<&'a Tenure>, path: &Path) -> Result<Option<Still<'a>>, Error> {
    let Some(tenure) = tenure else {
        return Ok(None);
    };
    let failed = |error| Error::io("wait for who decides about", path, error);
    let still = tenure.still().map_err(failed)?;
    match still.standing().map_err(failed)? {
        Standing::Held => Ok(Some(still)),
        standing => Err(Error::Elsewhere {
            path: path.to_owned(),
            standing,
        }),
    }
}

/// Fails if the JSON of a header does not fit into its area.
pub(super) fn check_fits(header: &Header, path: &Path) -> Result<(), Error> {
    let (needed, room) = header.fill();
    match needed > room {
        true => Err(Error::HeaderFull {
            path: path.into(),
            needed,
            room,
        }),
        false => Ok(()),
    }
}
