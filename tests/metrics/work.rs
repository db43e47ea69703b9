//! Real work that each metric tells of: requests to a disk, and keys wrapped by
//! the `file` provider and by OpenBao.

use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

use sealblk::config;
use sealblk::crypt::{Engine, Params, SectorCipher, Transform};
use sealblk::error::{Failure, Kind};
use sealblk::key_store::{self, directory};
use sealblk::keys::{Actor, Context, KeySets, KeyUse, Operation, Target, Witness};
use sealblk::kms::call::{self, Attempt};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::file::{self, FileProvider};
use sealblk::kms::vault::{Auth, Settings, VaultProvider};
use sealblk::kms::{Error, KeyRef, KeyVersion, Provider, tls};
use sealblk::metrics::{DiskView, Metrics, RekeyView, TroubleView};
use sealblk::rekey::{Direction, Fence as _, Position};
use sealblk::rotation::News;
use sealblk::runtime::block_on;
use sealblk::secret::Secret;
use serde_json::json;
use uuid::Uuid;

use crate::judge::{Families, expose};
use crate::openbao::OpenBao;
use crate::support::in_process::{OFFSET, Served};
use crate::support::request::{Range, Request, S_IOERR};
use crate::support::server::eventually;

/// Does something of everything. What the metrics say while requests are in
/// flight comes back.
pub fn all(metrics: &Metrics) -> Families {
    keys(metrics);
    metrics.audit_line(true);
    metrics.audit_line(false);
    metrics.volume_erased(Some(true));
    metrics.verification("proved");
    metrics.disk_upgraded(Some(Some(7000)));
    metrics.api_request("GET", "/v1/disks", 200, Duration::from_millis(3));
    disk(metrics)
}

pub fn view(disk: &str, state: &'static str) -> DiskView {
    DiskView {
        disk: disk.into(),
        volume: Some(Uuid::from_u128(7)),
        state,
        front_end: true,
        restarts: 0,
        rekey: None,
        trouble: TroubleView::default(),
    }
}

/// Requests of each kind to a disk, good and bad ones.
fn disk(metrics: &Metrics) -> Families {
    let params = Params {
        zero_units: true,
        ..Params::default()
    };
    let served = Served::new(params, true);
    metrics.disk_changed(view("vm1", "attaching"));
    metrics.disk_started("vm1", served.stats());
    metrics.disk_changed(DiskView {
        restarts: 1,
        rekey: Some(RekeyView {
            kind: "rekey",
            state: "moving",
            done: 1 << 20,
            size: 4 << 20,
            rate: 1 << 16,
        }),
        trouble: TroubleView {
            waiting: 2,
            stuck: 1,
            stops: 3,
            waited: 9,
            stalls: 4,
        },
        ..view("vm1", "running")
    });
    let mut front = served.connect(1);
    front.write(0, &vec![7; 1 << 20]);
    front.read(0, 4096);
    front.flush();
    front.discard(&[Range::new(16, 16)]);
    front.write_zeroes(&[Range::new(1000, 8)]);
    front.succeed(0, Request::get_id());
    front.run(0, Request::read(u64::MAX, 512));
    // More than there are buffers for, so that they take a while.
    let during = eventually("requests in flight", || {
        for _ in 0..32 {
            front
                .submit(0, Request::write(0, &vec![1; 256 << 10]))
                .unwrap();
        }
        let seen = expose(&metrics.render());
        while front.in_flight(0) > 0 {
            front.complete(0).unwrap();
        }
        let in_flight = seen["sealblk_disk_io_in_flight"].samples[0].value;
        (in_flight > 0.0).then_some(seen)
    });
    // More than the disk's limits permit at once.
    let slow: config::Limits = toml::from_str("iops_total = 50").unwrap();
    served.disk.throttle().set(&slow.resolve().unwrap());
    for _ in 0..15 {
        front.submit(0, Request::write(0, &[2; 512])).unwrap();
        front.submit(0, Request::read(0, 512)).unwrap();
    }
    while front.in_flight(0) > 0 {
        front.complete(0).unwrap();
    }
    served.disk.throttle().set(&Default::default());
    // What is being moved from one key to another waits.
    let other = SectorCipher::new(Engine::Portable, served.dek(), params).unwrap();
    let start = Position {
        direction: Direction::Forward,
        boundary: 0,
    };
    let other = Transform::Cipher(other);
    served.disk.begin_move(other, start).unwrap();
    let keeper = served.disk.fence().keeper().unwrap();
    assert!(keeper.close_for_writing(start.direction, 4096));
    assert!(keeper.close_for_reading(start.direction, 4096));
    front.submit(0, Request::write(0, &[3; 512])).unwrap();
    front.submit(0, Request::read(0, 512)).unwrap();
    // What comes after them and is not closed goes on.
    let beyond = front.submit(0, Request::read(64, 512)).unwrap();
    assert_eq!(front.complete(0).unwrap().0, beyond);
    keeper.open();
    while front.in_flight(0) > 0 {
        front.complete(0).unwrap();
    }
    // A data file that has lost its end.
    let file = std::fs::File::options()
        .write(true)
        .open(served.path("disk"));
    file.unwrap().set_len(OFFSET + 4096).unwrap();
    assert_eq!(front.run(0, Request::read(8, 4096)).status, S_IOERR);
    during
}

/// Who calls, and how a call is told to the witness: what `keys` does.
struct Caller<'m> {
    metrics: &'m Metrics,
    key_set: &'static str,
    provider: &'static str,
    endpoint: Option<String>,
    group: Option<Uuid>,
    break_glass: bool,
}

impl Caller<'_> {
    fn call<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let context = Context::new(Actor::this_process("local"), None);
        let start = Instant::now();
        let observed = call::observed(context.correlation, async {
            let result = work.await;
            if let Some(endpoint) = &self.endpoint {
                call::note_attempt(Attempt {
                    endpoint: endpoint.clone(),
                    took: start.elapsed(),
                    failed: result.as_ref().err().map(Error::class),
                });
            }
            result
        });
        let (result, notes) = block_on(observed).unwrap();
        let used = KeyUse {
            context: &context,
            operation,
            key_set: self.key_set,
            provider: self.provider,
            key_id: "key",
            key_version: "1",
            group: self.group,
            service_asked: true,
            break_glass: self.break_glass,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &notes,
        };
        self.metrics.kms().key_used(&used).unwrap();
        result
    }
}

/// A key store that gives what it was given, and has nothing else.
fn store(metrics: &Metrics) {
    let directory = tempfile::tempdir().unwrap();
    let settings = directory::Settings {
        path: directory.path().into(),
        timeout: Duration::from_secs(20),
    };
    let definition = key_store::Definition::Directory(settings);
    let stores = key_store::KeyStores::new([("shared".parse().unwrap(), definition)]);
    let keys = KeySets::default()
        .with_stores(stores)
        .with_witnesses(vec![metrics.kms().clone()]);
    let context = Context::new(Actor::this_process("local"), None);
    let missing = block_on(keys.fetch(&context, "shared", Uuid::from_u128(3))).unwrap();
    assert!(missing.is_err());
    block_on(keys.purge(&context, "shared", Uuid::from_u128(3)))
        .unwrap()
        .unwrap();
}

/// A volume follows its key and another one does not, at first.
fn rotation(metrics: &Metrics) {
    let to = Target {
        provider: "file".into(),
        key_id: "key".into(),
        key_version: "2".into(),
        group: None,
    };
    let (key_set, volume) = ("platform", Uuid::from_u128(4));
    let failure = Failure::new(Kind::Busy, "somebody has it", None);
    let rotations = metrics.rotations();
    for news in [
        News::Started {
            key_set,
            from: None,
            to: &to,
            volumes: 1,
        },
        News::Failed {
            volume,
            key_set,
            failure: &failure,
        },
        News::Behind {
            key_set,
            volumes: 1,
        },
        News::Rewrapped {
            volume,
            key_set,
            from: None,
            to: &to,
        },
        News::Finished {
            key_set,
            target: &to,
        },
    ] {
        rotations.told(&news);
    }
    rotations.expiring(key_set, 30);
}

fn keys(metrics: &Metrics) {
    // The platform key, as a break-glass key set.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    file::create(&path).unwrap();
    let provider = FileProvider::new(&path);
    let platform = Caller {
        metrics,
        key_set: "platform",
        provider: provider.name(),
        endpoint: None,
        group: None,
        break_glass: true,
    };
    let key = KeyRef::default();
    let plaintext = Secret::random(64).unwrap();
    let wrapped = platform.call(Operation::Wrap, provider.wrap(&key, &plaintext, b"aad"));
    platform
        .call(
            Operation::Unwrap,
            provider.unwrap(&wrapped.unwrap(), b"aad"),
        )
        .unwrap();
    let version = platform
        .call(Operation::Check, provider.current_version(&key))
        .unwrap();
    let version = KeyVersion {
        // No version of a platform key has an end.
        expires: Some(SystemTime::now() + Duration::from_secs(86400)),
        ..version
    };
    metrics.key_set_checked("platform", provider.name(), "key", Ok(&version));

    // A key at a service, of which the first endpoint is away.
    let server = OpenBao::start();
    server.mount("transit");
    server.post("transit/keys/disks", json!({}));
    server.permit("disks", "transit", "*");
    let token = server.write("token", &server.token("disks"));
    let client = |url: &str| {
        VaultProvider::new(Settings {
            endpoints: vec![url.parse().unwrap()],
            namespace: None,
            mount: "transit".parse().unwrap(),
            auth: Auth::Token(SecretFile::new(&token)),
            tls: tls::Settings::default(),
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(2),
            },
        })
    };
    let key = KeyRef {
        id: Some("disks".into()),
        version: None,
    };
    let caller = |endpoint: &str| Caller {
        metrics,
        key_set: "disks",
        provider: VaultProvider::NAME,
        endpoint: Some(endpoint.into()),
        group: Some(Uuid::from_u128(1)),
        break_glass: false,
    };
    // Nobody listens on that port.
    let away = "http://127.0.0.1:9";
    let error = caller(away)
        .call(Operation::Check, client(away).current_version(&key))
        .unwrap_err();
    metrics.key_set_checked("disks", VaultProvider::NAME, "disks", Err(&error));
    let url = server.url();
    let provider = client(&url);
    let wrapped = caller(&url)
        .call(Operation::Wrap, provider.wrap(&key, &plaintext, b"aad"))
        .unwrap();
    caller(&url)
        .call(Operation::Unwrap, provider.unwrap(&wrapped, b"other"))
        .unwrap_err();
    let missing = KeyRef {
        id: Some("missing".into()),
        version: None,
    };
    caller(&url)
        .call(Operation::Check, provider.current_version(&missing))
        .unwrap_err();
    let version = caller(&url).call(Operation::Check, provider.current_version(&key));
    metrics.key_set_checked("disks", VaultProvider::NAME, "disks", version.as_ref());

    metrics.key_set_denied("platform", Some(SystemTime::now()));

    store(metrics);
    rotation(metrics);

    let seen = expose(&metrics.render());
    let count = |name: &str, labels: &[(&str, &str)]| -> f64 {
        let samples = seen[name].samples.iter();
        let matching = samples.filter(|sample| labels.iter().all(|(k, v)| sample.labels[*k] == *v));
        matching.map(|sample| sample.value).sum()
    };
    let calls = "sealblk_kms_calls_total";
    assert_eq!(
        count(calls, &[("key_set", "platform"), ("outcome", "ok")]),
        3.0
    );
    assert_eq!(count(calls, &[("outcome", "unreachable")]), 1.0);
    assert_eq!(
        count(calls, &[("outcome", "bad_key"), ("operation", "unwrap")]),
        1.0
    );
    assert_eq!(count(calls, &[("outcome", "not_found")]), 1.0);
    assert_eq!(count(calls, &[]), 8.0);
    let up = "sealblk_kms_endpoint_up";
    assert_eq!(count(up, &[("endpoint", away)]), 0.0);
    assert_eq!(count(up, &[("endpoint", &url)]), 1.0);
    let state = "sealblk_key_set_state";
    assert_eq!(count(state, &[("key_set", "disks"), ("state", "ok")]), 1.0);
    assert_eq!(count(state, &[("state", "unreachable")]), 0.0);
    // It can be seen, and what disks need is not unwrapped.
    let denied = [("key_set", "platform"), ("state", "denied")];
    assert_eq!(count(state, &denied), 1.0);
    assert_eq!(
        count("sealblk_group_key_lookups_total", &[("result", "miss")]),
        2.0
    );
}
