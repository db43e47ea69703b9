//! A directory with a platform key and volumes, and commands that run there:
//! servers that start, and commands that have to be refused.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::server::{Server, eventually, key_file, sealblk, succeed};

/// Bytes of a volume here.
pub const SIZE: u64 = 4 << 20;

pub struct Home {
    directory: TempDir,
}

impl Home {
    /// A directory with a platform key.
    pub fn new() -> Home {
        let home = Home {
            directory: tempfile::tempdir().unwrap(),
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        succeed(
            command
                .args(["key", "init", "--key-file"])
                .arg(key_file(home.directory())),
        );
        home
    }

    /// The same with a volume `disk.img` of [`SIZE`] bytes.
    pub fn with_volume() -> Home {
        let home = Home::new();
        home.create("disk.img", &[]);
        home
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// `sealblk` with the key of this directory.
    pub fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = sealblk(self.directory());
        command.args(arguments).current_dir(self.directory());
        command
    }

    /// Makes a volume of [`SIZE`] bytes.
    pub fn create(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let size = SIZE.to_string();
        let create = ["volume", "create", name, "--size", &size];
        succeed(self.sealblk(&create).args(arguments));
        self.path(name)
    }

    /// `sealblk serve` of a volume on the socket `disk.sock`.
    pub fn serve_command(&self, arguments: &[&str]) -> Command {
        self.sealblk(&[&["serve", "--socket", "disk.sock"], arguments].concat())
    }

    /// Serves on the socket `disk.sock`.
    pub fn serve(&self, arguments: &[&str]) -> Server {
        self.start("disk.sock", self.serve_command(arguments))
    }

    /// Starts a server that listens on that socket.
    pub fn start(&self, socket: &str, command: Command) -> Server {
        Server::beside(self.directory(), self.path(socket), command)
    }

    /// Runs `sealblk` with these arguments, which has to fail.
    pub fn refused(&self, arguments: &[&str]) -> Refusal {
        refused(&mut self.sealblk(arguments))
    }

    /// Tries to serve `disk.img` on `disk.sock`, which has to fail.
    pub fn serve_refused(&self, arguments: &[&str]) -> Refusal {
        refused(self.serve_command(arguments).arg("disk.img"))
    }
}

/// What a command said that failed.
#[derive(Debug)]
pub struct Refusal {
    pub status: i32,
    /// What follows `error: `.
    pub error: String,
    /// What follows `help: `.
    pub help: String,
}

impl Refusal {
    /// Panics unless it has this status, its error names all of `causes`, and
    /// its help mentions `next`.
    pub fn expect(self, status: i32, causes: &[&str], next: &str) {
        assert_eq!(self.status, status, "{self:?}");
        for cause in causes {
            assert!(self.error.contains(cause), "{cause:?} is not in {self:?}");
        }
        assert!(self.help.contains(next), "{next:?} is not in {self:?}");
    }
}

/// A process that does not outlive the test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command that has to fail by itself: with one line `error:`, one
/// line `help:` after it, and nothing on standard output.
pub fn refused(command: &mut Command) -> Refusal {
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut child = Guard(child);
    let what = format!("{command:?} has ended");
    let status = eventually(&what, || child.0.try_wait().unwrap());
    let (out, err) = (contents(&mut out), contents(&mut err));
    assert!(!status.success(), "{command:?} succeeded: {out}{err}");
    assert_eq!(out, "", "{command:?} wrote to standard output");
    let status = status
        .code()
        .unwrap_or_else(|| panic!("{command:?} ended with {status}: {err}"));
    let with = |prefix: &str| -> Vec<&str> {
        err.lines()
            .filter_map(|line| line.strip_prefix(prefix))
            .collect()
    };
    let (errors, helps) = (with("error: "), with("help: "));
    assert_eq!((errors.len(), helps.len()), (1, 1), "{command:?}: {err}");
    let last_two: Vec<&str> = err.lines().rev().take(2).collect();
    assert!(
        last_two[0].starts_with("help: ") && last_two[1].starts_with("error: "),
        "{err}"
    );
    Refusal {
        status,
        error: errors[0].into(),
        help: helps[0].into(),
    }
}

fn contents(file: &mut File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}
