//! A broker that does whatever a test wants it to do to a host.
//!
//! It has the keys of a broker, and speaks its protocol; what it was given to
//! wrap, it keeps in memory, and gives back. It decides nothing, and forgets
//! challenges at once.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::ssl::SslStream;
use sealblk::kms::broker::protocol::{
    Answer, Challenge, ChallengeAnswer, Frame, Operation, Outcome, Problem, ProblemKind, Request,
    VERSION,
};
use sealblk::kms::broker::seal::{self, PrivateKey, PublicKey};
use sealblk::kms::broker::{BrokerProvider, Settings, keyfile};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::{KeyRef, KeyVersion, Wrapped, tls};
use sealblk::secret::Secret;
use serde_json::json;
use tempfile::TempDir;

use super::certificates::Authority;
use super::tls_server;

/// What an HTTP request was.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn is_call(&self) -> bool {
        self.path.ends_with("/call")
    }

    pub fn frame(&self) -> Frame {
        Frame::parse(&self.body).unwrap()
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Said {
    pub status: u16,
    pub headers: String,
    pub body: Vec<u8>,
}

impl Said {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Said::status(200, body)
    }

    pub fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Said {
            status,
            headers: String::new(),
            body: body.into(),
        }
    }

    pub fn problem(problem: ProblemKind) -> Self {
        let body = Problem {
            problem,
            detail: "so says the test".into(),
        };
        Said::status(problem.status(), serde_json::to_vec(&body).unwrap())
    }
}

type Trick = dyn FnMut(&Asked, &Honest) -> Said + Send;

struct State {
    asked: Vec<Asked>,
    trick: Option<Box<Trick>>,
}

/// A broker on a port of this host, until the test process ends.
pub struct EvilBroker {
    pub port: u16,
    pub honest: Arc<Honest>,
    state: Arc<Mutex<State>>,
}

/// What the broker has, and would answer if it were no evil one.
pub struct Honest {
    pub key: PrivateKey,
    host: PublicKey,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    payloads: HashMap<Vec<u8>, Secret>,
    number: u64,
    used: Vec<Challenge>,
}

impl Honest {
    fn number(&self) -> u64 {
        let mut kept = self.kept.lock().unwrap();
        kept.number += 1;
        kept.number
    }

    pub fn challenge(&self) -> Challenge {
        let mut bytes = vec![0x5a; 24];
        bytes.extend(self.number().to_be_bytes());
        Challenge(bytes)
    }

    pub fn challenge_answer(&self, key: PublicKey) -> Said {
        let answer = ChallengeAnswer {
            version: VERSION,
            key,
            challenge: self.challenge(),
        };
        Said::ok(serde_json::to_vec(&answer).unwrap())
    }

    pub fn request(&self, frame: &Frame) -> Request {
        let opened = seal::open_request(&self.key, self.host, frame).unwrap();
        Request::parse(&opened).unwrap()
    }

    pub fn outcome(&self, request: &Request) -> Outcome {
        match &request.operation {
            Operation::Wrap { payload, .. } => {
                let bytes = self.number().to_be_bytes().to_vec();
                let payload = Secret::copy_of(payload).unwrap();
                let mut kept = self.kept.lock().unwrap();
                kept.payloads.insert(bytes.clone(), payload);
                Outcome::Wrapped(Wrapped {
                    key_id: request.key_set.clone(),
                    version: "1".into(),
                    alg: "memory".into(),
                    bytes,
                })
            }
            Operation::Unwrap { wrapped, .. } => {
                let kept = self.kept.lock().unwrap();
                Outcome::Payload(Secret::copy_of(&kept.payloads[&wrapped.bytes]).unwrap())
            }
            Operation::CurrentVersion { .. } => Outcome::Version(KeyVersion {
                id: "1".into(),
                enabled: true,
                expires: None,
            }),
        }
    }

    pub fn seal_with(&self, key: &PrivateKey, frame: &Frame, outcome: Outcome) -> Said {
        let answer = Answer {
            next_challenge: self.challenge(),
            request_id: Some(format!("evil-{}", self.number())),
            outcome,
        };
        let text = answer.to_secret().unwrap();
        let sealed = seal::answer(key, self.host, frame, &text).unwrap();
        Said::ok(serde_json::to_vec(&sealed).unwrap())
    }

    pub fn seal(&self, frame: &Frame, outcome: Outcome) -> Said {
        self.seal_with(&self.key, frame, outcome)
    }

    /// What a good broker would answer. Each challenge is taken once.
    pub fn answer(&self, asked: &Asked) -> Said {
        if asked.path.ends_with("/health") {
            let health = json!({"version": "0.0.0", "protocol": VERSION, "key_sets": 1});
            return Said::ok(health.to_string());
        }
        if !asked.is_call() {
            return self.challenge_answer(self.key.public());
        }
        let frame = asked.frame();
        let request = self.request(&frame);
        {
            let mut kept = self.kept.lock().unwrap();
            if kept.used.contains(&request.challenge) {
                return Said::problem(ProblemKind::Challenge);
            }
            kept.used.push(request.challenge.clone());
        }
        self.seal(&frame, self.outcome(&request))
    }
}

impl EvilBroker {
    /// A broker that is good until it is told to be evil. It expects the host
    /// with that public key.
    pub fn start(authority: &Authority, host: PublicKey) -> Self {
        let honest = Arc::new(Honest {
            key: PrivateKey::generate().unwrap(),
            host,
            kept: Mutex::default(),
        });
        let state = Arc::new(Mutex::new(State {
            asked: Vec::new(),
            trick: None,
        }));
        let (own_state, own_honest) = (state.clone(), honest.clone());
        let port = tls_server::start(
            authority,
            Box::new(move |stream| {
                let Some((head, body)) = tls_server::read_http(stream) else {
                    return;
                };
                let path = head.split(' ').nth(1).unwrap().into();
                let asked = Asked { path, body };
                let said = {
                    let mut state = own_state.lock().unwrap();
                    state.asked.push(asked.clone());
                    match &mut state.trick {
                        Some(trick) => trick(&asked, &own_honest),
                        None => own_honest.answer(&asked),
                    }
                };
                write_answer(stream, &said);
            }),
        );
        EvilBroker {
            port,
            honest,
            state,
        }
    }

    /// From now on, each request is answered by this.
    pub fn trick(&self, trick: impl FnMut(&Asked, &Honest) -> Said + Send + 'static) {
        self.state.lock().unwrap().trick = Some(Box::new(trick));
    }

    /// What was asked since this was called for the last time.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

fn write_answer(stream: &mut SslStream<TcpStream>, said: &Said) {
    let head = format!(
        "HTTP/1.1 {} x\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
        said.status,
        said.body.len(),
        said.headers
    );
    // What breaks here is what the test wants to see.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&said.body);
    let _ = stream.shutdown();
}

/// A host: its certificate and key, and whom it trusts.
pub struct Host {
    directory: TempDir,
    pub authority: Authority,
    pub key: PrivateKey,
}

impl Host {
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("brokers and hosts");
        let ours = authority.client(name);
        let put = |file: &str, bytes: &[u8]| write_secret(&directory.path().join(file), bytes);
        put("ca.pem", &authority.certificate_pem());
        put("client.pem", &ours.certificate_pem());
        put("client.key", &ours.key_pem());
        let key = keyfile::generate(&directory.path().join("host.key")).unwrap();
        Host {
            directory,
            authority,
            key,
        }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    pub fn settings(&self, ports: &[u16], broker_keys: Vec<PublicKey>) -> Settings {
        Settings {
            endpoints: ports
                .iter()
                .map(|port| format!("https://127.0.0.1:{port}").parse().unwrap())
                .collect(),
            host: "hv1".parse().unwrap(),
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

    /// A client of these brokers.
    pub fn client(&self, brokers: &[&EvilBroker]) -> BrokerProvider {
        let ports: Vec<u16> = brokers.iter().map(|broker| broker.port).collect();
        let keys = brokers.iter().map(|broker| broker.honest.key.public());
        BrokerProvider::new(self.settings(&ports, keys.collect()))
    }
}

/// A file that only we can read.
pub fn write_secret(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// The key set that is asked for.
pub fn key() -> KeyRef {
    KeyRef {
        id: Some("prod".into()),
        version: None,
    }
}
