//! Making a key set one of another key, or of another service: a key vault in
//! the place of another, or the platform key, or back.
//!
//! The order is what makes it safe:
//!
//! 1. the new service has to wrap and unwrap something;
//! 2. each volume that is known has to be one that can follow: its key is in
//!    memory, or what the key set was still opens it. Else it is refused;
//! 3. the file of the key set is replaced as a whole. It has the new settings,
//!    and below `previous` those from before: from here on new wraps are of the
//!    new key, and both open;
//! 4. the volumes follow, as in a rotation;
//! 5. when no volume that is known has a wrap from before, `previous` is taken
//!    out of the file.
//!
//! After a crash at any instant the file says which of these it was, and the
//! manager goes on; so does the same command.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::{Table, Value};

use super::{Admin, Error, file_error, ours, shown};
use crate::config::{Config, POLICY_FIELDS, check_references};
use crate::error::{Failure, Kind};
use crate::keys::ledger::Known;
use crate::keys::{Access, Context, Definition, Name, Target};
use crate::rotation::Work;
use crate::volume::{Inspection, Location, Token};

/// The setting that has what a key set was before.
const PREVIOUS: &str = "previous";

impl Admin {
    /// Makes a key set one of another key or service. Who carries on what is
    /// begun is the caller.
    ///
    /// # Errors
    /// When there is none of that name, it is defined in the configuration
    /// file, the settings are wrong, a service fails, or volumes would be
    /// locked out. It stays as it was then, unless it had been switched by an
    /// earlier call already.
    pub async fn switch(
        &self,
        context: &Context,
        name: &Name,
        wanted: Table,
        force: bool,
    ) -> Result<Work, Failure> {
        let config = self.read()?;
        let old = match shown(&config, name)? {
            built_in if built_in.defined_in.is_none() => built_in,
            _ => ours(&config, name)?,
        };
        let settings = laid_over(&old.settings, wanted);
        let new = config.key_set_files.check(name, &settings)?;
        if !same_key(&new, &old.definition) {
            self.replace(context, &config, name, &old.settings, settings, force)
                .await?;
        }
        let version = self
            .key_sets
            .current_version(context, name.as_str())
            .await?;
        let rotation = &self.rotation;
        Ok(rotation.begin(context, name, &version, true).await?)
    }

    /// Steps 1 to 3.
    async fn replace(
        &self,
        context: &Context,
        config: &Config,
        name: &Name,
        old: &Table,
        mut settings: Table,
        force: bool,
    ) -> Result<(), Failure> {
        let mut back = false;
        if let Some(Value::Table(before)) = old.get(PREVIOUS) {
            let before = config.key_set_files.check(name, before)?;
            let new = config.key_set_files.check(name, &settings)?;
            // Back to that is no third one.
            back = same_key(&before, &new);
            if !back {
                return Err(Error::SwitchUnderWay {
                    name: name.to_string(),
                    from: before.source.provider(),
                }
                .into());
            }
        }
        settings.insert(PREVIOUS.into(), Value::Table(without_policy(old)));
        let definition = config.key_set_files.check(name, &settings)?;
        let mut key_sets = config.key_sets.clone();
        key_sets.insert(name.clone(), definition);
        check_references(&key_sets, &config.key_stores)?;
        let trial = self.key_sets.beside(key_sets);
        let (version, target) = trial.identify(context, name.as_str()).await?;
        if !back {
            self.refuse_look_alike(config, name, &target)?;
        }
        if !version.enabled {
            return Err(crate::rotation::Error::Disabled {
                key_set: name.to_string(),
                version: version.id,
            }
            .into());
        }
        let locked_out = self.locked_out(context, config, name).await?;
        if let Some((volumes, why)) = locked_out {
            if !force {
                return Err(Error::LockedOut {
                    name: name.to_string(),
                    volumes,
                    why,
                }
                .into());
            }
            tracing::warn!(key_set = %name, count = volumes.len(), "volumes are locked out, as it was forced");
        }
        let replace = config.defined_in.contains_key(name);
        config
            .key_set_files
            .write(name, &settings, replace)
            .map_err(file_error(config.key_set_files.path(name)))?;
        self.key_sets.replace(self.read()?.key_sets);
        tracing::info!(key_set = %name, "it is of another key now");
        Ok(())
    }

    /// Fails if wraps from before could not be told from those of the new key:
    /// two services may each have a version 1 of a key of the same name.
    fn refuse_look_alike(
        &self,
        config: &Config,
        name: &Name,
        target: &Target,
    ) -> Result<(), Failure> {
        let known = self
            .rotation
            .ledger()
            .needing(name.as_str())
            .map_err(file_error(config.daemon.state_dir.clone()))?;
        let mut wraps = known
            .iter()
            .flat_map(|known| known.wrapped_by(name.as_str()));
        match wraps.any(|by| by.same_version(target)) {
            true => Err(Error::LookAlike {
                name: name.to_string(),
                key: target.key_id.clone(),
                version: target.key_version.clone(),
            }
            .into()),
            false => Ok(()),
        }
    }

    /// The volumes that need what the key set is now, and that could not follow
    /// nor ever be opened again: their keys are not in memory, and the service
    /// does not open them. And what it says.
    async fn locked_out(
        &self,
        context: &Context,
        config: &Config,
        name: &Name,
    ) -> Result<Option<(Vec<PathBuf>, String)>, Failure> {
        let ledger = self.rotation.ledger();
        let known = ledger
            .needing(name.as_str())
            .map_err(file_error(config.daemon.state_dir.clone()))?;
        // One for each key that has wrapped some of them is tried.
        let mut by_key: BTreeMap<Vec<Target>, Vec<Known>> = BTreeMap::new();
        for known in known {
            if self.rotation.volumes().has_key(&known).await {
                continue;
            }
            let key: Vec<Target> = known.wrapped_by(name.as_str()).cloned().collect();
            by_key.entry(key).or_default().push(known);
        }
        let (mut volumes, mut why) = (Vec::new(), None);
        for group in by_key.into_values() {
            if let Err(failure) = self.opens_any(context, name, &group).await {
                volumes.extend(group.into_iter().map(|known| known.path));
                why.get_or_insert(failure.to_string());
            }
        }
        Ok(why.map(|why| (volumes, why)))
    }

    /// Whether one of these volumes opens, which have all been wrapped by the
    /// same key; or, where none can be read, whether the service still works.
    async fn opens_any(
        &self,
        context: &Context,
        name: &Name,
        volumes: &[Known],
    ) -> Result<(), Failure> {
        for known in volumes {
            let location = Location {
                data: known.path.clone(),
                header: known.header.clone(),
            };
            let look = move || Inspection::of(&location)?.description();
            let description = match tokio::task::spawn_blocking(look).await {
                Ok(Ok(description)) if description.uuid == known.uuid => description,
                _ => continue,
            };
            let context = Context {
                volume: Some(known.uuid),
                ..context.clone()
            };
            let (token, binding) = (&description.token, description.binding().bytes());
            return match self.open(&context, token, &binding).await {
                Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        self.key_sets.try_key(context, name.as_str()).await?;
        Ok(())
    }

    async fn open(
        &self,
        context: &Context,
        token: &Token,
        binding: &[u8],
    ) -> Result<(), crate::keys::Error> {
        let opened = self
            .key_sets
            .unwrap(context, token, binding, Access::OwnKeySet);
        opened.await.map(drop)
    }

    /// Step 5, if it is due. Nothing needs what was before: who calls knows.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) async fn settle(&self, name: &Name) -> Result<(), Failure> {
        // Two who find it due at once do it once.
        let _alone = self.settling.lock().await;
        let config = self.read()?;
        let Some(definition) = config.key_sets.get(name) else {
            return Ok(());
        };
        if definition.previous.is_none() {
            return Ok(());
        }
        let ledger = self.rotation.report(name).await?;
        let old = ledger.versions.iter().filter(|version| !version.current);
        if !ledger.unknown.is_empty() || old.flat_map(|version| &version.volumes).next().is_some() {
            return Ok(());
        }
        let mut settings = config.settings_of(name);
        settings.remove(PREVIOUS);
        if config.defined_in.get(name) != Some(&config.key_set_files.path(name)) {
            tracing::info!(
                key_set = %name,
                "no volume that is known needs what it was before: take `previous` out of the \
                 configuration file"
            );
            return Ok(());
        }
        config
            .key_set_files
            .write(name, &settings, true)
            .map_err(file_error(config.key_set_files.path(name)))?;
        self.key_sets.replace(self.read()?.key_sets);
        tracing::info!(key_set = %name, "no volume needs what it was before: that is forgotten");
        self.settled(name);
        Ok(())
    }
}

/// Whether both are the same key of the same service, in the same version.
fn same_key(one: &Definition, other: &Definition) -> bool {
    (&one.source, &one.version) == (&other.source, &other.version)
}

/// The settings of a provider in the place of those of another: what is of no
/// provider stays, unless it is given.
fn laid_over(old: &Table, mut wanted: Table) -> Table {
    for field in POLICY_FIELDS {
        if let Some(value) = old.get(field)
            && !wanted.contains_key(field)
        {
            wanted.insert(field.into(), value.clone());
        }
    }
    wanted.remove(PREVIOUS);
    wanted
}

fn without_policy(settings: &Table) -> Table {
    let mut settings = settings.clone();
    settings.remove(PREVIOUS);
    for field in POLICY_FIELDS {
        settings.remove(field);
    }
    settings
}

/// Fails if volumes need the key set as it is.
pub(super) fn refuse_edit(name: &Name, needed: Result<(), Failure>) -> Result<(), Failure> {
    match needed {
        Err(failure) if failure.kind() == Kind::Refused => Err(Error::NeedsSwitch {
            name: name.to_string(),
            why: failure.to_string(),
        }
        .into()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_no_provider_stays_and_what_is_of_the_old_one_goes() {
        let old: Table = "provider = \"vault\"\nkey = \"disks\"\npoll = \"5m\"\n\
                          hierarchy = \"group\"\n[previous]\nprovider = \"file\""
            .parse()
            .unwrap();
        let wanted: Table = "provider = \"kmip\"\nhierarchy = \"direct\""
            .parse()
            .unwrap();
        let expected: Table = "provider = \"kmip\"\npoll = \"5m\"\nhierarchy = \"direct\""
            .parse()
            .unwrap();
        assert_eq!(laid_over(&old, wanted), expected);
        let expected: Table = "provider = \"vault\"\nkey = \"disks\"".parse().unwrap();
        assert_eq!(without_policy(&old), expected);
    }
}
