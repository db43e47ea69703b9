//! The `broker` provider: behind a real broker process, the key is at OpenBao.

use std::cell::RefCell;

use sealblk::kms::broker::BrokerProvider;
use sealblk::kms::{Class, Denied, KeyRef, Provider};

use crate::broker_site::{Broker, Site};
use crate::lab::{Broken, Granularity, Lab};
use crate::openbao::free_port;
use crate::vault::VaultLab;

/// A broker of its own with the key of a [`VaultLab`].
pub struct BrokerLab {
    service: VaultLab,
    site: Site,
    brokers: RefCell<Vec<Broker>>,
    hierarchy: &'static str,
}

/// For a service that is well, on a busy machine too.
const WELL: &str = "15s";

/// As the broker has it configured: its answers hold for as short as they can, and
/// its service is waited for so long.
fn key_set(name: &str, key: &str, service: &str, hierarchy: &str, wait: &str) -> String {
    format!(
        "[key_sets.{name}]\nprovider = \"vault\"\nkey = {key:?}\n{service}\
         hierarchy = {hierarchy:?}\npoll = \"1s\"\ntimeout = {wait:?}\ndeadline = {wait:?}\n"
    )
}

impl BrokerLab {
    /// Whose broker has its service wrap each key, or a group key.
    pub fn new(hierarchy: &'static str) -> Self {
        let service = VaultLab::new();
        // The lab's stranger is another key of the same engine.
        let (_, stranger) = service.stranger();
        let at = service.configuration();
        let both = [
            key_set("prod", "disks", &at, hierarchy, WELL),
            key_set("stranger", &stranger.id.unwrap(), &at, hierarchy, WELL),
        ];
        let site = Site::new(&both.concat());
        let broker = site.start();
        BrokerLab {
            service,
            site,
            brokers: RefCell::new(vec![broker]),
            hierarchy,
        }
    }

    /// A broker uses a group key for as long as `poll` without asking anybody
    /// again. Started anew, it sees what was done at the service at once.
    fn forget(&self) {
        if self.hierarchy == "group" {
            self.brokers.borrow().last().unwrap().restart();
        }
    }

    fn client(&self) -> Box<dyn Provider> {
        let brokers = self.brokers.borrow();
        Box::new(self.site.client(&[brokers.last().unwrap()]))
    }
}

impl Lab for BrokerLab {
    fn provider(&self) -> Box<dyn Provider> {
        self.client()
    }

    fn key(&self) -> KeyRef {
        KeyRef {
            id: Some("prod".into()),
            version: None,
        }
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        let key = KeyRef {
            id: Some("stranger".into()),
            version: None,
        };
        (self.client(), key)
    }

    fn rotate(&self) {
        self.service.rotate();
        self.forget();
    }

    fn granularity(&self) -> Granularity {
        Granularity::OlderVersions
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        self.service.set_enabled(version, enabled);
        self.forget();
    }

    fn delete(&self, version: &str) {
        self.service.delete(version);
        self.forget();
    }

    fn calls_are_slow(&self) -> bool {
        true
    }

    fn no_version(&self) -> String {
        self.service.no_version()
    }

    fn broken(&self, class: Class) -> Broken {
        let unreachable = |site: &Site, broker: &Broker| {
            let settings = site.settings_at(&[free_port()], vec![broker.key]);
            Box::new(BrokerProvider::new(settings))
        };
        match class {
            Class::Unreachable => {
                let brokers = self.brokers.borrow();
                return Broken::Client(unreachable(&self.site, &brokers[0]));
            }
            // The service behind the broker is brought into the state.
            _ => match self.service.broken(class) {
                Broken::Impossible(why) => return Broken::Impossible(why),
                Broken::Client(_) => {}
            },
        }
        // One that remembers nothing of the state before.
        let broker = match class {
            Class::Sealed => self.site.start_with(&key_set(
                "prod",
                "disks",
                &self.service.sealed_configuration(),
                self.hierarchy,
                "1s",
            )),
            Class::Denied(Denied::Deleted | Denied::Forbidden)
            | Class::NotFound
            | Class::Throttled { .. }
            | Class::Protocol => self.site.start(),
            _ => unreachable!("not possible"),
        };
        self.brokers.borrow_mut().push(broker);
        Broken::Client(self.client())
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        let mut secrets = self.service.secrets();
        for file in ["host.key", "client.key"] {
            let text = std::fs::read_to_string(self.site.path(file)).unwrap();
            secrets.push(text.lines().nth(1).unwrap().as_bytes().to_vec());
        }
        secrets
    }
}
