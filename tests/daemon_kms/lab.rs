//! A daemon, an OpenBao with several endpoints, and volumes.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sealblk::config::{Config, Overrides};
use sealblk::keys::Context;
use sealblk::secret::Dek;
use sealblk::units::Bytes;
use sealblk::volume::{CreateOptions, Location, Plan};
use serde_json::{Value, json};

use super::faulty_proxy::{Fault, Proxy};
use super::openbao::OpenBao;
use super::support::daemon::{Daemon, Reply, command, configure};
use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;

/// One server for all tests.
pub fn server() -> &'static OpenBao {
    static SERVER: OnceLock<OpenBao> = OnceLock::new();
    SERVER.get_or_init(OpenBao::start)
}

/// A key of its own at the server, and several ways there.
pub struct Service {
    pub proxies: Vec<Proxy>,
    /// The name of the transit engine, of the policy, and of the AppRole role.
    pub name: String,
    /// The token that may use the key.
    pub token: String,
}

impl Service {
    pub fn new(endpoints: usize) -> Service {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("engine-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        server().mount(&name);
        server().post(&format!("{name}/keys/disks"), json!({}));
        server().permit(&name, &name, "disks");
        Service {
            proxies: (0..endpoints).map(|_| Proxy::to(server().port())).collect(),
            token: server().token(&name),
            name,
        }
    }

    /// A key set of that name, with further settings.
    pub fn key_set(&self, name: &str, auth: &str, more: &str) -> String {
        let urls = self.proxies.iter().map(Proxy::port);
        let urls: Vec<String> = urls
            .map(|port| format!("http://127.0.0.1:{port}"))
            .collect();
        let mount = &self.name;
        format!(
            "[key_sets.{name}]\nprovider = \"vault\"\nkey = \"disks\"\nmount = {mount:?}\n\
             endpoints = {urls:?}\nauth = {auth}\n{more}\n"
        )
    }

    /// The login with a token.
    pub fn token_auth(&self) -> String {
        let file = server().write(&format!("{}-token", self.name), &self.token);
        format!("{{ method = \"token\", token = {file:?} }}")
    }

    /// Has all endpoints fail in this way.
    pub fn set_all(&self, fault: &Fault) {
        for proxy in &self.proxies {
            proxy.set(fault.clone());
        }
    }
}

/// A daemon with a key set `prod` at a service.
pub struct Lab {
    pub daemon: Daemon,
    pub service: Service,
}

impl Lab {
    /// A service with so many endpoints, and these settings of the key set.
    pub fn new(endpoints: usize, settings: &str) -> Lab {
        let service = Service::new(endpoints);
        let key_sets = service.key_set("prod", &service.token_auth(), settings);
        Lab::with(service, &key_sets)
    }

    /// The same with that configuration.
    pub fn with(service: Service, rest: &str) -> Lab {
        let home = Home::new();
        configure(&home, "", rest);
        let command = command(&home);
        Lab {
            daemon: Daemon::run(home, command),
            service,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.daemon.home.path(name)
    }

    /// What the disk of a volume is called: as no disk of another test.
    pub fn disk(&self, volume: &str) -> String {
        let directory = self.daemon.home.directory().file_name().unwrap();
        format!("{}-{volume}", directory.to_str().unwrap())
    }

    /// Makes small volumes in the key set `prod`, faster than by commands.
    pub fn make<N: Deref<Target = str>>(&self, names: &[N]) {
        let config = self.path("sealblk.toml");
        let config = Config::load(Some(&config), Overrides::default()).unwrap();
        let keys = config.key_sets();
        let make = async |path: PathBuf| {
            let location = Location {
                data: path,
                header: None,
            };
            let options = CreateOptions {
                size: Some(Bytes(4 << 20)),
                header_area: Bytes(32 << 10),
                ..CreateOptions::default()
            };
            let plan = Plan::new(&location, options).unwrap();
            let dek = Dek::generate().unwrap();
            let binding = plan.binding();
            let context = Context::local(Some(binding.uuid));
            let wraps = keys.wrap(&context, "prod", &dek, &binding.bytes()).await;
            plan.write(&dek, "prod", wraps.unwrap()).unwrap();
        };
        sealblk::runtime::block_on(async {
            for name in names {
                make(self.path(name)).await;
            }
        })
        .unwrap();
    }

    /// What asks for a volume to be attached.
    pub fn request(&self, volume: &str) -> String {
        json!({
            "volume": self.path(volume),
            "socket": self.socket(volume),
            "name": self.disk(volume),
        })
        .to_string()
    }

    pub fn attach(&self, volume: &str) -> Reply {
        let request = self.request(volume);
        self.daemon.ask("POST", "/v1/disks", Some(&request))
    }

    /// The arguments of `sealblk attach` for a volume.
    pub fn attach_command<'a>(&self, volume: &'a str, more: &[&'a str]) -> std::process::Command {
        let (socket, disk) = (self.socket(volume), self.disk(volume));
        let mut command = self.daemon.sealblk(&["attach", volume, "--socket"]);
        command.arg(socket).arg("--name").arg(disk).args(more);
        command
    }

    pub fn socket(&self, volume: &str) -> PathBuf {
        self.path(&format!("{volume}.sock"))
    }

    pub fn connect(&self, volume: &str) -> FrontEnd {
        connect(&self.socket(volume))
    }

    /// What the daemon says of the disk of a volume.
    pub fn show(&self, volume: &str) -> Value {
        let path = format!("/v1/disks/{}", self.disk(volume));
        self.daemon.get(&path).json()
    }

    /// Waits until the disk of a volume is in that state.
    pub fn until(&self, volume: &str, state: &str) -> Value {
        let start = Instant::now();
        loop {
            let disk = self.show(volume);
            if disk["state"] == state {
                return disk;
            }
            // Longer than the pauses between some attempts that fail.
            let patience = Duration::from_secs(90);
            assert!(start.elapsed() < patience, "not {state}: {disk}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The sum of the samples of a metric whose labels have all of these.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.daemon.get("/metrics").body;
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?.strip_prefix('{')?;
            let (found, value) = rest.rsplit_once("} ")?;
            let all = labels.iter().all(|label| found.contains(label));
            all.then(|| value.parse::<f64>().unwrap())
        });
        samples.sum()
    }
}

/// A front end of its own.
pub fn connect(socket: &Path) -> FrontEnd {
    FrontEnd::connect(socket, &Options::default()).unwrap()
}
