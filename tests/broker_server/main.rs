//! `sealblk broker`: a real broker process, and hosts that know nothing but
//! the protocol.
#![cfg(feature = "broker")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
mod broker;
#[path = "../support/certificates.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod certificates;
mod client;
mod commands;
mod hostile;
mod identity;
#[path = "../support/inject.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod inject;
#[path = "../support/key_needles.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod key_needles;
#[path = "../support/key_search.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod key_search;
mod life;
mod metrics;
#[path = "../support/needles.rs"]
mod needles;
#[path = "../support/openbao.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod openbao;
mod policy;
#[path = "../support/process_memory.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod process_memory;
mod replay;
mod secrets;
mod services;
#[path = "../support/tree.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod tree;
mod walls;
