//! Asks each service, at the interval of its key set, for the state of the key.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::rotation::Keeper;
use crate::error::chain;
use crate::keys::{Actor, Context, Definition, Error, KeySets, Name, Source};
use crate::kms::KeyVersion;
use crate::metrics::Metrics;

/// How often to look which key sets there are.
const TICK: Duration = Duration::from_secs(1);

/// Polls all key sets, for as long as the process lives. What they answer goes
/// to the metrics, a change of it to the log, and the version to `keeper`, who
/// has the volumes follow.
pub async fn key_sets(key_sets: Arc<KeySets>, metrics: Arc<Metrics>, keeper: Arc<Keeper>) {
    let mut due: BTreeMap<Name, Instant> = BTreeMap::new();
    let mut answers: BTreeMap<Name, String> = BTreeMap::new();
    let mut asked = BTreeSet::new();
    // One whose service is silent holds up no other.
    let mut asking = JoinSet::new();
    loop {
        key_sets.forget_old_keys();
        let definitions: BTreeMap<_, _> = key_sets.definitions().into_iter().collect();
        due.retain(|name, _| {
            let stays = definitions.contains_key(name);
            if !stays {
                metrics.key_set_removed(name.as_str());
                keeper.removed(name);
                answers.remove(name);
            }
            stays
        });
        let now = Instant::now();
        for (name, definition) in definitions {
            let at = due.entry(name.clone()).or_insert(now);
            if *at > now || asked.contains(&name) || is_not_set_up(&definition) {
                continue;
            }
            let poll = definition.policy.poll;
            *at = now + poll + jitter(poll);
            asked.insert(name.clone());
            let key_sets = key_sets.clone();
            asking.spawn(async move {
                let context = Context::new(Actor::this_process("manager"), None);
                let answer = key_sets.current_version(&context, name.as_str()).await;
                (name, definition, answer)
            });
        }
        tokio::select! {
            Some(Ok((name, definition, answer))) = asking.join_next() => {
                asked.remove(&name);
                if let Ok(version) = &answer {
                    keeper.saw(&name, &definition, version);
                }
                let before = answers.get(&name);
                if let Some(answer) = told(&metrics, &name, &definition, &answer, before) {
                    answers.insert(name, answer);
                }
            }
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Whether it is the platform key of a host that has none: most have no need.
fn is_not_set_up(definition: &Definition) -> bool {
    matches!(&definition.source, Source::File { path } if !path.exists())
}

/// Tells what a service answered, and logs it if that is new. In a few words.
fn told(
    metrics: &Metrics,
    name: &Name,
    definition: &Definition,
    answer: &Result<KeyVersion, Error>,
    before: Option<&String>,
) -> Option<String> {
    let key = definition.source.key_id().unwrap_or_default();
    let provider = definition.source.provider();
    let tell = |answer| metrics.key_set_checked(name.as_str(), provider, &key, answer);
    let words = match answer {
        Ok(version) => {
            tell(Ok(version));
            match version.enabled {
                true => format!("version {}", version.id),
                false => format!("version {}, which is disabled", version.id),
            }
        }
        Err(Error::Kms { source, .. }) => {
            tell(Err(source));
            source.class().to_string()
        }
        // It has just been removed.
        Err(_) => return None,
    };
    if before != Some(&words) {
        match answer {
            Ok(_) => tracing::info!(key_set = %name, "its key is {words}"),
            Err(error) => {
                tracing::warn!(key_set = %name, "its key cannot be used: {}", chain(error));
            }
        }
    }
    Some(words)
}

/// Up to a tenth of `poll`, so that the hosts of a fleet do not ask together.
fn jitter(poll: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness all come at once, which is no reason to fail.
    let _ = getrandom::fill(&mut random);
    poll / 10 * u32::from(random[0]) / 256
}
