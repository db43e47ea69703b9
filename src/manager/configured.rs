//! The key sets of the configuration file, as the API shows them. They are
//! changed there, and not through the API.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::model::{KeySetCheck, KeySetInfo, Origin};
use super::services::KeySets;
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::keys::{self, Context};
use crate::timestamp::Timestamp;

/// The key sets that the configuration defines.
#[derive(Debug)]
pub struct Configured(RwLock<Arc<Known>>);

#[derive(Debug)]
struct Known {
    shown: BTreeMap<String, KeySetInfo>,
    sets: keys::KeySets,
}

impl Known {
    fn of(config: &Config) -> Self {
        let shown = config.key_sets.iter().map(|(name, definition)| {
            let provider = definition.source.provider();
            let table = config.tables.get(name).cloned();
            let info = KeySetInfo {
                name: name.to_string(),
                provider: provider.into(),
                definition: table.unwrap_or_else(|| {
                    Map::from_iter([("provider".to_owned(), Value::from(provider))])
                }),
                origin: Origin::Configuration,
                disks: 0,
            };
            (name.to_string(), info)
        });
        Known {
            shown: shown.collect(),
            sets: config.key_sets(),
        }
    }

    fn show(&self, name: &str) -> Result<KeySetInfo, Failure> {
        self.shown.get(name).cloned().ok_or_else(|| {
            Failure::new(
                Kind::NotFound,
                format!("there is no key set {name:?}"),
                Some("`sealblk keyset list` names those that there are".into()),
            )
        })
    }
}

impl Configured {
    /// The key sets of `config`.
    pub fn of(config: &Config) -> Self {
        Configured(RwLock::new(Arc::new(Known::of(config))))
    }

    fn known(&self) -> Arc<Known> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }
}

fn elsewhere() -> Failure {
    Failure::new(
        Kind::Unsupported,
        "key sets are defined in the configuration file of this host",
        Some("change [key_sets] there, and run `sealblk reload`".into()),
    )
}

#[async_trait]
impl KeySets for Configured {
    async fn list(&self) -> Result<Vec<KeySetInfo>, Failure> {
        Ok(self.known().shown.values().cloned().collect())
    }

    async fn show(&self, name: &str) -> Result<KeySetInfo, Failure> {
        self.known().show(name)
    }

    async fn create(
        &self,
        _: &Context,
        _: &str,
        _: Map<String, Value>,
    ) -> Result<KeySetInfo, Failure> {
        Err(elsewhere())
    }

    async fn edit(
        &self,
        _: &Context,
        _: &str,
        _: Map<String, Value>,
    ) -> Result<KeySetInfo, Failure> {
        Err(elsewhere())
    }

    async fn remove(&self, _: &Context, _: &str) -> Result<(), Failure> {
        Err(elsewhere())
    }

    async fn check(&self, _: &Context, name: &str) -> Result<KeySetCheck, Failure> {
        let known = self.known();
        let info = known.show(name)?;
        let version = known.sets.current_version(name).await?;
        Ok(KeySetCheck {
            name: info.name,
            provider: info.provider,
            key_version: version.id,
            enabled: version.enabled,
            expires: version
                .expires
                .map(|expires| Timestamp::from(expires).to_string()),
        })
    }

    fn reconfigure(&self, config: &Config) -> Vec<String> {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *known = Arc::new(Known::of(config));
        vec!["key_sets".into()]
    }
}
