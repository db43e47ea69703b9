//! HTTP: what a server that is the right one, or stands before it, answers.
//! The call ends in time, takes little, denies nothing, and goes nowhere else.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::check;
use super::hostile::{Asked, Hostile, Stream, http};
use super::sites::{self, Host, Prelude, SECRETS, Site};

/// The most that one connection may take of an endless answer: what is taken
/// of a body, and what the buffers on the way hold.
const TAKEN_MAX: usize = 24 << 20;

/// What is answered.
#[derive(Clone)]
enum Attack {
    /// This, and then the end of the connection.
    Bytes(Vec<u8>),
    /// This, and then nothing, while the connection stays.
    Hangs(Vec<u8>),
    /// The first, and then the second again and again.
    Endless(Vec<u8>, Vec<u8>),
    /// A byte of it at a time.
    Drips(Vec<u8>),
}

fn bytes(text: &str) -> Attack {
    Attack::Bytes(text.as_bytes().to_vec())
}

fn page(status: &str) -> Attack {
    let body = b"<html><body>blocked by a proxy\x1b[31m\0</body></html>";
    Attack::Bytes(http(status, "Content-Type: text/html\r\n", body))
}

fn json(body: impl AsRef<[u8]>) -> Attack {
    let json = "Content-Type: application/json\r\n";
    Attack::Bytes(http("200 OK", json, body.as_ref()))
}

/// All attacks; `elsewhere` is a port where nobody may connect.
fn attacks(elsewhere: u16) -> Vec<(String, Attack)> {
    let mut all: Vec<(String, Attack)> = Vec::new();
    for status in [301, 302, 303, 307, 308] {
        for to in [
            format!("https://127.0.0.1:{elsewhere}/v1/x"),
            format!("http://127.0.0.1:{elsewhere}/latest/meta-data"),
            format!("//127.0.0.1:{elsewhere}/"),
        ] {
            let text = format!(
                "HTTP/1.1 {status} Elsewhere\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"
            );
            all.push((format!("{status} to {to}"), bytes(&text)));
        }
    }
    for status in [
        "400 Bad Request",
        "401 Unauthorized",
        "402 Payment Required",
        "403 Forbidden",
        "404 Not Found",
        "405 Method Not Allowed",
        "407 Proxy Authentication Required",
        "409 Conflict",
        "410 Gone",
        "418 I'm a teapot",
        "451 Unavailable For Legal Reasons",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "999 What",
    ] {
        all.push((format!("a page with {status}"), page(status)));
        let foreign = http(status, "", br#"{"message":"Forbidden"}"#);
        all.push((format!("JSON with {status}"), Attack::Bytes(foreign)));
    }
    for years in ["315360000000", "99999999999999999999999", "-1", "soon"] {
        let header = format!("Retry-After: {years}\r\n");
        let answer = http("429 Too Many Requests", &header, b"");
        all.push((format!("429 for {years}"), Attack::Bytes(answer)));
        let answer = http("503 Service Unavailable", &header, b"");
        all.push((format!("503 for {years}"), Attack::Bytes(answer)));
    }
    let deep = "[".repeat(100_000);
    let many = format!("{{{}}}", r#""data":{},"#.repeat(1000).trim_end_matches(','));
    for (what, body) in [
        ("a page that is a success", &b"<html>"[..]),
        ("nothing", b""),
        ("null", b"null"),
        ("an empty object", b"{}"),
        ("a list", b"[]"),
        ("NUL", b"{\"data\":\0}"),
        ("no UTF-8", b"{\"data\":\"\xff\xfe\"}"),
        ("a number beyond all", br#"{"data":{"latest_version":1e999},"expires_in":99999999999999999999999}"#),
        ("fields twice", br#"{"data":{"ttl":1},"data":{"ttl":2},"access_token":"a","access_token":"b","expires_in":1}"#),
        ("deep nesting", deep.as_bytes()),
        ("a thousand fields of one name", many.as_bytes()),
        ("a text that ends nowhere", b"{\"data\":\"aaaa"),
        ("a control character in a token", b"{\"access_token\":\"a\\r\\nX: y\",\"expires_in\":60,\"auth\":{\"client_token\":\"a\\r\\nX: y\",\"lease_duration\":1,\"renewable\":false}}"),
    ] {
        all.push((what.into(), json(body)));
    }
    let some = "HTTP/1.1 200 OK\r\n";
    for (what, head) in [
        ("a length that is longer", "Content-Length: 1000\r\n\r\n{}"),
        ("a length below zero", "Content-Length: -1\r\n\r\n{}"),
        (
            "a length beyond all",
            "Content-Length: 99999999999999999999999\r\n\r\n{}",
        ),
        (
            "two lengths",
            "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        ),
        (
            "length and chunks",
            "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        ),
        (
            "a chunk that is cut",
            "Transfer-Encoding: chunked\r\n\r\n10\r\n{}",
        ),
        (
            "a chunk without a size",
            "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        ),
        (
            "a chunk beyond all",
            "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
        ),
        ("a head that is cut", "Content-Le"),
        ("a header without a name", ": x\r\n\r\n"),
        (
            "a compressed body",
            "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\u{b}\x08\0",
        ),
    ] {
        all.push((what.into(), bytes(&format!("{some}{head}"))));
    }
    all.push(("no HTTP".into(), bytes("SSH-2.0-OpenSSH_9.2\r\n")));
    all.push(("HTTP 0.9".into(), bytes("{}")));
    all.push(("HTTP 2".into(), bytes("HTTP/2.0 200 OK\r\n\r\n")));
    all.push(("the end".into(), bytes("")));
    all.push((
        "an upgrade".into(),
        bytes("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    ));
    let head = |rest: &str| format!("{some}{rest}").into_bytes();
    all.push(("silence".into(), Attack::Hangs(Vec::new())));
    all.push((
        "a body that stops".into(),
        Attack::Hangs(head("Content-Length: 10\r\n\r\n{")),
    ));
    all.push((
        "a body without an end".into(),
        Attack::Endless(head("Connection: close\r\n\r\n"), vec![b' '; 64 << 10]),
    ));
    let chunk = [b"10000\r\n", &[b' '; 64 << 10][..], b"\r\n"].concat();
    all.push((
        "chunks without an end".into(),
        Attack::Endless(head("Transfer-Encoding: chunked\r\n\r\n"), chunk),
    ));
    all.push((
        "headers without an end".into(),
        Attack::Endless(head(""), b"X-More: of the same\r\n".repeat(100)),
    ));
    all.push((
        "a header without an end".into(),
        Attack::Endless(head("X-Long: "), vec![b'x'; 16 << 10]),
    ));
    all.push((
        "a refusal without an end".into(),
        Attack::Endless(
            b"HTTP/1.1 403 Forbidden\r\n\r\n".to_vec(),
            vec![b'x'; 64 << 10],
        ),
    ));
    let slow = http("200 OK", "", &[b' '; 1000]);
    all.push(("a byte at a time".into(), Attack::Drips(slow)));
    all.push((
        "a moment, again and again".into(),
        Attack::Drips(b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)),
    ));
    all
}

/// Does it to one connection; how much of it was taken.
fn attack(stream: &mut dyn Stream, attack: &Attack) -> usize {
    let mut taken = 0;
    let mut send = |stream: &mut dyn Stream, bytes: &[u8]| {
        let good = stream
            .write_all(bytes)
            .and_then(|()| stream.flush())
            .is_ok();
        taken += if good { bytes.len() } else { 0 };
        good
    };
    match attack {
        Attack::Bytes(bytes) => {
            send(stream, bytes);
        }
        Attack::Hangs(bytes) => {
            send(stream, bytes);
            // Until the other end gives up.
            let _ = stream.read(&mut [0; 64]);
        }
        Attack::Endless(first, again) => {
            let mut good = send(stream, first);
            while good {
                good = send(stream, again);
            }
        }
        Attack::Drips(bytes) => {
            for byte in bytes {
                if !send(stream, &[*byte]) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    taken
}

/// What a server has seen.
#[derive(Default)]
struct Seen {
    /// The most that one connection took.
    taken: AtomicUsize,
    compressed: AtomicUsize,
}

/// A server that answers with an attack, once it has let the host in if that
/// is of a stage of its own.
fn server(
    site: &Site,
    host: &Host,
    prelude: Option<Prelude>,
    attack: Attack,
) -> (Hostile, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let own = seen.clone();
    let serve = move |stream: &mut dyn Stream| {
        while let Some(asked) = Asked::read(stream) {
            let head = asked.head.to_lowercase();
            if head.contains("\r\naccept-encoding:") {
                own.compressed.fetch_add(1, Ordering::SeqCst);
            }
            // What the host has configured, which is what it connects to.
            let port = port_of(&head);
            match prelude.and_then(|prelude| prelude(&asked, port)) {
                Some(answer) if stream.write_all(&answer).is_ok() => {}
                _ => {
                    let taken = self::attack(stream, &attack);
                    own.taken.fetch_max(taken, Ordering::SeqCst);
                    return;
                }
            }
        }
    };
    let server = match site.is_plain {
        true => Hostile::plain(Box::new(serve)),
        false => Hostile::tls(&host.authority.server(), |_| (), Box::new(serve)),
    };
    (server, seen)
}

/// The port in the header `Host`.
pub fn port_of(head: &str) -> u16 {
    let host = head.lines().find_map(|line| line.strip_prefix("host: "));
    let port = host.and_then(|host| host.rsplit(':').next()?.trim().parse().ok());
    port.unwrap_or_default()
}

fn attacked(site: &Site, stage: usize, name: &str, attack: &Attack) {
    let what = format!("{}, stage {stage}: {name}", site.name);
    let host = Host::new();
    let prelude = if stage == 1 { None } else { site.prelude };
    let (server, seen) = server(site, &host, prelude, attack.clone());
    sites::eventually(&what, || {
        let error = site.client(&host, server.port).wrap().expect_err(&what);
        check(&error, &what);
        server.served() > 0
    });
    let taken = seen.taken.load(Ordering::SeqCst);
    assert!(taken < TAKEN_MAX, "{what}: {taken} bytes were taken");
    let compressed = seen.compressed.load(Ordering::SeqCst);
    assert_eq!(compressed, 0, "{what}: nothing compressed is wanted");
}

/// Each attack on one site, and at each stage of its calls.
fn all_attacks_on(name: &str) {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let attacks = &attacks(port);
    let sites = || sites::with_http().filter(|site| site.name.starts_with(name));
    assert!(sites().count() > 0, "no site is called {name}");
    let stages = sites().flat_map(|site| site.stages().map(move |stage| (site, stage)));
    let all: Vec<_> = stages
        .flat_map(|(site, stage)| attacks.iter().map(move |attack| (site, stage, attack)))
        .collect();
    sites::with_each(&all, |(site, stage, (name, attack))| {
        attacked(site, *stage, name, attack);
    });
    assert!(elsewhere.accept().is_err(), "somebody was sent elsewhere");
}

#[test]
fn vault_takes_no_harm() {
    all_attacks_on("vault with a token");
}

#[test]
fn logins_at_vault_take_no_harm() {
    all_attacks_on("vault with AppRole");
    all_attacks_on("vault in Kubernetes");
}

#[cfg(feature = "azure-keyvault")]
#[test]
fn azure_takes_no_harm() {
    all_attacks_on("azure");
}

#[cfg(feature = "aws-kms")]
#[test]
fn aws_takes_no_harm() {
    all_attacks_on("aws");
}

#[cfg(feature = "gcp-kms")]
#[test]
fn gcp_takes_no_harm() {
    all_attacks_on("gcp");
}

#[cfg(feature = "broker")]
#[test]
fn a_broker_s_host_takes_no_harm() {
    all_attacks_on("broker");
}

/// No site is left out above.
#[test]
fn every_site_with_http_is_attacked() {
    let attacked = [
        "vault with a token",
        "vault with AppRole",
        "vault in Kubernetes",
        "azure",
        "aws",
        "gcp",
        "broker",
    ];
    for site in sites::with_http() {
        assert!(
            attacked.iter().any(|name| site.name.starts_with(name)),
            "add a test for {}",
            site.name
        );
    }
}

/// Two answers to one question: the second is not taken for that of the next.
#[test]
fn an_answer_that_nobody_asked_for_answers_nothing() {
    use sealblk::kms::http::{BaseUrl, Http, Request};
    use sealblk::kms::tls;

    let host = Host::new();
    let serve = |stream: &mut dyn Stream| {
        while let Some(asked) = Asked::read(stream) {
            let name = asked.head.split(' ').nth(1).unwrap().to_owned();
            let own = http("200 OK", "", name.as_bytes());
            let evil = http("200 OK", "", SECRETS[0].as_bytes());
            if stream.write_all(&[own, evil].concat()).is_err() {
                return;
            }
        }
    };
    let server = Hostile::tls(&host.authority.server(), |_| (), Box::new(serve));
    let http = Http::new(tls::Settings {
        ca_files: vec![host.path("ca.pem")],
        client: None,
    });
    let endpoint: BaseUrl = format!("https://127.0.0.1:{}", server.port)
        .parse()
        .unwrap();
    let answered = sealblk::runtime::block_on(async {
        let mut answered = 0;
        for number in 0..50 {
            let name = format!("question-{number}");
            let request = Request::new(reqwest::Method::GET, endpoint.join([&*name]));
            // It may be refused, as the connection is garbled.
            if let Ok(reply) = http.send(&endpoint, request).await {
                assert_eq!(reply.body[..], *format!("/{name}").as_bytes());
                answered += 1;
            }
        }
        answered
    });
    assert!(answered.unwrap() > 0);
}

/// A host that is called `localhost` is this one, for who speaks without TLS.
#[test]
fn what_goes_without_tls_stays_on_this_host() {
    for refused in [
        "http://kms.example",
        "http://localhost.example",
        "http://10.0.0.1",
    ] {
        assert!(refused.parse::<sealblk::kms::http::BaseUrl>().is_err());
    }
}
