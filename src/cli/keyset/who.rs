//! Who does what is asked: the daemon, or this process.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::audit::{Event, Outcome};
use crate::cli::{ask, record};
use crate::config::{Config, Overrides};
use crate::error::{Failure, Kind};
use crate::keys::{Context, Name};
use crate::manager::client::Client;
use crate::manager::key_sets::Admin;
use crate::manager::model::{KeySetCheck, KeySetInfo, NewKeySet};
use crate::manager::services::KeySets;

/// Who does it.
pub enum Who<'a> {
    /// The daemon, which has it recorded, and uses it from then on.
    Daemon(Client),
    /// This process.
    Here(Local<'a>),
}

/// What this process needs for it.
pub struct Local<'a> {
    admin: Admin,
    context: Context,
    config: &'a Config,
}

impl<'a> Local<'a> {
    /// Looks after the key sets of `config`, which was read from the file
    /// `named`.
    pub fn new(named: Option<PathBuf>, overrides: Overrides, config: &'a Config) -> Self {
        let keys = Arc::new(config.key_sets());
        let load = move || Config::load(named.as_deref(), overrides.clone());
        Local {
            admin: Admin::new(Arc::new(load), config.clone(), keys),
            context: Context::local(None),
            config,
        }
    }

    /// Records how a change ended.
    fn record<T>(&self, event: Event<'_>, result: &Result<T, Failure>) -> Result<(), Failure> {
        record(self.config, event, Outcome::of(result))
    }
}

fn json(settings: &toml::Table) -> Result<Map<String, Value>, Failure> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(settings)) => Ok(settings),
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(Failure::new(Kind::Usage, error.to_string(), None)),
    }
}

impl Who<'_> {
    pub fn list(&self) -> Result<Vec<KeySetInfo>, Failure> {
        match self {
            Who::Daemon(client) => ask(client.key_sets()),
            Who::Here(local) => ask(KeySets::list(&local.admin)),
        }
    }

    pub fn show(&self, name: &Name) -> Result<KeySetInfo, Failure> {
        match self {
            Who::Daemon(client) => ask(client.key_set(name.as_str())),
            Who::Here(local) => ask(KeySets::show(&local.admin, name.as_str())),
        }
    }

    pub fn create(
        &self,
        name: &Name,
        settings: toml::Table,
        check: bool,
    ) -> Result<KeySetInfo, Failure> {
        let definition = json(&settings)?;
        let key_set = name.as_str();
        match self {
            Who::Daemon(client) => {
                let new = NewKeySet {
                    name: key_set.into(),
                    definition,
                };
                ask(client.create_key_set(&new, check))
            }
            Who::Here(local) => {
                let (admin, context) = (&local.admin, &local.context);
                let made = ask(KeySets::create(admin, context, key_set, definition, check));
                let provider = made.as_ref().map_or("", |made| made.provider.as_str());
                local.record(Event::KeySetCreated { key_set, provider }, &made)?;
                made
            }
        }
    }

    pub fn edit(
        &self,
        name: &Name,
        settings: toml::Table,
        unset: Vec<String>,
        check: bool,
    ) -> Result<KeySetInfo, Failure> {
        let mut changes = json(&settings)?;
        changes.extend(unset.into_iter().map(|setting| (setting, Value::Null)));
        let changed: Vec<String> = changes.keys().cloned().collect();
        let key_set = name.as_str();
        match self {
            Who::Daemon(client) => ask(client.edit_key_set(key_set, &changes, check)),
            Who::Here(local) => {
                let (admin, context) = (&local.admin, &local.context);
                let edited = ask(KeySets::edit(admin, context, key_set, changes, check));
                let event = Event::KeySetEdited {
                    key_set,
                    provider: edited.as_ref().map_or("", |set| set.provider.as_str()),
                    changed: &changed,
                };
                local.record(event, &edited)?;
                edited
            }
        }
    }

    pub fn check(&self, name: &Name) -> Result<KeySetCheck, Failure> {
        match self {
            Who::Daemon(client) => ask(client.check_key_set(name.as_str())),
            Who::Here(local) => ask(KeySets::check(&local.admin, &local.context, name.as_str())),
        }
    }

    pub fn remove(&self, name: &Name, force: bool) -> Result<(), Failure> {
        let key_set = name.as_str();
        match self {
            Who::Daemon(client) => ask(client.remove_key_set(key_set, force)),
            Who::Here(local) => {
                let removed = local.admin.remove(name, force);
                local.record(Event::KeySetRemoved { key_set }, &removed)?;
                removed
            }
        }
    }
}
