//! Entries of key stores, and tokens that say where the wraps are, from bytes
//! that anybody may have written.
//!
//! Taking them apart never panics. What is accepted is written back as the
//! same, has what an opening needs, and says in one way only where that is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealblk::key_store::{ENTRY_MAX, Entry};
use sealblk::volume::Token;
use sealblk_fuzz::source::Source;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    match source.below(2) {
        0 => entry(source.rest()),
        _ => token(source.rest()),
    }
});

fn entry(text: &[u8]) {
    let Ok(entry) = Entry::parse(text) else {
        return;
    };
    assert!(text.len() <= ENTRY_MAX && !entry.wraps.is_empty() && entry.generation > 0);
    // Base64 and numbers have one form only, so that it cannot grow much.
    if let Ok(json) = entry.to_json() {
        let back = Entry::from_json(json).expect("it is ours");
        assert_eq!(back, entry);
    }
    let next = entry.next("set", entry.wraps.clone());
    assert!(next.generation >= entry.generation);
    assert_eq!(next.extra, entry.extra);
}

fn token(text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(text) else {
        return;
    };
    let Ok(token) = Token::from_json(&value) else {
        return;
    };
    // An older sealblk, which knows version 1 alone, must mean the same by it.
    assert_eq!(token.version == 1, token.key_store.is_none());
    assert!(token.key_store.is_none() || token.wraps.is_empty());
    let json = token.to_json().expect("it came from JSON");
    assert_eq!(Token::from_json(&json).expect("it is ours"), token);
    assert_eq!(json.get("wraps").is_none(), token.key_store.is_some());
    let moved = token
        .clone()
        .in_key_store("s")
        .with_wraps(token.wraps.clone());
    assert_eq!((moved.version, moved.key_store), (1, None));
}
