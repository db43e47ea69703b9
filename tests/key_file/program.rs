//! Runs `sealblk key`, and what the tests look at.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_sealblk");

/// A directory with or without a key file in it.
pub struct Place {
    pub directory: TempDir,
    pub key: PathBuf,
}

/// What the program said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Place {
    /// No key file yet.
    pub fn empty() -> Self {
        let directory = TempDir::new().unwrap();
        let key = directory.path().join("platform.key");
        Place { directory, key }
    }

    /// A new key file.
    pub fn with_key() -> Self {
        let place = Place::empty();
        place.good(&["init"]);
        place
    }

    /// `sealblk key ARGS` on the key file, ready to run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .arg("key")
            .args(args)
            .arg("--key-file")
            .arg(&self.key);
        command
    }

    /// The same, run by a shell after `setup`.
    pub fn command_after(&self, setup: &str, args: &[&str]) -> Command {
        let inner = self.command(args);
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{setup}; exec \"$0\" \"$@\""));
        command.arg(inner.get_program()).args(inner.get_args());
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        Said::from(self.command(args).output().unwrap())
    }

    /// Runs it, and it must work.
    pub fn good(&self, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(
            (said.status, said.err.as_str()),
            (0, ""),
            "{args:?}: {said:?}"
        );
        said
    }

    /// Runs it, and it must end with `status` and say `told`, and what to do.
    pub fn bad(&self, args: &[&str], status: i32, told: &str) {
        self.run(args).refused(status, told);
    }

    /// `key list --json`.
    pub fn list(&self) -> Value {
        serde_json::from_str(&self.good(&["list", "--json"]).out).unwrap()
    }

    /// The names of the versions, oldest first.
    pub fn versions(&self) -> Vec<String> {
        let list = self.list();
        let versions = list["versions"].as_array().unwrap().iter();
        versions
            .map(|version| version["id"].as_str().unwrap().to_string())
            .collect()
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.key).unwrap()
    }

    pub fn chmod(&self, mode: u32) {
        std::fs::set_permissions(&self.key, PermissionsExt::from_mode(mode)).unwrap();
    }

    /// The names of all files in the directory.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Said {
    pub fn refused(&self, status: i32, told: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        let lines: Vec<&str> = self.err.lines().collect();
        assert_eq!(lines.len(), 2, "one error and one help: {self:?}");
        assert!(
            lines[0].starts_with("error: ") && lines[0].contains(told),
            "{self:?}"
        );
        assert!(lines[1].starts_with("help: "), "{self:?}");
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Said {
            // A signal shows as a shell would show it.
            status: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap()),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}
