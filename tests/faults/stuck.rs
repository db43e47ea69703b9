//! A disk below that does not answer: who sees it, and when it is over.

use std::time::Duration;

use sealblk::engine::trouble::{OnError, Work};

use super::lab::Lab;
use super::support::faulty_disk::{Fault, Kind, Rule};
use super::support::in_process::OFFSET;
use super::support::request::{Request, S_OK};
use super::support::server::eventually;

/// So long that nothing else is in flight for that, on a busy machine either.
const AFTER: Duration = Duration::from_secs(2);

#[test]
fn what_is_in_flight_for_too_long_is_told_and_when_it_ends() {
    for policy in [OnError::Report, OnError::Stop] {
        let lab = Lab::with(policy, AFTER);
        let disk = &lab.served.disk;
        let mut front = lab.served.connect(2);
        front.write(0, &[1; 4096]);
        for (kind, work, request) in [
            (Kind::Read, Work::Read, Request::read(16, 8192)),
            (Kind::Write, Work::Write, Request::write(16, &[2; 8192])),
        ] {
            assert!(disk.watch().stuck().is_none());
            lab.disk
                .fail(Rule::of(kind, Fault::Stuck).within(OFFSET + 8192..OFFSET + 16384));
            front.submit(0, request).unwrap();
            lab.disk.await_stuck(1);
            let stuck = eventually("it is seen", || disk.watch().stuck());
            assert_eq!((stuck.operation, stuck.count), (work, 1));
            assert_eq!((stuck.position, stuck.bytes), (8192, 8192));
            // Others go on, on this queue too.
            assert_eq!(front.run(1, Request::read(0, 4096)).data, [1; 4096]);
            front.submit(0, Request::read(0, 512)).unwrap();
            assert_eq!(front.complete(0).unwrap().1.data, [1; 512]);
            assert!(disk.watch().stuck().is_some());
            lab.disk.heal();
            assert_eq!(front.complete(0).unwrap().1.status, S_OK);
            eventually("it is over", || {
                disk.watch().stuck().is_none().then_some(())
            });
        }
        lab.disk.fail(Rule::of(Kind::Sync, Fault::Stuck));
        front.submit(1, Request::flush()).unwrap();
        let stuck = eventually("it is seen", || disk.watch().stuck());
        assert_eq!((stuck.operation, stuck.count), (Work::Flush, 1));
        lab.disk.heal();
        assert_eq!(front.complete(1).unwrap().1.status, S_OK);
        eventually("it is over", || {
            disk.watch().stuck().is_none().then_some(())
        });
        assert_eq!(disk.trouble().counts().stuck, 3);
    }
}
