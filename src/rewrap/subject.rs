//! The volume that a change is about, as the change sees it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Error;
use crate::keys::{Access, Context, KeySets};
use crate::secret::Dek;
use crate::volume::{Token, Volume, Wrap};

/// Where the data encryption key of a volume comes from.
#[derive(Clone, Debug, Default)]
pub struct KeyFrom {
    /// The key, where it is in memory because the volume is served. It is
    /// compared with the digest of the header before it is used.
    pub memory: Option<Arc<Dek>>,
    /// Which wraps may be opened for it otherwise.
    pub access: Access,
}

impl KeyFrom {
    /// The key as it is in memory, or else what the volume's own key set opens.
    pub fn memory(dek: Option<Arc<Dek>>) -> Self {
        KeyFrom {
            memory: dek,
            access: Access::OwnKeySet,
        }
    }
}

/// A volume whose wraps are to change.
#[derive(Debug)]
pub struct Subject<'s> {
    keys: &'s KeySets,
    context: &'s Context,
    volume: &'s Volume,
    wraps: Vec<Wrap>,
    key: KeyFrom,
    /// The key, once it was asked for and proven.
    dek: Option<Arc<Dek>>,
}

impl<'s> Subject<'s> {
    pub(super) fn new(
        keys: &'s KeySets,
        context: &'s Context,
        volume: &'s Volume,
        wraps: Vec<Wrap>,
        key: KeyFrom,
    ) -> Self {
        Subject {
            keys,
            context,
            volume,
            wraps,
            key,
            dek: None,
        }
    }

    /// The key sets.
    pub fn keys(&self) -> &'s KeySets {
        self.keys
    }

    /// Who wants it, for this volume.
    pub fn context(&self) -> &'s Context {
        self.context
    }

    /// The volume.
    pub fn volume(&self) -> &'s Volume {
        self.volume
    }

    /// The wraps that it has, wherever they are kept.
    pub fn wraps(&self) -> &[Wrap] {
        &self.wraps
    }

    /// The data encryption key: from memory, or else by opening a wrap. It is
    /// the one that the digest of the header describes.
    ///
    /// # Errors
    /// When no wrap opens, or the key is not that of this volume.
    pub async fn dek(&mut self) -> Result<Arc<Dek>, Error> {
        if let Some(dek) = &self.dek {
            return Ok(dek.clone());
        }
        let dek = match self.key.memory.take() {
            Some(dek) => dek,
            None => {
                let own = self.volume.token();
                // As if they were in the header: they were fetched already.
                let token = Token::new(&own.key_set, own.zero_units, self.wraps.clone());
                let binding = self.volume.binding();
                let access = self.key.access;
                let opened = self.keys.unwrap(self.context, &token, &binding, access);
                Arc::new(opened.await?.dek)
            }
        };
        self.volume.verify_dek(&dek)?;
        self.dek = Some(dek.clone());
        Ok(dek)
    }

    /// Opens a wrap by its key set.
    ///
    /// # Errors
    /// When it does not open.
    pub async fn open(&self, wrap: &Wrap) -> Result<Dek, Error> {
        let binding = self.volume.binding();
        let opened = self.keys.unwrap_secret(self.context, wrap, &binding).await;
        let unproven = |why| Error::unproven(wrap, why);
        let secret = opened.map_err(unproven)?;
        Dek::try_from(secret).map_err(|bad| unproven(crate::keys::Why::BadDek(bad)))
    }
}
