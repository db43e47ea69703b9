//! A host with one key set, and what the doctor says of it.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

pub struct Host {
    directory: TempDir,
}

/// The checks of the one key set.
#[derive(Debug)]
pub struct Told {
    pub status: i32,
    pub checks: Vec<Value>,
    pub stderr: String,
    pub all: Value,
}

impl Host {
    /// With a key set `prod` of these settings.
    pub fn with(settings: &str) -> Host {
        let host = Host {
            directory: tempfile::tempdir().unwrap(),
        };
        let text = format!("[key_sets.prod]\n{settings}\n");
        std::fs::write(host.path("sealblk.toml"), text).unwrap();
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn doctor(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .args(["doctor", "--key-set", "prod", "--config"])
            .arg(self.path("sealblk.toml"))
            .args(arguments)
            .output()
            .unwrap()
    }

    pub fn examine(&self) -> Told {
        let output = self.doctor(&["--json"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let all: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {stderr}"));
        let sets = all["key_sets"].as_array().unwrap();
        assert_eq!((sets.len(), &sets[0]["name"]), (1, &"prod".into()));
        let told = Told {
            status: output.status.code().unwrap(),
            checks: sets[0]["checks"].as_array().unwrap().clone(),
            stderr,
            all: all.clone(),
        };
        told.check_shape();
        told
    }
}

impl Told {
    /// What scripts rely on.
    fn check_shape(&self) {
        let host = self.all["host"].as_array().unwrap();
        let mut first_failure = None;
        for check in host.iter().chain(&self.checks) {
            let status = check["status"].as_str().unwrap();
            assert!(["ok", "warn", "fail", "skip"].contains(&status), "{check}");
            assert!(check["name"].is_string() && check["message"].is_string());
            if ["warn", "fail"].contains(&status) {
                assert!(!check["help"].as_str().unwrap().is_empty(), "{check}");
            }
            assert_eq!(check["exit_status"].is_number(), status == "fail");
            if status == "fail" {
                first_failure.get_or_insert(check);
            }
        }
        let expected = first_failure.map_or(0, |check| check["exit_status"].as_i64().unwrap());
        assert_eq!(i64::from(self.status), expected);
        assert_eq!(self.all["ok"], self.status == 0);
        if let Some(check) = first_failure {
            let message = check["message"].as_str().unwrap();
            assert!(self.stderr.contains(message), "{message}: {}", self.stderr);
        }
    }

    pub fn all_named(&self, name: &str) -> Vec<&Value> {
        self.checks
            .iter()
            .filter(|check| check["name"] == name)
            .collect()
    }

    /// The first check of that name.
    pub fn check(&self, name: &str) -> &Value {
        self.all_named(name)
            .first()
            .copied()
            .unwrap_or_else(|| panic!("{name} is not in {:?}", self.checks))
    }

    /// Panics unless the check has this status, and all `words` are in what it says.
    pub fn expect(&self, name: &str, status: &str, words: &[&str]) -> &Self {
        let check = self.check(name);
        assert_eq!(check["status"], status, "{check}");
        assert_says(check, words);
        self
    }

    /// Panics unless each of these checks has this status.
    pub fn each(&self, names: &[&str], status: &str) -> &Self {
        for name in names {
            self.expect(name, status, &[]);
        }
        self
    }

    /// Panics unless this check alone failed, with this exit status.
    pub fn only_failure(&self, name: &str, status: i32, words: &[&str]) -> &Self {
        let failed: Vec<&Value> = self
            .checks
            .iter()
            .filter(|c| c["status"] == "fail")
            .collect();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!(failed[0]["name"], name, "{failed:?}");
        assert_eq!(self.status, status);
        assert_says(failed[0], words);
        self
    }
}

fn assert_says(check: &Value, words: &[&str]) {
    let said = format!("{} {}", check["message"], check["help"]);
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}
