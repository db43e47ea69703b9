//! How the `vault` provider logs in, keeps its token, and what it refuses to
//! do, against a real OpenBao. What all providers do is in `kms_conformance`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use certificates::Authority;
use openbao::OpenBao;
use sealblk::error::{Explain, Kind};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::vault::{Auth, RoleId, Settings, VaultProvider};
use sealblk::kms::{Class, Denied, Error, KeyRef, Provider, call, tls};
use sealblk::secret::Secret;
use serde_json::{Value, json};
use uuid::Uuid;

const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

/// One server with TLS for all tests: client certificates need it.
fn server() -> &'static OpenBao {
    static SERVER: OnceLock<OpenBao> = OnceLock::new();
    SERVER.get_or_init(OpenBao::start_tls)
}

/// A name that no other test uses.
fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A transit engine with one key, and a policy for it, all of one name.
struct Engine(String);

impl Engine {
    fn new() -> Self {
        let name = unique("engine");
        server().mount(&name);
        server().post(&format!("{name}/keys/disks"), json!({}));
        server().permit(&name, &name, "disks");
        Engine(name)
    }

    fn settings(&self, auth: Auth) -> Settings {
        Settings {
            endpoints: vec![server().url().parse().unwrap()],
            namespace: None,
            mount: self.0.parse().unwrap(),
            auth,
            tls: tls::Settings {
                ca_files: vec![server().ca_file()],
                client: None,
            },
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(2),
            },
        }
    }

    fn with_token(&self, token: &str) -> Settings {
        let file = server().write(&unique("token"), token);
        self.settings(Auth::Token(SecretFile::new(file)))
    }

    /// Settings with a login by AppRole, whose tokens last for `ttl`.
    fn with_approle(&self, ttl: &str) -> Settings {
        enable("approle");
        let role = format!("auth/approle/role/{}", self.0);
        server().post(
            &role,
            json!({"token_policies": [self.0], "token_ttl": ttl, "token_max_ttl": "1h"}),
        );
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let role_id = text(&server().get(&format!("{role}/role-id"))["data"]["role_id"]);
        let secret = server().post(&format!("{role}/secret-id"), json!({}));
        let secret_id = text(&secret["data"]["secret_id"]);
        self.settings(Auth::AppRole {
            mount: "approle".parse().unwrap(),
            role_id: RoleId::Plain(role_id),
            secret_id: SecretFile::new(server().write(&unique("secret-id"), &secret_id)),
        })
    }
}

/// Enables an auth method, once.
fn enable(method: &'static str) {
    static ENABLED: std::sync::Mutex<Vec<&str>> = std::sync::Mutex::new(Vec::new());
    let mut enabled = ENABLED.lock().unwrap();
    if !enabled.contains(&method) {
        server().post(&format!("sys/auth/{method}"), json!({"type": method}));
        enabled.push(method);
    }
}

fn key() -> KeyRef {
    KeyRef {
        id: Some("disks".into()),
        version: None,
    }
}

fn try_with(provider: &VaultProvider) -> Result<(), Error> {
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key(), &payload, b"volume"))?;
    assert_eq!(wait(provider.unwrap(&wrapped, b"volume"))?, payload);
    Ok(())
}

fn try_as(settings: Settings) -> Result<(), Error> {
    try_with(&VaultProvider::new(settings))
}

fn class(result: Result<(), Error>) -> Class {
    let error = result.unwrap_err();
    assert!(!error.help().unwrap().is_empty());
    error.class()
}

#[test]
fn the_documented_policy_is_enough_and_each_part_is_needed() {
    let engine = Engine::new();
    let token = server().token(&engine.0);
    try_as(engine.with_token(&token)).unwrap();
    for operation in ["keys", "encrypt", "decrypt"] {
        let paths: Vec<String> = [
            ("keys", "read"),
            ("encrypt", "update"),
            ("decrypt", "update"),
        ]
        .iter()
        .filter(|(path, _)| *path != operation)
        .map(|(path, right)| {
            format!(
                "path \"{}/{path}/disks\" {{ capabilities = [\"{right}\"] }}",
                engine.0
            )
        })
        .collect();
        let policy = json!({"policy": paths.join("\n")});
        server().post(&format!("sys/policies/acl/{}", engine.0), policy);
        let error = try_as(engine.with_token(&token)).unwrap_err();
        assert_eq!(error.class(), FORBIDDEN);
        let path = format!("{}/{operation}/disks", engine.0);
        assert!(error.to_string().contains(&path), "{error}");
    }
}

#[test]
fn a_missing_key_is_not_made() {
    let engine = Engine::new();
    // A policy that would let `encrypt` make it.
    let policy = format!(
        "path \"{}/*\" {{ capabilities = [\"create\", \"read\", \"update\"] }}",
        engine.0
    );
    server().post(
        &format!("sys/policies/acl/{}", engine.0),
        json!({"policy": policy}),
    );
    let provider = VaultProvider::new(engine.with_token(&server().token(&engine.0)));
    let payload = Secret::random(64).unwrap();
    let missing = KeyRef {
        id: Some("disk".into()),
        version: None,
    };
    let error = wait(provider.wrap(&missing, &payload, b"")).unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    assert_eq!(server().status(&format!("{}/keys/disk", engine.0)), 404);
    // And that it would have been made otherwise.
    server().post(
        &format!("{}/encrypt/disk", engine.0),
        json!({"plaintext": "AAAA"}),
    );
    assert_eq!(server().status(&format!("{}/keys/disk", engine.0)), 200);
}

#[test]
fn a_key_that_binds_nothing_is_not_used() {
    let engine = Engine::new();
    let provider = VaultProvider::new(engine.with_token(openbao::ROOT));
    for (name, body) in [
        ("rsa", json!({"type": "rsa-2048"})),
        ("signs", json!({"type": "ed25519"})),
        ("derived", json!({"derived": true})),
    ] {
        server().post(&format!("{}/keys/{name}", engine.0), body);
        let key = KeyRef {
            id: Some(name.into()),
            version: None,
        };
        let payload = Secret::random(64).unwrap();
        let error = wait(provider.wrap(&key, &payload, b"")).unwrap_err();
        assert_eq!(error.class(), Class::Protocol, "{name}");
    }
    for kind in ["aes128-gcm96", "chacha20-poly1305", "xchacha20-poly1305"] {
        server().post(&format!("{}/keys/{kind}", engine.0), json!({"type": kind}));
        let key = KeyRef {
            id: Some(kind.into()),
            version: None,
        };
        let payload = Secret::random(64).unwrap();
        let wrapped = wait(provider.wrap(&key, &payload, b"a")).unwrap();
        assert_eq!(wrapped.alg, kind);
        assert_eq!(wait(provider.unwrap(&wrapped, b"a")).unwrap(), payload);
        let error = wait(provider.unwrap(&wrapped, b"b")).unwrap_err();
        assert_eq!(error.class(), Class::BadKey);
    }
}

#[test]
fn an_engine_in_a_namespace_is_found_only_there() {
    let namespace = unique("team");
    server().post(&format!("sys/namespaces/{namespace}"), json!({}));
    let engine = Engine(unique("engine"));
    server().post(
        &format!("{namespace}/sys/mounts/{}", engine.0),
        json!({"type": "transit"}),
    );
    server().post(&format!("{namespace}/{}/keys/disks", engine.0), json!({}));
    let within = |namespace: &str| {
        let mut settings = engine.with_token(openbao::ROOT);
        settings.namespace = Some(namespace.parse().unwrap());
        try_as(settings)
    };
    within(&namespace).unwrap();
    let error = within("no-such-team").unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    assert!(error.to_string().contains("no such namespace"), "{error}");
    let outside = try_as(engine.with_token(openbao::ROOT)).unwrap_err();
    assert_eq!(outside.class(), Class::NotFound);
    assert!(
        outside.to_string().contains("nothing is mounted"),
        "{outside}"
    );
}

#[test]
fn a_token_file_that_is_replaced_is_taken_and_a_revoked_token_denied() {
    let engine = Engine::new();
    let (first, second) = (server().token(&engine.0), server().token(&engine.0));
    let path = server().write(&unique("token"), &first);
    let name = path.file_name().unwrap().to_str().unwrap();
    let provider = VaultProvider::new(engine.settings(Auth::Token(SecretFile::new(path.clone()))));
    try_with(&provider).unwrap();
    server().post("auth/token/revoke", json!({"token": first}));
    assert_eq!(class(try_with(&provider)), FORBIDDEN);
    server().write(name, &format!("{second}\n"));
    try_with(&provider).unwrap();
    std::fs::remove_file(path).unwrap();
    let error = try_with(&provider).unwrap_err();
    assert_eq!(
        (error.class(), error.kind()),
        (Class::Unreachable, Kind::NotFound)
    );
}

#[test]
fn a_token_file_of_the_wrong_sort_is_told() {
    let engine = Engine::new();
    assert_eq!(
        class(try_as(engine.with_token("two\nlines"))),
        Class::Unreachable
    );
    assert_eq!(class(try_as(engine.with_token("s.not-a-token"))), FORBIDDEN);
}

#[test]
fn a_token_in_a_file_is_renewed_before_it_ends() {
    let engine = Engine::new();
    let body = json!({"policies": [engine.0, "default"], "period": "12s"});
    let answer = server().post("auth/token/create-orphan", body);
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let provider = VaultProvider::new(engine.with_token(token));
    outlives(Duration::from_secs(15), || try_with(&provider));
}

#[test]
fn approle_logs_in_once_renews_and_logs_in_again() {
    let engine = Engine::new();
    let provider = VaultProvider::new(engine.with_approle("15s"));
    let tokens = || tokens_of(&engine.0);
    try_with(&provider).unwrap();
    let first = tokens();
    assert_eq!(first.len(), 1, "two calls and one login");
    // Past its own time, with no new login: it was renewed.
    outlives(Duration::from_secs(18), || try_with(&provider));
    assert_eq!(tokens(), first);
    // Revoked by the operator: a new one is asked for within the call.
    server().post("auth/token/revoke-accessor", json!({"accessor": first[0]}));
    try_with(&provider).unwrap();
    let second = tokens();
    assert_eq!(second.len(), 1);
    assert_ne!(second, first);
}

/// It fails at nothing for that long.
fn outlives(time: Duration, mut call: impl FnMut() -> Result<(), Error>) {
    let start = Instant::now();
    while start.elapsed() < time {
        call().unwrap();
        // A client that asks all the time would also do with a busy server.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The accessors of the living tokens that have this policy.
fn tokens_of(policy: &str) -> Vec<String> {
    let listed = server().get("auth/token/accessors?list=true");
    let accessors = listed["data"]["keys"].as_array().unwrap();
    let mut found: Vec<String> = accessors
        .iter()
        .map(|accessor| accessor.as_str().unwrap().to_owned())
        .filter(|accessor| {
            server()
                .try_post("auth/token/lookup-accessor", json!({"accessor": accessor}))
                .is_some_and(|answer| {
                    let policies = answer["data"]["policies"].as_array();
                    policies.is_some_and(|all| all.iter().any(|one| one == policy))
                })
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_token_that_cannot_be_renewed_is_replaced_in_time() {
    let engine = Engine::new();
    let settings = engine.with_approle("1h");
    let role = format!("auth/approle/role/{}", engine.0);
    // No renewal helps beyond this age.
    server().post(&role, json!({"token_ttl": "2s", "token_max_ttl": "2s"}));
    let provider = VaultProvider::new(settings);
    outlives(Duration::from_secs(5), || try_with(&provider));
}

#[test]
fn a_login_that_is_refused_is_a_denial() {
    let engine = Engine::new();
    let good = engine.with_approle("1h");
    let Auth::AppRole { mount, role_id, .. } = good.auth.clone() else {
        unreachable!("it is one");
    };
    let wrong = SecretFile::new(server().write(&unique("secret-id"), "not-the-secret"));
    let error = try_as(engine.settings(Auth::AppRole {
        mount,
        role_id: role_id.clone(),
        secret_id: wrong.clone(),
    }))
    .unwrap_err();
    assert_eq!(error.class(), FORBIDDEN);
    assert_eq!(error.words(), Some("invalid role or secret ID"));
    assert!(!error.to_string().contains("not-the-secret"));
    let nowhere = Auth::AppRole {
        mount: "no-such-method".parse().unwrap(),
        role_id,
        secret_id: wrong,
    };
    assert_eq!(class(try_as(engine.settings(nowhere))), FORBIDDEN);
    // One use, and no more.
    try_as(good).unwrap();
}

#[test]
fn the_role_id_may_be_in_a_file() {
    let engine = Engine::new();
    let mut settings = engine.with_approle("1h");
    let Auth::AppRole { role_id, .. } = &mut settings.auth else {
        unreachable!("it is one");
    };
    let RoleId::Plain(plain) = &role_id else {
        unreachable!("it is plain");
    };
    let file = server().write(&unique("role-id"), &format!("{plain}\n"));
    *role_id = RoleId::File(SecretFile::new(file));
    try_as(settings).unwrap();
}

#[test]
fn a_client_certificate_logs_in() {
    enable("cert");
    let engine = Engine::new();
    let authority = Authority::new("clients");
    server().post(
        &format!("auth/cert/certs/{}", engine.0),
        json!({
            "certificate": String::from_utf8(authority.certificate_pem()).unwrap(),
            "allowed_common_names": [format!("host-of-{}", engine.0)],
            "token_policies": [engine.0],
        }),
    );
    let with = |name: &str| {
        let issued = authority.client(name);
        let pem = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let mut settings = engine.settings(Auth::Certificate {
            mount: "cert".parse().unwrap(),
            role: Some(engine.0.clone()),
        });
        settings.tls.client = Some(tls::ClientCertificate {
            certificate: server().write(&unique("cert"), &pem(issued.certificate_pem())),
            key: SecretFile::new(server().write(&unique("key"), &pem(issued.key_pem()))),
        });
        try_as(settings)
    };
    with(&format!("host-of-{}", engine.0)).unwrap();
    assert_eq!(class(with("somebody-else")), FORBIDDEN);
}

#[test]
fn a_jwt_in_a_file_logs_in() {
    enable("jwt");
    let engine = Engine::new();
    let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
    let issuer = openssl::ec::EcKey::generate(&group).unwrap();
    let public = String::from_utf8(issuer.public_key_to_pem().unwrap()).unwrap();
    server().post(
        "auth/jwt/config",
        json!({"jwt_validation_pubkeys": [public]}),
    );
    server().post(
        &format!("auth/jwt/role/{}", engine.0),
        json!({
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": ["openbao"],
            "bound_subject": "system:serviceaccount:vms:sealblk",
            "token_policies": [engine.0],
        }),
    );
    let with = |subject: &str| {
        let path = server().write(&unique("jwt"), &signed(&issuer, subject));
        // As kubelet makes it.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&path, mode).unwrap();
        try_as(engine.settings(Auth::Jwt {
            mount: "jwt".parse().unwrap(),
            role: engine.0.clone(),
            token: SecretFile::new(path).readable_by_all(),
        }))
    };
    with("system:serviceaccount:vms:sealblk").unwrap();
    assert_eq!(class(with("system:serviceaccount:vms:default")), FORBIDDEN);
}

/// A token as an issuer makes it: ES256 (RFC 7518, section 3.4).
fn signed(key: &openssl::ec::EcKey<openssl::pkey::Private>, subject: &str) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims =
        json!({"sub": subject, "aud": "openbao", "iat": now, "nbf": now, "exp": now + 600});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!(
        "{}.{}",
        part(&json!({"alg": "ES256", "typ": "JWT"})),
        part(&claims)
    );
    let digest = openssl::sha::sha256(text.as_bytes());
    let signature = openssl::ecdsa::EcdsaSig::sign(&digest, key).unwrap();
    let mut raw = signature.r().to_vec_padded(32).unwrap();
    raw.extend(signature.s().to_vec_padded(32).unwrap());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(raw))
}

#[test]
fn the_authority_of_the_service_must_be_the_configured_one() {
    let engine = Engine::new();
    let trusting = |ca_files: Vec<std::path::PathBuf>| {
        let mut settings = engine.with_token(openbao::ROOT);
        settings.tls.ca_files = ca_files;
        try_as(settings)
    };
    trusting(vec![server().ca_file()]).unwrap();
    let stranger = String::from_utf8(Authority::new("stranger").certificate_pem()).unwrap();
    let stranger = server().write(&unique("ca"), &stranger);
    for ca_files in [vec![stranger], vec![]] {
        let error = trusting(ca_files).unwrap_err();
        assert_eq!(error.class(), Class::Unreachable);
        assert!(
            error.to_string().contains("authority that is not trusted"),
            "{error}"
        );
        assert!(error.help().unwrap().contains("ca_file"));
    }
    let error = trusting(vec![Path::new("/nonexistent/ca.pem").into()]).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);

    let mut plain = engine.with_token(openbao::ROOT);
    plain.endpoints = vec![
        format!("http://127.0.0.1:{}", server().port())
            .parse()
            .unwrap(),
    ];
    assert!(try_as(plain).is_err());
}

#[test]
fn calls_have_an_id_on_both_sides() {
    let engine = Engine::new();
    let token = server().token(&engine.0);
    let provider = VaultProvider::new(engine.with_token(&token));
    let payload = Secret::random(64).unwrap();
    let id = Uuid::from_u128(0x1234);
    let noted = |notes: call::Notes| notes.request_id.unwrap().parse::<Uuid>().unwrap();
    let key = key();
    let (wrapped, notes) = wait(call::observed(id, provider.wrap(&key, &payload, b"volume")));
    let wrapped = wrapped.unwrap();
    let first = noted(notes);
    let (opened, notes) = wait(call::observed(id, provider.unwrap(&wrapped, b"volume")));
    assert_eq!(opened.unwrap(), payload);
    assert_ne!(noted(notes), first, "each request has its own");

    // What the service is told, as it would log the header.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut settings = engine.with_token(&token);
    settings.endpoints = vec![format!("http://127.0.0.1:{port}").parse().unwrap()];
    let provider = VaultProvider::new(settings);
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut request, mut part) = (Vec::new(), [0; 1024]);
        while !request.ends_with(b"\r\n\r\n") {
            let length = stream.read(&mut part).unwrap();
            assert_ne!(length, 0, "the request ends in its headers");
            request.extend_from_slice(&part[..length]);
        }
        stream
            .write_all(
                b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\
                  Content-Length: 13\r\nConnection: close\r\n\r\n{\"errors\":[]}",
            )
            .unwrap();
        String::from_utf8(request).unwrap()
    });
    let (refused, notes) = wait(call::observed(id, provider.current_version(&key)));
    assert_eq!(refused.unwrap_err().class(), Class::NotFound);
    assert_eq!(notes.request_id, None);
    let header = format!("x-correlation-id: {id}\r\n");
    let asked = asked.join().unwrap();
    assert!(asked.to_ascii_lowercase().contains(&header), "{asked}");
}
