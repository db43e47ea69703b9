//! What a guest may do per second, as somebody writes it: the names are those
//! of QEMU's throttle.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Error;
use crate::engine::throttle::{self, Burst, Rate, Rates};
use crate::units::Bytes;

/// The most that a limit may be: what QEMU permits.
const MOST: u64 = 1_000_000_000_000_000;

/// The longest that a burst may be permitted, in seconds: a day.
const LONGEST: u64 = 86_400;

/// What a guest may do per second. Limits of one kind, of requests or of bytes,
/// are set together: who sets one of them sets all, and lifts those that are
/// left out.
//
// The doc comments are the help texts of the flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests per second in all; 0 is no limit [default: no limit]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub iops_total: Option<PerSecond>,

    /// Requests per second in all in a burst [default: no burst]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub iops_total_max: Option<PerSecond>,

    /// Seconds that such a burst may last, 1 to 86400 [default: 1]
    #[arg(
        long,
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 86400)]
    pub iops_total_max_length: Option<Seconds>,

    /// Reads per second; 0 is no limit [default: no limit]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub iops_read: Option<PerSecond>,

    /// Reads per second in a burst [default: no burst]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub iops_read_max: Option<PerSecond>,

    /// Seconds that such a burst may last, 1 to 86400 [default: 1]
    #[arg(
        long,
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 86400)]
    pub iops_read_max_length: Option<Seconds>,

    /// Writes per second; 0 is no limit [default: no limit]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub iops_write: Option<PerSecond>,

    /// Writes per second in a burst [default: no burst]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub iops_write_max: Option<PerSecond>,

    /// Seconds that such a burst may last, 1 to 86400 [default: 1]
    #[arg(
        long,
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 86400)]
    pub iops_write_max_length: Option<Seconds>,

    /// Bytes that a request may have to count as one; larger ones count as several
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub iops_size: Option<BytesPerSecond>,

    /// Bytes per second in all; 0 is no limit [default: no limit]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub bps_total: Option<BytesPerSecond>,

    /// Bytes per second in all in a burst [default: no burst]
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub bps_total_max: Option<BytesPerSecond>,

    /// Seconds that such a burst may last, 1 to 86400 [default: 1]
    #[arg(
        long,
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 86400)]
    pub bps_total_max_length: Option<Seconds>,

    /// Bytes read per second; 0 is no limit [default: no limit]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub bps_read: Option<BytesPerSecond>,

    /// Bytes read per second in a burst [default: no burst]
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub bps_read_max: Option<BytesPerSecond>,

    /// Seconds that such a burst may last, 1 to 86400 [default: 1]
    #[arg(
        long,
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 86400)]
    pub bps_read_max_length: Option<Seconds>,

    /// Bytes written per second; 0 is no limit [default: no limit]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub bps_write: Option<BytesPerSecond>,

    /// Bytes written per second in a burst [default: no burst]
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub bps_write_max: Option<BytesPerSecond>,

    /// Seconds that such a burst may last, 1 to 86400 [default: 1]
    #[arg(
        long,
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 86400)]
    pub bps_write_max_length: Option<Seconds>,
}

/// Anything per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PerSecond(u64);

/// A number of bytes: in the file also as text, such as "100M".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct BytesPerSecond(u64);

/// A time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Seconds(u64);

macro_rules! number {
    ($type:ident, $expecting:literal, $parse:expr) => {
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                $parse(text).map($type)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Reader;

                impl Visitor<'_> for Reader {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                from.deserialize_any(Reader)
            }
        }
    };
}

number!(PerSecond, "a number per second", |text: &str| {
    let number = text.parse().ok().filter(|number| *number <= MOST);
    number.ok_or_else(|| format!("{text:?} is no limit: write a number up to {MOST}, 0 for none"))
});
number!(BytesPerSecond, "a number of bytes", |text: &str| {
    match text.parse::<Bytes>() {
        Ok(Bytes(bytes @ 0..=MOST)) => Ok(bytes),
        Ok(_) => Err(format!("{text} is no limit: the highest is {MOST}")),
        Err(why) => Err(why),
    }
});
number!(Seconds, "a number of seconds", |text: &str| {
    let number = text.parse().ok().filter(|it| (1..=LONGEST).contains(it));
    number.ok_or_else(|| format!("{text:?} is no length of a burst: write 1 to {LONGEST} seconds"))
});

/// One limit as it was written, and what it is called.
struct Written {
    name: &'static str,
    rate: Option<u64>,
    burst: Option<u64>,
    seconds: Option<u64>,
}

/// The limits of one kind: in all, reading, writing.
type Kind = [Written; 3];

macro_rules! written {
    ($limits:expr, $($rate:ident $burst:ident $seconds:ident),+) => {
        [$(Written {
            name: stringify!($rate),
            rate: $limits.$rate.map(|it| it.0),
            burst: $limits.$burst.map(|it| it.0),
            seconds: $limits.$seconds.map(|it| it.0),
        }),+]
    };
}

impl Limits {
    fn operations(&self) -> Kind {
        written!(
            self,
            iops_total iops_total_max iops_total_max_length,
            iops_read iops_read_max iops_read_max_length,
            iops_write iops_write_max iops_write_max_length
        )
    }

    fn bytes(&self) -> Kind {
        written!(
            self,
            bps_total bps_total_max bps_total_max_length,
            bps_read bps_read_max bps_read_max_length,
            bps_write bps_write_max bps_write_max_length
        )
    }

    /// No limit at all, in so many words.
    pub fn none() -> Self {
        Limits {
            iops_total: Some(PerSecond(0)),
            bps_total: Some(BytesPerSecond(0)),
            ..Limits::default()
        }
    }

    /// Whether nothing was written.
    pub fn is_unset(&self) -> bool {
        *self == Limits::default()
    }

    /// These where they are set, and `below` where they are not: limits of a
    /// kind are set together.
    #[must_use]
    pub fn over(self, below: Limits) -> Limits {
        let sets = |kind: &Kind| {
            let any = |it: &Written| it.rate.or(it.burst).or(it.seconds).is_some();
            kind.iter().any(any)
        };
        let operations = match sets(&self.operations()) || self.iops_size.is_some() {
            true => self.clone(),
            false => below.clone(),
        };
        let bytes = match sets(&self.bytes()) {
            true => self,
            false => below,
        };
        Limits {
            bps_total: bytes.bps_total,
            bps_total_max: bytes.bps_total_max,
            bps_total_max_length: bytes.bps_total_max_length,
            bps_read: bytes.bps_read,
            bps_read_max: bytes.bps_read_max,
            bps_read_max_length: bytes.bps_read_max_length,
            bps_write: bytes.bps_write,
            bps_write_max: bytes.bps_write_max,
            bps_write_max_length: bytes.bps_write_max_length,
            ..operations
        }
    }

    /// What the data path keeps to.
    ///
    /// # Errors
    /// When limits contradict each other.
    pub fn resolve(&self) -> Result<throttle::Limits, Error> {
        let limits = throttle::Limits {
            operations: rates(self.operations())?,
            bytes: rates(self.bytes())?,
            operation_bytes: self.iops_size.map_or(0, |size| size.0),
        };
        match limits.operation_bytes > 0 && limits.operations == Rates::default() {
            true => Err(Error::contradiction(
                "iops_size is set, and no number of requests is limited",
                "set iops_total, iops_read or iops_write, or leave iops_size out",
            )),
            false => Ok(limits),
        }
    }

    /// How these limits would be written.
    pub fn of(limits: &throttle::Limits) -> Self {
        let rate = |rate: &Option<Rate>| {
            let burst = rate.and_then(|rate| rate.burst);
            (
                rate.map(|rate| rate.per_second),
                burst.map(|burst| burst.per_second),
                burst.map(|burst| Seconds(burst.seconds)),
            )
        };
        let mut written = Limits::default();
        macro_rules! write {
            ($type:ident, $from:expr, $rate:ident $burst:ident $seconds:ident) => {
                let (per_second, burst, seconds) = rate(&$from);
                written.$rate = per_second.map($type);
                written.$burst = burst.map($type);
                written.$seconds = seconds;
            };
        }
        let throttle::Limits {
            operations,
            bytes,
            operation_bytes,
        } = limits;
        write!(PerSecond, operations.total, iops_total iops_total_max iops_total_max_length);
        write!(PerSecond, operations.read, iops_read iops_read_max iops_read_max_length);
        write!(PerSecond, operations.write, iops_write iops_write_max iops_write_max_length);
        write!(BytesPerSecond, bytes.total, bps_total bps_total_max bps_total_max_length);
        write!(BytesPerSecond, bytes.read, bps_read bps_read_max bps_read_max_length);
        write!(BytesPerSecond, bytes.write, bps_write bps_write_max bps_write_max_length);
        written.iops_size = (*operation_bytes > 0).then_some(BytesPerSecond(*operation_bytes));
        written
    }
}

/// The limits of one kind, if they can be kept together.
fn rates(kind: Kind) -> Result<Rates, Error> {
    let [total, read, write] = &kind;
    let set = |it: &Written| it.rate.is_some_and(|rate| rate > 0);
    if let Some(other) = [read, write].into_iter().find(|it| set(total) && set(it)) {
        let (total, other) = (total.name, other.name);
        return Err(Error::contradiction(
            format!("{total} and {other} exclude each other: one limits reads and writes together"),
            format!("set {total}, or limits for reads and writes apart"),
        ));
    }
    let [total, read, write] = kind;
    Ok(Rates {
        total: rate(&total)?,
        read: rate(&read)?,
        write: rate(&write)?,
    })
}

fn rate(written: &Written) -> Result<Option<Rate>, Error> {
    let Written {
        name,
        rate,
        burst,
        seconds,
    } = *written;
    let burst = burst.filter(|burst| *burst > 0);
    let Some(per_second) = rate.filter(|rate| *rate > 0) else {
        return match burst.is_some() || seconds.is_some() {
            true => Err(Error::contradiction(
                format!("{name} sets no limit, and a burst beyond it is permitted"),
                format!("set {name}, or leave out what begins with {name}_max"),
            )),
            false => Ok(None),
        };
    };
    let burst = match (burst, seconds) {
        (Some(burst), _) if burst < per_second => {
            return Err(Error::contradiction(
                format!("{name}_max is {burst}, less than {name}, which is {per_second}"),
                format!("set {name}_max higher than {name}, or leave it out"),
            ));
        }
        (None, Some(_)) => {
            return Err(Error::contradiction(
                format!("{name}_max_length is the length of no burst"),
                format!("set {name}_max, too, or leave out {name}_max_length"),
            ));
        }
        (burst, seconds) => burst.map(|per_second| Burst {
            per_second,
            seconds: seconds.unwrap_or(1),
        }),
    };
    Ok(Some(Rate { per_second, burst }))
}

/// As they stand in the file, in one line.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut item = |name: &str, suffix: &str, value: Option<u64>| {
            let Some(value) = value else { return Ok(()) };
            let space = if std::mem::take(&mut first) { "" } else { " " };
            write!(f, "{space}{name}{suffix}={value}")
        };
        for written in self.operations().iter().chain(&self.bytes()) {
            item(written.name, "", written.rate)?;
            item(written.name, "_max", written.burst)?;
            item(written.name, "_max_length", written.seconds)?;
        }
        item("iops_size", "", self.iops_size.map(|size| size.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Explain;

    fn limits(text: &str) -> Limits {
        toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn limits_mean_what_they_say() {
        let written = limits(
            "iops_total = 1000\niops_total_max = 5000\niops_total_max_length = 10\n\
             iops_size = 4096\nbps_read = \"100M\"\nbps_write = 1048576\nbps_write_max = \"2M\"",
        );
        let found = written.resolve().unwrap();
        let rate = |per_second, burst: Option<(u64, u64)>| {
            let burst = burst.map(|(per_second, seconds)| Burst {
                per_second,
                seconds,
            });
            Some(Rate { per_second, burst })
        };
        let expected = throttle::Limits {
            operations: Rates {
                total: rate(1000, Some((5000, 10))),
                ..Rates::default()
            },
            bytes: Rates {
                total: None,
                read: rate(100 << 20, None),
                write: rate(1 << 20, Some((2 << 20, 1))),
            },
            operation_bytes: 4096,
        };
        assert_eq!(found, expected);
        // And can be written down again.
        assert_eq!(Limits::of(&found).resolve().unwrap(), expected);
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), written);
        assert_eq!(
            written.to_string(),
            "iops_total=1000 iops_total_max=5000 iops_total_max_length=10 bps_read=104857600 \
             bps_write=1048576 bps_write_max=2097152 iops_size=4096"
        );
        let none = limits("iops_total = 0\nbps_read = 0");
        assert!(none.resolve().unwrap().is_none());
        assert!(Limits::default().resolve().unwrap().is_none());
    }

    #[test]
    fn limits_of_a_kind_are_set_together() {
        let below = limits("iops_total = 10\niops_total_max = 20\niops_size = 512\nbps_total = 30");
        for (above, text) in [
            (
                "",
                "iops_total=10 iops_total_max=20 bps_total=30 iops_size=512",
            ),
            ("iops_read = 5", "iops_read=5 bps_total=30"),
            ("iops_total = 0", "iops_total=0 bps_total=30"),
            (
                "bps_write = 7",
                "iops_total=10 iops_total_max=20 bps_write=7 iops_size=512",
            ),
            ("iops_write = 1\nbps_total = 0", "iops_write=1 bps_total=0"),
        ] {
            let found = limits(above).over(below.clone());
            assert_eq!(found.to_string(), text, "{above}");
            found.resolve().unwrap();
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_do() {
        for (text, cause, help) in [
            (
                "iops_total = 5\niops_write = 5",
                "exclude each other",
                "apart",
            ),
            (
                "bps_total = 5\nbps_read = 5",
                "bps_total and bps_read",
                "set bps_total",
            ),
            ("iops_read_max = 5", "sets no limit", "set iops_read"),
            (
                "iops_read = 0\niops_read_max_length = 5",
                "sets no limit",
                "leave out",
            ),
            (
                "bps_read = 9\nbps_read_max = 8",
                "is 8, less than",
                "higher",
            ),
            (
                "bps_read = 9\nbps_read_max_length = 8",
                "of no burst",
                "bps_read_max",
            ),
            ("iops_size = 9", "no number of requests", "iops_total"),
        ] {
            let error = limits(text).resolve().unwrap_err();
            assert!(error.to_string().contains(cause), "{text}: {error}");
            let said = error.help().unwrap_or_default();
            assert!(said.contains(help), "{text}: {said}");
        }
        for text in [
            "iops_total = -1",
            "iops_total = 1000000000000001",
            "iops_total = 1.5",
            "iops_total = \"10K\"",
            "bps_total = \"10 apples\"",
            "bps_total = \"2P\"",
            "iops_total_max_length = 0",
            "iops_total_max_length = 86401",
            "iops = 5",
        ] {
            assert!(toml::from_str::<Limits>(text).is_err(), "{text}");
        }
    }
}
