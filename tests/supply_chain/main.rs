//! What sealblk is made of is on record, its bill of materials is true, and a
//! release that was tampered with is not taken for one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bill;
mod documents;
mod lock;
mod records;
mod signing;

use std::path::{Path, PathBuf};

/// A file of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
