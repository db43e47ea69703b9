//! `sealblk doctor`: does this host have what it takes, and does each key set
//! work?

use std::collections::BTreeMap;

use super::{print, print_json};
use crate::config::Config;
use crate::doctor;
use crate::error::{Failure, Kind, io_kind};
use crate::keys::{Definition, Name};

/// What follows `sealblk doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Servers are connected to, with the identity that is configured, and random bytes
are wrapped and unwrapped. No volume is touched, and no entry of one in a key
store. Exits with status 0 if nothing
failed, and else with the status of the first check that did.")]
pub struct Args {
    /// Only this key set [default: all]
    #[arg(long, alias = "keyset", value_name = "NAME")]
    pub key_set: Option<Name>,

    /// Also write an entry of no volume into each key store, read it, and
    /// destroy it again
    #[arg(long)]
    pub write_key_stores: bool,

    /// As JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// With the first check that failed.
pub fn run(args: &Args, config: &Config) -> Result<(), Failure> {
    let mut key_sets = config.key_sets.clone();
    if let Some(name) = &args.key_set {
        let Some(only) = key_sets.remove(name) else {
            let known: Vec<String> = config.key_sets.keys().map(Name::to_string).collect();
            return Err(Failure::new(
                Kind::NotFound,
                format!(
                    "there is no key set {:?}; there is {}",
                    name.as_str(),
                    known.join(", ")
                ),
                Some("define it as [key_sets.NAME] in the configuration, or name another".into()),
            ));
        };
        key_sets = BTreeMap::from([(name.clone(), only)]);
    }
    let mut key_stores = config.key_stores.clone();
    if args.key_set.is_some() {
        // Those that it is about.
        let named = |set: &Definition| set.policy.key_store.clone();
        let named: Vec<_> = key_sets.values().filter_map(named).collect();
        key_stores.retain(|name, _| named.contains(name));
    }
    let key_stores = doctor::KeyStores {
        definitions: key_stores,
        write: args.write_key_stores,
    };
    let report = doctor::examine(&key_sets, &key_stores).map_err(|error| {
        Failure::new(
            io_kind(&error),
            format!("cannot examine anything: {error}"),
            Some("check the limits of the process (`ulimit -a`)".into()),
        )
    })?;
    #[cfg(feature = "broker")]
    let report = match (&config.broker, &args.key_set) {
        (Some(settings), None) => report.with_broker(crate::broker::examine(settings, config)),
        _ => report,
    };
    match args.json {
        true => print_json(&report)?,
        false => print(&report)?,
    }
    report.failure().map_or(Ok(()), Err)
}
