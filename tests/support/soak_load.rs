//! A front end without a guest for `scripts/soak`: it keeps a disk busy, and knows
//! for each sector what may be read there ([`history`]). It stands here for what it
//! shares with the tests, and is an example to cargo, so that its binary has a
//! fixed name.
//!
//! It does what is written to its standard input, a line each, and answers each
//! with a line of JSON. Anything that a disk may not do ends it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(dead_code, reason = "the tests use more of it")]

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use clap::Parser;
use serde_json::json;

mod history;
mod memory;
mod message;
mod raw_front_end;
mod raw_queue;
mod request;

use history::{CHUNK, Load};

/// Of the module of that name in the tests, which starts servers, too.
mod server {
    use std::time::{Duration, Instant};

    pub const DEADLINE: Duration = Duration::from_secs(60);

    pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = done() {
                return value;
            }
            assert!(start.elapsed() < DEADLINE, "still not so: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Keeps a disk of zeroes busy and judges what it reads. Commands on standard
/// input: `report`, `leave` (hang up), `enter` (connect), `grow BYTES` (the disk is
/// that large now), `finish` (read all of it).
#[derive(Parser)]
struct Arguments {
    /// The disk's socket
    #[arg(long)]
    socket: PathBuf,

    /// How large the disk is, in bytes
    #[arg(long)]
    size: u64,

    /// One in so many chunks of the disk is used
    #[arg(long, default_value_t = 8)]
    sparse: u64,

    /// Where the random numbers begin
    #[arg(long)]
    seed: u64,

    /// How many seconds nothing may be answered, or nobody be there, before that
    /// is an error
    #[arg(long, default_value_t = 120)]
    patience: u64,
}

fn main() {
    let arguments = Arguments::parse();
    let chunks = chunks(&arguments, 0, arguments.size);
    let mut load = Load::on_zeroes(&arguments.socket, arguments.seed, &chunks);
    load.patience = Duration::from_secs(arguments.patience);
    let (sender, commands) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = std::io::stdin().lock().lines();
        lines.map_while(Result::ok).try_for_each(|l| sender.send(l))
    });
    println!("{}", json!({ "chunks": chunks.len() }));
    let (mut size, mut away) = (arguments.size, false);
    loop {
        let command = if away {
            commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            load.run(Duration::from_millis(5));
            commands.try_recv()
        };
        let command = match command {
            Ok(command) => command,
            Err(TryRecvError::Empty) => continue,
            Err(TryRecvError::Disconnected) => return,
        };
        match command.split_once(' ').unwrap_or((&command, "")) {
            ("report", _) => {}
            ("leave", _) if !away => load.leave(),
            ("enter", _) if away => load.enter(),
            ("finish", _) if !away => load.finish(),
            ("grow", larger) => {
                let larger = larger.parse().expect("a number of bytes");
                assert!(larger >= size + CHUNK * 1024, "the chunks would overlap");
                load.grow(&self::chunks(&arguments, size, larger));
                size = larger;
            }
            _ => panic!("not now, or never: {command}"),
        }
        match command.as_str() {
            "leave" => away = true,
            "enter" => away = false,
            _ => {}
        }
        let longest = std::mem::take(&mut load.longest);
        println!(
            "{}",
            json!({
                "answered": load.answered,
                "taken_over": load.taken_over,
                "longest_ms": longest.as_secs_f64() * 1e3,
            })
        );
    }
}

/// Where the chunks begin that are used between these bytes: the last one, and one
/// in so many.
fn chunks(arguments: &Arguments, from: u64, to: u64) -> Vec<u64> {
    let (first, end) = (from.div_ceil(512), to / 512);
    let last = (end - CHUNK) / 8 * 8;
    let step = CHUNK * arguments.sparse;
    let mut all: Vec<u64> = (first.next_multiple_of(8)..last)
        .step_by(step as usize)
        .filter(|chunk| chunk + CHUNK <= last)
        .collect();
    all.push(last);
    all
}
