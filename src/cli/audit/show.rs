//! How lines of the log are chosen and shown.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::keys::Name;

/// Which lines to show.
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only what concerns this volume
    #[arg(long, value_name = "UUID")]
    volume: Option<Uuid>,

    /// Only what concerns this key set
    #[arg(long, value_name = "NAME")]
    key_set: Option<Name>,

    /// The lines as they are in the log, for scripts
    #[arg(long)]
    json: bool,
}

impl Filter {
    /// How `line` (without its end) is shown, unless it is not to be.
    pub(super) fn show(&self, line: &[u8]) -> Option<String> {
        let Ok(Value::Object(members)) = serde_json::from_slice(line) else {
            // Not to be lost on the reader who looks at everything.
            let all = self.volume.is_none() && self.key_set.is_none() && !self.json;
            return all.then(|| {
                let text = String::from_utf8_lossy(line);
                let start: String = text.chars().take(40).collect();
                format!("(not a whole line: {:?}…)\n", start)
            });
        };
        let text = |member: &str| members.get(member).and_then(Value::as_str);
        let volume = self
            .volume
            .is_none_or(|volume| text("volume").and_then(|text| text.parse().ok()) == Some(volume));
        let key_set = self
            .key_set
            .as_ref()
            .is_none_or(|name| text("key_set") == Some(name.as_str()));
        if !(volume && key_set) {
            return None;
        }
        Some(match self.json {
            true => format!("{}\n", String::from_utf8_lossy(line)),
            false => for_people(&members),
        })
    }
}

/// Members that are shown first, or not at all.
const FIRST: [&str; 8] = [
    "v", "seq", "time", "event", "outcome", "actor", "prev", "hash",
];

fn for_people(members: &Map<String, Value>) -> String {
    let plain = |name: &str| members.get(name).map(plain).unwrap_or_default();
    let mut text = format!(
        "{} #{} {} {}",
        plain("time"),
        plain("seq"),
        plain("event"),
        plain("outcome")
    );
    if let Some(Value::Object(actor)) = members.get("actor") {
        for (name, value) in actor {
            let _ = write!(text, " {name}={}", self::plain(value));
        }
    }
    for (name, value) in members
        .iter()
        .filter(|(name, _)| !FIRST.contains(&name.as_str()))
    {
        let _ = write!(text, " {}={}", name.escape_debug(), self::plain(value));
    }
    text.push('\n');
    text
}

/// A value on one line, without anything that a terminal would act on.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains([' ', '"', '=']) => format!("{text:?}"),
        Value::String(text) => text.escape_debug().to_string(),
        other => other.to_string().chars().flat_map(visible).collect(),
    }
}

fn visible(c: char) -> Vec<char> {
    match c {
        '"' | '\\' | '\'' => vec![c],
        other => other.escape_debug().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_people_has_all_that_matters_and_no_control_characters() {
        let line = br#"{"v":1,"seq":7,"time":"T","event":"unwrap","volume":"00000000-0000-0000-0000-000000000001","key_set":"a b","key_id":"\u001b[31m","actor":{"uid":0,"pid":1,"role":"local"},"outcome":"denied","endpoints":[{"endpoint":"\u009b"}],"prev":"x","hash":"y"}"#;
        let all = Filter {
            volume: None,
            key_set: None,
            json: false,
        };
        assert_eq!(
            all.show(line).unwrap(),
            "T #7 unwrap denied pid=1 role=local uid=0 endpoints=[{\"endpoint\":\"\\u{9b}\"}] key_id=\\u{1b}[31m key_set=\"a b\" volume=00000000-0000-0000-0000-000000000001\n"
        );
        assert!(
            all.show(b"{\"v\":1,")
                .unwrap()
                .starts_with("(not a whole line")
        );
        let other = Filter {
            volume: Some(Uuid::from_u128(2)),
            ..all
        };
        assert_eq!(other.show(line), None);
        assert_eq!(other.show(b"{\"v\":1,"), None);
    }
}
