//! PyKMIP's server as a process of its own, and what its operator can do.
//! `scripts/install-deps test` installs it.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::kmip::{KmipProvider, Mode, Settings};
use sealblk::kms::tls::{self, ClientCertificate};
use tempfile::TempDir;

use super::certificates::{Authority, Issued};

#[allow(clippy::duplicate_mod)]
#[path = "ports.rs"]
mod ports;
#[allow(unused_imports)]
pub use ports::free_port;

/// Python and the whole of a server have to be loaded, on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A running server, with certificates and a database in its own directory.
pub struct PyKmip {
    directory: TempDir,
    process: Mutex<Child>,
    pub port: u16,
    pub authority: Arc<Authority>,
}

impl PyKmip {
    /// A server with no keys in it.
    pub fn start() -> Self {
        Self::trusting(Arc::new(Authority::new("kmip test authority")))
    }

    /// Another one with no keys in it, that knows the same clients.
    pub fn beside(&self) -> Self {
        Self::trusting(self.authority.clone())
    }

    fn trusting(authority: Arc<Authority>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("sealblk-kmip-")
            .tempdir()
            .unwrap();
        write(directory.path(), "ca.pem", &authority.certificate_pem());
        place(directory.path(), "server", &authority.server());
        place(directory.path(), "host", &authority.client("host"));
        fs::create_dir(directory.path().join("policy")).unwrap();
        let (process, port) = launch(directory.path(), None);
        PyKmip {
            directory,
            process: Mutex::new(process),
            port,
            authority,
        }
    }

    /// The server that tests of one process share while any of them runs.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<PyKmip>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a certificate and its key beside the server's, as NAME.pem and NAME.key.
    pub fn place(&self, name: &str, issued: &Issued) {
        place(self.directory.path(), name, issued);
    }

    /// How the client that is placed as `name` reaches this server.
    pub fn settings(&self, name: &str, mode: Mode) -> Settings {
        Settings {
            endpoints: vec![format!("127.0.0.1:{}", self.port).parse().unwrap()],
            tls: tls::Settings {
                ca_files: vec![self.path("ca.pem")],
                client: Some(ClientCertificate {
                    certificate: self.path(&format!("{name}.pem")),
                    key: SecretFile::new(self.path(&format!("{name}.key"))),
                }),
            },
            mode,
            wrapping_key: None,
            // The machine may be busy with other tests.
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(30),
            },
            version: None,
        }
    }

    /// A client with the identity that owns the keys.
    pub fn client(&self, mode: Mode) -> KmipProvider {
        KmipProvider::new(self.settings("host", mode))
    }

    /// Revokes a key, for being `compromised` or out of use.
    pub fn revoke(&self, id: &str, compromised: bool) {
        let reason = if compromised {
            "KEY_COMPROMISE"
        } else {
            "CESSATION_OF_OPERATION"
        };
        self.operate(&format!(
            "c.revoke(enums.RevocationReasonCode.{reason}, {id:?})"
        ));
    }

    /// Destroys a key, which must not be active.
    pub fn destroy(&self, id: &str) {
        self.operate(&format!("c.destroy({id:?})"));
    }

    /// Registers an active AES-256 key that wraps others.
    pub fn register_wrapping_key(&self, key: &[u8]) -> String {
        let key = hex::encode(key);
        let id = self.operate(&format!(
            "k = objects.SymmetricKey(enums.CryptographicAlgorithm.AES, 256, bytes.fromhex({key:?}), \
             [enums.CryptographicUsageMask.WRAP_KEY]); i = c.register(k); c.activate(i); print(i)"
        ));
        id.trim().into()
    }

    /// Runs Python with PyKMIP's own client `c`, as the owner of the keys.
    pub fn operate(&self, code: &str) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        let script = format!(
            "from kmip.pie.client import ProxyKmipClient\nfrom kmip.pie import objects\nfrom kmip import enums\n\
             with ProxyKmipClient(hostname='127.0.0.1', port={}, cert={:?}, key={:?}, ca={:?}, config='none', config_file='/dev/null') as c:\n    {code}\n",
            self.port,
            path("host.pem"),
            path("host.key"),
            path("ca.pem"),
        );
        run_python(&["-W", "ignore", "-c", &script])
    }

    /// Sets the state of a key in the server's database: what other servers
    /// let their operators do (activate again), or keep (destroyed keys).
    pub fn set_state(&self, id: &str, state: u32) {
        self.sql(&format!(
            "update crypto_objects set state={state} where uid={id}"
        ));
    }

    /// Sets what a key may be used for: a sum of bits of Cryptographic Usage Mask.
    pub fn set_usage(&self, id: &str, mask: u32) {
        self.sql(&format!(
            "update crypto_objects set cryptographic_usage_mask={mask} where uid={id}"
        ));
    }

    /// When the key was made, in seconds since 1970.
    pub fn made(&self, id: &str) -> u64 {
        let made = self.sql(&format!(
            "select initial_date from managed_objects where uid={id}"
        ));
        made.trim().parse().unwrap()
    }

    /// All keys that the server has.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let keys = self.sql("select hex(value) from managed_objects");
        keys.lines().map(|key| hex::decode(key).unwrap()).collect()
    }

    /// Sets when the key was made, in seconds since 1970.
    pub fn set_made(&self, id: &str, made: u64) {
        self.sql(&format!(
            "update managed_objects set initial_date={made} where uid={id}"
        ));
    }

    fn sql(&self, statement: &str) -> String {
        let script = "import sqlite3, sys\n\
            d = sqlite3.connect(sys.argv[1], timeout=20)\n\
            for r in d.execute(sys.argv[2]).fetchall(): print(r[0])\n\
            d.commit()";
        let database = self.path("database").display().to_string();
        run_python(&["-I", "-S", "-c", script, &database, statement])
    }

    /// Ends the server; what it has stays.
    pub fn stop(&self) {
        end(&mut self.process.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends the server, and starts it again with what it has and where it was.
    pub fn restart(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        end(&mut process);
        (*process, _) = launch(self.directory.path(), Some(self.port));
    }
}

impl Drop for PyKmip {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ends the server's process and those that it forked, which hold its socket.
fn end(process: &mut Child) {
    let group = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
    if matches!(process.try_wait(), Ok(None))
        && let Some(group) = group
    {
        // It leads a group of its own, and has not been collected yet.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let _ = process.wait();
}

fn launch(directory: &Path, port: Option<u16>) -> (Child, u16) {
    // Another process may take the port before the server does.
    for _ in 0..5 {
        let port = port.unwrap_or_else(free_port);
        let path = |name: &str| directory.join(name).display().to_string();
        let settings = [
            ("hostname", "127.0.0.1".to_string()),
            ("port", port.to_string()),
            ("certificate_path", path("server.pem")),
            ("key_path", path("server.key")),
            ("ca_path", path("ca.pem")),
            ("auth_suite", "TLS1.2".into()),
            ("policy_path", path("policy")),
            ("enable_tls_client_auth", "True".into()),
            ("logging_level", "INFO".into()),
            ("database_path", path("database")),
        ];
        let settings = settings.map(|(name, value)| format!("{name}={value}\n"));
        let text = format!("[server]\n{}", settings.concat());
        write(directory, "server.conf", text.as_bytes());
        let output = fs::File::create(directory.join("output")).unwrap();
        let mut process = Command::new(tool("pykmip-server"))
            .args(["-f", &path("server.conf"), "-l", &path("server.log")])
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if matches!(process.try_wait(), Ok(Some(_))) {
                break;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return (process, port);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        end(&mut process);
    }
    let said = fs::read_to_string(directory.join("output")).unwrap_or_default();
    panic!("PyKMIP does not start: {said}");
}

/// A program of the environment that PyKMIP is installed in.
fn tool(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let path = target.join("pykmip/bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/install-deps test",
        path.display()
    );
    path
}

fn run_python(arguments: &[&str]) -> String {
    let output = Command::new(tool("python"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn place(directory: &Path, name: &str, issued: &Issued) {
    write(directory, &format!("{name}.pem"), &issued.certificate_pem());
    write(directory, &format!("{name}.key"), &issued.key_pem());
}

fn write(directory: &Path, name: &str, bytes: &[u8]) {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(directory.join(name)).unwrap();
    file.write_all(bytes).unwrap();
}
