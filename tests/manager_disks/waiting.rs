//! A key service that is away, with a real OpenBao behind a proxy.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sealblk::config::{Config, Overrides};
use sealblk::error::Kind;
use sealblk::keys::KeySets;
use sealblk::manager::disks::Disks;
use sealblk::manager::model::{Attach, DiskState};
use serde_json::json;

use super::faulty_proxy::{Fault, Proxy};
use super::lab::{Lab, detach_unused, kill, run, until, until_running, us};
use super::openbao::{OpenBao, ROOT};
use super::support::server::succeed;

const DATA: [u8; 4096] = [0x33; 4096];

struct Service {
    lab: Lab,
    proxy: Proxy,
    server: OpenBao,
    config: PathBuf,
}

impl Service {
    /// With volumes of these names, whose keys are at the service.
    fn with(volumes: &[&str]) -> Service {
        let server = OpenBao::start();
        server.mount("transit");
        server.post("transit/keys/disks", json!({}));
        let proxy = Proxy::to(server.port());
        let lab = Lab::new();
        let config = lab.path("sealblk.toml");
        let token = server.write("token", ROOT);
        let toml = format!(
            r#"
            [daemon]
            state_dir = "{state}"
            [key_sets.prod]
            provider = "vault"
            endpoints = ["http://127.0.0.1:{port}"]
            key = "disks"
            auth = {{ method = "token", token = "{token}" }}
            timeout = "300ms"
            deadline = "5s"
            # Each unwrap asks the service.
            hierarchy = "direct"
            "#,
            state = lab.path("groups").display(),
            port = proxy.port(),
            token = token.display(),
        );
        std::fs::write(&config, toml).unwrap();
        for volume in volumes {
            let create = ["volume", "create", volume, "--size", "4M"];
            let mut command = lab.home.sealblk(&["--config"]);
            command.arg(&config).args(create);
            succeed(command.args(["--key-set", "prod"]));
        }
        Service {
            lab,
            proxy,
            server,
            config,
        }
    }

    async fn open(&self) -> Arc<Disks> {
        self.open_where(true).await
    }

    async fn open_where(&self, keep_deks: bool) -> Arc<Disks> {
        let mut settings = self.lab.settings();
        settings.keep_deks = keep_deks;
        Disks::open(settings, self.keys()).await.unwrap()
    }

    fn keys(&self) -> Arc<KeySets> {
        let config = Config::load(Some(&self.config), Overrides::default());
        Arc::new(config.unwrap().key_sets())
    }

    fn patient(&self, file: &str) -> Attach {
        Attach {
            wait: true,
            ..self.lab.request(file)
        }
    }
}

#[test]
fn attaching_waits_for_the_service_if_asked_to() {
    let service = Service::with(&["a.img", "b.img"]);
    let name = service.lab.name("a.img");
    run(async {
        let disks = service.open().await;
        service.proxy.set(Fault::Refuse);
        let request = service.lab.request("a.img");
        let failure = disks.attach(&us(), request).await.unwrap_err();
        assert_eq!(failure.kind(), Kind::Unreachable, "{failure}");
        assert!(disks.list().is_empty());

        let info = disks.attach(&us(), service.patient("a.img")).await;
        let info = info.unwrap();
        assert!(
            matches!(info.state, DiskState::Waiting | DiskState::Attaching),
            "{info:?}"
        );
        let info = until(&disks, &name, "it waits", |info| {
            info.state == DiskState::Waiting
        });
        let info = info.await;
        assert!(info.uuid.is_some() && info.pid.is_none());
        assert_eq!(info.last_error.unwrap().kind, Kind::Unreachable);
        // The volume is its own meanwhile, and waiting can be ended.
        let serve = ["serve", "a.img", "--socket", "x.sock"];
        assert_eq!(service.lab.home.refused(&serve).status, 5);
        disks.attach(&us(), service.patient("b.img")).await.unwrap();
        let other = service.lab.name("b.img");
        detach_unused(&disks, &other).await;
        assert_eq!(disks.list().len(), 1);

        service.proxy.set(Fault::None);
        let info = until_running(&disks, &name).await;
        assert_eq!(info.provider.as_deref(), Some("vault"));
        assert_eq!(info.key_id.as_deref(), Some("disks"));
        assert!(info.last_error.is_some(), "why it was not running before");
        service.lab.connect("a.img").await.write(0, &DATA);
        detach_unused(&disks, &name).await;
    });
}

/// Who waits is answered at once, and can think again while nobody answers.
#[test]
fn a_silent_service_keeps_nobody_waiting_who_does_not_want_to() {
    let service = Service::with(&["a.img"]);
    let name = service.lab.name("a.img");
    run(async {
        let disks = service.open().await;
        service.proxy.set(Fault::Silent);
        disks.attach(&us(), service.patient("a.img")).await.unwrap();
        detach_unused(&disks, &name).await;
        assert!(disks.list().is_empty());
        // One that somebody waits for can be ended by somebody else.
        let attaching = {
            let (disks, request) = (disks.clone(), service.lab.request("a.img"));
            tokio::spawn(async move { disks.attach(&us(), request).await })
        };
        until(&disks, &name, "it is being attached", |_| true).await;
        detach_unused(&disks, &name).await;
        let failure = attaching.await.unwrap().unwrap_err();
        assert_eq!(failure.kind(), Kind::Busy, "{failure}");
        service.proxy.set(Fault::None);
        disks
            .attach(&us(), service.lab.request("a.img"))
            .await
            .unwrap();
    });
}

/// Running disks do not need the service; others come as soon as it is back,
/// also those of a host that was started without it.
#[test]
fn disks_outlive_their_key_service() {
    let mut service = Service::with(&["a.img"]);
    let name = service.lab.name("a.img");
    run(async {
        let disks = service.open().await;
        let info = disks.attach(&us(), service.lab.request("a.img")).await;
        let mut front_end = service.lab.connect("a.img").await;
        front_end.write(0, &DATA);
        front_end.flush();
        service.proxy.set(Fault::Refuse);
        assert!(front_end.read(0, DATA.len()) == DATA);
        drop(front_end);
        kill(info.unwrap().pid.unwrap());
        until(&disks, &name, "another worker serves", |info| {
            info.state == DiskState::Running && info.restarts == 1
        })
        .await;
        disks.close().await;
        drop(disks);

        service.lab.workers().into_iter().for_each(kill);
        let disks = service.open_where(false).await;
        until(&disks, &name, "it waits", |info| {
            info.state == DiskState::Waiting
        })
        .await;
        service.proxy.set(Fault::None);
        let info = until_running(&disks, &name).await;
        assert!(service.lab.connect("a.img").await.read(0, DATA.len()) == DATA);

        // Without its key, a worker that dies waits for the service, too.
        service.proxy.set(Fault::Refuse);
        kill(info.pid.unwrap());
        until(&disks, &name, "it waits", |info| {
            info.state == DiskState::Waiting && info.restarts == 1
        })
        .await;
        service.proxy.set(Fault::None);
        until_running(&disks, &name).await;
        // Nor has its worker given the key to another manager.
        disks.close().await;
        drop(disks);
        service.server.kill();
        let disks = service.open().await;
        assert_eq!(disks.get(&name).unwrap().state, DiskState::Running);
        kill(disks.get(&name).unwrap().pid.unwrap());
        until(&disks, &name, "it waits", |info| {
            info.state == DiskState::Waiting
        })
        .await;
        tokio::time::timeout(Duration::from_secs(1), until_running(&disks, &name))
            .await
            .expect_err("it runs without a key");
    });
}
