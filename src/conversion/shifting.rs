//! placeholder
pub struct Shifting;
