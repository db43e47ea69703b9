//! Brokers under test: real processes, with an authority, hosts and policies.
//!
//! A [`Site`] is what several brokers have in common: the authority, the hosts
//! and the policy. Each broker has its own directory in it, with its key, its
//! state and its audit log. It expects `certificates` beside it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sealblk::kms::broker::keyfile;
use sealblk::kms::broker::seal::{PrivateKey, PublicKey};
use sealblk::kms::credential::SecretFile;
use serde_json::Value;
use tempfile::TempDir;

use super::certificates::{Authority, Issued};

/// How long anything may take here before it counts as hung.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Polls until `done` gives something, or panics after [`DEADLINE`].
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A `sealblk` command that ends well, and what it printed.
pub fn sealblk(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A host, as a broker knows it.
pub struct Host {
    pub name: String,
    pub issued: Issued,
    pub key: PrivateKey,
}

impl Host {
    /// Its table in a policy.
    pub fn table(&self) -> String {
        format!(
            "[[hosts]]\nname = \"{}\"\ncertificates = [\"{}.example\"]\nkeys = [\"{}\"]\n",
            self.name,
            self.name,
            self.key.public()
        )
    }
}

/// What brokers side by side have in common.
pub struct Site {
    home: TempDir,
    pub authority: Authority,
}

impl Site {
    /// With a platform key, an authority, and a policy that knows nobody.
    pub fn new() -> Self {
        let site = Site {
            home: tempfile::tempdir().unwrap(),
            authority: Authority::new("authority of the site"),
        };
        site.write("ca.pem", &site.authority.certificate_pem());
        site.write("policy.toml", b"");
        let key = site.path("platform.key");
        sealblk(&["key", "init", "--key-file", key.to_str().unwrap()]);
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A file that only its owner can read, there as a whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let new = self.path(&format!(".new-{number}"));
        fs::write(&new, bytes).unwrap();
        fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
        fs::rename(new, self.path(name)).unwrap();
        self.path(name)
    }

    /// A new host with the certificate `NAME.example`. The policy does not
    /// know it yet.
    pub fn host(&self, name: &str) -> Host {
        let issued = self.authority.client(&format!("{name}.example"));
        let key = keyfile::generate(&self.path(&format!("{name}.x25519"))).unwrap();
        let name = name.to_owned();
        Host { name, issued, key }
    }

    /// Puts a policy in the place of the one before.
    pub fn policy(&self, hosts: &[&Host], rules: &str) {
        let hosts: String = hosts.iter().map(|host| host.table()).collect();
        self.write("policy.toml", format!("{hosts}{rules}").as_bytes());
    }

    /// The platform key as a key set with these settings more.
    pub fn file_key_set(&self, name: &str, more: &str) -> String {
        let key = self.path("platform.key");
        format!(
            "[key_sets.{name}]\nprovider = \"file\"\nkey_file = \"{}\"\n{more}\n",
            key.display()
        )
    }

    /// A broker with these key sets, and settings in `[broker]`, that runs.
    pub fn broker(&self, name: &str, settings: &str, key_sets: &str) -> Broker {
        let directory = self.path(name);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).unwrap();
        let server = self.authority.server();
        self.write(&format!("{name}/server.pem"), &server.certificate_pem());
        self.write(&format!("{name}/server.key"), &server.key_pem());
        keyfile::generate(&directory.join("broker.x25519")).unwrap();
        let mut broker = Broker {
            child: None,
            directory,
            port: 0,
            policy: self.path("policy.toml"),
            ca: self.path("ca.pem"),
            settings: settings.into(),
            key_sets: key_sets.into(),
        };
        broker.start();
        broker
    }
}

/// A broker process.
pub struct Broker {
    child: Option<Child>,
    pub directory: PathBuf,
    port: u16,
    policy: PathBuf,
    ca: PathBuf,
    settings: String,
    key_sets: String,
}

impl Broker {
    /// Its configuration, at the port that it had last.
    pub fn config(&self) -> String {
        let at = self.directory.display();
        format!(
            "[log]\nlevel = \"trace\"\n[audit]\npath = \"{at}/audit.jsonl\"\n\
             [daemon]\nstate_dir = \"{at}/unused\"\n\
             [broker]\nlisten = \"127.0.0.1:{}\"\ncertificate = \"{at}/server.pem\"\n\
             certificate_key = \"{at}/server.key\"\nclient_ca_file = \"{}\"\n\
             key = \"{at}/broker.x25519\"\npolicy = \"{}\"\nstate_dir = \"{at}/state\"\n\
             metrics = \"unix:{at}/metrics.sock\"\n{}\n{}\n",
            self.port,
            self.ca.display(),
            self.policy.display(),
            self.settings,
            self.key_sets
        )
    }

    /// Writes its configuration, with other key sets if there are any.
    pub fn configure(&mut self, key_sets: Option<&str>) -> PathBuf {
        if let Some(key_sets) = key_sets {
            self.key_sets = key_sets.into();
        }
        let path = self.directory.join("sealblk.toml");
        fs::write(&path, self.config()).unwrap();
        path
    }

    /// Starts it, at the port that it had last, and waits until it is ready.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let config = self.configure(None);
        let log = File::create(self.log()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command
            .arg("--config")
            .arg(config)
            .args(["broker", "serve"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: between fork and exec only prctl is called, which is
        // async-signal-safe.
        unsafe {
            command.pre_exec(
                || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                },
            );
        }
        self.child = Some(command.spawn().unwrap());
        // With port 0 the system chooses one.
        self.port = eventually("the broker is ready", || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "{}", self.messages());
            let messages = self.messages();
            let line = messages.lines().find(|line| line.contains(": ready "))?;
            let (_, port) = line.rsplit_once(':')?;
            port.trim().parse().ok()
        });
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What it wrote to its standard error since it was started last.
    pub fn messages(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its public key, as hosts are configured with it.
    pub fn key(&self) -> PublicKey {
        let file = SecretFile::new(self.directory.join("broker.x25519"));
        keyfile::read(&file).unwrap().public()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        eventually("the broker has ended", || child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The lines of its audit log.
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.audit_path()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub fn audit_path(&self) -> PathBuf {
        self.directory.join("audit.jsonl")
    }

    /// Its metrics.
    pub fn metrics(&self) -> String {
        use std::io::{Read, Write};
        let socket: &Path = &self.directory.join("metrics.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// The sum of the samples whose line has all of these in it.
    pub fn metric(&self, parts: &[&str]) -> f64 {
        let metrics = self.metrics();
        let lines = metrics.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the broker said:\n{}", self.messages());
        }
    }
}
