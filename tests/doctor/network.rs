//! Names, connections, certificates and clocks.

use std::io::{Read, Write};
use std::net::TcpListener;

use openssl::ssl::{SslAcceptor, SslMethod};

use super::certificates::{Authority, Issued};
use super::faulty_proxy::{Fault, Proxy};
use super::keys::vault;
use super::lab::Host;
use super::openbao::{OpenBao, free_port};

/// A host whose one endpoint is that, which needs nothing to be tried.
fn host(endpoint: &str, more: &str) -> Host {
    let host = Host::with("");
    let token = host.path("token");
    std::fs::write(&token, "s.token-of-nobody").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&token, mode).unwrap();
    let settings = format!(
        "[key_sets.prod]\nprovider = \"vault\"\nendpoints = [{endpoint:?}]\nkey = \"disks\"\n\
         auth = {{ method = \"token\", token = {token:?} }}\ntimeout = \"2s\"\n{more}\n"
    );
    std::fs::write(host.path("sealblk.toml"), settings).unwrap();
    host
}

const AFTER_TLS: [&str; 9] = [
    "service", "clock", "identity", "read_key", "key", "expiry", "version", "wrap", "unwrap",
];

#[test]
fn a_name_that_is_none() {
    host("https://kms.invalid:8200", "")
        .examine()
        .only_failure(
            "dns",
            9,
            &["kms.invalid has no address", "check the host name"],
        )
        .each(&["tcp", "tls"], "skip")
        .each(&AFTER_TLS, "skip");
}

#[test]
fn a_port_where_nobody_listens() {
    let told = host(&format!("https://127.0.0.1:{}", free_port()), "").examine();
    told.only_failure(
        "tcp",
        9,
        &["refuses the connection", "check that the service runs"],
    )
    .each(&["dns"], "ok")
    .each(&["tls"], "skip")
    .each(&AFTER_TLS, "skip");
}

#[test]
fn a_service_that_is_silent() {
    let proxy = Proxy::to(free_port());
    proxy.set(Fault::Silent);
    host(&format!("https://127.0.0.1:{}", proxy.port()), "")
        .examine()
        .only_failure("tls", 9, &["says nothing within 2s"])
        .each(&["tcp"], "ok")
        .each(&AFTER_TLS, "skip");
    host(&format!("http://127.0.0.1:{}", proxy.port()), "")
        .examine()
        .only_failure("service", 9, &["did not answer within"])
        .each(&["tls"], "skip");
}

#[test]
fn something_else_listens_there() {
    let proxy = Proxy::to(free_port());
    proxy.set(Fault::http("200 OK", "", "<html>Welcome</html>"));
    host(&format!("https://127.0.0.1:{}", proxy.port()), "")
        .examine()
        .only_failure("tls", 9, &["does not speak TLS", "check the port"]);
    host(&format!("http://127.0.0.1:{}", proxy.port()), "")
        .examine()
        .only_failure("service", 11, &["not as Vault or OpenBao do"]);
}

#[test]
fn a_clock_that_is_wrong() {
    let proxy = Proxy::to(free_port());
    let body = r#"{"initialized":true,"sealed":false,"standby":false,"version":"9.9"}"#;
    let at = |date: &str| {
        proxy.set(Fault::http("200 OK", &format!("Date: {date}\r\n"), body));
        host(&format!("http://127.0.0.1:{}", proxy.port()), "").examine()
    };
    at("Sun, 06 Nov 1994 08:49:37 GMT").expect("clock", "warn", &["ahead of", "NTP"]);
    at("Sun, 06 Nov 2094 08:49:37 GMT").expect("clock", "warn", &["behind", "NTP"]);
    at("yesterday").expect("clock", "skip", &["tells no time"]);
}

/// A TLS server that asks for no certificate, and hangs up after the handshake.
fn tls_server(issued: &Issued) -> u16 {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(&issued.certificate).unwrap();
    acceptor.set_private_key(&issued.key).unwrap();
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if let Ok(mut stream) = acceptor.accept(stream.unwrap()) {
                let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.read(&mut [0]);
            }
        }
    });
    port
}

fn with_certificate(issued: &Issued, trusted: &Authority) -> super::lab::Told {
    let host = host(&format!("https://127.0.0.1:{}", tls_server(issued)), "");
    let ca = host.path("ca.pem");
    std::fs::write(&ca, trusted.certificate_pem()).unwrap();
    let config = host.path("sealblk.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(config, format!("{text}ca_file = {ca:?}\n")).unwrap();
    host.examine()
}

#[test]
fn certificates_that_are_not_to_be_trusted_are_told_apart() {
    let authority = Authority::new("the right authority");
    let other = Authority::new("some other authority");
    with_certificate(&authority.server(), &other)
        .only_failure(
            "tls",
            9,
            &[
                "an authority that is not trusted here",
                "issued by CN=the right authority",
                "ca_file",
            ],
        )
        .each(&AFTER_TLS, "skip");
    with_certificate(&authority.server_at("10.9.8.7", (-1, 30)), &authority).only_failure(
        "tls",
        9,
        &["is for another host", "10.9.8.7"],
    );
    with_certificate(&authority.server_at("127.0.0.1", (-30, -1)), &authority).only_failure(
        "tls",
        9,
        &["has expired", "(0 days)"],
    );
    with_certificate(&authority.server_at("127.0.0.1", (2, 30)), &authority).only_failure(
        "tls",
        9,
        &["is not valid yet", "clock of this host"],
    );
}

#[test]
fn a_certificate_that_ends_soon_is_warned_of() {
    let authority = Authority::new("authority");
    let told = with_certificate(&authority.server_at("127.0.0.1", (-300, 9)), &authority);
    told.expect(
        "tls",
        "warn",
        &[
            "CN=server",
            "issued by CN=authority",
            "ends soon",
            "renewed",
        ],
    );
    // It is not by itself near its end, if that was its whole time.
    let told = with_certificate(&authority.server_at("127.0.0.1", (-1, 9)), &authority);
    told.expect("tls", "ok", &[]);
    // The file is looked at as well.
    let old = Authority::valid("old authority", (-300, 5));
    let told = with_certificate(&old.server(), &old);
    told.expect("credential", "ok", &["token"]);
    let ca = told.all_named("credential")[1];
    assert_eq!(ca["status"], "warn", "{ca}");
    assert!(
        ca["message"].as_str().unwrap().contains("old authority"),
        "{ca}"
    );
}

#[test]
fn a_service_on_this_host_is_warned_of() {
    let server = OpenBao::start_tls();
    let told = vault(&server).examine();
    told.expect(
        "placement",
        "warn",
        &["127.0.0.1 is an address of this host"],
    );
    assert_eq!(told.status, 0, "a warning is no failure");
    let server = format!("https://127.0.0.1:{}", free_port());
    host(&server, "")
        .examine()
        .expect("placement", "warn", &["127.0.0.1"]);
}
