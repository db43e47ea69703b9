//! Who does what is asked: the daemon, or this process.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::audit::{self, Event, Outcome};
use crate::cli::{ask, record};
use crate::config::{Config, Overrides};
use crate::error::{Failure, Kind};
use crate::keys::{Context, Name};
use crate::manager::client::Client;
use crate::manager::key_sets::Admin;
use crate::manager::model::{KeySetCheck, KeySetInfo, KeySetRotation, KeySetSwitch, NewKeySet};
use crate::manager::services::KeySets;
use crate::rotation::{Here, KeySetLedger, News, Rotation, Told, Work};

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
        let rotation = Rotation::new(
            keys.clone(),
            &config.daemon.state_dir,
            Arc::new(Here { keys: keys.clone() }),
            Arc::new(Log(config.audit_log())),
            config.daemon.rewrap_rate,
        );
        Local {
            admin: Admin::new(Arc::new(load), config.clone(), keys, Arc::new(rotation)),
            context: Context::local(None),
            config,
        }
    }

    /// Records how a change ended.
    fn record<T>(&self, event: Event<'_>, result: &Result<T, Failure>) -> Result<(), Failure> {
        record(self.config, event, Outcome::of(result))
    }
}

/// What a command without a daemon tells of rotations: its audit log.
#[derive(Debug)]
struct Log(Option<Arc<audit::Log>>);

impl Told for Log {
    fn told(&self, context: &Context, news: News<'_>) {
        let Some(log) = &self.0 else { return };
        let (mut from_one, mut to_one) = (String::new(), String::new());
        let Some(event) = news.event(&mut from_one, &mut to_one) else {
            return;
        };
        if let Err(error) = log.record(&context.actor, event, Outcome::Ok) {
            tracing::error!("the audit log could not take note of a rotation: {error}");
        }
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

    /// Begins a rotation. Without a daemon, it is done when this returns.
    pub fn rotate(&self, name: &Name) -> Result<KeySetRotation, Failure> {
        let key_set = name.as_str();
        match self {
            Who::Daemon(client) => ask(client.rotate_key_set(key_set)),
            Who::Here(local) => {
                let rotated = ask(async {
                    let begun = local.admin.rotate(&local.context, name).await?;
                    local.to_the_end(begun).await
                });
                let event = Event::KeySetRotate {
                    key_set,
                    key_version: rotated.as_ref().map_or("", |done| &done.key_version),
                };
                local.record(event, &rotated)?;
                rotated
            }
        }
    }

    /// Begins a switch. Without a daemon, it is done when this returns.
    pub fn switch(
        &self,
        name: &Name,
        settings: &toml::Table,
        force: bool,
    ) -> Result<KeySetRotation, Failure> {
        let key_set = name.as_str();
        match self {
            Who::Daemon(client) => {
                let definition = json(settings)?;
                let wanted = KeySetSwitch { definition, force };
                ask(client.switch_key_set(key_set, &wanted))
            }
            Who::Here(local) => {
                let (admin, context) = (&local.admin, &local.context);
                let switched = ask(async {
                    let begun = admin.switch(context, name, settings.clone(), force);
                    local.to_the_end(begun.await?).await
                });
                let event = Event::KeySetSwitched {
                    key_set,
                    provider: switched.as_ref().map_or("", |done| &done.provider),
                    force,
                };
                local.record(event, &switched)?;
                switched
            }
        }
    }

    pub fn ledger(&self, name: Option<&Name>) -> Result<Vec<KeySetLedger>, Failure> {
        match self {
            Who::Daemon(client) => ask(client.ledger(name.map(Name::as_str))),
            Who::Here(local) => ask(local.admin.ledger(name)),
        }
    }

    pub fn forget(&self, volume: Uuid) -> Result<(), Failure> {
        match self {
            Who::Daemon(client) => ask(client.forget_volume(volume)),
            Who::Here(local) => {
                let forgotten = local.admin.forget(volume);
                local.record(Event::VolumeForgotten { volume }, &forgotten)?;
                forgotten
            }
        }
    }
}

impl Local<'_> {
    /// Has the volumes follow what was begun.
    async fn to_the_end(&self, work: Work) -> Result<KeySetRotation, Failure> {
        let mut state = self.admin.status(&work);
        state.behind = self.admin.carry_on(&self.context, work).await? as u64;
        Ok(state)
    }
}
