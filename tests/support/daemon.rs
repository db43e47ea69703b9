//! A manager under test, and a client that knows nothing of it but HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::home::Home;
use super::server::{DEADLINE, Server, eventually, sealblk};

/// A running `sealblk daemon`.
pub struct Daemon {
    pub home: Home,
    pub server: Server,
}

/// The configuration of a daemon that keeps all it has in `home`. What is in
/// `daemon` belongs to `[daemon]`, `rest` stands after it.
pub fn configure(home: &Home, daemon: &str, rest: &str) -> PathBuf {
    let directory = home.directory().display();
    // The host's own log is none of a test.
    let audit = match rest.contains("[audit]") {
        true => String::new(),
        false => format!("[audit]\npath = \"{directory}/audit.jsonl\""),
    };
    let text = format!(
        "[daemon]\nsocket = \"{directory}/api.sock\"\nstate_dir = \"{directory}/state\"\n\
         run_dir = \"{directory}/run\"\n{daemon}\n{rest}\n{audit}\n"
    );
    let path = home.path("sealblk.toml");
    fs::write(&path, text).unwrap();
    path
}

/// `sealblk daemon` with the configuration that is there.
pub fn command(home: &Home) -> Command {
    let mut command = sealblk(home.directory());
    command
        .arg("--config")
        .arg(home.path("sealblk.toml"))
        .arg("daemon");
    command
}

impl Daemon {
    /// A daemon with nothing but the defaults.
    pub fn start() -> Daemon {
        Daemon::configured("", "")
    }

    /// A daemon with settings in `[daemon]`, and other tables after it.
    pub fn configured(daemon: &str, rest: &str) -> Daemon {
        let home = Home::new();
        configure(&home, daemon, rest);
        let command = command(&home);
        Daemon::run(home, command)
    }

    /// A daemon with the configuration that is in `home`, started by `command`.
    pub fn run(home: Home, command: Command) -> Daemon {
        let server = home.start("api.sock", command);
        Daemon { home, server }
    }

    /// Kills it, if it runs, and starts it again. Its workers go on.
    pub fn restart(&mut self) {
        self.server.kill();
        self.server.restart(command(&self.home));
    }

    /// Ends all processes at once, and removes what a host that starts again
    /// does not have any more.
    pub fn lose_power(&mut self) {
        self.server.kill();
        self.kill_workers();
        let gone = self.home.path("run");
        fs::remove_dir_all(gone).unwrap();
        for entry in fs::read_dir(self.home.directory()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|end| end == "sock") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// The processes that serve the disks on its record, by their disks: by those
    /// names alone, so that no two tests may use one.
    pub fn workers(&self) -> BTreeMap<String, u32> {
        let records = fs::read_dir(self.home.path("state/disks"));
        let disks: BTreeSet<String> = records
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.unwrap().path().file_stem()?.to_str()?.to_owned()))
            .collect();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let found = processes.filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let disk = command.strip_prefix(b"sealblk\0worker\0")?;
            let disk = std::str::from_utf8(disk).ok()?.trim_end_matches('\0');
            disks.contains(disk).then(|| (disk.to_owned(), pid))
        });
        found.collect()
    }

    /// A worker that was just started may not be seen yet, so nobody must
    /// start any meanwhile.
    fn kill_workers(&self) {
        eventually("its workers have ended", || {
            let workers = self.workers();
            for pid in workers.values() {
                kill(*pid, Signal::KILL);
            }
            workers.is_empty().then_some(())
        });
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub fn socket(&self) -> &Path {
        self.server.socket()
    }

    /// Asks it something, as ourselves.
    pub fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Reply {
        ask(self.socket(), method, path, body)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, None)
    }

    /// A client command of this daemon.
    pub fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command
            .arg("--config")
            .arg(self.home.path("sealblk.toml"))
            .args(arguments)
            .current_dir(self.home.directory());
        command
    }
}

/// What attaches `a.img` as a disk of that name, which no other test may have: see
/// [`Daemon::workers`].
pub fn attach_a(name: &str) -> [&str; 6] {
    ["attach", "a.img", "--socket", "a.sock", "--name", name]
}

impl Drop for Daemon {
    /// Workers outlive the daemon by design. They do not outlive the test.
    fn drop(&mut self) {
        self.server.kill();
        self.kill_workers();
    }
}

/// Sends a signal to a process that this test has caused.
pub fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).unwrap();
    // It may have ended by itself.
    let _ = kill_process(pid, signal);
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Asks whoever listens at `socket`.
pub fn ask(socket: &Path, method: &str, path: &str, body: Option<&str>) -> Reply {
    ask_with(socket, "", method, path, body)
}

/// The same with more header lines, each of which ends with CR and LF.
pub fn ask_with(
    socket: &Path,
    headers: &str,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Reply {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}");
    if let Some(body) = body {
        let length = body.len();
        request += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
    }
    request += "\r\n";
    request += body.unwrap_or_default();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    read_reply(&mut stream).unwrap_or_else(|| panic!("no answer to {method} {path}"))
}

/// Reads an answer to its end. `None` if there is none.
pub fn read_reply(stream: &mut UnixStream) -> Option<Reply> {
    let mut bytes = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some(Reply {
        status,
        head: head.into(),
        body: body.into(),
    })
}
