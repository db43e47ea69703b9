//! A guest: `qemu/run-guest` with a job, its results, and its console.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::qmp::Qmp;
use crate::server::{DEADLINE, Server};

/// How long a guest may take, on a slow machine that does other things as well.
/// `run-guest` ends QEMU then.
const SECONDS: u32 = 400;

/// A path in this project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Options of `run-guest` for the oldest QEMU that has to work, Debian 12's. On
/// other systems, which its packages are not made for, `QEMU_7_2` may name one;
/// else these tests run with the QEMU that is installed, too.
pub fn oldest_qemu() -> &'static [&'static str] {
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let is = |line: &str| system.lines().any(|there| there == line);
    if std::env::var_os("QEMU_7_2").is_some() || is("ID=debian") && is("VERSION_ID=\"12\"") {
        &["--qemu", "7.2"]
    } else {
        &[]
    }
}

/// A guest that is to be started.
pub struct Guest {
    command: Command,
    job: &'static str,
    results: TempDir,
}

impl Guest {
    /// A guest that runs `qemu/jobs/<job>`.
    pub fn new(job: &'static str) -> Guest {
        let results = tempfile::tempdir().unwrap();
        let mut command = Command::new(project("qemu/run-guest"));
        command
            .arg("--job")
            .arg(project("qemu/jobs").join(job))
            .args(["--timeout", &SECONDS.to_string(), "--results"])
            .arg(results.path());
        Guest {
            command,
            job,
            results,
        }
    }

    /// The server's disk: `/dev/sut0`, and so on with every further call.
    pub fn served_by(self, server: &Server) -> Guest {
        self.on(server.socket())
    }

    /// The same, for who serves on that socket.
    pub fn on(mut self, socket: &Path) -> Guest {
        self.command.arg("--socket").arg(socket);
        self
    }

    /// A raw file as `/dev/raw0`, and so on, through QEMU's own block layer.
    pub fn raw(mut self, file: &Path) -> Guest {
        self.command.arg("--disk").arg(file);
        self
    }

    /// Options of `run-guest`.
    pub fn args(mut self, arguments: &[&str]) -> Guest {
        self.command.args(arguments);
        self
    }

    /// A copy of a file for the job.
    pub fn input(mut self, name: &str, file: &Path) -> Guest {
        let mut argument = std::ffi::OsString::from(format!("{name}="));
        argument.push(file);
        self.command.arg("--input").arg(argument);
        self
    }

    /// Gives QEMU a monitor for [`Running::qmp`].
    pub fn monitored(self) -> Guest {
        let socket = monitor_in(&self.results);
        self.args(&["--qmp", socket.to_str().unwrap()])
    }

    /// A variable for the job.
    pub fn env(self, name: &str, value: &str) -> Guest {
        self.args(&["--env", &format!("{name}={value}")])
    }

    /// Starts the guest, when no other one runs.
    pub fn start(self) -> Running {
        let turn = turn();
        self.spawn(Some(turn))
    }

    /// Starts the guest in the turn of another one, which has to end after it.
    pub fn start_beside(self, _other: &Running) -> Running {
        self.spawn(None)
    }

    fn spawn(mut self, turn: Option<File>) -> Running {
        let log = File::create(self.results.path().join("run-guest.log")).unwrap();
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {:?}: {error}", self.command));
        Running {
            process: Process(child),
            job: self.job,
            results: self.results,
            _turn: turn,
        }
    }

    /// Runs the guest to its end, which must be a good one.
    pub fn succeed(self) -> Results {
        self.start().succeed()
    }

    /// Runs the guest to its end, which must be a bad one, and returns what
    /// `run-guest` said of it.
    pub fn fail(self) -> String {
        self.start().fail()
    }
}

/// Held by the one guest that may run: others would only slow it down.
fn turn() -> File {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest.lock");
    let file = File::create(path).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

/// A guest that runs, and ends at the latest when this is dropped.
pub struct Running {
    process: Process,
    job: &'static str,
    results: TempDir,
    _turn: Option<File>,
}

fn monitor_in(results: &TempDir) -> PathBuf {
    results.path().join("qmp.sock")
}

impl Running {
    /// The monitor of a guest that is [`Guest::monitored`]: one at a time.
    pub fn qmp(&mut self) -> Qmp {
        let start = Instant::now();
        loop {
            match Qmp::connect(&monitor_in(&self.results)) {
                Ok(qmp) => return qmp,
                Err(error) => {
                    if let Some(status) = self.process.0.try_wait().unwrap() {
                        self.failed(status, "before its monitor answered");
                    }
                    assert!(start.elapsed() < DEADLINE, "no monitor: {error}");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// Whether `run-guest` still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.0.try_wait().unwrap().is_none()
    }

    /// Panics with all that is known if it has ended.
    pub fn assert_running(&mut self, when: &str) {
        if let Some(status) = self.process.0.try_wait().unwrap() {
            self.failed(status, when);
        }
    }

    /// Waits for the end, which must be a bad one, and returns what `run-guest`
    /// said of it.
    pub fn fail(mut self) -> String {
        let status = self.process.0.wait().unwrap();
        assert!(!status.success(), "this guest should have failed");
        self.log("run-guest.log")
    }

    /// Waits until the job has said this on its console.
    pub fn wait_for_line(&mut self, text: &str) {
        let start = Instant::now();
        while !self.log("console.log").contains(text) {
            if let Some(status) = self.process.0.try_wait().unwrap() {
                self.failed(status, &format!("before it said '{text}'"));
            }
            let limit = Duration::from_secs(SECONDS.into());
            assert!(start.elapsed() < limit, "the guest never said '{text}'");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end, which must be a good one.
    pub fn succeed(mut self) -> Results {
        let status = self.process.0.wait().unwrap();
        if !status.success() {
            self.failed(status, "");
        }
        Results(self.results)
    }

    fn failed(&self, status: ExitStatus, when: &str) -> ! {
        let console = self.log("console.log");
        let lines: Vec<&str> = console.lines().collect();
        let end = &lines[lines.len().saturating_sub(30)..];
        panic!(
            "the guest's job '{}' ended with {status} {when}\n--- run-guest said:\n{}\n\
             --- the end of the console:\n{}\n--- QEMU said:\n{}",
            self.job,
            self.log("run-guest.log"),
            end.join("\n"),
            self.log("qemu.log"),
        )
    }

    fn log(&self, name: &str) -> String {
        let bytes = std::fs::read(self.results.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// `run-guest`.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            // It ends QEMU before it ends itself.
            let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

/// What the job left.
pub struct Results(TempDir);

impl Results {
    /// The text of one of its files.
    pub fn text(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.0.path().join(name));
        let text = text.unwrap_or_else(|error| panic!("the job left no '{name}': {error}"));
        text.trim_end().to_owned()
    }
}
