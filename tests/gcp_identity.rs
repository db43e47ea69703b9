//! How the `gcp-kms` provider shows who it is, and to whom it does not, against
//! a faithful fake of the metadata server and the token endpoints of Google.
#![cfg(feature = "gcp-kms")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/gcp/mod.rs"]
#[allow(dead_code)]
mod gcp;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gcp::identity::{AUDIENCE, EMAIL, Identities, SUBJECT};
use gcp::{Answer, Gcp};
use sealblk::error::{Explain, Kind};
use sealblk::kms::credential::SecretFile;
use sealblk::kms::gcp::{Auth, GcpProvider};
use sealblk::kms::http::BaseUrl;
use sealblk::kms::{Class, Denied, Error, Provider};
use sealblk::secret::Secret;
use serde_json::{Value, json};

const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn with(gcp: &Gcp, auth: Auth) -> GcpProvider {
    GcpProvider::new(gcp.settings(auth))
}

fn try_with(provider: &GcpProvider) -> Result<(), Error> {
    let payload = Secret::random(64).unwrap();
    let key = Gcp::key("disks");
    let wrapped = wait(provider.wrap(&key, &payload, b"volume"))?;
    assert_eq!(wait(provider.unwrap(&wrapped, b"volume"))?, payload);
    Ok(())
}

/// Panics unless the call fails with this class, and says all of `words`.
#[track_caller]
fn refused(provider: &GcpProvider, class: Class, words: &[&str]) -> Error {
    let error = try_with(provider).unwrap_err();
    let said = format!("{error} next: {}", error.help().unwrap());
    assert_eq!(error.class(), class, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    error
}

/// The configuration of a federation whose token is at `source`.
fn federation(gcp: &Gcp, source: Value) -> Value {
    json!({
        "type": "external_account",
        "audience": AUDIENCE,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{}/v1/token", gcp.url()),
        "credential_source": source,
    })
}

fn in_file(gcp: &Gcp, json: &Value) -> GcpProvider {
    with(
        gcp,
        gcp.file(gcp.write("credentials.json", &json.to_string())),
    )
}

#[test]
fn a_machine_has_an_identity_without_any_credential() {
    let gcp = Gcp::start();
    let provider = with(&gcp, gcp.metadata());
    try_with(&provider).unwrap();
    try_with(&provider).unwrap();
    assert_eq!(gcp.count("/token"), 1, "it is kept");
    let identity = wait(provider.identity()).unwrap();
    assert_eq!(identity.name, EMAIL);
    assert!(identity.left > Duration::from_secs(3000));
    let Auth::Metadata { server, .. } = gcp.metadata() else {
        unreachable!("it is one");
    };
    let named = |name: &str| Auth::Metadata {
        server: server.clone(),
        account: Some(name.parse().unwrap()),
    };
    try_with(&with(&gcp, named(EMAIL))).unwrap();
    let other = with(&gcp, named("other@prod-1.iam.gserviceaccount.com"));
    refused(
        &other,
        Class::Unreachable,
        &["no service account \"other@", "set-service-account"],
    );
}

#[test]
fn what_answers_without_tls_denies_nothing() {
    let gcp = Gcp::start();
    let provider = || with(&gcp, gcp.metadata());
    let answers = |answer: Answer| {
        gcp.intercept(move |asked| {
            let metadata = asked.path.starts_with("/computeMetadata");
            metadata.then(|| answer.clone())
        });
    };
    let flavor = || vec![("metadata-flavor", "Google".to_owned())];
    // A good token, of something that is not the metadata server.
    let token = json!({"access_token": "ya29.stolen", "expires_in": 3599}).to_string();
    answers(Answer::Text(200, Vec::new(), token));
    refused(
        &provider(),
        Class::Unreachable,
        &["not the metadata server", "credentials = "],
    );
    for (status, class) in [
        (403, Class::Unreachable),
        (400, Class::Unreachable),
        (503, Class::Unreachable),
    ] {
        answers(Answer::Text(status, flavor(), "Permission denied".into()));
        refused(
            &provider(),
            class,
            &["gives no token now", "Permission denied"],
        );
    }
    // Nor is a token shown that comes with a failure.
    let token = json!({"access_token": "ya29.shown", "expires_in": 3599}).to_string();
    answers(Answer::Text(401, flavor(), token));
    let error = refused(&provider(), Class::Unreachable, &["gives no token now"]);
    assert!(!format!("{error:?}").contains("ya29"), "{error:?}");
    answers(Answer::Text(200, flavor(), "no JSON".into()));
    refused(&provider(), Class::Protocol, &["something else"]);
    gcp.leave_alone();
    gcp.cloud().identities.machine_has_account = false;
    refused(
        &provider(),
        Class::Unreachable,
        &["no service account", "set-service-account"],
    );
    gcp.cloud().identities.machine_has_account = true;
    // Scopes are what Cloud KMS itself says.
    gcp.cloud().identities.machine_scopes =
        vec!["https://www.googleapis.com/auth/devstorage.read_only".into()];
    gcp.cloud().identities.forget_cached();
    refused(
        &provider(),
        FORBIDDEN,
        &["not for Cloud KMS", "--scopes=cloud-platform"],
    );
    // On another machine nobody is there.
    let endpoint = gcp.another();
    let nobody = endpoint.url();
    endpoint.stop();
    drop(endpoint);
    let auth = Auth::Metadata {
        server: BaseUrl::link_local(nobody.strip_prefix("http://").unwrap()).unwrap(),
        account: None,
    };
    let mut settings = gcp.settings(auth);
    settings.timing.timeout = Duration::from_millis(500);
    refused(
        &GcpProvider::new(settings),
        Class::Unreachable,
        &["there is no metadata server", "method = \"file\""],
    );
}

#[test]
fn the_key_of_a_service_account_is_changed_for_a_token_once() {
    let gcp = Gcp::start();
    let provider = with(&gcp, gcp.file(gcp.account_file()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| try_with(&provider).unwrap());
        }
    });
    assert_eq!(gcp.count("/token"), 1, "all waited for one");
    assert_eq!(wait(provider.identity()).unwrap().name, EMAIL);
    let cloud = gcp.cloud();
    assert_eq!(cloud.identities.holders(), [EMAIL].into());
    let scope = "https://www.googleapis.com/auth/cloudkms".to_owned();
    let token = &cloud.identities.tokens()[0];
    let asked = cloud
        .asked
        .iter()
        .find(|asked| asked.path == "/token")
        .unwrap();
    let form = asked.form();
    assert_eq!(form.len(), 2);
    assert!(cloud.identities.granted(token).contains(&scope));
}

#[test]
fn a_token_is_replaced_before_it_ends_and_kept_while_there_is_no_other() {
    let gcp = Gcp::start();
    gcp.cloud().identities.lifetime = 4;
    let provider = with(&gcp, gcp.file(gcp.account_file()));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        try_with(&provider).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let asked = gcp.count("/token");
    assert!((2..10).contains(&asked), "{asked} tokens in 6 seconds");
    // A fresh one, and then nobody who gives out another.
    gcp.cloud().identities.revoke_tokens();
    gcp.cloud().identities.lifetime = 10;
    try_with(&provider).unwrap();
    gcp.intercept(|asked| (asked.path == "/token").then(|| Answer::page(503)));
    let before = gcp.count("/token");
    while gcp.count("/token") == before {
        try_with(&provider).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    try_with(&provider).unwrap();
    assert_eq!(
        gcp.count("/token"),
        before + 1,
        "once, and not at once again"
    );
}

#[test]
fn a_token_that_is_not_taken_is_replaced_once() {
    let gcp = Gcp::start();
    let provider = with(&gcp, gcp.file(gcp.account_file()));
    try_with(&provider).unwrap();
    gcp.cloud().identities.revoke_tokens();
    try_with(&provider).unwrap();
    assert_eq!(gcp.count("/token"), 2);
    // A service that takes none is not asked for ever.
    gcp.intercept(|asked| {
        let error = json!({"code": 401, "status": "UNAUTHENTICATED", "message": "Request had invalid authentication credentials."});
        asked.path.starts_with("/v1/projects").then(|| Answer::Json(401, json!({ "error": error })))
    });
    let before = gcp.count("cryptoKeys");
    refused(&provider, FORBIDDEN, &["does not take the token", "clock"]);
    assert_eq!(gcp.count("cryptoKeys"), before + 2);
    gcp.leave_alone();
    // The metadata server does not know that its token is no good.
    let machine = with(&gcp, gcp.metadata());
    try_with(&machine).unwrap();
    gcp.cloud().identities.revoke_tokens();
    refused(&machine, FORBIDDEN, &["does not take the token"]);
    gcp.cloud().identities.forget_cached();
    try_with(&machine).unwrap();
}

#[test]
fn credentials_that_are_replaced_count_at_once() {
    let gcp = Gcp::start();
    let path = gcp.account_file();
    let provider = with(&gcp, gcp.file(path.clone()));
    try_with(&provider).unwrap();
    let mut json = gcp.cloud().identities.account_json(&gcp.url());
    json["private_key_id"] = "key-2".into();
    gcp.write("account.json", &json.to_string());
    refused(&provider, FORBIDDEN, &["does not know the key key-2"]);
    gcp.cloud().identities.keys.insert("key-2".into());
    try_with(&provider).unwrap();
    std::fs::remove_file(path).unwrap();
    let error = refused(&provider, Class::Unreachable, &["does not exist"]);
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn why_a_service_account_gets_no_token_is_told() {
    let gcp = Gcp::start();
    let path = gcp.account_file();
    let refused = |class, words: &[&str]| {
        let error = refused(&with(&gcp, gcp.file(path.clone())), class, words);
        let sent = gcp.cloud().asked.last().unwrap().form();
        if let Some(assertion) = sent.get("assertion") {
            let (_, signature) = assertion.rsplit_once('.').unwrap();
            let said = format!("{error:?}");
            assert!(!said.contains(signature), "{said}");
        }
    };
    gcp.cloud().identities.keys.clear();
    refused(
        FORBIDDEN,
        &[
            "does not know the key key-1",
            EMAIL,
            "keys list --iam-account",
            "Invalid JWT Signature",
        ],
    );
    gcp.cloud().identities.keys.insert("key-1".into());
    gcp.cloud().identities.account_enabled = false;
    refused(
        FORBIDDEN,
        &["is disabled", "gcloud iam service-accounts enable"],
    );
    gcp.cloud().identities.account_exists = false;
    refused(FORBIDDEN, &["does not exist", "undelete"]);
    gcp.cloud().identities.account_exists = true;
    gcp.cloud().identities.account_enabled = true;
    // The clock is this host's matter: nobody has denied anything.
    for (ahead, which) in [(-7200, "seconds ahead"), (7200, "seconds behind")] {
        gcp.cloud().ahead = ahead;
        refused(
            Class::Unreachable,
            &["the clock of this host is 7", which, "NTP"],
        );
    }
    gcp.cloud().ahead = 0;
    gcp.intercept(|asked| {
        // Its answer quotes what it was sent.
        let quoted = asked.form().get("assertion")?.clone();
        let error = json!({"error": "invalid_grant", "error_description": format!("no: {quoted}")});
        Some(Answer::Json(400, error))
    });
    refused(FORBIDDEN, &["gives no token"]);
    for (status, class) in [
        (429, Class::Throttled { retry_after: None }),
        (500, Class::Unreachable),
        (404, Class::Protocol),
    ] {
        gcp.intercept(move |asked| (asked.path == "/token").then(|| Answer::page(status)));
        refused(class, &["/token"]);
    }
}

#[test]
fn a_foreign_token_is_changed_for_one_of_google() {
    let gcp = Gcp::start();
    let token = Identities::foreign_token(SUBJECT, 600);
    // As kubelet has it: readable by all.
    let path = gcp.write("token", &format!("{token}\n"));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    try_with(&in_file(&gcp, &federation(&gcp, json!({"file": path})))).unwrap();
    assert_eq!(
        gcp.cloud().identities.holders(),
        [&*format!("principal:{SUBJECT}")].into()
    );

    let json_file = gcp.write(
        "token.json",
        &json!({"a": {"id": 1}, "id": token}).to_string(),
    );
    let format = json!({"type": "json", "subject_token_field_name": "id"});
    try_with(&in_file(
        &gcp,
        &federation(&gcp, json!({"file": json_file, "format": format})),
    ))
    .unwrap();

    gcp.cloud().identities.subject_token = token;
    let format = json!({"type": "json", "subject_token_field_name": "subject"});
    let source = json!({
        "url": format!("{}/subject?api-version=1", gcp.url()),
        "headers": {"X-Machine": "yes"},
        "format": format,
    });
    try_with(&in_file(&gcp, &federation(&gcp, source))).unwrap();
    assert_eq!(gcp.count("/subject"), 1);
    let asked = gcp
        .cloud()
        .asked
        .iter()
        .find(|asked| asked.path == "/subject")
        .unwrap()
        .clone();
    assert_eq!(asked.query, "api-version=1");
}

/// With a token in a file, in the place of the service account.
fn impersonating(gcp: &Gcp) -> Value {
    let token = gcp.write("token", &Identities::foreign_token(SUBJECT, 600));
    let mut json = federation(gcp, json!({"file": token}));
    let url = format!(
        "{}/v1/projects/-/serviceAccounts/{EMAIL}:generateAccessToken",
        gcp.url()
    );
    json["service_account_impersonation_url"] = url.into();
    json["service_account_impersonation"] = json!({"token_lifetime_seconds": 600});
    json
}

#[test]
fn a_federated_identity_takes_the_place_of_a_service_account() {
    let gcp = Gcp::start();
    let json = impersonating(&gcp);
    let provider = in_file(&gcp, &json);
    try_with(&provider).unwrap();
    let identity = wait(provider.identity()).unwrap();
    assert_eq!(identity.name, EMAIL);
    assert!(identity.left <= Duration::from_secs(600), "{identity:?}");
    gcp.cloud().identities.may_impersonate = false;
    refused(
        &in_file(&gcp, &json),
        FORBIDDEN,
        &[
            "may not take the place",
            "workloadIdentityUser",
            "iam.serviceAccounts.getAccessToken",
        ],
    );
}

#[test]
fn why_a_foreign_token_is_not_taken_is_told() {
    let gcp = Gcp::start();
    let path = gcp.path("token");
    let json = federation(&gcp, json!({"file": path}));
    let shows = |token: &str| {
        gcp.write("token", token);
        in_file(&gcp, &json)
    };
    let stale = shows(&Identities::foreign_token(SUBJECT, -60));
    refused(
        &stale,
        Class::Unreachable,
        &["too old", "renews", "token", "stale to sign-in"],
    );
    let stranger = shows(&Identities::foreign_token("somebody", 60));
    refused(&stranger, FORBIDDEN, &["condition", "attribute condition"]);
    let good = Identities::foreign_token(SUBJECT, 60);
    let forged = format!("{}AAAA", &good[..good.len() - 4]);
    refused(
        &shows(&forged),
        FORBIDDEN,
        &["does not take this host's token", "signing keys"],
    );
    gcp.cloud().identities.provider_exists = false;
    refused(
        &shows(&good),
        FORBIDDEN,
        &["no workload identity provider", "providers list"],
    );
    gcp.cloud().identities.provider_exists = true;
    // What this host should have shown is not there.
    let before = gcp.count("/v1/token");
    std::fs::remove_file(&path).unwrap();
    refused(
        &in_file(&gcp, &json),
        Class::Unreachable,
        &["does not exist"],
    );
    let mut with_field = json.clone();
    with_field["credential_source"]["format"] =
        json!({"type": "json", "subject_token_field_name": "id"});
    gcp.write("token", "{}");
    refused(
        &in_file(&gcp, &with_field),
        Class::Unreachable,
        &["no token", "\"id\""],
    );
    let url = federation(&gcp, json!({"url": format!("{}/subject", gcp.url())}));
    refused(
        &in_file(&gcp, &url),
        Class::Unreachable,
        &["gives this host no token"],
    );
    assert_eq!(gcp.count("/v1/token"), before, "nothing was sent");
}

#[test]
fn credentials_of_other_kinds_are_refused_with_the_reason() {
    let gcp = Gcp::start();
    let account = gcp.cloud().identities.account_json(&gcp.url());
    let with_source = |source: Value| federation(&gcp, source);
    let without = |field: &str| {
        let mut json = account.clone();
        json.as_object_mut().unwrap().remove(field);
        json
    };
    let mut workforce = with_source(json!({"file": "/x"}));
    workforce["workforce_pool_user_project"] = "4711".into();
    let mut other_key = account.clone();
    other_key["private_key"] =
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".into();
    let mut no_key = account.clone();
    no_key["private_key"] = "hush-hush-hush-hush".into();
    for (json, words) in [
        (
            json!({"type": "authorized_user", "refresh_token": "x"}),
            &["those of a person"][..],
        ),
        (
            json!({"type": "external_account_authorized_user"}),
            &["those of a person"],
        ),
        (
            json!({"type": "impersonated_service_account"}),
            &["another's place"],
        ),
        (
            json!({"type": "gdch_service_account"}),
            &["gdch_service_account", "service_account"],
        ),
        (json!({}), &["their type is"]),
        (json!([]), &["not the JSON"]),
        (
            with_source(json!({"environment_id": "aws1", "regional_cred_verification_url": "x"})),
            &["AWS", "into a file"],
        ),
        (
            with_source(json!({"executable": {"command": "/bin/x"}})),
            &["starts none"],
        ),
        (
            with_source(json!({"certificate": {"use_default_certificate_config": true}})),
            &["certificate"],
        ),
        (with_source(json!({"file": "relative"})), &["absolute"]),
        (with_source(json!({})), &["either"]),
        (
            with_source(json!({"file": "/x", "format": {"type": "xml"}})),
            &["xml"],
        ),
        (workforce, &["for people"]),
        (without("client_email"), &["no client_email"]),
        (without("private_key"), &["no private_key"]),
        (other_key, &["no RSA key"]),
        (no_key, &["no private key in PEM"]),
    ] {
        let error = refused(&in_file(&gcp, &json), Class::Unreachable, words);
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }
    assert!(gcp.cloud().asked.is_empty(), "nobody was asked anything");
}

/// Whoever can replace the file must not be able to have credentials sent to
/// wherever they like.
#[test]
fn a_changed_file_sends_no_credential_elsewhere() {
    let gcp = Gcp::start();
    let account = gcp.cloud().identities.account_json(&gcp.url());
    let federated = impersonating(&gcp);
    let path = |json: &Value| -> PathBuf { gcp.write("changed.json", &json.to_string()) };
    // Without the permission that tests have.
    let strict = |json: &Value| {
        let credentials = SecretFile::new(path(json));
        with(
            &gcp,
            Auth::File {
                credentials,
                trusted_hosts: Vec::new(),
            },
        )
    };
    for url in [
        "https://evil.example/token",
        "https://googleapis.com.evil.example/token",
        "https://evilgoogleapis.com/token",
        "https://oauth2.googleapis.com./token",
        "https://evil.example/oauth2.googleapis.com",
        "https://evil.example:443/.googleapis.com",
        "https://127.0.0.1/token",
        &format!("{}/token", gcp.url()),
    ] {
        for field in [
            "token_uri",
            "token_url",
            "service_account_impersonation_url",
        ] {
            let mut json = if field == "token_uri" {
                account.clone()
            } else {
                federated.clone()
            };
            if field != "token_url" && field != "token_uri" {
                json["token_url"] = "https://sts.googleapis.com/v1/token".into();
            }
            json[field] = url.into();
            let error = refused(
                &strict(&json),
                Class::Unreachable,
                &["which is not Google", "trusted_hosts"],
            );
            assert_eq!(error.kind(), Kind::Refused, "{field} {url}");
        }
    }
    for (url, word) in [
        ("http://oauth2.googleapis.com/token", "without TLS"),
        (
            "https://oauth2.googleapis.com@evil.example/token",
            "credentials do not belong",
        ),
        ("ftp://oauth2.googleapis.com/token", "write https"),
        (
            "https://oauth2.googleapis.com/token?x=1",
            "nothing may follow",
        ),
        ("nonsense", "not an endpoint"),
    ] {
        let mut json = account.clone();
        json["token_uri"] = url.into();
        refused(&strict(&json), Class::Unreachable, &[word]);
    }
    let mut json = federated.clone();
    json["token_url"] = "https://sts.googleapis.com/v1/token".into();
    json["service_account_impersonation_url"] = Value::Null;
    for (url, word) in [
        ("https://evil.example/subject", "which is not Google"),
        ("http://10.0.0.1/subject", "without TLS"),
        ("http://169.254.169.254.evil.example/", "without TLS"),
        ("file:///etc/shadow", "not an endpoint"),
    ] {
        json["credential_source"] = json!({"url": url});
        refused(&strict(&json), Class::Unreachable, &[word]);
    }
    assert!(gcp.cloud().asked.is_empty(), "nobody was asked anything");
}
