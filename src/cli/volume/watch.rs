//! Telling a person how far a long command is.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often somebody who watches is told how far it is.
const TICK: Duration = Duration::from_millis(500);

/// So many ticks the rate is taken over: an estimate that jumps is of no use.
const WINDOW: usize = 20;

/// Does `work`, and shows a person on a terminal how far it is meanwhile: `far`
/// says how many bytes of how many are done.
pub fn watched<T>(far: impl Fn() -> (u64, u64) + Sync, work: impl FnOnce() -> T) -> T {
    if !std::io::stderr().is_terminal() {
        return work();
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&far, &ended));
        // Also if it panics: the watcher must end.
        let _end = End(&ended, watcher.thread().clone());
        work()
    })
}

struct End<'e>(&'e AtomicBool, thread::Thread);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.unpark();
    }
}

fn watch(far: impl Fn() -> (u64, u64), ended: &AtomicBool) {
    let mut seen = VecDeque::from([(Instant::now(), far().0)]);
    while !ended.load(Ordering::Relaxed) {
        thread::park_timeout(TICK);
        let (done, total) = far();
        seen.push_back((Instant::now(), done));
        if seen.len() > WINDOW {
            seen.pop_front();
        }
        let line = line(&seen, total);
        // Whether it can be shown makes no difference. What follows the line
        // is erased, since the last one may have been longer.
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
    }
    let _ = writeln!(std::io::stderr());
}

/// What is shown of what was seen.
fn line(seen: &VecDeque<(Instant, u64)>, total: u64) -> String {
    let (Some((since, before)), Some((now, done))) = (seen.front(), seen.back()) else {
        return String::new();
    };
    let percent = (*done as f64 * 100.0 / total.max(1) as f64).min(100.0);
    let seconds = now.duration_since(*since).as_secs_f64();
    let rate = done.saturating_sub(*before) as f64 / seconds.max(0.001);
    let mebibytes = rate / f64::from(1 << 20);
    let left = match rate > 0.0 {
        true => duration((total.saturating_sub(*done) as f64 / rate) as u64),
        false => "?".into(),
    };
    format!("{percent:5.1} %, {mebibytes:.0} MiB/s, {left} left")
}

/// Seconds, as people say them.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_are_of_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds, mebibytes: u64| (start + Duration::from_secs(seconds), mebibytes << 20);
        let seen = VecDeque::from([at(0, 100), at(10, 300)]);
        assert_eq!(
            line(&seen, 2300 << 20),
            " 13.0 %, 20 MiB/s, 1 min 40 s left"
        );
        let idle = VecDeque::from([at(0, 100), at(10, 100)]);
        assert_eq!(line(&idle, 200 << 20), " 50.0 %, 0 MiB/s, ? left");
        let long = VecDeque::from([at(0, 0), at(10, 10)]);
        assert!(line(&long, 10_000 << 20).ends_with("2 h 46 min left"));
        // What was dealt with twice.
        let over = VecDeque::from([at(0, 100), at(1, 101)]);
        assert!(line(&over, 100 << 20).starts_with("100.0 %"));
    }

    #[test]
    fn work_is_done_once_and_its_result_comes_back() {
        let mut count = 0;
        let result = watched(
            || (0, 1),
            || {
                count += 1;
                count
            },
        );
        assert_eq!((result, count), (1, 1));
    }
}
