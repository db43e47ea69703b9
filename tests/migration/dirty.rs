//! Every page that we write is in the log, bit by bit, whatever a request is and
//! whenever the log comes, goes, or is another one; and no page that we did not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sealblk::crypt::Params;

use super::log::{Log, PAGE, Shadow, end_of, switch, switch_all};
use super::support::in_process::Served;
use super::support::memory::GuestMemory;
use super::support::message as m;
use super::support::raw_front_end::{DATA, Form, RINGS, RawFrontEnd, RawOptions};
use super::support::raw_queue::{RawQueue, readable, writable};
use super::support::request::{F_EVENT_IDX, Range, Request, S_IOERR, S_OK, S_UNTOUCHED};
use super::support::server::eventually;

const MEMORY: usize = 4 << 20;

fn connect(served: &Served, without: u64) -> RawFrontEnd {
    connect_at(served, without, 0)
}

fn connect_at(served: &Served, without: u64, rings_at: usize) -> RawFrontEnd {
    let options = RawOptions {
        queues: 2,
        memory: MEMORY,
        rings_at,
        ..RawOptions::without(without)
    };
    super::log::connect(&served.path("socket"), &options).unwrap()
}

/// Requests of every kind, good and bad, cut in many ways.
fn requests() -> Vec<(Request, Form)> {
    let fill = |seed: u8, len: usize| -> Vec<u8> { (0..len).map(|at| seed ^ at as u8).collect() };
    let mut list = Vec::new();
    for form in [Form::Direct, Form::Indirect, Form::Merged] {
        list.push((Request::write(64, &fill(9, 3 * 4096)), form));
        list.push((Request::read(64, 3 * 4096), form));
        list.push((Request::read(64, 4096), form));
        list.push((Request::get_id(), form));
        list.push((Request::flush(), form));
        list.push((Request::write_zeroes(&[Range::new(1024, 64)]), form));
        // Refused: beyond the disk.
        list.push((Request::read(u64::MAX, 4096), form));
    }
    let cut = Request::read(64, 300 << 10).cut(&[512, 4096, 1536, 70 << 10]);
    list.push((cut, Form::Indirect));
    list
}

/// One request after the other, each between two looks at all memory.
fn judge_each(without: u64) {
    // Nothing of a used ring is on the page of all else of it, once: its flags and
    // index, its last entries and the event index behind them.
    for seam in [8, 504] {
        judge_each_with(without, seam);
    }
}

/// The same with a page that begins at that byte of each used ring.
fn judge_each_with(without: u64, seam: usize) {
    let served = Served::new(Params::default(), false);
    let (_, _, used) = connect(&served, without).queues[0].areas();
    let mut front = connect_at(&served, without, 2 * PAGE - used - seam);
    let log = Log::below(end_of(MEMORY));
    log.announce(&mut front.messages).unwrap();
    switch_all(&mut front, true).unwrap();
    let (rings, data) = (front.rings(), front.arena.memory.clone());
    let mut seen = BTreeSet::new();
    for (round, (request, form)) in requests().into_iter().chain(requests()).enumerate() {
        let queue = round % 2;
        let expected = [S_OK, S_IOERR][usize::from(request.sector == u64::MAX)];
        // Nobody looks at the ring while the guest writes what it asks for.
        front.enable(queue as u32, false).unwrap();
        let submitted = front.publish(queue, request, form);
        log.take();
        let before = Shadow::of(&rings, &data);
        front.enable(queue as u32, true).unwrap();
        front.queues[queue].kick();
        let used = front.used(queue);
        // With the ring stopped, nothing is written any more.
        front.enable(queue as u32, false).unwrap();
        let changed = before.changed(&rings, &data);
        let marked: BTreeSet<u64> = log.take().into_iter().collect();
        let missing: Vec<_> = changed
            .iter()
            .filter(|page| !marked.contains(page))
            .collect();
        assert!(
            missing.is_empty(),
            "request {round}: {missing:x?} of {changed:x?}"
        );
        assert!(!changed.is_empty());
        // What was written may be what was there before; but not elsewhere.
        // A ring that was just started may say then when it wants to be kicked.
        let rings: BTreeSet<u64> = front
            .queues
            .iter()
            .flat_map(|queue| {
                let (_, _, used) = queue.areas();
                let page = (RINGS + used as u64) / PAGE as u64;
                [page, page + 1]
            })
            .collect();
        let first = DATA / PAGE as u64;
        let strange = |page: &&u64| **page < first && !rings.contains(*page);
        assert_eq!(marked.iter().find(strange), None);
        assert!(
            marked.len() <= changed.len() + 3,
            "{marked:x?} for {changed:x?}"
        );
        seen.extend(marked);
        let outcome = front.outcome(submitted, used);
        assert_eq!(outcome.status, expected);
        front.enable(queue as u32, true).unwrap();
    }
    assert!(seen.len() > 70, "{}", seen.len());
    let (_, _, used) = front.queues[0].areas();
    assert_eq!((used + seam) % PAGE, 0);
}

#[test]
fn every_page_that_a_request_changes_is_in_the_log() {
    judge_each(0);
}

#[test]
fn so_is_what_is_written_to_a_ring_without_event_indices() {
    judge_each(F_EVENT_IDX);
}

/// Reads into places of which each is on two pages, of a disk that changes.
struct Guest {
    reads: Vec<u16>,
    write: u16,
    /// Offsets in the data region.
    source: usize,
    targets: Vec<usize>,
    statuses: Vec<usize>,
}

const READS: usize = 6;

impl Guest {
    fn new(front: &mut RawFrontEnd, queue: usize) -> Guest {
        let data = front.arena.memory.clone();
        let sector = 2048 * queue as u64;
        let mut area = || front.arena.take(4 * PAGE).offset.next_multiple_of(PAGE);
        let source = area();
        let places: Vec<usize> = (0..READS).map(|_| area()).collect();
        let headers = area();
        let status = area();
        let mut statuses = Vec::new();
        let mut put = |request: &Request, data_at: usize, write: bool| {
            let number = statuses.len();
            let header = headers + 16 * number;
            data.write(header, &request.header());
            // A page for each, so that its mark is its own.
            let status = status + number * 8;
            statuses.push(status);
            data.write(status, &[S_UNTOUCHED]);
            let guest = |offset: usize| DATA + offset as u64;
            let middle = match write {
                true => readable(guest(data_at), 4096),
                false => writable(guest(data_at), 4096),
            };
            let chain = vec![
                readable(guest(header), 16),
                middle,
                writable(guest(status), 1),
            ];
            front.queues[queue].put_chain(chain)
        };
        let write = put(&Request::write(sector, &[0; 4096]), source, true);
        let targets: Vec<usize> = places.iter().map(|at| at + PAGE / 2).collect();
        let reads = targets
            .iter()
            .map(|at| put(&Request::read(sector, 4096), *at, false))
            .collect();
        Guest {
            reads,
            write,
            source,
            targets,
            statuses,
        }
    }

    /// One round: the disk changes, and is read.
    fn round(&self, queue: &mut RawQueue, data: &GuestMemory, number: u64) {
        data.fill(self.source, PAGE, number as u8);
        let mut run = |heads: &[u16]| {
            for head in heads {
                queue.publish(*head);
            }
            queue.kick();
            for _ in heads {
                eventually("a chain came back", || queue.take_used());
            }
        };
        run(&[self.write]);
        run(&self.reads);
    }

    /// What was written to memory by the server, and not by the guest.
    fn of_server(&self, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for at in &self.targets {
            bytes.extend(&data[*at..*at + PAGE]);
        }
        bytes.extend(self.statuses.iter().map(|at| data[*at]));
        bytes
    }
}

/// The log comes, is exchanged and goes under load, and the copy is right each time.
#[test]
fn a_copy_that_follows_the_log_is_right_wherever_the_log_came_and_went() {
    let rounds: u64 = std::env::var("SEALBLK_LOG_ROUNDS").map_or(4, |n| n.parse().unwrap());
    let served = Served::new(Params::default(), false);
    let mut front = connect(&served, 0);
    let guests = [Guest::new(&mut front, 0), Guest::new(&mut front, 1)];
    let (rings, data) = (front.rings(), front.arena.memory.clone());
    let areas: Vec<_> = front.queues.iter().map(|queue| queue.areas()).collect();
    let (user, features) = (front.rings_region().user, front.features);
    let mut copied = 0;
    for number in 0..rounds {
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut log = Log::below(end_of(MEMORY));
        let mut shadow = None;
        let RawFrontEnd {
            messages, queues, ..
        } = &mut front;
        std::thread::scope(|scope| {
            for (queue, guest) in queues.iter_mut().zip(&guests) {
                let (data, stop, done) = (&data, &stop, &done);
                scope.spawn(move || {
                    let mut round = number * 7;
                    while !stop.load(Ordering::SeqCst) {
                        guest.round(queue, data, round);
                        round += 1;
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            let some_rounds = || {
                let before = done.load(Ordering::SeqCst);
                eventually("some rounds", || {
                    (done.load(Ordering::SeqCst) > before + 6).then_some(())
                });
            };
            some_rounds();
            log.announce(messages).unwrap();
            switch(messages, features, &areas, user, true).unwrap();
            let mut copy = Shadow::of(&rings, &data);
            for step in 0..4 {
                some_rounds();
                if step == 2 {
                    // Another log: what the old one has is taken when that is answered.
                    let next = Log::below(end_of(MEMORY) + (1 << 30));
                    next.announce(messages).unwrap();
                    copy.follow(&log.take(), &rings, &data);
                    log = next;
                }
                let pages = log.take();
                copied += pages.len();
                copy.follow(&pages, &rings, &data);
            }
            stop.store(true, Ordering::SeqCst);
            shadow = Some(copy);
        });
        // The guest is stopped, then the rings, as QEMU does; then the rest is copied.
        for index in 0..2 {
            front.stop_queue(index).unwrap();
        }
        let mut shadow = shadow.unwrap();
        shadow.follow(&log.take(), &rings, &data);
        let now = Shadow::of(&rings, &data);
        for (guest, (_, _, used)) in guests.iter().zip(&areas) {
            assert!(
                guest.of_server(&shadow.data) == guest.of_server(&now.data),
                "round {number}"
            );
            let ring = *used..used + 4 + 8 * 64 + 2;
            assert!(
                shadow.rings[ring.clone()] == now.rings[ring],
                "round {number}"
            );
        }
        // It goes on here, and nothing is logged any more.
        for index in 0..2 {
            let base = front.queues[index as usize].used_idx();
            front.start_queue(index, base).unwrap();
        }
        switch_all(&mut front, false).unwrap();
        log.take();
        for (queue, guest) in front.queues.iter_mut().zip(&guests) {
            guest.round(queue, &data, 255);
        }
        assert_eq!(log.take(), [0u64; 0]);
    }
    assert!(copied > 10 * rounds as usize, "{copied}");
}

/// A log that does not reach as far as the memory would lose pages silently.
#[test]
fn a_log_that_is_too_short_is_refused() {
    let served = Served::new(Params::default(), false);
    let mut front = connect(&served, 0);
    let log = Log::below(end_of(MEMORY) - (1 << 20));
    log.announce(&mut front.messages).unwrap();
    assert!(switch_all(&mut front, true).is_err());
    // And one whose file does not have what is said of it.
    let mut front = connect(&served, 0);
    let told = [(1u64 << 20).to_le_bytes(), [0; 8]].concat();
    let short = GuestMemory::new(4096);
    let messages = &mut front.messages;
    messages
        .send(m::SET_LOG_BASE, 0, &told, &[short.fd()])
        .unwrap();
    assert!(messages.receive().is_err());
    // The next front end finds a disk.
    let mut front = connect(&served, 0);
    front.succeed(0, Request::read(0, 4096), Form::Direct);
}
