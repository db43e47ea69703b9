//! Load on a disk from the host, without a guest: a vhost-user-blk socket
//! (driven by the `virtio-driver` crate) or a bare file (by io_uring). Prints
//! JSON. `scripts/bench-host` runs it against several servers and compares.
//!
//! It is an example to cargo, so that its binary has a fixed name:
//! `target/release/examples/host_load`.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

mod bare;
mod buffers;
mod cpu;
mod histogram;
mod job;
mod load;
mod vhost;

use cpu::CpuTimes;
use job::Job;
use load::{Tally, Window};

/// Errors end the program: they are only printed.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Puts load on a vhost-user-blk server or a bare file and prints JSON.
#[derive(Parser)]
struct Arguments {
    /// The vhost-user-blk socket to drive
    #[arg(long, conflicts_with = "file", required_unless_present_any = ["file", "hold"])]
    socket: Option<PathBuf>,

    /// The file or block device to drive with io_uring and O_DIRECT
    #[arg(long)]
    file: Option<PathBuf>,

    /// PATTERN-BLOCK-DEPTH, such as randread-4k-32, randwrite-4k-1, mix-4k-32
    /// (70% reads), seqread-128k-16, seqwrite-128k-16
    #[arg(long, value_delimiter = ',', default_value = "randread-4k-32")]
    jobs: Vec<Job>,

    /// Measured time of each job, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,

    /// Time before that, in seconds
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,

    /// Virtqueues (or io_urings), each with a thread and the job's depth
    #[arg(long, default_value_t = 1)]
    queues: usize,

    /// How to wait for completions; a bare file is always slept for
    #[arg(long, value_enum, default_value = "sleep")]
    wait: Wait,

    /// Processes whose CPU time counts as the server's, with their children
    #[arg(long, value_delimiter = ',')]
    server_pid: Vec<u32>,

    /// CPUs for the threads, in turn
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,

    /// Connect to these sockets, say so on standard output, and do nothing until
    /// standard input ends
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["socket", "file"])]
    hold: Vec<PathBuf>,

    /// Write the whole disk once with data that is not zero, and do no jobs
    #[arg(long)]
    fill: bool,
}

/// How to wait for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// On the call eventfd, as a guest that halts.
    Sleep,
    /// By looking at the used ring all the time, with calls switched off.
    Spin,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.hold.is_empty() {
        return hold(&arguments);
    }
    if arguments.fill {
        let tally = fill(&arguments)?;
        println!("{}", json!({ "filled_bytes": tally.bytes }));
        return Ok(());
    }
    let mut results = Vec::new();
    for job in &arguments.jobs {
        results.push(run(&arguments, job)?);
    }
    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}

/// Is a front end that has set up its queues and has nothing to do.
fn hold(arguments: &Arguments) -> Result<()> {
    let connect = |socket: &PathBuf| vhost::connect(socket, arguments.queues);
    let held = arguments
        .hold
        .iter()
        .map(connect)
        .collect::<Result<Vec<_>>>()?;
    println!("holding");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop(held);
    Ok(())
}

fn fill(arguments: &Arguments) -> Result<Tally> {
    let job = Job::fill();
    let forever = Window::all();
    let tallies = drive(arguments, &job, 1, forever, || Ok(()))?.0;
    Ok(Tally::sum(tallies))
}

/// Runs a job on every queue, and `meanwhile` beside it.
fn drive<T>(
    arguments: &Arguments,
    job: &Job,
    queues: usize,
    window: Window,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Vec<Tally>, T)> {
    match (&arguments.socket, &arguments.file) {
        (Some(socket), _) => {
            let wait = arguments.wait;
            vhost::drive(
                socket,
                job,
                queues,
                wait,
                window,
                &arguments.cpus,
                meanwhile,
            )
        }
        (None, Some(file)) => bare::drive(file, job, queues, window, &arguments.cpus, meanwhile),
        (None, None) => Err("neither --socket nor --file".into()),
    }
}

fn run(arguments: &Arguments, job: &Job) -> Result<Value> {
    let start = Instant::now() + Duration::from_secs_f64(arguments.warm_up);
    let window = Window {
        start,
        end: start + Duration::from_secs_f64(arguments.seconds),
    };
    // The CPU times are read at the ends of the window, while the load goes on.
    let meanwhile = || {
        let take = |at: Instant| {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            CpuTimes::now(&arguments.server_pid)
        };
        let before = take(window.start)?;
        Ok(take(window.end)? - before)
    };
    let (tallies, cpu) = drive(arguments, job, arguments.queues, window, meanwhile)?;
    let tally = Tally::sum(tallies);
    if tally.requests == 0 {
        return Err(format!("{}: no request completed", job.name).into());
    }
    let requests = tally.requests as f64;
    let per_request = |time: Duration| round(time.as_secs_f64() * 1e6 / requests);
    let microseconds = |ns: u64| round(ns as f64 / 1e3);
    let latency = &tally.latency;
    Ok(json!({
        "job": job.name,
        "queues": arguments.queues,
        "wait": if arguments.socket.is_some() && arguments.wait == Wait::Spin { "spin" } else { "sleep" },
        "seconds": arguments.seconds,
        "requests": tally.requests,
        "iops": round(requests / arguments.seconds),
        "mb_per_s": round(tally.bytes as f64 / 1e6 / arguments.seconds),
        "latency_us": {
            "mean": microseconds(latency.mean()),
            "p50": microseconds(latency.quantile(0.5)),
            "p99": microseconds(latency.quantile(0.99)),
            "p99.9": microseconds(latency.quantile(0.999)),
            "max": microseconds(latency.max()),
        },
        "server_cpu_us_per_request": per_request(cpu.server),
        "io_wq_cpu_us_per_request": per_request(cpu.io_workers),
        "client_cpu_us_per_request": per_request(cpu.own),
    }))
}

/// To two decimals: more are noise.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
