//! Whose a connection is.
#![forbid(unsafe_code)]

use super::policy::Pattern;
use crate::kms::tls::{Holder, HolderName};
use crate::timestamp::Timestamp;

/// What the certificate of a connection says, which rustls found genuine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Holder);

impl Identity {
    /// The holder of a DER-encoded certificate, if it has a name.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let holder = Holder::of(certificate)?;
        (!holder.names.is_empty()).then_some(Identity(holder))
    }

    /// Whether one of its names is like `pattern`. DNS names are the same in
    /// upper and lower case; others are not.
    pub fn is_like(&self, pattern: &Pattern) -> bool {
        self.0.names.iter().any(|name| match name {
            HolderName::Dns(name) => pattern.matches_caseless(name),
            HolderName::Uri(name) | HolderName::CommonName(name) => pattern.matches(name),
        })
    }

    /// The name that goes into records: the first one.
    pub fn name(&self) -> &str {
        self.0.names.first().map_or("", HolderName::as_str)
    }

    /// Whether its certificate has ended: a connection may last longer.
    pub fn has_ended(&self, now: Timestamp) -> bool {
        now > self.0.not_after
    }
}
