//! An erased volume: nothing of its key is left anywhere that this host can
//! reach, wherever that is interrupted, and what it cannot reach is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "erase/attached.rs"]
mod attached;
#[path = "erase/crash.rs"]
mod crash;
#[path = "erase/header.rs"]
mod header;
#[path = "erase/stores.rs"]
mod stores;

mod key_store_support;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
mod support;

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use key_store_support::{Host, VOLUME, assert_absent};
use sealblk::volume::{Description, Wrap};
use serde_json::Value;
use support::home::Refusal;
use support::server::succeed;

/// What there was of a key before it was destroyed.
struct Before {
    dek: Vec<u8>,
    wraps: Vec<Wrap>,
    digest: [String; 2],
}

impl Before {
    fn of(host: &Host) -> Before {
        let description = host.description();
        Before {
            dek: host.dek(),
            wraps: match host.info()["key_store"]["place"].as_str() {
                Some(entry) if Path::new(entry).exists() => wraps_in(Path::new(entry)),
                _ => description.token.wraps.clone(),
            },
            digest: digest_of(&description),
        }
    }

    /// Panics if anything of it is in that file.
    fn assert_absent(&self, path: &Path) {
        let image = fs::read(path).unwrap();
        assert!(!self.wraps.is_empty());
        for wrap in &self.wraps {
            assert_absent(&image, wrap);
        }
        for text in &self.digest {
            let bytes = BASE64.decode(text).unwrap();
            for needle in [&bytes[..], text.as_bytes()] {
                let found = image.windows(needle.len()).any(|part| part == needle);
                assert!(!found, "the digest is in {}", path.display());
            }
        }
        let halves = self.dek.chunks(32);
        assert!(
            halves
                .into_iter()
                .all(|half| { !image.windows(half.len()).any(|part| part == half) })
        );
    }
}

/// The wraps in an entry of a key store.
fn wraps_in(entry: &Path) -> Vec<Wrap> {
    let entry: Value = serde_json::from_slice(&fs::read(entry).unwrap()).unwrap();
    serde_json::from_value(entry["wraps"].clone()).unwrap()
}

/// Salt and result, in base64.
fn digest_of(description: &Description) -> [String; 2] {
    let digest = serde_json::to_value(&description.digest).unwrap();
    ["salt", "digest"].map(|name| digest[name].as_str().unwrap().to_owned())
}

fn erase(host: &Host, more: &[&str]) -> Value {
    let erase = ["volume", "erase", VOLUME, "--yes", "--json"];
    serde_json::from_str(&succeed(host.sealblk(&erase).args(more))).unwrap()
}

fn erase_refused(host: &Host, more: &[&str]) -> Refusal {
    let erase = ["volume", "erase", VOLUME, "--yes"];
    host.refused(&[&erase, more].concat())
}

/// Panics unless the volume says that it was erased, to all who ask.
fn assert_erased(host: &Host) {
    let info = host.info();
    assert_eq!(info["erased"]["finished"], true, "{info}");
    assert_eq!(info["wraps"], serde_json::json!([]));
    assert_eq!(info["header_copies"]["primary"], "good");
    assert_eq!(info["header_copies"]["secondary"], "good");
    host.opening_refused()
        .expect(8, &["was erased"], "restore its header");
    let serve = ["serve", VOLUME, "--socket", "refused.sock"];
    host.refused(&serve)
        .expect(8, &["was erased on", "its key was destroyed"], "restore");
    host.move_refused("header").expect(8, &["was erased"], "");
}
