//! Who used which key for what, and under which ids the service knows of it.

use serde_json::{Value, json};
use uuid::Uuid;

use super::lab::{Lab, server};
use super::support::daemon::{Reply, ask_with};
use super::support::server::succeed;

const DIRECT: &str = "hierarchy = \"direct\"";

/// The lines of the log with that correlation id.
fn lines(lab: &Lab, correlation: Uuid) -> Vec<Value> {
    let text = std::fs::read_to_string(lab.path("audit.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["correlation"] == correlation.to_string())
        .collect()
}

fn ask(lab: &Lab, correlation: Uuid, method: &str, path: &str, body: Option<&str>) -> Reply {
    let header = format!("X-Correlation-Id: {correlation}\r\n");
    let reply = ask_with(lab.daemon.socket(), &header, method, path, body);
    assert_eq!(
        reply.header("x-correlation-id"),
        Some(&*correlation.to_string())
    );
    reply
}

fn attach(lab: &Lab, correlation: Uuid, volume: &str) -> Reply {
    ask(
        lab,
        correlation,
        "POST",
        "/v1/disks",
        Some(&lab.request(volume)),
    )
}

fn expect(line: &Value, members: &Value) {
    for (name, value) in members.as_object().unwrap() {
        assert_eq!(line[name], *value, "{name} of {line}");
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[test]
fn the_log_and_the_service_know_each_use_by_the_same_ids() {
    let lab = Lab::new(1, DIRECT);
    lab.make(&["a", "b"]);
    let proxy = &lab.service.proxies[0];
    proxy.seen();
    let id = Uuid::new_v4();
    let reply = attach(&lab, id, "a");
    assert_eq!(reply.status, 201, "{reply:?}");
    let volume = reply.json()["uuid"].clone();
    let written = lines(&lab, id);
    let [unwrap, attached] = &written[..] else {
        panic!("{written:?}");
    };
    let actor = rustix::process::getuid().as_raw();
    let key = json!({
        "event": "unwrap", "outcome": "ok", "volume": volume, "key_set": "prod",
        "provider": "vault", "key_id": "disks", "key_version": "1", "service_asked": true,
    });
    expect(unwrap, &key);
    expect(
        attached,
        &json!({"event": "attach", "outcome": "ok", "volume": volume, "disk": lab.disk("a")}),
    );
    for line in &written {
        assert_eq!(line["actor"]["uid"], actor, "{line}");
    }
    // At the service.
    let seen = proxy.seen();
    assert!(has(&seen.requests, &format!("x-correlation-id: {id}\r\n")));
    let request_id = unwrap["request_id"].as_str().unwrap();
    request_id.parse::<Uuid>().unwrap();
    assert!(has(
        &seen.answers,
        &format!("\"request_id\":\"{request_id}\"")
    ));

    // With the service's refusal.
    let nothing = json!({"policy": "path \"sys/nothing\" { capabilities = [\"read\"] }"});
    server().post(&format!("sys/policies/acl/{}", lab.service.name), nothing);
    let id = Uuid::new_v4();
    let reply = attach(&lab, id, "b");
    assert_eq!(reply.json()["kind"], "key", "{reply:?}");
    let written = lines(&lab, id);
    let [unwrap, attached] = &written[..] else {
        panic!("{written:?}");
    };
    let denied =
        json!({"event": "unwrap", "outcome": "denied", "reason": "forbidden", "key_id": "disks"});
    expect(unwrap, &denied);
    assert!(unwrap["volume"].is_string(), "{unwrap}");
    assert_eq!(attached["event"], "attach");
    assert_ne!(attached["outcome"], "ok", "{attached}");
    assert!(has(
        &proxy.seen().requests,
        &format!("x-correlation-id: {id}\r\n")
    ));

    let id = Uuid::new_v4();
    let path = format!("/v1/disks/{}", lab.disk("a"));
    let reply = ask(&lab, id, "DELETE", &path, None);
    assert_eq!(reply.status, 204, "{reply:?}");
    let written = lines(&lab, id);
    assert_eq!(written.len(), 1, "{written:?}");
    expect(
        &written[0],
        &json!({"event": "detach", "outcome": "ok", "volume": volume}),
    );
    succeed(&mut lab.daemon.sealblk(&["audit", "verify"]));
}
