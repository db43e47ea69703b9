//! Each operation, by each role.

use super::*;
use crate::manager::roles::Role;

/// Every route, and a request to it that is good.
fn routes() -> Vec<(&'static str, &'static str, Option<Value>, Operation)> {
    let set = serde_json::json!({"name": "k", "definition": {"provider": "file"}});
    let change = serde_json::json!({"version": "1"});
    let limits = serde_json::json!({"limits": {"iops_total": 100}});
    let switch = serde_json::json!({"definition": {"provider": "file"}});
    vec![
        ("GET", "/v1/status", None, Operation::Look),
        ("GET", "/v1/audit", None, Operation::Look),
        ("GET", "/v1/openapi.json", None, Operation::Look),
        ("GET", "/metrics", None, Operation::Look),
        ("POST", "/v1/reload", None, Operation::Reload),
        ("GET", "/v1/disks", None, Operation::Look),
        ("POST", "/v1/disks", Some(attach("d")), Operation::Attach),
        ("GET", "/v1/disks/d", None, Operation::Look),
        ("PATCH", "/v1/disks/d", Some(limits), Operation::Change),
        ("DELETE", "/v1/disks/d", None, Operation::Detach),
        (
            "POST",
            "/v1/verifications",
            Some(serde_json::json!({"disk": "d"})),
            Operation::Verify,
        ),
        (
            "POST",
            "/v1/disks/d/freeze",
            Some(serde_json::json!({"timeout_seconds": 5})),
            Operation::Freeze,
        ),
        ("POST", "/v1/disks/d/thaw", None, Operation::Thaw),
        (
            "POST",
            "/v1/disks/d/upgrade",
            Some(serde_json::json!({"reconnect": true})),
            Operation::Upgrade,
        ),
        (
            "POST",
            "/v1/upgrade",
            Some(serde_json::json!({})),
            Operation::Upgrade,
        ),
        (
            "POST",
            "/v1/disks/d/resume",
            Some(serde_json::json!({"fail": true})),
            Operation::Resume,
        ),
        (
            "POST",
            "/v1/rekeys",
            Some(serde_json::json!({"disks": ["d"]})),
            Operation::Rekey,
        ),
        (
            "PATCH",
            "/v1/disks/d/rekey",
            Some(serde_json::json!({"go": "pause", "pace": {"limit": 1 << 20}})),
            Operation::RekeyPace,
        ),
        (
            "POST",
            "/v1/disks/d/rekey/turn",
            Some(serde_json::json!({"direction": "back"})),
            Operation::Rekey,
        ),
        ("GET", "/v1/key-sets", None, Operation::Look),
        ("POST", "/v1/key-sets", Some(set), Operation::KeySetCreate),
        ("GET", "/v1/key-sets/k", None, Operation::Look),
        (
            "PATCH",
            "/v1/key-sets/k",
            Some(change),
            Operation::KeySetEdit,
        ),
        ("POST", "/v1/key-sets/k/check", None, Operation::KeySetCheck),
        (
            "POST",
            "/v1/key-sets/k/rotate",
            None,
            Operation::KeySetRotate,
        ),
        (
            "POST",
            "/v1/key-sets/k/switch",
            Some(switch),
            Operation::KeySetSwitch,
        ),
        ("GET", "/v1/ledger", None, Operation::Look),
        (
            "DELETE",
            "/v1/ledger/00112233-4455-6677-8899-aabbccddeeff",
            None,
            Operation::VolumeForget,
        ),
        ("DELETE", "/v1/key-sets/k", None, Operation::KeySetRemove),
        (
            "POST",
            "/v1/volumes/erase",
            Some(serde_json::json!({"volume": "/v"})),
            Operation::VolumeErase,
        ),
        (
            "POST",
            "/v1/volumes/wraps",
            Some(serde_json::json!({"action": "add", "volume": "/v", "key_set": "k"})),
            Operation::WrapsChange,
        ),
    ]
}

#[tokio::test]
async fn each_role_may_do_what_it_is_for_and_nothing_else() {
    for (uid, role) in [
        (READER, Some(Role::Reader)),
        (OPERATOR, Some(Role::Operator)),
        (KEY_ADMIN, Some(Role::KeyAdmin)),
        (NOBODY, None),
    ] {
        let asked = Asked::new();
        // So that what is looked at, changed or taken away is there.
        asked.post(0, "/v1/disks", attach("d")).await;
        let set = serde_json::json!({"name": "k", "definition": {}});
        asked.post(0, "/v1/key-sets", set).await;
        asked.world.records.lock().unwrap().clear();
        let mut refusals = 0;
        for (method, path, body, operation) in routes() {
            let answer = asked.ask(uid, request(method, path, body)).await;
            let may = role.is_some_and(|role| operation.roles().contains(&role));
            let what = format!("{method} {path} as {role:?}: {answer:?}");
            if may {
                assert!(answer.status != StatusCode::FORBIDDEN, "{what}");
                continue;
            }
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{what}");
            assert_eq!(answer.kind, PROBLEM_TYPE);
            assert_eq!(answer.json["kind"], "permission");
            let needs = answer.json["needs"].as_array().unwrap();
            assert!(!needs.is_empty(), "{what}");
            refusals += 1;
            // And it is on record.
            let record = asked.world.records.lock().unwrap().last().cloned().unwrap();
            assert_eq!((record.uid, record.role.as_str()), (uid, "none"));
            assert_eq!(record.outcome, "refused", "{what}");
            assert_eq!(Some(record.correlation), answer.correlation);
            if role.is_some() {
                assert_eq!(record.operation, operation.as_str());
                // Only what has a name is in a path.
                let name = path.split('/').nth(3).filter(|_| !path.contains("volumes"));
                let object = name.unwrap_or_default();
                assert_eq!(record.object, object, "{what}");
            }
        }
        let records = asked.world.records.lock().unwrap().clone();
        let refused = records.iter().filter(|record| record.outcome == "refused");
        assert_eq!(refused.count(), refusals);
        let expected = match role {
            None => 31,
            Some(Role::Reader) => 21,
            Some(Role::Operator) => 11,
            Some(Role::KeyAdmin) => 8,
        };
        assert_eq!(refusals, expected, "{role:?}");
        // What was refused has not happened.
        let disk = asked.world.get("d").is_some();
        assert_eq!(disk, role != Some(Role::Operator), "{role:?}");
        let set = asked.world.show("k").await.is_ok();
        assert_eq!(set, role != Some(Role::KeyAdmin), "{role:?}");
    }
}

/// What the change would have been is not read: the record fits each.
#[tokio::test]
async fn a_change_of_a_disk_that_is_refused_is_recorded_as_one() {
    let asked = Asked::new();
    asked.post(0, "/v1/disks", attach("d")).await;
    for change in [
        serde_json::json!({"limits": {"iops_total": 100}}),
        serde_json::json!({"size": 1 << 20}),
    ] {
        let change = request("PATCH", "/v1/disks/d", Some(change));
        let answer = asked.ask(KEY_ADMIN, change).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{answer:?}");
        let records = asked.world.records.lock().unwrap();
        let record = records.last().unwrap();
        assert_eq!(record.outcome, "refused");
        assert_eq!(
            (record.operation.as_ref(), record.object.as_ref()),
            ("change", "d")
        );
    }
}

#[tokio::test]
async fn the_routes_above_are_all_there_are() {
    let asked = Asked::new();
    let document: Value = serde_json::from_str(&asked.api.document().unwrap()).unwrap();
    let mut described: Vec<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let mut tested: Vec<(String, String)> = routes()
        .into_iter()
        .map(|(method, path, ..)| {
            let path = path.replace("/d", "/{name}").replace("{name}isks", "disks");
            let path = path.replace("key-sets/k", "key-sets/{name}");
            let path = path.replace("00112233-4455-6677-8899-aabbccddeeff", "{name}");
            (method.to_owned(), path)
        })
        .collect();
    described.sort();
    tested.sort();
    assert_eq!(described, tested);
}

#[tokio::test]
async fn somebody_without_a_role_does_not_learn_what_there_is() {
    let asked = Asked::new();
    for path in ["/v1/disks", "/v1/nothing", "/"] {
        let answer = asked.get(NOBODY, path).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
    }
    let body = "x".repeat(BODY_MAX + 1);
    let huge = Request::post("/v1/disks").body(Body::from(body)).unwrap();
    let answer = asked.ask(READER, huge).await;
    assert_eq!(
        answer.status,
        StatusCode::FORBIDDEN,
        "before the body is read"
    );
}

#[tokio::test]
async fn what_was_done_is_recorded_with_its_role() {
    let asked = Asked::new();
    asked.post(0, "/v1/disks", attach("a")).await;
    asked.post(OPERATOR, "/v1/disks", attach("a")).await;
    let set = serde_json::json!({"name": "k", "definition": {}});
    asked.post(KEY_ADMIN, "/v1/key-sets", set).await;
    let records = asked.world.records.lock().unwrap();
    let told: Vec<_> = records
        .iter()
        .map(|r| {
            (
                r.uid,
                r.role.as_str(),
                r.operation.as_str(),
                r.object.as_str(),
                r.outcome.as_str(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (0, "operator", "attach", "a", "done"),
            (OPERATOR, "operator", "attach", "a", "failed: a is taken"),
            (KEY_ADMIN, "key-admin", "key-set-create", "k", "done"),
        ]
    );
}

#[tokio::test]
async fn roles_can_change_while_it_runs() {
    let asked = Asked::new();
    assert_eq!(asked.get(READER, "/v1/status").await.status, StatusCode::OK);
    asked.api.set_roles(Roles::default());
    let answer = asked.get(READER, "/v1/status").await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}
