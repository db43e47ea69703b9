//! What the commands about disks share: which disk is meant, how disks look,
//! and following their changes.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Kind};
use crate::manager::client::Client;
use crate::manager::model::{DenialInfo, DiskInfo, DiskList, StuckInfo};
use crate::printable;
use crate::units::Bytes;

/// The disk that somebody means, by its name or the path of its volume.
pub async fn named(client: &Client, text: &str) -> Result<DiskInfo, Failure> {
    let disks = client.disks().await?.disks;
    let path = std::path::absolute(text).unwrap_or_else(|_| PathBuf::from(text));
    pick(disks, text, &path)
}

/// The disk of that name.
pub fn by_name(disks: Vec<DiskInfo>, name: &str) -> Option<DiskInfo> {
    disks.into_iter().find(|disk| disk.name == name)
}

/// Names go before paths: a file beside us may be called as a disk is.
fn pick(disks: Vec<DiskInfo>, text: &str, path: &Path) -> Result<DiskInfo, Failure> {
    let named = disks.iter().position(|disk| disk.name == text);
    let found = named.or_else(|| disks.iter().position(|disk| disk.volume == path));
    let none = || {
        Failure::new(
            Kind::NotFound,
            format!(
                "no disk has the name {text:?} or the volume {}",
                path.display()
            ),
            Some("`sealblk list` shows those that there are".into()),
        )
    };
    let index = found.ok_or_else(none)?;
    disks.into_iter().nth(index).ok_or_else(none)
}

/// The states of the disks, one after the other.
pub struct Changes<'a> {
    client: &'a Client,
    seen: Option<u64>,
}

/// Follows the disks, beginning with how they are now.
pub fn changes(client: &Client) -> Changes<'_> {
    Changes { client, seen: None }
}

impl Changes<'_> {
    /// The next state that is different from the last one.
    pub async fn next(&mut self) -> Result<DiskList, Failure> {
        loop {
            let list = match self.seen {
                None => self.client.disks().await?,
                Some(seen) => self.client.disks_after(seen).await?,
            };
            if self.seen.replace(list.revision) != Some(list.revision) {
                return Ok(list);
            }
        }
    }
}

/// A disk on one line.
pub struct Row<'a>(pub &'a DiskInfo);

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.0;
        writeln!(
            f,
            "{}: {}, {} at {}",
            disk.name,
            disk.state.as_str(),
            shown(&disk.volume),
            shown(&disk.socket)
        )
    }
}

/// A path on the one line that it has.
fn shown(path: &Path) -> String {
    printable::line(&path.display().to_string()).into_owned()
}

/// Disks in columns.
pub struct Table<'a>(pub &'a [DiskInfo]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["NAME", "STATE", "SIZE", "KEY SET", "SOCKET", "VOLUME"];
        let mut rows = vec![heading.map(str::to_owned)];
        rows.extend(self.0.iter().map(|disk| {
            [
                disk.name.clone(),
                state(disk),
                disk.size.map_or("-".into(), |size| Bytes(size).to_string()),
                match disk.ephemeral {
                    true => "(ephemeral)".into(),
                    false => disk.key_set.clone().unwrap_or_else(|| "-".into()),
                },
                shown(&disk.socket),
                shown(&disk.volume),
            ]
        }));
        let mut widths = [0; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &rows {
            let cells = row.iter().zip(widths);
            let line: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// What a disk is doing, and what is special about that.
fn state(disk: &DiskInfo) -> String {
    let mut state = disk.state.as_str().to_owned();
    if disk.stuck.is_some() {
        state.push_str(", stuck");
    } else if disk.trouble.as_ref().is_some_and(|it| !it.stopped) {
        state.push_str(", retrying");
    }
    if disk.break_glass.is_some() {
        state.push_str(", break-glass");
    }
    state
}

fn requests(count: u64) -> String {
    match count {
        1 => "1 request".into(),
        _ => format!("{count} requests"),
    }
}

/// What is stuck, and for how long.
struct StuckLine<'a>(&'a StuckInfo);

impl fmt::Display for StuckLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stuck = self.0;
        let others = stuck.count.saturating_sub(1);
        match stuck.operation.as_str() {
            "operation" => write!(f, "stuck: {} at the kernel", requests(stuck.count))?,
            "flush" => write!(f, "stuck: flush")?,
            what => write!(
                f,
                "stuck: {what} of {} bytes at byte {}",
                stuck.bytes, stuck.position
            )?,
        }
        write!(f, ", since {}", stuck.since)?;
        match (others, stuck.operation.as_str()) {
            (0, _) | (_, "operation") => Ok(()),
            (1, _) => write!(f, ", and another"),
            _ => write!(f, ", and {others} others"),
        }
    }
}

/// What a denial means for its disk.
fn next(denial: &DenialInfo) -> String {
    let what = match denial.on_denied.as_str() {
        "continue" => {
            return "its requests are carried out all the same (on_denied = \"continue\")".into();
        }
        "pause" => "its requests wait",
        "fail" => "its requests fail",
        "detach" => "it is detached and its key wiped",
        other => other,
    };
    match denial.in_force {
        true => format!("{what} until the key can be used again: then it goes on by itself"),
        false => format!("{what} from {} on, if it lasts", denial.acts_at),
    }
}

/// All that is known of a disk.
pub struct Details<'a>(pub &'a DiskInfo);

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.0;
        let mut line = |name: &str, value: &dyn fmt::Display| {
            writeln!(f, "{name:<14} {}", printable::line(&value.to_string()))
        };
        line("name", &disk.name)?;
        if let Some(uuid) = disk.uuid {
            line("uuid", &uuid)?;
        }
        if disk.ephemeral {
            line("ephemeral", &"yes: its key is in its worker alone")?;
        }
        let place = if disk.ephemeral { "space in" } else { "volume" };
        line(place, &disk.volume.display())?;
        if let Some(header) = &disk.header {
            line("header", &header.display())?;
        }
        line("socket", &disk.socket.display())?;
        line(
            "state",
            &format_args!("{}, since {}", disk.state.as_str(), disk.since),
        )?;
        if let Some(denial) = &disk.denial {
            let (since, key_set) = (&denial.since, &denial.key_set);
            line(
                "key denied",
                &format_args!("since {since}, of key set {key_set}"),
            )?;
            line("", &next(denial))?;
            line("", &denial.problem.message)?;
            if let Some(help) = &denial.problem.help {
                line("", &format_args!("help: {help}"))?;
            }
        }
        if let Some(trouble) = &disk.trouble {
            let (what, attempts) = (&trouble.problem.message, trouble.attempts);
            let waiting = match trouble.stopped {
                true => "all requests wait".into(),
                false => format!("{} wait, others go on", requests(trouble.waiting)),
            };
            line("disk below", &what)?;
            line(
                "",
                &format_args!("{waiting}, since {}; tried {attempts} times", trouble.since),
            )?;
            if let Some(help) = &trouble.problem.help {
                line("", &format_args!("help: {help}"))?;
            }
        }
        if let Some(stuck) = &disk.stuck {
            line("disk below", &StuckLine(stuck))?;
            line(
                "",
                &"help: look at the disk below (`dmesg`, its network); nothing is lost: what is in \
                  flight is waited for",
            )?;
        }
        if let Some(frozen) = &disk.frozen {
            let how = if frozen.complete {
                "frozen"
            } else {
                "being frozen"
            };
            line(
                "snapshot",
                &format_args!("{how}, at most until {}", frozen.until),
            )?;
        }
        if let Some(rekey) = &disk.rekey {
            line("data", &super::rekey::Line(rekey))?;
        }
        // It says the same as long as a denial lasts.
        let told = disk.denial.as_ref().map(|denial| &denial.problem);
        if let Some(problem) = disk.last_error.as_ref().filter(|it| told != Some(it)) {
            line("last error", &problem.message)?;
            if let Some(help) = &problem.help {
                line("", &format_args!("help: {help}"))?;
            }
        }
        line(
            "front end",
            &if disk.front_end { "connected" } else { "none" },
        )?;
        if let Some(pid) = disk.pid {
            let restarts = match disk.restarts {
                0 => String::new(),
                1 => ", started again once".into(),
                times => format!(", started again {times} times"),
            };
            line("worker", &format_args!("process {pid}{restarts}"))?;
        }
        if let Some(size) = disk.size {
            line("size", &format_args!("{} ({size} bytes)", Bytes(size)))?;
            if disk.front_end && disk.size_read.is_some_and(|read| read != size) {
                line("", &"the front end does not know of this size yet")?;
            }
        }
        if let Some(bytes) = disk.sector_size {
            line("sector size", &bytes)?;
        }
        line("writable", &if disk.read_only { "no" } else { "yes" })?;
        if let Some(engine) = &disk.engine {
            line("engine", engine)?;
        }
        if !disk.limits.is_unset() {
            line("limits", &disk.limits)?;
        }
        if let Some(key_set) = &disk.key_set {
            line("key set", key_set)?;
        }
        if let Some(by) = &disk.break_glass {
            line(
                "BREAK-GLASS",
                &format_args!("opened by {by}, not by its own key set"),
            )?;
        }
        if let (Some(provider), Some(id)) = (&disk.provider, &disk.key_id) {
            let version = disk.key_version.as_deref().unwrap_or("unknown");
            line("key", &format_args!("{provider} {id}, version {version}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::manager::model::DiskState;

    fn disk(name: &str, volume: &str) -> DiskInfo {
        DiskInfo {
            name: name.into(),
            uuid: None,
            volume: volume.into(),
            header: None,
            socket: "/run/s".into(),
            state: DiskState::Waiting,
            key_set: None,
            provider: None,
            key_id: None,
            key_version: None,
            break_glass: None,
            size: Some(10 << 30),
            sector_size: None,
            read_only: false,
            engine: None,
            pid: None,
            since: "2031-02-28T23:59:59Z".into(),
            restarts: 0,
            last_error: None,
            front_end: false,
            size_read: None,
            takes_notices: false,
            limits: Limits::default(),
            ephemeral: false,
            denial: None,
            frozen: None,
            rekey: None,
            version: None,
            trouble: None,
            stuck: None,
            troubles: Default::default(),
        }
    }

    #[test]
    fn a_disk_is_meant_by_name_or_volume() {
        let disks = || vec![disk("a", "/here/b"), disk("b", "/here/c")];
        let named =
            |text: &str| pick(disks(), text, &Path::new("/here").join(text)).map(|disk| disk.name);
        assert_eq!(named("a").unwrap(), "a");
        assert_eq!(named("b").unwrap(), "b", "the name, not the volume of a");
        assert_eq!(named("c").unwrap(), "b");
        assert_eq!(named("/here/b").unwrap(), "a");
        assert_eq!(named("d").unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let disks = [disk("é", "/v"), disk("a-longer-name", "/w")];
        let table = Table(&disks).to_string();
        let columns: Vec<usize> = table
            .lines()
            .map(|line| {
                let at = line.find("waiting").or(line.find("STATE")).unwrap();
                line[..at].chars().count()
            })
            .collect();
        assert_eq!(columns, [15; 3], "{table}");
        assert!(!table.contains(" \n"), "{table}");
        assert!(table.contains("10 GiB"), "{table}");
    }
}
