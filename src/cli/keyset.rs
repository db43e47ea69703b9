//! `sealblk keyset`: the names between volumes and keys.

mod follow;
mod settings;
mod show;
mod who;

use std::path::PathBuf;

use clap::Subcommand;
use uuid::Uuid;

use super::{print, print_json};
use crate::config::{Config, Overrides};
use crate::error::Failure;
use crate::keys::Name;
use settings::SettingArgs;
use who::{Local, Who};

/// What follows `sealblk keyset`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A key set names a key at a key management service, and how it is used. Volumes
name a key set, never a key. One that is made here has a file of its own below
key-sets.d, beside the configuration file; its settings are those of a table
[key_sets.NAME], which docs/kms.md lists for each provider.

Examples:
  sealblk keyset create prod --provider vault --endpoint https://vault-1:8200 \\
    --endpoint https://vault-2:8200 --key disks \\
    --set 'auth={ method = \"approle\", role_id = \"…\", secret_id = \"/etc/sealblk/secret-id\" }'
  sealblk keyset edit prod --set poll=5m --set break_glass=safe
  sealblk keyset check prod
  sealblk keyset ledger prod
  sealblk keyset switch prod --provider kmip --endpoint kmip-1:5696 --key disks \\
    --set client_cert=/etc/sealblk/host.pem --set client_key=/etc/sealblk/host.key")]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// The commands of `sealblk keyset`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Make a key set, once its service has wrapped and unwrapped something
    Create {
        /// What to call it
        name: Name,
        /// Its settings.
        #[command(flatten)]
        settings: SettingArgs,
        /// Do not ask the service
        #[arg(long)]
        no_check: bool,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Show all key sets
    List {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Show one key set
    Show {
        /// Which one
        name: Name,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Change settings of a key set
    Edit {
        /// Which one
        name: Name,
        /// Its settings.
        #[command(flatten)]
        settings: SettingArgs,
        /// Setting to take away; may come several times
        #[arg(long, value_name = "SETTING")]
        unset: Vec<String>,
        /// Do not ask the service
        #[arg(long)]
        no_check: bool,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Have the service of a key set really wrap and unwrap something
    Check {
        /// Which one
        name: Name,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Remove a key set that no volume needs
    Remove {
        /// Which one
        name: Name,
        /// Also if volumes of this host need it, which then cannot be opened
        #[arg(long)]
        force: bool,
    },
    /// Have the volumes of a key set follow its key, now
    ///
    /// The daemon does so by itself whenever it finds a new version (poll of the
    /// key set). Disks are served on.
    Rotate {
        /// Which one
        name: Name,
        /// Do not wait until the volumes have followed
        #[arg(long)]
        no_wait: bool,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Make a key set one of another key or service; disks are served on
    ///
    /// The new one has to wrap and unwrap first. Volumes that are attached follow
    /// from the keys in memory, also if the old service is gone for good. It is
    /// refused if volumes of this host would be locked out. When it was
    /// interrupted, the same command goes on.
    Switch {
        /// Which one
        name: Name,
        /// Its settings.
        #[command(flatten)]
        settings: SettingArgs,
        /// Also if volumes that this host knows are locked out by that
        #[arg(long)]
        force: bool,
        /// Do not wait until the volumes have followed
        #[arg(long)]
        no_wait: bool,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Show which volumes need which version of a key, and which are free
    Ledger {
        /// Of this key set alone
        name: Option<Name>,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Forget a volume that is gone for good, so that the ledger counts it no more
    ForgetVolume {
        /// Which one
        uuid: Uuid,
    },
}

/// Runs one of the commands: the daemon does it, where one runs, and otherwise
/// this process itself.
///
/// # Errors
/// Whatever the command fails with.
pub fn run(
    args: Args,
    named: Option<PathBuf>,
    overrides: Overrides,
    config: &Config,
) -> Result<(), Failure> {
    let who = match super::running_daemon(config)? {
        None => Who::Here(Local::new(named, overrides, config)),
        Some(client) => Who::Daemon(client),
    };
    match args.action {
        Action::Create {
            name,
            settings,
            no_check,
            json,
        } => {
            let made = who.create(&name, settings.table()?, !no_check)?;
            match json {
                true => print_json(&made),
                false => print(format_args!(
                    "made key set {name}{}\nnext: sealblk volume create --key-set {name} …\n",
                    made.defined_in
                        .map_or(String::new(), |path| format!(" in {}", path.display())),
                )),
            }
        }
        Action::List { json } => show::list(&who.list()?, json),
        Action::Show { name, json } => show::one(&who.show(&name)?, json),
        Action::Edit {
            name,
            settings,
            unset,
            no_check,
            json,
        } => {
            let changed = who.edit(&name, settings.table()?, unset, !no_check)?;
            match json {
                true => print_json(&changed),
                false => print(format_args!("changed key set {name}\n")),
            }
        }
        Action::Check { name, json } => {
            let said = who.check(&name)?;
            match json {
                true => print_json(&said),
                false => print(format_args!(
                    "key set {name} works: {} wrapped and unwrapped with version {}{}\n",
                    said.provider,
                    said.key_version,
                    said.expires
                        .map_or(String::new(), |at| format!(", which expires at {at}")),
                )),
            }
        }
        Action::Remove { name, force } => {
            who.remove(&name, force)?;
            print(format_args!("removed key set {name}\n"))
        }
        Action::Rotate {
            name,
            no_wait,
            json,
        } => follow::rotate(&who, &name, no_wait, json),
        Action::Switch {
            name,
            settings,
            force,
            no_wait,
            json,
        } => follow::switch(&who, &name, &settings.table()?, force, no_wait, json),
        Action::Ledger { name, json } => follow::ledger(&who.ledger(name.as_ref())?, json),
        Action::ForgetVolume { uuid } => {
            who.forget(uuid)?;
            print(format_args!("forgot volume {uuid}\n"))
        }
    }
}
