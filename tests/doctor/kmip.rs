//! Keys on a real KMIP server.

use sealblk::kms::kmip::Mode;
use sealblk::runtime::block_on;

use super::lab::{Host, Told};
use super::pykmip::PyKmip;

fn made(server: &PyKmip, name: &str) -> String {
    block_on(server.client(Mode::Get).create_key(name))
        .unwrap()
        .unwrap()
}

fn examine(server: &PyKmip, client: &str, name: &str, mode: &str) -> Told {
    let path = |name: String| server.path(&name);
    Host::with(&format!(
        "provider = \"kmip\"\nendpoints = [\"127.0.0.1:{}\"]\nkey_name = {name:?}\nmode = {mode:?}\n\
         ca_file = {:?}\nclient_cert = {:?}\nclient_key = {:?}\ntimeout = \"20s\"",
        server.port,
        path("ca.pem".into()),
        path(format!("{client}.pem")),
        path(format!("{client}.key")),
    ))
    .examine()
}

#[test]
fn a_key_that_works_is_said_to_work() {
    let server = PyKmip::start();
    made(&server, "works");
    let told = examine(&server, "host", "works", "get");
    assert_eq!(told.status, 0, "{}", told.stderr);
    told.each(
        &[
            "dns", "tcp", "tls", "service", "identity", "read_key", "key", "expiry", "version",
            "wrap", "unwrap",
        ],
        "ok",
    )
    .expect("clock", "skip", &["tells no time"])
    .expect("service", "ok", &["KMIP 2.0"])
    .expect("identity", "ok", &["client certificate", "host.pem"]);
    assert_eq!(told.all_named("credential").len(), 3);
}

#[test]
fn what_is_wrong_with_a_key_is_said() {
    let server = PyKmip::shared();
    let told = examine(&server, "host", "doctor-absent", "get");
    assert_eq!(told.status, 3);
    told.expect("read_key", "fail", &["doctor-absent"]);
    let id = made(&server, "doctor-revoked");
    server.revoke(&id, true);
    let told = examine(&server, "host", "doctor-revoked", "get");
    assert_eq!(told.status, 8);
    told.expect("read_key", "ok", &[])
        .expect("key", "fail", &["revoked as compromised"])
        .expect("wrap", "fail", &["revoked as compromised"])
        .expect("unwrap", "fail", &["revoked as compromised"]);
}

#[test]
fn a_client_certificate_that_is_not_taken() {
    let server = PyKmip::shared();
    made(&server, "doctor-expired");
    server.place("expired", &server.authority.client_valid("host", (-30, -1)));
    let told = examine(&server, "expired", "doctor-expired", "get");
    assert_eq!(told.status, 8);
    let ended = told.all_named("credential");
    let ended = ended
        .iter()
        .find(|check| check["status"] == "fail")
        .unwrap();
    assert!(
        ended["message"].as_str().unwrap().contains("expired.pem"),
        "{ended}"
    );
    told.expect("tls", "fail", &["expired"]);

    // Of an authority that the server does not know.
    let stranger = super::certificates::Authority::new("stranger");
    server.place("stranger", &stranger.client("host"));
    let told = examine(&server, "stranger", "doctor-expired", "get");
    assert_eq!(told.status, 9);
    let failed = told
        .checks
        .iter()
        .find(|check| check["status"] == "fail")
        .unwrap();
    assert!(
        ["tls", "service"].contains(&failed["name"].as_str().unwrap()),
        "{failed}"
    );
    told.each(&["read_key", "wrap", "unwrap"], "skip");
}
