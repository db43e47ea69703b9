//! What those can do who have shown nothing, or who have a certificate and
//! mean no good: not keep the others out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sealblk::kms::broker::protocol::{CALL_PATH, CHALLENGE_PATH, ProblemKind};

use super::broker::{Broker, DEADLINE, Host, Site, eventually};
use super::client::{Client, Stream, read};
use super::policy::ALL;

/// Asks for a challenge on a connection that stays open.
pub fn ask_for_challenge(stream: &mut Stream) {
    let request = format!("POST {CHALLENGE_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let (_, length) = head.split_once("content-length: ").unwrap();
    let length = length.lines().next().unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).unwrap();
}

fn start(settings: &str) -> (Site, Host, Broker) {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let broker = site.broker("broker", settings, &site.file_key_set("prod", ""));
    (site, host, broker)
}

fn plain(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", broker.port())).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Whether the other end has closed it.
fn is_closed(mut stream: &TcpStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    match stream.read(&mut [0; 64]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn connections_that_say_nothing_displace_each_other_and_nobody_else() {
    let (site, host, mut broker) = start("handshakes = 32\nhandshake_timeout = \"10m\"");
    let client = Client::new(&site, &host, &broker);
    let silent: Vec<TcpStream> = (0..400).map(|_| plain(&broker)).collect();
    for _ in 0..3 {
        client.round_trip("prod");
    }
    eventually("all but so many are closed", || {
        let open = silent.iter().filter(|one| !is_closed(one)).count();
        (open <= 32).then_some(())
    });
    assert!(broker.metric(&["handshakes_failed_total", "displaced"]) >= 368.0);
    assert!(broker.is_running());
}

#[test]
fn connections_that_say_nothing_are_closed_in_time() {
    let (site, host, broker) = start("handshake_timeout = \"5s\"\nrequest_timeout = \"5s\"");
    let client = Client::new(&site, &host, &broker);
    let silent = plain(&broker);
    // Half of a TLS record.
    let mut begun = plain(&broker);
    begun.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    // Past TLS, and then nothing; and half of a head.
    let mut idle = client.connect();
    ask_for_challenge(&mut idle);
    let mut slow = client.connect();
    slow.write_all(b"POST /v1/broker/ca").unwrap();
    eventually("all four are closed", || {
        let closed = [&silent, &begun, &idle.sock, &slow.sock].map(is_closed);
        // What TLS says at the end may be there to be read before.
        closed.iter().all(|closed| *closed).then_some(())
    });
    client.round_trip("prod");
}

#[test]
fn bodies_that_are_huge_slow_or_garbage_are_refused() {
    let (site, host, mut broker) = start("request_timeout = \"5s\"");
    let client = Client::new(&site, &host, &broker);
    let answer = |head: &str, body: &[u8]| {
        let mut stream = client.connect();
        let head = format!("POST {CALL_PATH} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // It may be refused before all of it was sent.
        let _ = stream.write_all(body).and_then(|()| stream.flush());
        let (status, body) = read(&mut stream).expect("no answer");
        let problem: sealblk::kms::broker::protocol::Problem =
            serde_json::from_slice(&body).unwrap();
        (status, problem.problem)
    };
    let large = vec![b'x'; (64 << 10) + 1];
    use ProblemKind::{Malformed, TooLarge, Version};
    assert_eq!(answer("Content-Length: 99999999999", b""), (413, TooLarge));
    assert_eq!(answer("Content-Length: 65537", &large), (413, TooLarge));
    let chunk = [b"10001\r\n", &large[..], b"\r\n0\r\n\r\n"].concat();
    assert_eq!(
        answer("Transfer-Encoding: chunked", &chunk),
        (413, TooLarge)
    );
    let start = Instant::now();
    assert_eq!(answer("Content-Length: 100", b"{"), (408, Malformed));
    assert!(start.elapsed() >= Duration::from_secs(5));
    for body in [
        &b""[..],
        b"{}",
        b"\0\xff\x80",
        b"[[[[[[[[[[[[[[[[[[[[",
        br#"{"version":1,"host":"hv1","enc":"!","ciphertext":""}"#,
        br#"{"version":1,"host":"hv1","enc":"","ciphertext":"","more":1}"#,
    ] {
        let length = format!("Content-Length: {}", body.len());
        assert_eq!(answer(&length, body), (400, Malformed), "{body:?}");
    }
    let frame = br#"{"version":2,"host":"hv1","enc":"","ciphertext":""}"#;
    let length = format!("Content-Length: {}", frame.len());
    assert_eq!(answer(&length, frame), (400, Version));
    let frame = br#"{"version":1,"host":"hv1","enc":"AAAA","ciphertext":"AAAA"}"#;
    let length = format!("Content-Length: {}", frame.len());
    assert_eq!(answer(&length, frame), (403, ProblemKind::Unknown));

    for (method, path) in [
        ("GET", CALL_PATH),
        ("POST", "/"),
        ("DELETE", "/v1/broker/health"),
    ] {
        assert_eq!(
            client.http(method, path, b"").unwrap().0,
            404,
            "{method} {path}"
        );
    }
    // No TLS at all, and no HTTP within.
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100_000]] {
        let mut stream = plain(&broker);
        let _ = stream.write_all(garbage);
        let mut stream = client.connect();
        let _ = stream.write_all(garbage);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    client.round_trip("prod");
    assert!(broker.is_running());
}

#[test]
fn one_host_does_not_keep_the_others_out() {
    let site = Site::new();
    let (greedy, modest) = (site.host("hv1"), site.host("hv2"));
    site.policy(&[&greedy, &modest], ALL);
    let settings = "connections = 12\nconnections_of_host = 8\nrequest_timeout = \"10m\"";
    let broker = site.broker("broker", settings, &site.file_key_set("prod", ""));
    let client = Client::new(&site, &greedy, &broker);
    let mut held: Vec<Stream> = Vec::new();
    for _ in 0..8 {
        let mut stream = client.connect();
        ask_for_challenge(&mut stream);
        held.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(client.http("POST", CHALLENGE_PATH, b""), None);
    }
    let other = Client::new(&site, &modest, &broker);
    for _ in 0..5 {
        other.round_trip("prod");
    }
    drop(held);
    eventually("there is room again", || {
        client.http("POST", CHALLENGE_PATH, b"").map(|_| ())
    });
    client.round_trip("prod");
    assert!(broker.metric(&["connections_closed_total", "\"host\""]) >= 20.0);
}

#[test]
fn whoever_has_a_certificate_alone_does_not_fill_the_log() {
    let (site, _, broker) = start("");
    let stranger = site.host("stranger");
    let client = Client::new(&site, &stranger, &broker);
    for _ in 0..100 {
        assert_eq!(client.challenge().unwrap_err().0, 403);
    }
    let lines = broker.audit();
    let refused = lines.iter().filter(|line| line["event"] == "call_refused");
    assert_eq!(refused.count(), 60);
    assert_eq!(broker.metric(&["sealblk_broker_refused_total"]), 100.0);
}
