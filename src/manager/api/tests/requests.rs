//! What happens to a request on its way.

use std::time::{Duration, Instant};

use super::*;

#[tokio::test]
async fn a_correlation_id_is_taken_along_or_made() {
    let asked = Asked::new();
    let id = Uuid::from_u128(0xc0ffee);
    let mut told = request("POST", "/v1/disks", Some(attach("a")));
    let value = id.to_string().parse().unwrap();
    told.headers_mut().insert(CORRELATION, value);
    let answer = asked.ask(OPERATOR, told).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.correlation, Some(id));
    assert_eq!(asked.world.seen.lock().unwrap().as_slice(), [id]);
    assert_eq!(asked.world.records.lock().unwrap()[0].correlation, id);

    let answers = [
        asked.post(OPERATOR, "/v1/disks", attach("b")).await,
        asked.get(READER, "/v1/nothing").await,
        asked.get(NOBODY, "/v1/status").await,
    ];
    let mut made: Vec<Uuid> = answers.iter().map(|a| a.correlation.unwrap()).collect();
    assert_eq!(asked.world.seen.lock().unwrap()[1], made[0]);
    made.dedup();
    assert_eq!(made.len(), 3);

    for bad in ["x", "", "\u{e9}"] {
        let mut told = request("GET", "/v1/status", None);
        let value = header::HeaderValue::from_bytes(bad.as_bytes()).unwrap();
        told.headers_mut().insert(CORRELATION, value);
        let answer = asked.ask(READER, told).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad:?}");
        assert!(answer.correlation.is_some());
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_as_a_problem() {
    let asked = Asked::new();
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/disks/", 404),
        ("GET", "/v1/disks/none", 404),
        ("GET", "/v1/disks/%ff", 400),
        ("GET", "/v1/disks/..%2f..", 404),
        ("DELETE", "/v1/disks/none", 404),
        ("DELETE", "/v1/disks/none?force=maybe", 400),
        ("DELETE", "/v1/disks/none?forec=true", 400),
        ("PUT", "/v1/disks", 405),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/reload", 405),
        ("GET", "/v1/disks?wait=61", 400),
        ("GET", "/v1/disks?after=-1", 400),
        ("GET", "/v1/audit?lines=0", 400),
        ("GET", "/v1/audit?lines=1001", 400),
    ] {
        let answer = asked.ask(0, request(method, path, None)).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert_eq!(answer.kind, PROBLEM_TYPE, "{method} {path}");
        for field in [
            "type",
            "title",
            "status",
            "kind",
            "message",
            "help",
            "exit_status",
        ] {
            assert!(!answer.json[field].is_null(), "{method} {path}: {field}");
        }
    }
}

#[tokio::test]
async fn a_disk_comes_and_goes() {
    let asked = Asked::new();
    let answer = asked.post(OPERATOR, "/v1/disks", attach("a")).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let mut waiting = attach("b");
    waiting["wait"] = true.into();
    let answer = asked.post(OPERATOR, "/v1/disks", waiting).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(answer.json["state"], "waiting");
    let status = asked.get(READER, "/v1/status").await.json;
    assert_eq!(status["disks"]["running"], 1);
    assert_eq!(status["disks"]["waiting"], 1);
    assert_eq!(status["you"]["uid"], READER);
    assert_eq!(status["you"]["roles"], serde_json::json!(["reader"]));
    let answer = asked.get(READER, "/v1/disks/a").await;
    assert_eq!(answer.json["volume"], "/v");
    let answer = asked
        .ask(OPERATOR, request("DELETE", "/v1/disks/a", None))
        .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let list = asked.get(READER, "/v1/disks").await.json;
    assert_eq!(list["disks"].as_array().unwrap().len(), 1);
    assert_eq!(list["revision"], 3);
}

#[tokio::test]
async fn a_change_is_waited_for() {
    let asked = Asked::new();
    // A revision that was never there, or is over, is answered at once.
    let answer = asked.get(READER, "/v1/disks?after=7").await;
    assert_eq!(answer.json["revision"], 0);
    // Nothing happens: the time passes.
    let start = Instant::now();
    let answer = asked.get(READER, "/v1/disks?after=0&wait=1").await;
    assert_eq!(answer.json["revision"], 0);
    assert!(start.elapsed() >= Duration::from_secs(1));
    // Something happens, and whoever waited long before is told.
    let change = async {
        tokio::task::yield_now().await;
        asked.post(OPERATOR, "/v1/disks", attach("a")).await;
    };
    let (answer, ()) = tokio::join!(asked.get(READER, "/v1/disks?after=0&wait=60"), change);
    assert_eq!(answer.json["revision"], 1);
    assert_eq!(answer.json["disks"][0]["name"], "a");
    // The manager ends.
    let end = async {
        tokio::task::yield_now().await;
        asked.stop.send(true).unwrap();
    };
    let (answer, ()) = tokio::join!(asked.get(READER, "/v1/disks?after=1&wait=60"), end);
    assert_eq!(answer.json["revision"], 1);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn work_is_carried_to_its_end_when_the_caller_has_gone() {
    let asked = Asked::new();
    *asked.world.slow.lock().unwrap() = true;
    {
        let asking = asked.post(OPERATOR, "/v1/disks", attach("a"));
        tokio::select! {
            _ = asking => panic!("it is slow"),
            () = asked.world.began.notified() => {}
        }
    }
    assert!(asked.world.get("a").is_none());
    let mut changes = asked.world.subscribe();
    asked.world.go.notify_one();
    changes.changed().await.unwrap();
    assert!(asked.world.get("a").is_some());
    // And it is on record, as soon as it is done.
    while asked.world.records.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn that_no_record_could_be_kept_is_told() {
    let asked = Asked::new();
    *asked.world.audit_fails.lock().unwrap() = true;
    let answer = asked.post(OPERATOR, "/v1/disks", attach("a")).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.json["kind"], "io");
    let message = answer.json["message"].as_str().unwrap();
    assert!(
        message.contains("it was done, but the audit log"),
        "{message}"
    );
    // What failed anyway keeps its own cause.
    let answer = asked.post(OPERATOR, "/v1/disks", attach("a")).await;
    assert_eq!(answer.json["kind"], "busy");
    // And who has no role stays out.
    assert_eq!(asked.get(NOBODY, "/v1/disks").await.status, 403);
}

#[tokio::test]
async fn records_can_be_read() {
    let asked = Asked::new();
    for name in ["a", "b", "c"] {
        asked.post(OPERATOR, "/v1/disks", attach(name)).await;
    }
    let answer = asked.get(READER, "/v1/audit?lines=2").await;
    assert_eq!(answer.json.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn requests_are_counted_by_the_pattern_that_they_matched() {
    let asked = Asked::new();
    asked.post(OPERATOR, "/v1/disks", attach("a")).await;
    asked.get(READER, "/v1/disks/a").await;
    asked.get(READER, "/v1/disks/b").await;
    asked
        .post(READER, "/v1/key-sets/x/check", Value::Null)
        .await;
    asked.get(READER, "/secret/path").await;
    asked.get(NOBODY, "/v1/status").await;
    let counted = asked.world.counted.lock().unwrap();
    let counted: Vec<_> = counted
        .iter()
        .map(|(method, route, status)| (method.as_str(), route.as_str(), *status))
        .collect();
    assert_eq!(
        counted,
        [
            ("POST", "/v1/disks", 201),
            ("GET", "/v1/disks/{name}", 200),
            ("GET", "/v1/disks/{name}", 404),
            ("POST", "/v1/key-sets/{name}/check", 403),
            ("GET", "none", 404),
            ("GET", "none", 403),
        ]
    );
}

#[tokio::test]
async fn records_have_what_is_known_of_the_act() {
    let asked = Asked::new();
    let mut first = attach("a");
    first["break_glass"] = true.into();
    asked.post(OPERATOR, "/v1/disks", first).await;
    asked.post(OPERATOR, "/v1/disks", attach("a")).await;
    let path = "/v1/disks/a?force=true";
    asked.ask(OPERATOR, request("DELETE", path, None)).await;
    let set = serde_json::json!({"name": "k", "definition": {}});
    asked.post(KEY_ADMIN, "/v1/key-sets", set).await;
    let change = serde_json::json!({"version": null, "key": "x"});
    let path = "/v1/key-sets/k";
    asked
        .ask(KEY_ADMIN, request("PATCH", path, Some(change)))
        .await;
    asked.ask(READER, request("DELETE", path, None)).await;
    let uuid = Some(Uuid::from_u128(1));
    let provider = Some("file".to_owned());
    let expected = [
        Act::Attach {
            disk: "a".into(),
            volume: uuid,
            key_set: Some("default".into()),
            break_glass: true,
            ephemeral: false,
        },
        Act::Attach {
            disk: "a".into(),
            volume: None,
            key_set: None,
            break_glass: false,
            ephemeral: false,
        },
        Act::Detach {
            disk: "a".into(),
            volume: uuid,
            force: true,
        },
        Act::KeySetCreate {
            key_set: "k".into(),
            provider: provider.clone(),
        },
        Act::KeySetEdit {
            key_set: "k".into(),
            provider,
            changed: vec!["key".into(), "version".into()],
        },
        Act::Refused {
            operation: Operation::KeySetRemove,
            object: "k".into(),
            needs: Operation::KeySetRemove.roles(),
        },
    ];
    assert_eq!(*asked.world.acts.lock().unwrap(), expected);
}
