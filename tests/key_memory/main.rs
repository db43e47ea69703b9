//! Keys are in secret memory and nowhere else: all memory of a process and all
//! registers of its threads are searched for keys, what is computed from them, and
//! the texts that services send them in; while it serves, when it has stopped
//! serving, and at the instant before it ends. `docs/key-hygiene.md` has the list.
//!
//! Runs as root, who alone may look.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod commands;
mod dumps;
mod managed;
mod services;
mod serving;
mod threads;

#[path = "../support/key_needles.rs"]
mod key_needles;
#[path = "../support/key_search.rs"]
mod key_search;
#[path = "../support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
#[path = "../support/process_memory.rs"]
#[allow(dead_code)]
mod process_memory;
#[path = "../support/mod.rs"]
mod support;
