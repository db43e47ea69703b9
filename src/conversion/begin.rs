//! How an operation begins: the new key is wrapped; the journal is written; then
//! the header, from which on the operation exists (`docs/rekey.md`).
#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::Range;

use super::{Error, Sides};
use crate::error::Kind as ErrorKind;
use crate::keys::{Context, KeySets, is_recovery};
use crate::prepare::{self, Opening};
use crate::rekey::{Geometry, Journal, Kind, seal_previous};
use crate::secret::Dek;
use crate::units::SectorSize;
use crate::volume::{PlainPlan, Volume, Wrap};

/// Gives a volume a new key, with which none of its data is encrypted yet.
///
/// # Errors
/// When it cannot be had. Nothing has changed then, unless writing the header
/// failed, which may say either.
pub async fn begin_rekey(
    key_sets: &KeySets,
    context: &Context,
    volume: &mut Volume,
    opening: &Opening,
) -> Result<Sides, Error> {
    let facts = volume.facts_to_begin(Kind::Rekey)?;
    let old = own_key(key_sets, context, volume, opening).await?;
    let main = new_key()?;
    let wraps = wraps_like(key_sets, context, volume, &main).await?;
    let sides = Sides {
        facts,
        main,
        old: Some(old),
    };
    make_journal(volume, &sides)?;
    let (facts, main) = (&sides.facts, &sides.main);
    if let Some(old) = &sides.old {
        let previous = seal_previous(facts, main, old)?;
        volume.begin_rekey(facts, main, wraps, previous)?;
    }
    Ok(sides)
}

/// Lets a volume be decrypted where it is; none of its data is yet.
///
/// # Errors
/// As [`begin_rekey`].
pub async fn begin_decrypt(
    key_sets: &KeySets,
    context: &Context,
    volume: &mut Volume,
    opening: &Opening,
) -> Result<Sides, Error> {
    let facts = volume.facts_to_begin(Kind::Decrypt)?;
    let main = own_key(key_sets, context, volume, opening).await?;
    let sides = Sides {
        facts,
        main,
        old: None,
    };
    make_journal(volume, &sides)?;
    volume.begin_decrypt(&sides.facts)?;
    Ok(sides)
}

/// Makes a header for a plain disk, of which nothing is encrypted yet. Also says
/// what has wrapped its key.
///
/// # Errors
/// As [`begin_rekey`].
pub async fn begin_encrypt(
    key_sets: &KeySets,
    context: &Context,
    plan: PlainPlan,
    key_set: &str,
    unit: SectorSize,
) -> Result<(Volume, Sides), Error> {
    let main = new_key()?;
    let binding = plan.binding().bytes();
    let wraps = key_sets.wrap(context, key_set, &main, &binding).await?;
    let sides = Sides {
        facts: plan.facts(),
        main,
        old: None,
    };
    let begin = |file: &File, area: Range<u64>| -> Result<(), Error> {
        let geometry = Geometry::new(&sides.facts, unit)?;
        Journal::new(file, area, sides.derive()?, geometry)?.create()?;
        Ok(())
    };
    let volume = plan.write(&sides.main, key_set, wraps, begin)?;
    Ok((volume, sides))
}

fn make_journal(volume: &Volume, sides: &Sides) -> Result<(), Error> {
    let geometry = Geometry::new(&sides.facts, volume.layout().sector_size)?;
    let area = volume.journal_area()?;
    Journal::new(volume.journal_file(), area, sides.derive()?, geometry)?.create()?;
    Ok(())
}

pub(super) fn new_key() -> Result<Dek, Error> {
    Dek::generate().map_err(Error::system("get locked memory or random bytes for a key"))
}

pub(super) async fn own_key(
    key_sets: &KeySets,
    context: &Context,
    volume: &Volume,
    opening: &Opening,
) -> Result<Dek, Error> {
    let opened = prepare::unwrap(key_sets, context, volume, opening).await?;
    volume.verify_dek(&opened.dek)?;
    Ok(opened.dek)
}

/// Wraps of `dek` by all those key sets that have wrapped the key of this volume,
/// each of which was opened again.
///
/// # Errors
/// When one of them does not wrap, or what it has wrapped does not open; and for
/// volumes with a wrap for a recovery key, which nobody here has.
pub async fn wraps_like(
    key_sets: &KeySets,
    context: &Context,
    volume: &Volume,
    dek: &Dek,
) -> Result<Vec<Wrap>, Error> {
    let token = volume.token();
    if let Some(wrap) = token.wraps.iter().find(|wrap| is_recovery(wrap)) {
        return Err(Error::refused(
            ErrorKind::Refused,
            format!(
                "the volume has a wrap for recovery key {}, which is in a safe, so that nobody \
                 here can wrap another key with it",
                wrap.key_id
            ),
            "take that wrap away (`sealblk volume remove-wrap --recovery-key`), and give the \
             volume one again when it has its new key (`sealblk volume add-wrap`)",
        ));
    }
    let binding = volume.binding();
    let mut wraps: Vec<Wrap> = Vec::new();
    for old in &token.wraps {
        if wraps.iter().any(|wrap| wrap.key_set == old.key_set) {
            continue;
        }
        let context = match old.key_set == token.key_set {
            true => context.clone(),
            false => context.clone().for_break_glass(),
        };
        let secret = dek.as_secret();
        let wrapping = key_sets.wrap_secret(&context, &old.key_set, None, secret, &binding);
        let wrap = wrapping.await?;
        let opened = key_sets.unwrap_secret(&context, &wrap, &binding).await;
        if opened.as_ref().ok() != Some(secret) {
            let why = opened.err().map_or("it is another key".into(), |error| {
                crate::error::chain(&error)
            });
            return Err(Error::refused(
                ErrorKind::Key,
                format!(
                    "what key set {:?} has wrapped does not open: {why}",
                    old.key_set
                ),
                "`sealblk doctor` tries the key set, and says what is wrong with it",
            ));
        }
        wraps.push(wrap);
    }
    Ok(wraps)
}
