//! The desired state: which disks shall be served, one file for each.
//!
//! A file is there before anything of its disk is, and goes after everything
//! of it has gone. So after a crash at any instant nothing is served of which
//! nobody knows, and what was served will be served again.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::directory::OwnDirectory;
use super::model::is_disk_name;
use crate::config::Options;
use crate::durable;
use crate::error::{Explain, Kind, io_kind};
use crate::timestamp::Timestamp;
use crate::volume::Standing;

/// The version of the records that are written, and the highest that is read.
const VERSION: u32 = 1;

/// More than any record has.
const RECORD_MAX: u64 = 64 << 10;

/// What files of records end with.
const SUFFIX: &str = ".json";

/// A disk that shall be served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this structure: 1.
    pub version: u32,
    /// Tells this attachment from every other one, of the same volume too.
    pub id: Uuid,
    /// What the disk is called.
    pub name: String,
    /// The file or block device.
    pub volume: PathBuf,
    /// Its detached header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<PathBuf>,
    /// Where front ends connect.
    pub socket: PathBuf,
    /// How it is served, as far as somebody said so.
    #[serde(default)]
    pub options: Options,
    /// Whether the break-glass key may be used.
    #[serde(default)]
    pub break_glass: bool,
    /// When somebody asked for it.
    pub attached: Timestamp,
    /// For a disk that is nowhere but in its worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<Scratch>,
    /// What this host has of the volume: another one may have it, or have had it.
    #[serde(default, skip_serializing_if = "is_held")]
    pub standing: Standing,
}

fn is_held(standing: &Standing) -> bool {
    *standing == Standing::Held
}

/// What is on record of an ephemeral disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scratch {
    /// What the guest sees, in bytes.
    pub size: u64,
    /// Bytes of a data unit.
    pub sector_size: u32,
    /// The boot of the host in which it was served. As long as that is the one
    /// that runs, a guest may have it, and it is not to begin anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_in: Option<String>,
}

impl Record {
    /// A record of the current version.
    pub fn new(name: String, volume: PathBuf, socket: PathBuf) -> Self {
        Record {
            version: VERSION,
            id: Uuid::new_v4(),
            name,
            volume,
            header: None,
            socket,
            options: Options::default(),
            break_glass: false,
            attached: Timestamp::now(),
            ephemeral: None,
            standing: Standing::Held,
        }
    }
}

/// Why the desired state cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another manager works with the directory.
    #[error("another manager{by} uses {path}", by = pid(*.by))]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Its process.
        by: Option<u32>,
    },
    /// Others could put things there.
    #[error("{path} is not safe: it belongs to user {owner} and has mode {mode:04o}")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// Something cannot be read, written or made.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// A record that is not one.
    #[error("the desired state in {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A record of a later sealblk, or one of another disk.
    #[error("the desired state in {path} is not of this sealblk: {what}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How that shows.
        what: String,
    },
    /// Others could put another directory in its place.
    #[error("{path} is not safe: others than root and its owner can change {above}")]
    Beneath {
        /// The directory.
        path: PathBuf,
        /// What is above it, or leads to it.
        above: PathBuf,
    },
}

fn pid(pid: Option<u32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (process {pid})"))
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Taken { .. } => Kind::Busy,
            Error::Unsafe { .. } | Error::Beneath { .. } => Kind::Permission,
            Error::Io { source, .. } => io_kind(source),
            Error::Damaged { .. } => Kind::Corrupt,
            Error::Foreign { .. } => Kind::Unsupported,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Taken { .. } => {
                "stop that manager, or give this one directories of its own".into()
            }
            Error::Unsafe { path, .. } => format!(
                "give it to the user that the manager runs as, and take the right to write from \
                 others: `chmod go-w {}`",
                path.display()
            ),
            Error::Beneath { path, above } => format!(
                "take that right from them (`chmod go-w {}`), or have {} elsewhere",
                above.display(),
                path.display()
            ),
            Error::Io { path, .. } => format!(
                "check the mode and owner of {}, and the space that is left there",
                path.parent().unwrap_or(path).display()
            ),
            Error::Damaged { .. } => {
                "detach the disk, which removes the file, and attach it again".into()
            }
            Error::Foreign { .. } => {
                "start the version of sealblk that wrote it, or detach the disk and attach it again"
                    .into()
            }
        })
    }
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

/// What is on record under a name.
pub type NamedRecord = (String, Result<Record, Error>);

/// The records of all disks.
#[derive(Debug)]
pub struct State {
    disks: PathBuf,
    _own: OwnDirectory,
}

impl State {
    /// The records in the directory `path`, which no other manager may use.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let own = OwnDirectory::take(path, 0o700)?;
        Ok(State {
            disks: own.within("disks")?,
            _own: own,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.disks.join(format!("{name}{SUFFIX}"))
    }

    /// All records by name. One that cannot be used comes as its error.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn all(&self) -> Result<Vec<NamedRecord>, Error> {
        let fail = || failed("read the directory", &self.disks);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.disks).map_err(fail())? {
            let file = entry.map_err(fail())?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(SUFFIX));
            // What a crash left half written has another suffix.
            if let Some(name) = name.filter(|name| is_disk_name(name)) {
                found.push((name.to_owned(), self.read(name)));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }

    fn read(&self, name: &str) -> Result<Record, Error> {
        let path = self.file(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(RECORD_MAX).read_to_end(&mut bytes));
        read.map_err(failed("read", &path))?;
        let damaged = |source| Error::Damaged {
            path: path.clone(),
            source,
        };
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let foreign = |what| Error::Foreign {
            path: path.clone(),
            what,
        };
        let Versioned { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(foreign(format!("it has version {version}")));
        }
        let record: Record = serde_json::from_slice(&bytes).map_err(damaged)?;
        match record.name == name {
            true => Ok(record),
            false => Err(foreign(format!("it is of a disk {:?}", record.name))),
        }
    }

    /// Writes a record. When this returns, it survives a crash of the host.
    ///
    /// # Errors
    /// When it cannot be written. What was there before is still there.
    pub fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.file(&record.name);
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        text.and_then(|mut text| {
            text.push(b'\n');
            durable::replace(&path, &text, 0o600)
        })
        .map_err(failed("write", &path))
    }

    /// Removes the record of a disk, if there is one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.file(name);
        durable::remove_if_there(&path).map_err(failed("remove", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        Record::new(name.into(), "/v.img".into(), "/s.sock".into())
    }

    #[test]
    fn records_are_kept_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        assert!(state.all().unwrap().is_empty());
        // "b" and "b.json" must not get in each other's way.
        for name in ["b", "a.new", "b.json"] {
            state.write(&record(name)).unwrap();
        }
        let names: Vec<_> = state
            .all()
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["a.new", "b", "b.json"]);
        let mut changed = record("b");
        changed.options = serde_json::from_str(r#"{"queues": 3, "serial": "x"}"#).unwrap();
        state.write(&changed).unwrap();
        drop(state);

        let state = State::open(dir.path()).unwrap();
        let all = state.all().unwrap();
        assert_eq!(all[1].1.as_ref().unwrap(), &changed);
        state.remove("b").unwrap();
        state.remove("b").unwrap();
        assert_eq!(state.all().unwrap().len(), 2);
    }

    #[test]
    fn a_record_that_cannot_be_used_hides_no_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.write(&record("good")).unwrap();
        let disks = dir.path().join("disks");
        let later = serde_json::to_string(&record("later")).unwrap();
        let later = later.replace("\"version\":1", "\"version\":2");
        fs::write(disks.join("later.json"), later).unwrap();
        fs::write(disks.join("torn.json"), "{\"version\": 1, ").unwrap();
        fs::copy(disks.join("good.json"), disks.join("copy.json")).unwrap();
        fs::write(disks.join("half.json.new"), "{").unwrap();
        let kinds: Vec<_> = state
            .all()
            .unwrap()
            .into_iter()
            .map(|(name, read)| (name, read.err().map(|error| error.kind())))
            .collect();
        let expected = [
            ("copy", Some(Kind::Unsupported)),
            ("good", None),
            ("later", Some(Kind::Unsupported)),
            ("torn", Some(Kind::Corrupt)),
        ];
        assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }
}
