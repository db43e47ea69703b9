//! Making a volume that has data from the beginning: its key is wrapped, then
//! the data is written, then the header.

use std::fs::File;

use super::create::{absolute, no_secret_memory, note, undone};
use crate::cli::ask;
use crate::config::Config;
use crate::crypt::{Engine, Params, SectorCipher};
use crate::error::Failure;
use crate::key_store::Entry;
use crate::keys::Context;
use crate::keys::ledger::Known;
use crate::relocate::Place;
use crate::secret::Dek;
use crate::volume::{Error, Location, Plan, Volume};

/// Makes the volume of `plan` at `to`, with a new key that `key_set` wraps, kept
/// in `place` or where the key set says. `fill` writes all of its data, with
/// the cipher that it is given, into the file, from the offset on.
///
/// # Errors
/// When the key cannot be had, or writing fails. There is no volume then.
pub fn make_filled(
    config: &Config,
    plan: Plan,
    to: &Location,
    (key_set, place): (&str, Option<Place>),
    fill: &mut dyn FnMut(&SectorCipher, &File, u64) -> Result<(), Error>,
) -> Result<Volume, Failure> {
    let keys = config.key_sets();
    let dek = Dek::generate().map_err(no_secret_memory)?;
    let binding = plan.binding();
    let uuid = binding.uuid;
    let context = Context::local(Some(uuid));
    let key_store = match place {
        Some(Place::Header) => None,
        Some(Place::Store(name)) => Some(name),
        None => keys.store_for(key_set)?.map(|name| name.to_string()),
    };
    if let Some(name) = &key_store {
        // Before a key is made for nothing.
        keys.stores().place(name, uuid)?;
    }
    let wraps = ask(keys.wrap(&context, key_set, &dek, &binding.bytes()))?;
    let known = Known::new(uuid, absolute(to), key_set, &wraps);
    let wraps = match &key_store {
        None => wraps,
        Some(name) => {
            let entry = Entry::new(uuid, key_set, wraps);
            ask(keys.store(&context, name, &entry, None))?;
            Vec::new()
        }
    };
    let params = Params {
        sector_size: binding.sector_size,
        iv_tweak: 0,
        zero_units: binding.zero_units,
    };
    let cipher = SectorCipher::new(Engine::best(), &dek, params)?;
    let mut fill = |file: &File, offset: u64| fill(&cipher, file, offset);
    let made = plan.write_filled(&dek, key_set, (wraps, key_store.as_deref()), &mut fill);
    let made = made.map_err(|error| match &key_store {
        Some(name) => undone(&keys, &context, name, uuid, error),
        None => error.into(),
    })?;
    note(config, &known);
    Ok(made)
}
