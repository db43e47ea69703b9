//! The platform key file, through the real program: made once, read only when
//! safe, changed as a whole, and never shown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changing;
mod crash;
mod making;
#[path = "../support/needles.rs"]
mod needles;
mod program;
mod reading;
mod showing;
