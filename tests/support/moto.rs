//! A server of AWS KMS, IAM and STS (moto), and what their operators do.
//! `scripts/install-deps test` installs what that needs; `moto_kms.py` says
//! what is made strict in it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sealblk::kms::aws::{Endpoint, Environment, Identity, Settings, Source};
use sealblk::kms::cluster::Timing;
use sealblk::kms::{KeyRef, tls};
use serde_json::{Value, json};

#[allow(clippy::duplicate_mod)]
#[path = "ports.rs"]
mod ports;
use ports::free_port;

/// The account that everything is in.
pub const ACCOUNT: &str = "123456789012";
/// The region where keys are, unless something else is said.
pub const REGION: &str = "eu-central-1";

struct Talk {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// The server. It ends with its input, which is ours: so also when this
/// process is killed.
pub struct Moto {
    talk: Mutex<Option<Talk>>,
    child: Mutex<Child>,
    port: u16,
}

/// The server that all tests of this process share.
pub fn server() -> &'static Moto {
    static SERVER: OnceLock<Moto> = OnceLock::new();
    SERVER.get_or_init(Moto::start)
}

/// A name that no other test uses.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What `docs/kms/aws-kms.md` allows an identity, with these operations.
pub fn policy(operations: &[&str]) -> Value {
    let actions: Vec<String> = operations
        .iter()
        .map(|name| format!("kms:{name}"))
        .collect();
    json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": actions, "Resource": "*"}
    ]})
}

/// All that is needed.
pub const OPERATIONS: [&str; 3] = ["DescribeKey", "Encrypt", "Decrypt"];

impl Moto {
    pub fn start() -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let python = target.join("moto/bin/python");
        assert!(
            python.exists(),
            "{} is missing: run scripts/install-deps test",
            python.display()
        );
        let port = free_port();
        let support = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
        let mut child = Command::new(python)
            .arg(support.join("moto_kms.py"))
            .arg(port.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("AWS_PROFILE")
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut talk = Talk {
            commands: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
        };
        let mut ready = String::new();
        talk.answers.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n", "moto does not start");
        Moto {
            talk: Mutex::new(Some(talk)),
            child: Mutex::new(child),
            port,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Has the server do something; see `moto_kms.py`.
    pub fn ask(&self, what: &str, mut with: Value) -> Value {
        with["do"] = what.into();
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let talk = talk.as_mut().unwrap();
        writeln!(talk.commands, "{with}").unwrap();
        let mut answer = String::new();
        talk.answers.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        match answer.get("error") {
            Some(error) => panic!("{what}: {}", error.as_str().unwrap()),
            None => answer["ok"].clone(),
        }
    }

    /// A new user with that policy.
    pub fn user(&'static self, policy: &Value) -> User {
        let name = unique("user");
        let made = self.ask("user", json!({"name": name, "policy": policy}));
        User::of(name, &made)
    }

    /// A session of a new role with that policy.
    pub fn session(&'static self, policy: &Value) -> User {
        let name = unique("role");
        let made = self.ask("assume", json!({"name": name, "policy": policy}));
        User::of(name, &made)
    }

    /// A new key.
    pub fn key(&self, with: Value) -> Key {
        let mut all = json!({"region": REGION});
        all.as_object_mut()
            .unwrap()
            .extend(with.as_object().unwrap().clone());
        let made = self.ask("key", all);
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        Key {
            id: text("id"),
            arn: text("arn"),
            material: text("material"),
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        drop(talk.take());
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A user or a role of IAM, and an access key.
#[derive(Clone)]
pub struct User {
    pub name: String,
    pub access_key: String,
    pub secret: String,
    /// That of the session of a role.
    pub token: Option<String>,
}

impl User {
    fn of(name: String, made: &Value) -> Self {
        User {
            name,
            access_key: made["access_key"].as_str().unwrap().into(),
            secret: made["secret"].as_str().unwrap().into(),
            token: made["token"].as_str().map(str::to_owned),
        }
    }

    /// The same user with one more access key.
    pub fn second_key(&self) -> Self {
        let made = server().ask("access_key", json!({"name": self.name}));
        User::of(self.name.clone(), &made)
    }

    /// The environment variables that hold the key.
    pub fn variables(&self) -> [(&'static str, &str); 2] {
        [
            ("AWS_ACCESS_KEY_ID", &self.access_key),
            ("AWS_SECRET_ACCESS_KEY", &self.secret),
        ]
    }

    pub fn identity(&self) -> Identity {
        Identity {
            source: Source::Environment,
            environment: Environment::fixed(self.variables()),
            sts_endpoint: Some(server().url().parse().unwrap()),
        }
    }

    /// The server, as this user.
    pub fn settings(&self) -> Settings {
        settings(self.identity())
    }

    /// Has the server do something to this access key.
    pub fn ask(&self, what: &str, mut with: Value) -> Value {
        with["access_key"] = self.access_key.as_str().into();
        server().ask(what, with)
    }

    /// Each request of this access key, in their order.
    pub fn seen(&self) -> Vec<Value> {
        let seen = self.ask("seen", json!({}));
        seen.as_array().unwrap().clone()
    }

    /// Gives the user another policy.
    pub fn allow(&self, policy: &Value) {
        let name = &self.name;
        server().ask("policy", json!({"name": name, "policy": policy}));
    }
}

/// The shared server in [`REGION`], as that identity.
pub fn settings(identity: Identity) -> Settings {
    Settings {
        endpoints: vec![Endpoint {
            region: REGION.parse().unwrap(),
            url: server().url().parse().unwrap(),
        }],
        accounts: Vec::new(),
        identity,
        tls: tls::Settings::default(),
        timing: Timing {
            timeout: Duration::from_secs(20),
            deadline: Duration::from_secs(15),
        },
    }
}

/// A key as it was made.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    pub arn: String,
    pub material: String,
}

impl Key {
    pub fn by_arn(&self) -> KeyRef {
        named(&self.arn)
    }

    /// Has the server do something to this key.
    pub fn ask(&self, what: &str, mut with: Value) -> Value {
        with["id"] = self.id.as_str().into();
        if with.get("region").is_none() {
            with["region"] = REGION.into();
        }
        server().ask(what, with)
    }

    /// Puts it into a state.
    pub fn state(&self, state: &str) {
        self.ask("state", json!({"state": state}));
    }
}

/// The latest version of the key of that name.
pub fn named(name: &str) -> KeyRef {
    KeyRef {
        id: Some(name.into()),
        version: None,
    }
}
