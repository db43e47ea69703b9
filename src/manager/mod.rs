//! The control plane.
#![forbid(unsafe_code)]

pub mod key_sets;
