//! Header backups: the header area as it is, in a file of its own.
//!
//! A backup has the form that `cryptsetup luksHeaderBackup` writes, so that
//! each program can restore the other's, and is itself a detached header.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

use super::description::Description;
use super::device::{Access, Device};
use super::devices::{Devices, Location};
use super::error::Error;
use super::inspect::Inspection;
use super::luks2::HeaderIo;
use super::luks2::copies::{self, Found, State};
use super::occupied::recognise;
use super::open::Volume;
use super::token::Token;
use super::traces;
use super::undo::Undo;

const CHUNK: usize = 1 << 20;

/// Writes a backup of the header of a volume, which may be in use, to a file
/// that must not exist yet. Both copies in it are good, even if one of the
/// volume's is not.
///
/// The journal of an operation that is under way is not in it: it is true for an
/// instant, and would have data moved again that has been moved.
///
/// # Errors
/// When the header is not one that sealblk can use, or writing fails; then
/// no file is left behind.
pub fn backup(location: &Location, to: &Path) -> Result<Description, Error> {
    let inspection = Inspection::of(location)?;
    let description = inspection.description()?;
    let source = inspection.header_device();
    let mut undo = Undo::default();
    let backup = undo.create(to)?;
    let write = |error| backup.error("write", error);
    backup
        .file()
        .set_len(description.header_area)
        .map_err(write)?;
    let header = &inspection.found().header;
    if description.token.rekey.is_none() {
        copy_keyslots(source, &backup, description.keyslots_area())?;
    }
    copies::create(&mut backup.file(), header).map_err(write)?;
    undo.sync_directories()?;
    undo.disarm();
    Ok(description)
}

/// What the header in a backup says. Nothing is locked or written.
///
/// # Errors
/// When it is not one that sealblk can use.
pub fn description_of_backup(path: &Path) -> Result<Description, Error> {
    let backup = Device::open(path, Access::ReadOnly)?;
    let found = read_backup(&backup)?;
    Description::of(&found.header, path)
}

fn read_backup(backup: &Device) -> Result<Found, Error> {
    let path = backup.path().to_owned();
    copies::read(&backup.file()).map_err(|lost| match lost.no_trace() {
        true => Error::WrongBackup {
            path,
            why: "it is not a LUKS2 header".into(),
        },
        false => Error::BothDamaged { path, lost },
    })
}

/// A header that was restored.
#[derive(Debug)]
pub struct Restored {
    /// The volume, open and locked.
    pub volume: Volume,
    /// What spoke against it, and was overruled.
    pub against: Option<String>,
}

/// Writes a backup back. The result has a higher sequence number than
/// anything that was there, so that no older copy can win over it.
///
/// One that was made while an operation was under way leaves the journal alone
/// that is there, which says how far that is.
///
/// # Errors
/// [`Error::WrongBackup`] without `force`, when the header that is there now
/// belongs to another volume, is newer, has another key or other data, or the
/// data was or is being re-encrypted since; and always when the data is shorter
/// than the backup says.
pub fn restore(location: &Location, from: &Path, force: bool) -> Result<Restored, Error> {
    let backup = Device::open(from, Access::ReadOnly)?;
    let wrong = |why: String| Error::WrongBackup {
        path: from.to_owned(),
        why,
    };
    let found = read_backup(&backup)?;
    let description = Description::of(&found.header, from)?;
    let mut undo = Undo::default();
    let devices = open_target(location, &description, &mut undo)?;
    let header_device = devices.header();
    if header_device.is_same(&backup)? {
        return Err(wrong("it is the header of the volume itself".into()));
    }
    devices.check_data(&description)?;
    let lock = header_device.lock_header(Access::ReadWrite)?;
    let there = copies::read(&header_device.file());
    let against = check_target(header_device, &there, &found, &description).err();
    let against = match against {
        Some(why) if !force => return Err(wrong(why)),
        against => against,
    };

    let mut header = found.header.clone();
    let there = there.unwrap_or_else(|lost| Found {
        header: header.clone(),
        primary: State::Damaged(lost.primary),
        secondary: State::Good,
    });
    let write = |error| header_device.error("write the header of", error);
    copies::replace(&mut header_device.file(), &there, &mut header).map_err(write)?;
    if description.token.rekey.is_none() {
        copy_keyslots(&backup, header_device, description.keyslots_area())?;
    }
    header_device.file().sync_all().map_err(write)?;
    drop(lock);
    undo.sync_directories()?;
    let volume = Volume::of(devices, Access::ReadWrite)?;
    undo.disarm();
    Ok(Restored { volume, against })
}

/// Opens and locks the volume; a detached header that is gone is created.
fn open_target(
    location: &Location,
    description: &Description,
    undo: &mut Undo,
) -> Result<Devices, Error> {
    let data = Device::open(&location.data, Access::ReadWrite)?;
    let header = match &location.header {
        Some(path) if !path.exists() => {
            let device = undo.create(path)?;
            let result = device.file().set_len(description.header_area);
            result.map_err(|error| device.error("set the length of", error))?;
            Some(device)
        }
        Some(path) => {
            let device = Device::open(path, Access::ReadWrite)?;
            device.lock(Access::ReadWrite)?;
            Some(device)
        }
        None => None,
    };
    data.lock(Access::ReadWrite)?;
    let devices = Devices { data, header };
    devices.check_distinct()?;
    Ok(devices)
}

/// Says why the backup should not replace what is there.
fn check_target(
    device: &Device,
    there: &Result<Found, copies::Lost>,
    backup: &Found,
    description: &Description,
) -> Result<(), String> {
    let lost = match there {
        Ok(found) => return check_header(device, found, backup, description),
        Err(lost) => lost,
    };
    match &lost.uuid {
        Some(uuid) if *uuid != description.uuid.to_string() => {
            return Err(format!(
                "it is of volume {}, and what is left of the header there is of volume {uuid}",
                description.uuid
            ));
        }
        // Damaged, and its own: this is what backups are for.
        Some(_) => {}
        None => match recognise(device) {
            Ok(Some(found)) => return Err(format!("there is {found} now")),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        },
    }
    check_journal(device, description)
}

/// What the journal behind a header that is lost says of the backup.
fn check_journal(device: &Device, backup: &Description) -> Result<(), String> {
    let (start, end) = backup.keyslots_area();
    let there = traces::operations(device, &(start..end)).map_err(|error| error.to_string())?;
    match &backup.token.rekey {
        Some(rekey) if !there.contains(&rekey.id) => Err(format!(
            "it was made while the volume was being {}, and the journal is not there that says how \
             far that was: nobody could tell which part of the data is which",
            rekey.doing()
        )),
        None if !there.is_empty() => Err(
            "there is the journal of a re-encryption behind the header that is lost, and the backup \
             is from another time: with it, a part of the data, or all of it, would be read with \
             the wrong key"
                .into(),
        ),
        _ => Ok(()),
    }
}

/// What the operations say that are under way there and in the backup.
fn check_operations(now: &Token, backup: &Token) -> Result<(), String> {
    match (&now.rekey, &backup.rekey) {
        (Some(now), Some(then)) if now.id == then.id => Ok(()),
        (Some(now), _) => Err(format!(
            "the volume is being {} since {}, and the backup is from another time: with it, what \
             was done since could not be read any more, and what the header has of the key of that \
             would be destroyed",
            now.doing(),
            now.since
        )),
        (None, Some(then)) => Err(format!(
            "it was made while the volume was being {}, which has ended since: with it, data would \
             be taken for what it is not, and the volume would not open",
            then.doing()
        )),
        (None, None) => match (&now.plain, &backup.plain) {
            (Some(plain), None) => Err(format!(
                "the data of the volume has been plain since {}: with it, that would be read with a \
                 key, and be noise",
                plain.since
            )),
            (None, Some(plain)) => Err(format!(
                "it says that the data of the volume was plain, from {} on, and has no key",
                plain.since
            )),
            _ => Ok(()),
        },
    }
}

fn check_header(
    device: &Device,
    there: &Found,
    backup: &Found,
    description: &Description,
) -> Result<(), String> {
    let now = match Description::of(&there.header, device.path()) {
        Ok(now) => now,
        Err(error) => return Err(format!("the header that is there is intact: {error}")),
    };
    if now.uuid != description.uuid {
        return Err(format!(
            "it is of volume {}, and this is volume {}",
            description.uuid, now.uuid
        ));
    }
    if let Some(erased) = &now.token.erased {
        return Err(format!(
            "the volume was erased on {}, and would open again",
            erased.since
        ));
    }
    check_operations(&now.token, &description.token)?;
    let (current, old) = (there.header.binary.seqid, backup.header.binary.seqid);
    // The same content under a higher number: it was restored before.
    let same = there.header.metadata == backup.header.metadata;
    if old < current && !same {
        return Err(format!(
            "it is older (update {old}) than the header that is there (update {current}): keys \
             that were removed since would come back"
        ));
    }
    if !now.digest.same_key(&description.digest) {
        return Err("its data encryption key is another one".into());
    }
    if now.layout != description.layout {
        return Err("it describes other data: offset, size or sector size differ".into());
    }
    Ok(())
}

/// Copies the keyslots area, leaving holes where there are only zeroes.
fn copy_keyslots(from: &Device, to: &Device, (start, end): (u64, u64)) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK];
    let mut old = vec![0; CHUNK];
    let mut position = start;
    while position < end {
        let length = CHUNK.min((end - position) as usize);
        let (new, old) = (&mut buffer[..length], &mut old[..length]);
        read_padded(from, new, position)?;
        read_padded(to, old, position)?;
        if new != old {
            (&mut to.file())
                .write_at(new, position)
                .map_err(|error| to.error("write", error))?;
        }
        position += length as u64;
    }
    Ok(())
}

/// Reads; what is beyond the end of the file counts as zeroes.
fn read_padded(from: &Device, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
    let read = |error: io::Error| from.error("read", error);
    let count = HeaderIo::read_at(&from.file(), buffer, offset).map_err(read)?;
    buffer[count..].fill(0);
    Ok(())
}
