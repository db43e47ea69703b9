//! Looks for secrets in what the program shows.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// A piece of this many bytes of a secret is a leak. A multiple of three, so
/// that each piece has a base64 form that does not depend on its neighbours.
const PIECE: usize = 9;

/// Panics if any piece of `secret` is in `shown`, raw, in hex or in base64.
pub fn assert_absent(shown: &[u8], secret: &[u8], where_: &str) {
    assert!(secret.len() >= PIECE, "too short to be looked for");
    for piece in secret.windows(PIECE) {
        let forms = [
            piece.to_vec(),
            hex::encode(piece).into_bytes(),
            hex::encode_upper(piece).into_bytes(),
            STANDARD_NO_PAD.encode(piece).into_bytes(),
            URL_SAFE_NO_PAD.encode(piece).into_bytes(),
            // As `{:?}` shows a slice.
            piece
                .iter()
                .map(u8::to_string)
                .collect::<Vec<_>>()
                .join(", ")
                .into_bytes(),
        ];
        for form in forms {
            assert!(
                !shown.windows(form.len()).any(|window| window == form),
                "{where_} shows a part of a secret: {}",
                String::from_utf8_lossy(shown)
            );
        }
    }
}
