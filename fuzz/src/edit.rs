//! Documents that are mostly as they should be: a right one, and a few edits.
#![forbid(unsafe_code)]

use serde_json::{Map, Number, Value};

use crate::source::Source;

/// Texts that mean something to parsers, of whichever format.
const TEXTS: [&str; 24] = [
    "",
    "0",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "null",
    "/",
    "..",
    "/../x",
    "a/b",
    "a b",
    "\u{0}",
    "\u{1b}[31m",
    "line\nline",
    "\u{fffd}\u{1f600}",
    "%00",
    "AAAA",
    "====",
    "http://127.0.0.1:1/",
    "9999-12-31T23:59:59Z",
    "1970-01-01T00:00:00Z",
    "00000000-0000-0000-0000-000000000000",
    "credential:x",
];

/// Changes `document` here and there. An input of zeroes changes nothing. `words`
/// are the texts that this kind of document knows.
pub fn edit(document: &mut Value, source: &mut Source<'_>, words: &[&str]) {
    for _ in 0..source.below(5) {
        let other = descend(document, source).clone();
        let place = descend(document, source);
        change(place, other, source, words);
    }
}

/// Some value in a document: the document itself, or one within it.
fn descend<'v>(mut value: &'v mut Value, source: &mut Source<'_>) -> &'v mut Value {
    loop {
        let count = match &*value {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        if count == 0 || source.byte() >= 0xe0 {
            return value;
        }
        let at = usize::from(source.byte()) % count;
        value = match value {
            Value::Object(map) => map.values_mut().nth(at).expect("there are so many"),
            Value::Array(list) => &mut list[at],
            _ => unreachable!("it has values within"),
        };
    }
}

fn change(place: &mut Value, other: Value, source: &mut Source<'_>, words: &[&str]) {
    match source.below(8) {
        0 => *place = odd(source, words),
        1 => *place = other,
        2 => remove(place, source),
        3 => insert(place, other, source, words),
        4 => *place = Value::Array(vec![place.take()]),
        5 | 6 => adjust(place, source, words),
        _ => {
            let key = word(source, words);
            *place = Value::Object(Map::from_iter([(key, place.take())]));
        }
    }
}

fn word(source: &mut Source<'_>, words: &[&str]) -> String {
    let at = usize::from(source.byte());
    match words.get(at % (words.len() + 8)) {
        Some(word) => (*word).to_owned(),
        None => TEXTS[at % TEXTS.len()].to_owned(),
    }
}

/// A value of any kind.
pub fn odd(source: &mut Source<'_>, words: &[&str]) -> Value {
    match source.below(10) {
        0 => Value::Null,
        1 => Value::Bool(source.byte() & 1 == 1),
        2 | 3 => Value::Number(source.odd_number().into()),
        4 => Value::Number((source.odd_number() as i64).into()),
        5 => Value::from(f64::from_bits(source.u64())),
        6 => Value::Array(vec![]),
        7 => Value::String("x".repeat(usize::from(source.u16() % 9000))),
        8 => nested(source),
        _ => Value::String(word(source, words)),
    }
}

/// Something that is deeper than anybody needs.
fn nested(source: &mut Source<'_>) -> Value {
    let mut value = Value::Null;
    for _ in 0..source.byte() {
        value = Value::Array(vec![value]);
    }
    value
}

fn remove(place: &mut Value, source: &mut Source<'_>) {
    let at = usize::from(source.byte());
    match place {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(at % map.len()).cloned();
            map.remove(&key.expect("there are so many"));
        }
        Value::Array(list) if !list.is_empty() => drop(list.remove(at % list.len())),
        _ => *place = Value::Null,
    }
}

fn insert(place: &mut Value, other: Value, source: &mut Source<'_>, words: &[&str]) {
    match place {
        Value::Object(map) => drop(map.insert(word(source, words), other)),
        Value::Array(list) => {
            for _ in 0..=source.below(4) {
                list.push(other.clone());
            }
        }
        _ => *place = other,
    }
}

/// Another value of the same kind.
fn adjust(place: &mut Value, source: &mut Source<'_>, words: &[&str]) {
    match place {
        Value::Bool(value) => *value = !*value,
        Value::Number(number) => {
            let value = number.as_u64().unwrap_or_default();
            *number = match source.below(4) {
                0 => value.wrapping_add(1).into(),
                1 => value.wrapping_sub(1).into(),
                2 => Number::from(value.wrapping_mul(source.u16().into())),
                _ => source.odd_number().into(),
            };
        }
        Value::String(text) => adjust_text(text, source, words),
        _ => *place = odd(source, words),
    }
}

fn adjust_text(text: &mut String, source: &mut Source<'_>, words: &[&str]) {
    let at = usize::from(source.byte());
    let cut = text.char_indices().map(|(at, _)| at).nth(at);
    match source.below(5) {
        0 => text.truncate(cut.unwrap_or_default()),
        1 => text.insert_str(cut.unwrap_or_default(), &word(source, words)),
        2 => text.push(char::from(source.byte())),
        3 => text.push_str(&word(source, words)),
        _ => {
            let changed = text
                .chars()
                .enumerate()
                .map(|(index, c)| match index == at {
                    true => char::from(at as u8 ^ 1),
                    false => c,
                });
            *text = changed.collect();
        }
    }
}
