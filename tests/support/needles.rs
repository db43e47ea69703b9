//! Looks for secrets in what the program shows.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// A piece of this many bytes of a secret is a leak. A multiple of three, so
/// that each piece has a base64 form that does not depend on its neighbours.
const PIECE: usize = 9;

/// So many bytes of each form are looked for first.
const BEGIN: usize = 4;

fn two(begin: &[u8; BEGIN]) -> usize {
    usize::from(u16::from_be_bytes([begin[0], begin[1]]))
}

/// Panics if any piece of `secret` is in `shown`, raw, in hex or in base64.
pub fn assert_absent(shown: &[u8], secret: &[u8], where_: &str) {
    assert!(secret.len() >= PIECE, "too short to be looked for");
    // Logs are long and pieces many, so all are looked for at once: by what
    // they begin with, which is hardly ever there.
    let mut forms: HashMap<[u8; BEGIN], Vec<Vec<u8>>> = HashMap::new();
    let mut begins = vec![false; 1 << 16];
    for piece in secret.windows(PIECE) {
        for form in [
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
        ] {
            let begin = *form.first_chunk().unwrap();
            begins[two(&begin)] = true;
            forms.entry(begin).or_default().push(form);
        }
    }
    for (at, begin) in shown.windows(BEGIN).enumerate() {
        let Some(begin) = begin.first_chunk().filter(|begin| begins[two(begin)]) else {
            continue;
        };
        let found = forms.get(begin).into_iter().flatten();
        for form in found {
            assert!(
                !shown[at..].starts_with(form),
                "{where_} shows a part of a secret: {}",
                String::from_utf8_lossy(shown)
            );
        }
    }
}

#[test]
fn each_form_is_found_wherever_it_stands() {
    let secret: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(37)).collect();
    assert_absent(b"", &secret, "nothing");
    assert_absent(&[0; 10_000], &secret, "zeroes");
    let base64 = STANDARD_NO_PAD.encode(&secret);
    let url_safe = URL_SAFE_NO_PAD.encode(&secret);
    for form in [
        secret.clone(),
        hex::encode(&secret).into_bytes(),
        hex::encode_upper(&secret[10..30]).into_bytes(),
        base64.into_bytes(),
        url_safe.into_bytes(),
        format!("{secret:?}").into_bytes(),
        secret[55..].to_vec(),
    ] {
        for (before, after) in [(0, 0), (1000, 0), (7, 5)] {
            let shown = [&vec![b'x'; before][..], &form, &vec![b'y'; after]].concat();
            let found = std::panic::catch_unwind(|| assert_absent(&shown, &secret, "here"));
            assert!(found.is_err(), "{form:?}");
        }
    }
    assert_absent(&secret[56..], &secret, "less than a piece");
}
