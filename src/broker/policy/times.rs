//! When a rule holds.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use crate::timestamp::Timestamp;

const DAY: u64 = 86_400;

/// From when to when a rule holds, and at what hours of the day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The first second.
    pub not_before: Option<Timestamp>,
    /// The last one.
    pub not_after: Option<Timestamp>,
    /// Of each day.
    pub hours: Option<Hours>,
}

/// From a minute of the day up to another one, in UTC. They may be on both
/// sides of midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    from: u16,
    to: u16,
}

impl Times {
    /// Whether they hold now.
    pub fn hold(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= now)
            && self.not_after.is_none_or(|to| now <= to)
            && self.hours.is_none_or(|hours| hours.hold(now))
    }

    /// Whether they never hold again.
    pub fn are_over(&self, now: Timestamp) -> bool {
        self.not_after.is_some_and(|to| to < now)
    }
}

impl Hours {
    fn hold(self, now: Timestamp) -> bool {
        let since = now.to_system().duration_since(UNIX_EPOCH);
        let minute = since.map_or(0, |since| since.as_secs() % DAY / 60);
        let (from, to) = (u64::from(self.from), u64::from(self.to));
        match from < to {
            true => (from..to).contains(&minute),
            false => minute >= from || minute < to,
        }
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} are no hours: write from and to in UTC, such as \"06:00-22:00\", or \"22:00-06:00\" for the night"
            )
        };
        let minute = |text: &str| {
            let (hour, minute) = text.split_once(':')?;
            let two = |text: &str| {
                let digits = text.len() == 2 && text.bytes().all(|c| c.is_ascii_digit());
                digits.then(|| text.parse::<u16>().ok())?
            };
            let minute = two(minute).filter(|minute| *minute < 60)?;
            let all = two(hour)? * 60 + minute;
            (all <= 24 * 60).then_some(all)
        };
        let (from, to) = text.split_once('-').ok_or_else(bad)?;
        let from = minute(from)
            .filter(|from| *from < 24 * 60)
            .ok_or_else(bad)?;
        let to = minute(to).ok_or_else(bad)?;
        match from == to {
            true => Err(bad()),
            false => Ok(Hours { from, to }),
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, to] = [self.from, self.to].map(|at| (at / 60, at % 60));
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.0, from.1, to.0, to.1)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.not_before.map(|from| format!("from {from}")));
        parts.extend(self.not_after.map(|to| format!("until {to}")));
        parts.extend(self.hours.map(|hours| format!("at {hours} UTC")));
        f.write_str(&parts.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn hours_are_those_of_the_day_in_utc() {
        let hold = |hours: &str, time: &str| {
            let hours: Hours = hours.parse().unwrap();
            hours.hold(at(&format!("2026-11-22T{time}Z")))
        };
        for (hours, from, last, not) in [
            (
                "06:00-22:00",
                "06:00:00",
                "21:59:59",
                ["05:59:59", "22:00:00"],
            ),
            (
                "22:00-06:00",
                "22:00:00",
                "05:59:59",
                ["21:59:59", "06:00:00"],
            ),
            (
                "00:00-12:30",
                "00:00:00",
                "12:29:59",
                ["12:30:00", "23:59:59"],
            ),
            (
                "12:30-24:00",
                "12:30:00",
                "23:59:59",
                ["12:29:59", "00:00:00"],
            ),
        ] {
            assert!(hold(hours, from) && hold(hours, last), "{hours}");
            assert!(!not.iter().any(|time| hold(hours, time)), "{hours}");
            assert_eq!(hours.parse::<Hours>().unwrap().to_string(), hours);
        }
        assert!(hold("00:00-24:00", "00:00:00") && hold("00:00-24:00", "23:59:59"));
    }

    #[test]
    fn both_ends_are_within() {
        let times = Times {
            not_before: Some(at("2026-11-01T00:00:00Z")),
            not_after: Some(at("2026-11-30T23:59:59Z")),
            hours: None,
        };
        for (time, holds) in [
            ("2026-10-31T23:59:59Z", false),
            ("2026-11-01T00:00:00Z", true),
            ("2026-11-30T23:59:59Z", true),
            ("2026-12-01T00:00:00Z", false),
        ] {
            assert_eq!(times.hold(at(time)), holds, "{time}");
        }
        assert!(times.are_over(at("2026-12-01T00:00:00Z")));
        assert!(!times.are_over(at("2026-10-01T00:00:00Z")));
        assert!(Times::default().hold(at("1970-01-01T00:00:00Z")));
    }

    #[test]
    fn what_are_no_hours_is_refused() {
        for text in [
            "",
            "06:00",
            "6:00-22:00",
            "06:00-06:00",
            "06:60-07:00",
            "24:00-06:00",
            "06:00-24:01",
            "06:00 - 22:00",
            "+6:00-22:00",
            "06:00-22:00:00",
        ] {
            assert!(text.parse::<Hours>().is_err(), "{text:?}");
        }
    }
}
