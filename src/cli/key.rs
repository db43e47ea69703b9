//! `sealblk key`: the platform key of this host.

mod recovery;

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::{print, print_json};
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::keys::{Name, Source};
use crate::kms::file::{self, KeyFile, State, VersionId};
use crate::timestamp::Timestamp;

/// What follows `sealblk key`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The platform key wraps the keys of volumes on hosts that use no key management
service. It lives in a file of mode 0600. WITHOUT THE KEY FILE THE VOLUMES
CANNOT BE OPENED: keep a backup of it, apart from the volumes, after `init`
and after each `add-version`.")]
pub struct Args {
    /// Key set whose key file to use
    #[arg(long, value_name = "NAME", default_value_t, global = true)]
    pub key_set: Name,

    /// What to do with it
    #[command(subcommand)]
    pub action: Action,
}

/// The commands of `sealblk key`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Make a new key file; an existing file is never overwritten
    Init,
    /// Show the versions of the key, without the key
    List {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Rotate: add a new version, which wraps from now on
    ///
    /// Older versions stay, and open what they have wrapped.
    AddVersion,
    /// Let a disabled version be used again
    Enable {
        /// As `sealblk key list` shows it
        version: VersionId,
    },
    /// Refuse to use a version, until it is enabled again
    ///
    /// Volumes whose keys it has wrapped cannot be opened meanwhile. Running
    /// disks are not stopped.
    Disable {
        /// As `sealblk key list` shows it
        version: VersionId,
    },
    /// Destroy a version, and with it each volume that needs it
    ///
    /// The version must have been disabled before, which shows harmlessly
    /// which volumes need it.
    RemoveVersion {
        /// As `sealblk key list` shows it
        version: VersionId,
        /// Confirm that no volume needs the version, or that those that do may be lost
        #[arg(long)]
        destroy_key: bool,
    },
    /// Make a recovery key, which is printed and put into a safe
    NewRecoveryKey(recovery::NewArgs),
    /// Say whether a recovery key was typed without a mistake, and which it is
    CheckRecoveryKey(recovery::CheckArgs),
}

impl Args {
    /// Says that `--key-file` would have no effect, if so.
    ///
    /// # Errors
    /// When another key set than the default one is named.
    pub(super) fn refuse_key_file(&self) -> Result<(), Failure> {
        if self.key_set == Name::default() {
            return Ok(());
        }
        Err(Failure::new(
            Kind::Usage,
            "--key-file and --key-set both name a key file",
            Some("leave out one of them".into()),
        ))
    }
}

/// Runs the command.
///
/// # Errors
/// When the key file cannot be made, read or changed as asked.
pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let path = match &args.action {
        // They are about no key set.
        Action::NewRecoveryKey(args) => return recovery::new(args),
        Action::CheckRecoveryKey(args) => return recovery::check(args),
        _ => &key_file(config, &args.key_set)?,
    };
    match args.action {
        Action::Init => init(path),
        Action::List { json } => list(path, json),
        Action::AddVersion => {
            let id = file::update(path, KeyFile::add_version)?;
            print(format_args!(
                "{}: added version {id}, which wraps from now on.\nBack up the key file again: what version {id} wraps cannot be opened without it.\n",
                path.display()
            ))
        }
        Action::Enable { version } => set_enabled(path, version, true),
        Action::Disable { version } => set_enabled(path, version, false),
        Action::RemoveVersion {
            version,
            destroy_key,
        } => remove_version(path, version, destroy_key),
        Action::NewRecoveryKey(_) | Action::CheckRecoveryKey(_) => Ok(()),
    }
}

fn key_file(config: &Config, key_set: &Name) -> Result<PathBuf, Failure> {
    match config.key_sets.get(key_set) {
        Some(definition) => match &definition.source {
            Source::File { path } => Ok(path.clone()),
            other => Err(Failure::new(
                Kind::Usage,
                format!(
                    "key set {:?} has its key at a service (provider {}), and not in a file",
                    key_set.as_str(),
                    other.provider()
                ),
                Some("rotate and disable the key there".into()),
            )),
        },
        None => Err(Failure::new(
            Kind::NotFound,
            format!("there is no key set {:?}", key_set.as_str()),
            Some("define it in the configuration, or name the key file with --key-file".into()),
        )),
    }
}

fn init(path: &Path) -> Result<(), Failure> {
    let key_file = file::create(path)?;
    let mut text = format!("{}: made platform key {}", path.display(), key_file.key_id);
    if let Some(version) = key_file.latest() {
        let _ = write!(text, ", version {}", version.id);
    }
    text.push_str(
        ".\nBack up this file now, apart from the volumes: without it they cannot be opened.\n",
    );
    print(text)
}

fn set_enabled(path: &Path, version: VersionId, enabled: bool) -> Result<(), Failure> {
    file::update(path, |key_file| key_file.set_enabled(version, enabled))?;
    let state = if enabled {
        State::Enabled
    } else {
        State::Disabled
    };
    print(format_args!(
        "{}: version {version} is {state}.\n",
        path.display()
    ))
}

fn remove_version(path: &Path, version: VersionId, confirmed: bool) -> Result<(), Failure> {
    if !confirmed {
        return Err(Failure::new(
            Kind::Refused,
            format!("removing version {version} destroys every volume whose key it has wrapped"),
            Some("if none needs it any more, add --destroy-key".into()),
        ));
    }
    file::update(path, |key_file| key_file.remove_version(version))?;
    print(format_args!(
        "{}: version {version} is removed. Backups of the key file may still hold it.\n",
        path.display()
    ))
}

/// What `key list` shows. Has no field that could hold a key.
#[derive(Serialize)]
struct Listing {
    key_file: String,
    key_id: String,
    latest: Option<VersionId>,
    versions: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: VersionId,
    created: Timestamp,
    state: State,
}

fn list(path: &Path, json: bool) -> Result<(), Failure> {
    let key_file = file::read(path)?;
    let listing = Listing {
        key_file: path.display().to_string(),
        key_id: key_file.key_id.to_string(),
        latest: key_file.latest().map(|version| version.id),
        versions: key_file
            .versions
            .iter()
            .map(|version| Row {
                id: version.id,
                created: version.created,
                state: version.state,
            })
            .collect(),
    };
    if json {
        print_json(&listing)
    } else {
        print(listing)
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "platform key {} in {}", self.key_id, self.key_file)?;
        writeln!(f, "{:<10}{:<10}CREATED", "VERSION", "STATE")?;
        for row in &self.versions {
            let mark = if self.latest == Some(row.id) {
                "  latest: wraps"
            } else {
                ""
            };
            writeln!(
                f,
                "{:<10}{:<10}{}{mark}",
                row.id.to_string(),
                row.state,
                row.created
            )?;
        }
        Ok(())
    }
}
