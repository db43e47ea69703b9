//! The audit log shows every change to it, survives crashes at any instant,
//! and takes lines from several processes at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/needles.rs"]
mod needles;

mod changed;
mod command;
mod crash;
mod full;
mod lab;
mod places;
mod processes;
mod secrets;
