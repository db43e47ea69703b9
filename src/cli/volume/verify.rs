//! `sealblk volume verify-header`.

use serde::Serialize;
use uuid::Uuid;

use super::LocationArgs;
use super::info::Copies;
use crate::cli::{print, print_json};
use crate::error::{Failure, Kind};
use crate::volume::{Inspection, Location};

/// What follows `sealblk volume verify-header`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Verdict {
    uuid: Option<Uuid>,
    header_copies: Copies,
    /// Whether the volume can be opened.
    usable: bool,
    problems: Vec<String>,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let location = Location::from(args.location);
    let inspection = Inspection::of(&location)?;
    let mut uuid = None;
    let usable = inspection.description().and_then(|description| {
        uuid = Some(description.uuid);
        inspection.check_data(&description)
    });
    let mut failures: Vec<Failure> = Vec::new();
    let is_usable = usable.is_ok();
    if let Err(error) = usable {
        failures.push(error.into());
    }
    let found = inspection.found();
    if !found.is_whole() {
        failures.push(Failure::new(
            Kind::Corrupt,
            format!("one of the two header copies is not good: {found}"),
            Some("run `sealblk volume repair`, and find out what damaged it".into()),
        ));
    }
    let verdict = Verdict {
        uuid,
        header_copies: Copies::of(&inspection),
        usable: is_usable,
        problems: failures.iter().map(ToString::to_string).collect(),
    };
    if args.json {
        print_json(&verdict)?;
    } else if failures.is_empty() {
        print(format_args!(
            "both header copies are good and equal (update {}), and the data is as long as they say\n",
            verdict.header_copies.update
        ))?;
    } else {
        // The first problem is what the command fails with.
        for problem in verdict.problems.iter().skip(1) {
            print(format_args!("also: {problem}\n"))?;
        }
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}
