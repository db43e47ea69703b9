//! How an operation on all data of an attached disk begins (`docs/rekey.md`, "The
//! order at both ends").
//!
//! In this order: a new key, wrapped by every key set that had wrapped the old
//! one, and each wrap proven; the journal, durably ([`Step::JournalMade`]); the
//! header, which is the moment at which the operation exists
//! ([`Step::RekeyBegun`]); then the worker is told ([`Step::RekeyTold`]). A crash
//! before the header leaves a journal that nobody looks for. After it, whoever
//! finds the disk reads in its header what is to be done, and that nothing was
//! moved yet in the journal.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::conversion::wraps_like;
use crate::error::{Failure, Kind as ErrorKind};
use crate::keys::{Access, Context, KeySets};
use crate::manager::disks::{Disks, Settings, Step};
use crate::manager::supervise::Under;
use crate::rekey::{Facts, Geometry, Journal, Keys, Kind, seal_previous};
use crate::rewrap::KeyFrom;
use crate::secret::Dek;
use crate::volume::Volume;

/// An operation that has begun, as its header says.
#[derive(Debug)]
pub struct Begun {
    /// What is to be done.
    pub under: Under,
    /// The main key from now on.
    pub main: Arc<Dek>,
}

impl Disks {
    /// Begins an operation on the volume of an attached disk, as far as its header.
    ///
    /// # Errors
    /// When it cannot be: nothing has changed then, unless writing the header
    /// failed, which may say either.
    pub(super) async fn begin_in_header(
        &self,
        context: &Context,
        name: &str,
        kind: Kind,
    ) -> Result<Begun, Failure> {
        let context = context.clone();
        let (keys, settings) = (self.shared.keys.clone(), self.shared.settings.clone());
        let marks = self.shared.marks.clone();
        self.on_volume(name, async move |volume, key| {
            let context = Context {
                volume: Some(volume.uuid()),
                ..context
            };
            let begun = begin(&keys, &context, &settings, volume, key, kind).await?;
            marks.note(volume, begun.under.facts().id, false);
            Ok(begun)
        })
        .await
    }
}

async fn begin(
    keys: &KeySets,
    context: &Context,
    settings: &Settings,
    volume: &mut Volume,
    key: KeyFrom,
    kind: Kind,
) -> Result<Begun, Failure> {
    let facts = volume.facts_to_begin(kind)?;
    let own = main_key(keys, context, volume, key).await?;
    let (main, old) = match kind {
        Kind::Rekey => (new_key()?, Some(own)),
        Kind::Encrypt | Kind::Decrypt => (own, None),
    };
    let wraps = match kind {
        Kind::Rekey => wraps_like(keys, context, volume, &main).await?,
        Kind::Encrypt | Kind::Decrypt => Vec::new(),
    };
    let journal = volume.journal_area()?;
    let derived = derive(&facts, &main, old.as_deref())?;
    let geometry = Geometry::new(&facts, volume.layout().sector_size)?;
    {
        // It lies in the volume, too.
        let _here = volume.keep_here()?;
        Journal::new(volume.journal_file(), journal.clone(), derived, geometry)?.create()?;
    }
    settings.step(Step::JournalMade);
    match (kind, &old) {
        (Kind::Rekey, Some(old)) => {
            let sealed = seal_previous(&facts, &main, old)?;
            volume.begin_rekey(&facts, &main, wraps, sealed)?;
        }
        _ => volume.begin_decrypt(&facts)?,
    }
    settings.step(Step::RekeyBegun);
    Ok(Begun {
        under: Under::new(facts, journal, old),
        main,
    })
}

fn new_key() -> Result<Arc<Dek>, Failure> {
    Dek::generate().map(Arc::new).map_err(no_memory)
}

fn no_memory(error: impl std::fmt::Display) -> Failure {
    Failure::new(
        ErrorKind::Io,
        format!("there is no memory for a key: {error}"),
        Some("raise the limit of locked memory (`ulimit -l`, LimitMEMLOCK=)".into()),
    )
}

/// The key that the header describes: from memory, or else from its own key set.
pub(super) async fn main_key(
    keys: &KeySets,
    context: &Context,
    volume: &Volume,
    key: KeyFrom,
) -> Result<Arc<Dek>, Failure> {
    if let Some(dek) = key.memory
        && volume.verify_dek(&dek).is_ok()
    {
        return Ok(dek);
    }
    let opened = keys
        .unwrap(
            context,
            volume.token(),
            &volume.binding(),
            Access::OwnKeySet,
        )
        .await?;
    volume.verify_dek(&opened.dek)?;
    Ok(Arc::new(opened.dek))
}

/// The keys of an operation, from those of its data.
pub(super) fn derive(facts: &Facts, main: &Dek, old: Option<&Dek>) -> Result<Keys, Failure> {
    let (old, new) = crate::plane::moving::sides(facts.kind, main, old);
    Ok(Keys::derive(facts, old, new)?)
}
