//! `sealblk audit verify`.

use std::fmt::Write as _;

use super::PathArgs;
use crate::audit::{self, Expect, Files, Problem, Report};
use crate::cli::{print, print_json};
use crate::config::Config;
use crate::error::{Failure, Kind};

/// What follows `sealblk audit verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    log: PathArgs,

    /// A line that must be there: its number, its hash, or SEQ:HASH as `head` was shown
    #[arg(long, value_name = "HEAD")]
    expect: Option<Expect>,

    /// Older files have been archived elsewhere: begin with the first line that is there
    #[arg(long)]
    partial: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let path = args.log.resolve(config);
    let files = Files::of(&path)?;
    let report = audit::verify(&files, args.expect, args.partial)?;
    if args.json {
        print_json(&report)?;
    } else if report.problem.is_none() {
        print(told(&report, args.expect.is_some()))?;
    }
    report
        .problem
        .map_or(Ok(()), |problem| Err(failure(&problem)))
}

fn told(report: &Report, expected: bool) -> String {
    let mut text = String::new();
    for torn in &report.torn {
        let state = match torn.recovered {
            true => "a later line accounts for it",
            false => "the next line that is written will account for it",
        };
        let _ = writeln!(
            text,
            "{}:{}: {} bytes of a line whose writing was cut off; {state}",
            torn.file.display(),
            torn.line,
            torn.bytes
        );
    }
    if let Some(through) = report.removed_through {
        let _ = writeln!(
            text,
            "lines up to number {through} were removed by rotation"
        );
    }
    let (Some(first), Some(head)) = (report.first_seq, report.head) else {
        text.push_str("nothing is recorded yet\n");
        return text;
    };
    let _ = writeln!(
        text,
        "{} lines in {} files, number {first} to {}: nothing was changed\nhead {head}",
        report.lines,
        report.files.len(),
        head.seq
    );
    if !expected {
        text.push_str("Keep the head elsewhere: with --expect it shows later whether lines were cut off the end.\n");
    }
    text
}

fn failure(problem: &Problem) -> Failure {
    let place = match problem.line {
        Some(line) => format!("{}:{line}", problem.file.display()),
        None => problem.file.display().to_string(),
    };
    Failure::new(
        Kind::Corrupt,
        format!("{place}: {}", problem.what),
        Some(
            "keep the files as they are and find out who could write them; compare with copies elsewhere"
                .into(),
        ),
    )
}
