//! Every cipher engine against the portable one: any length, sector number,
//! scatter list, alignment and chunking gives the same bytes, and nothing
//! beside them is touched.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/crypt_case/mod.rs"]
mod crypt_case;

fuzz_target!(|bytes: &[u8]| crypt_case::Case::from_bytes(bytes).check());
