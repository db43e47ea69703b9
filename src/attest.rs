//! Proving a disk with its keys: what `sealblk verify` and the manager do
//! alike. The key sets are asked for the key of a volume, wrap by wrap, and
//! what they say goes to [`crate::verify`], which reads the disk.
//!
//! Nothing is kept: the key goes when the report is there.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use crate::error::{Explain as _, Failure, Kind};
use crate::key_store;
use crate::keys::{self, Access, Context, KeySets};
use crate::kms::Class;
use crate::secret::Dek;
use crate::verify::{Check, Keys, Outcome};
use crate::volume::{Description, Wrap};

/// Asks for the key of a volume, by each of the wraps of its own key set. Those
/// for break-glass access are not touched.
pub async fn keys_of(key_sets: &KeySets, context: &Context, description: &Description) -> Keys {
    let context = &Context {
        volume: Some(description.uuid),
        ..context.clone()
    };
    let binding = description.binding().bytes();
    let token = &description.token;
    let opened = key_sets
        .unwrap(context, token, &binding, Access::OwnKeySet)
        .await;
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            return Keys::None {
                wrong: is_wrong(&error),
                why: error.into(),
            };
        }
    };
    if !description.digest.proves(&opened.dek) {
        return Keys::None {
            wrong: true,
            why: Failure::new(
                Kind::Key,
                "what was unwrapped is not the key that the header describes",
                None,
            ),
        };
    }
    let mut wraps = Vec::new();
    let (mut good, mut bad) = (0, None);
    for (place, wrap) in opened.wraps.iter().enumerate() {
        let why = if wrap.key_set != token.key_set {
            wraps.push(facts(wrap, "not tried", None));
            continue;
        } else if place == opened.wrap {
            None
        } else {
            why_not(key_sets, context, wrap, &binding, description).await
        };
        match why {
            None => {
                good += 1;
                wraps.push(facts(wrap, "opens", None));
            }
            Some(why) => {
                wraps.push(facts(wrap, "does not open", Some(&why)));
                bad = bad.or(Some(why));
            }
        }
    }
    let key_set = &token.key_set;
    let (outcome, says) = match bad {
        None => (
            Outcome::Passed,
            format!(
                "key set {key_set:?} opens {}, and the digest of the header proves the key",
                match good {
                    1 => "the wrapped key".to_owned(),
                    several => format!("all {several} wrapped keys"),
                }
            ),
        ),
        Some(why) => (
            Outcome::Unknown,
            format!("key set {key_set:?} opens {good} of its wrapped keys, and one not: {why}"),
        ),
    };
    let check = Check::new("key", outcome, says).with("wraps", wraps);
    let check = match &token.key_store {
        Some(store) => check.with("key_store", store.as_str()),
        None => check,
    };
    Keys::Proven {
        dek: opened.dek,
        check,
    }
}

/// Why another wrap does not give the key, if so.
async fn why_not(
    key_sets: &KeySets,
    context: &Context,
    wrap: &Wrap,
    binding: &[u8],
    description: &Description,
) -> Option<String> {
    let secret = match key_sets.unwrap_secret(context, wrap, binding).await {
        Ok(secret) => secret,
        Err(why) => return Some(why.to_string()),
    };
    match Dek::try_from(secret) {
        Ok(dek) if description.digest.proves(&dek) => None,
        Ok(_) => Some("it is another key than the header describes".into()),
        Err(bad) => Some(bad.to_string()),
    }
}

fn facts(wrap: &Wrap, outcome: &str, why: Option<&str>) -> Value {
    let mut facts = json!({
        "key_set": wrap.key_set,
        "provider": wrap.provider,
        "key_id": wrap.key_id,
        "key_version": wrap.key_version,
        "outcome": outcome,
    });
    if let Some(why) = why {
        facts["why"] = why.into();
    }
    facts
}

/// Whether it is the volume that is wrong, and not the way to its key: the
/// service has unwrapped, or looked, and what it was given is not what it wrapped.
fn is_wrong(error: &keys::Error) -> bool {
    match error {
        keys::Error::Store(
            key_store::Error::Entry { .. } | key_store::Error::OtherVolume { .. },
        ) => true,
        error => error.class() == Some(Class::BadKey) || error.kind() == Kind::Corrupt,
    }
}
