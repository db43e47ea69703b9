//! A disk image that somebody wants to have as a volume.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Error, qemu_img};
use crate::shift::BEGINNING;
use crate::units::SECTOR_BYTES;
use crate::volume::Bare;

/// How a disk is kept in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// As the guest reads it.
    Raw,
    /// As `qemu-img` calls it: `qcow2`, `vmdk`, …
    Other(String),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        match text {
            "raw" => Ok(Format::Raw),
            "" => Err("a format has a name, such as raw or qcow2".into()),
            text if text.starts_with('-') || !text.chars().all(plain) => Err(format!(
                "{text:?} is no name of a format, such as raw or qcow2"
            )),
            text => Ok(Format::Other(text.into())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Other(name) => name,
        })
    }
}

/// What the formats of images begin with, which are not disks as they are.
const BEGINNINGS: &[(&[u8], &str, &str)] = &[
    (b"QFI\xfb", "a qcow2 image", "qcow2"),
    (b"KDMV", "a VMDK image", "vmdk"),
    (b"COWD", "a VMDK image", "vmdk"),
    (b"# Disk DescriptorFile", "a VMDK descriptor", "vmdk"),
    (b"<<< ", "a VDI image", "vdi"),
    (b"vhdxfile", "a VHDX image", "vhdx"),
    (b"conectix", "a VHD image", "vpc"),
    (b"QED\0", "a QED image", "qed"),
    (b"LUKS\xba\xbe", "a LUKS device", "luks"),
    (b"WithoutFreeSpace", "a Parallels image", "parallels"),
    (b"WithouFreSpacExt", "a Parallels image", "parallels"),
];

/// A VHD of fixed size has its mark in its last sector alone.
const VHD_END: (&[u8], &str, &str) = (b"conectix", "a VHD image", "vpc");

/// An image that was opened, of a format that somebody has named or that
/// nothing contradicts.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    bare: Bare,
    format: Format,
    /// What the guest sees, in bytes.
    size: u64,
}

impl Image {
    /// Opens an image for reading. Without a `format` it has to be one that looks
    /// like none, and is raw then. With `backing` it may stand on other files.
    ///
    /// # Errors
    /// [`Error::Ambiguous`], [`Error::Busy`], [`Error::Unusable`] for images of
    /// no size, on other files, or encrypted, and what `qemu-img` says.
    pub fn open(path: &Path, format: Option<Format>, backing: bool) -> Result<Self, Error> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let bare = Bare::open(&path)?;
        if bare.in_use()? {
            return Err(Error::Busy { path });
        }
        let length = bare.length()?;
        let mut start = [0; BEGINNING.len()];
        if length >= start.len() as u64 {
            let found = bare.file().read_exact_at(&mut start, 0);
            found.map_err(|error| read(&path, error))?;
        }
        if start == BEGINNING {
            return Err(Error::Unusable {
                path,
                why: "is in pieces: it is being encrypted or decrypted".into(),
                next: "finish that first: its first bytes say with which command".into(),
            });
        }
        let format = match format {
            Some(format) => format,
            None => match looks_like(bare.file(), length).map_err(|error| read(&path, error))? {
                None => Format::Raw,
                Some((what, format)) => {
                    return Err(Error::Ambiguous { path, what, format });
                }
            },
        };
        let size = match &format {
            Format::Raw => length,
            Format::Other(name) => qemu_img::size(&path, name, backing)?,
        };
        if size == 0 {
            return Err(Error::Unusable {
                path,
                why: "has no data: its disk has 0 bytes".into(),
                next: "name another image, or make an empty volume with `sealblk volume create`"
                    .into(),
            });
        }
        Ok(Image {
            path,
            bare,
            format,
            size,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The bytes of the disk in it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        self.bare.file()
    }

    /// Whether it is a block device.
    pub(super) fn is_block(&self) -> bool {
        self.bare.is_block()
    }
}

fn read(path: &Path, source: io::Error) -> Error {
    Error::Read {
        path: path.to_owned(),
        source,
    }
}

/// The format that a file has the mark of.
fn looks_like(file: &File, length: u64) -> io::Result<Option<(&'static str, &'static str)>> {
    let mut start = [0; 32];
    let here = usize::try_from(length).map_or(start.len(), |length| length.min(start.len()));
    file.read_exact_at(&mut start[..here], 0)?;
    let found = BEGINNINGS
        .iter()
        .find(|(mark, ..)| start[..here].starts_with(mark));
    if let Some((_, what, format)) = found {
        return Ok(Some((what, format)));
    }
    let (mark, what, format) = VHD_END;
    let mut end = [0; 8];
    if let Some(at) = length.checked_sub(SECTOR_BYTES) {
        file.read_exact_at(&mut end, at)?;
    }
    Ok((end == *mark).then_some((what, format)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Explain as _, Kind};

    #[test]
    fn only_names_are_formats() {
        assert_eq!("raw".parse(), Ok(Format::Raw));
        assert_eq!("qcow2".parse(), Ok(Format::Other("qcow2".into())));
        for wrong in ["", "-f", "--help", "a b", "a,b", "QCOW2", "nbd:x"] {
            assert!(wrong.parse::<Format>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_looks_like_a_format_has_to_be_called_one() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("image");
        for (mark, _, format) in BEGINNINGS {
            let mut bytes = vec![0; 4096];
            bytes[..mark.len()].copy_from_slice(mark);
            std::fs::write(&path, &bytes).unwrap();
            let error = Image::open(&path, None, false).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            assert!(
                error
                    .help()
                    .unwrap()
                    .contains(&format!("--format {format} "))
            );
            let raw = Image::open(&path, Some(Format::Raw), false).unwrap();
            assert_eq!((raw.format(), raw.size()), (&Format::Raw, 4096));
        }
        let mut bytes = vec![0; 4096];
        bytes[3584..3592].copy_from_slice(VHD_END.0);
        std::fs::write(&path, &bytes).unwrap();
        assert!(Image::open(&path, None, false).is_err());
        std::fs::write(&path, [7; 1000]).unwrap();
        let raw = Image::open(&path, None, false).unwrap();
        assert_eq!(raw.size(), 1000);
        std::fs::write(&path, []).unwrap();
        let error = Image::open(&path, None, false).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }
}
