//! The files that a worker moves data with, beside those that it serves with.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::error::Failure;
use crate::manager::disks::system;
use crate::manager::held::Held;
use crate::store::{self, DirectMode, Store};
use crate::units::SectorSize;
use crate::volume;
use crate::worker::parcel::{Parcel, Role};

/// The data file and the file of the header of a disk, each opened once more, so
/// that an error of writing back is reported to whoever moves data as well. Blocks.
///
/// # Errors
/// When they cannot be opened.
pub fn mover_files(held: &Held) -> Result<Parcel, Failure> {
    let parcel = mover_files_unmarked(held)?;
    for (role, fd) in parcel.roles().into_iter().zip(parcel.fds()) {
        if role == Role::Mover {
            let file = fd.try_clone_to_owned().map(File::from);
            let file = file.map_err(system("cannot copy a descriptor"))?;
            volume::mark_mover(&file, &held.files.location.data)?;
        }
    }
    Ok(parcel)
}

/// The same for a worker that is to go on where another one moves data still, and
/// marks what it gets when that one has let go. Blocks.
///
/// # Errors
/// When they cannot be opened.
pub fn mover_files_unmarked(held: &Held) -> Result<Parcel, Failure> {
    let spec = held.current_spec();
    let header = held.files.header.as_ref().unwrap_or(&held.files.data);
    let mut parcel = Parcel::default();
    let data = open(
        &held.files.data,
        (spec.data_offset, spec.size),
        spec.sector_size,
        spec.direct,
    )?;
    parcel.add(Role::Mover, data);
    let start = (0, SectorSize::B4096.bytes() as u64);
    let journal = open(header, start, SectorSize::B512, DirectMode::Never)?;
    parcel.add(Role::Journal, journal);
    Ok(parcel)
}

fn open(
    file: &File,
    place: (u64, u64),
    sector_size: SectorSize,
    direct: DirectMode,
) -> Result<File, Failure> {
    let store = Store::open(file.as_fd(), place, sector_size, (false, direct), 1);
    let store: Store = store.map_err(|error: store::Error| Failure::from(error))?;
    let opened = store.files().first().map(File::try_clone);
    let none = || io::Error::from(io::ErrorKind::NotFound);
    opened
        .unwrap_or_else(|| Err(none()))
        .map_err(system("cannot copy a descriptor"))
}
