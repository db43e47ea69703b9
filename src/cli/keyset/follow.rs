//! `sealblk keyset rotate`, `switch` and `ledger`.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use super::who::Who;
use crate::cli::{print, print_json};
use crate::error::{Failure, Kind};
use crate::keys::Name;
use crate::manager::model::KeySetRotation;
use crate::rotation::{Holder, HolderState, KeySetLedger};

/// How often it is looked how far the volumes are.
const LOOK: Duration = Duration::from_millis(500);

/// How long nothing may get on before it is said that it does not.
const STUCK: Duration = Duration::from_secs(20);

pub fn rotate(who: &Who<'_>, name: &Name, no_wait: bool, json: bool) -> Result<(), Failure> {
    let begun = who.rotate(name)?;
    end(who, name, begun, no_wait, json)
}

pub fn switch(
    who: &Who<'_>,
    name: &Name,
    settings: &toml::Table,
    force: bool,
    no_wait: bool,
    json: bool,
) -> Result<(), Failure> {
    let begun = who.switch(name, settings, force)?;
    end(who, name, begun, no_wait, json)
}

/// Waits until the volumes have followed, and says how it went.
fn end(
    who: &Who<'_>,
    name: &Name,
    mut state: KeySetRotation,
    no_wait: bool,
    json: bool,
) -> Result<(), Failure> {
    let mut left = Vec::new();
    if !no_wait && state.behind > 0 {
        left = wait(who, name, &mut state)?;
    }
    if json {
        return print_json(&state);
    }
    let KeySetRotation {
        provider,
        key_version: version,
        volumes,
        behind,
        ..
    } = &state;
    let mut text = format!("key set {name} wraps with version {version} of its key ({provider})\n");
    let _ = match (volumes, behind) {
        (0, _) => writeln!(text, "no volume of it is known here"),
        (all, 0) => writeln!(text, "its volumes ({all}) have followed"),
        (all, behind) => writeln!(
            text,
            "{behind} of its {all} volumes have yet to follow: the daemon tries again whenever it asks the service (poll)"
        ),
    };
    for holder in left.iter().take(SHOWN) {
        let _ = writeln!(text, "  {}", line(holder));
    }
    print(text)
}

/// Waits until all have followed, or nothing gets on any more. Those that have not.
fn wait(who: &Who<'_>, name: &Name, state: &mut KeySetRotation) -> Result<Vec<Holder>, Failure> {
    let begun = state.behind;
    let mut quiet = Duration::ZERO;
    loop {
        let ledger = who.ledger(Some(name))?.into_iter().next();
        let Some(ledger) = ledger else {
            return Err(Failure::new(
                Kind::NotFound,
                format!("there is no key set {:?} any more", name.as_str()),
                None,
            ));
        };
        let old = ledger
            .versions
            .into_iter()
            .filter(|version| !version.current);
        let mut left: Vec<Holder> = old.flat_map(|version| version.volumes).collect();
        left.extend(ledger.unknown);
        let behind = left.len() as u64;
        if behind < state.behind {
            quiet = Duration::ZERO;
        }
        state.behind = behind;
        if std::io::stderr().is_terminal() {
            eprint!(
                "\r{} of {begun} have followed ",
                begun.saturating_sub(behind)
            );
        }
        // What has a problem is not waited for, nor what does not move.
        let stuck = left.iter().all(|holder| holder.problem.is_some()) || quiet >= STUCK;
        if left.is_empty() || stuck {
            if std::io::stderr().is_terminal() {
                eprintln!();
            }
            return Ok(left);
        }
        std::thread::sleep(LOOK);
        quiet += LOOK;
    }
}

/// How many volumes of a version are named.
const SHOWN: usize = 20;

pub fn ledger(all: &[KeySetLedger], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&all);
    }
    let mut text = String::new();
    for ledger in all {
        one(&mut text, ledger);
    }
    print(text)
}

fn one(text: &mut String, ledger: &KeySetLedger) {
    let name = &ledger.key_set;
    let policy = match ledger.pinned {
        true => "pinned",
        false => "latest",
    };
    let switching = match ledger.switching {
        true => ", being switched",
        false => "",
    };
    let _ = writeln!(
        text,
        "key set {name} ({}, {policy}{switching})",
        ledger.provider
    );
    if let Some(rotation) = &ledger.rotation {
        let _ = match &rotation.finished {
            Some(at) => writeln!(
                text,
                "  version {} since {}; all volumes have followed, at {at}",
                rotation.key_version, rotation.since
            ),
            None => writeln!(
                text,
                "  version {} since {}; {} have yet to follow",
                rotation.key_version, rotation.since, rotation.behind
            ),
        };
    }
    if ledger.versions.is_empty() && ledger.unknown.is_empty() {
        let _ = writeln!(text, "  no volume of it is known here");
    }
    for version in &ledger.versions {
        let verdict = match &version.why_not {
            None => "SAFE TO DISABLE: nothing that this host knows needs it".to_owned(),
            Some(why) => format!("in use: {why}"),
        };
        let (provider, key, id) = (&version.provider, &version.key_id, &version.key_version);
        let _ = writeln!(text, "  {provider} {key} version {id}: {verdict}");
        volumes(text, &version.volumes);
        for backup in version.backups.iter().take(SHOWN) {
            let path = backup.path.display();
            let _ = writeln!(text, "    {}  {path}  a backup of its header", backup.uuid);
        }
        if let Some(more) = version.backups.len().checked_sub(SHOWN + 1) {
            let _ = writeln!(text, "    … and {} more backups (--json has all)", more + 1);
        }
    }
    if !ledger.unknown.is_empty() {
        let _ = writeln!(text, "  nobody knows what these need:");
        volumes(text, &ledger.unknown);
    }
}

fn volumes(text: &mut String, volumes: &[Holder]) {
    for holder in volumes.iter().take(SHOWN) {
        let _ = writeln!(text, "    {}", line(holder));
    }
    if let Some(more) = volumes.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        let _ = writeln!(text, "    … and {more} more (--json has all)");
    }
}

fn line(holder: &Holder) -> String {
    let mut line = format!("{}  {}", holder.uuid, holder.volume.display());
    let _ = match (&holder.disk, holder.state) {
        (Some(disk), _) => write!(line, "  attached as {disk}"),
        (None, HolderState::Unseen) => write!(line, "  not seen there"),
        (None, _) => write!(line, "  not attached"),
    };
    if let Some(problem) = &holder.problem {
        let _ = write!(line, ": {problem}");
    }
    line
}
