//! Instants that are written down: UTC, as RFC 3339 text. In whole seconds
//! where people set them, in microseconds where records are kept.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const DAY: i64 = 86_400;

/// Seconds since 1970-01-01T00:00:00Z, within the years 1970 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timestamp(i64);

impl Timestamp {
    /// Now, by the system's clock.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// So much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(MAX);
        Timestamp(self.0.saturating_add(seconds).min(MAX))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        // A clock before 1970 is no reason to fail; it shows as 1970.
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Timestamp(i64::try_from(seconds).unwrap_or(i64::MAX).min(MAX))
    }
}

/// 9999-12-31T23:59:59Z.
const MAX: i64 = 253_402_300_799;

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of its year.
fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    // 153 days are in each run of five months that starts in March.
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year;
    days - 719_468
}

/// The inverse of [`days_from_date`].
fn date_from_days(days: i64) -> (i64, i64, i64) {
    // 400 years have 146,097 days. The estimate is at most one year high.
    let shifted = days + 719_468;
    let mut year = shifted * 400 / 146_097 + 1;
    let start = |year: i64| 365 * year + year / 4 - year / 100 + year / 400;
    while start(year) > shifted {
        year -= 1;
    }
    let day_of_year = shifted - start(year);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    if month < 10 {
        (year, month + 3, day)
    } else {
        (year + 1, month - 9, day)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_from_days(self.0.div_euclid(DAY));
        let rest = self.0.rem_euclid(DAY);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        )
    }
}

impl From<Timestamp> for String {
    fn from(timestamp: Timestamp) -> String {
        timestamp.to_string()
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> SystemTime {
        // From 1970 on, so never negative.
        UNIX_EPOCH + Duration::from_secs(timestamp.0.unsigned_abs())
    }
}

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a time like 2031-02-28T23:59:59Z");
        let bytes = text.as_bytes();
        let punctuation = [
            (4, b'-'),
            (7, b'-'),
            (10, b'T'),
            (13, b':'),
            (16, b':'),
            (19, b'Z'),
        ];
        if bytes.len() != 20 || punctuation.iter().any(|&(at, c)| bytes[at] != c) {
            return Err(bad());
        }
        let number = |from: usize, to: usize| {
            bytes[from..to].iter().try_fold(0i64, |sum, c| {
                c.is_ascii_digit().then(|| sum * 10 + i64::from(c - b'0'))
            })
        };
        let fields = [(0, 4), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19)]
            .map(|(from, to)| number(from, to).unwrap_or(-1));
        let [year, month, day, hour, minute, second] = fields;
        let clock =
            (0..24).contains(&hour) && (0..60).contains(&minute) && (0..60).contains(&second);
        if year < 1970 || !(1..=12).contains(&month) || !clock {
            return Err(bad());
        }
        let days = days_from_date(year, month, day);
        // A 30th of February would come back as another date.
        if date_from_days(days) != (year, month, day) {
            return Err(bad());
        }
        Ok(Timestamp(days * DAY + hour * 3600 + minute * 60 + second))
    }
}

impl Timestamp {
    /// The same in the system's terms.
    pub fn to_system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.unsigned_abs())
    }
}

/// A [`Timestamp`] with the microseconds since, for what follows on each other
/// closely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Moment {
    second: Timestamp,
    micros: u32,
}

impl Moment {
    /// Now, by the system's clock.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Moment {
    /// What is outside of the years that a [`Timestamp`] has, is at their ends.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment {
            second: time.into(),
            micros: since.subsec_micros(),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = self.second.to_string();
        write!(f, "{}.{:06}Z", second.trim_end_matches('Z'), self.micros)
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> String {
        moment.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_instants() {
        // Seconds by `date -u -d TEXT +%s`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp(seconds).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(seconds)));
        }
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in [
            "",
            "2001-09-09",
            "2001-02-29T00:00:00Z",
            "2001-13-01T00:00:00Z",
            "2001-00-01T00:00:00Z",
            "2001-01-00T00:00:00Z",
            "2001-09-09T24:00:00Z",
            "2001-09-09T01:46:40+",
            "2001-09-09 01:46:40Z",
            "+001-09-09T01:46:40Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn moments_have_six_digits_after_the_point() {
        let at = |nanos| Moment::from(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string();
        assert_eq!(at(1_000_000_000_000_042_999), "2001-09-09T01:46:40.000042Z");
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        let before = Moment::from(UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(before.to_string(), "1970-01-01T00:00:00.000000Z");
    }

    proptest! {
        #[test]
        fn text_and_back(seconds in 0..=MAX) {
            let text = Timestamp(seconds).to_string();
            prop_assert_eq!(text.parse(), Ok(Timestamp(seconds)));
        }
    }
}
