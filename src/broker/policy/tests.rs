//! Decisions, and what a policy cannot be.

use std::path::Path;

use super::*;

const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=";
const NOON: &str = "2026-11-22T12:00:00Z";

fn policy(rules: &str) -> Policy {
    parse(Path::new("policy.toml"), rules).unwrap()
}

fn volume(number: u128) -> Option<Uuid> {
    Some(Uuid::from_u128(number))
}

/// Whether it is permitted, and by which rule or why not.
fn decide(
    policy: &Policy,
    (host, operation, key_set, volume): (&str, Operation, &str, Option<Uuid>),
    now: &str,
) -> Result<usize, String> {
    let asked = Asked {
        host,
        operation,
        key_set,
        volume,
    };
    match policy.decide(&asked, now.parse().unwrap()) {
        Decision::Permitted(rule) => Ok(rule),
        Decision::Denied(denial) => {
            assert!(!denial.next.is_empty());
            Err(denial.cause)
        }
    }
}

use Operation::{Check, Unwrap, Wrap};

#[test]
fn nothing_is_permitted_but_by_a_rule() {
    let empty = policy("");
    let why = decide(&empty, ("hv1", Unwrap, "prod-1", None), NOON).unwrap_err();
    assert!(why.contains("no rule"), "{why}");
    let some = policy(
        "[[rules]]\nhosts = [\"hv*\"]\nkey_sets = [\"prod-*\", \"x\"]\noperations = [\"unwrap\"]\n\
         [[rules]]\nhosts = [\"maker\"]\nkey_sets = [\"*\"]\n",
    );
    for (asked, rule) in [
        (("hv1", Unwrap, "prod-1", None), Some(1)),
        (("hv22", Unwrap, "x", volume(7)), Some(1)),
        (("maker", Wrap, "any", None), Some(2)),
        (("maker", Check, "any", None), Some(2)),
        (("hv1", Wrap, "prod-1", None), None),
        (("hv1", Check, "prod-1", None), None),
        (("hv1", Unwrap, "test-1", None), None),
        (("xhv1", Unwrap, "prod-1", None), None),
        (("HV1", Unwrap, "prod-1", None), None),
    ] {
        assert_eq!(decide(&some, asked, NOON).ok(), rule, "{asked:?}");
    }
}

#[test]
fn a_rule_that_denies_is_stronger_wherever_it_stands() {
    let permit = "[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\n";
    let deny = "[[rules]]\nhosts = [\"hv2\"]\nkey_sets = [\"prod\"]\noperations = [\"unwrap\"]\ndeny = true\n";
    for (text, number) in [
        (format!("{permit}{deny}"), 2),
        (format!("{deny}{permit}"), 1),
    ] {
        let policy = policy(&text);
        let why = decide(&policy, ("hv2", Unwrap, "prod", None), NOON).unwrap_err();
        assert!(why.contains(&format!("rule {number} ")), "{why}");
        for asked in [
            ("hv1", Unwrap, "prod", None),
            ("hv2", Wrap, "prod", None),
            ("hv2", Unwrap, "test", None),
        ] {
            assert_eq!(decide(&policy, asked, NOON), Ok(3 - number));
        }
    }
    // A rule that denies permits nothing.
    let alone = policy(deny);
    assert!(decide(&alone, ("hv1", Unwrap, "prod", None), NOON).is_err());
}

#[test]
fn a_rule_holds_in_its_time() {
    let timed = policy(
        "[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\nhours = \"06:00-22:00\"\n\
         not_before = \"2026-11-01T00:00:00Z\"\nnot_after = \"2026-11-30T21:00:00Z\"\n",
    );
    let asked = ("hv1", Unwrap, "prod", volume(1));
    assert_eq!(decide(&timed, asked, NOON), Ok(1));
    for time in [
        "2026-11-22T05:59:59Z",
        "2026-11-22T22:00:00Z",
        "2026-10-31T12:00:00Z",
        "2026-11-30T21:00:01Z",
    ] {
        let why = decide(&timed, asked, time).unwrap_err();
        assert!(
            why.contains("at 06:00-22:00 UTC only (rule 1)") && why.contains(time),
            "{why}"
        );
    }
    // Another rule, for the night.
    let both = policy(
        "[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\nhours = \"06:00-22:00\"\n\
         [[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\nhours = \"22:00-06:00\"\n",
    );
    assert_eq!(decide(&both, asked, "2026-11-22T05:59:59Z"), Ok(2));
    // One that denies does so in its time.
    let freeze = policy(
        "[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\n\
         [[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\nhours = \"11:00-13:00\"\ndeny = true\n",
    );
    assert!(decide(&freeze, asked, NOON).is_err());
    assert_eq!(decide(&freeze, asked, "2026-11-22T13:00:00Z"), Ok(1));
}

#[test]
fn a_rule_for_certain_volumes_is_for_keys_that_name_theirs() {
    let (one, two) = (volume(1), volume(2));
    let certain = policy(&format!(
        "[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\nvolumes = [\"{}\", \"aaaaaaaa-*\"]\n",
        one.unwrap().to_string().to_uppercase()
    ));
    assert_eq!(decide(&certain, ("a", Unwrap, "k", one), NOON), Ok(1));
    let like = volume(0xaaaaaaaa_0000_0000_0000_000000000001);
    assert_eq!(decide(&certain, ("a", Wrap, "k", like), NOON), Ok(1));
    let why = decide(&certain, ("a", Unwrap, "k", two), NOON).unwrap_err();
    assert!(why.contains("for other volumes only (rule 1)"), "{why}");
    // A group key of the host opens any volume.
    let why = decide(&certain, ("a", Unwrap, "k", None), NOON).unwrap_err();
    assert!(why.contains("bound to no volume"), "{why}");
    // The state of the key is about no volume, and hands nothing out.
    assert_eq!(decide(&certain, ("a", Check, "k", None), NOON), Ok(1));

    let but = policy(&format!(
        "[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\n\
         [[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\nvolumes = [\"{}\"]\ndeny = true\n",
        one.unwrap()
    ));
    assert!(decide(&but, ("a", Unwrap, "k", one), NOON).is_err());
    assert_eq!(decide(&but, ("a", Unwrap, "k", two), NOON), Ok(1));
    // It could be for the volume that is denied.
    assert!(decide(&but, ("a", Unwrap, "k", None), NOON).is_err());
    assert_eq!(decide(&but, ("a", Check, "k", None), NOON), Ok(1));
}

#[test]
fn each_fault_is_told_with_its_place() {
    let host = |name: &str, key: &str| {
        format!("[[hosts]]\nname = \"{name}\"\ncertificates = [\"x\"]\nkeys = [\"{key}\"]\n")
    };
    let other = KEY.replace("AE=", "AI=");
    let rule = |more: &str| format!("[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\n{more}\n");
    let mut wrong = Vec::new();
    for (text, place, told) in [
        ("[[hosts]]\n".to_owned(), "1:1", "missing field"),
        ("what = 1\n".into(), "1:1", "unknown field"),
        (host("a b", KEY), "2:8", "not a name for a host"),
        (host("a", "hush"), "4:8", "not a public key"),
        (
            host("a", KEY) + &host("a", &other),
            "6:8",
            "two hosts \"a\"",
        ),
        (
            host("a", KEY) + &host("b", KEY),
            "8:9",
            "a key of host \"a\" as well",
        ),
        (host("a", &format!("{KEY}\", \"{KEY}")), "4:57", "twice"),
        (
            host("a", KEY).replace("[\"x\"]", "[]"),
            "3:16",
            "names no certificate",
        ),
        (
            host("a", KEY).replace("[\"x\"]", "[\"x y\"]"),
            "3:16",
            "not a pattern",
        ),
        (
            rule("operations = [\"open\"]"),
            "4:14",
            "no operation \"open\"",
        ),
        (rule("operations = []"), "4:14", "no operation"),
        (rule("volumes = []"), "4:11", "no volume"),
        (rule("hours = \"6-22\""), "4:9", "are no hours"),
        (rule("not_before = \"today\""), "4:14", "not a time"),
        (
            rule("not_before = \"2026-11-02T00:00:00Z\"\nnot_after = \"2026-11-01T00:00:00Z\""),
            "5:13",
            "before not_before",
        ),
        (rule("denied = true"), "4:1", "unknown field"),
        (rule("deny = \"yes\""), "4:8", "invalid type"),
    ] {
        let error = parse(Path::new("p.toml"), &text).unwrap_err();
        let message = error.to_string();
        if !message.starts_with(&format!("p.toml:{place}: ")) || !message.contains(told) {
            wrong.push(format!("{place} {told}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
