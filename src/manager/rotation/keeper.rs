//! Who sees to it in the background that volumes follow their keys.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::expiry::Expiry;
use super::teller::Teller;
use crate::audit::Event;
use crate::error::Explain;
use crate::keys::ledger::Known;
use crate::keys::{Actor, Context, Definition, Name};
use crate::kms::KeyVersion;
use crate::manager::key_sets::Admin;
use crate::rotation::{Error, Rotation, Work};
use crate::timestamp::Timestamp;

/// Who sees to it.
pub struct Keeper {
    admin: Arc<Admin>,
    rotation: Arc<Rotation>,
    teller: Arc<Teller>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the services said last, and of which key.
    versions: BTreeMap<Name, (Definition, KeyVersion)>,
    /// Key sets whose volumes are being looked after.
    busy: BTreeSet<Name>,
    /// Those that have to be looked at once more after that.
    again: BTreeSet<Name>,
    expiry: Expiry,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

/// What the manager does of itself.
fn of_manager() -> Context {
    Context::new(Actor::this_process("manager"), None)
}

impl Keeper {
    /// Looks after the volumes of the key sets of `admin`.
    pub fn new(admin: Arc<Admin>, teller: Arc<Teller>) -> Arc<Self> {
        let (sender, mut to_do) = mpsc::unbounded_channel();
        admin.hand_on_to(sender);
        let tell = teller.clone();
        admin.on_settled(Box::new(move |name: &Name| {
            let key_set = name.as_str();
            tell.record(&of_manager(), Event::KeySetSettled { key_set });
        }));
        let keeper = Arc::new(Keeper {
            rotation: admin.rotation().clone(),
            admin,
            teller,
            state: Mutex::default(),
        });
        let carries_on = keeper.clone();
        tokio::spawn(async move {
            while let Some((context, work)) = to_do.recv().await {
                tokio::spawn(carries_on.clone().carry_on(context, work));
            }
        });
        keeper
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service of a key set has said which version wraps.
    pub fn saw(self: &Arc<Self>, name: &Name, definition: &Definition, version: &KeyVersion) {
        let due = {
            let mut state = self.state();
            let answer = (definition.clone(), version.clone());
            state.versions.insert(name.clone(), answer);
            state.expiry.due(name, version, SystemTime::now())
        };
        if let Some(days) = due {
            self.warn(name, definition, version, days);
        }
        if version.enabled {
            self.look(name);
        }
    }

    /// A disk was attached: its volume may have to follow what the others have
    /// followed already. A thousand that need not are attached in no time.
    pub async fn attached(self: &Arc<Self>, known: &Known) {
        for name in &known.key_sets {
            let Ok(name) = name.parse::<Name>() else {
                continue;
            };
            if self.rotation.is_left_behind(known, &name).await {
                self.rotation.try_again(known.uuid);
                self.look(&name);
            }
        }
    }

    /// The key set is no more.
    pub fn removed(&self, name: &Name) {
        self.state().versions.remove(name);
        self.teller.metrics.rotations().removed(name.as_str());
    }

    /// Has the volumes of a key set looked after, if that is not being done.
    fn look(self: &Arc<Self>, name: &Name) {
        let mut state = self.state();
        match state.busy.insert(name.clone()) {
            true => drop(tokio::spawn(self.clone().look_after(name.clone()))),
            false => drop(state.again.insert(name.clone())),
        }
    }

    async fn look_after(self: Arc<Self>, name: Name) {
        loop {
            let context = of_manager();
            match self.begin(&context, &name).await {
                Ok(Some(work)) => self.clone().carry_on(context, work).await,
                Ok(None) => {}
                Err(error) => {
                    let (help, text) = (error.help(), crate::error::chain(&error));
                    tracing::warn!(key_set = %name, help, "its volumes cannot follow its key: {text}");
                }
            }
            let mut state = self.state();
            if !state.again.remove(&name) {
                state.busy.remove(&name);
                return;
            }
        }
    }

    /// Begins what there is to do, if the service permits it.
    async fn begin(&self, context: &Context, name: &Name) -> Result<Option<Work>, Error> {
        let answer = self.state().versions.get(name).cloned();
        let keys = self.rotation.keys();
        let version = match answer {
            Some((of, version)) if keys.definition(name.as_str())? == of => version,
            // Nothing was said yet, or of another key.
            _ => keys.current_version(context, name.as_str()).await?,
        };
        match version.enabled {
            true => {
                let begun = self.rotation.begin(context, name, &version, false);
                Ok(Some(begun.await?))
            }
            false => Ok(None),
        }
    }

    async fn carry_on(self: Arc<Self>, context: Context, work: Work) {
        let name = work.name.clone();
        match self.admin.carry_on(&context, work).await {
            Ok(0) => {}
            Ok(behind) => {
                tracing::info!(key_set = %name, behind, "some volumes have not followed: they are tried again");
            }
            Err(failure) => {
                tracing::warn!(key_set = %name, "its volumes cannot follow its key: {failure}");
            }
        }
    }

    fn warn(&self, name: &Name, definition: &Definition, version: &KeyVersion, days: u32) {
        let Some(expires) = version.expires else {
            return;
        };
        let expires = Timestamp::from(expires).to_string();
        let pinned = definition.version.is_some();
        let next = match pinned {
            true => {
                "the key set stays with this version: make a newer one, and set it as `version`"
            }
            false => "make a newer version at the service: the volumes follow it by themselves",
        };
        let id = &version.id;
        match days {
            0 => tracing::error!(key_set = %name, version = id, expires, next, "its key has ended"),
            days => {
                tracing::warn!(key_set = %name, version = id, expires, days, next, "its key ends soon");
            }
        }
        self.teller
            .metrics
            .rotations()
            .expiring(name.as_str(), days);
        let event = Event::KeyExpiring {
            key_set: name.as_str(),
            key_version: id,
            expires: &expires,
            pinned,
        };
        self.teller.record(&of_manager(), event);
    }
}
