//! Google's cloud, as far as sealblk and Google's own clients see it: Cloud
//! KMS, the token endpoint of service accounts, STS, the IAM credentials API
//! and a metadata server, with real AES-256-GCM keys and real signatures.
//!
//! What it says is what the documentation and known answers of the real one
//! say. `tests/gcp_sdk.rs` has Google's Python clients judge it.

pub mod http;
pub mod identity;
pub mod kms;

pub use http::{Answer, Asked};

use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use identity::Identities;
use kms::full_name;
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::gcp::{Auth, Settings};
use sealblk::kms::http::BaseUrl;
use sealblk::kms::{KeyRef, tls};
use serde_json::Value;
use tempfile::TempDir;

/// What a test wants to answer in the place of the service.
type Intercept = dyn Fn(&Asked) -> Option<Answer> + Send;
/// What a test does to an answer before it is sent.
type Alter = dyn Fn(&Asked, &mut Value) + Send;

#[derive(Default)]
pub struct Cloud {
    pub keys: kms::Keys,
    pub identities: Identities,
    pub asked: Vec<Asked>,
    intercept: Option<Box<Intercept>>,
    alter: Option<Box<Alter>>,
    /// Whether it escapes `=` in JSON, as Google may.
    pub escaping: bool,
    /// How far its clock is ahead of ours, in seconds.
    pub ahead: i64,
}

impl Cloud {
    fn answer(&mut self, asked: Asked, base: &str) -> Answer {
        let forced = self.intercept.as_ref().and_then(|of| of(&asked));
        let mut answer = forced.unwrap_or_else(|| {
            let now = now() + self.ahead;
            if asked.path.starts_with("/v1/projects/") && !asked.path.contains("serviceAccounts") {
                self.keys.answer(&asked, &self.identities, now)
            } else {
                self.identities.answer(&asked, base, now)
            }
        });
        if let (Some(alter), Answer::Json(_, value)) = (&self.alter, &mut answer) {
            alter(&asked, value);
        }
        self.asked.push(asked);
        match answer {
            Answer::Json(status, value) if self.escaping => {
                let text = value.to_string().replace('=', r"\u003d");
                Answer::Text(status, Vec::new(), text)
            }
            answer => answer,
        }
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_secs()).unwrap()
}

/// One address of the cloud. All of them have the same keys and tokens.
pub struct Endpoint {
    port: u16,
    stopped: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Endpoint {
    fn start(cloud: Arc<Mutex<Cloud>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let endpoint = Endpoint {
            port: listener.local_addr().unwrap().port(),
            stopped: Arc::default(),
            connections: Arc::default(),
        };
        let (stopped, connections) = (endpoint.stopped.clone(), endpoint.connections.clone());
        let base = endpoint.url();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                connections
                    .lock()
                    .unwrap()
                    .push(stream.try_clone().unwrap());
                let (cloud, base) = (cloud.clone(), base.clone());
                std::thread::spawn(move || {
                    http::serve(stream, |asked| {
                        let mut cloud = cloud.lock().unwrap_or_else(PoisonError::into_inner);
                        let ahead = cloud.ahead;
                        (cloud.answer(asked, &base), now() + ahead)
                    });
                });
            }
        });
        endpoint
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Nobody listens there any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // It waits for a connection still.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The cloud, with one address, and a directory for credentials.
pub struct Gcp {
    cloud: Arc<Mutex<Cloud>>,
    endpoint: Endpoint,
    directory: TempDir,
}

impl Gcp {
    /// With a key `disks` that has one version, a machine whose service account
    /// is [`identity::EMAIL`], and all rights.
    pub fn start() -> Self {
        let mut cloud = Cloud::default();
        cloud.keys.make("disks");
        let cloud = Arc::new(Mutex::new(cloud));
        Gcp {
            endpoint: Endpoint::start(cloud.clone()),
            cloud,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// Another address of it.
    pub fn another(&self) -> Endpoint {
        Endpoint::start(self.cloud.clone())
    }

    pub fn url(&self) -> String {
        self.endpoint.url()
    }

    /// Nobody is at its first address any more.
    pub fn stop(&self) {
        self.endpoint.stop();
    }

    pub fn cloud(&self) -> MutexGuard<'_, Cloud> {
        self.cloud.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers in its place from now on, where `answer` has one.
    pub fn intercept(&self, answer: impl Fn(&Asked) -> Option<Answer> + Send + 'static) {
        self.cloud().intercept = Some(Box::new(answer));
    }

    /// It answers by itself again.
    pub fn leave_alone(&self) {
        let mut cloud = self.cloud();
        (cloud.intercept, cloud.alter) = (None, None);
    }

    /// Changes what it answers.
    pub fn alter(&self, alter: impl Fn(&Asked, &mut Value) + Send + 'static) {
        self.cloud().alter = Some(Box::new(alter));
    }

    /// How often that was asked for.
    pub fn count(&self, what: &str) -> usize {
        let cloud = self.cloud();
        let asked = cloud.asked.iter();
        asked.filter(|asked| asked.path.contains(what)).count()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file that is fit for a secret.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The file with the key of the service account.
    pub fn account_file(&self) -> PathBuf {
        let json = self.cloud().identities.account_json(&self.url());
        self.write("account.json", &json.to_string())
    }

    /// As the service account of the machine.
    pub fn metadata(&self) -> Auth {
        let server = self.url();
        let server = server.strip_prefix("http://").unwrap();
        Auth::Metadata {
            server: BaseUrl::link_local(server).unwrap(),
            account: None,
        }
    }

    /// As a credentials file says, which may have this host asked.
    pub fn file(&self, path: PathBuf) -> Auth {
        Auth::File {
            credentials: SecretFile::new(path),
            trusted_hosts: vec!["127.0.0.1".into()],
        }
    }

    pub fn settings(&self, auth: Auth) -> Settings {
        Settings {
            endpoints: vec![self.url().parse().unwrap()],
            auth,
            tls: tls::Settings::default(),
            // The machine may be busy with other tests; and what fails in these
            // is tried again until that is over.
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(3),
            },
        }
    }

    /// The same for what is not to fail: however busy the machine is.
    pub fn patient_settings(&self, auth: Auth) -> Settings {
        let mut settings = self.settings(auth);
        settings.timing.deadline = settings.timing.timeout;
        settings
    }

    /// The key of that name.
    pub fn key(name: &str) -> KeyRef {
        KeyRef {
            id: Some(full_name(name)),
            version: None,
        }
    }
}
