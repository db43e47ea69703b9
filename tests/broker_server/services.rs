//! Key sets at a real service, and brokers side by side.

use sealblk::kms::broker::protocol::{FailureClass, Operation, Outcome};
use sealblk::secret::Secret;
use serde_json::json;
use uuid::Uuid;

use super::broker::Site;
use super::client::Client;
use super::openbao::{OpenBao, ROOT};
use super::policy::ALL;

fn key_sets(bao: &OpenBao) -> String {
    let token = bao.write("token", ROOT);
    ["direct", "group"]
        .map(|hierarchy| {
            format!(
                "[key_sets.{hierarchy}]\nprovider = \"vault\"\nendpoints = [\"{}\"]\nkey = \"kek\"\n\
                 hierarchy = \"{hierarchy}\"\ntimeout = \"2s\"\ndeadline = \"4s\"\nauth = {{ method = \"token\", token = \"{}\" }}\n",
                bao.url(),
                token.display()
            )
        })
        .concat()
}

#[test]
fn siblings_share_the_service_and_nothing_else() {
    let bao = OpenBao::start();
    bao.mount("transit");
    bao.post("transit/keys/kek", json!({}));
    let site = Site::new();
    let (hv1, hv2) = (site.host("hv1"), site.host("hv2"));
    site.policy(&[&hv1, &hv2], ALL);
    let mut one = site.broker("one", "", &key_sets(&bao));
    let two = site.broker("two", "", &key_sets(&bao));
    assert_ne!(one.key(), two.key());
    let at_one = Client::new(&site, &hv1, &one);
    let at_two = Client::new(&site, &hv2, &two);
    let secret = Secret::random(64).unwrap();
    let mut made = Vec::new();
    for key_set in ["direct", "group"] {
        made.push((key_set, at_one.wrap(key_set, b"x", &secret).unwrap()));
        made.push((key_set, at_two.wrap(key_set, b"x", &secret).unwrap()));
    }
    assert!(one.directory.join("state").read_dir().unwrap().count() > 0);
    bao.post("transit/keys/kek/rotate", json!({}));
    for client in [&at_one, &at_two] {
        for (key_set, wrapped) in &made {
            assert_eq!(wrapped.version, "1");
            assert_eq!(client.unwrap(key_set, b"x", wrapped).unwrap(), secret);
        }
        // What is wrapped now has the new version, and the pinned one the old.
        assert_eq!(client.version("direct").unwrap().id, "2");
        assert_eq!(client.wrap("direct", b"x", &secret).unwrap().version, "2");
        for key_set in ["direct", "group"] {
            let pinned = Operation::Wrap {
                version: Some("1".into()),
                aad: b"x".into(),
                payload: Secret::copy_of(&secret).unwrap(),
            };
            let Outcome::Wrapped(wrapped) = client.ask(Uuid::new_v4(), key_set, pinned) else {
                panic!("not wrapped");
            };
            assert_eq!(wrapped.version, "1", "{key_set}");
            assert_eq!(client.unwrap(key_set, b"x", &wrapped).unwrap(), secret);
        }
        let pinned = Operation::CurrentVersion {
            version: Some("1".into()),
        };
        let outcome = client.ask(Uuid::new_v4(), "direct", pinned);
        assert!(matches!(outcome, Outcome::Version(version) if version.id == "1"));
    }
    // One of them gone, the other goes on.
    one.kill();
    for (key_set, wrapped) in &made {
        assert_eq!(at_two.unwrap(key_set, b"x", wrapped).unwrap(), secret);
    }
    // The audit log has the version that was used, and who asked.
    let lines = two.audit();
    let used = lines.iter().any(|line| {
        line["event"] == "unwrap"
            && line["key_version"] == "1"
            && line["actor"]["host"] == "hv2"
            && line["service_asked"] == true
            && line["request_id"].is_string()
    });
    assert!(used, "{lines:#?}");

    // What the service says comes over as it is.
    bao.post(
        "transit/keys/kek/config",
        json!({"min_decryption_version": 2}),
    );
    let failure = at_two.unwrap("direct", b"x", &made[0].1).unwrap_err();
    assert_eq!(failure.class, FailureClass::DeniedDisabled, "{failure:?}");
    assert!(failure.words.is_some(), "{failure:?}");
    bao.seal();
    let failure = at_two.version("direct").unwrap_err();
    assert_eq!(failure.class, FailureClass::Sealed, "{failure:?}");
}
