//! The one checked configuration that serving disks trusts.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::choices::{Cache, Direct, Discard, OnError};
use super::error::Error;
use super::group::Group;
use super::options::Options;
use super::values::{Engine, Queues, Serial, SocketMode};
use crate::engine::throttle;

/// The longest path that fits into a socket address with its final zero.
pub(super) const SOCKET_PATH_MAX: usize = 107;

/// Which disks to serve, and how. Complete, and free of contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Serve {
    /// At least one; all paths are absolute, no socket or volume comes twice.
    pub disks: Vec<Disk>,
    /// Permissions of the sockets.
    pub socket_mode: SocketMode,
    /// Group of the sockets; `None` leaves that of the process.
    pub socket_group: Option<Group>,
    /// How many virtqueues each disk offers, 1 to 64.
    pub queues: u16,
    /// CPUs that the threads of the queues run on, in turns; none is any.
    pub cpus: Vec<u16>,
    /// The largest size of each, a power of two from 16 to 1024.
    pub queue_size: u16,
    /// Whether the disks cannot be written.
    pub read_only: bool,
    /// What DISCARD does. [`Discard::Ignore`] for a read-only disk.
    pub discard: Discard,
    /// Whether to use O_DIRECT.
    pub direct: Direct,
    /// The cache mode that a disk starts in.
    pub cache: Cache,
    /// How long an idle queue polls, at most.
    pub poll: Duration,
    /// The cipher engine.
    pub engine: Engine,
    /// What the guest of each disk may do per second.
    pub limits: throttle::Limits,
    /// What is done when the disk below fails.
    pub on_error: OnError,
    /// How long an operation is in flight before it is reported.
    pub stuck_after: Duration,
    /// Where to write the process id.
    pub pid_file: Option<PathBuf>,
    /// Whether wraps of other key sets than a volume's own may open it. Never
    /// configured: somebody asks for it.
    pub break_glass: bool,
    /// Also if the own key set denies its key.
    pub even_if_denied: bool,
    /// The recovery key that opens the volumes.
    pub recovery_key_file: Option<PathBuf>,
    /// Whether decrypting a volume, which was begun, goes on. Never configured
    /// either.
    pub decrypt: bool,
    /// Whether it serves nothing without all its walls. Never configured either.
    pub require_sandbox: bool,
    /// Whether the guests come from another host, which has the volumes. Never
    /// configured.
    pub incoming: bool,
}

/// One disk to serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    /// The backing file or block device.
    pub volume: PathBuf,
    /// The file that its header is in, if that is not the volume itself.
    pub header: Option<PathBuf>,
    /// Where QEMU connects.
    pub socket: PathBuf,
    /// The serial number; `None` makes one from the volume's UUID.
    pub serial: Option<Serial>,
}

impl Serve {
    /// Lays `flags` over `file`, fills in the defaults, and checks it all.
    /// `volumes`, `headers` (if there are any) and `sockets` belong together
    /// in their order.
    ///
    /// # Errors
    /// When something contradicts something else.
    pub fn resolve(
        volumes: Vec<PathBuf>,
        headers: Vec<PathBuf>,
        sockets: Vec<PathBuf>,
        flags: Options,
        file: Options,
    ) -> Result<Self, Error> {
        let options = flags.over(file)?;
        let count = volumes.len();
        if sockets.len() != count {
            return Err(Error::contradiction(
                format!("there are {count} volumes and {} sockets", sockets.len()),
                "give one --socket for each volume, in the same order",
            ));
        }
        if !headers.is_empty() && headers.len() != count {
            return Err(Error::contradiction(
                format!("there are {count} volumes and {} headers", headers.len()),
                "give one --header for each volume, in the same order, or serve volumes with and without one apart",
            ));
        }
        if options.serial.is_some() && count > 1 {
            return Err(Error::contradiction(
                format!(
                    "one serial number for {count} disks: guests take disks of one serial number for the same disk"
                ),
                "leave the serial number out, or serve each volume apart",
            ));
        }
        let mut headers = headers.into_iter();
        let disks: Vec<Disk> = volumes
            .into_iter()
            .zip(sockets)
            .map(|(volume, socket)| Disk {
                volume,
                header: headers.next(),
                socket,
                serial: options.serial.clone(),
            })
            .collect();
        let pid_file = options.pid_file.map(PathBuf::from);
        check_paths(&disks, pid_file.as_deref())?;

        let socket_mode = match (options.socket_mode, &options.socket_group) {
            (None, None) => SocketMode::OWNER,
            (None, Some(_)) => SocketMode::GROUP,
            (Some(mode), Some(group)) if !mode.lets_group_connect() => {
                return Err(Error::contradiction(
                    format!("socket mode {mode} does not let group {group} connect"),
                    "use mode 0660, or leave the group out",
                ));
            }
            (Some(mode), _) => mode,
        };
        let read_only = options.read_only.unwrap_or(false);
        Ok(Serve {
            disks,
            socket_mode,
            socket_group: options.socket_group,
            cpus: options
                .cpus
                .map_or(Vec::new(), |cpus| cpus.numbers().to_vec()),
            queues: options.queues.unwrap_or_else(Queues::of_host).get(),
            queue_size: options.queue_size.unwrap_or_default().get(),
            read_only,
            discard: match options.discard {
                Some(discard) if !read_only => discard,
                _ => Discard::Ignore,
            },
            direct: options.direct.unwrap_or_default(),
            cache: options.cache.unwrap_or_default(),
            poll: options.poll_us.unwrap_or_default().get(),
            engine: options.engine.unwrap_or_default(),
            limits: options.limits.resolve()?,
            on_error: options.on_error.unwrap_or_default(),
            stuck_after: options.stuck_after.unwrap_or_default().get(),
            pid_file,
            break_glass: false,
            even_if_denied: false,
            recovery_key_file: None,
            decrypt: false,
            require_sandbox: false,
            incoming: false,
        })
    }
}

/// Every path must have one use: a socket or process id in place of a volume
/// would destroy it.
fn check_paths(disks: &[Disk], pid_file: Option<&Path>) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    let each = disks.iter().flat_map(|disk| {
        [Some(&disk.volume), disk.header.as_ref(), Some(&disk.socket)]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    });
    for path in each.chain(pid_file) {
        if !seen.insert(path) {
            return Err(Error::contradiction(
                format!("{} is named for two purposes", path.display()),
                "give each volume, header, socket and pid file a path of its own",
            ));
        }
    }
    for disk in disks {
        let length = disk.socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(Error::contradiction(
                format!(
                    "the path of socket {} has {length} bytes, and the system takes {SOCKET_PATH_MAX}",
                    disk.socket.display()
                ),
                "put the socket into a directory with a shorter path, such as /run/sealblk",
            ));
        }
    }
    Ok(())
}
