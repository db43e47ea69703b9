//! Landlock: what a process can open, connect to and reach, whoever it is.
//!
//! What was opened before stays usable: it is about what is to be opened.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

use super::report::{Layer, Report, Standing};

/// The latest of its versions whose walls were tried here. An older kernel has
/// a part of them, which is told.
const LATEST: ABI = ABI::V6;

/// What a process can reach that is not to reach nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Below these it may do all but run programs. `None`: anywhere.
    pub write: Option<Vec<PathBuf>>,
    /// From the directories of these it may remove files; these it may read.
    pub remove: Vec<PathBuf>,
    /// Whether it may read anywhere.
    pub read: bool,
    /// Which programs it may run. `None`: any.
    pub run: Option<Vec<PathBuf>>,
    /// The TCP ports that it may listen at. `None`: any.
    pub listen: Option<Vec<u16>>,
    /// Whether it may connect to others.
    pub connect: bool,
    /// Why files can be written anywhere, if they can.
    pub why: &'static str,
}

impl Reach {
    /// Removing these files.
    pub fn removing(files: &[PathBuf]) -> Self {
        Reach {
            write: Some(vec![]),
            remove: files.to_vec(),
            run: Some(vec![]),
            listen: Some(vec![]),
            ..Reach::default()
        }
    }
}

/// Nothing can be opened, connected to or signalled any more.
pub fn shut(report: &mut Report) {
    let restricted = (|| {
        Ruleset::default()
            .handle_access(AccessFs::from_all(LATEST))?
            .handle_access(AccessNet::from_all(LATEST))?
            .scope(Scope::from_all(LATEST))?
            .create()?
            .restrict_self()
    })();
    note(
        restricted,
        "it can open, connect to and signal nothing",
        report,
    );
}

/// Nothing but `reach` can be opened or listened at any more.
pub fn reach(reach: &Reach, report: &mut Report) {
    match restrict(reach) {
        Ok(None) => report.note(Layer::Landlock, Standing::None(reach.why.into())),
        Ok(Some(status)) => note(Ok(status), &described(reach), report),
        Err(error) => note(Err(error), "", report),
    }
}

fn described(reach: &Reach) -> String {
    if reach.write.is_some() && !reach.read {
        return "it opens and reaches nothing but what it removes at its end".into();
    }
    let mut what = vec![];
    if reach.write.is_some() {
        what.push("it writes below its own directories alone");
    }
    if reach.run.is_some() {
        what.push("it runs no program");
    }
    if reach.listen.is_some() {
        what.push("it listens at no port but its own");
    }
    what.join(", ")
}

fn restrict(reach: &Reach) -> Result<Option<RestrictionStatus>, RulesetError> {
    let all = AccessFs::from_all(LATEST);
    let run: BitFlags<AccessFs> = AccessFs::Execute.into();
    let read = AccessFs::from_read(LATEST) & !run;
    let mut handled = BitFlags::<AccessFs>::EMPTY;
    if reach.write.is_some() {
        handled |= AccessFs::from_write(LATEST);
        if !reach.read {
            handled |= read;
        }
    }
    if reach.run.is_some() {
        handled |= run;
    }
    let mut net = BitFlags::<AccessNet>::EMPTY;
    if reach.listen.is_some() {
        net |= AccessNet::BindTcp;
    }
    if !reach.connect {
        net |= AccessNet::ConnectTcp;
    }
    if handled.is_empty() && net.is_empty() {
        return Ok(None);
    }
    let mut ruleset = Ruleset::default();
    if !handled.is_empty() {
        ruleset = ruleset.handle_access(handled)?;
    }
    if !net.is_empty() {
        ruleset = ruleset.handle_access(net)?;
    }
    let mut created = ruleset.create()?.set_compatibility(CompatLevel::BestEffort);
    for path in reach.write.iter().flatten() {
        created = beneath(created, path, all & !run & handled)?;
    }
    for path in &reach.remove {
        let directory = path.parent().unwrap_or(Path::new("/"));
        created = beneath(created, directory, handled & AccessFs::RemoveFile)?;
        created = beneath(created, path, handled & AccessFs::ReadFile)?;
    }
    for path in reach.run.iter().flatten() {
        created = beneath(created, path, run)?;
    }
    if !net.is_empty() {
        for port in reach.listen.iter().flatten() {
            created = created.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
        }
    }
    created.restrict_self().map(Some)
}

/// Permits that below `path`. What is not there cannot be used.
fn beneath(
    created: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(place) = PathFd::new(path) else {
        return Ok(created);
    };
    let rights = match path.is_dir() {
        true => rights,
        false => rights & AccessFs::from_file(LATEST),
    };
    match rights.is_empty() {
        true => Ok(created),
        false => created.add_rule(PathBeneath::new(place, rights)),
    }
}

fn note(restricted: Result<RestrictionStatus, RulesetError>, what: &str, report: &mut Report) {
    match restricted {
        Err(error) => report.missing(Layer::Landlock, chain(&error)),
        Ok(status) => match status.ruleset {
            RulesetStatus::FullyEnforced => report.holds(Layer::Landlock, what),
            RulesetStatus::PartiallyEnforced => report.note(
                Layer::Landlock,
                Standing::InPart(
                    "the kernel has an older version of it: networks and signals may not be in it"
                        .into(),
                ),
            ),
            RulesetStatus::NotEnforced => report.missing(
                Layer::Landlock,
                "the kernel has none (CONFIG_SECURITY_LANDLOCK, and landlock in lsm=)",
            ),
        },
    }
}

fn chain(error: &RulesetError) -> io::Error {
    io::Error::other(crate::error::chain(error))
}
