//! What is told of rotations.
#![forbid(unsafe_code)]

use uuid::Uuid;

use crate::audit::{Event, RotationEvent};
use crate::error::Failure;
use crate::keys::{Context, Target};

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// A key set has begun to follow its key.
    Started {
        /// The key set.
        key_set: &'a str,
        /// What wrapped before, as far as that is known.
        from: Option<&'a Target>,
        /// What wraps now.
        to: &'a Target,
        /// How many volumes have to follow.
        volumes: usize,
    },
    /// A volume has followed.
    Rewrapped {
        /// The volume.
        volume: Uuid,
        /// The key set.
        key_set: &'a str,
        /// What had wrapped its key.
        from: Option<&'a Target>,
        /// What wraps it now.
        to: &'a Target,
    },
    /// A volume could not follow.
    Failed {
        /// The volume.
        volume: Uuid,
        /// The key set.
        key_set: &'a str,
        /// Why.
        failure: &'a Failure,
    },
    /// How many known volumes have yet to follow.
    Behind {
        /// The key set.
        key_set: &'a str,
        /// How many.
        volumes: usize,
    },
    /// All volumes that are known have followed.
    Finished {
        /// The key set.
        key_set: &'a str,
        /// What wraps.
        target: &'a Target,
    },
}

impl<'n> News<'n> {
    /// What is recorded of it, if it is. The two texts are places for what
    /// has to be made for that.
    pub fn event<'e>(&self, from_text: &'e mut String, to_text: &'e mut String) -> Option<Event<'e>>
    where
        'n: 'e,
    {
        match *self {
            News::Started {
                key_set,
                from,
                to,
                volumes,
            } => Some(Event::RotationStarted(RotationEvent {
                from_version: from.map_or("", |from| &from.key_version),
                volumes: volumes as u64,
                ..of(key_set, to)
            })),
            News::Finished { key_set, target } => {
                Some(Event::RotationFinished(of(key_set, target)))
            }
            News::Rewrapped {
                volume,
                key_set,
                from,
                to,
            } => {
                *from_text = from.map(in_one).unwrap_or_default();
                *to_text = in_one(to);
                Some(Event::VolumeRewrapped {
                    volume,
                    key_set,
                    from: from_text,
                    to: to_text,
                })
            }
            News::Failed { .. } | News::Behind { .. } => None,
        }
    }
}

fn of<'e>(key_set: &'e str, target: &'e Target) -> RotationEvent<'e> {
    RotationEvent {
        key_set,
        provider: &target.provider,
        key_id: &target.key_id,
        key_version: &target.key_version,
        from_version: "",
        volumes: 0,
    }
}

/// A version of a key, in one word.
fn in_one(target: &Target) -> String {
    let Target {
        provider,
        key_id,
        key_version,
        ..
    } = target;
    format!("{provider}:{key_id}:{key_version}")
}

/// Who is told of rotations.
pub trait Told: std::fmt::Debug + Send + Sync {
    /// Takes note. What cannot be noted has happened all the same.
    fn told(&self, context: &Context, news: News<'_>);
}
