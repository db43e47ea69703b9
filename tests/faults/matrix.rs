//! Every fault under every policy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sealblk::engine::stats::{Kind as Asked, Operation};
use sealblk::engine::trouble::OnError;

use super::lab::Lab;
use super::support::faulty_disk::{Fault, Kind, Rule};
use super::support::history::seed;
use super::support::in_process::OFFSET;
use super::support::server::eventually;

/// How often something goes wrong in each run.
const TIMES: u64 = 12;

/// Requests before, while and after something goes wrong.
fn requests() -> u64 {
    std::env::var("SEALBLK_FAULT_REQUESTS").map_or(200, |text| text.parse().unwrap())
}

/// Faults of the data, and whether they are errors.
fn faults() -> Vec<(Rule, bool)> {
    let errors = [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::ENODEV];
    let failing = errors.iter().flat_map(|errno| {
        [
            Rule::of(Kind::Read, Fault::Errno(*errno)),
            Rule::of(Kind::Write, Fault::Errno(*errno)),
        ]
    });
    let torn = Rule::of(Kind::Write, Fault::Torn(libc::EIO));
    // Bad sectors, which fail whoever comes there.
    let bad = Rule::of(Kind::Read, Fault::Errno(libc::EIO)).within(OFFSET..OFFSET + (512 << 10));
    let empty = Rule::of(Kind::Read, Fault::Short(0));
    let hole = Rule::of(Kind::Allocate, Fault::Errno(libc::EIO));
    let failing = failing
        .chain([torn, bad, empty, hole])
        .map(|rule| (rule, true));
    let short = [
        Rule::of(Kind::Read, Fault::Short(4096)),
        Rule::of(Kind::Read, Fault::Short(4096 + 512)),
        Rule::of(Kind::Read, Fault::Errno(libc::EAGAIN)),
        Rule::of(Kind::Write, Fault::Errno(libc::EINTR)),
        Rule::of(Kind::Sync, Fault::Errno(libc::EINTR)),
        Rule::of(Kind::Write, Fault::Slow(Duration::from_millis(20))),
        Rule::of(Kind::Read, Fault::Slow(Duration::from_millis(20))),
    ];
    failing
        .chain(short.into_iter().map(|rule| (rule, false)))
        .collect()
}

/// Also when something panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn is_covered(policy: OnError, rule: &Rule) -> bool {
    match policy {
        OnError::Report => false,
        OnError::Stop | OnError::Retry => true,
        OnError::Enospc => {
            matches!(rule.fault, Fault::Errno(libc::ENOSPC | libc::EDQUOT))
        }
    }
}

fn under(policy: OnError) {
    judge(policy, &Lab::new(policy), faults());
    // What a disk does that does one thing after the other. Short reads are not of it:
    // the kernel reads the rest through its cache, where FUSE has a short answer mean
    // the end of the file, and zeroes behind it.
    let short = [
        (Rule::of(Kind::Write, Fault::Short(4096)), false),
        (Rule::of(Kind::Write, Fault::Short(4096 + 512)), false),
        (Rule::of(Kind::Write, Fault::Short(0)), true),
        (Rule::of(Kind::Write, Fault::Torn(libc::EIO)), true),
    ];
    judge(policy, &Lab::sequential(policy), short.into());
}

fn judge(policy: OnError, lab: &Lab, faults: Vec<(Rule, bool)>) {
    let (seed, requests) = (seed(), requests());
    let disk = &lab.served.disk;
    let mut load = lab.load(seed);
    for (rule, is_error) in faults {
        load.failed = [0; 3];
        load.tolerant = is_error && !is_covered(policy, &rule);
        let before = lab.served.stats().snapshot();
        let counts = disk.trouble().counts();
        assert!(load.run(requests / 4, Duration::from_secs(10)), "{rule:?}");
        let hits = lab.disk.hits();
        let chance = match rule.kind {
            Kind::Read | Kind::Write => 300,
            // There are few.
            Kind::Sync => 400,
            Kind::Allocate => 1000,
        };
        // None is interrupted more often than it is tried at once.
        let times = match rule.fault {
            Fault::Errno(libc::EAGAIN | libc::EINTR) => TIMES.min(8),
            _ => TIMES,
        };
        lab.disk.fail(rule.clone().times(times).chance(chance));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // The pauses would be most of it.
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    disk.trouble().try_now();
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let patience = Duration::from_secs(10);
            let _guard = Over(&over);
            let mut answered = load.run(requests, patience);
            // Of some kinds there are few, and by chance none.
            for _ in 0..100 {
                if answered && lab.disk.hits() == hits {
                    answered = load.run(20, patience);
                }
            }
            assert!(answered, "{policy:?} {rule:?}");
        });
        lab.disk.heal();
        disk.trouble().try_now();
        load.drain();
        lab.await_going();
        let hits = lab.disk.hits() - hits;
        assert!(hits > 0, "{rule:?} was for nothing");
        load.check_all();
        // What was counted is what was seen.
        let after = lab.served.stats().snapshot();
        let failed = |kind| after.requests(kind).errors - before.requests(kind).errors;
        let writes = failed(Asked::Write) + failed(Asked::WriteZeroes);
        assert_eq!(
            [failed(Asked::Read), writes, failed(Asked::Flush)],
            load.failed
        );
        let errors: u64 = Operation::ALL
            .iter()
            .map(|kind| after.operations(*kind).errors - before.operations(*kind).errors)
            .sum();
        let waited = disk.trouble().counts().waited - counts.waited;
        match (is_error, is_covered(policy, &rule)) {
            (true, true) => {
                assert_eq!(load.failed, [0; 3], "{rule:?}");
                assert!(errors > 0 && waited > 0, "{rule:?}: {errors}, {waited}");
                let stops = disk.trouble().counts().stops - counts.stops;
                assert_eq!(stops > 0, policy != OnError::Retry, "{rule:?}");
            }
            (true, false) => {
                assert!(load.failed.iter().sum::<u64>() > 0, "{rule:?}");
                assert!(errors > 0, "{rule:?}");
                assert_eq!(waited, 0, "{rule:?}");
            }
            // Interrupted and short ones are no errors of anybody.
            (false, _) => assert_eq!((load.failed, errors), ([0; 3], 0), "{rule:?}"),
        }
    }
    // As it is stored, decrypted by another way.
    let mut plain = lab.served.plaintext();
    plain.truncate(super::lab::USED as usize);
    load.check_bytes(&plain);
}

#[test]
fn what_fails_is_reported() {
    under(OnError::Report);
}

#[test]
fn what_fails_stops_the_disk_until_it_succeeds() {
    under(OnError::Stop);
}

#[test]
fn a_disk_stops_where_no_space_is_left_and_reports_all_else() {
    under(OnError::Enospc);
}

#[test]
fn what_fails_is_tried_again_while_others_go_on() {
    under(OnError::Retry);
}

/// Nobody knows what the kernel has dropped with the error: that is told once, and
/// no flush after it may claim anything. Whoever waits for a better answer would
/// be told a lie.
#[test]
fn a_failed_fdatasync_is_told_under_every_policy_and_never_tried_again() {
    for policy in [
        OnError::Report,
        OnError::Stop,
        OnError::Enospc,
        OnError::Retry,
    ] {
        for errno in [libc::EIO, libc::ENOSPC] {
            let lab = Lab::new(policy);
            let mut load = lab.load(seed());
            load.tolerant = true;
            assert!(load.run(200, Duration::from_secs(10)));
            assert_eq!(load.failed, [0; 3]);
            lab.disk
                .fail(Rule::of(Kind::Sync, Fault::Errno(errno)).times(1));
            eventually("a flush is told to have failed", || {
                assert!(load.run(20, Duration::from_secs(10)));
                (load.failed[2] > 0).then_some(())
            });
            load.drain();
            let good = load.flushed;
            lab.disk.take_seen();
            assert!(load.run(300, Duration::from_secs(10)));
            load.drain();
            assert_eq!(load.flushed, good, "a flush succeeded after one had failed");
            let seen = lab.disk.take_seen();
            assert!(
                seen.iter().all(|(kind, _)| *kind != Kind::Sync),
                "tried again"
            );
            assert_eq!(load.failed[..2], [0; 2], "reads and writes go on");
            assert_eq!(lab.disk.hits(), 1);
            load.check_all();
        }
    }
}
