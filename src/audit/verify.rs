//! Reading a whole log again, to see whether anything in it was changed.
//!
//! The chain shows each change but one: lines that were cut off the end, with
//! all that follows. So the head is compared with the file that notes it, and
//! with what somebody remembers elsewhere ([`Expect`]).

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use super::error::{Cause, Error};
use super::files::{Files, Segment};
use super::head::Head;
use super::line::{self, Hash, Line, Unsound};
use super::resume;

/// What somebody remembers of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It had at least so many lines.
    Seq(u64),
    /// It had a line with this hash.
    Hash(Hash),
    /// It had this line.
    Head(Head),
}

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(':') {
            return text.parse().map(Expect::Head);
        }
        // A hash of decimal digits alone is longer than any number.
        if text.len() < 64
            && text.bytes().all(|c| c.is_ascii_digit())
            && let Ok(seq) = text.parse()
        {
            return Ok(Expect::Seq(seq));
        }
        text.parse().map(Expect::Hash).map_err(|_| {
            format!("{text:?} is not a head: write the number of a line, its hash, or SEQ:HASH")
        })
    }
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether there is nothing to be said against the log.
    pub ok: bool,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// How many sound lines there are.
    pub lines: u64,
    /// The number of the first of them.
    pub first_seq: Option<u64>,
    /// The last of them.
    pub head: Option<Head>,
    /// Lines up to this one were removed by rotation.
    pub removed_through: Option<u64>,
    /// What crashes have left. Nothing that was recorded is missing there.
    pub torn: Vec<Torn>,
    /// The first thing that is wrong.
    pub problem: Option<Problem>,
}

/// What is left of a line whose writing was cut off.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Torn {
    /// The file in which it begins.
    pub file: PathBuf,
    /// The line there, from 1.
    pub line: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// Whether a later line accounts for it.
    pub recovered: bool,
}

/// What is wrong with a log.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line there, from 1. `None` where it is about the file as a whole.
    pub line: Option<u64>,
    /// What is wrong there.
    pub what: String,
}

/// Reads all of `files`, up to the first thing that is wrong. With `partial`,
/// older files may have been taken elsewhere.
///
/// # Errors
/// When a file cannot be read.
pub fn verify(files: &Files, expect: Option<Expect>, partial: bool) -> Result<Report, Error> {
    let mut pass = Pass {
        report: Report {
            ok: false,
            files: files.segments.iter().map(|s| s.path.clone()).collect(),
            lines: 0,
            first_seq: None,
            head: None,
            removed_through: None,
            torn: Vec::new(),
            problem: None,
        },
        torn: resume::Torn::default(),
        torn_at: None,
        wanted: Wanted {
            noted: files.head.clone().ok().flatten(),
            expect,
            ..Wanted::default()
        },
    };
    let problem = match pass.all(files)? {
        Some(problem) => Some(problem),
        None => pass.end(files, partial),
    };
    pass.report.ok = problem.is_none();
    pass.report.problem = problem;
    Ok(pass.report)
}

/// The lines that must be found on the way.
#[derive(Default)]
struct Wanted {
    noted: Option<Head>,
    noted_differs: bool,
    expect: Option<Expect>,
    expected_found: bool,
}

impl Wanted {
    fn see(&mut self, head: Head) {
        if let Some(noted) = self.noted {
            self.noted_differs |= noted.seq == head.seq && noted.hash != head.hash;
        }
        self.expected_found |= match self.expect {
            Some(Expect::Seq(seq)) => head.seq >= seq,
            Some(Expect::Hash(hash)) => head.hash == hash,
            Some(Expect::Head(expected)) => head == expected,
            None => false,
        };
    }
}

struct Pass {
    report: Report,
    torn: resume::Torn,
    torn_at: Option<(PathBuf, u64)>,
    wanted: Wanted,
}

impl Pass {
    fn all(&mut self, files: &Files) -> Result<Option<Problem>, Error> {
        for segment in &files.segments {
            let fail = |error| Cause::io("read")(error).at(&segment.path);
            if let Some(problem) = self.segment(segment).map_err(fail)? {
                return Ok(Some(problem));
            }
        }
        Ok(None)
    }

    fn segment(&mut self, segment: &Segment) -> io::Result<Option<Problem>> {
        let mut reader = BufReader::new((&segment.file).take(segment.length));
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            if let Some(problem) = self.piece(&segment.path, number, &bytes) {
                return Ok(Some(problem));
            }
        }
        Ok(None)
    }

    /// One line with its newline, or what is there instead.
    fn piece(&mut self, file: &Path, number: u64, bytes: &[u8]) -> Option<Problem> {
        let here = |what: String| {
            Some(Problem {
                file: file.into(),
                line: Some(number),
                what,
            })
        };
        let checked = match bytes.strip_suffix(b"\n") {
            Some(content) => line::check(content),
            None => Err(Unsound::Torn),
        };
        match checked {
            Ok(line) => {
                if let Some(problem) = self.torn_before(&line) {
                    return problem.or_else(|| {
                        here("it tells of torn bytes before it that are not there".into())
                    });
                }
                let wrong = self.follows(&line);
                if wrong.is_some() {
                    return wrong.and_then(here);
                }
                let head = Head::from(&line);
                self.wanted.see(head);
                self.report.lines += 1;
                self.report.first_seq.get_or_insert(line.seq);
                self.report.head = Some(head);
                self.report.removed_through = self.report.removed_through.max(line.removed_through);
                None
            }
            Err(Unsound::Torn) => {
                self.torn.update(bytes);
                self.torn_at.get_or_insert_with(|| (file.into(), number));
                None
            }
            Err(unsound) => here(unsound.to_string()),
        }
    }

    /// Compares what was found before `line` with what it says of that.
    /// `Some(None)` when it says more than there is.
    #[allow(clippy::option_option, reason = "the caller knows the place")]
    fn torn_before(&mut self, line: &Line) -> Option<Option<Problem>> {
        let found = self.torn.finish();
        match (self.torn_at.take(), found) {
            (Some((file, number)), Some(torn)) if line.torn == Some(torn) => {
                self.report.torn.push(Torn {
                    file,
                    line: number,
                    bytes: torn.bytes,
                    recovered: true,
                });
                None
            }
            (Some((file, number)), _) => Some(Some(Problem {
                file,
                line: Some(number),
                what: "it is not a whole line, and no later line accounts for it: it was altered"
                    .into(),
            })),
            (None, _) => line.torn.is_some().then_some(None),
        }
    }

    /// What is wrong with `line` where it stands.
    fn follows(&self, line: &Line) -> Option<String> {
        let Some(before) = self.report.head else {
            let bad = line.seq == 0 || (line.seq == 1) != (line.prev == Hash::NONE);
            return bad.then(|| "its number and the hash before it do not fit".into());
        };
        let next = before.seq + 1;
        if line.seq > next {
            return Some(match line.seq - next {
                1 => format!("line number {next}, which belongs before it, is missing"),
                _ => format!(
                    "lines number {next} to {}, which belong before it, are missing",
                    line.seq - 1
                ),
            });
        }
        if line.seq < next {
            return Some(format!(
                "it has number {} where {next} belongs: it was moved, repeated or inserted",
                line.seq
            ));
        }
        (line.prev != before.hash)
            .then(|| "it does not follow the line before it: that one was replaced".into())
    }

    /// What is wrong with the log as a whole, when no line is.
    fn end(&mut self, files: &Files, partial: bool) -> Option<Problem> {
        if let (Some((file, line)), Some(torn)) = (self.torn_at.take(), self.torn.finish()) {
            self.report.torn.push(Torn {
                file,
                line,
                bytes: torn.bytes,
                recovered: false,
            });
        }
        let first = files.segments.first()?;
        let last = files.segments.last()?;
        let about = |file: &Path, what: String| {
            Some(Problem {
                file: file.into(),
                line: None,
                what,
            })
        };
        let (first_seq, head) = match (self.report.first_seq, self.report.head) {
            (Some(first), Some(head)) => (first, head.seq),
            _ => (1, 0),
        };
        let removed = self.report.removed_through.unwrap_or(0);
        if first_seq > 1 && removed < first_seq - 1 && !partial {
            return about(
                &first.path,
                format!(
                    "it begins with line number {first_seq}, and nothing says that those before were removed by rotation"
                ),
            );
        }
        match (&files.head, self.wanted.noted) {
            (Err(why), _) => return about(&files.head_path, why.clone()),
            (_, Some(noted)) if noted.seq > head => {
                return about(
                    &last.path,
                    format!(
                        "it ends with line number {head}, and had {} lines before: {} says so",
                        noted.seq,
                        files.head_path.display()
                    ),
                );
            }
            _ => {}
        }
        if self.wanted.noted_differs {
            return about(
                &files.head_path,
                "the line that it notes is another one now: the log was replaced".into(),
            );
        }
        if self.wanted.expected_found || self.wanted.expect.is_none() {
            return None;
        }
        let what = match self.wanted.expect? {
            Expect::Seq(seq) => {
                format!("it ends with line number {head}, and line {seq} is expected")
            }
            Expect::Head(expected) if expected.seq > head => format!(
                "it ends with line number {head}, and line {} is expected",
                expected.seq
            ),
            _ => "the line that is expected is not in it: it was cut off or replaced".into(),
        };
        about(&last.path, what)
    }
}
