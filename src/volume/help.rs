//! The kind of each error of the volume room, and the next step.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

use super::device::directory_of;
use super::error::Error;
use super::luks2::Flaw;
use super::luks2::metadata::Fault;
use super::token::Rekey;
use crate::error::{Explain, Kind, io_kind};
use crate::paths;
use crate::rekey;

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Open { source, .. } | Error::Io { source, .. } => io_kind(source),
            Error::WrongFileType { .. } | Error::SameFile { .. } => Kind::Usage,
            Error::Options(_)
            | Error::Size { .. }
            | Error::Place { .. }
            | Error::TooSmall { .. } => Kind::Usage,
            Error::DetachedHeader { .. } | Error::OtherVolume { .. } => Kind::Usage,
            Error::Busy { .. }
            | Error::InUse { .. }
            | Error::Dying(_)
            | Error::Elsewhere { .. } => Kind::Busy,
            Error::NotAVolume { .. } | Error::NotSealblk { .. } => Kind::Unsupported,
            Error::BothDamaged { lost, .. } => match lost.primary {
                Flaw::Version(_) => Kind::Unsupported,
                Flaw::Unreadable(_) => Kind::Io,
                _ => Kind::Corrupt,
            },
            Error::Header { fault, .. } => match fault {
                Fault::Invalid(_) => Kind::Corrupt,
                Fault::Unsupported(_) | Fault::Requirements(_) => Kind::Unsupported,
            },
            Error::Token { source, .. } => source.kind(),
            Error::Shorter { .. } | Error::ChangedUnderneath { .. } => Kind::Corrupt,
            Error::ReadOnly { .. } => Kind::Permission,
            Error::HeaderFull { .. } => Kind::Refused,
            Error::WrongKey { .. } => Kind::Key,
            Error::Occupied { .. } | Error::WrongBackup { .. } => Kind::Refused,
            Error::UnderWay { .. } | Error::CannotBegin { .. } | Error::NothingUnderWay { .. } => {
                Kind::Refused
            }
            Error::StaleHeader { .. } => Kind::Refused,
            Error::Plain { .. } => Kind::Key,
            Error::Random(_) => Kind::Internal,
        }
    }

    fn help(&self) -> Option<String> {
        const RESTORE: &str = "restore the header from a backup: sealblk volume restore-header";
        let text: String = match self {
            Error::Open {
                what: "create",
                path,
                source,
            } if source.kind() == io::ErrorKind::NotFound => {
                format!("make the directory {} first", directory_of(path).display())
            }
            Error::Open { path, source, .. } | Error::Io { path, source, .. } => {
                return io_help(path, source);
            }
            Error::WrongFileType { .. } => "name a regular file or a block device".into(),
            Error::Busy { .. } => {
                "only one process may use a volume: stop the other one, or wait for it".into()
            }
            Error::Elsewhere { .. } => "do it at the host that the guest runs at; or detach the \
                 disk here, if it shall not come back"
                .into(),
            Error::Dying(_) => "the disk below does not answer: check it, for example with \
                 `dmesg`, and try again when it does"
                .into(),
            Error::InUse { .. } => "unmount it or take it out of use first".into(),
            Error::SameFile { .. } => {
                "leave --header out if the header is inside the volume".into()
            }
            Error::NotAVolume { .. } => {
                "make a volume with `sealblk volume create`; if its header \
                 is detached, say where with --header; if the header was overwritten, restore it \
                 from a backup with `sealblk volume restore-header`"
                    .into()
            }
            Error::BothDamaged { lost, .. } => match lost.primary {
                Flaw::Version(_) => {
                    "open LUKS1 devices with cryptsetup; sealblk works with LUKS2 only".into()
                }
                _ => RESTORE.into(),
            },
            Error::NotSealblk { .. } => "open it with cryptsetup, or name another volume".into(),
            Error::Header { fault, .. } => match fault {
                Fault::Invalid(_) => RESTORE.into(),
                Fault::Unsupported(_) => "only cryptsetup or a later sealblk can open it".into(),
                Fault::Requirements(_) => "finish what is under way with the tool that started it \
                     (cryptsetup repair, cryptsetup reencrypt), or upgrade sealblk"
                    .into(),
            },
            Error::Token { source, .. } => return source.help(),
            Error::Shorter { needed, .. } => format!(
                "it was truncated or copied incompletely: copy it again, or, if the missing end is \
                 really lost, extend it with `truncate --size {needed}` and have the guest check \
                 its file systems"
            ),
            Error::DetachedHeader { path } => {
                format!("name the data file and say --header {}", path.display())
            }
            Error::OtherVolume { .. } => {
                "name the data file that belongs to this header, or leave --header out".into()
            }
            Error::ReadOnly { .. } => "open it for writing".into(),
            Error::HeaderFull { .. } => {
                "remove a wrapped key that is no longer needed; a new volume has more room with a \
                 header area of 1 MiB or more"
                    .into()
            }
            Error::ChangedUnderneath { .. } => {
                "find out what wrote to it, then run `sealblk volume verify-header`".into()
            }
            Error::WrongKey { .. } => "the wrapped key belongs to another volume, or the header \
                 was edited: compare with a backup of the header"
                .into(),
            Error::Occupied { .. } => {
                "use another path, or --force if its contents may be destroyed".into()
            }
            Error::Options(_) => return None,
            Error::Size { next, .. } | Error::Place { next, .. } => next.clone(),
            Error::TooSmall { .. } => "use a larger device, or a smaller --size".into(),
            Error::WrongBackup { .. } => {
                "name the right backup, or use --force if you are certain".into()
            }
            Error::UnderWay { rekey, .. } => under_way_help(rekey),
            Error::NothingUnderWay { .. } => {
                "see what the volume says of itself: sealblk volume info".into()
            }
            Error::CannotBegin { next, .. } => next.clone(),
            Error::StaleHeader { .. } => "leave --header out: the volume's own header is the one that \
                 counts; if that is wrong, restore the other one over it, which says what that means"
                .into(),
            Error::Plain { data_offset, .. } => plain_help(*data_offset),
            Error::Random(_) => "check that getrandom(2) is not blocked".into(),
        };
        Some(text)
    }
}

/// How an operation ends.
fn under_way_help(rekey: &Rekey) -> String {
    let command = match rekey.kind {
        rekey::Kind::Rekey => "rekey",
        rekey::Kind::Encrypt => "encrypt",
        rekey::Kind::Decrypt => "decrypt",
    };
    format!(
        "let it end first: `sealblk rekey DISK --status` says how far it is; without a daemon, \
         `sealblk volume {command}` goes on with it"
    )
}

/// What becomes of a disk that is plain.
pub(crate) fn plain_help(data_offset: u64) -> String {
    match data_offset {
        0 => {
            "use the data file as it is, as a raw disk; the header is of no use any more, and may \
              be removed"
                .into()
        }
        offset => format!(
            "use what follows byte {offset} of the file as it is, as a raw disk; to have it in a \
             file of its own: qemu-img convert -O raw \
             'json:{{\"driver\":\"raw\",\"offset\":{offset},\"file\":{{\"driver\":\"file\",\"filename\":\"PATH\"}}}}' \
             NEW"
        ),
    }
}

/// The next step after a failed system call on `path`.
fn io_help(path: &Path, source: &io::Error) -> Option<String> {
    use io::ErrorKind as E;
    if let Some(refused) = paths::Refused::of(source) {
        return Some(refused.next().into());
    }
    Some(match source.kind() {
        E::NotFound | E::NotADirectory => {
            format!("check that {} exists and is spelt right", path.display())
        }
        E::PermissionDenied => format!(
            "give the user that runs sealblk access to {}",
            path.display()
        ),
        E::ReadOnlyFilesystem => {
            "the file system is mounted read-only: use the volume read-only, or remount it".into()
        }
        E::AlreadyExists => "use a path that does not exist yet".into(),
        E::StorageFull | E::QuotaExceeded => {
            "free some space on that file system; nothing was left behind".into()
        }
        E::FileTooLarge => {
            "the file system or a limit of the process (ulimit -f) forbids files of that size"
                .into()
        }
        E::Unsupported => {
            "the file system cannot do it: try without --preallocate, or use another \
             file system"
                .into()
        }
        _ => format!(
            "check what {} lies on: the kernel log (`dmesg`) may say more",
            path.display()
        ),
    })
}
