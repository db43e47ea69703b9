//! A list of CPUs, as `taskset` and the kernel write it.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use super::values::TextVisitor;

/// The highest number that a CPU may have: what the kernel's interface holds.
const HIGHEST: u16 = 1023;

/// CPUs by their numbers, in the order in which queues are given to them: each
/// at most once, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(Vec<u16>);

impl Cpus {
    /// The numbers.
    pub fn numbers(&self) -> &[u16] {
        &self.0
    }

    /// Those of this host that run, whatever this process may use.
    pub fn online() -> Option<Self> {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
        text.trim().parse().ok()
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |part: &str| {
            format!(
                "{part:?} is no CPU, nor a range of them: write numbers up to {HIGHEST} such as 2-5,8"
            )
        };
        let mut numbers = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u16>().ok().filter(|it| *it <= HIGHEST);
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(wrong(part));
            };
            if first > last {
                return Err(wrong(part));
            }
            for cpu in first..=last {
                if numbers.contains(&cpu) {
                    return Err(format!(
                        "CPU {cpu} is in {text:?} twice: name each of them once"
                    ));
                }
                numbers.push(cpu);
            }
        }
        Ok(Cpus(numbers))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        while let [first, ..] = rest {
            let run = rest.iter().zip(*first..).take_while(|(a, b)| **a == *b);
            let length = run.count();
            match length {
                1 => write!(f, "{first}")?,
                _ => write!(f, "{first}-{}", rest[length - 1])?,
            }
            rest = &rest[length..];
            if !rest.is_empty() {
                f.write_str(",")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TextVisitor {
            expecting: "a list of CPUs in quotes, such as \"2-5\"",
            integer: false,
            parse: |text| text.parse(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_their_order_and_written_alike() {
        for (text, numbers, written) in [
            ("0", &[0][..], "0"),
            ("2-5", &[2, 3, 4, 5], "2-5"),
            ("8, 2-3,0", &[8, 2, 3, 0], "8,2-3,0"),
            ("1023", &[1023], "1023"),
            ("1,2,3", &[1, 2, 3], "1-3"),
        ] {
            let cpus: Cpus = text.parse().unwrap();
            assert_eq!(cpus.numbers(), numbers, "{text}");
            assert_eq!(cpus.to_string(), written);
            assert_eq!(written.parse(), Ok(cpus));
        }
        for text in [
            "", "a", "1-", "-1", "3-2", "1024", "1,,2", "1-3,2", "0x1", "1-2-3",
        ] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn this_host_runs_on_some() {
        let online = Cpus::online().unwrap();
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let count = info.lines().filter(|line| line.starts_with("processor"));
        assert_eq!(online.numbers().len(), count.count());
    }
}
