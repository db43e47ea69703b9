//! The values that settings take. Each is checked where it is read, by the
//! same code for the file and for the flags.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use super::cpus::Cpus;
use super::group::Group;
use crate::crypt;
use crate::error::Explain as _;

/// Deserialises a type from text through its `FromStr`, and from an integer
/// where `integer` says so. The error then points at the value in the file.
pub(super) struct TextVisitor<T> {
    pub(super) expecting: &'static str,
    pub(super) integer: bool,
    pub(super) parse: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        if self.integer {
            return Err(E::invalid_type(de::Unexpected::Str(text), &self));
        }
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        if !self.integer {
            return Err(E::invalid_type(de::Unexpected::Signed(number), &self));
        }
        (self.parse)(&number.to_string()).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        if !self.integer {
            return Err(E::invalid_type(de::Unexpected::Unsigned(number), &self));
        }
        (self.parse)(&number.to_string()).map_err(E::custom)
    }
}

macro_rules! deserialize {
    ($type:ty, $method:ident, $integer:literal, $expecting:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.$method(TextVisitor {
                    expecting: $expecting,
                    integer: $integer,
                    parse: |text| text.parse(),
                })
            }
        }
    };
}

deserialize!(
    SocketMode,
    deserialize_any,
    false,
    "an octal mode in quotes, such as \"0660\""
);
deserialize!(
    Group,
    deserialize_any,
    false,
    "the name or number of a group, in quotes"
);
deserialize!(Serial, deserialize_any, false, "a serial number in quotes");
deserialize!(
    Engine,
    deserialize_any,
    false,
    "the name of a cipher engine in quotes"
);
deserialize!(
    StuckAfter,
    deserialize_any,
    false,
    "a time in quotes, such as \"30s\""
);
deserialize!(Queues, deserialize_any, true, "a number from 1 to 64");
deserialize!(
    QueueSize,
    deserialize_any,
    true,
    "a power of two from 16 to 1024"
);
deserialize!(
    Poll,
    deserialize_any,
    true,
    "a number of microseconds from 0 to 1000"
);

/// What was read is written the same way.
macro_rules! serialize {
    ($type:ty, |$this:ident, $to:ident| $written:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, $to: S) -> Result<S::Ok, S::Error> {
                let $this = self;
                $written
            }
        }
    };
}

serialize!(SocketMode, |mode, to| to.collect_str(mode));
serialize!(Group, |group, to| to.collect_str(group));
serialize!(Serial, |serial, to| to.serialize_str(&serial.0));
serialize!(Engine, |engine, to| to.serialize_str(engine.name()));
serialize!(Queues, |queues, to| to.serialize_u16(queues.0));
serialize!(QueueSize, |size, to| to.serialize_u16(size.0));
serialize!(StuckAfter, |after, to| to.collect_str(after));
serialize!(Poll, |poll, to| to.serialize_u32(poll.0.subsec_micros()));
// Fails for a name that is no text: neither TOML nor JSON can hold it.
serialize!(FilePath, |path, to| path.0.serialize(to));

/// The permission bits of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// For the owner alone.
    pub const OWNER: Self = SocketMode(0o600);
    /// For the owner and the group of the socket.
    pub const GROUP: Self = SocketMode(0o660);

    /// The bits, within 0777.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether the group may connect, which takes the right to write.
    pub fn lets_group_connect(self) -> bool {
        self.0 & 0o020 != 0
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octal =
            (3..=4).contains(&text.len()) && text.bytes().all(|c| (b'0'..=b'7').contains(&c));
        let bits = u32::from_str_radix(text, 8).ok().filter(|_| octal);
        match bits {
            Some(bits) if bits & 0o002 != 0 => Err(format!(
                "mode {text} lets everybody on the host connect, and so read and write the disk in clear: let a group connect instead, with mode 0660 and socket_group"
            )),
            Some(bits) if bits <= 0o777 => Ok(SocketMode(bits)),
            _ => Err(format!(
                "{text:?} is not a mode: write three or four octal digits such as 0600 or 0660"
            )),
        }
    }
}

/// The number of virtqueues that a disk offers, each with its own thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues(u16);

impl Queues {
    /// The most a disk may have.
    pub const MAX: u16 = 64;

    /// The number, 1 to 64.
    pub fn get(self) -> u16 {
        self.0
    }

    /// One for each core of this host, whichever of them this process may use:
    /// QEMU wants as many as the guest has, and does not start with fewer.
    pub fn of_host() -> Self {
        let cores = match Cpus::online() {
            Some(online) => online.numbers().len(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        Queues(u16::try_from(cores).unwrap_or(Self::MAX).min(Self::MAX))
    }
}

impl FromStr for Queues {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number @ 1..=Self::MAX) => Ok(Queues(number)),
            _ => Err(format!(
                "{text} queues cannot be: write a number from 1 to {}",
                Self::MAX
            )),
        }
    }
}

/// The most descriptors that a virtqueue may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSize(u16);

impl QueueSize {
    /// The number, a power of two.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for QueueSize {
    /// The largest one that QEMU has. A guest whose rings are larger than ours
    /// may be would wait for its disk for ever; memory is taken for the size
    /// that the guest uses.
    fn default() -> Self {
        QueueSize(1024)
    }
}

impl FromStr for QueueSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u16>() {
            Ok(size @ 16..=1024) if size.is_power_of_two() => Ok(QueueSize(size)),
            _ => Err(format!(
                "{text} is not a queue size: write 16, 32, 64, 128, 256, 512 or 1024"
            )),
        }
    }
}

/// How long an idle queue thread looks for work before it sleeps, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll(Duration);

impl Poll {
    /// The time, zero for not at all.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl Default for Poll {
    fn default() -> Self {
        Poll(Duration::from_micros(50))
    }
}

impl FromStr for Poll {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(micros @ 0..=1000) => Ok(Poll(Duration::from_micros(micros))),
            _ => Err(format!(
                "{text} is not a time to poll: write 0 (off) to 1000 microseconds"
            )),
        }
    }
}

/// How long an operation of the disk below may be in flight before it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StuckAfter(Duration);

impl StuckAfter {
    /// The time.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl Default for StuckAfter {
    fn default() -> Self {
        StuckAfter(Duration::from_secs(30))
    }
}

impl FromStr for StuckAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let number: Option<u64> = digits.parse().ok();
        match number.zip(unit).and_then(|(n, unit)| n.checked_mul(unit)) {
            Some(ms @ 100..=3_600_000) => Ok(StuckAfter(Duration::from_millis(ms))),
            _ => Err(format!(
                "{text:?} is not a time for an operation to take: write 100ms to 1h, such as 30s"
            )),
        }
    }
}

impl fmt::Display for StuckAfter {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(to, "{}s", self.0.as_secs()),
            _ => write!(to, "{}ms", self.0.as_millis()),
        }
    }
}

/// What the guest reads as the disk's serial number: virtio-blk has 20 bytes for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serial(String);

impl Serial {
    /// The most bytes it can have.
    pub const MAX: usize = 20;

    /// The text, 1 to 20 printable ASCII characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !(1..=Self::MAX).contains(&text.len()) || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(format!(
                "{text:?} is not a serial number: write 1 to {} printable ASCII characters without spaces",
                Self::MAX
            ));
        }
        Ok(Serial(text.into()))
    }
}

/// The AES-XTS implementation: one by name, or the best that this CPU runs.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Engine(Option<crypt::Engine>);

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Engine {
    /// As it is configured.
    fn name(&self) -> &'static str {
        self.0.map_or("auto", crypt::Engine::name)
    }

    /// The engine to use on this host.
    pub fn resolve(self) -> crypt::Engine {
        self.0.unwrap_or_else(crypt::Engine::best)
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Engine(None)),
            name => name.parse().map(|engine| Engine(Some(engine))).map_err(
                |error: crypt::UnknownEngine| {
                    format!("{error}: {}", error.help().unwrap_or_default())
                },
            ),
        }
    }
}

/// A path that does not depend on the working directory. In the file it must
/// be absolute; as a flag it is taken from where the command was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(PathBuf);

impl FilePath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl From<FilePath> for PathBuf {
    fn from(path: FilePath) -> PathBuf {
        path.0
    }
}

impl FilePath {
    /// A flag's value. Any bytes make a path.
    ///
    /// # Errors
    /// When it is empty, or there is no working directory.
    pub fn from_flag(path: PathBuf) -> Result<Self, String> {
        std::path::absolute(&path)
            .map(FilePath)
            .map_err(|error| format!("{:?} is not a path: {error}", path.display()))
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TextVisitor {
            expecting: "an absolute path in quotes",
            integer: false,
            parse: |text| {
                if Path::new(text).is_absolute() {
                    Ok(FilePath(text.into()))
                } else {
                    Err(format!("{text:?} is not an absolute path: begin it with /"))
                }
            },
        })
    }
}
