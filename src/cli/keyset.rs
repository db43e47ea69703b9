//! `sealblk keyset`: the names between volumes and keys.

mod settings;
mod show;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;

use super::{ask, print, print_json, record};
use crate::audit::{Event, Outcome};
use crate::config::{Config, Overrides};
use crate::error::Failure;
use crate::keys::{Context, Name};
use crate::manager::key_sets::{Admin, Changes};
use crate::timestamp::Timestamp;
use settings::SettingArgs;

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
  sealblk keyset check prod")]
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
}

/// Runs one of the commands.
///
/// # Errors
/// Whatever the command fails with.
pub fn run(
    args: Args,
    named: Option<PathBuf>,
    overrides: Overrides,
    config: &Config,
) -> Result<(), Failure> {
    let keys = Arc::new(config.key_sets());
    let load = move || Config::load(named.as_deref(), overrides.clone());
    let admin = Admin::new(Arc::new(load), keys);
    let context = Context::local(None);
    match args.action {
        Action::Create {
            name,
            settings,
            no_check,
            json,
        } => {
            let made = ask(admin.create(&context, &name, settings.table()?, !no_check));
            let made = recorded(config, made, |made| Event::KeySetCreated {
                key_set: name.as_str(),
                provider: made.map_or("", |made| made.definition.source.provider()),
            })?;
            match json {
                true => print_json(&show::Info::of(&made)),
                false => print(format_args!(
                    "made key set {name} in {}\nnext: sealblk volume create --key-set {name} …\n",
                    config.key_set_files.path(&name).display()
                )),
            }
        }
        Action::List { json } => show::list(&admin.list()?, json),
        Action::Show { name, json } => show::one(&admin.show(&name)?, json),
        Action::Edit {
            name,
            settings,
            unset,
            no_check,
            json,
        } => {
            let changes = Changes {
                set: settings.table()?,
                unset,
            };
            let settings: Vec<String> = changes.set.keys().chain(&changes.unset).cloned().collect();
            let changed = ask(admin.edit(&context, &name, changes, !no_check));
            let changed = recorded(config, changed, |changed| Event::KeySetEdited {
                key_set: name.as_str(),
                provider: changed.map_or("", |changed| changed.definition.source.provider()),
                changed: &settings,
            })?;
            match json {
                true => print_json(&show::Info::of(&changed)),
                false => print(format_args!("changed key set {name}\n")),
            }
        }
        Action::Check { name, json } => {
            let provider = admin.show(&name)?.definition.source.provider();
            let version = ask(admin.check(&context, &name))?;
            let expires = version.expires.map(Timestamp::from);
            match json {
                true => print_json(&json!({
                    "name": name.as_str(),
                    "provider": provider,
                    "key_version": version.id,
                    "enabled": version.enabled,
                    "expires": expires,
                })),
                false => print(format_args!(
                    "key set {name} works: {provider} wrapped and unwrapped with version {}{}\n",
                    version.id,
                    expires.map_or(String::new(), |at| format!(", which expires at {at}")),
                )),
            }
        }
        Action::Remove { name, force } => {
            recorded(config, admin.remove(&name, force), |_| {
                Event::KeySetRemoved {
                    key_set: name.as_str(),
                }
            })?;
            print(format_args!("removed key set {name}\n"))
        }
    }
}

/// Records how a change of a key set ended, and returns that.
fn recorded<'e, T>(
    config: &Config,
    result: Result<T, Failure>,
    event: impl FnOnce(Option<&T>) -> Event<'e>,
) -> Result<T, Failure> {
    record(config, event(result.as_ref().ok()), Outcome::of(&result))?;
    result
}
