//! Asks each service, at the interval of its key set, for the state of the key,
//! and for what the disks that are served need of it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::ask::{Needs, ask};
use super::access::{Answer, Denial, Judge, Need, Suspicions, Turn, Verdict};
use super::disks::Disks;
use super::rotation::Keeper;
use crate::audit::Event;
use crate::error::chain;
use crate::keys::{Actor, Context, Definition, Error, KeySets, Name, Source};
use crate::kms::KeyVersion;
use crate::metrics::Metrics;
use crate::timestamp::Timestamp;

/// How often to look which key sets there are.
const TICK: Duration = Duration::from_secs(1);

/// Who polls, and who is told.
pub struct Poll {
    /// The key sets.
    pub key_sets: Arc<KeySets>,
    /// The disks that need them.
    pub disks: Weak<Disks>,
    /// What can be measured.
    pub metrics: Arc<Metrics>,
    /// Reasons to ask out of turn.
    pub suspicions: Arc<Suspicions>,
    /// Has the volumes follow the version that wraps.
    pub keeper: Arc<Keeper>,
}

/// What a service was asked for, and answered.
struct Asked {
    name: Name,
    definition: Definition,
    version: Result<KeyVersion, Error>,
    needs: Vec<(Need, Answer)>,
}

/// A key set that is polled.
struct Turned {
    definition: Definition,
    due: Instant,
    /// When it was asked last.
    asked: Instant,
    /// There is a reason to ask for everything.
    suspected: bool,
}

#[derive(Default)]
struct State {
    sets: BTreeMap<Name, Turned>,
    answers: BTreeMap<Name, String>,
    judges: BTreeMap<Need, Judge>,
}

impl Poll {
    /// Polls all key sets, for as long as the process lives. What they answer
    /// goes to the metrics, a change of it to the log, and what it means for
    /// disks to those.
    pub async fn run(self) {
        let mut state = State::default();
        let mut asked = BTreeSet::new();
        // One whose service is silent holds up no other.
        let mut asking = JoinSet::new();
        loop {
            self.key_sets.forget_old_keys();
            let needs = self.needs();
            self.look_at_definitions(&mut state, &needs);
            let now = Instant::now();
            for (name, set) in &mut state.sets {
                if set.due > now || asked.contains(name) {
                    continue;
                }
                let needs = needs.iter();
                let mut needs: Needs = needs
                    .filter(|(need, _)| need.key_set == name.as_str())
                    .map(|(need, disks)| (need.clone(), disks.clone()))
                    .collect();
                if needs.is_empty() && is_not_set_up(&set.definition) {
                    continue;
                }
                let poll = set.definition.policy.poll;
                let suspected = std::mem::take(&mut set.suspected);
                needs.retain(|need, needing| {
                    let is_denied = |judge: &Judge| judge.denied().is_some();
                    // A host with many disks asks once when it starts, not twice,
                    // and a manager that finds its disks running, later.
                    let answered = needing.believed.is_some_and(|at| at.elapsed() < poll);
                    let asked = answered || !needing.wanted;
                    !asked || suspected || state.judges.get(need).is_some_and(is_denied)
                });
                set.due = now + poll + jitter(poll);
                set.asked = now;
                asked.insert(name.clone());
                let (key_sets, name) = (self.key_sets.clone(), name.clone());
                let definition = set.definition.clone();
                asking.spawn(async move {
                    let context = Context::new(Actor::this_process("manager"), None);
                    let version = key_sets.current_version(&context, name.as_str()).await;
                    let mut answers = Vec::new();
                    for (need, needing) in needs {
                        let answer = ask(&key_sets, &need, &needing.disks).await;
                        answers.push((need, answer));
                    }
                    Asked {
                        name,
                        definition,
                        version,
                        needs: answers,
                    }
                });
            }
            tokio::select! {
                Some(Ok(done)) = asking.join_next() => {
                    asked.remove(&done.name);
                    self.take(&mut state, done);
                }
                () = self.suspicions.raised() => {
                    for name in self.suspicions.take() {
                        if let Some(set) = state.sets.get_mut(name.as_str()) {
                            // Somebody who fails again and again is not asked for each time.
                            set.due = set.due.min(set.asked + TICK);
                            set.suspected = true;
                        }
                    }
                }
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    fn needs(&self) -> Needs {
        self.disks
            .upgrade()
            .map(|it| it.needs())
            .unwrap_or_default()
    }

    /// Which key sets there are, and which have changed: those are asked at once.
    fn look_at_definitions(&self, state: &mut State, needs: &Needs) {
        let definitions: BTreeMap<_, _> = self.key_sets.definitions().into_iter().collect();
        state.sets.retain(|name, _| {
            let stays = definitions.contains_key(name);
            if !stays {
                self.metrics.key_set_removed(name.as_str());
                self.keeper.removed(name);
                state.answers.remove(name);
            }
            stays
        });
        state.judges.retain(|need, _| needs.contains_key(need));
        let now = Instant::now();
        for (name, definition) in definitions {
            match state.sets.get_mut(&name) {
                Some(set) if set.definition == definition => {}
                _ => {
                    let set = Turned {
                        definition,
                        due: now,
                        asked: now,
                        suspected: false,
                    };
                    state.sets.insert(name, set);
                }
            }
        }
    }

    /// Takes what a service answered.
    fn take(&self, state: &mut State, done: Asked) {
        let Asked {
            name,
            definition,
            version,
            needs,
        } = done;
        if let Ok(version) = &version {
            self.keeper.saw(&name, &definition, version);
        }
        let before = state.answers.get(&name);
        if let Some(answer) = told(&self.metrics, &name, &definition, &version, before) {
            state.answers.insert(name.clone(), answer);
        }
        let now = Instant::now();
        let grace = definition.policy.denied_grace;
        for (need, answer) in needs {
            let judge = state.judges.entry(need.clone()).or_default();
            let turn = judge.hear(answer, grace, now);
            // At the end of the grace period, and not at the poll after that.
            if let (Some(due), Some(set)) = (judge.due(grace), state.sets.get_mut(&name)) {
                set.due = set.due.min(due);
            }
            self.tell(&need, &definition, judge, turn);
        }
        self.publish(state);
    }

    /// Tells people of a change.
    fn tell(&self, need: &Need, definition: &Definition, judge: &Judge, turn: Turn) {
        let policy = &definition.policy;
        let (key_id, key_version) = need.key();
        let event = match (turn, judge.denied()) {
            (Turn::Began, Some(denied)) => {
                let problem = &denied.cause.problem;
                tracing::error!(
                    key_set = need.key_set,
                    key_version,
                    on_denied = policy.on_denied.as_str(),
                    grace = ?policy.denied_grace,
                    help = problem.help,
                    "{}", problem.message
                );
                Event::KeyDenied {
                    key_set: &need.key_set,
                    provider: definition.source.provider(),
                    key_id,
                    key_version,
                    on_denied: policy.on_denied.as_str(),
                    cause: &problem.message,
                }
            }
            (Turn::InForce, Some(denied)) => {
                tracing::error!(
                    key_set = need.key_set,
                    key_version,
                    on_denied = policy.on_denied.as_str(),
                    "the key has been denied since {}: the policy of the key set holds now",
                    denied.since
                );
                return;
            }
            (Turn::Ended, _) => {
                tracing::info!(
                    key_set = need.key_set,
                    key_version,
                    "the key is not denied any more"
                );
                Event::KeyRestored {
                    key_set: &need.key_set,
                    provider: definition.source.provider(),
                    key_id,
                    key_version,
                }
            }
            (Turn::None, _) | (_, None) => return,
        };
        if let Some(disks) = self.disks.upgrade() {
            disks.record(event);
        }
    }

    /// Publishes what is known of all needs.
    fn publish(&self, state: &State) {
        let mut verdicts = BTreeMap::new();
        let mut denied: BTreeMap<String, Timestamp> = BTreeMap::new();
        for (need, judge) in &state.judges {
            let Some(set) = state.sets.get(need.key_set.as_str()) else {
                continue;
            };
            let policy = &set.definition.policy;
            match judge.denied() {
                Some(it) => {
                    let first = denied.entry(need.key_set.clone()).or_insert(it.since);
                    *first = (*first).min(it.since);
                    let denial = Denial {
                        key_set: need.key_set.clone(),
                        since: it.since,
                        acts_at: it.since.after(policy.denied_grace),
                        in_force: it.in_force,
                        on_denied: policy.on_denied,
                        gone: it.cause.gone,
                        heard: it.heard.into_std(),
                        problem: it.cause.problem.clone(),
                    };
                    verdicts.insert(need.clone(), Verdict::Denied(Arc::new(denial)));
                }
                None if judge.is_granted() => {
                    verdicts.insert(need.clone(), Verdict::Granted);
                }
                None => {}
            }
        }
        for name in state.sets.keys() {
            let since = denied.get(name.as_str()).copied();
            self.metrics
                .key_set_denied(name.as_str(), since.map(Into::into));
        }
        self.suspicions.set_denied(denied.into_keys().collect());
        if let Some(disks) = self.disks.upgrade() {
            disks.access().publish(verdicts);
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
