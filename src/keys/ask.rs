//! The calls to providers, each observed and witnessed.
#![forbid(unsafe_code)]

use std::future::Future;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::group::cache::unrecorded;
use super::{Context, KeySet, KeySets, KeyUse, Operation};
use crate::kms::call::{self, Notes};
use crate::kms::{self, KeyVersion, Wrapped};
use crate::secret::Secret;

/// What is recorded of a use beside who and which key set.
pub(super) struct Use<'a> {
    pub operation: Operation,
    pub key_id: &'a str,
    pub key_version: &'a str,
    pub group: Option<Uuid>,
    pub service_asked: bool,
    pub took: Duration,
    pub outcome: Result<(), &'a kms::Error>,
    pub notes: &'a Notes,
}

impl KeySets {
    /// Has the provider wrap `plaintext`.
    pub(super) async fn provider_wrap(
        &self,
        context: &Context,
        set: &KeySet,
        plaintext: &Secret,
        aad: &[u8],
        group: Option<Uuid>,
    ) -> Result<Wrapped, kms::Error> {
        let start = Instant::now();
        let work = set.provider.wrap(&set.key, plaintext, aad);
        let (result, notes) = call::observed(context.correlation, work).await;
        let (key_id, key_version) = match &result {
            Ok(wrapped) => (wrapped.key_id.as_str(), wrapped.version.as_str()),
            Err(_) => (
                set.key.id.as_deref().unwrap_or_default(),
                set.key.version.as_deref().unwrap_or_default(),
            ),
        };
        let used = Use {
            operation: Operation::Wrap,
            key_id,
            key_version,
            group,
            service_asked: true,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &notes,
        };
        self.witnessed(context, set, used)?;
        result
    }

    /// Has the provider unwrap `wrapped`.
    pub(super) async fn provider_unwrap(
        &self,
        context: &Context,
        set: &KeySet,
        wrapped: &Wrapped,
        aad: &[u8],
        group: Option<Uuid>,
    ) -> Result<Secret, kms::Error> {
        let start = Instant::now();
        let work = set.provider.unwrap(wrapped, aad);
        let (result, notes) = call::observed(context.correlation, work).await;
        let used = Use {
            operation: Operation::Unwrap,
            key_id: &wrapped.key_id,
            key_version: &wrapped.version,
            group,
            service_asked: true,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &notes,
        };
        self.witnessed(context, set, used)?;
        result
    }

    /// Observes the question for the state of a key.
    pub(super) async fn checked(
        &self,
        context: &Context,
        set: &KeySet,
        work: impl Future<Output = Result<KeyVersion, kms::Error>>,
    ) -> Result<KeyVersion, kms::Error> {
        let start = Instant::now();
        let (result, notes) = call::observed(context.correlation, work).await;
        let used = Use {
            operation: Operation::Check,
            key_id: set.key.id.as_deref().unwrap_or_default(),
            key_version: result.as_ref().map_or("", |version| &version.id),
            group: None,
            service_asked: true,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &notes,
        };
        self.witnessed(context, set, used)?;
        result
    }

    /// Tells the witnesses.
    ///
    /// # Errors
    /// When one of them cannot take note: the result must not be used then.
    pub(super) fn witnessed(
        &self,
        context: &Context,
        set: &KeySet,
        used: Use<'_>,
    ) -> Result<(), kms::Error> {
        let names = (set.name.as_str(), set.provider.name());
        self.witnessed_by(context, names, used)
    }

    /// The same of a key that is not that of a key set, by these names.
    pub(super) fn witnessed_by(
        &self,
        context: &Context,
        (key_set, provider): (&str, &str),
        used: Use<'_>,
    ) -> Result<(), kms::Error> {
        let used = KeyUse {
            context,
            operation: used.operation,
            key_set,
            provider,
            key_id: used.key_id,
            key_version: used.key_version,
            group: used.group,
            service_asked: used.service_asked,
            break_glass: context.break_glass,
            took: used.took,
            outcome: used.outcome,
            notes: used.notes,
        };
        tracing::debug!(
            key_set = used.key_set,
            provider = used.provider,
            key_id = used.key_id,
            key_version = used.key_version,
            operation = %used.operation,
            correlation = %context.correlation,
            failed = used.outcome.err().map(|error| error.class().to_string()),
            "a key was used"
        );
        for witness in &self.witnesses {
            witness
                .key_used(&used)
                .map_err(|error| unrecorded(&error))?;
        }
        Ok(())
    }
}
