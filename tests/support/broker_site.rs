//! Brokers and hosts of one site: real broker processes with one policy, whose
//! key sets are at a real OpenBao, and a host that has no credential there.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sealblk::kms::broker::seal::PublicKey;
use sealblk::kms::broker::{BrokerProvider, Settings, keyfile};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::tls;
use serde_json::Value;
use tempfile::TempDir;

use super::certificates::{Authority, Issued};
use super::openbao::{free_port, spawn_for_this_process};

const DEADLINE: Duration = Duration::from_secs(60);

/// The name of the one host in the policy.
pub const HOST: &str = "hv1";
/// The name in its certificate.
pub const CERTIFICATE: &str = "hv1.example";

/// A directory with all that brokers and a host have, apart from each other.
pub struct Site {
    directory: TempDir,
    pub authority: Authority,
    /// The public key of the host.
    pub host_key: PublicKey,
    /// The tables of the key sets of the brokers, in TOML.
    key_sets: String,
}

/// A broker process, until it is dropped.
pub struct Broker {
    child: RefCell<Option<Child>>,
    directory: PathBuf,
    pub port: u16,
    pub key: PublicKey,
}

/// A file that only we can read, written as a whole.
pub fn write(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    let new = path.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

impl Site {
    /// A site whose brokers have these key sets (in TOML), and permit the host
    /// all of them.
    pub fn new(key_sets: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("site");
        let at = |file: &str| directory.path().join(file);
        write(&at("ca.pem"), &authority.certificate_pem());
        let issued = |issued: Issued, name: &str| {
            write(&at(&format!("{name}.pem")), &issued.certificate_pem());
            write(&at(&format!("{name}.key")), &issued.key_pem());
        };
        issued(authority.server(), "server");
        issued(authority.client(CERTIFICATE), "client");
        let host_key = keyfile::generate(&at("host.key")).unwrap().public();
        let site = Site {
            directory,
            authority,
            host_key,
            key_sets: key_sets.into(),
        };
        site.permit(CERTIFICATE);
        site
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// The part of a policy that says who the host is.
    pub fn host_table(&self, certificate: &str) -> String {
        format!(
            "[[hosts]]\nname = \"{HOST}\"\ncertificates = [{certificate:?}]\nkeys = [\"{}\"]\n",
            self.host_key
        )
    }

    /// Has the policy permit everything to the host, which comes with that
    /// certificate.
    pub fn permit(&self, certificate: &str) {
        let host = self.host_table(certificate);
        let rule = "[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\n";
        self.set_policy(&format!("{host}{rule}"));
    }

    /// Has the policy know the host, and permit it nothing.
    pub fn permit_nothing(&self) {
        self.set_policy(&self.host_table(CERTIFICATE));
    }

    pub fn set_policy(&self, text: &str) {
        write(&self.path("policy.toml"), text.as_bytes());
    }

    /// A broker with a key, a state and a log of its own.
    pub fn start(&self) -> Broker {
        self.start_with(&self.key_sets)
    }

    /// The same with other key sets.
    pub fn start_with(&self, key_sets: &str) -> Broker {
        let port = free_port();
        let directory = self.path(&format!("broker-{port}"));
        fs::create_dir(&directory).unwrap();
        let key = keyfile::generate(&directory.join("broker.key")).unwrap();
        let (own, site) = (directory.display(), self.directory.path().display());
        let mut config = format!(
            "[broker]\nlisten = \"127.0.0.1:{port}\"\n\
             certificate = \"{site}/server.pem\"\ncertificate_key = \"{site}/server.key\"\n\
             client_ca_file = \"{site}/ca.pem\"\nkey = \"{own}/broker.key\"\n\
             policy = \"{site}/policy.toml\"\nstate_dir = \"{own}/state\"\n\
             [audit]\npath = \"{own}/audit.jsonl\"\n[daemon]\nstate_dir = \"{own}/daemon\"\n"
        );
        writeln!(config, "{key_sets}").unwrap();
        write(&directory.join("sealblk.toml"), config.as_bytes());
        let broker = Broker {
            child: RefCell::new(None),
            directory,
            port,
            key: key.public(),
        };
        broker.run();
        broker
    }

    /// What the host has configured of these brokers.
    pub fn settings(&self, brokers: &[&Broker]) -> Settings {
        let ports: Vec<u16> = brokers.iter().map(|broker| broker.port).collect();
        let keys = brokers.iter().map(|broker| broker.key);
        self.settings_at(&ports, keys.collect())
    }

    /// The same at these ports.
    pub fn settings_at(&self, ports: &[u16], broker_keys: Vec<PublicKey>) -> Settings {
        Settings {
            endpoints: ports
                .iter()
                .map(|port| format!("https://127.0.0.1:{port}").parse().unwrap())
                .collect(),
            host: HOST.parse().unwrap(),
            host_key: SecretFile::new(self.path("host.key")),
            broker_keys,
            tls: tls::Settings {
                ca_files: vec![self.path("ca.pem")],
                client: Some(tls::ClientCertificate {
                    certificate: self.path("client.pem"),
                    key: SecretFile::new(self.path("client.key")),
                }),
            },
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(4),
            },
        }
    }

    pub fn client(&self, brokers: &[&Broker]) -> BrokerProvider {
        BrokerProvider::new(self.settings(brokers))
    }

    /// The same as the settings of a key set, one line each.
    pub fn key_set(&self, brokers: &[&Broker]) -> Vec<(&'static str, String)> {
        let urls: Vec<String> = brokers
            .iter()
            .map(|broker| format!("https://127.0.0.1:{}", broker.port))
            .collect();
        let keys: Vec<String> = brokers
            .iter()
            .map(|broker| broker.key.to_string())
            .collect();
        let file = |file: &str| format!("{:?}", self.path(file));
        vec![
            ("provider", "\"broker\"".into()),
            ("endpoints", format!("{urls:?}")),
            ("key_set", "\"prod\"".into()),
            ("host", format!("\"{HOST}\"")),
            ("host_key", file("host.key")),
            ("broker_keys", format!("{keys:?}")),
            ("ca_file", file("ca.pem")),
            ("client_cert", file("client.pem")),
            ("client_key", file("client.key")),
        ]
    }

    /// The same as a table of the configuration file.
    pub fn key_set_table(&self, brokers: &[&Broker], more: &str) -> String {
        let mut table = "[key_sets.prod]\n".to_owned();
        for (name, value) in self.key_set(brokers) {
            writeln!(table, "{name} = {value}").unwrap();
        }
        format!("{table}{more}\n")
    }
}

impl Broker {
    fn run(&self) {
        let config = self.directory.join("sealblk.toml");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command
            .arg("--config")
            .arg(config)
            .args(["broker", "serve"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        *self.child.borrow_mut() = Some(spawn_for_this_process(command));
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = match &mut *self.child.borrow_mut() {
                Some(child) => child.try_wait().unwrap(),
                None => None,
            };
            assert_eq!(ended, None, "the broker ended: {}", self.log());
            assert!(start.elapsed() < DEADLINE, "no broker: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.borrow_mut().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it, if it runs, and starts it again in its place.
    pub fn restart(&self) {
        self.kill();
        self.run();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The lines of its audit log.
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.join("audit.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the broker at {} said:\n{}", self.port, self.log());
        }
    }
}
