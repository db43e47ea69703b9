//! What the fuzz targets share: how bytes become structured input, and a
//! guest's driver that follows them, right or wrong.
//!
//! The rule for all structured input: zero is the usual, valid choice, and an
//! input that ends goes on as zeroes. So a short input is a valid one, and
//! what libFuzzer changes is mostly one thing at a time.

pub mod driver;
pub mod front_end;
pub mod source;
pub mod wire;
