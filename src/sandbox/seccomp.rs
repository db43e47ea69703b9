//! Has the kernel refuse system calls, by filters that are compiled from the
//! tables of [`calls`](super::calls).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::calls::{Argument, Call, DEADLY, Is};
use super::report::{Layer, Report};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("there is no filter for this architecture")]
    Architecture,
    #[error("{0}")]
    Compile(#[from] BackendError),
    #[error("the kernel takes no filter: {0}")]
    Install(#[from] seccompiler::Error),
}

/// `calls` and `more` are permitted from now on, and no others: most fail with
/// EPERM, and [`DEADLY`] ones end the process.
pub fn allow_only(calls: &[Call], more: &[Call], report: &mut Report) {
    match try_allow_only(calls, more, Threads::All) {
        Ok(()) => report.holds(
            Layer::Seccomp,
            "the system calls that it needs, and no others",
        ),
        Err(error) => report.missing(Layer::Seccomp, error),
    }
}

fn try_allow_only(calls: &[Call], more: &[Call], threads: Threads) -> Result<(), Error> {
    let mut allowed = rules(calls)?;
    // What is said there last counts: it has fewer conditions.
    allowed.extend(rules(more)?);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    install(allowed, SeccompAction::Allow, refused, threads)?;
    let deadly = rules(DEADLY)?;
    install(
        deadly,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        threads,
    )?;
    // The arguments of this one are in memory, where they cannot be looked at.
    // Of two errors, that of the latest filter counts.
    let clone3 = Rules::from([(libc::SYS_clone3, vec![])]);
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    install(clone3, unknown, SeccompAction::Allow, threads)
}

/// The same, for this thread and those that it makes.
pub fn try_on_this_thread(calls: &[Call], report: &mut Report) {
    match try_allow_only(calls, &[], Threads::This) {
        Ok(()) => report.holds(
            Layer::Seccomp,
            "processes that serve can be kept to the system calls that they need",
        ),
        Err(error) => report.missing(Layer::Seccomp, error),
    }
}

/// These end the process from now on.
pub fn forbid(calls: &[Call], report: &mut Report) {
    let forbidden = rules(calls).and_then(|rules| {
        install(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            Threads::All,
        )
    });
    match (forbidden, report.of(Layer::Seccomp)) {
        (Ok(()), None) => report.holds(
            Layer::Seccomp,
            "system calls that nobody needs end the process",
        ),
        (Ok(()), Some(_)) => {}
        (Err(error), _) => report.missing(Layer::Seccomp, error),
    }
}

/// Whose calls are looked at.
#[derive(Clone, Copy)]
enum Threads {
    All,
    This,
}

/// Does with the calls of `rules` what `found` says, and with all others `other`.
fn install(
    rules: Rules,
    found: SeccompAction,
    other: SeccompAction,
    threads: Threads,
) -> Result<(), Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| Error::Architecture)?;
    let filter = SeccompFilter::new(rules, other, found, arch)?;
    let program = BpfProgram::try_from(filter)?;
    match threads {
        Threads::All => seccompiler::apply_filter_all_threads(&program)?,
        Threads::This => seccompiler::apply_filter(&program)?,
    }
    Ok(())
}

fn rules(calls: &[Call]) -> Result<Rules, Error> {
    let rule = |call: &Call| Ok((call.number, conditions(call.only)?));
    calls.iter().map(rule).collect()
}

/// One rule for each combination of what the arguments may be.
fn conditions(only: &[Argument]) -> Result<Vec<SeccompRule>, Error> {
    let mut combinations: Vec<Vec<SeccompCondition>> = vec![vec![]];
    for argument in only {
        let mut longer = vec![];
        for condition in alternatives(argument)? {
            for combination in &combinations {
                let mut combination = combination.clone();
                combination.push(condition.clone());
                longer.push(combination);
            }
        }
        combinations = longer;
    }
    if only.is_empty() {
        // No rule is how "always" is said.
        return Ok(vec![]);
    }
    let made = combinations.into_iter().map(SeccompRule::new);
    Ok(made.collect::<Result<_, _>>()?)
}

fn alternatives(argument: &Argument) -> Result<Vec<SeccompCondition>, Error> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let make = |len, op, value| SeccompCondition::new(argument.index, len, op, value);
    Ok(match argument.is {
        Is::OwnProcess => vec![make(Dword, Eq, std::process::id().into())?],
        Is::Null => vec![make(Qword, Eq, 0)?],
        Is::Bits(mask, value) => vec![make(Qword, MaskedEq(mask), value)?],
        Is::OneOf(values) => values
            .iter()
            .map(|value| make(Dword, Eq, *value))
            .collect::<Result<_, _>>()?,
    })
}
