//! Break-glass: wraps of a volume that are not of its own key set, and how they
//! are made and opened.
//!
//! Such a wrap is of another key set, best at another service, or of a recovery
//! key that is printed and lies in a safe. It opens when somebody asks for that,
//! after the volume's own key set was tried, and its use is told at once to the
//! log and to all witnesses. If the own service works and *denies* its key, that
//! somebody has to say that they know that, too: else revoking a key would
//! revoke nothing.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::ask::Use;
use super::group::cache::unrecorded;
use super::unwrap::Access;
use super::{Attempt, Context, Error, GlassBroken, KeySets, Means, Operation, Why};
use crate::kms::call::Notes;
use crate::kms::recovery::{self, RecoveryKey};
use crate::kms::{self, Class, Wrapped};
use crate::secret::{Dek, Secret};
use crate::volume::token::{Bound, Token, Wrap};

/// Whether a wrap is that of a recovery key.
pub fn is_recovery(wrap: &Wrap) -> bool {
    wrap.provider == recovery::NAME
}

/// How a wrap failed.
pub(super) fn attempt(wrap: &Wrap, why: Why) -> Attempt {
    Attempt {
        key_set: wrap.key_set.clone(),
        provider: wrap.provider.clone(),
        key_id: wrap.key_id.clone(),
        key_version: wrap.key_version.clone(),
        why,
    }
}

impl Attempt {
    /// Whether the service of `key_set` works, and denied the key.
    pub(super) fn is_denied_by(&self, key_set: &str) -> bool {
        self.key_set == key_set
            && matches!(&self.why, Why::Kms(error) if matches!(error.class(), Class::Denied(_)))
    }
}

impl KeySets {
    /// Opens a wrap that is not of the volume's own key set, if `means` permit
    /// that.
    pub(super) async fn break_glass(
        &self,
        context: &Context,
        token: &Token,
        wrap: &Wrap,
        binding: &[u8],
        means: Means<'_>,
        denied: bool,
    ) -> Result<Dek, Why> {
        let recovery = match (is_recovery(wrap), means.recovery) {
            (true, Some(key)) if key.id().to_string() == wrap.key_id => Some(key),
            (true, Some(key)) => return Err(Why::OtherRecoveryKey(key.id())),
            (true, None) => return Err(Why::RecoveryKey),
            (false, _) if means.access == Access::OwnKeySet => return Err(Why::BreakGlass),
            (false, _) => None,
        };
        if denied && means.access != Access::DespiteDenial {
            return Err(Why::Denied);
        }
        tracing::warn!(
            key_set = wrap.key_set,
            key_id = wrap.key_id,
            own_key_set = token.key_set,
            volume = context.volume.map(tracing::field::display),
            uid = context.actor.uid,
            "break-glass: trying a key that is not of the volume's own key set"
        );
        let context = context.clone().for_break_glass();
        match recovery {
            None => self.unwrap_one(&context, wrap, binding).await,
            Some(key) => {
                let secret = self.recovery_unwrap(&context, key, wrap, binding)?;
                Dek::try_from(secret).map_err(Why::BadDek)
            }
        }
    }

    /// A volume was opened so: that is told before its key is handed out.
    pub(super) fn glass_broken(
        &self,
        context: &Context,
        token: &Token,
        wrap: &Wrap,
        failed: &[Attempt],
    ) -> Result<(), kms::Error> {
        let instead_of = failed
            .iter()
            .find(|attempt| attempt.key_set == token.key_set)
            .map(|attempt| attempt.why.to_string());
        let broken = GlassBroken {
            context,
            own_key_set: &token.key_set,
            key_set: &wrap.key_set,
            provider: &wrap.provider,
            key_id: &wrap.key_id,
            key_version: &wrap.key_version,
            denied: failed.iter().any(|it| it.is_denied_by(&token.key_set)),
            instead_of: instead_of.as_deref().unwrap_or_default(),
        };
        tracing::warn!(
            key_set = broken.key_set,
            key_id = broken.key_id,
            own_key_set = broken.own_key_set,
            denied = broken.denied,
            volume = context.volume.map(tracing::field::display),
            uid = context.actor.uid,
            "BREAK-GLASS: a volume was opened with a key that is not of its own key set"
        );
        for witness in &self.witnesses {
            witness
                .glass_broken(&broken)
                .map_err(|error| unrecorded(&error))?;
        }
        Ok(())
    }

    /// Wraps the key of a volume with a recovery key, bound to `binding`.
    ///
    /// # Errors
    /// When there is no locked memory, or it cannot be recorded.
    pub fn recovery_wrap(
        &self,
        context: &Context,
        key: &RecoveryKey,
        dek: &Dek,
        binding: &[u8],
    ) -> Result<Wrap, Error> {
        let start = Instant::now();
        let result = key.wrap(dek.as_secret(), binding);
        let id = key.id().to_string();
        let used = Use {
            operation: Operation::Wrap,
            key_id: &id,
            key_version: "",
            group: None,
            service_asked: false,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &Notes::default(),
        };
        let context = context.clone().for_break_glass();
        let fail = |source| Error::Kms {
            key_set: recovery::NAME.into(),
            provider: recovery::NAME,
            source,
        };
        self.witnessed_by(&context, (recovery::NAME, recovery::NAME), used)
            .map_err(fail)?;
        let wrapped = result.map_err(fail)?;
        Ok(Wrap {
            key_set: recovery::NAME.into(),
            provider: recovery::NAME.into(),
            key_id: wrapped.key_id,
            key_version: wrapped.version,
            alg: wrapped.alg,
            bound: Bound::Aad,
            bytes: wrapped.bytes,
            group: None,
            extra: Default::default(),
        })
    }

    /// Opens such a wrap.
    ///
    /// # Errors
    /// When it does not open, or it cannot be recorded.
    pub fn recovery_unwrap(
        &self,
        context: &Context,
        key: &RecoveryKey,
        wrap: &Wrap,
        binding: &[u8],
    ) -> Result<Secret, Why> {
        if let Bound::Other(how) = &wrap.bound {
            return Err(Why::Binding(how.clone()));
        }
        let wrapped = Wrapped {
            key_id: wrap.key_id.clone(),
            version: wrap.key_version.clone(),
            alg: wrap.alg.clone(),
            bytes: wrap.bytes.clone(),
        };
        let start = Instant::now();
        let result = key.unwrap(&wrapped, binding);
        let used = Use {
            operation: Operation::Unwrap,
            key_id: &wrap.key_id,
            key_version: &wrap.key_version,
            group: None,
            service_asked: false,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &Notes::default(),
        };
        self.witnessed_by(context, (recovery::NAME, recovery::NAME), used)
            .map_err(Why::Kms)?;
        result.map_err(Why::Kms)
    }
}
