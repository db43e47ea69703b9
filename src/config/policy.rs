//! The settings that key sets of every provider have.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Error;
use super::file::Reader;
use super::service::{Parsed, Period};
use crate::key_store;
use crate::keys::{Hierarchy, Name, OnDenied, Policy};

/// Their names, which no provider has for anything else.
pub const FIELDS: [&str; 6] = [
    "hierarchy",
    "poll",
    "on_denied",
    "denied_grace",
    "break_glass",
    "key_store",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyTable {
    hierarchy: Option<HierarchyName>,
    poll: Option<Parsed<Period>>,
    on_denied: Option<OnDeniedName>,
    denied_grace: Option<Parsed<Period>>,
    break_glass: Option<Parsed<Name>>,
    key_store: Option<Parsed<key_store::Name>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HierarchyName {
    Group,
    Direct,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnDeniedName {
    Continue,
    Pause,
    Fail,
    Detach,
}

/// Takes these settings out of the table of a key set, which then has those
/// of its provider alone.
pub(super) fn take<'a>(value: &mut Spanned<DeValue<'a>>) -> Spanned<DeValue<'a>> {
    let span = value.span();
    let mut taken = DeTable::new();
    if let DeValue::Table(table) = value.get_mut() {
        for field in FIELDS {
            if let Some(setting) = table.remove(field) {
                taken.insert(Spanned::new(setting.span(), Cow::Borrowed(field)), setting);
            }
        }
    }
    Spanned::new(span, DeValue::Table(taken))
}

/// Lays what [`take`] took over `policy`.
pub(super) fn apply<'a>(
    reader: &Reader<'a>,
    policy: &mut Policy,
    taken: Spanned<DeValue<'a>>,
) -> Result<(), Error> {
    let table: PolicyTable = reader.table(taken)?;
    if let Some(hierarchy) = table.hierarchy {
        policy.hierarchy = match hierarchy {
            HierarchyName::Group => Hierarchy::Group,
            HierarchyName::Direct => Hierarchy::Direct,
        };
    }
    if let Some(on_denied) = table.on_denied {
        policy.on_denied = match on_denied {
            OnDeniedName::Continue => OnDenied::Continue,
            OnDeniedName::Pause => OnDenied::Pause,
            OnDeniedName::Fail => OnDenied::Fail,
            OnDeniedName::Detach => OnDenied::Detach,
        };
    }
    policy.poll = table.poll.map_or(policy.poll, |period| period.0.get());
    policy.denied_grace = table
        .denied_grace
        .map_or(policy.denied_grace, |period| period.0.get());
    policy.break_glass = table.break_glass.map(|name| name.0);
    policy.key_store = table.key_store.map(|name| name.0);
    Ok(())
}
