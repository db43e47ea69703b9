//! The metrics are those of the documentation.

use std::collections::{BTreeMap, BTreeSet};

use sealblk::secret::Secret;

use super::broker::Site;
use super::client::{Client, assert_denied};

/// The families of `docs/broker.md`, with their types and labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = include_str!("../../docs/broker.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, kind, labels, _, ""] = cells[..] else {
            return None;
        };
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        let labels = labels.split(", ").filter(|label| !label.is_empty());
        let labels = labels.map(|label| label.trim_matches('`').to_owned());
        Some((name.to_owned(), (kind.to_owned(), labels.collect())))
    });
    rows.filter(|(name, _)| name.starts_with("sealblk_broker_"))
        .collect()
}

#[test]
fn each_documented_metric_moves_and_there_are_no_others() {
    let site = Site::new();
    let (host, other) = (site.host("hv1"), site.host("hv2"));
    let rule = "[[rules]]\nhosts = [\"hv1\"]\nkey_sets = [\"*\"]\n";
    site.policy(&[&host, &other], rule);
    // One more than is used: who is told that a connection has ended may come before
    // its place is free.
    let settings = "connections_of_host = 2\n";
    let broker = site.broker("broker", settings, &site.file_key_set("prod", ""));
    let client = Client::new(&site, &host, &broker);
    client.round_trip("prod");
    let denied = Client::new(&site, &other, &broker);
    assert_denied(
        denied.wrap("prod", b"x", &Secret::random(32).unwrap()),
        "no rule",
    );
    assert!(client.version("nothing").is_err());
    let stranger = site.host("stranger");
    let stranger = Client::new(&site, &stranger, &broker);
    assert_eq!(stranger.challenge().unwrap_err().0, 403);
    let nobody = Client::showing(&site, &host, None, &broker);
    assert_eq!(nobody.http("GET", "/", b""), None);
    let mut held = [client.connect(), client.connect()];
    held.iter_mut().for_each(super::hostile::ask_for_challenge);
    assert_eq!(client.http("GET", "/", b""), None);

    let text = broker.metrics();
    let documented = documented();
    let types = text.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let counter = if kind == "counter" { "_total" } else { "" };
        let ours = name.starts_with("sealblk_broker_");
        ours.then(|| (format!("{name}{counter}"), kind.to_owned()))
    });
    let types: BTreeMap<String, String> = types.collect();
    let expected: BTreeMap<String, String> = documented
        .iter()
        .map(|(name, (kind, _))| (name.clone(), kind.clone()))
        .collect();
    assert_eq!(types, expected);
    for (name, (kind, labels)) in documented {
        let sample = match kind.as_str() {
            "histogram" => format!("{name}_count"),
            _ => name.clone(),
        };
        let samples: Vec<&str> = text
            .lines()
            .filter(|line| {
                line.starts_with(&format!("{sample} ")) || line.starts_with(&format!("{sample}{{"))
            })
            .collect();
        assert!(!samples.is_empty(), "{name} is not there");
        for line in samples {
            let inner = line
                .split_once('{')
                .and_then(|(_, rest)| rest.split_once('}'));
            let found: BTreeSet<String> = inner
                .map_or("", |(inner, _)| inner)
                .split(',')
                .filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()))
                .collect();
            assert_eq!(found, labels, "{line}");
        }
        let value = broker.metric(&[&sample]);
        // That one moves in the test of the end: nothing is worked on now.
        let still = name.ends_with("_in_flight");
        assert!(still || value > 0.0, "{name} is {value}");
    }
    for (parts, value) in [
        (
            &["broker_calls_total", "outcome=\"ok\"", "host=\"hv1\""][..],
            2.0,
        ),
        (
            &["broker_calls_total", "denied_policy", "host=\"hv2\""],
            1.0,
        ),
        (&["broker_calls_total", "not_found", "key_set=\"\""], 1.0),
        (&["broker_call_seconds_count"], 4.0),
        (&["broker_connections"], 0.0),
    ] {
        let found = broker.metric(parts);
        match value {
            0.0 => assert!(found >= 1.0, "{parts:?}"),
            value => assert_eq!(found, value, "{parts:?}"),
        }
    }
}
