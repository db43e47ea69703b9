//! The `kmip` provider: its service is a PyKMIP server.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sealblk::kms::kmip::{self, KmipProvider, Mode, Settings};
use sealblk::kms::{Class, Denied, KeyRef, Provider};

use crate::lab::{Broken, Lab};
use crate::pykmip::{PyKmip, free_port};
use crate::tls_server;

const ACTIVE: u32 = 2;
const DEACTIVATED: u32 = 3;
const DESTROYED: u32 = 5;

/// A name on the server, and the keys that have it.
pub struct KmipLab {
    server: Arc<PyKmip>,
    mode: Mode,
    name: String,
    /// Another one, without keys.
    empty: OnceCell<PyKmip>,
}

impl KmipLab {
    /// A new name with one key.
    pub fn new(mode: Mode) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let lab = KmipLab {
            server: PyKmip::shared(),
            mode,
            name: format!("kek-{}", LABS.fetch_add(1, Ordering::Relaxed)),
            empty: OnceCell::new(),
        };
        lab.create(&lab.name);
        lab
    }

    fn create(&self, name: &str) -> String {
        let client = self.server.client(self.mode);
        sealblk::runtime::block_on(client.create_key(name))
            .unwrap()
            .unwrap()
    }

    fn current(&self) -> String {
        let (provider, key) = (self.provider(), self.key());
        let current = provider.current_version(&key);
        sealblk::runtime::block_on(current).unwrap().unwrap().id
    }

    fn key_named(&self, name: &str) -> KeyRef {
        KeyRef {
            id: Some(kmip::by_name(name).unwrap()),
            version: None,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Settings)) -> Broken {
        let mut settings = self.server.settings("host", self.mode);
        change(&mut settings);
        Broken::Client(Box::new(KmipProvider::new(settings)))
    }
}

impl Lab for KmipLab {
    fn provider(&self) -> Box<dyn Provider> {
        Box::new(self.server.client(self.mode))
    }

    fn key(&self) -> KeyRef {
        self.key_named(&self.name)
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        let name = format!("{}-stranger", self.name);
        self.create(&name);
        (self.provider(), self.key_named(&name))
    }

    fn rotate(&self) {
        // Which key is the newest is told by dates in seconds.
        let made = self.server.made(&self.current());
        let deadline = Instant::now() + Duration::from_secs(5);
        while SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() <= made {
            assert!(Instant::now() < deadline, "the clock stands still");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.create(&self.name);
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        if enabled {
            self.server.set_state(version, ACTIVE);
        } else {
            self.server.revoke(version, false);
        }
    }

    fn delete(&self, version: &str) {
        self.server.destroy(version);
    }

    fn no_version(&self) -> String {
        "4711000".into()
    }

    fn broken(&self, class: Class) -> Broken {
        // What the case before this one may have done.
        let key = self.current();
        self.server.set_state(&key, ACTIVE);
        match class {
            // Get still hands the key out: it is the state that counts.
            Class::Denied(Denied::Disabled) => {
                self.server.set_state(&key, DEACTIVATED);
                self.with(|_| {})
            }
            // PyKMIP forgets what is destroyed; others keep the state.
            Class::Denied(Denied::Deleted) => {
                self.server.set_state(&key, DESTROYED);
                self.with(|_| {})
            }
            Class::Denied(Denied::Forbidden) => {
                let nobody = self.server.authority.client_without_purpose("nobody");
                self.server.place("nobody", &nobody);
                let settings = self.server.settings("nobody", self.mode);
                Broken::Client(Box::new(KmipProvider::new(settings)))
            }
            Class::NotFound => {
                let empty = self.empty.get_or_init(|| self.server.beside());
                Broken::Client(Box::new(empty.client(self.mode)))
            }
            Class::Unreachable => self.with(|settings| {
                settings.endpoints[0].port = free_port();
                settings.timing.deadline = Duration::from_secs(1);
            }),
            Class::Protocol => {
                let serve = tls_server::answering(|_| Some(b"HTTP/1.1 400 Bad Request\r\n".into()));
                let port = tls_server::start(&self.server.authority, serve);
                self.with(|settings| settings.endpoints[0].port = port)
            }
            Class::Denied(Denied::Expired) => {
                Broken::Impossible("PyKMIP keeps no dates; tests/kmip_answers.rs has them")
            }
            Class::Throttled { .. } => Broken::Impossible("KMIP has no such answer"),
            Class::Sealed => Broken::Impossible("KMIP has no such answer"),
            Class::BadKey => unreachable!("not asked for"),
        }
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        let mut secrets = self.server.keys();
        let pem = std::fs::read_to_string(self.server.path("host.key")).unwrap();
        let lines = pem.lines().filter(|line| !line.starts_with('-'));
        secrets.extend(lines.map(|line| line.as_bytes().to_vec()));
        secrets
    }
}
