//! The settings of `serve`, as somebody wrote them: in the file or as flags.
#![forbid(unsafe_code)]

use clap::builder::TypedValueParser;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::choices::{Cache, Direct, Discard, OnError};
use super::cpus::Cpus;
use super::error::Error;
use super::group::Group;
use super::limits::Limits;
use super::values::{Engine, FilePath, Poll, QueueSize, Queues, Serial, SocketMode, StuckAfter};

/// What `[serve]` in the file and the flags of `sealblk serve` can set. What
/// is not set is `None`, so that one can be laid over the other.
//
// One structure for both: a setting cannot exist in one and not in the other.
// The doc comments are the help texts of the flags.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Permissions of the socket, in octal [default: 0600, or 0660 with a socket group]
    ///
    /// Whoever can connect reads and writes the disk in clear.
    #[arg(long, value_name = "MODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^0?[0-7]{3}$", example = "0660")]
    pub socket_mode: Option<SocketMode>,

    /// Group that the socket belongs to, by name or number
    #[arg(long, value_name = "GROUP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "libvirt-qemu")]
    pub socket_group: Option<Group>,

    /// Number of virtqueues, 1 to 64 [default: as many as this host has cores]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 64)]
    pub queues: Option<Queues>,

    /// CPUs that the queues' threads run on, in turns, such as 2-5,8 [default: all]
    ///
    /// Each thread stays on its CPU, and takes memory from the node of that CPU.
    #[arg(long, value_name = "LIST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "2-5,8")]
    pub cpus: Option<Cpus>,

    /// Largest size of a virtqueue, a power of two from 16 to 1024 [default: 1024]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 16, maximum = 1024)]
    pub queue_size: Option<QueueSize>,

    /// Serve a disk that cannot be written
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,

    /// What a guest's DISCARD does [default: ignore]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,

    /// Go around the host's page cache [default: auto]
    #[arg(long, value_name = "WHEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<Direct>,

    /// When a write is durable, unless the guest chooses [default: writeback]
    #[arg(long, value_name = "WHEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,

    /// How many microseconds an idle queue looks for work before it sleeps, 0 to 1000 [default: 50]
    #[arg(long, value_name = "MICROSECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 0, maximum = 1000)]
    pub poll_us: Option<Poll>,

    /// AES-XTS implementation: auto, vaes512, vaes256, aesni, portable or aws-lc [default: auto]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "auto")]
    pub engine: Option<Engine>,

    /// Serial number that the guest sees, up to 20 characters [default: from the volume's UUID]
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 20)]
    pub serial: Option<Serial>,

    /// File to write the process id to
    #[arg(long, value_name = "PATH", value_parser = path_parser())]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "/run/sealblk/disk.pid")]
    pub pid_file: Option<FilePath>,

    /// What the guest may do per second. Limits of a kind are set together.
    #[command(flatten)]
    #[serde(default, skip_serializing_if = "Limits::is_unset")]
    pub limits: Limits,

    /// What to do when the file or device below fails, or is full [default: report]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,

    /// Report an operation of the disk below that takes longer, 100ms to 1h [default: 30s]
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "30s")]
    pub stuck_after: Option<StuckAfter>,
}

/// Reads a flag as a path, in whatever encoding the file system has.
pub(crate) fn path_parser() -> impl TypedValueParser<Value = FilePath> {
    clap::builder::PathBufValueParser::new().try_map(FilePath::from_flag)
}

impl Options {
    /// These options where they are set, and `below` where they are not.
    ///
    /// # Errors
    /// When the options of either one contradict each other. Across the two
    /// they do not: what was written later wins.
    pub(super) fn over(self, below: Options) -> Result<Options, Error> {
        self.check("--read-only", "--discard", "--cache")?;
        below.check("read_only", "discard", "cache")?;
        // Also where it is overridden: it is wrong where it stands.
        self.limits.resolve()?;
        below.limits.resolve()?;
        // Taken apart, so that a new option cannot be forgotten here.
        let Options {
            socket_mode,
            socket_group,
            queues,
            cpus,
            queue_size,
            read_only,
            discard,
            direct,
            cache,
            poll_us,
            engine,
            serial,
            pid_file,
            limits,
            on_error,
            stuck_after,
        } = self;
        Ok(Options {
            socket_mode: socket_mode.or(below.socket_mode),
            socket_group: socket_group.or(below.socket_group),
            queues: queues.or(below.queues),
            cpus: cpus.or(below.cpus),
            queue_size: queue_size.or(below.queue_size),
            read_only: read_only.or(below.read_only),
            discard: discard.or(below.discard),
            direct: direct.or(below.direct),
            cache: cache.or(below.cache),
            poll_us: poll_us.or(below.poll_us),
            engine: engine.or(below.engine),
            serial: serial.or(below.serial),
            pid_file: pid_file.or(below.pid_file),
            limits: limits.over(below.limits),
            on_error: on_error.or(below.on_error),
            stuck_after: stuck_after.or(below.stuck_after),
        })
    }

    fn check(&self, read_only: &str, discard: &str, cache: &str) -> Result<(), Error> {
        if self.read_only != Some(true) {
            return Ok(());
        }
        let other = match (self.discard, self.cache) {
            (Some(Discard::Pass), _) => Some(discard),
            (_, Some(_)) => Some(cache),
            _ => None,
        };
        match other {
            Some(other) => Err(Error::contradiction(
                format!(
                    "{read_only} and {other} exclude each other: a read-only disk is never written"
                ),
                format!("leave out {read_only} or {other}"),
            )),
            None => Ok(()),
        }
    }
}
