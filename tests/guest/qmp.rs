//! QEMU's monitor: commands, their answers, and events.
//!
//! Source: the QEMU Machine Protocol
//! (<https://www.qemu.org/docs/master/interop/qmp-spec.html>).

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long a command may take, or an event may not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the monitor of one QEMU.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Those that came before they were asked for.
    events: VecDeque<Value>,
    pid: Pid,
}

impl Qmp {
    /// Connects, and leaves the negotiation behind.
    pub fn connect(socket: &Path) -> io::Result<Qmp> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // The kernel has kept who listens there: QEMU itself.
        let pid = rustix::net::sockopt::socket_peercred(&stream)?.pid;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            events: VecDeque::new(),
            pid,
        };
        let greeting = qmp.receive()?;
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        qmp.execute("qmp_capabilities", json!({}));
        Ok(qmp)
    }

    /// Sends QEMU a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// What the command returns; panics if it is refused.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.attempt(command, arguments)
            .unwrap_or_else(|error| panic!("QEMU refuses '{command}': {error}"))
    }

    /// What the command returns, or QEMU's words of why not.
    pub fn attempt(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let message = json!({ "execute": command, "arguments": arguments });
        // As one: it may have quit before the end of the line.
        let line = format!("{message}\n");
        let written = self.stream.get_mut().write_all(line.as_bytes());
        written.unwrap_or_else(|error| panic!("QEMU takes no '{command}': {error}"));
        loop {
            let mut answer = self
                .receive()
                .unwrap_or_else(|error| panic!("QEMU does not answer '{command}': {error}"));
            if answer.get("event").is_some() {
                self.events.push_back(answer);
            } else if let Some(error) = answer.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// The data of the next event of that name, which may have come already. Those
    /// before it are forgotten.
    pub fn wait_for(&mut self, event: &str) -> Value {
        self.next_of(&[event])["data"].take()
    }

    /// Which of these events comes next. Those before it are forgotten.
    pub fn wait_for_any(&mut self, events: &[&str]) -> String {
        let found = self.next_of(events);
        found["event"].as_str().unwrap_or_default().to_owned()
    }

    fn next_of(&mut self, events: &[&str]) -> Value {
        let start = Instant::now();
        loop {
            let next = match self.events.pop_front() {
                Some(next) => next,
                None => self
                    .receive()
                    .unwrap_or_else(|error| panic!("no event {events:?}: {error}")),
            };
            if events.iter().any(|event| next["event"] == json!(event)) {
                return next;
            }
            assert!(start.elapsed() < PATIENCE, "no event {events:?}");
        }
    }

    /// Asks `command` again and again until `done` finds in its answer what is
    /// waited for.
    pub fn poll<T>(&mut self, command: &str, mut done: impl FnMut(&Value) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let answer = self.execute(command, json!({}));
            if let Some(found) = done(&answer) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "still not so: {answer}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The next message of either kind. A time-out is an error.
    fn receive(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }
}
