//! Bodies that are wrong, too large, or slow.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;

#[tokio::test]
async fn what_is_wrong_with_a_body_is_told() {
    let asked = Asked::new();
    let with = |field: &str, value: Value| {
        let mut body = attach("a");
        body[field] = value;
        body.to_string()
    };
    for (body, told) in [
        (String::new(), "EOF"),
        ("{".into(), "EOF"),
        ("[]".into(), "invalid"),
        ("{}".into(), "missing field `volume`"),
        (with("wiat", true.into()), "unknown field `wiat`"),
        (with("wait", "yes".into()), "expected a boolean"),
        (with("volume", "v".into()), "volume is not an absolute path"),
        (with("socket", "s".into()), "socket is not an absolute path"),
        (with("header", "h".into()), "header is not an absolute path"),
        (with("name", "a/b".into()), "not a name for a disk"),
        (with("name", "".into()), "not a name for a disk"),
        (
            with("options", serde_json::json!({"queues": 0})),
            "from 1 to 64",
        ),
        (
            with("options", serde_json::json!({"quues": 1})),
            "unknown field `quues`",
        ),
        (
            with("options", serde_json::json!({"socket_mode": "0777"})),
            "lets everybody",
        ),
        (
            with("options", serde_json::json!({"pid_file": "/p"})),
            "pid_file",
        ),
        (attach("a").to_string() + "x", "trailing"),
    ] {
        let request = Request::post("/v1/disks")
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .body(Body::from(body.clone()))
            .unwrap();
        let answer = asked.ask(OPERATOR, request).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let message = answer.json["message"].as_str().unwrap();
        assert!(message.contains(told), "{body}: {message}");
    }
    assert!(asked.world.disks.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_json_is_taken() {
    let asked = Asked::new();
    for kind in [
        None,
        Some("text/plain"),
        Some("application/jsonx"),
        Some(""),
    ] {
        let mut request = request("POST", "/v1/disks", Some(attach("a")));
        request.headers_mut().remove(header::CONTENT_TYPE);
        if let Some(kind) = kind {
            let value = kind.parse().unwrap();
            request.headers_mut().insert(header::CONTENT_TYPE, value);
        }
        let answer = asked.ask(OPERATOR, request).await;
        assert_eq!(
            answer.status,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "{kind:?}"
        );
    }
    asked
        .post(
            0,
            "/v1/key-sets",
            serde_json::json!({"name": "k", "definition": {}}),
        )
        .await;
    let patch = Request::patch("/v1/key-sets/k")
        .header(header::CONTENT_TYPE, "application/merge-patch+json")
        .body(Body::from(r#"{"version": "2"}"#))
        .unwrap();
    let answer = asked.ask(KEY_ADMIN, patch).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json["definition"]["version"], "2");
}

#[tokio::test]
async fn a_body_is_as_large_as_it_may_be_and_no_larger() {
    let asked = Asked::new();
    let of_length = |length: usize| {
        let mut text = attach("a").to_string();
        text.extend(std::iter::repeat_n(' ', length - text.len()));
        Request::post("/v1/disks")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(text))
            .unwrap()
    };
    let answer = asked.ask(OPERATOR, of_length(BODY_MAX + 1)).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let answer = asked.ask(OPERATOR, of_length(BODY_MAX)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
}

/// An API on a socket, with little patience.
async fn served() -> (tempfile::TempDir, Asked, tokio::task::JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits {
        head_time: Duration::from_millis(200),
        body_time: Duration::from_millis(200),
        answer_time: Duration::from_millis(200),
        connections: 4,
        ..Limits::default()
    };
    let mut asked = Asked::with(limits);
    // We are ourselves the user who asks.
    let own = rustix::process::geteuid().as_raw();
    let config = daemon::Roles::default();
    asked.api.set_roles(Roles::resolve(&config, own).0);
    asked.router = asked.api.router();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let stopping = asked.stop.subscribe();
    let server = tokio::spawn(serve(listener, asked.router.clone(), limits, stopping));
    (directory, asked, server)
}

async fn connect(directory: &tempfile::TempDir) -> UnixStream {
    UnixStream::connect(directory.path().join("s"))
        .await
        .unwrap()
}

async fn all_of(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn who_is_slow_is_not_waited_for() {
    let (directory, asked, server) = served().await;
    // As many as there may be: nobody else has room before they are gone.
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut head = connect(&directory).await;
        head.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX-A: ")
            .await
            .unwrap();
        slow.push(head);
        slow.push(connect(&directory).await);
    }
    let mut good = connect(&directory).await;
    let whole = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    good.write_all(whole).await.unwrap();
    let answer = all_of(good).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for stream in slow {
        let answer = all_of(stream).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    let mut body = connect(&directory).await;
    let half = b"POST /v1/disks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Content-Length: 100\r\n\r\n{";
    body.write_all(half).await.unwrap();
    let answer = all_of(body).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    asked.stop.send(true).unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn requests_in_flight_are_answered_before_the_end() {
    let (directory, asked, server) = served().await;
    *asked.world.slow.lock().unwrap() = true;
    let text = attach("a").to_string();
    let length = text.len();
    let mut stream = connect(&directory).await;
    let request = format!(
        "POST /v1/disks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{text}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    asked.world.began.notified().await;
    asked.stop.send(true).unwrap();
    assert!(!server.is_finished());
    asked.world.go.notify_one();
    let answer = all_of(stream).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    server.await.unwrap();
}

#[tokio::test]
async fn what_is_not_http_is_answered_as_such_or_closed() {
    let (directory, asked, server) = served().await;
    let huge = format!("GET / HTTP/1.1\r\nX-A: {}\r\n\r\n", "x".repeat(64 << 10));
    for bytes in [
        &b"\0\x01\xff nonsense\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        huge.as_bytes(),
    ] {
        let mut stream = connect(&directory).await;
        let _ = stream.write_all(bytes).await;
        let answer = all_of(stream).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    asked.stop.send(true).unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn who_does_not_read_is_let_go() {
    let (directory, asked, server) = served().await;
    let mut deaf = connect(&directory).await;
    // Until neither side has room: then it is for the server to let go.
    let request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    let asking = async { while deaf.write_all(request).await.is_ok() {} };
    let ended = tokio::time::timeout(Duration::from_secs(20), asking).await;
    ended.unwrap();
    // It would otherwise be waited for at the end.
    asked.stop.send(true).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), server).await;
    ended.unwrap().unwrap();
}
