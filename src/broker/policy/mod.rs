//! Who may do what: the hosts, and the rules for them.
//!
//! Nothing is permitted but by a rule, and a rule that denies is stronger than
//! all that permit. What is decided here depends on nothing but the policy,
//! the call and the time, all of which are handed in.
//!
//! - `text`: from the file to a [`Policy`], with the place of each fault,
//! - `rule`, `pattern`, `times`: what a rule consists of,
//! - `watch`: the policy that holds now, read again when its file changes.
#![forbid(unsafe_code)]

mod pattern;
mod rule;
mod text;
mod times;
mod watch;

pub use pattern::Pattern;
pub use rule::{Operation, Rule, Volumes};
pub use text::{Error, parse};
pub use times::Times;
pub use watch::{Loaded, News, Watched};

use std::fmt;

use uuid::Uuid;

use crate::kms::broker::seal::PublicKey;
use crate::timestamp::Timestamp;

/// A policy: hosts and rules, as they stand in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Each has a name of its own, and keys that no other has.
    pub hosts: Vec<Host>,
    /// In their order; the first one is number 1.
    pub rules: Vec<Rule>,
}

/// A host that may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// What rules and records call it.
    pub name: String,
    /// What its certificates are called.
    pub certificates: Vec<Pattern>,
    /// Its public keys: two while one is replaced.
    pub keys: Vec<PublicKey>,
}

/// What a host asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The host.
    pub host: &'a str,
    /// What for.
    pub operation: Operation,
    /// The key set.
    pub key_set: &'a str,
    /// The volume that the key is bound to, where it is bound to one.
    pub volume: Option<Uuid>,
}

/// What the policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is permitted by the rule of this number.
    Permitted(usize),
    /// It is not, and why.
    Denied(Denial),
}

/// Why something is not permitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// In plain words.
    pub cause: String,
    /// What to do about it.
    pub next: String,
}

impl Policy {
    /// The host of that name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// Decides. `now` is what time it is.
    pub fn decide(&self, asked: &Asked<'_>, now: Timestamp) -> Decision {
        let rules = || {
            self.rules
                .iter()
                .enumerate()
                .map(|(at, rule)| (at + 1, rule))
        };
        if let Some((number, rule)) = rules().find(|(_, rule)| rule.deny && rule.denies(asked, now))
        {
            return Decision::Denied(Denial {
                cause: format!("rule {number} of the broker's policy denies {asked}"),
                next: match rule.volumes.is_for_all() || asked.volume.is_some() {
                    true => "if it is to be permitted, have the rule changed by who keeps the policy of the broker".into(),
                    false => "the rule is about certain volumes, and this is bound to none, so that it may be for one of them: set hierarchy = \"direct\" for the key set on the host".into(),
                },
            });
        }
        let permits: Vec<_> = rules()
            .filter(|(_, rule)| !rule.deny && rule.is_about(asked))
            .collect();
        let mut other_times = None;
        let mut other_volumes = None;
        for (number, rule) in permits {
            if !rule.volumes.permit(asked) {
                other_volumes.get_or_insert(number);
            } else if !rule.times.hold(now) {
                other_times.get_or_insert((number, rule));
            } else {
                return Decision::Permitted(number);
            }
        }
        Decision::Denied(match (other_times, other_volumes) {
            (Some((number, rule)), _) => Denial {
                cause: format!(
                    "the broker's policy permits {asked} {} only (rule {number}), and it is {now}",
                    rule.times
                ),
                next: "try again at that time, or have the rule changed by who keeps the policy of the broker".into(),
            },
            (None, Some(number)) if asked.volume.is_none() => Denial {
                cause: format!(
                    "the broker's policy permits {asked} for certain volumes only (rule {number}), and this is bound to no volume"
                ),
                next: "set hierarchy = \"direct\" for the key set on the host, so that each call names its volume".into(),
            },
            (None, Some(number)) => Denial {
                cause: format!(
                    "the broker's policy permits {asked} for other volumes only (rule {number})"
                ),
                next: "have the volume added to the rule by who keeps the policy of the broker".into(),
            },
            (None, None) => Denial {
                cause: format!("no rule of the broker's policy permits {asked}"),
                next: "have a rule added by who keeps the policy of the broker, if it is to be permitted".into(),
            },
        })
    }
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "host {:?} to {} with key set {:?}",
            self.host, self.operation, self.key_set
        )?;
        match self.volume {
            Some(volume) => write!(f, " for volume {volume}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
