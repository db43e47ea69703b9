//! What is refused, why, and what to do about it; and what a volume that
//! somebody edited does not get.

use std::time::{Duration, SystemTime};

use sealblk::kms::aws::{AwsProvider, Environment};
use sealblk::kms::{Class, Denied, KeyRef, Provider, Wrapped, call};
use sealblk::secret::Secret;
use serde_json::json;
use uuid::Uuid;

use super::moto::{ACCOUNT, OPERATIONS, REGION, User, named, policy, server};
use super::{AAD, expect, try_as, try_with, wait};

const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);
const DISABLED: Class = Class::Denied(Denied::Disabled);
const DELETED: Class = Class::Denied(Denied::Deleted);

fn user() -> User {
    server().user(&policy(&OPERATIONS))
}

/// The policy that docs/kms/aws-kms.md gives for an identity, for this key.
fn documented(arn: &str) -> serde_json::Value {
    let docs = include_str!("../../docs/kms/aws-kms.md");
    let (_, rest) = docs.split_once("```json\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let of_docs = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    assert!(text.contains(of_docs));
    serde_json::from_str(&text.replace(of_docs, arn)).unwrap()
}

#[test]
fn the_documented_policy_is_enough_and_each_part_is_needed() {
    let (user, key, other) = (user(), server().key(json!({})), server().key(json!({})));
    let policy = documented(&key.arn);
    user.allow(&policy);
    try_as(user.settings(), &key.by_arn()).unwrap();
    expect(
        try_as(user.settings(), &other.by_arn()),
        FORBIDDEN,
        &["kms:DescribeKey", &other.arn, "is not authorized"],
        "docs/kms/aws-kms.md",
    );
    for operation in OPERATIONS {
        let mut less = policy.to_string();
        less = less.replace(&format!("\"kms:{operation}\""), "\"kms:Nothing\"");
        user.allow(&serde_json::from_str(&less).unwrap());
        expect(
            try_as(user.settings(), &key.by_arn()),
            FORBIDDEN,
            &[&format!("kms:{operation}")],
            "allow it in the key's policy",
        );
    }
    // The purpose in the context is what the condition looks at.
    let other = policy.to_string().replace("wrapped-key", "something-else");
    user.allow(&serde_json::from_str(&other).unwrap());
    expect(
        try_as(user.settings(), &key.by_arn()),
        FORBIDDEN,
        &["kms:Encrypt"],
        "encryption context",
    );
}

#[test]
fn each_state_of_a_key_is_told_with_the_way_back() {
    let (user, key) = (user(), server().key(json!({})));
    let mut settings = user.settings();
    // Two of the states may pass, and are asked for again until then.
    settings.timing.deadline = Duration::from_secs(3);
    let provider = AwsProvider::new(settings);
    let payload = Secret::random(64).unwrap();
    let wrapped = try_with(&provider, &key.by_arn()).unwrap();
    for (state, class, words, next) in [
        (
            "Disabled",
            DISABLED,
            "is disabled",
            "aws kms enable-key --region eu-central-1",
        ),
        (
            "PendingDeletion",
            DELETED,
            "is to be deleted on 2040-01-02T03:04:05Z",
            "aws kms cancel-key-deletion --region eu-central-1 --key-id arn:",
        ),
        (
            "PendingReplicaDeletion",
            DELETED,
            "is to be deleted",
            "cancel-key-deletion",
        ),
        (
            "PendingImport",
            DISABLED,
            "has no material",
            "aws kms import-key-material",
        ),
        (
            "Unavailable",
            Class::Sealed,
            "is not connected",
            "connect-custom-key-store",
        ),
        (
            "Creating",
            Class::Unreachable,
            "Creating",
            "wait until it is enabled",
        ),
    ] {
        key.state(state);
        let says = [words, &key.arn];
        expect(
            wait(provider.wrap(&key.by_arn(), &payload, AAD)),
            class,
            &says,
            next,
        );
        expect(wait(provider.unwrap(&wrapped, AAD)), class, &says, next);
        assert!(
            !wait(provider.current_version(&key.by_arn()))
                .unwrap()
                .enabled
        );
    }
    let words = wait(provider.unwrap(&wrapped, AAD)).unwrap_err();
    assert!(
        words.words().unwrap().contains("KMSInvalidStateException"),
        "its own words"
    );
    key.state("Updating");
    try_with(&provider, &key.by_arn()).unwrap();
}

#[test]
fn imported_material_that_ends_is_told_before_and_after() {
    let (user, key) = (user(), server().key(json!({})));
    let provider = AwsProvider::new(user.settings());
    key.ask(
        "state",
        json!({"state": "Enabled", "valid_to": 4_000_000_000.0}),
    );
    let version = wait(provider.current_version(&key.by_arn())).unwrap();
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    assert_eq!((version.enabled, version.expires), (true, Some(end)));
    key.ask(
        "state",
        json!({"state": "PendingImport", "valid_to": 1_500_000_000.0}),
    );
    expect(
        try_with(&provider, &key.by_arn()),
        Class::Denied(Denied::Expired),
        &["ended on 2017-07-14T02:40:00Z"],
        "import-key-material",
    );
}

#[test]
fn keys_that_bind_nothing_are_not_used() {
    let user = user();
    for (spec, usage) in [
        ("RSA_2048", "ENCRYPT_DECRYPT"),
        ("ECC_NIST_P256", "SIGN_VERIFY"),
    ] {
        let key = server().key(json!({"spec": spec, "usage": usage}));
        expect(
            try_as(user.settings(), &key.by_arn()),
            Class::Protocol,
            &[spec, "does not bind"],
            "SYMMETRIC_DEFAULT",
        );
    }
}

#[test]
fn a_wrong_secret_key_and_an_unknown_access_key_are_refused() {
    let (user, key) = (user(), server().key(json!({})));
    let with = |access_key: &str, secret: &str| {
        let mut settings = user.settings();
        settings.identity.environment = Environment::fixed([
            ("AWS_ACCESS_KEY_ID", access_key),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ]);
        try_as(settings, &key.by_arn())
    };
    with(&user.access_key, &user.secret).unwrap();
    expect(
        with(&user.access_key, "wrong"),
        FORBIDDEN,
        &[
            "secret access key does not go with",
            "InvalidSignatureException",
        ],
        "secret key",
    );
    expect(
        with("AKIAAAAAAAAAAAAAAAAA", &user.secret),
        FORBIDDEN,
        &[
            "does not know the access key",
            "UnrecognizedClientException",
        ],
        "get-caller-identity",
    );
}

#[test]
fn a_clock_that_is_wrong_is_said_to_be_and_denies_nothing() {
    let (user, key) = (user(), server().key(json!({})));
    for (seconds, side) in [(1000, "behind"), (-1000, "ahead")] {
        user.ask("clock", json!({"seconds": seconds}));
        let error = expect(
            try_as(user.settings(), &key.by_arn()),
            Class::Unreachable,
            &["clock of this host", side],
            "set the clock",
        );
        let text = error.to_string();
        assert!(
            text.contains("1000 s") || text.contains("999 s") || text.contains("1001 s"),
            "{text}"
        );
    }
    user.ask("clock", json!({"seconds": 200}));
    try_as(user.settings(), &key.by_arn()).unwrap();
}

#[test]
fn throttling_and_failures_of_the_service_pass_by_themselves() {
    let (user, key) = (user(), server().key(json!({})));
    for (code, status) in [
        ("ThrottlingException", 400),
        ("LimitExceededException", 400),
        ("KMSInternalException", 500),
        ("DependencyTimeoutException", 503),
        ("KeyUnavailableException", 500),
    ] {
        user.ask("fail", json!({"code": code, "status": status, "times": 2}));
        try_as(user.settings(), &key.by_arn()).unwrap();
    }
    // Each was asked again twice, beside what succeeded.
    let failed = user
        .seen()
        .iter()
        .filter(|one| one["status"] != 200)
        .count();
    assert_eq!(failed, 10);
    user.ask(
        "fail",
        json!({"code": "ThrottlingException", "message": "Rate exceeded"}),
    );
    expect(
        try_as(user.settings(), &key.by_arn()),
        Class::Throttled { retry_after: None },
        &["Rate exceeded"],
        "hierarchy = \"group\"",
    );
}

#[test]
fn the_service_s_id_of_a_request_is_noted() {
    let (user, key) = (user(), server().key(json!({})));
    let provider = AwsProvider::new(user.settings());
    let payload = Secret::random(64).unwrap();
    let name = key.by_arn();
    let work = provider.wrap(&name, &payload, AAD);
    let (wrapped, notes) = wait(call::observed(Uuid::new_v4(), work));
    wrapped.unwrap();
    let seen = user.seen();
    assert_eq!(notes.request_id.as_deref(), seen[1]["request_id"].as_str());
    assert_eq!(
        (
            seen[0]["operation"].as_str(),
            seen[1]["operation"].as_str(),
            seen.len()
        ),
        (Some("DescribeKey"), Some("Encrypt"), 2)
    );
    assert!(seen[1]["agent"].as_str().unwrap().starts_with("sealblk/"));
}

#[test]
fn versions_are_materials_where_the_service_tells_them_and_keys_where_not() {
    let user = user();
    let key = server().key(json!({}));
    let first = try_as(user.settings(), &key.by_arn()).unwrap();
    assert_eq!(first.version, key.material);
    assert_eq!(first.key_id, key.arn);
    let silent = server().key(json!({"tells_material": false}));
    let second = try_as(user.settings(), &silent.by_arn()).unwrap();
    assert_eq!(second.version, silent.id);
    // Rotated or not: one version.
    silent.ask("rotate", json!({}));
    let third = try_as(user.settings(), &silent.by_arn()).unwrap();
    assert_eq!(third.version, silent.id);
    // A version that does not wrap now is not replaced by another.
    let pinned = KeyRef {
        version: Some("0".repeat(64)),
        ..key.by_arn()
    };
    expect(
        try_as(user.settings(), &pinned),
        Class::NotFound,
        &["current material alone"],
        "latest",
    );
}

/// The names of the accounts in a wrap are not believed.
#[test]
fn an_edited_wrap_leads_to_no_other_key() {
    let (user, key, other) = (user(), server().key(json!({})), server().key(json!({})));
    let provider = AwsProvider::new(user.settings());
    let wrapped = try_with(&provider, &key.by_arn()).unwrap();
    let theirs = try_with(&provider, &other.by_arn()).unwrap();
    // What the other key wrapped, with the names of this one, inside and out.
    let header = wrapped.bytes.len() - (theirs.bytes.len() - header_of(&theirs));
    let spliced = Wrapped {
        bytes: [
            &wrapped.bytes[..header],
            &theirs.bytes[header_of(&theirs)..],
        ]
        .concat(),
        ..wrapped.clone()
    };
    expect(
        wait(provider.unwrap(&spliced, AAD)),
        Class::BadKey,
        &["IncorrectKeyException"],
        "backup",
    );
    // A key of an account that is not ours is not asked for by its ARN.
    let moved = |account: &str| {
        let name = key.arn.replace(ACCOUNT, account);
        let text = String::from_utf8_lossy(&wrapped.bytes[8..8 + key.arn.len()]).into_owned();
        assert_eq!(text, key.arn);
        let mut bytes = wrapped.bytes.clone();
        bytes[8..8 + name.len()].copy_from_slice(name.as_bytes());
        Wrapped {
            key_id: name,
            bytes,
            ..wrapped.clone()
        }
    };
    let before = user.seen().len();
    assert!(wait(provider.unwrap(&moved("999999999999"), AAD)).is_err());
    let asked = user.seen().split_off(before);
    assert!(
        asked.iter().all(|one| one["key"] == key.id.as_str()),
        "{asked:?}"
    );
    // Where the key set names its account, that one alone.
    let mut settings = user.settings();
    settings.accounts = vec![ACCOUNT.into()];
    let provider = AwsProvider::new(settings.clone());
    wait(provider.unwrap(&wrapped, AAD)).unwrap();
    expect(
        wait(provider.unwrap(&moved("999999999999"), AAD)),
        FORBIDDEN,
        &["account 999999999999"],
        "accounts",
    );
    assert_eq!(user.seen().last().unwrap()["key"], key.arn.as_str());
    settings.accounts = vec!["111122223333".into()];
    expect(
        try_as(settings, &key.by_arn()),
        Class::Protocol,
        &["another region or account"],
        "endpoint",
    );
}

fn header_of(wrapped: &Wrapped) -> usize {
    6 + 2 + wrapped.key_id.len() + 2 + wrapped.version.len()
}

/// A rotation by alias while a wrap is under way does not mix keys.
#[test]
fn what_is_described_is_what_encrypts() {
    let (user, key) = (user(), server().key(json!({})));
    key.ask("alias", json!({"alias": "described"}));
    try_as(user.settings(), &named("alias/described")).unwrap();
    let seen = user.seen();
    assert_eq!(seen[0]["key"], "alias/described");
    assert_eq!(seen[1]["key"], key.arn.as_str());
    let arn = format!("arn:aws:kms:{REGION}:{ACCOUNT}:alias/described");
    try_as(user.settings(), &named(&arn)).unwrap();
    expect(
        try_as(user.settings(), &named("alias/nothing")),
        Class::NotFound,
        &["alias/nothing", "NotFoundException"],
        "check key, region and account",
    );
}

/// Nothing of a volume or a key stands in CloudTrail.
#[test]
fn the_context_tells_nothing() {
    let (user, key) = (user(), server().key(json!({})));
    let provider = AwsProvider::new(user.settings());
    let secret = Secret::random(64).unwrap();
    wait(provider.wrap(&key.by_arn(), &secret, b"volume-4711")).unwrap();
    let seen = user.seen();
    let context = seen[1]["context"].as_object().unwrap();
    assert_eq!(context["sealblk-purpose"], "wrapped-key");
    assert_eq!(context["sealblk-binding"].as_str().unwrap().len(), 44);
    assert_eq!(context.len(), 2);
}
