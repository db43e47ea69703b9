//! A server process under test: started in a temporary directory, waited for,
//! ended by pid, and never left behind.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take here before it counts as hung.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until `done` gives something, or panics after [`DEADLINE`].
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What `look` says once it has said the same for a tenth of a second; panics after
/// [`DEADLINE`].
pub fn at_rest<T: PartialEq>(what: &str, mut look: impl FnMut() -> T) -> T {
    let mut last = look();
    eventually(what, || {
        std::thread::sleep(Duration::from_millis(100));
        let earlier = std::mem::replace(&mut last, look());
        (earlier == last).then_some(())
    });
    last
}

/// A running server, its socket, and the directory that all of it lives in.
pub struct Server {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    path: PathBuf,
    /// The directory, if it goes with the server.
    _owned: Option<TempDir>,
}

impl Server {
    /// Starts `command`, which is to serve on the socket [`socket_in`] of the
    /// directory, and waits until the socket takes connections.
    pub fn start(directory: TempDir, command: Command) -> Server {
        let socket = socket_in(directory.path());
        let mut server = Server::beside(directory.path(), socket, command);
        server._owned = Some(directory);
        server
    }

    /// Starts `command`, which is to serve on that socket, in a directory that
    /// outlives the server, and waits until the socket takes connections.
    pub fn beside(directory: &Path, socket: PathBuf, mut command: Command) -> Server {
        let log = socket.with_extension("log");
        let mut server = Server {
            child: spawn(&mut command, &log),
            socket,
            log,
            path: directory.to_owned(),
            _owned: None,
        };
        server.wait_until_ready();
        server
    }

    /// Starts another process in the place of one that has ended.
    pub fn restart(&mut self, mut command: Command) {
        assert!(!self.is_running());
        self.child = spawn(&mut command, &self.log);
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        eventually("the socket takes connections", || {
            self.assert_running("its start");
            UnixStream::connect(&self.socket).ok()
        });
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn directory(&self) -> &Path {
        &self.path
    }

    /// What the server wrote to its standard error so far.
    pub fn messages(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Panics with the server's own words if it is gone.
    pub fn assert_running(&mut self, after: &str) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!(
                "the server ended with {status} after {after}: {}",
                self.messages()
            );
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Waits until the server has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the server has ended", || self.child.try_wait().unwrap())
    }

    /// SIGTERM, then its exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL, and reaped.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A field of `/proc/PID/status` in KiB, such as `VmRSS` or `VmHWM`,
    /// summed over the server and its children.
    pub fn memory_kib(&self, field: &str) -> u64 {
        self.processes()
            .iter()
            .filter_map(|pid| {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                let line = status.lines().find(|line| line.starts_with(field))?;
                line.split_whitespace().nth(1)?.parse::<u64>().ok()
            })
            .sum()
    }

    /// How many files the server and its children have open.
    pub fn open_files(&self) -> usize {
        self.processes()
            .iter()
            .filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).ok())
            .map(Iterator::count)
            .sum()
    }

    fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.pid()];
        let mut next = 0;
        while let Some(pid) = found.get(next).copied() {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = std::fs::read_to_string(path).unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            next += 1;
        }
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the server said:\n{}", self.messages());
        }
    }
}

fn spawn(command: &mut Command, log: &Path) -> Child {
    let stderr = File::options().create(true).append(true).open(log).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Where the socket of a server in that directory is.
pub fn socket_in(directory: &Path) -> PathBuf {
    directory.join("disk.sock")
}

/// A `sealblk` command with the key file of that directory.
pub fn sealblk(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.arg("--key-file").arg(key_file(directory));
    command
}

/// The platform key file of a test's directory.
pub fn key_file(directory: &Path) -> PathBuf {
    directory.join("platform.key")
}

/// Runs a command to its end; panics unless it succeeds.
pub fn succeed(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A volume to be made and served.
#[derive(Clone, Debug)]
pub struct Volume {
    pub bytes: u64,
    pub sector_size: u32,
    pub detached: bool,
    pub create: Vec<&'static str>,
    pub serve: Vec<&'static str>,
}

impl Volume {
    pub fn new(bytes: u64, sector_size: u32) -> Self {
        Volume {
            bytes,
            sector_size,
            detached: false,
            create: Vec::new(),
            serve: Vec::new(),
        }
    }

    /// With its header in a file of its own.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// More arguments for `sealblk volume create`.
    pub fn create_with(mut self, arguments: &[&'static str]) -> Self {
        self.create.extend(arguments);
        self
    }

    /// More arguments for `sealblk serve`.
    pub fn serve_with(mut self, arguments: &[&'static str]) -> Self {
        self.serve.extend(arguments);
        self
    }
}

/// The backing file in a test's directory.
pub fn image_in(directory: &Path) -> PathBuf {
    directory.join("disk.img")
}

/// The detached header of a [`Volume::detached`] in a test's directory.
pub fn header_in(directory: &Path) -> PathBuf {
    directory.join("disk.header")
}

/// Names the volume of that directory, and its header if it has one of its own.
pub fn name_volume(command: &mut Command, directory: &Path) {
    command.arg(image_in(directory));
    let header = header_in(directory);
    if header.exists() {
        command.arg("--header").arg(header);
    }
}

/// Makes a key and a volume with sealblk, and serves it.
pub fn serve_with_sealblk(volume: &Volume) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    succeed(
        Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .args(["key", "init", "--key-file"])
            .arg(key_file(&path)),
    );
    let mut create = sealblk(&path);
    create
        .args(["volume", "create", "--size", &volume.bytes.to_string()])
        .args(["--sector-size", &volume.sector_size.to_string()])
        .args(&volume.create)
        .arg(image_in(&path));
    if volume.detached {
        create.arg("--header").arg(header_in(&path));
    }
    succeed(&mut create);
    Server::start(directory, serve_command(&path, &volume.serve))
}

/// `sealblk serve` of the volume in that directory.
pub fn serve_command(directory: &Path, arguments: &[&'static str]) -> Command {
    let mut command = sealblk(directory);
    command.arg("serve");
    name_volume(&mut command, directory);
    command
        .arg("--socket")
        .arg(socket_in(directory))
        .args(arguments);
    command
}

/// Serves a plain file with QEMU's storage daemon, the independent reference.
/// `export` is added to its `--export`, for example `,num-queues=4`.
pub fn serve_with_qemu(bytes: u64, export: &str) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let image = image_in(directory.path());
    File::create(&image).unwrap().set_len(bytes).unwrap();
    let mut command = Command::new("qemu-storage-daemon");
    command
        .arg("--blockdev")
        .arg(format!(
            "driver=file,node-name=disk,filename={},discard=unmap",
            image.display()
        ))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={}{export}",
            socket_in(directory.path()).display()
        ));
    Server::start(directory, command)
}
