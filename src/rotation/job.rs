//! Where the rotation of each key set is, on disk: one small file for each.
//!
//! It says what the volumes are to have; which of them have it is said by their
//! headers, so that nothing is lost with the file but when it began.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable;
use crate::keys::{Name, Target};
use crate::timestamp::Timestamp;

const VERSION: u32 = 1;

/// The most versions that are remembered.
const PAST_MAX: usize = 64;

/// A rotation, under way or finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    version: u32,
    /// The key that was configured then, as far as the provider has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What wraps now.
    pub target: Target,
    /// Since when.
    pub since: Timestamp,
    /// What wrapped before, the oldest first.
    #[serde(default)]
    pub past: Vec<Target>,
    /// When all volumes that are known had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
}

impl Job {
    /// A rotation to `target` that begins now, after `before`. Volumes have
    /// wraps of what is `found`.
    pub fn new(
        key: Option<String>,
        target: Target,
        before: Option<Job>,
        found: impl IntoIterator<Item = Target>,
    ) -> Self {
        let mut past: Vec<Target> = Vec::new();
        let (earlier, last) = match before {
            Some(before) => (before.past, Some(before.target)),
            None => (Vec::new(), None),
        };
        for old in earlier.into_iter().chain(last).chain(found) {
            let known = past.iter().any(|past| past.same_version(&old));
            if !known && !old.same_version(&target) {
                past.push(old);
            }
        }
        past.drain(..past.len().saturating_sub(PAST_MAX));
        Job {
            version: VERSION,
            key,
            target,
            since: Timestamp::now(),
            past,
            finished: None,
        }
    }

    /// Whether the key that wraps now was at that version before.
    pub fn left_behind(&self, version: &str) -> bool {
        let earlier = Target {
            key_version: version.into(),
            ..self.target.clone()
        };
        self.past.iter().any(|past| past.same_version(&earlier))
    }
}

/// The files, in one directory.
#[derive(Clone, Debug)]
pub struct Jobs(PathBuf);

impl Jobs {
    /// Those in the state directory `state`.
    pub fn below(state: &Path) -> Self {
        Jobs(state.join("rotations"))
    }

    /// The file of a key set.
    pub fn path(&self, name: &Name) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// The rotation of a key set, if there was one.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read(&self, name: &Name) -> io::Result<Option<Job>> {
        durable::read_json(&self.path(name), VERSION, |read: &Job| read.version)
    }

    /// Stores it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &Name, job: &Job) -> io::Result<()> {
        durable::directory(&self.0)?;
        durable::replace(&self.path(name), &serde_json::to_vec_pretty(job)?, 0o600)
    }

    /// Forgets it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &Name) -> io::Result<()> {
        durable::remove_if_there(&self.path(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(version: &str) -> Target {
        Target {
            provider: "vault".into(),
            key_id: "disks".into(),
            key_version: version.into(),
            group: None,
        }
    }

    #[test]
    fn what_was_before_is_remembered_once_and_not_without_end() {
        let mut job = Job::new(None, target("0"), None, []);
        for version in 1..100 {
            job = Job::new(None, target(&version.to_string()), Some(job), []);
        }
        assert_eq!(job.past.len(), PAST_MAX);
        assert_eq!(job.past.last(), Some(&target("98")));
        // Back to an earlier one, which is then no past one any more.
        let found = [target("98"), target("97"), target("lost")];
        let job = Job::new(None, target("97"), Some(job), found);
        assert_eq!(job.past.last(), Some(&target("lost")));
        assert_eq!(job.past[PAST_MAX - 2], target("99"));
        assert!(!job.past.contains(&target("97")));
    }

    #[test]
    fn a_version_of_another_key_was_not_left_behind() {
        let other = Target {
            provider: "file".into(),
            ..target("7")
        };
        let job = Job::new(None, target("2"), None, [target("1"), other]);
        assert!(job.left_behind("1"));
        assert!(!job.left_behind("2") && !job.left_behind("7"));
    }

    #[test]
    fn a_job_is_there_as_a_whole_or_not_at_all() {
        let state = tempfile::tempdir().unwrap();
        let (jobs, name) = (Jobs::below(state.path()), Name::default());
        assert_eq!(jobs.read(&name).unwrap(), None);
        let job = Job::new(Some("disks".into()), target("2"), None, []);
        jobs.write(&name, &job).unwrap();
        assert_eq!(jobs.read(&name).unwrap(), Some(job));
        std::fs::write(jobs.path(&name), "{\"version\": 1").unwrap();
        jobs.read(&name).unwrap_err();
        jobs.remove(&name).unwrap();
        jobs.remove(&name).unwrap();
    }
}
