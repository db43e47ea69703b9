//! How members are written: none endless, none without a value.

use std::path::Path;

use serde::{Serialize, Serializer};

/// A text is cut to this many characters.
const TEXT_MAX: usize = 512;

/// A list is cut to this many entries.
const LIST_MAX: usize = 32;

pub(super) fn text<S: Serializer>(
    text: &(impl AsRef<str> + ?Sized),
    to: S,
) -> Result<S::Ok, S::Error> {
    let text = text.as_ref();
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => to.collect_str(&format_args!("{}…", &text[..end])),
        None => to.serialize_str(text),
    }
}

pub(super) fn path_text<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    text(&path.to_string_lossy(), to)
}

pub(super) fn list<S: Serializer, T: Serialize>(
    list: &(impl AsRef<[T]> + ?Sized),
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(list.as_ref().iter().take(LIST_MAX))
}

pub(super) fn empty(text: &&str) -> bool {
    text.is_empty()
}

pub(super) fn no(flag: &bool) -> bool {
    !flag
}

pub(super) fn none(count: &u64) -> bool {
    *count == 0
}
