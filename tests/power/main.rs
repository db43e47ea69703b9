//! The power fails, at any time, below whole programs: guests' data paths, and all
//! that writes headers, journals, key stores and records.
//!
//! The files are on a file system of ours ([`recorder`]), which writes down what is
//! done to it. Afterwards the power is cut at every event ([`platters`]): what was
//! not synced is there or not, sector by sector and name by name, as a seed says
//! that is printed. What is left is judged without starting any server again.
//!
//! `SEALBLK_CUTS` says how much is tried (1 if nothing does), and `SEALBLK_SEED`
//! where the numbers begin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod data;
mod events;
mod guest;
mod headers;
mod lab;
mod moving;
#[path = "../support/platter.rs"]
mod platter;
mod platters;
#[path = "../support/random.rs"]
mod random;
mod recorder;
mod state;
