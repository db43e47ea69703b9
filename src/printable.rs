//! Text for people, from which nothing of what a terminal would act upon is left.
//!
//! Names of files, and what guests, services and other users say, may hold
//! anything: sequences that clear a screen, or a line that looks like one of ours.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal does something else with it than to show it. Marks of
/// direction make text look like other text.
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with such characters as JSON writes them: what was JSON still is,
/// and of the same meaning. Lines and tabs stay.
pub fn text(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == '\n' || c == '\t')
}

/// The same on one line.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// The same of a line that has colours of our own.
pub fn coloured(line: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("\u{1b}[") {
        out.push_str(&self::line(&rest[..at]));
        let sequence = &rest[at + 2..];
        let length = sequence
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b';');
        let length = length.count();
        match sequence[length..].starts_with('m') {
            true => {
                out.push_str(&rest[at..at + 2 + length + 1]);
                rest = &sequence[length + 1..];
            }
            false => {
                out.push_str(&self::line(&rest[at..at + 2]));
                rest = sequence;
            }
        }
    }
    match out.is_empty() {
        true => self::line(rest),
        false => {
            out.push_str(&self::line(rest));
            out.into()
        }
    }
}

fn escape(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let bad = |c: char| acts(c) && !stays(c);
    if !text.contains(bad) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match bad(c) {
            // Writing to a string does not fail.
            true => drop(write!(out, "\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_acts_upon() {
        let evil = "a\u{1b}[2Jb\u{9b}1mc\rd\u{7f}e\u{202e}f\u{0}\n\tg";
        let shown = "a\\u001b[2Jb\\u009b1mc\\u000dd\\u007fe\\u202ef\\u0000";
        assert_eq!(text(evil), format!("{shown}\n\tg"));
        assert_eq!(line(evil), format!("{shown}\\u000a\\u0009g"));
        assert!(matches!(text("größe\n"), Cow::Borrowed("größe\n")));
    }

    #[test]
    fn json_stays_what_it_is() {
        let value = serde_json::json!({ "path": "a\u{1b}\u{9b}\u{7f}\u{202e}\n" });
        let shown = text(&value.to_string()).into_owned();
        assert!(!shown.contains(acts));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            value
        );
    }

    #[test]
    fn colours_are_all_that_a_line_of_the_log_may_have() {
        assert_eq!(
            coloured("\u{1b}[1;31mERROR\u{1b}[0m x"),
            "\u{1b}[1;31mERROR\u{1b}[0m x"
        );
        assert_eq!(
            coloured("\u{1b}[2mx\u{1b}[2J\u{1b}]0;t\u{7}\ny"),
            "\u{1b}[2mx\\u001b[2J\\u001b]0;t\\u0007\\u000ay"
        );
        assert_eq!(coloured("plain\n"), "plain\\u000a");
        assert_eq!(coloured("\u{1b}["), "\\u001b[");
    }
}
