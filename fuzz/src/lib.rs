//! What the fuzz targets share: how bytes become structured input, and a
//! guest's driver that follows them, right or wrong.
//!
//! The rule for all structured input: zero is the usual, valid choice, and an
//! input that ends goes on as zeroes. So a short input is a valid one, and
//! what libFuzzer changes is mostly one thing at a time.

pub mod api;
pub mod chain;
pub mod disk;
pub mod driver;
pub mod edit;
pub mod front_end;
pub mod kms;
pub mod source;
pub mod toml;
pub mod wire;
