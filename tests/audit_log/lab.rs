//! A log in a directory of its own, and those who judge it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sealblk::audit::{self, Event, Expect, Files, Head, Log, Outcome, Report, Settings};
use sealblk::keys::Actor;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub struct Lab {
    directory: TempDir,
}

impl Lab {
    pub fn new() -> Lab {
        Lab {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// The same with so many lines.
    pub fn with_lines(count: u64) -> (Lab, Vec<Vec<u8>>) {
        let lab = Lab::new();
        let log = lab.log();
        // The first one writes two.
        (1..count).for_each(|n| note(&log, n));
        let lines = lab.lines();
        assert_eq!(lines.len() as u64, count);
        (lab, lines)
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("audit.jsonl")
    }

    pub fn beside(&self, ending: &str) -> PathBuf {
        self.directory.path().join(format!("audit.jsonl.{ending}"))
    }

    pub fn settings(&self) -> Settings {
        Settings {
            path: self.path(),
            ..Settings::default()
        }
    }

    pub fn log(&self) -> Log {
        Log::new(self.settings())
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    /// The lines of the current file, with their ends.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        let bytes = self.bytes();
        bytes
            .split_inclusive(|&c| c == b'\n')
            .map(<[u8]>::to_vec)
            .collect()
    }

    pub fn write(&self, lines: &[Vec<u8>]) {
        fs::write(self.path(), lines.concat()).unwrap();
    }

    pub fn verify(&self) -> Report {
        self.verify_with(None, false)
    }

    pub fn verify_with(&self, expect: Option<&str>, partial: bool) -> Report {
        let expect: Option<Expect> = expect.map(|text| text.parse().unwrap());
        let files = Files::of(&self.path()).unwrap();
        let report = audit::verify(&files, expect, partial).unwrap();
        assert_eq!(report.ok, report.problem.is_none());
        report
    }

    /// Sound, as we and as an independent judge see it.
    pub fn assert_sound(&self) -> Report {
        let report = self.verify();
        assert_eq!(report.problem, None);
        if report.torn.iter().all(|torn| torn.recovered) {
            assert_eq!(self.python().unwrap(), report.head.unwrap());
        }
        report
    }

    /// Not sound, with this first problem, and no judge thinks otherwise.
    pub fn assert_problem(&self, line: Option<u64>, what: &str) {
        let problem = self.verify().problem.expect("nothing was found");
        assert_eq!(problem.line, line, "{problem:?}");
        assert!(problem.what.contains(what), "{problem:?}");
        // Of the file as a whole, the judge knows nothing.
        if line.is_some() {
            self.python().unwrap_err();
        }
    }

    /// What the program in the documentation says of all files.
    pub fn python(&self) -> Result<Head, String> {
        let files = Files::of(&self.path()).unwrap().segments;
        let output = Command::new("python3")
            .args(["-c", &documented_program()])
            .args(files.iter().map(|file| &file.path))
            .output()
            .expect("python3 runs");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        match output.status.success() {
            true => Ok(text(&output.stdout)
                .trim_end()
                .strip_prefix("head:")
                .unwrap()
                .parse()
                .unwrap()),
            false => Err(text(&output.stderr)),
        }
    }
}

fn documented_program() -> String {
    let page = include_str!("../../docs/audit.md");
    let (_, program) = page.split_once("```python\n").unwrap();
    program.split_once("```").unwrap().0.into()
}

/// A line whose `operation` is a number.
pub fn note(log: &Log, number: u64) {
    try_note(log, "test", number).unwrap();
}

pub fn try_note(log: &Log, who: &'static str, number: u64) -> Result<(), audit::Error> {
    let event = Event::RoleRefused {
        operation: &number.to_string(),
        object: who,
        needs: "key-admin",
    };
    let actor = Actor::this_process(who);
    log.record(&actor, event, Outcome::role_refused("no"))
}

/// A line with another content and the right hash.
pub fn forge(line: &[u8], edit: impl FnOnce(String) -> String) -> Vec<u8> {
    let text = String::from_utf8(line.to_vec()).unwrap();
    let (body, _) = text.rsplit_once(",\"hash\":\"").unwrap();
    let body = edit(body.to_owned());
    let hash = hex::encode(Sha256::digest(format!("{body}}}")));
    format!("{body},\"hash\":\"{hash}\"}}\n").into_bytes()
}

/// The bytes of a directory's files, to be put back.
pub struct Saved(Vec<(PathBuf, Vec<u8>)>);

impl Saved {
    pub fn of(lab: &Lab) -> Saved {
        let entries = fs::read_dir(lab.directory.path()).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        Saved(
            files
                .map(|path| (path.clone(), fs::read(path).unwrap()))
                .collect(),
        )
    }

    pub fn restore(&self, lab: &Lab) {
        for entry in fs::read_dir(lab.directory.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (path, bytes) in &self.0 {
            write_private(path, bytes);
        }
    }
}

pub fn write_private(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// A process of its own that runs one of the ignored tests here.
pub struct Process(Child);

impl Process {
    pub fn run(test: &str, lab: &Lab, variables: &[(&str, &str)]) -> Process {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--ignored", "--nocapture"])
            .env("AUDIT_PATH", lab.path())
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Process(child)
    }

    pub fn assert_success(mut self) {
        assert!(self.0.wait().unwrap().success());
    }

    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Of a process that was started here: the log it was given.
pub fn given_path() -> Option<PathBuf> {
    std::env::var_os("AUDIT_PATH").map(PathBuf::from)
}

pub fn given_number(name: &str) -> u64 {
    std::env::var(name).unwrap().parse().unwrap()
}
