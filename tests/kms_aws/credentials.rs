//! Each source of credentials, and what becomes of them with time.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sealblk::error::{Explain, Kind};
use sealblk::kms::aws::{AwsProvider, Environment, Identity, Settings, Source};
use sealblk::kms::{Class, Denied, Error, Wrapped};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::moto::{self, ACCOUNT, Key, OPERATIONS, User, policy, server, unique};
use super::{expect, try_as, try_with};

const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

/// The fakes of the metadata services are one for all tests.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn user() -> User {
    server().user(&policy(&OPERATIONS))
}

fn key() -> Key {
    server().key(json!({}))
}

fn settings(source: Source, variables: &[(&str, &str)]) -> Settings {
    moto::settings(Identity {
        source,
        environment: Environment::fixed(variables.iter().copied()),
        sts_endpoint: Some(server().url().parse().unwrap()),
    })
}

fn with(source: Source, variables: &[(&str, &str)]) -> Result<Wrapped, Error> {
    try_as(settings(source, variables), &key().by_arn())
}

/// A file that only we can read.
fn write(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    mode(&new, 0o600);
    std::fs::rename(new, &path).unwrap();
    path
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn profile(name: &str, user: &User) -> String {
    format!(
        "[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        user.access_key, user.secret
    )
}

fn calls(which: &str) -> u64 {
    server().ask("calls", json!({}))[which].as_u64().unwrap()
}

#[test]
fn environment_variables() {
    let user = user();
    with(Source::Environment, &user.variables()).unwrap();
    let error = expect(
        with(Source::Environment, &[("AWS_ACCESS_KEY_ID", "only")]),
        Class::Unreachable,
        &["AWS_SECRET_ACCESS_KEY are not set"],
        "choose another source",
    );
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn a_profile_and_its_replacement() {
    let (home, first) = (tempfile::tempdir().unwrap(), user());
    let at = home.path().to_str().unwrap();
    let file = write(&home, ".aws/credentials", &profile("default", &first));
    let provider = AwsProvider::new(settings(Source::profile(), &[("HOME", at)]));
    let key = key();
    try_with(&provider, &key.by_arn()).unwrap();
    // Rotated by whoever does that: taken with the next call.
    let second = first.second_key();
    write(&home, ".aws/credentials", &profile("default", &second));
    server().ask(
        "forget_access_key",
        json!({"name": first.name, "access_key": first.access_key}),
    );
    try_with(&provider, &key.by_arn()).unwrap();
    assert_eq!(second.seen().len(), 3);

    // By name, of the key set or the environment, and in other files.
    let third = user();
    write(&home, "elsewhere", &profile("prod", &third));
    let named = Source::Profile {
        name: Some("prod".into()),
        credentials_file: Some(home.path().join("elsewhere")),
        config_file: None,
    };
    with(named.clone(), &[("HOME", at)]).unwrap();
    assert_eq!(third.seen().len(), 3);
    let variables = [
        ("AWS_PROFILE", "prod"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ("AWS_CONFIG_FILE", "/nonexistent"),
    ];
    expect(
        with(Source::profile(), &variables),
        Class::Unreachable,
        &["profile \"prod\" has no access key"],
        "are not followed",
    );
    // Keys in the other file, whose sections are called otherwise.
    let config = profile("profile prod", &third);
    let config = write(&home, "config", &config);
    let config = config.to_str().unwrap();
    let variables = [
        ("AWS_PROFILE", "prod"),
        ("AWS_CONFIG_FILE", config),
        ("HOME", "/nonexistent"),
    ];
    with(Source::profile(), &variables).unwrap();

    // Others could read the key.
    mode(&file, 0o644);
    for source in [Source::profile(), Source::Default] {
        let error = expect(
            with(source, &[("HOME", at)]),
            Class::Unreachable,
            &["credentials", "0644"],
            "chmod 0600",
        );
        assert_eq!(error.kind(), Kind::Permission);
    }
    write(&home, ".aws/credentials", "[default\nnothing");
    let error = expect(
        with(Source::profile(), &[("HOME", at)]),
        Class::Unreachable,
        &["a file of profiles is not as it should be"],
        "correct",
    );
    assert_eq!(error.kind(), Kind::Usage);
}

#[test]
fn the_default_is_the_first_source_that_is_set_up_and_no_other() {
    let (one, two) = (user(), user());
    let home = tempfile::tempdir().unwrap();
    write(&home, ".aws/credentials", &profile("default", &two));
    let at = home.path().to_str().unwrap();
    let [id, secret] = one.variables();
    with(Source::Default, &[id, secret, ("HOME", at)]).unwrap();
    assert_eq!((one.seen().len(), two.seen().len()), (3, 0));
    with(Source::Default, &[("HOME", at)]).unwrap();
    assert_eq!(two.seen().len(), 3);
    // A web identity that is set up and does not work is not passed over.
    let token = write(&home, "token", "a token that nobody knows");
    let web = [
        ("HOME", at),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
    ];
    expect(
        with(Source::Default, &web),
        FORBIDDEN,
        &["web-identity", "InvalidIdentityToken"],
        "trust policy",
    );
    assert_eq!(two.seen().len(), 3);
    expect(
        with(Source::Default, &[("AWS_EC2_METADATA_DISABLED", "true")]),
        Class::Unreachable,
        &["no credentials for AWS are to be found"],
        "docs/kms/aws-kms.md",
    );
}

#[test]
fn a_web_identity_gets_the_credentials_of_its_role_once() {
    let _one = alone();
    let (home, key) = (tempfile::tempdir().unwrap(), key());
    let name = unique("role");
    let role = server().ask("role", json!({"name": name, "policy": policy(&OPERATIONS)}));
    let role = role["arn"].as_str().unwrap();
    let secret = unique("a-token");
    server().ask("token", json!({"token": secret}));
    let token = write(&home, "token", &format!("{secret}\n"));
    // As kubelet has it.
    mode(&token, 0o644);
    let at = token.to_str().unwrap();
    let variables = [("AWS_ROLE_ARN", role), ("AWS_WEB_IDENTITY_TOKEN_FILE", at)];
    let provider = AwsProvider::new(settings(Source::web_identity(), &variables));
    let before = calls("sts");
    for _ in 0..3 {
        try_with(&provider, &key.by_arn()).unwrap();
    }
    assert_eq!(calls("sts"), before + 1, "kept");
    // The same from the key set alone.
    let own = |role: &str, token: PathBuf| {
        let source = Source::WebIdentity {
            role: Some(role.into()),
            token: Some(token),
            session: Some("host-1".into()),
        };
        try_as(settings(source, &[]), &key.by_arn())
    };
    own(role, token.clone()).unwrap();

    let other = format!("arn:aws:iam::{ACCOUNT}:role/of-others");
    expect(
        own(&other, token.clone()),
        FORBIDDEN,
        &["does not let this host have the role", "AccessDenied"],
        "trust policy",
    );
    write(&home, "token", "something-else");
    let error = expect(
        own(role, token.clone()),
        FORBIDDEN,
        &["InvalidIdentityToken"],
        "token in the file is a current one",
    );
    assert!(!error.to_string().contains("something-else"));
    let error = expect(
        own(role, home.path().join("missing")),
        Class::Unreachable,
        &["missing: it does not exist"],
        "put it there",
    );
    assert_eq!(error.kind(), Kind::NotFound);
    mode(&token, 0o666);
    assert_eq!(own(role, token).unwrap_err().kind(), Kind::Permission);
}

/// What a metadata service gives out of a role's session.
fn given(role: &User, lasts: i64) -> Value {
    json!({
        "access_key": role.access_key,
        "secret": role.secret,
        "token": role.token,
        "lasts": lasts,
    })
}

fn role() -> User {
    server().session(&policy(&OPERATIONS))
}

fn imds(role: &User, lasts: i64) {
    server().ask("imds", json!({"credentials": given(role, lasts)}));
}

fn instance() -> Source {
    Source::Instance {
        endpoint: Some(server().url()),
    }
}

/// The role of an instance: with a token each time, and kept until near its end.
#[test]
fn an_instance_has_its_role_by_imds_version_2() {
    let _one = alone();
    let key = key();
    imds(&role(), 3600);
    let before = calls("imds");
    let tokens = calls("imds_tokens");
    let provider = AwsProvider::new(settings(instance(), &[]));
    for _ in 0..2 {
        try_with(&provider, &key.by_arn()).unwrap();
    }
    assert_eq!(calls("imds"), before + 1);
    assert_eq!(calls("imds_tokens"), tokens + 1);
    // The address from the environment, as AWS's own tools have it.
    let url = server().url();
    let variable = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", &*url)];
    with(Source::Instance { endpoint: None }, &variable).unwrap();
    with(Source::Default, &variable).unwrap();

    server().ask("imds", json!({}));
    let error = expect(
        with(instance(), &[]),
        Class::Unreachable,
        &["the metadata service has none"],
        "attach a role to the instance",
    );
    assert_eq!(error.kind(), Kind::NotFound);
    // Nobody is sent elsewhere in plain text.
    let variable = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://192.0.2.1")];
    expect(
        with(Source::Instance { endpoint: None }, &variable),
        Class::Unreachable,
        &["without TLS only this host"],
        "environment variables",
    );
}

#[test]
fn credentials_are_replaced_before_they_end() {
    let _one = alone();
    let (first, key) = (role(), key());
    // Replaced 15 seconds before its end.
    imds(&first, 21);
    let provider = AwsProvider::new(settings(instance(), &[]));
    try_with(&provider, &key.by_arn()).unwrap();
    let second = role();
    imds(&second, 3600);
    let start = Instant::now();
    while second.seen().is_empty() {
        try_with(&provider, &key.by_arn()).unwrap();
        assert!(start.elapsed() < Duration::from_secs(40));
        std::thread::sleep(Duration::from_millis(200));
    }
    // Not with each call before.
    assert!(first.seen().len() > 3);
}

#[test]
fn a_session_that_ended_before_its_time_is_replaced_within_the_call() {
    let _one = alone();
    let (first, key) = (role(), key());
    imds(&first, 3600);
    let provider = AwsProvider::new(settings(instance(), &[]));
    try_with(&provider, &key.by_arn()).unwrap();
    first.ask("expire", json!({}));
    let second = role();
    imds(&second, 3600);
    try_with(&provider, &key.by_arn()).unwrap();
    let refused = first.seen();
    let refused = refused.iter().filter(|one| one["status"] == 400);
    assert_eq!(refused.count(), 1);
    // The same again from its source: that is the answer, after one more try.
    second.ask("expire", json!({}));
    let before = (calls("imds"), second.seen().len());
    expect(
        try_with(&provider, &key.by_arn()),
        FORBIDDEN,
        &["has ended", "ExpiredTokenException"],
        "renew them",
    );
    assert_eq!(
        (calls("imds"), second.seen().len()),
        (before.0 + 1, before.1 + 1)
    );
}

#[test]
fn a_container_has_its_role_from_its_endpoint() {
    let _one = alone();
    let (role, home) = (role(), tempfile::tempdir().unwrap());
    let mut given = given(&role, 3600);
    given["id"] = "task".into();
    given["authorization"] = "let me in".into();
    server().ask("ecs", json!({"credentials": given}));
    let full = format!("{}/v2/credentials/task", server().url());
    let container = Source::Container {
        endpoint: None,
        token: None,
    };
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*full),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let me in"),
    ];
    with(container.clone(), &variables).unwrap();
    with(Source::Default, &variables).unwrap();
    let token = write(&home, "token", "let me in\n");
    let own = Source::Container {
        endpoint: Some(full.clone()),
        token: Some(token),
    };
    with(own, &[]).unwrap();
    let wrong = [variables[0], ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "else")];
    expect(
        with(container.clone(), &wrong),
        Class::Unreachable,
        &["endpoint for containers gives out none"],
        "role of the task",
    );
    expect(
        with(container.clone(), &[]),
        Class::Unreachable,
        &["AWS_CONTAINER_CREDENTIALS_FULL_URI are not set"],
        "task with a role",
    );
    let far = [(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "http://192.0.2.1/credentials",
    )];
    expect(
        with(container, &far),
        Class::Unreachable,
        &["without TLS only this host"],
        "environment variables",
    );
}
