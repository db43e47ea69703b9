//! The two states that data can be in during an operation, and their keys.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Error;
use crate::crypt::{Engine, Params, SectorCipher, Transform};
use crate::keys::{Context, KeySets};
use crate::prepare::{self, Opening};
use crate::rekey::{Facts, Keys, Kind, Transforms, open_previous};
use crate::secret::Dek;
use crate::volume::{Layout, Volume};

/// The keys of an operation.
#[derive(Debug)]
pub struct Sides {
    /// What it is of.
    pub facts: Facts,
    /// The key that the wraps are of.
    pub main: Dek,
    /// The key before, of a rekey.
    pub old: Option<Dek>,
}

impl Sides {
    /// The keys of the operation that is under way on a volume: one from its
    /// wraps, the other from its token.
    ///
    /// # Errors
    /// When nothing is under way, the key cannot be had or is not that of the
    /// volume, or the token was edited.
    pub async fn of(
        key_sets: &KeySets,
        context: &Context,
        volume: &Volume,
        opening: &Opening,
    ) -> Result<Self, Error> {
        let nothing = || crate::volume::Error::NothingUnderWay {
            path: volume.header_path().to_owned(),
        };
        let facts = volume.rekey_facts().ok_or_else(nothing)?;
        let opened = prepare::unwrap(key_sets, context, volume, opening).await?;
        volume.verify_dek(&opened.dek)?;
        let previous = volume.rekey().and_then(|rekey| rekey.previous.as_deref());
        let old = previous
            .map(|sealed| open_previous(&facts, &opened.dek, sealed))
            .transpose()?;
        Ok(Sides {
            facts,
            main: opened.dek,
            old,
        })
    }

    /// The keys before and after; `None` is plain.
    fn keys(&self) -> (Option<&Dek>, Option<&Dek>) {
        match self.facts.kind {
            Kind::Rekey => (self.old.as_ref(), Some(&self.main)),
            Kind::Encrypt => (None, Some(&self.main)),
            Kind::Decrypt => (Some(&self.main), None),
        }
    }

    /// What the journal is authenticated with.
    ///
    /// # Errors
    /// When there is no secret memory.
    pub fn derive(&self) -> Result<Keys, Error> {
        let (old, new) = self.keys();
        Ok(Keys::derive(&self.facts, old, new)?)
    }

    /// What the data goes through.
    ///
    /// # Errors
    /// When the cipher cannot be had.
    pub fn transforms(&self, layout: &Layout) -> Result<Transforms, Error> {
        let (old, new) = self.keys();
        Ok(Transforms {
            old: Arc::new(transform(layout, old)?),
            new: Arc::new(transform(layout, new)?),
        })
    }

    /// The cipher of the main key.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn cipher(&self, layout: &Layout) -> Result<SectorCipher, Error> {
        cipher(layout, &self.main)
    }
}

fn transform(layout: &Layout, dek: Option<&Dek>) -> Result<Transform, Error> {
    match dek {
        Some(dek) => Ok(Transform::Cipher(cipher(layout, dek)?)),
        None => Ok(Transform::Plain(layout.sector_size)),
    }
}

fn cipher(layout: &Layout, dek: &Dek) -> Result<SectorCipher, Error> {
    let params = Params {
        sector_size: layout.sector_size,
        iv_tweak: layout.iv_tweak,
        zero_units: layout.zero_units,
    };
    Ok(SectorCipher::new(Engine::best(), dek, params)?)
}
