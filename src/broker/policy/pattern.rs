//! Patterns with `*` and `?`.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use wildmatch::WildMatch;

/// More than any name has.
const PATTERN_MAX: usize = 256;

/// A pattern that a whole name has to be like: `*` stands for any characters,
/// also none, and `?` for one.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    text: String,
    exact: WildMatch,
    caseless: WildMatch,
}

impl Pattern {
    /// Whether `name` is like it.
    pub fn matches(&self, name: &str) -> bool {
        self.exact.matches(name)
    }

    /// The same where upper and lower case are one.
    pub fn matches_caseless(&self, name: &str) -> bool {
        self.caseless.matches(&name.to_ascii_lowercase())
    }

    /// Whether it is `*`, and nothing needs to be known of a name.
    pub fn is_any(&self) -> bool {
        self.text == "*"
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seen = |c: char| !c.is_control() && !c.is_whitespace();
        if text.is_empty() || text.len() > PATTERN_MAX || !text.chars().all(seen) {
            return Err(format!(
                "{text:?} is not a pattern: write a name of up to {PATTERN_MAX} characters without blanks, in which * stands for any characters and ? for one"
            ));
        }
        Ok(Pattern {
            text: text.into(),
            exact: WildMatch::new(text),
            caseless: WildMatch::new(&text.to_ascii_lowercase()),
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_for_the_whole_name() {
        let like = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().matches(name);
        for (pattern, name) in [
            ("hv1", "hv1"),
            ("hv*", "hv1"),
            ("hv*", "hv"),
            ("hv?", "hv1"),
            ("*.example", "hv1.example"),
            ("spiffe://*/hv?", "spiffe://example/hv1"),
            ("*", ""),
        ] {
            assert!(like(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("hv1", "hv10"),
            ("hv1", "xhv1"),
            ("hv1", "HV1"),
            ("hv?", "hv"),
            ("hv?", "hv10"),
            ("*.example", "hv1.example.evil"),
            ("*.example", "example"),
        ] {
            assert!(!like(pattern, name), "{pattern} {name}");
        }
        let pattern: Pattern = "HV?.Example".parse().unwrap();
        assert!(pattern.matches_caseless("hv1.EXAMPLE") && !pattern.matches("hv1.example"));
    }

    #[test]
    fn what_nobody_would_see_is_no_pattern() {
        for text in ["", " ", "a b", "a\n", "a\0", &"x".repeat(257)] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }
}
