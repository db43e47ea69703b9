//! A key that ends soon, at a token that says so.

use std::time::{Duration, SystemTime};

use cryptoki::object::Attribute;
use sealblk::timestamp::Timestamp;
use serde_json::{Value, json};

use super::softhsm::{self, Keys, LABEL, LIBRARY, Token};
use super::support::daemon::{Daemon, command, configure};
use super::support::home::Home;
use super::support::server::{eventually, succeed};

fn warnings(daemon: &Daemon, key_set: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(daemon.home.path("audit.jsonl")).unwrap_or_default();
    let lines = text.lines();
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line["event"] == "key_expiring" && line["key_set"] == key_set)
        .collect()
}

#[test]
fn a_key_that_ends_within_a_week_is_warned_of_once() {
    let token = Token::new();
    let soon = SystemTime::now() + Duration::from_secs(5 * 86_400);
    let soon = Timestamp::from(soon).to_string();
    let end = softhsm::date(&soon[..4], &soon[5..7], &soon[8..10]);
    token.make(
        Keys::Aes(32),
        LABEL,
        &[1],
        &[Attribute::EndDate(end), Attribute::Private(false)],
    );
    let uri = format!(
        "pkcs11:{};object={LABEL}?module-path={LIBRARY}",
        token.uri()
    );
    let home = Home::new();
    let pin = token.pin_file();
    let set = format!("provider = \"pkcs11\"\nuri = {uri:?}\npin = {pin:?}\npoll = \"1s\"");
    configure(&home, "", &format!("[key_sets.latest]\n{set}\n"));
    let mut command = command(&home);
    command.env("SOFTHSM2_CONF", softhsm::configuration());
    let daemon = Daemon::run(home, command);
    let line = eventually("it is warned of", || warnings(&daemon, "latest").pop());
    assert_eq!(line["pinned"], false, "{line}");
    assert!(line["expires"].as_str().unwrap() > "20", "{line}");

    // One that stays with that version is told so.
    let version = line["key_version"].as_str().unwrap();
    let pin = format!("pin={}", pin.display());
    let create = [
        "keyset",
        "create",
        "stays",
        "--provider",
        "pkcs11",
        "--key",
        &uri,
        "--set",
        &pin,
        "--set",
        "poll=1h",
        "--key-version",
        version,
    ];
    succeed(&mut daemon.sealblk(&create));
    let line = eventually("it is warned of", || warnings(&daemon, "stays").pop());
    assert_eq!(
        (&line["pinned"], &line["key_version"]),
        (&json!(true), &json!(version))
    );
    // Asked again and again, the first one was told once.
    assert_eq!(warnings(&daemon, "latest").len(), 1);
    let metrics = daemon.get("/metrics").body;
    for key_set in ["latest", "stays"] {
        let sample =
            format!("sealblk_key_expiry_warnings_total{{key_set=\"{key_set}\",days=\"7\"}} 1");
        assert!(metrics.contains(&sample), "{sample}: {metrics}");
    }
}
