//! Who may do what, while it runs.

use sealblk::secret::Secret;
use sealblk::units::SectorSize;
use sealblk::volume::Binding;
use uuid::Uuid;

use super::broker::{Site, eventually};
use super::client::{Client, assert_denied};

pub const ALL: &str = "[[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\n";

/// The bytes that the key of a volume is bound to.
pub fn binding(uuid: Uuid) -> Vec<u8> {
    let binding = Binding {
        uuid,
        encryption: "aes-xts-plain64".into(),
        sector_size: SectorSize::B4096,
        iv_tweak: 0,
        zero_units: false,
    };
    binding.bytes()
}

#[test]
fn hosts_and_key_sets_are_permitted_by_name_and_pattern() {
    let site = Site::new();
    let (hv1, hv2, maker) = (site.host("hv1"), site.host("hv2"), site.host("maker"));
    site.policy(
        &[&hv1, &hv2, &maker],
        "[[rules]]\nhosts = [\"hv*\"]\nkey_sets = [\"prod-*\"]\noperations = [\"unwrap\", \"check\"]\n\
         [[rules]]\nhosts = [\"maker\"]\nkey_sets = [\"*\"]\n\
         [[rules]]\nhosts = [\"hv2\"]\nkey_sets = [\"prod-b\"]\ndeny = true\n",
    );
    let key_sets: String = ["prod-a", "prod-b", "test"]
        .map(|name| site.file_key_set(name, ""))
        .concat();
    let broker = site.broker("broker", "", &key_sets);
    let [hv1, hv2, maker] = [&hv1, &hv2, &maker].map(|host| Client::new(&site, host, &broker));
    let secret = Secret::random(64).unwrap();
    let wrapped = |key_set: &str| maker.wrap(key_set, b"x", &secret).unwrap();
    let (a, b, test) = (wrapped("prod-a"), wrapped("prod-b"), wrapped("test"));
    assert_eq!(hv1.unwrap("prod-a", b"x", &a).unwrap(), secret);
    assert_eq!(hv1.unwrap("prod-b", b"x", &b).unwrap(), secret);
    assert_eq!(hv2.unwrap("prod-a", b"x", &a).unwrap(), secret);
    assert!(hv1.version("prod-a").unwrap().enabled);
    assert_denied(hv2.unwrap("prod-b", b"x", &b), "rule 3 ");
    assert_denied(hv1.unwrap("test", b"x", &test), "no rule");
    assert_denied(hv1.wrap("prod-a", b"x", &secret), "no rule");
    assert_denied(hv2.version("test"), "no rule");
    // A key set that may be used does not open what another one has wrapped.
    use sealblk::kms::broker::protocol::FailureClass::{BadKey, NotFound};
    let failure = hv1.unwrap("prod-a", b"x", &test).unwrap_err();
    assert_eq!(failure.class, BadKey, "{failure:?}");
    let mut renamed = test.clone();
    renamed.key_id = "prod-a".into();
    let failure = hv1.unwrap("prod-a", b"x", &renamed).unwrap_err();
    assert_eq!(failure.class, BadKey, "{failure:?}");
    let failure = hv1.unwrap("prod-a", b"y", &a).unwrap_err();
    assert_eq!(failure.class, BadKey, "{failure:?}");
    // Permitted, and not there.
    let failure = hv1.version("prod-z").unwrap_err();
    assert_eq!(failure.class, NotFound, "{failure:?}");
    assert_eq!(maker.version("a b").unwrap_err().class, NotFound);
}

#[test]
fn a_rule_is_for_volumes_and_for_a_time() {
    let site = Site::new();
    let host = site.host("hv1");
    let (mine, other) = (Uuid::new_v4(), Uuid::new_v4());
    let rule = |more: &str| {
        site.policy(
            &[&host],
            &format!(
                "[[rules]]\nhosts = [\"hv1\"]\nkey_sets = [\"*\"]\nvolumes = [\"{mine}\"]\n{more}\n"
            ),
        );
    };
    rule("");
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let client = Client::new(&site, &host, &broker);
    let secret = Secret::random(64).unwrap();
    let wrapped = client.wrap("prod", &binding(mine), &secret).unwrap();
    let unwrap = || client.unwrap("prod", &binding(mine), &wrapped);
    assert_eq!(unwrap().unwrap(), secret);
    assert_denied(
        client.wrap("prod", &binding(other), &secret),
        "other volumes",
    );
    // The key of another volume is not had in the name of this one.
    assert_denied(client.unwrap("prod", &binding(other), &wrapped), "other");
    assert_denied(client.wrap("prod", b"group key", &secret), "no volume");
    assert!(client.version("prod").unwrap().enabled);

    rule("not_before = \"2999-01-01T00:00:00Z\"");
    assert_denied(unwrap(), "from 2999-01-01T00:00:00Z only");
    rule("not_after = \"2020-01-01T00:00:00Z\"");
    assert_denied(unwrap(), "until 2020-01-01T00:00:00Z only");
    rule(
        "not_before = \"2020-01-01T00:00:00Z\"\nnot_after = \"2999-01-01T00:00:00Z\"\nhours = \"00:00-24:00\"",
    );
    assert_eq!(unwrap().unwrap(), secret);
}

#[test]
fn what_is_withdrawn_is_denied_at_the_next_call_and_a_broken_policy_changes_nothing() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let client = Client::new(&site, &host, &broker);
    client.round_trip("prod");
    site.policy(&[&host], "");
    assert_denied(client.version("prod"), "no rule");
    site.policy(&[&host], ALL);
    client.round_trip("prod");

    site.write("policy.toml", b"[[rules]]\nhosts = \"everybody\"\n");
    client.round_trip("prod");
    eventually("the broken policy is told", || {
        let ok = broker.metric(&["sealblk_broker_policy_ok"]);
        (ok == 0.0).then_some(())
    });
    let lines = broker.audit();
    let loads: Vec<_> = lines
        .iter()
        .filter(|line| line["event"] == "policy_loaded")
        .collect();
    let outcomes: Vec<_> = loads.iter().map(|line| &line["outcome"]).collect();
    assert_eq!(outcomes, ["ok", "ok", "ok", "failed"]);
    let message = loads[3]["message"].as_str().unwrap();
    assert!(message.contains("policy.toml:2:"), "{message}");
    std::fs::remove_file(site.path("policy.toml")).unwrap();
    client.round_trip("prod");
    site.policy(&[&host], "");
    assert_denied(client.version("prod"), "no rule");
    assert_eq!(broker.metric(&["sealblk_broker_policy_ok"]), 1.0);
    // A host that is taken out is known no longer.
    site.policy(&[], ALL);
    assert_eq!(client.challenge().unwrap_err().0, 403);
}
