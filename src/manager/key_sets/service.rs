//! The same for the API, in its words.
#![forbid(unsafe_code)]

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{Admin, Shown, changes_of, settings_of};
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::keys::{Context, Name};
use crate::manager::model::{KeySetCheck, KeySetInfo, Origin};
use crate::manager::services::KeySets;
use crate::timestamp::Timestamp;

#[async_trait]
impl KeySets for Admin {
    async fn list(&self) -> Result<Vec<KeySetInfo>, Failure> {
        Admin::list(self)?.iter().map(info).collect()
    }

    async fn show(&self, name: &str) -> Result<KeySetInfo, Failure> {
        info(&Admin::show(self, &named(name)?)?)
    }

    async fn create(
        &self,
        context: &Context,
        name: &str,
        definition: Map<String, Value>,
        check: bool,
    ) -> Result<KeySetInfo, Failure> {
        let (name, settings) = (named(name)?, settings_of(definition)?);
        info(&Admin::create(self, context, &name, settings, check).await?)
    }

    async fn edit(
        &self,
        context: &Context,
        name: &str,
        changes: Map<String, Value>,
        check: bool,
    ) -> Result<KeySetInfo, Failure> {
        let (name, changes) = (named(name)?, changes_of(changes)?);
        info(&Admin::edit(self, context, &name, changes, check).await?)
    }

    async fn remove(&self, _: &Context, name: &str, force: bool) -> Result<(), Failure> {
        Admin::remove(self, &named(name)?, force)
    }

    async fn check(&self, context: &Context, name: &str) -> Result<KeySetCheck, Failure> {
        let name = named(name)?;
        let shown = Admin::show(self, &name)?;
        let version = Admin::check(self, context, &name).await?;
        Ok(KeySetCheck {
            name: name.to_string(),
            provider: shown.definition.source.provider().into(),
            key_version: version.id,
            enabled: version.enabled,
            expires: version
                .expires
                .map(|expires| Timestamp::from(expires).to_string()),
        })
    }

    fn reconfigure(&self, config: &Config) -> Vec<String> {
        self.key_sets.stores().replace(config.key_stores.clone());
        self.key_sets.replace(config.key_sets.clone());
        vec!["key_sets".into(), "key_stores".into()]
    }
}

pub(super) fn named(name: &str) -> Result<Name, Failure> {
    name.parse().map_err(|why: String| {
        Failure::new(
            Kind::Usage,
            why,
            Some("see what there is: sealblk keyset list".into()),
        )
    })
}

fn info(shown: &Shown) -> Result<KeySetInfo, Failure> {
    let definition = serde_json::to_value(&shown.settings)
        .map_err(|error| Failure::new(Kind::Internal, error.to_string(), None))?;
    Ok(KeySetInfo {
        name: shown.name.to_string(),
        provider: shown.definition.source.provider().into(),
        key: shown.definition.source.key_id(),
        definition: match definition {
            Value::Object(definition) => definition,
            _ => Map::new(),
        },
        origin: match shown.own_file {
            true => Origin::Manager,
            false => Origin::Configuration,
        },
        defined_in: shown.defined_in.clone(),
        // Whoever knows the disks counts them: the API.
        disks: 0,
    })
}
