//! The change by which a volume follows the key of its key set.
#![forbid(unsafe_code)]

use async_trait::async_trait;

use crate::keys::{Current, Why};
use crate::rewrap::{Change, Error, Subject};
use crate::secret::Dek;
use crate::volume::{Bound, Wrap};

/// Has each wrap of a key set made as it would be made now. Those of other key
/// sets stay as they are.
///
/// With the same group key nothing is asked of a service, and no key of a
/// volume either: the wrap of the group key is exchanged for the new one.
#[derive(Clone, Debug)]
pub struct Follow {
    /// What the key set wraps with.
    pub current: Current,
}

#[async_trait]
impl Change for Follow {
    async fn next(&self, subject: &mut Subject<'_>) -> Result<Option<Vec<Wrap>>, Error> {
        let mut next = subject.wraps().to_vec();
        let mut changed = false;
        for wrap in &mut next {
            let unknown = matches!(wrap.bound, Bound::Other(_));
            if !self.current.is_about(wrap) || self.current.made(wrap) || unknown {
                continue;
            }
            *wrap = match self.current.follow(wrap) {
                Some(wrap) => wrap,
                None => self.anew(subject, wrap).await?,
            };
            changed = true;
        }
        Ok(changed.then_some(next))
    }

    async fn open(&self, subject: &Subject<'_>, wrap: &Wrap) -> Result<Dek, Error> {
        if !self.current.is_about(wrap) {
            return subject.open(wrap).await;
        }
        let (keys, binding) = (subject.keys(), subject.volume().binding());
        let opened = keys.open_as(subject.context(), &self.current, wrap, &binding);
        let unproven = |why| Error::unproven(wrap, why);
        let secret = opened.await.map_err(unproven)?;
        Dek::try_from(secret).map_err(|bad| unproven(Why::BadDek(bad)))
    }
}

impl Follow {
    /// The key of the volume, wrapped in the place of `old`.
    async fn anew(&self, subject: &mut Subject<'_>, old: &Wrap) -> Result<Wrap, Error> {
        let dek = subject.dek().await?;
        let binding = subject.volume().binding();
        let (keys, context) = (subject.keys(), subject.context());
        let wrap = keys.wrap_as(context, &self.current, dek.as_secret(), &binding);
        let mut wrap = wrap.await?;
        wrap.extra.clone_from(&old.extra);
        Ok(wrap)
    }
}
