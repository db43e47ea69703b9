//! TLS: what a server shows or does before there is a connection. Nothing of
//! this host is told to it, and nothing that it does is a denial.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openssl::ssl::{SslAcceptorBuilder, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;

use super::certificates::{Authority, Issued};
use super::check;
use super::hostile::Hostile;
use super::sites::{self, Host, Site};

/// What is wrong with a server.
struct Attack {
    name: &'static str,
    identity: fn(&Authority) -> Issued,
    configure: fn(&mut SslAcceptorBuilder),
    /// Any of these is told.
    told: &'static [&'static str],
}

fn good(authority: &Authority) -> Issued {
    authority.server()
}

fn as_it_is(_: &mut SslAcceptorBuilder) {}

/// The server wants a certificate of an authority that nobody here has.
fn mutual(acceptor: &mut SslAcceptorBuilder, version: SslVersion) {
    acceptor.set_max_proto_version(Some(version)).unwrap();
    let mut store = X509StoreBuilder::new().unwrap();
    let other = Authority::new("theirs").itself().certificate;
    store.add_cert(other).unwrap();
    acceptor.set_verify_cert_store(store.build()).unwrap();
    acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
}

const ATTACKS: &[Attack] = &[
    Attack {
        name: "TLS 1.1 at most",
        identity: good,
        configure: |acceptor| {
            acceptor.set_min_proto_version(None).unwrap();
            acceptor
                .set_max_proto_version(Some(SslVersion::TLS1_1))
                .unwrap();
            acceptor.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
        },
        told: &["no version or cipher of TLS in common"],
    },
    Attack {
        name: "TLS 1.2 with CBC alone",
        identity: good,
        configure: |acceptor| {
            acceptor
                .set_max_proto_version(Some(SslVersion::TLS1_2))
                .unwrap();
            acceptor
                .set_cipher_list("ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256")
                .unwrap();
        },
        told: &["no version or cipher", "share no cipher"],
    },
    Attack {
        name: "a certificate for another address",
        identity: |authority| authority.server_at("127.0.0.2", (-1, 1)),
        configure: as_it_is,
        told: &["is for another host"],
    },
    Attack {
        name: "a certificate for a name in place of the address",
        identity: |authority| authority.server_named("localhost"),
        configure: as_it_is,
        told: &["is for another host"],
    },
    Attack {
        name: "an authority of the same name",
        identity: |_| Authority::new("ours").server(),
        configure: as_it_is,
        told: &["authority that is not trusted"],
    },
    Attack {
        name: "a certificate that vouches for itself",
        identity: |_| Authority::new("127.0.0.1").itself(),
        configure: as_it_is,
        told: &["authority that is not trusted", "is not acceptable"],
    },
    Attack {
        name: "an expired certificate",
        identity: |authority| authority.server_at("127.0.0.1", (-3, -1)),
        configure: as_it_is,
        told: &["has expired"],
    },
    Attack {
        name: "a certificate of the future",
        identity: |authority| authority.server_at("127.0.0.1", (1, 2)),
        configure: as_it_is,
        told: &["is not valid yet"],
    },
    Attack {
        name: "the certificate of a client",
        identity: |authority| authority.client("hv1"),
        configure: as_it_is,
        told: &["is not one for servers", "is for another host"],
    },
    Attack {
        name: "a certificate that is wanted, with TLS 1.2",
        identity: good,
        configure: |acceptor| mutual(acceptor, SslVersion::TLS1_2),
        told: &["client certificate"],
    },
    Attack {
        name: "a certificate that is wanted, with TLS 1.3",
        identity: good,
        configure: |acceptor| mutual(acceptor, SslVersion::TLS1_3),
        told: &["client certificate"],
    },
];

fn attacked(site: &Site, host: &Host, attack: &Attack) {
    let what = format!("{}: {}", site.name, attack.name);
    let identity = (attack.identity)(&host.authority);
    let server = Hostile::tls(&identity, attack.configure, Box::new(|_| ()));
    let mut said = String::new();
    let told = (0..sites::TRIES).any(|_| {
        let error = site.client(host, server.port).wrap().expect_err(&what);
        check(&error, &what);
        said = error.to_string();
        attack.told.iter().any(|told| said.contains(told))
    });
    assert!(told, "{what}: {said}");
    assert_eq!(server.served(), 0, "{what}: it was told something");
}

#[test]
fn whoever_is_not_the_server_is_told_nothing_and_denies_nothing() {
    let host = &Host::new();
    let all: Vec<(&Site, &Attack)> = sites::with_tls()
        .flat_map(|site| ATTACKS.iter().map(move |attack| (site, attack)))
        .collect();
    sites::with_each(&all, |(site, attack)| attacked(site, host, attack));
}

/// What answers with something else than TLS, or never ends.
#[test]
fn what_is_no_handshake_ends_in_time() {
    let host = &Host::new();
    let dialects: [(&str, &[u8], bool); 6] = [
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n", false),
        ("garbage", &[0xff; 100], false),
        ("nothing", b"", false),
        ("silence", b"", true),
        (
            "a handshake that never ends",
            &[22, 3, 3, 0x3f, 0xff, 2, 0, 0x3f, 0xfb],
            true,
        ),
        (
            "an alert of an unknown kind",
            &[21, 3, 3, 0, 2, 2, 0xff],
            false,
        ),
    ];
    let all: Vec<_> = sites::with_tls()
        .flat_map(|site| dialects.iter().map(move |dialect| (site, dialect)))
        .collect();
    sites::with_each(&all, |(site, (dialect, bytes, goes_on))| {
        let what = format!("{}: {dialect}", site.name);
        let server = Raw::start(bytes, *goes_on);
        let error = site.client(host, server.port).wrap().expect_err(&what);
        check(&error, &what);
    });
}

/// A server that greets everybody with the same bytes, and then closes the
/// connection or goes on with a byte at a time.
struct Raw {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Raw {
    fn start(bytes: &'static [u8], goes_on: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (mut stream, stopped) = (stream.unwrap(), stopped.clone());
                std::thread::spawn(move || {
                    let mut good = stream.write_all(bytes).is_ok();
                    // A byte now and then, so that each read has its answer in time.
                    while good && goes_on && !stopped.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(100));
                        good = bytes.is_empty() || stream.write_all(&[0]).is_ok();
                    }
                });
            }
        });
        Raw { port, stop }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Nobody keeps a trust that was taken back: the same client, after the
/// authority was replaced in its file.
#[test]
fn an_authority_that_was_replaced_is_not_trusted_any_more() {
    let all: Vec<&Site> = sites::with_tls().collect();
    sites::with_each(&all, |site| {
        let host = Host::new();
        let server = Hostile::tls(&host.authority.server(), |_| (), Box::new(|_| ()));
        let client = site.client(&host, server.port);
        let ask = || {
            let error = client.wrap().expect_err(site.name);
            check(&error, site.name);
            error.to_string()
        };
        sites::eventually("it was asked", || {
            ask();
            server.served() > 0
        });
        host.write("ca.pem", &Authority::new("new").certificate_pem());
        sites::eventually("it is not trusted", || {
            ask().contains("authority that is not trusted")
        });
        let before = server.served();
        ask();
        assert_eq!(
            server.served(),
            before,
            "{}: it was told something",
            site.name
        );
    });
}
