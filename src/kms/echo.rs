//! Services, and boxes in between, that say what they were sent: in what is told of a
//! failure there must be no part of a key or a credential.
#![forbid(unsafe_code)]

use super::Error;
use super::cluster::Failed;

/// So many characters in a row are no chance.
const PIECE: usize = 12;

/// Whether a part of `secret` stands in `words`.
pub(super) fn quotes(words: &str, secret: &str) -> bool {
    let secret = secret.as_bytes();
    let piece = PIECE.min(secret.len());
    let mut pieces = words.as_bytes().windows(piece.max(1));
    piece > 0 && pieces.any(|part| secret.windows(piece).any(|other| other == part))
}

impl Error {
    /// Without the words of the service, if they quote `secret`, as it was sent.
    pub(super) fn without_echo(self, secret: &str) -> Self {
        match self.words() {
            Some(words) if quotes(words, secret) => {
                self.with_words("what it said quotes the request, and is not shown")
            }
            _ => self,
        }
    }
}

impl Failed {
    /// The same for a call.
    pub(super) fn without_echo(self, secret: &str) -> Self {
        match self {
            Failed::Here(error) => Failed::Here(error.without_echo(secret)),
            Failed::Everywhere(error) => Failed::Everywhere(error.without_echo(secret)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::Class;

    #[test]
    fn what_quotes_a_secret_is_not_shown() {
        let secret = "bm90IGEga2V5LCBidXQgYXMgbG9uZyBhcyBvbmU=";
        let told = |words: &str| {
            let error = Error::new(Class::Protocol, "cause", "next").with_words(words);
            let shown = format!("{}", error.without_echo(secret));
            let failed =
                Failed::Here(Error::new(Class::Protocol, "cause", "next").with_words(words));
            assert!(!format!("{:?}", failed.without_echo(secret)).contains(&secret[3..20]));
            shown
        };
        assert!(told("no such key").contains("no such key"));
        for words in [
            format!("cannot read {{\"plaintext\":\"{secret}\"}}"),
            format!("…{}…", &secret[3..20]),
        ] {
            let shown = told(&words);
            assert!(shown.contains("is not shown"), "{shown}");
        }
    }

    #[test]
    fn a_short_secret_counts_as_a_whole() {
        let secret = "abcdefghijklmnopqrstuvwxyz";
        assert!(quotes("it is fghijklmnopqr, you know", secret));
        assert!(!quotes("it is fghijklmnop, you know", secret));
        assert!(quotes("short", "or") && !quotes("anything", ""));
    }
}
