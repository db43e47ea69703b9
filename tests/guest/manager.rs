//! A `sealblk daemon` in a directory of its own, its commands, and the end of
//! all that it started: workers outlive their daemon, but not the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::server::{Server, eventually, succeed};

pub struct Manager {
    server: Server,
    environment: Vec<(&'static str, PathBuf)>,
    /// The last to go.
    directory: TempDir,
}

impl Manager {
    /// A daemon with no disks, and these variables for all that loads modules.
    pub fn start(environment: Vec<(&'static str, PathBuf)>) -> Manager {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let config = format!(
            "[daemon]\nsocket = \"{at}/api.sock\"\nstate_dir = \"{at}/state\"\nrun_dir = \"{at}/run\"\n\
             [audit]\npath = \"{at}/audit.jsonl\"\n"
        );
        fs::write(directory.path().join("sealblk.toml"), config).unwrap();
        let command = sealblk(directory.path(), &environment, &["daemon"]);
        let socket = directory.path().join("api.sock");
        let server = Server::beside(directory.path(), socket, command);
        Manager {
            server,
            environment,
            directory,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What a disk here is called: as no disk of any other test.
    pub fn name(&self, disk: &str) -> String {
        name(self.directory.path(), disk)
    }

    /// A command of `sealblk` that runs here.
    pub fn sealblk(&self, arguments: &[&str]) -> Command {
        sealblk(self.directory.path(), &self.environment, arguments)
    }

    /// What a command prints that has to succeed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        succeed(&mut self.sealblk(arguments))
    }

    /// Attaches `disk.img` on `disk.sock`.
    pub fn attach(&self) -> Command {
        let name = self.name("vm");
        self.sealblk(&[
            "attach",
            "disk.img",
            "--socket",
            "disk.sock",
            "--name",
            &name,
        ])
    }

    /// What the daemon knows of that disk.
    pub fn disk(&self) -> Value {
        let disk = self.succeed(&["show", "--json", &self.name("vm")]);
        serde_json::from_str(&disk).unwrap()
    }

    /// Detaches it, once it is known that QEMU has left.
    pub fn detach(&self) {
        eventually("its front end has gone", || {
            (self.disk()["front_end"] == false).then_some(())
        });
        self.succeed(&["detach", &self.name("vm")]);
        assert!(self.workers().is_empty());
    }

    /// What the daemons said here, and their workers.
    pub fn messages(&self) -> String {
        self.server.messages()
    }

    /// Kills the daemon, and nothing else, and starts another one.
    pub fn kill_and_restart(&mut self) {
        let before = self.workers();
        self.server.kill();
        assert_eq!(self.workers(), before, "workers are processes of their own");
        let command = self.sealblk(&["daemon"]);
        self.server.restart(command);
    }

    /// The processes that serve disks of this daemon.
    pub fn workers(&self) -> Vec<u32> {
        let wanted = format!("sealblk\0worker\0{}", self.name(""));
        let is_worker = |pid: &u32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with(wanted.as_bytes())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut found: Vec<u32> = processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(is_worker)
            .collect();
        found.sort_unstable();
        found
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // First the one that would start others.
        self.server.kill();
        for pid in self.workers() {
            let pid = Pid::from_raw(pid.cast_signed()).unwrap();
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn name(directory: &Path, disk: &str) -> String {
    let directory = directory.file_name().unwrap().to_str().unwrap();
    format!("{directory}-{disk}")
}

fn sealblk(
    directory: &Path,
    environment: &[(&'static str, PathBuf)],
    arguments: &[&str],
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command
        .arg("--config")
        .arg(directory.join("sealblk.toml"))
        .args(arguments)
        .envs(environment.iter().cloned())
        .current_dir(directory);
    command
}
