//! Wraps for break-glass access: one more beside those that a volume has, and
//! one less.
#![forbid(unsafe_code)]

use std::sync::Arc;

use async_trait::async_trait;

use super::{Change, Error, Subject};
use crate::error::{Failure, Kind};
use crate::keys::is_recovery;
use crate::kms::recovery::{self, RecoveryKey};
use crate::prepare::Opening;
use crate::secret::Dek;
use crate::volume::{Token, Wrap};

/// Whose wrap it is.
#[derive(Clone, Debug)]
pub enum Second {
    /// That of a key set.
    KeySet(String),
    /// That of a recovery key, which somebody has out of the safe.
    Recovery(Arc<RecoveryKey>),
}

impl Second {
    fn is(&self, wrap: &Wrap) -> bool {
        match self {
            Second::KeySet(name) => wrap.key_set == *name && !is_recovery(wrap),
            Second::Recovery(key) => is_recovery(wrap) && wrap.key_id == key.id().to_string(),
        }
    }
}

/// Gives a volume a second wrap.
#[derive(Clone, Debug)]
pub struct Add {
    /// Whose.
    pub second: Second,
    /// What the volume may be opened with where its key is not in memory, if
    /// its own key set yields none.
    pub opening: Opening,
}

/// Takes a second wrap away.
#[derive(Clone, Debug)]
pub enum Remove {
    /// That of a key set.
    KeySet(String),
    /// That of a recovery key, which need not be at hand.
    Recovery(recovery::Id),
}

impl Remove {
    fn is(&self, wrap: &Wrap) -> bool {
        match self {
            Remove::KeySet(name) => wrap.key_set == *name && !is_recovery(wrap),
            Remove::Recovery(id) => is_recovery(wrap) && wrap.key_id == id.to_string(),
        }
    }
}

/// The volume's own key set is no second one.
fn refuse_own(subject: &Subject<'_>, name: &str) -> Result<(), Error> {
    match subject.volume().token().key_set == name {
        false => Ok(()),
        true => Err(Error::Refused(Failure::new(
            Kind::Refused,
            format!("key set {name:?} is the volume's own one, and not for break-glass access"),
            Some(
                "name another key set; to give volumes of a key set another key, switch the key set"
                    .into(),
            ),
        ))),
    }
}

impl Add {
    /// The key of the volume: from memory or by its own key set, and else by
    /// what somebody permits.
    async fn dek(&self, subject: &mut Subject<'_>) -> Result<Arc<Dek>, Error> {
        let error = match subject.dek().await {
            Ok(dek) => return Ok(dek),
            Err(error) => error,
        };
        let opening = &self.opening;
        if opening.access == crate::keys::Access::OwnKeySet && opening.recovery.is_none() {
            return Err(error);
        }
        let volume = subject.volume();
        let own = volume.token();
        let token = Token::new(&own.key_set, own.zero_units, subject.wraps().to_vec());
        let binding = volume.binding();
        let means = opening.means();
        let opened = subject
            .keys()
            .unwrap_with(subject.context(), &token, &binding, means)
            .await?;
        volume.verify_dek(&opened.dek)?;
        Ok(Arc::new(opened.dek))
    }
}

#[async_trait]
impl Change for Add {
    async fn next(&self, subject: &mut Subject<'_>) -> Result<Option<Vec<Wrap>>, Error> {
        if let Second::KeySet(name) = &self.second {
            refuse_own(subject, name)?;
        }
        if subject.wraps().iter().any(|wrap| self.second.is(wrap)) {
            return Ok(None);
        }
        let dek = self.dek(subject).await?;
        let binding = subject.volume().binding();
        let (keys, context) = (subject.keys(), subject.context());
        let wrap = match &self.second {
            Second::Recovery(key) => keys.recovery_wrap(context, key, &dek, &binding)?,
            Second::KeySet(name) => {
                let context = context.clone().for_break_glass();
                let secret = dek.as_secret();
                keys.wrap_secret(&context, name, None, secret, &binding)
                    .await?
            }
        };
        let mut wraps = subject.wraps().to_vec();
        wraps.push(wrap);
        Ok(Some(wraps))
    }

    async fn open(&self, subject: &Subject<'_>, wrap: &Wrap) -> Result<Dek, Error> {
        match &self.second {
            Second::KeySet(_) => subject.open(wrap).await,
            Second::Recovery(key) => {
                let binding = subject.volume().binding();
                let opened = subject
                    .keys()
                    .recovery_unwrap(subject.context(), key, wrap, &binding);
                let unproven = |why| Error::unproven(wrap, why);
                let secret = opened.map_err(unproven)?;
                Dek::try_from(secret).map_err(|bad| unproven(crate::keys::Why::BadDek(bad)))
            }
        }
    }
}

#[async_trait]
impl Change for Remove {
    async fn next(&self, subject: &mut Subject<'_>) -> Result<Option<Vec<Wrap>>, Error> {
        if let Remove::KeySet(name) = self {
            refuse_own(subject, name)?;
        }
        let mut wraps = subject.wraps().to_vec();
        wraps.retain(|wrap| !self.is(wrap));
        Ok((wraps.len() < subject.wraps().len()).then_some(wraps))
    }
}
