//! Whose CPU time went by.

use std::fs;
use std::ops::Sub;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Result;

/// CPU times since the start of each process, user and system together.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTimes {
    /// The server, its children, and all of their threads, among them the
    /// kernel's io_uring workers.
    pub server: Duration,
    /// The part of it that was io_uring workers still there.
    pub io_workers: Duration,
    /// This process.
    pub own: Duration,
}

impl CpuTimes {
    pub fn now(servers: &[u32]) -> Result<CpuTimes> {
        let mut times = CpuTimes {
            own: cpu_time("/proc/self/stat")?,
            ..CpuTimes::default()
        };
        let mut processes = servers.to_vec();
        while let Some(pid) = processes.pop() {
            times.server += cpu_time(&format!("/proc/{pid}/stat"))?;
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                let read = |file| fs::read_to_string(task.join(file)).unwrap_or_default();
                if read("comm").starts_with("iou-wrk") {
                    times.io_workers += parse(&read("stat")).unwrap_or_default();
                }
                let children = read("children");
                processes.extend(children.split_whitespace().flat_map(str::parse::<u32>));
            }
        }
        Ok(times)
    }
}

impl Sub for CpuTimes {
    type Output = CpuTimes;

    fn sub(self, before: CpuTimes) -> CpuTimes {
        CpuTimes {
            server: self.server.saturating_sub(before.server),
            io_workers: self.io_workers.saturating_sub(before.io_workers),
            own: self.own.saturating_sub(before.own),
        }
    }
}

fn cpu_time(path: &str) -> Result<Duration> {
    let stat = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    parse(&stat).ok_or_else(|| format!("{path} is not understood").into())
}

/// utime + stime, the 14th and 15th field. The 2nd, a name, may hold spaces.
fn parse(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_millis(ticks * 1000 / per_second))
}

/// Keeps the calling thread on one CPU of the list, if there is a list.
pub fn pin(cpus: &[usize], index: usize) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let cpu = cpus[index % cpus.len()];
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| format!("cannot run on CPU {cpu}: {error}"))?;
    Ok(())
}
