//! The head of a log: the number and hash of its last line.
//!
//! It is kept in a file beside the log after each line. Whoever cuts lines
//! off the end of the log, and not knowing of it leaves that file alone, is
//! found out. Whoever knows of it is not: a head has to be remembered elsewhere.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use serde::Serialize;

use super::error::Cause;
use super::line::{Hash, Line};
use super::place::{Place, Purpose};

/// The last line of a log, as `SEQ:HASH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl From<&Line> for Head {
    fn from(line: &Line) -> Self {
        Head {
            seq: line.seq,
            hash: line.hash,
        }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a head: it has the form SEQ:HASH");
        let (seq, hash) = text.split_once(':').ok_or_else(bad)?;
        if !seq.bytes().all(|c| c.is_ascii_digit()) {
            return Err(bad());
        }
        Ok(Head {
            seq: seq.parse().map_err(|_| bad())?,
            hash: hash.parse()?,
        })
    }
}

/// With its newline: 20 digits, a colon, 64 digits.
const FILE_LENGTH: usize = 86;

/// What the head file says. `None` when there is none, or nothing in it: it
/// is not waited for that it reaches the disk, so that the host's power may fail
/// when its length has, and its bytes have not and read as zeroes.
///
/// # Errors
/// Its content, where that is no head.
pub(super) fn read(place: &Place) -> Result<Result<Option<Head>, String>, Cause> {
    let mut file = match place.open_head(Purpose::Read) {
        Ok(file) => file,
        Err(Cause::Missing) => return Ok(Ok(None)),
        Err(other) => return Err(other),
    };
    let mut text = Vec::new();
    Read::by_ref(&mut file)
        .take(FILE_LENGTH as u64 + 1)
        .read_to_end(&mut text)
        .map_err(Cause::io("read the head of"))?;
    if text.iter().all(|&byte| byte == 0) {
        return Ok(Ok(None));
    }
    let text = String::from_utf8_lossy(&text);
    Ok(match text.strip_suffix('\n') {
        Some(head) if text.len() == FILE_LENGTH => head.parse().map(Some),
        _ => Err(format!("{text:?} is not a head")),
    })
}

/// Puts `head` into the head file. Always of the same length, so that it is
/// overwritten in place by one write.
pub(super) fn write(place: &Place, head: Head) -> Result<(), Cause> {
    let file = place.open_head(Purpose::Write)?;
    let text = format!("{:020}:{}\n", head.seq, head.hash);
    let fail = Cause::io("write the head of");
    let wrote = file.write_all_at(text.as_bytes(), 0).and_then(|()| {
        match file.metadata()?.len() == FILE_LENGTH as u64 {
            true => Ok(()),
            false => file.set_len(FILE_LENGTH as u64),
        }
    });
    wrote.map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::of(&directory.path().join("log"), Purpose::Write).unwrap();
        assert_eq!(read(&place).unwrap(), Ok(None));
        let head = Head {
            seq: u64::MAX,
            hash: Hash::of(b"x"),
        };
        write(&place, head).unwrap();
        assert_eq!(read(&place).unwrap(), Ok(Some(head)));
        assert_eq!(head.to_string().parse(), Ok(head));
        // Longer garbage is cut to the length of a head.
        std::fs::write(place.head_path(), "x".repeat(200)).unwrap();
        assert!(read(&place).unwrap().is_err());
        write(&place, head).unwrap();
        assert_eq!(read(&place).unwrap(), Ok(Some(head)));
        for bad in ["", "1", ":", "+1:", "x:y"] {
            assert!(bad.parse::<Head>().is_err(), "{bad:?}");
        }
    }
}
