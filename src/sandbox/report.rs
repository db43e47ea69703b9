//! Which walls stand.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Failure, Kind};

/// A wall, or several that stand or fall together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// No program gives it more privileges than it has.
    Privileges,
    /// Nobody of the same user looks into its memory, and no core dump has it.
    Memory,
    /// It is a user of its own.
    Identity,
    /// It has no capabilities.
    Capabilities,
    /// Its network, its host name and its System V objects are its own, and
    /// there is nothing in them.
    Namespaces,
    /// Its root directory is empty.
    Root,
    /// The kernel opens nothing for it, or what it needs alone.
    Landlock,
    /// It makes the system calls that it needs, and no others.
    Seccomp,
    /// All its threads are behind the walls.
    Threads,
}

impl Layer {
    /// All of them.
    pub const ALL: [Layer; 9] = [
        Layer::Privileges,
        Layer::Memory,
        Layer::Identity,
        Layer::Capabilities,
        Layer::Namespaces,
        Layer::Root,
        Layer::Landlock,
        Layer::Seccomp,
        Layer::Threads,
    ];

    /// Its name, part of the interface.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Privileges => "no_new_privs",
            Layer::Memory => "memory",
            Layer::Identity => "user",
            Layer::Capabilities => "capabilities",
            Layer::Namespaces => "namespaces",
            Layer::Root => "root",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
            Layer::Threads => "threads",
        }
    }

    /// Whether a process that is to have all its walls needs it. Namespaces, and
    /// a root in one, want a privilege that a manager better does not have; what
    /// they keep a process from, landlock and seccomp do as well.
    pub fn is_required(self) -> bool {
        !matches!(self, Layer::Namespaces | Layer::Root)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a wall stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It holds. What that means here.
    Holds(String),
    /// A part of it holds: what does not, and why.
    InPart(String),
    /// It is not there, for this reason.
    Missing(String),
    /// This kind of process has none.
    None(String),
}

/// The walls of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    walls: Vec<(Layer, Standing)>,
}

impl Report {
    pub(super) fn holds(&mut self, layer: Layer, what: impl Into<String>) {
        self.note(layer, Standing::Holds(what.into()));
    }

    pub(super) fn missing(&mut self, layer: Layer, why: impl fmt::Display) {
        self.note(layer, Standing::Missing(why.to_string()));
    }

    /// What was said last of a wall counts.
    pub(super) fn note(&mut self, layer: Layer, standing: Standing) {
        self.walls.retain(|(known, _)| *known != layer);
        self.walls.push((layer, standing));
        self.walls.sort_by_key(|(layer, _)| *layer);
    }

    /// All that was put up, or was to be.
    pub fn walls(&self) -> &[(Layer, Standing)] {
        &self.walls
    }

    /// How a wall stands. Nothing: it was not thought of.
    pub fn of(&self, layer: Layer) -> Option<&Standing> {
        let found = self.walls.iter().find(|(known, _)| *known == layer);
        found.map(|(_, standing)| standing)
    }

    /// Those that are missing, in whole or in part, and why.
    pub fn gaps(&self) -> impl Iterator<Item = (Layer, &str)> {
        self.walls
            .iter()
            .filter_map(|(layer, standing)| match standing {
                Standing::Missing(why) | Standing::InPart(why) => Some((*layer, why.as_str())),
                Standing::Holds(_) | Standing::None(_) => None,
            })
    }

    /// Says in the log what is missing. `required`: that is an error.
    ///
    /// # Errors
    /// When a wall that is required is missing, or a part of it.
    pub fn settle(&self, required: bool) -> Result<(), Failure> {
        let gaps: Vec<_> = self
            .gaps()
            .filter(|(layer, _)| layer.is_required())
            .collect();
        if required && !gaps.is_empty() {
            let list: Vec<String> = gaps
                .iter()
                .map(|(layer, why)| format!("{layer}: {why}"))
                .collect();
            return Err(Failure::new(
                Kind::Unsupported,
                format!(
                    "the sandbox is not whole, and is required to be: {}",
                    list.join("; ")
                ),
                Some(
                    "see what `sealblk doctor` says of this host; or do without \
                     (require_sandbox, --require-sandbox)"
                        .into(),
                ),
            ));
        }
        for (layer, why) in self.gaps() {
            match layer.is_required() {
                true => tracing::warn!(%layer, "a wall of the sandbox is missing: {why}"),
                false => tracing::info!(%layer, "a wall of the sandbox is not there: {why}"),
            }
        }
        let holds = |(layer, standing): &(Layer, Standing)| {
            matches!(standing, Standing::Holds(_)).then(|| layer.name())
        };
        let standing: Vec<_> = self.walls.iter().filter_map(holds).collect();
        tracing::debug!(walls = standing.join(","), "the sandbox is closed");
        Ok(())
    }

    /// Whether this thread is the only one. Others end soon if they do: those
    /// that have looked up names for key services, for example.
    pub(super) fn check_threads(&mut self) {
        const PATIENCE: Duration = Duration::from_millis(500);
        let count = || fs::read_dir("/proc/self/task").map(Iterator::count);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match count() {
                Ok(1) => return self.holds(Layer::Threads, "all of them"),
                Ok(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(more) => {
                    let others = more.saturating_sub(1);
                    let why = format!(
                        "{others} threads of libraries were there before the walls, and have \
                         those of seccomp alone"
                    );
                    return self.note(Layer::Threads, Standing::InPart(why));
                }
                Err(error) => {
                    let why = format!("they cannot be counted: {error}");
                    return self.note(Layer::Threads, Standing::InPart(why));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_refused_if_it_is_required() {
        let mut report = Report::default();
        report.missing(Layer::Root, "not permitted");
        report.holds(Layer::Seccomp, "yes");
        report.settle(true).unwrap();
        report.missing(Layer::Landlock, "the kernel has none");
        report.settle(false).unwrap();
        let failure = report.settle(true).unwrap_err();
        assert_eq!(failure.kind(), Kind::Unsupported);
        let text = failure.to_string();
        assert!(text.contains("landlock: the kernel has none"), "{text}");
        assert!(!text.contains("root"), "{text}");
        report.holds(Layer::Landlock, "now it does");
        report.settle(true).unwrap();
        report.note(Layer::Landlock, Standing::InPart("no network".into()));
        report.settle(true).unwrap_err();
        assert_eq!(report.walls().len(), 3);
    }

    #[test]
    fn layers_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = Layer::ALL.map(Layer::name).into();
        assert_eq!(names.len(), Layer::ALL.len());
    }
}
