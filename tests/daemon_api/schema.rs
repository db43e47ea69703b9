//! What a daemon answers is what its description says, as an independent
//! validator judges it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::support::daemon::{Daemon, Reply};

/// The Python environment with the validators.
fn python() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let python = target.parent().unwrap().join("openapi/bin/python3");
    assert!(
        python.exists(),
        "there is no {}: run scripts/install-deps test",
        python.display()
    );
    python
}

/// What the validator says.
fn validate(document: &Value, answers: &[Value]) -> (bool, String) {
    let mut child = Command::new(python())
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/daemon_api/validate.py"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let given = json!({"document": document, "answers": answers}).to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(given.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), said)
}

/// An answer as the validator takes it.
fn answer(method: &str, path: &str, reply: &Reply) -> Value {
    let kind = reply.header("content-type");
    let body = match reply.body.as_str() {
        "" => Value::Null,
        text if kind.is_some_and(|kind| kind.contains("json")) => {
            serde_json::from_str(text).unwrap()
        }
        text => Value::from(text),
    };
    json!({"method": method, "path": path, "status": reply.status, "type": kind, "body": body})
}

/// Something to ask for, below the pattern of the document.
type Question = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
);

const QUESTIONS: [Question; 45] = [
    ("GET", "/v1/status", "/v1/status", None),
    ("GET", "/v1/openapi.json", "/v1/openapi.json", None),
    ("GET", "/metrics", "/metrics", None),
    ("GET", "/v1/audit", "/v1/audit", None),
    ("GET", "/v1/audit", "/v1/audit?lines=0", None),
    ("POST", "/v1/reload", "/v1/reload", None),
    ("GET", "/v1/disks", "/v1/disks", None),
    ("GET", "/v1/disks", "/v1/disks?after=0&wait=0", None),
    ("GET", "/v1/disks", "/v1/disks?wait=x", None),
    ("GET", "/v1/disks/{name}", "/v1/disks/none", None),
    ("POST", "/v1/disks", "/v1/disks", Some("{}")),
    (
        "POST",
        "/v1/disks",
        "/v1/disks",
        Some(r#"{"volume": "/nowhere", "socket": "/nowhere.sock"}"#),
    ),
    (
        "PATCH",
        "/v1/disks/{name}",
        "/v1/disks/none",
        Some(r#"{"limits": {"iops_total": 100}}"#),
    ),
    (
        "PATCH",
        "/v1/disks/{name}",
        "/v1/disks/none",
        Some(r#"{"limits": {"iops": 100}}"#),
    ),
    (
        "POST",
        "/v1/disks/{name}/freeze",
        "/v1/disks/none/freeze",
        Some(r#"{"timeout_seconds": 5}"#),
    ),
    (
        "POST",
        "/v1/disks/{name}/freeze",
        "/v1/disks/none/freeze",
        Some(r#"{"timeout_seconds": 0}"#),
    ),
    ("POST", "/v1/disks/{name}/thaw", "/v1/disks/none/thaw", None),
    (
        "POST",
        "/v1/disks/{name}/upgrade",
        "/v1/disks/none/upgrade",
        Some("{}"),
    ),
    (
        "POST",
        "/v1/upgrade",
        "/v1/upgrade",
        Some(r#"{"binary": "not/absolute"}"#),
    ),
    (
        "POST",
        "/v1/disks/{name}/resume",
        "/v1/disks/none/resume",
        Some(r#"{"fail": true}"#),
    ),
    ("POST", "/v1/rekeys", "/v1/rekeys", Some("{}")),
    (
        "POST",
        "/v1/rekeys",
        "/v1/rekeys",
        Some(r#"{"disks": ["none"], "pace": {"limit": 1048576}}"#),
    ),
    (
        "PATCH",
        "/v1/disks/{name}/rekey",
        "/v1/disks/none/rekey",
        Some(r#"{"go": "pause"}"#),
    ),
    (
        "POST",
        "/v1/disks/{name}/rekey/turn",
        "/v1/disks/none/rekey/turn",
        Some(r#"{"direction": "back"}"#),
    ),
    ("DELETE", "/v1/disks/{name}", "/v1/disks/none", None),
    (
        "POST",
        "/v1/verifications",
        "/v1/verifications",
        Some(r#"{"disk": "none"}"#),
    ),
    ("POST", "/v1/verifications", "/v1/verifications", Some("{}")),
    ("GET", "/v1/key-sets", "/v1/key-sets", None),
    ("GET", "/v1/key-sets/{name}", "/v1/key-sets/default", None),
    ("GET", "/v1/key-sets/{name}", "/v1/key-sets/none", None),
    (
        "POST",
        "/v1/key-sets",
        "/v1/key-sets",
        Some(r#"{"name": "x", "definition": {}}"#),
    ),
    (
        "PATCH",
        "/v1/key-sets/{name}",
        "/v1/key-sets/none",
        Some("{}"),
    ),
    ("DELETE", "/v1/key-sets/{name}", "/v1/key-sets/none", None),
    (
        "POST",
        "/v1/key-sets/{name}/check",
        "/v1/key-sets/default/check",
        None,
    ),
    (
        "POST",
        "/v1/key-sets/{name}/rotate",
        "/v1/key-sets/default/rotate",
        None,
    ),
    (
        "POST",
        "/v1/key-sets/{name}/switch",
        "/v1/key-sets/default/switch",
        Some(r#"{"definition": {"provider": "file"}}"#),
    ),
    (
        "POST",
        "/v1/key-sets/{name}/switch",
        "/v1/key-sets/b/switch",
        Some(r#"{"definition": {"provider": "none"}, "force": true}"#),
    ),
    ("GET", "/v1/ledger", "/v1/ledger", None),
    ("GET", "/v1/ledger", "/v1/ledger?key_set=none", None),
    ("DELETE", "/v1/ledger/{name}", "/v1/ledger/x", None),
    (
        "DELETE",
        "/v1/ledger/{name}",
        "/v1/ledger/00112233-4455-6677-8899-aabbccddeeff",
        None,
    ),
    (
        "POST",
        "/v1/volumes/erase",
        "/v1/volumes/erase",
        Some(r#"{"volume": "/nowhere"}"#),
    ),
    (
        "POST",
        "/v1/volumes/wraps",
        "/v1/volumes/wraps",
        Some(r#"{"action": "add", "all_of": "default", "key_set": "b"}"#),
    ),
    (
        "POST",
        "/v1/volumes/wraps",
        "/v1/volumes/wraps",
        Some(r#"{"action": "remove", "all_of": "default"}"#),
    ),
    (
        "POST",
        "/v1/volumes/wraps",
        "/v1/volumes/wraps",
        Some(r#"{"action": "add", "volume": "/nowhere", "key_set": "b", "key": 1}"#),
    ),
];

#[test]
fn every_answer_is_as_the_document_says() {
    let daemon = Daemon::configured("", "[key_sets.b]\nprovider = \"file\"\nkey_file = \"/k\"\n");
    let document = daemon.get("/v1/openapi.json").json();
    let mut answers = Vec::new();
    let mut asked = BTreeSet::new();
    for (method, pattern, path, body) in QUESTIONS {
        let reply = daemon.ask(method, path, body);
        answers.push(answer(method, pattern, &reply));
        asked.insert((method.to_lowercase(), pattern.to_owned()));
    }
    // What only a volume answers.
    let volume = daemon.home.create("disk.img", &[]);
    for (path, body) in [
        (
            "/v1/volumes/wraps",
            json!({"action": "add", "volume": volume, "key_set": "b"}),
        ),
        ("/v1/volumes/erase", json!({"volume": volume})),
    ] {
        let reply = daemon.ask("POST", path, Some(&body.to_string()));
        assert_eq!(reply.status, 200, "{reply:?}");
        answers.push(answer("POST", path, &reply));
    }
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|method| (method.clone(), path.clone()))
        })
        .collect();
    assert_eq!(asked, described, "everything is asked for");
    let (good, said) = validate(&document, &answers);
    assert!(good, "{said}");
    assert_eq!(said.trim(), format!("{} answers fit", answers.len()));
}

#[test]
fn the_validator_finds_what_does_not_fit() {
    let daemon = Daemon::start();
    let document = daemon.get("/v1/openapi.json").json();
    let good = answer("GET", "/v1/status", &daemon.get("/v1/status"));
    let mut wrong_type = good.clone();
    wrong_type["body"]["pid"] = "x".into();
    let mut missing = good.clone();
    missing["body"].as_object_mut().unwrap().remove("version");
    let mut problem = good.clone();
    problem["status"] = 404.into();
    for (bad, told) in [
        (wrong_type, "pid"),
        (missing, "version"),
        (problem, "application/json is not described"),
    ] {
        let (fits, said) = validate(&document, &[bad]);
        assert!(!fits && said.contains(told), "{said}");
    }
    let mut broken = document.clone();
    broken["paths"]["/v1/status"]["get"]["responses"] = "none".into();
    assert!(!validate(&broken, &[]).0);
    assert_eq!(validate(&document, &[good]).1.trim(), "1 answers fit");
}
