//! Headers in files beside a disk that is being moved, to make room for its header
//! or over the one that it had: how they come into being, and how they go.
//!
//! At each instant there is one header that counts: the one beside, from where
//! it is whole until the one with the data is; or the other way round.
#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use uuid::Uuid;

use super::create::{Plan, existing};
use super::description::{ALIGNMENT, Description};
use super::device::{Access, Device, sync_directory_of};
use super::devices::{Devices, Location};
use super::error::Error;
use super::luks2::binary::{COPY_BYTES, text};
use super::luks2::metadata::Requirement;
use super::luks2::{Header, HeaderIo as _, copies};
use super::occupied::{Occupant, data_between, recognise_container, search};
use super::open::{Volume, check_fits};
use super::options::CreateOptions;
use super::plain::PlainPlan;
use super::rekey::operation;
use super::token::{self, Token};
use super::undo::Undo;
use crate::rekey::{Facts, Kind};
use crate::units::{Bytes, SECTOR_BYTES};

/// What a record of a journal may begin with.
const MAGICS: [&[u8; 8]; 2] = [b"SBLKJRNL", b"SBLKSHFT"];

impl PlainPlan {
    /// As [`PlainPlan::new`], of a disk that starts where its file does, and is
    /// to be moved up by the length of the header area. A file becomes as much
    /// longer; on a block device there has to be as much room behind the disk,
    /// whose size `options` say then.
    ///
    /// # Errors
    /// As there; [`Error::Size`] when there is no room.
    pub fn to_be_moved(location: &Location, options: CreateOptions) -> Result<Self, Error> {
        options.check()?;
        let absent = || {
            let source = std::io::ErrorKind::NotFound.into();
            Error::opening("open", &location.data, source)
        };
        let data = existing(&location.data)?.ok_or_else(absent)?;
        let header = match &location.header {
            Some(path) => existing(path)?,
            None => None,
        };
        let size = size_of(&data, &options)?;
        if !options.force
            && let Some(found) = recognise_container(&data)?
        {
            return Err(occupied(&data, found));
        }
        if let Some(header) = &header
            && let (Some(found), _) = search(header)?
        {
            return Err(occupied(header, found));
        }
        let plan = Plan {
            uuid: options.uuid.unwrap_or_else(Uuid::new_v4),
            location: location.clone(),
            size,
            data_offset: options.header_area.0,
            options,
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
}

/// How large the disk is that is to be moved.
fn size_of(data: &Device, options: &CreateOptions) -> Result<u64, Error> {
    let (length, area) = (data.len()?, options.header_area);
    let size = options.size.map_or(length, |Bytes(size)| size);
    let path = data.path().display();
    let wrong = |why: String, next: String| Err(Error::Size { why, next });
    let unit = options.sector_size.bytes() as u64;
    if size == 0 {
        return wrong(
            format!("{path} has no data"),
            "to make an empty volume: sealblk volume create".into(),
        );
    }
    if !data.is_block() {
        if size != length {
            return wrong(
                format!("the disk in {path} has {length} bytes, and not {size}"),
                "leave --size out: a file is as long as its disk".into(),
            );
        }
    } else if size.checked_add(area.0).is_none_or(|end| end > length) {
        return wrong(
            format!(
                "{path} has {}, so that there is no room for a header of {area} before a disk of {}",
                Bytes(length),
                Bytes(size)
            ),
            "keep the header in a file, with --header; or have the guest shrink its file systems \
             and partitions, and say with --size how much of the device they take"
                .into(),
        );
    } else if !options.force
        && data_between(data, size, size + area.0).map_err(|error| data.error("read", error))? > 0
    {
        return Err(occupied(
            data,
            Occupant {
                what: "data that is not zero, behind the size that was named,".into(),
                offset: size,
            },
        ));
    }
    if !size.is_multiple_of(unit) {
        return wrong(
            format!(
                "the disk in {path} has {size} bytes, which are no number of sectors of {unit}"
            ),
            match size.is_multiple_of(SECTOR_BYTES) {
                true => "choose sectors of 512 bytes: --sector-size 512".into(),
                false => format!(
                    "make it longer: truncate --size {}",
                    size.next_multiple_of(unit)
                ),
            },
        );
    }
    Ok(size)
}

fn occupied(device: &Device, found: Occupant) -> Error {
    Error::Occupied {
        path: device.path().into(),
        found,
    }
}

impl Volume {
    /// Opens a volume whose data is being moved, and whose header is in a file
    /// beside. A data file that is shorter than it has to be meanwhile was cut
    /// off at the beginning or the end of that, and is made longer.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn open_beside(location: &Location) -> Result<Self, Error> {
        let devices = Devices::open(location, Access::ReadWrite)?;
        devices.lock(Access::ReadWrite)?;
        let found = devices.read_header()?;
        let description = Description::of(&found.header, devices.header().path())?;
        let rekey = description.token.rekey.as_ref();
        let is_moved = rekey.is_some_and(|rekey| rekey.is_partly_plain());
        let (data, layout) = (&devices.data, description.layout);
        let is_shorter = !data.is_block() && data.len()? < layout.end();
        if is_moved && is_shorter && layout.data_offset > 0 && data.len()? >= layout.size {
            let extended = data.file().set_len(layout.end());
            let extended = extended.and_then(|()| data.file().sync_all());
            extended.map_err(|error| data.error("set the length of", error))?;
        }
        Self::of_checked(devices, Access::ReadWrite, check_moved)
    }

    /// Makes a header in a file beside, which says that the data is being decrypted;
    /// that with the data stays as it is. `begin` writes the journal into the area
    /// that it is given, and returns once it is on stable storage.
    ///
    /// # Errors
    /// As [`Volume::begin_decrypt`]; [`Error::Occupied`] if something is at
    /// `beside`; and whatever `begin` says. A file that was created is removed.
    pub fn begin_decrypt_beside<E: From<Error>>(
        self,
        beside: &Path,
        facts: &Facts,
        begin: impl FnOnce(&File, Range<u64>) -> Result<(), E>,
    ) -> Result<Volume, E> {
        self.check_begins(facts, Kind::Decrypt)?;
        let token = self.token().clone();
        let token = token.with_rekey(Some(operation(facts, None)));
        let header = self.header_with(&token, Requirement::Rekey)?;
        check_fits(&header, beside)?;
        let area = self.description().journal_area(beside)?;
        let mut undo = Undo::default();
        let device = match existing(beside)? {
            Some(device) => match search(&device)? {
                (Some(found), _) => return Err(occupied(&device, found).into()),
                (None, _) => device,
            },
            None => undo.create(beside)?,
        };
        undo.prepare(&device, area.end, &CreateOptions::default())?;
        let devices = Devices {
            data: self.devices.data,
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
        let volume = Volume::of_checked(devices, Access::ReadWrite, check_moved)?;
        undo.disarm();
        Ok(volume)
    }

    /// Whether the data has a header of its own still, or again, which is that of
    /// this volume. As long as it is there, nothing was moved that is decrypted;
    /// and it is there when everything was that is encrypted.
    pub fn has_inline_header(&self) -> bool {
        let found = copies::read(&self.devices.data.file());
        let uuid = self.uuid().to_string();
        found.is_ok_and(|found| text(&found.header.binary.uuid) == uuid)
    }

    /// Overwrites both copies of the header that is with the data, durably, one
    /// after the other.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn destroy_inline_header(&self) -> Result<(), Error> {
        let data = &self.devices.data;
        let copy = self.description().copies / 2;
        let zeroes = vec![0; copy as usize];
        for at in [0, copy] {
            let io = &mut data.file();
            let written = io.write_at(&zeroes, at).and_then(|()| io.sync());
            written.map_err(|error| data.error("overwrite the header of", error))?;
        }
        Ok(())
    }

    /// All data is encrypted, and moved to where it belongs: writes the header
    /// before it, and removes the file beside.
    ///
    /// # Errors
    /// As [`Volume::finish_rekey`]. The header beside counts until the other one
    /// is there.
    pub fn settle_inline(self) -> Result<Volume, Error> {
        self.under_way(&[Kind::Encrypt])?;
        let token = self.token().clone().with_rekey(None);
        let header = self.header_with(&token, Requirement::None)?;
        let Devices {
            data,
            header: beside,
        } = self.devices;
        {
            let _lock = data.lock_header(Access::ReadWrite)?;
            copies::create(&mut data.file(), &header)
                .map_err(|error| data.error("write the header of", error))?;
        }
        let devices = Devices { data, header: None };
        let volume = Volume::of(devices, Access::ReadWrite)?;
        if let Some(beside) = beside {
            remove(&beside)?;
        }
        Ok(volume)
    }

    /// Everything is plain, and where a raw disk has it; the header beside has no
    /// key any more ([`Volume::finish_decrypt`]): removes it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_header_file(self) -> Result<(), Error> {
        self.devices.header.as_ref().map_or(Ok(()), remove)
    }

    /// Makes a data file as long as the disk that starts where it does.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn cut_to_disk(&self) -> Result<(), Error> {
        let (data, size) = (&self.devices.data, self.layout().size);
        if data.is_block() || data.len()? <= size {
            return Ok(());
        }
        let cut = data.file().set_len(size);
        let cut = cut.and_then(|()| data.file().sync_all());
        cut.map_err(|error| data.error("set the length of", error))
    }

    /// The header as it is, with another token.
    fn header_with(&self, token: &Token, requirement: Requirement) -> Result<Header, Error> {
        let device = self.header_device();
        let path = device.path();
        let _lock = device.lock_header(Access::ReadOnly)?;
        let mut header = self.read_locked_header()?.header;
        let json = token.to_json().map_err(|source| Error::Token {
            path: path.into(),
            source,
        })?;
        let metadata = &mut header.metadata;
        metadata
            .replace_token(token::TYPE, json)
            .and_then(|()| metadata.set_requirement(requirement))
            .map_err(|fault| Error::header(path, fault))?;
        Ok(header)
    }
}

/// Checks that the data is long enough. It may have a header of its own still, or
/// again, which says that nothing is under way: see [`Volume::has_inline_header`].
fn check_moved(devices: &Devices, description: &Description) -> Result<u64, Error> {
    let token = &description.token;
    if token.rekey.is_some() && description.layout.data_offset == 0 {
        // It was begun with a detached header, and is not moved.
        return devices.check_data(description);
    }
    let (actual, needed) = (devices.data.len()?, description.layout.end());
    match actual < needed && token.plain.is_none() {
        true => Err(Error::Shorter {
            path: devices.data.path().into(),
            actual,
            needed,
        }),
        false => Ok(actual),
    }
}

/// Removes a header that does not count any more. What it had is overwritten when
/// nobody can find it, so that at no time there is half of one.
fn remove(beside: &Device) -> Result<(), Error> {
    if beside.is_block() {
        return super::undo::wipe_ends(beside.file(), beside.len()?)
            .map_err(|error| beside.error("overwrite", error));
    }
    std::fs::remove_file(beside.path()).map_err(|error| beside.error("remove", error))?;
    sync_directory_of(beside.path())?;
    let zeroes = vec![0; beside.len()? as usize];
    let io = &mut beside.file();
    let wiped = io.write_at(&zeroes, 0).and_then(|()| io.sync());
    wiped.map_err(|error| beside.error("overwrite", error))
}

/// Whether there is a header at `path`. Where there is none, but the journal of
/// an operation that was cut off before its header was there, that is removed:
/// no data was moved, and nothing depends on it.
///
/// # Errors
/// [`Error::Busy`] when somebody has it open, [`Error::Io`].
pub fn clear_unfinished(path: &Path) -> Result<bool, Error> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        // Whatever else is wrong with it, opening it says.
        _ => {}
    }
    let device = Device::open(path, Access::ReadWrite)?;
    device.lock(Access::ReadWrite)?;
    let found = {
        let _lock = device.lock_header(Access::ReadOnly)?;
        copies::read(&device.file())
    };
    match found {
        Ok(_) => return Ok(true),
        Err(lost) if !lost.no_trace() => return Ok(true),
        Err(_) => {}
    }
    if device.is_block() || !has_journal(&device)? {
        return Ok(false);
    }
    tracing::warn!(
        path = %path.display(),
        "an operation was cut off before it had begun: what it has left there is removed"
    );
    std::fs::remove_file(path).map_err(|error| device.error("remove", error))?;
    Ok(false)
}

/// Whether nothing but a journal is there: where the first header copy begins there
/// are zeroes, and behind both copies there is a record.
fn has_journal(device: &Device) -> Result<bool, Error> {
    let read = |at: u64| -> Result<[u8; 512], Error> {
        let mut bytes = [0; 512];
        let count = device.file().read_at(&mut bytes, at);
        count.map_err(|error| device.error("read", error))?;
        Ok(bytes)
    };
    if read(0)?.iter().any(|&byte| byte != 0) {
        return Ok(false);
    }
    // The first record of all is in the second slot.
    let length = device.len()?;
    for start in COPY_BYTES.map(|copy| 2 * copy) {
        let slot = (length.saturating_sub(start) / 2) / ALIGNMENT * ALIGNMENT;
        for at in [start, start + ALIGNMENT, start + slot] {
            let sector = read(at)?;
            if MAGICS.iter().any(|magic| sector.starts_with(*magic)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Location;

    #[test]
    fn only_what_an_interrupted_beginning_leaves_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("header");
        assert!(!clear_unfinished(&path).unwrap());
        let mut bytes = vec![0; 1 << 20];
        std::fs::write(&path, &bytes).unwrap();
        assert!(!clear_unfinished(&path).unwrap());
        assert!(path.exists(), "an empty file may be used");
        bytes[(128 << 10)..(128 << 10) + 8].copy_from_slice(MAGICS[0]);
        // The header was about to be written, and its first sector was not.
        bytes[4096] = b'{';
        std::fs::write(&path, &bytes).unwrap();
        assert!(!clear_unfinished(&path).unwrap());
        assert!(!path.exists());
        // The first record alone is there, of either kind.
        for (magic, at) in [
            (MAGICS[0], (128 << 10) + (448 << 10)),
            (MAGICS[1], 36 << 10),
        ] {
            let mut bytes = vec![0; 1 << 20];
            bytes[at..at + 8].copy_from_slice(magic);
            std::fs::write(&path, &bytes).unwrap();
            assert!(!clear_unfinished(&path).unwrap());
            assert!(!path.exists(), "{at}");
        }
        bytes[100] = 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(!clear_unfinished(&path).unwrap());
        assert!(path.exists(), "somebody else's");
        let location = Location {
            data: path.clone(),
            header: None,
        };
        assert!(crate::volume::Volume::open(&location, Access::ReadOnly).is_err());
    }

    const AREA: u64 = 64 << 10;
    const SIZE: u64 = 128 << 10;

    fn wrap() -> crate::volume::Wrap {
        serde_json::from_value(serde_json::json!({
            "key_set": "default", "provider": "file", "key_id": "k", "key_version": "v",
            "alg": "A256GCM", "bound": "aad:1", "bytes": "AAAA",
        }))
        .unwrap()
    }

    fn no_journal(_: &File, _: Range<u64>) -> Result<(), Error> {
        Ok(())
    }

    fn length(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().len()
    }

    fn options() -> CreateOptions {
        CreateOptions {
            header_area: Bytes(AREA),
            ..CreateOptions::default()
        }
    }

    #[test]
    fn a_disk_gets_room_once_and_then_its_header() {
        let home = tempfile::tempdir().unwrap();
        let location = Location {
            data: home.path().join("disk"),
            header: Some(home.path().join("beside")),
        };
        std::fs::write(&location.data, vec![7; SIZE as usize]).unwrap();
        let plan = PlainPlan::to_be_moved(&location, options()).unwrap();
        let facts = plan.facts();
        assert_eq!((facts.data_offset, facts.size), (AREA, SIZE));
        let dek = crate::secret::Dek::generate().unwrap();
        drop(
            plan.write(&dek, "default", vec![wrap()], no_journal)
                .unwrap(),
        );
        assert_eq!(length(&location.data), AREA + SIZE);
        // A crash after the header and before there was room; or room that was
        // taken twice, if it came first.
        for cut in [SIZE, SIZE + 4096] {
            let data = File::options().write(true).open(&location.data).unwrap();
            data.set_len(cut).unwrap();
            drop(Volume::open_beside(&location).unwrap());
            assert_eq!(length(&location.data), AREA + SIZE);
        }
        let volume = Volume::open_beside(&location).unwrap();
        assert!(!volume.has_inline_header());
        let settled = volume.settle_inline().unwrap();
        assert!(settled.rekey().is_none() && !location.header.as_ref().unwrap().exists());
        settled.verify_dek(&dek).unwrap();
        assert_eq!(settled.layout().data_offset, AREA);

        // And back: the header with the data counts until it is destroyed.
        let facts = settled.facts_to_begin(Kind::Decrypt).unwrap();
        let beside = location.header.clone().unwrap();
        let volume = settled
            .begin_decrypt_beside(&beside, &facts, no_journal)
            .unwrap();
        assert!(volume.has_inline_header());
        assert_eq!(volume.rekey_facts(), Some(facts));
        drop(volume);
        let inline = Location {
            header: None,
            ..location.clone()
        };
        assert!(
            Volume::open(&inline, Access::ReadWrite)
                .unwrap()
                .rekey()
                .is_none()
        );
        let mut volume = Volume::open_beside(&location).unwrap();
        volume.destroy_inline_header().unwrap();
        assert!(!volume.has_inline_header());
        volume.cut_to_disk().unwrap();
        assert_eq!(length(&location.data), SIZE);
        // A crash here: it is made longer once more, and cut again.
        drop(volume);
        volume = Volume::open_beside(&location).unwrap();
        volume.cut_to_disk().unwrap();
        volume.finish_decrypt().unwrap();
        drop(volume);
        let volume = Volume::open_beside(&location).unwrap();
        assert_eq!(
            length(&location.data),
            SIZE,
            "it is plain, and stays as long as it is"
        );
        volume.remove_header_file().unwrap();
        assert!(!beside.exists());
    }

    #[test]
    fn what_is_there_is_not_taken_for_room() {
        let home = tempfile::tempdir().unwrap();
        let location = Location {
            data: home.path().join("disk"),
            header: Some(home.path().join("beside")),
        };
        let plan = |size: usize, options: CreateOptions| {
            std::fs::write(&location.data, vec![7; size]).unwrap();
            PlainPlan::to_be_moved(&location, options)
                .map(drop)
                .unwrap_err()
        };
        let sized = |size| CreateOptions {
            size: Some(Bytes(size)),
            ..options()
        };
        for (size, options) in [(0, options()), (1000, options()), (8192, sized(4096))] {
            let error = plan(size, options);
            assert!(matches!(error, Error::Size { .. }), "{size}: {error}");
        }
        std::fs::write(location.header.as_ref().unwrap(), b"something").unwrap();
        let error = plan(4096, options());
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
        assert_eq!(length(&location.data), 4096);
    }
}
