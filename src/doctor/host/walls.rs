//! The walls of a worker: a thread puts them up around itself, and ends.
#![forbid(unsafe_code)]

use crate::doctor::check::Check;
use crate::sandbox::{self, Layer, Standing, Uids, Walls};

/// Each wall that is not told of elsewhere.
pub(super) fn checks() -> Vec<Check> {
    let walls = Walls {
        uids: Some(Uids::DEFAULT),
        required: false,
    };
    let report = sandbox::examine(&walls);
    let told = |layer: Layer| !matches!(layer, Layer::Memory | Layer::Landlock | Layer::Threads);
    let all = Layer::ALL.into_iter().filter(|layer| told(*layer));
    all.map(|layer| check(layer, report.of(layer))).collect()
}

fn name(layer: Layer) -> &'static str {
    match layer {
        Layer::Privileges => "sandbox_privileges",
        Layer::Memory => "sandbox_memory",
        Layer::Identity => "sandbox_user",
        Layer::Capabilities => "sandbox_capabilities",
        Layer::Namespaces => "sandbox_namespaces",
        Layer::Root => "sandbox_root",
        Layer::Landlock => "sandbox_landlock",
        Layer::Seccomp => "sandbox_seccomp",
        Layer::Threads => "sandbox_threads",
    }
}

fn check(layer: Layer, standing: Option<&Standing>) -> Check {
    let name = name(layer);
    match standing {
        Some(Standing::Holds(what)) => Check::ok(name, format!("processes that serve: {what}")),
        Some(Standing::None(why)) => Check::skip(name, why.clone()),
        Some(Standing::InPart(why) | Standing::Missing(why)) => match layer.is_required() {
            true => Check::warn(name, why.clone(), help(layer)),
            // What they keep a process from, other walls do as well.
            false => Check::skip(name, why.clone()),
        },
        None => Check::skip(name, "it could not be tried"),
    }
}

fn help(layer: Layer) -> &'static str {
    match layer {
        Layer::Identity => {
            "let the manager have CAP_SETUID and CAP_SETGID, and worker_uids name users that its \
             container has"
        }
        Layer::Seccomp => "boot a kernel with CONFIG_SECCOMP_FILTER",
        _ => "see what the container or the service manager keeps this process from",
    }
}
