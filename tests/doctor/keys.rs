//! Identities, permissions, keys and replicas at a real OpenBao.

use serde_json::{Value, json};

use super::faulty_proxy::{Fault, Proxy};
use super::lab::{Host, Told};
use super::needles::assert_absent;
use super::openbao::OpenBao;

/// The settings of a key at these endpoints, with a token from a file.
fn settings(server: &OpenBao, endpoints: &[String], token: &str, more: &str) -> Host {
    let file = server.write("token", token);
    let ca = match server.url().starts_with("https") {
        true => format!("ca_file = {:?}", server.ca_file()),
        false => String::new(),
    };
    Host::with(&format!(
        "provider = \"vault\"\nendpoints = {endpoints:?}\nkey = \"disks\"\n\
         auth = {{ method = \"token\", token = {file:?} }}\ntimeout = \"20s\"\n{ca}\n{more}"
    ))
}

/// A server with a key, and a host that may use it.
pub fn vault(server: &OpenBao) -> Host {
    server.mount("transit");
    server.post("transit/keys/disks", json!({}));
    server.permit("sealblk", "transit", "disks");
    let token = server.token("sealblk");
    settings(server, &[server.url()], &token, "")
}

fn examine_with(server: &OpenBao, token: &str, more: &str) -> Told {
    settings(server, &[server.url()], token, more).examine()
}

const ALL: [&str; 12] = [
    "dns", "tcp", "tls", "service", "clock", "identity", "read_key", "key", "expiry", "version",
    "wrap", "unwrap",
];

#[test]
fn a_key_set_that_works_is_said_to_work() {
    let server = OpenBao::start_tls();
    let host = vault(&server);
    let told = host.examine();
    assert_eq!(told.status, 0, "{}", told.stderr);
    told.each(&ALL, "ok")
        .each(&["configuration", "credential"], "ok")
        .expect("replication", "skip", &["one endpoint"])
        .expect("tls", "ok", &["issued by", "valid until"])
        .expect("service", "ok", &["unsealed and active"])
        .expect(
            "identity",
            "ok",
            &["the token in", "policies default, sealblk", "minutes"],
        )
        .expect("version", "ok", &["follows the latest one, which is 1"]);
    // What is shown to people has the same, and no token.
    let output = host.doctor(&[]);
    let shown = [output.stdout, output.stderr].concat();
    let token = server.token("sealblk");
    assert_absent(&shown, token.as_bytes(), "the doctor");
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains(&format!(" at {}", server.url())), "{shown}");
}

/// A login that is made for the examination, and the key pinned.
#[test]
fn an_approle_and_a_pinned_version_are_examined() {
    let server = OpenBao::start();
    vault(&server);
    server.post("transit/keys/disks/rotate", json!({}));
    server.post("sys/auth/approle", json!({"type": "approle"}));
    let role = "auth/approle/role/host";
    server.post(
        role,
        json!({"token_policies": ["sealblk"], "token_ttl": "1h"}),
    );
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let id = text(&server.get(&format!("{role}/role-id"))["data"]["role_id"]);
    let secret = server.post(&format!("{role}/secret-id"), json!({}));
    let secret = text(&secret["data"]["secret_id"]);
    let host = |secret: &str| {
        let file = server.write("secret-id", secret);
        Host::with(&format!(
            "provider = \"vault\"\nendpoints = [{:?}]\nkey = \"disks\"\nversion = \"1\"\n\
             auth = {{ method = \"approle\", role_id = {id:?}, secret_id = {file:?} }}",
            server.url()
        ))
    };
    let told = host(&secret).examine();
    assert_eq!(told.status, 0, "{}", told.stderr);
    told.expect(
        "identity",
        "ok",
        &["AppRole at approle", "secret-id", "approle"],
    )
    .expect("tls", "skip", &["on this host"])
    .expect("version", "warn", &["pinned to 1, and 2 is the latest"])
    .expect("wrap", "ok", &["version 1 of disks"]);
    host("00000000-wrong")
        .examine()
        .only_failure("identity", 8, &["does not let this host log in", "AppRole"])
        .each(&["read_key", "wrap", "unwrap"], "skip");
}

#[test]
fn a_token_that_is_none() {
    let server = OpenBao::start();
    vault(&server);
    let told = examine_with(&server, "s.nothing-of-the-kind", "");
    assert_eq!(told.status, 8);
    told.expect(
        "identity",
        "fail",
        &["nothing else either", "put a token that is valid"],
    )
    .expect("read_key", "fail", &["does not permit"]);
    let unreadable = Host::with(&format!(
        "provider = \"vault\"\nendpoints = [{:?}]\nkey = \"disks\"\n\
         auth = {{ method = \"token\", token = \"/nonexistent/token\" }}",
        server.url()
    ));
    let told = unreadable.examine();
    assert_eq!(told.status, 3);
    told.expect("credential", "fail", &["token:", "does not exist"])
        .expect("identity", "fail", &["does not exist"]);
}

fn token_with(server: &OpenBao, policy: &str) -> String {
    server.post("sys/policies/acl/some", json!({"policy": policy}));
    server.token("some")
}

#[test]
fn each_permission_is_told_apart() {
    let server = OpenBao::start();
    vault(&server);
    let rule = |operation: &str, capability: &str| {
        format!("path \"transit/{operation}/disks\" {{ capabilities = [{capability:?}] }}\n")
    };
    let (read, encrypt, decrypt) = (
        rule("keys", "read"),
        rule("encrypt", "update"),
        rule("decrypt", "update"),
    );
    let told = |policy: &[&String]| {
        let policy: String = policy.iter().map(|rule| rule.as_str()).collect();
        examine_with(&server, &token_with(&server, &policy), "")
    };
    told(&[&read, &decrypt])
        .only_failure("wrap", 8, &["does not permit transit/encrypt/disks"])
        .each(&["identity", "read_key", "key", "unwrap"], "ok");
    told(&[&read, &encrypt])
        .only_failure("unwrap", 8, &["does not permit transit/decrypt/disks"])
        .each(&["identity", "read_key", "key", "wrap"], "ok");
    told(&[&encrypt, &decrypt])
        .only_failure("read_key", 8, &["does not permit transit/keys/disks"])
        .each(&["identity", "unwrap"], "ok")
        .each(&["wrap", "key"], "skip");
    let nothing = told(&[&rule("hmac", "update")]);
    nothing
        .each(&["read_key", "unwrap"], "fail")
        // It may look itself up, so it is one.
        .each(&["identity"], "ok");
}

#[test]
fn keys_that_cannot_be_used() {
    let server = OpenBao::start();
    vault(&server);
    server.permit("all", "transit", "*");
    let token = server.token("all");
    let told = |more: &str| examine_with(&server, &token, more);
    // Missing: the name is replaced in the settings.
    let missing = settings(&server, &[server.url()], &token, "");
    let config = missing.path("sealblk.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(config, text.replace("\"disks\"", "\"absent\"")).unwrap();
    let absent = missing.examine();
    assert_eq!(absent.status, 3);
    absent.expect("read_key", "fail", &["has no transit/keys/absent"]);

    // A version that may be used no more.
    server.post("transit/keys/disks/rotate", json!({}));
    server.post(
        "transit/keys/disks/config",
        json!({"min_decryption_version": 2}),
    );
    let old = told("version = \"1\"");
    assert_eq!(old.status, 8);
    old.each(&["identity", "read_key"], "ok")
        .expect("key", "fail", &["version 1"])
        .expect("wrap", "fail", &[])
        .expect("unwrap", "fail", &["below the minimum"]);
    assert_eq!(told("").status, 0, "the latest one works");
    told("version = \"7\"").expect("read_key", "fail", &["no version 7"]);
}

#[test]
fn a_sealed_service() {
    let server = OpenBao::start_tls();
    let host = vault(&server);
    server.seal();
    host.examine()
        .only_failure("service", 9, &["is sealed", "unseal"])
        .each(&["dns", "tcp", "tls"], "ok")
        .each(&["clock", "identity", "read_key", "wrap", "unwrap"], "skip");
}

#[test]
fn replicas_have_to_share_their_keys() {
    let server = OpenBao::start();
    vault(&server);
    let token = server.token("sealblk");
    let proxy = Proxy::to(server.port());
    let second = format!("http://127.0.0.1:{}", proxy.port());
    let both = settings(&server, &[server.url(), second.clone()], &token, "");
    let told = both.examine();
    assert_eq!(told.status, 0, "{}", told.stderr);
    told.expect("replication", "ok", &["each other one unwraps"]);
    assert_eq!(told.all_named("wrap").len(), 2);

    // One of the two is down: the other is examined all the same.
    proxy.set(Fault::Refuse);
    let told = both.examine();
    told.only_failure("tcp", 9, &[])
        .expect("replication", "skip", &["fewer than two"]);
    assert_eq!(told.all_named("wrap")[0]["status"], "ok");
    assert_eq!(told.all_named("wrap")[1]["status"], "skip");

    // Another service, where a key has the same name and the token is known.
    let other = OpenBao::start();
    vault(&other);
    let (status, id) = (other.status("transit/keys/disks"), "known-to-both-servers");
    assert_eq!(status, 200);
    for server in [&server, &other] {
        server.post(
            "auth/token/create-orphan",
            json!({"policies": ["sealblk"], "id": id, "ttl": "2d"}),
        );
    }
    let told = settings(&server, &[server.url(), other.url()], id, "").examine();
    assert_eq!(told.status, 8);
    told.each(&["wrap", "unwrap"], "ok").expect(
        "replication",
        "fail",
        &["it does not unwrap what", &server.url()],
    );
    let failed = told.all_named("replication");
    assert_eq!(failed.len(), 2, "each way");
    assert_eq!(failed[0]["endpoint"], other.url());
}
