//! Requests to the manager's API, over its real router: for each endpoint what it
//! takes, with edits, by users of every role; and bytes that are none.
//!
//! Nothing panics. What is wrong with a request is told as that, with a status from
//! 400 on, and never as a fault of the manager: those are only what its services say.
//! Who has no role does nothing and learns nothing, and no answer has a secret in it.
#![no_main]

use std::sync::{Arc, LazyLock};

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use libfuzzer_sys::fuzz_target;
use sealblk::config::daemon::{self, Principal};
use sealblk::error::Kind;
use sealblk::manager::api::{Api, Limits, ProblemDetails};
use sealblk::manager::peer::Peer;
use sealblk::manager::roles::Roles;
use sealblk_fuzz::api::{MARK, SECRET, World};
use sealblk_fuzz::edit::edit;
use sealblk_fuzz::source::Source;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tower::ServiceExt as _;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
});

/// Users by what they may do: reader, operator, key admin, nothing, root.
const USERS: [u32; 5] = [102, 101, 103, 104, 0];
const NOBODY: u32 = 104;
const READER: u32 = 101;

const WORDS: [&str; 40] = [
    "volume",
    "socket",
    "name",
    "header",
    "options",
    "wait",
    "ephemeral",
    "size",
    "force",
    "limits",
    "iops",
    "burst",
    "seconds",
    "timeout_seconds",
    "kind",
    "rekey",
    "encrypt",
    "decrypt",
    "disks",
    "key_set",
    "provider",
    "file",
    "definition",
    "check",
    "uuid",
    "action",
    "add",
    "remove",
    "direction",
    "back",
    "forward",
    "priority",
    "idle",
    "limit",
    "latency_us",
    "binary",
    "discard",
    "unmap",
    "path",
    "sign",
];

/// What each endpoint takes.
fn endpoints() -> Vec<(&'static str, &'static str, Value)> {
    let id = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    let set = json!({"provider": "file", "key_file": "/k"});
    vec![
        (
            "POST",
            "/v1/disks",
            json!({"volume": "/v", "socket": "/s", "name": "a", "options": {"queues": 2}}),
        ),
        ("GET", "/v1/disks", Value::Null),
        ("GET", "/v1/disks/a", Value::Null),
        (
            "PATCH",
            "/v1/disks/a",
            json!({"limits": {"iops": 100}, "size": 1 << 30}),
        ),
        ("DELETE", "/v1/disks/a?force=true", Value::Null),
        ("POST", "/v1/disks/a/freeze", json!({"timeout_seconds": 60})),
        ("POST", "/v1/disks/a/thaw", Value::Null),
        ("POST", "/v1/disks/a/resume", json!({"fail": true})),
        ("POST", "/v1/disks/a/upgrade", json!({"reconnect": true})),
        (
            "PATCH",
            "/v1/disks/a/rekey",
            json!({"action": "pause", "pace": {"limit": 65536}}),
        ),
        (
            "POST",
            "/v1/disks/a/rekey/turn",
            json!({"direction": "back"}),
        ),
        (
            "POST",
            "/v1/rekeys",
            json!({"kind": "rekey", "disks": ["a"], "pace": {}}),
        ),
        ("GET", "/v1/status", Value::Null),
        ("POST", "/v1/reload", Value::Null),
        ("POST", "/v1/upgrade", json!({"binary": "/b"})),
        ("GET", "/v1/audit?lines=10", Value::Null),
        ("GET", "/metrics", Value::Null),
        ("GET", "/v1/openapi.json", Value::Null),
        ("GET", "/v1/key-sets", Value::Null),
        ("GET", "/v1/key-sets/k", Value::Null),
        (
            "POST",
            "/v1/key-sets",
            json!({"name": "k", "definition": set, "check": false}),
        ),
        (
            "PATCH",
            "/v1/key-sets/k?check=false",
            json!({"version": "2"}),
        ),
        ("DELETE", "/v1/key-sets/k?force=false", Value::Null),
        ("POST", "/v1/key-sets/k/check", Value::Null),
        ("POST", "/v1/key-sets/k/rotate", Value::Null),
        (
            "POST",
            "/v1/key-sets/k/switch",
            json!({"definition": set, "force": false}),
        ),
        ("GET", "/v1/ledger?key_set=k", Value::Null),
        (
            "DELETE",
            "/v1/ledger/6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            Value::Null,
        ),
        ("POST", "/v1/verifications", json!({"disk": "a", "rate": 1})),
        (
            "POST",
            "/v1/volumes/erase",
            json!({"uuid": id, "discard": false, "force": false}),
        ),
        (
            "POST",
            "/v1/volumes/wraps",
            json!({"action": "add", "key_set": "k", "volumes": ["/v"]}),
        ),
    ]
}

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    RUNTIME.block_on(ask(&mut source));
});

async fn ask(source: &mut Source<'_>) {
    let world = Arc::new(World::new(source.mostly(Kind::NotFound, |source| {
        source.pick(&[Kind::Usage, Kind::Busy, Kind::Io, Kind::Key, Kind::Internal])
    })));
    let user = |uid: u32| vec![Principal::User(uid.to_string())];
    let roles = daemon::Roles {
        root: true,
        reader: user(READER),
        operator: user(102),
        key_admin: user(103),
    };
    let (roles, _) = Roles::resolve(&roles, 0);
    let (_stop, stopping) = watch::channel(false);
    let api = Api::new(world.services(), roles, stopping, Limits::default());
    let router = api.router();
    let all = endpoints();
    for _ in 0..4 {
        let uid = source.pick(&USERS);
        let (method, path, body) = &all[source.below(all.len())];
        let Some(request) = request(method, path, body, source) else {
            return;
        };
        // Of which the answer has no body (RFC 9110, 9.3.2).
        let is_head = request.method() == "HEAD";
        let before = world.calls();
        let peer = Peer {
            uid,
            gid: uid,
            groups: vec![],
            pid: Some(77),
        };
        let router = router.clone().layer(Extension(peer));
        let Ok(response) = router.oneshot(request).await;
        let status = response.status().as_u16();
        let correlated = response.headers().contains_key("x-correlation-id");
        let Ok(bytes) = to_bytes(response.into_body(), 4 << 20).await else {
            panic!("an answer without an end");
        };
        let text = String::from_utf8_lossy(&bytes);
        assert!(correlated, "an answer without a correlation id");
        assert!(!text.contains(SECRET), "a secret is told: {text}");
        // Only what a service has said is a fault of this host.
        let answered = world.calls() > before;
        assert!(status < 500 || answered, "{status} {text}");
        if is_head {
            assert!(bytes.is_empty(), "{text}");
        } else if status >= 400 {
            let problem: ProblemDetails = serde_json::from_slice(&bytes).expect("a problem");
            assert_eq!(problem.status, status);
            assert!(!problem.message.is_empty());
        }
        if uid == NOBODY {
            assert!(!answered && status >= 400, "{status} for who has no role");
            assert!(!text.contains(MARK), "{text}");
        }
        if uid == READER {
            assert_eq!(world.changes(), 0, "a reader has changed something");
        }
        world.forget_changes();
        if source.is_empty() {
            return;
        }
    }
}

/// A request that is mostly right. `None` if it is none of HTTP.
fn request(
    method: &str,
    path: &str,
    body: &Value,
    source: &mut Source<'_>,
) -> Option<Request<Body>> {
    let mut path = path.to_owned();
    if source.rarely() {
        let odd = [
            "%00",
            "%ff",
            "..",
            "%2f",
            "a%20b",
            "?",
            "?force=x",
            "&lines=-1",
            "/",
            "x%C3%A9",
        ];
        path.push_str(source.pick(&odd));
    }
    let mut body = body.clone();
    edit(&mut body, source, &WORDS);
    let mut text = match body {
        Value::Null => vec![],
        body => body.to_string().into_bytes(),
    };
    if source.rarely() {
        text = match source.below(4) {
            0 => source.take(64).to_vec(),
            1 => vec![b'['; 70_000],
            2 => vec![b' '; 65_537],
            _ => [&text[..], source.take(8)].concat(),
        };
    }
    let methods = ["PUT", "GET", "HEAD", "OPTIONS", "DELETE", "BREW"];
    let method = source.mostly(method, |source| source.pick(&methods));
    let kind = source.mostly("application/json", |source| {
        source.pick(&[
            "application/merge-patch+json",
            "text/plain",
            "",
            "application/json;x",
        ])
    });
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind);
    if source.rarely() {
        builder = builder.header("x-correlation-id", source.take(40));
    }
    builder.body(Body::from(text)).ok()
}
