//! The policy that holds now.
//!
//! Its file is looked at before each decision, so that what is withdrawn there
//! is withdrawn. A file that is wrong changes nothing: the policy stays as it
//! was, and that is told.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::{Error, Policy, parse};
use crate::config;

/// A file that was changed less than this ago may change once more without
/// showing it: the clock of a file system ticks slowly.
const SETTLED: Duration = Duration::from_secs(1);

/// A policy, and what it was read from.
#[derive(Debug)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// What came of reading the file because it had changed.
#[derive(Debug)]
pub enum News {
    /// Another policy holds.
    Changed(Arc<Loaded>),
    /// It is wrong, and the policy is what it was.
    Refused(Error),
}

/// The policy in a file.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    /// The file as it was read last. `None` when it has to be read again.
    seen: Option<Snapshot>,
    /// The text that was refused last: that is told once.
    refused: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Snapshot([i64; 7]);

impl Snapshot {
    /// What tells one state of a file from another. `None` where it is not
    /// there, or was changed so lately that this would not.
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        let changed = u64::try_from(meta.ctime()).ok()?;
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(changed));
        // A time to come is no time to rely on.
        (age.ok()? > SETTLED).then(|| {
            Snapshot([
                meta.dev().cast_signed(),
                meta.ino().cast_signed(),
                meta.size().cast_signed(),
                meta.ctime(),
                meta.ctime_nsec(),
                meta.mtime(),
                meta.mtime_nsec(),
            ])
        })
    }
}

fn read(path: &Path) -> Result<Loaded, Error> {
    let text = config::text_of(path).map_err(Error::Read)?;
    Ok(Loaded {
        policy: parse(path, &text)?,
        sha256: hash(&text),
    })
}

fn hash(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Watched {
    /// Reads the policy at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or is wrong.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let seen = Snapshot::of(path);
        Ok(Watched {
            path: path.to_owned(),
            state: Mutex::new(State {
                loaded: Arc::new(read(path)?),
                seen,
                refused: None,
            }),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The policy that holds, and what is new about it since the last look.
    pub fn look(&self) -> (Arc<Loaded>, Option<News>) {
        let mut state = self.state();
        let now = Snapshot::of(&self.path);
        if now.is_some() && now == state.seen {
            return (state.loaded.clone(), None);
        }
        let news = state.read(&self.path);
        // Seen before it was read: what changed meanwhile is seen next time.
        state.seen = now;
        (state.loaded.clone(), news)
    }

    /// Reads the file now, whether it has changed or not.
    ///
    /// # Errors
    /// When it is wrong. The policy is what it was.
    pub fn read_again(&self) -> Result<Arc<Loaded>, Error> {
        let mut state = self.state();
        state.seen = None;
        state.refused = None;
        match state.read(&self.path) {
            Some(News::Refused(error)) => Err(error),
            _ => Ok(state.loaded.clone()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(&mut self, path: &Path) -> Option<News> {
        match read(path) {
            Ok(loaded) if loaded.sha256 == self.loaded.sha256 => {
                self.refused = None;
                None
            }
            Ok(loaded) => {
                self.loaded = Arc::new(loaded);
                self.refused = None;
                Some(News::Changed(self.loaded.clone()))
            }
            Err(error) => {
                let said = error.to_string();
                let new = self.refused.as_ref() != Some(&said);
                self.refused = Some(said);
                new.then_some(News::Refused(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(host: &str) -> String {
        let key = "A".repeat(43) + "=";
        format!("[[hosts]]\nname = \"{host}\"\ncertificates = [\"*\"]\nkeys = [\"{key}\"]\n")
    }

    fn host(loaded: &Loaded) -> &str {
        &loaded.policy.hosts[0].name
    }

    #[test]
    fn each_change_is_seen_and_a_wrong_one_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("policy.toml");
        assert!(matches!(Watched::open(&path), Err(Error::Read(_))));
        fs::write(&path, text("a")).unwrap();
        let watched = Watched::open(&path).unwrap();
        assert!(watched.look().1.is_none());
        // At once, of the same length, and more than once.
        for name in ["b", "c", "d"] {
            fs::write(&path, text(name)).unwrap();
            let (loaded, news) = watched.look();
            assert_eq!(host(&loaded), name);
            assert!(matches!(news, Some(News::Changed(_))));
        }
        fs::write(&path, "[[hosts]]\nname = 7\n").unwrap();
        let (loaded, news) = watched.look();
        assert_eq!(host(&loaded), "d");
        let Some(News::Refused(error)) = news else {
            panic!("{news:?}");
        };
        assert!(error.to_string().contains("policy.toml:2:"), "{error}");
        // It is told once, and again to whoever asks for it.
        assert!(watched.look().1.is_none());
        assert!(watched.read_again().is_err());
        fs::remove_file(&path).unwrap();
        let (loaded, news) = watched.look();
        assert_eq!(host(&loaded), "d");
        assert!(matches!(news, Some(News::Refused(Error::Read(_)))));
        fs::write(&path, text("e")).unwrap();
        assert_eq!(host(&watched.read_again().unwrap()), "e");
        assert!(watched.look().1.is_none());
    }
}
