//! How operations on all data of disks look.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::error::Failure;
use crate::manager::model::{DiskInfo, RekeyInfo, RekeyState, RekeysStarted};
use crate::rekey::{Direction, Kind};
use crate::units::Bytes;

/// What became of wanting it.
pub struct Started<'a>(pub &'a RekeysStarted);

impl fmt::Display for Started<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for disk in &self.0.disks {
            match (&disk.problem, disk.begun) {
                (Some(problem), _) => {
                    writeln!(f, "{}: not moved: {}", disk.disk, problem.message)?;
                    if let Some(help) = &problem.help {
                        writeln!(f, "  help: {help}")?;
                    }
                }
                (None, true) => writeln!(f, "{}: begun", disk.disk)?,
                (None, false) => writeln!(f, "{}: waits for its turn", disk.disk)?,
            }
        }
        Ok(())
    }
}

/// What it does, in words.
fn doing(rekey: &RekeyInfo) -> &'static str {
    match (rekey.kind, rekey.direction) {
        (Kind::Rekey, Direction::Forward) => "re-encrypted",
        (Kind::Rekey, Direction::Back) => "brought back to its old key",
        (Kind::Encrypt, Direction::Forward) => "encrypted",
        (Kind::Encrypt, Direction::Back) => "brought back to plain",
        (Kind::Decrypt, Direction::Forward) => "DECRYPTED",
        (Kind::Decrypt, Direction::Back) => "encrypted again",
    }
}

/// A time, roughly.
pub struct About(pub u64);

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::from_secs(self.0).as_secs();
        match seconds {
            0..60 => write!(f, "{seconds}s"),
            60..3600 => write!(f, "{}m {}s", seconds / 60, seconds % 60),
            3600..86_400 => write!(f, "{}h {}m", seconds / 3600, seconds % 3600 / 60),
            _ => write!(f, "{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
        }
    }
}

/// Tenths of per cent, rounded down: it is not done before it is.
fn share(rekey: &RekeyInfo) -> String {
    let thousandths = match rekey.size {
        0 => 1000,
        size => u128::from(rekey.done) * 1000 / u128::from(size),
    };
    format!("{}.{}%", thousandths / 10, thousandths % 10)
}

/// Whole mebibytes look better than exact ones, at rates.
struct Rate(u64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            rate @ 0..1_048_576 => write!(f, "{} KiB/s", rate >> 10),
            rate => write!(f, "{} MiB/s", rate >> 20),
        }
    }
}

/// One operation on one line, or two.
pub struct Line<'a>(pub &'a RekeyInfo);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rekey = self.0;
        match rekey.state {
            RekeyState::Queued => write!(f, "waits for its turn to be {}", doing(rekey))?,
            RekeyState::Refused => f.write_str("cannot begin")?,
            RekeyState::Plain => f.write_str("all of it is plain: detach the disk to end this")?,
            state => {
                write!(f, "{}: {}", doing(rekey), share(rekey))?;
                let (done, size) = (Bytes(rekey.done), Bytes(rekey.size));
                write!(f, " ({done} of {size}), {}", state.as_str())?;
            }
        }
        if rekey.state == RekeyState::Moving {
            write!(f, " at {}", Rate(rekey.rate))?;
            if let Some(left) = rekey.seconds_left {
                write!(f, ", {} left", About(left))?;
            }
        }
        match rekey.pace == Default::default() {
            true => Ok(()),
            false => write!(f, "; {}", rekey.pace),
        }
    }
}

/// Disks, with what is done to them.
pub struct Statuses<'a>(pub &'a [DiskInfo]);

impl fmt::Display for Statuses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for disk in self.0 {
            let Some(rekey) = &disk.rekey else {
                writeln!(f, "{}: its data is not being moved", disk.name)?;
                continue;
            };
            writeln!(f, "{}: {}", disk.name, Line(rekey))?;
            if let Some(problem) = &rekey.problem {
                writeln!(f, "  {}", problem.message)?;
                if let Some(help) = &problem.help {
                    writeln!(f, "  help: {help}")?;
                }
            }
        }
        Ok(())
    }
}

/// The same for scripts.
#[derive(Serialize)]
pub struct Json<'a> {
    disk: &'a str,
    rekey: &'a Option<RekeyInfo>,
}

impl<'a> Json<'a> {
    /// Of these disks.
    pub fn of(disks: &'a [DiskInfo]) -> Vec<Self> {
        let one = |disk: &'a DiskInfo| Json {
            disk: &disk.name,
            rekey: &disk.rekey,
        };
        disks.iter().map(one).collect()
    }
}

/// Whether nothing more comes of it by itself.
pub fn is_over(disk: &DiskInfo) -> bool {
    disk.rekey
        .as_ref()
        .is_none_or(|rekey| rekey.state == RekeyState::Plain)
}

/// Why it does not go on before somebody does something.
pub fn stuck(disk: &DiskInfo) -> Option<Failure> {
    let rekey = disk.rekey.as_ref()?;
    let problem = rekey.problem.as_ref()?;
    matches!(rekey.state, RekeyState::Failed | RekeyState::Refused).then(|| {
        Failure::new(
            problem.kind,
            format!("{}: {}", disk.name, problem.message),
            problem.help.clone(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::moving::Pace;

    fn info(done: u64, size: u64) -> RekeyInfo {
        RekeyInfo {
            state: RekeyState::Moving,
            done,
            rate: 5 << 20,
            seconds_left: Some(3700),
            ..RekeyInfo::queued(Kind::Rekey, size, Pace::default(), None)
        }
    }

    #[test]
    fn what_is_nearly_done_is_not_said_to_be_done() {
        assert_eq!(share(&info(999_999_999, 1_000_000_000)), "99.9%");
        assert_eq!(share(&info(u64::MAX, u64::MAX)), "100.0%");
        assert_eq!(share(&info(0, 0)), "100.0%");
        assert_eq!(share(&info(1, 1 << 62)), "0.0%");
    }

    #[test]
    fn a_line_says_how_far_it_is_and_how_long_it_takes() {
        let mut rekey = info(1 << 30, 4 << 30);
        let line = Line(&rekey).to_string();
        assert_eq!(
            line,
            "re-encrypted: 25.0% (1 GiB of 4 GiB), moving at 5 MiB/s, 1h 1m left"
        );
        rekey.state = RekeyState::Paused;
        rekey.direction = Direction::Back;
        rekey.pace.limit = Some(1 << 20);
        let line = Line(&rekey).to_string();
        assert!(
            line.starts_with("brought back to its old key: 25.0%"),
            "{line}"
        );
        assert!(line.ends_with("paused; at most 1 MiB/s"), "{line}");
    }

    #[test]
    fn times_are_rough() {
        for (seconds, text) in [
            (5, "5s"),
            (90, "1m 30s"),
            (7260, "2h 1m"),
            (90_000, "1d 1h"),
        ] {
            assert_eq!(About(seconds).to_string(), text);
        }
    }
}
