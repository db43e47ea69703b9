//! What a manager keeps: records of disks, key sets, the ledger, plans of
//! rotations and re-encryptions, the audit log. Wherever the power fails, every
//! file can be read; and what was answered is there.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use sealblk::volume::Access;

use crate::headers::{Campaign, Verdict, check, open};
use crate::lab::{Lab, Left, Manager, count, seed};
use crate::support::server::DEADLINE;

struct Host {
    // It goes first: it runs on the other.
    manager: Option<Manager>,
    campaign: Campaign,
}

impl Host {
    /// Does something by a command, and looks at what may be left at any time of
    /// it; `fact` is so as soon as the command has ended.
    fn step(&mut self, arguments: &[&str], fact: impl Fn(&Left) -> Verdict) {
        let log = self.campaign.lab.recorder.log();
        let from = log.now();
        let before = audit(&self.campaign);
        let has_volume = self.manager.is_some();
        self.campaign.lab.ok(arguments);
        let answered = log.now();
        let to = quiet(&self.campaign.lab);
        let lasting = self.campaign.image();
        let judge = |left: &Left, at: usize| {
            readable(&left.path("disk/state"))?;
            if left.path("disk/log/audit.jsonl").exists() {
                let verified = left.run(&["audit", "verify"]);
                verified.map_err(|why| format!("the audit log: {why}"))?;
            }
            let lines = std::fs::read(left.path("disk/log/audit.jsonl")).unwrap_or_default();
            check(lines.starts_with(&before), "the audit log lacks lines")?;
            if has_volume {
                open(left, None, Access::ReadOnly)?;
            }
            if at >= answered {
                fact(left)?;
                check(!lines.is_empty(), "no line was recorded")?;
            }
            if at < to {
                return Ok(());
            }
            // Nothing is under way any more: all is as the manager believes.
            for (path, (bytes, _)) in &lasting.files {
                let is_kept = path.starts_with("state") || path.ends_with("second.key");
                let is_json = path
                    .extension()
                    .is_some_and(|end| end == "json" || end == "toml");
                let left = std::fs::read(left.path("disk").join(path)).ok();
                if is_kept && is_json && left.as_ref() != Some(bytes) {
                    let left = left.map(|left| String::from_utf8_lossy(&left).into_owned());
                    return Err(format!("{} is not lasting: {left:?}", path.display()));
                }
            }
            Ok(())
        };
        self.campaign
            .cut(&arguments.join(" "), from..to, 8 * count(1), judge);
    }
}

/// The whole lines of the audit log that are there now.
fn audit(campaign: &Campaign) -> Vec<u8> {
    let mut lines =
        std::fs::read(campaign.lab.recorder.path("log/audit.jsonl")).unwrap_or_default();
    let end = lines.iter().rposition(|byte| *byte == b'\n');
    lines.truncate(end.map_or(0, |end| end + 1));
    lines
}

/// Waits until nothing is written any more, and returns the time.
fn quiet(lab: &Lab) -> usize {
    let (start, mut since) = (Instant::now(), Instant::now());
    let mut last = lab.recorder.log().now();
    while since.elapsed() < Duration::from_millis(150) {
        std::thread::sleep(Duration::from_millis(10));
        let now = lab.recorder.log().now();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        assert!(start.elapsed() < DEADLINE, "it is never quiet");
    }
    last
}

/// Every file of the state can be read.
fn readable(place: &Path) -> Verdict {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            readable(&path)?;
        } else if path.extension().is_some_and(|end| end == "json") {
            let bytes = std::fs::read(&path).unwrap();
            let read = serde_json::from_slice::<Value>(&bytes);
            read.map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}

fn record(left: &Left, name: &str) -> Option<Value> {
    let path = left.path("disk/state/disks").join(format!("{name}.json"));
    let bytes = std::fs::read(path).ok()?;
    Some(serde_json::from_slice(&bytes).unwrap())
}

#[test]
fn what_a_manager_has_answered_is_lasting() {
    for round in 0..count(1) {
        let seed = seed("state of a manager") + round;
        let lab = Lab::with_state(seed);
        let mut host = Host {
            manager: None,
            campaign: Campaign::on(lab, seed),
        };
        for volume in ["disk/disk.img", "disk/other.img"] {
            let create = ["volume", "create", volume, "--size", "256K"];
            host.step(&[&create[..], &["--header-area", "64K"]].concat(), |left| {
                check(left.path(volume).exists(), "no volume")
            });
        }
        let manager = Manager::start(&host.campaign.lab);
        let name = manager.name.clone();
        host.manager = Some(manager);
        let attach = [
            "attach",
            "disk/disk.img",
            "--socket",
            "a.sock",
            "--name",
            &name,
        ];
        host.step(&attach, |left| {
            check(record(left, &name).is_some(), "no record")
        });
        host.step(&["limit", &name, "--iops-total", "5000"], |left| {
            let record = record(left, &name).ok_or("no record")?;
            check(record.to_string().contains("5000"), format!("{record}"))
        });
        host.step(&["resize", &name, "512K"], |_| Ok(()));
        host.step(&["key", "add-version"], |_| Ok(()));
        host.step(&["keyset", "rotate", "default"], |_| Ok(()));
        let backup = [
            "volume",
            "backup-header",
            "disk/disk.img",
            "--to",
            "disk/backup",
        ];
        host.step(&backup, |left| {
            check(left.path("disk/backup").exists(), "no backup")
        });
        host.step(&["rekey", &name, "--start"], |_| Ok(()));
        host.step(&["detach", &name], |left| {
            check(record(left, &name).is_none(), "still on record")
        });
        let erase = ["volume", "erase", "disk/other.img", "--yes"];
        host.step(&erase, |_| Ok(()));
        host.campaign.report("state of a manager");
    }
}
