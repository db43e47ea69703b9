//! The `[daemon]` table: the manager's own settings.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::group::Group;
use super::serve::SOCKET_PATH_MAX;
use super::service::{Parsed, Period};
use super::values::FilePath;
use crate::rotation;
use crate::sandbox::{BadUids, Uids};

/// Where the API is.
pub const DEFAULT_SOCKET: &str = "/run/sealblk/sealblk.sock";
/// Where the desired state is kept.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/sealblk";
/// Where sockets of workers are.
pub const DEFAULT_RUN_DIR: &str = "/run/sealblk";
/// The group that the API's socket belongs to, and whose members may read,
/// where there is one.
pub const DEFAULT_GROUP: &str = "sealblk";

/// The manager's settings, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Daemon {
    /// Where the API is.
    pub socket: PathBuf,
    /// Group of the socket. `None`: [`DEFAULT_GROUP`] if there is one.
    pub socket_group: Option<Group>,
    /// Permissions of the socket. `None`: for the group if there is one, else
    /// for the owner alone.
    pub socket_mode: Option<ApiMode>,
    /// Where the desired state is kept.
    pub state_dir: PathBuf,
    /// Where sockets of workers are.
    pub run_dir: PathBuf,
    /// How many disks are attached at once, at most.
    pub attach_concurrency: usize,
    /// Whether the manager keeps the keys of attached disks, so that a worker
    /// that died comes back while the key service is away.
    pub keep_deks: bool,
    /// How often services are asked for new key versions.
    pub poll: Duration,
    /// How many volumes get other wraps in a second, at most, when their key
    /// set has another key.
    pub rewrap_rate: u32,
    /// How many disks have all their data moved to another key at once, at most.
    pub rekey_concurrency: usize,
    /// Who may do what.
    pub roles: Roles,
    /// The users that workers become which were started by root. `None`: they
    /// stay root.
    pub worker_uids: Option<Uids>,
    /// Whether workers, and the manager, do nothing without all their walls.
    pub require_sandbox: bool,
    /// The directories below which the manager may write besides its own: those
    /// of volumes and sockets. Empty: anywhere.
    pub paths: Vec<PathBuf>,
}

/// Who may do what, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Whether root, and the user that the manager runs as, may do all.
    pub root: bool,
    /// Who may look.
    pub reader: Vec<Principal>,
    /// Who may attach and detach.
    pub operator: Vec<Principal>,
    /// Who may change key sets.
    pub key_admin: Vec<Principal>,
}

/// A user or group, by name or number. Whether it exists is found out when
/// the manager takes the roles: a command that only asks the manager must work
/// also where a directory service is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// `"alice"` or `"1000"`.
    User(String),
    /// `"@ops"` or `"@1000"`.
    Group(String),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::User(name) => f.write_str(name),
            Principal::Group(name) => write!(f, "@{name}"),
        }
    }
}

impl FromStr for Principal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, make): (_, fn(String) -> Self) = match text.strip_prefix('@') {
            Some(name) => (name, Principal::Group),
            None => (text, Principal::User),
        };
        // passwd(5) and group(5) can hold no others.
        let good = |c: char| !c.is_control() && !c.is_whitespace() && !":,@/".contains(c);
        if name.is_empty() || !name.chars().all(good) {
            return Err(format!(
                "{text:?} is neither a user, such as \"alice\" or \"1000\", nor a group, such as \"@ops\""
            ));
        }
        Ok(make(name.into()))
    }
}

/// Permission bits of the API's socket. Unlike those of a disk's socket they
/// may let everybody connect: what somebody may do is decided by roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiMode(u32);

impl ApiMode {
    /// The bits, within 0777.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for ApiMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octal =
            (3..=4).contains(&text.len()) && text.bytes().all(|c| (b'0'..=b'7').contains(&c));
        match u32::from_str_radix(text, 8).ok().filter(|_| octal) {
            Some(bits) if bits <= 0o777 => Ok(ApiMode(bits)),
            _ => Err(format!(
                "{text:?} is not a mode: write three or four octal digits such as 0600, 0660 or 0666"
            )),
        }
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Daemon {
            socket: DEFAULT_SOCKET.into(),
            socket_group: None,
            socket_mode: None,
            state_dir: DEFAULT_STATE_DIR.into(),
            run_dir: DEFAULT_RUN_DIR.into(),
            attach_concurrency: 8,
            keep_deks: true,
            poll: Duration::from_secs(60),
            rewrap_rate: rotation::DEFAULT_RATE,
            rekey_concurrency: 1,
            roles: Roles::default(),
            worker_uids: Some(Uids::DEFAULT),
            require_sandbox: false,
            paths: vec![],
        }
    }
}

impl Default for Roles {
    fn default() -> Self {
        Roles {
            root: true,
            reader: vec![Principal::Group(DEFAULT_GROUP.into())],
            operator: vec![],
            key_admin: vec![],
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    socket: Option<Spanned<FilePath>>,
    socket_group: Option<Group>,
    socket_mode: Option<Parsed<ApiMode>>,
    state_dir: Option<FilePath>,
    run_dir: Option<FilePath>,
    attach_concurrency: Option<Spanned<usize>>,
    keep_deks: Option<bool>,
    poll: Option<Parsed<Period>>,
    rewrap_rate: Option<Spanned<u32>>,
    rekey_concurrency: Option<Spanned<usize>>,
    roles: Option<RolesTable>,
    worker_uids: Option<Parsed<WorkerUids>>,
    require_sandbox: Option<bool>,
    paths: Option<Vec<FilePath>>,
}

struct WorkerUids(Option<Uids>);

impl FromStr for WorkerUids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(WorkerUids(None)),
            range => match range.parse() {
                Ok(uids) => Ok(WorkerUids(Some(uids))),
                Err(bad) => Err(BadUids::to_string(&bad)),
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RolesTable {
    root: Option<bool>,
    reader: Option<Vec<Parsed<Principal>>>,
    operator: Option<Vec<Parsed<Principal>>>,
    #[serde(rename = "key-admin")]
    key_admin: Option<Vec<Parsed<Principal>>>,
}

/// The settings that `value` describes.
pub(super) fn settings<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Daemon, Error> {
    let table: Table = reader.table(value)?;
    let default = Daemon::default();
    let attach_concurrency = match table.attach_concurrency {
        None => default.attach_concurrency,
        Some(given) if (1..=256).contains(given.get_ref()) => given.into_inner(),
        Some(given) => {
            return Err(reader.at(
                given.span().start,
                "attach_concurrency is a number from 1 to 256",
            ));
        }
    };
    let rewrap_rate = match table.rewrap_rate {
        None => default.rewrap_rate,
        Some(given) if (1..=100_000).contains(given.get_ref()) => given.into_inner(),
        Some(given) => {
            return Err(reader.at(
                given.span().start,
                "rewrap_rate is a number of volumes per second, from 1 to 100000",
            ));
        }
    };
    let rekey_concurrency = match table.rekey_concurrency {
        None => default.rekey_concurrency,
        Some(given) if (1..=256).contains(given.get_ref()) => given.into_inner(),
        Some(given) => {
            return Err(reader.at(
                given.span().start,
                "rekey_concurrency is a number from 1 to 256",
            ));
        }
    };
    let socket = match table.socket {
        None => default.socket,
        Some(given) => {
            let at = given.span().start;
            let path = PathBuf::from(given.into_inner());
            check_socket(&path).map_err(|why| reader.at(at, why))?;
            path
        }
    };
    Ok(Daemon {
        socket,
        socket_group: table.socket_group,
        socket_mode: table.socket_mode.map(|mode| mode.0),
        state_dir: table.state_dir.map_or(default.state_dir, PathBuf::from),
        run_dir: table.run_dir.map_or(default.run_dir, PathBuf::from),
        attach_concurrency,
        keep_deks: table.keep_deks.unwrap_or(default.keep_deks),
        poll: table.poll.map_or(default.poll, |poll| poll.0.get()),
        rewrap_rate,
        rekey_concurrency,
        roles: table.roles.map_or(default.roles, Roles::from),
        worker_uids: table
            .worker_uids
            .map_or(default.worker_uids, |uids| uids.0.0),
        require_sandbox: table.require_sandbox.unwrap_or(default.require_sandbox),
        paths: table.paths.map_or(default.paths, |paths| {
            paths.into_iter().map(PathBuf::from).collect()
        }),
    })
}

/// Whether a socket can have that path.
pub(super) fn check_socket(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    match length > SOCKET_PATH_MAX {
        true => Err(format!(
            "the path of the socket has {length} bytes, and the system takes {SOCKET_PATH_MAX}"
        )),
        false => Ok(()),
    }
}

impl From<RolesTable> for Roles {
    fn from(table: RolesTable) -> Self {
        let default = Roles::default();
        let list = |given: Option<Vec<Parsed<Principal>>>, default| match given {
            Some(list) => list.into_iter().map(|principal| principal.0).collect(),
            None => default,
        };
        Roles {
            root: table.root.unwrap_or(default.root),
            reader: list(table.reader, default.reader),
            operator: list(table.operator, default.operator),
            key_admin: list(table.key_admin, default.key_admin),
        }
    }
}
