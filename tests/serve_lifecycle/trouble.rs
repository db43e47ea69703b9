//! Front ends that do what no good one does, hundreds of times: nothing of them is
//! left behind, no memory is used that they have taken away, and the next one is
//! served.
//!
//! `SEALBLK_ROUNDS=1000 cargo test --test serve_lifecycle trouble` does it as often.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::front_ends::holdings;
use super::support::front_end::{FrontEnd, Options};
use super::support::home::{Home, SIZE};
use super::support::memory::GuestMemory;
use super::support::message::{self as m, Region};
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions, Submitted};
use super::support::raw_queue::{readable, writable};
use super::support::request::{Request, S_IOERR, S_OK, S_UNTOUCHED, T_IN, header};
use super::support::server::{Server, eventually};

const ROUNDS: u32 = 120;
const PIECE: usize = 16 << 10;
const QUEUES: u32 = 2;
/// Resident memory that may come and go, in KiB.
const SLACK: usize = 6 << 10;

/// A server, and what it held when it was warm.
struct Patient {
    server: Server,
    rounds: u32,
    before: [usize; 4],
    // Last: the server lives in it.
    home: Home,
}

/// What is at each place of the disk.
fn contents(place: u64) -> Vec<u8> {
    let mut bytes = vec![place as u8 ^ 0x35; PIECE];
    bytes[..8].copy_from_slice(&place.to_le_bytes());
    bytes
}

fn sector(place: u64) -> u64 {
    place * (PIECE / 512) as u64
}

const PLACES: u64 = SIZE / PIECE as u64;

impl Patient {
    fn new() -> Patient {
        let home = Home::with_volume();
        let queues = QUEUES.to_string();
        let server = home.serve(&["disk.img", "--queues", &queues]);
        let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
        (0..PLACES).for_each(|place| front_end.write(sector(place), &contents(place)));
        front_end.flush();
        drop(front_end);
        let rounds = std::env::var("SEALBLK_ROUNDS").map(|text| text.parse().unwrap());
        Patient {
            server,
            rounds: rounds.unwrap_or(ROUNDS),
            before: [0; 4],
            home,
        }
    }

    fn connect(&self) -> RawFrontEnd {
        RawFrontEnd::connect(self.server.socket(), &options()).unwrap()
    }

    /// The next front end is served, and finds what was written.
    fn serves(&mut self) {
        self.server.assert_running("a front end in trouble");
        let mut front_end = FrontEnd::connect(self.server.socket(), &Options::default()).unwrap();
        for place in [0, 7, PLACES - 1] {
            assert!(front_end.read(sector(place), PIECE) == contents(place));
        }
    }

    /// What it holds while no front end is connected: what does not become less
    /// any more. The end of a session takes some milliseconds.
    fn at_rest(&self, wanted: impl Fn([usize; 4]) -> bool, what: &str) -> [usize; 4] {
        let (mut last, mut same) = ([0; 4], 0);
        eventually(what, || {
            let now = holdings(&self.server);
            same = if now == last { same + 1 } else { 0 };
            last = now;
            (same >= 10 && wanted(now)).then_some(now)
        })
    }

    /// Does that as often as rounds are wanted, and then holds no more than after
    /// the first ones, which warm up what is there once.
    fn suffers(mut self, mut round: impl FnMut(&Server, u32)) {
        for number in 0..self.rounds + 20 {
            if number == 20 {
                self.before = self.at_rest(|_| true, "it is at rest");
            }
            round(&self.server, number);
            if number % 40 == 39 {
                self.serves();
            }
        }
        self.serves();
        let before = self.before;
        let what = format!("as many files, threads and mappings as before: {before:?}");
        let few =
            |now: [usize; 4]| now[0] <= before[0] && now[1] <= before[1] && now[2] <= before[2] + 2;
        let after = self.at_rest(few, &what);
        println!(
            "{} rounds: files, threads, mappings, KiB: {before:?}, then {after:?}",
            self.rounds
        );
        let grown = after[3].saturating_sub(before[3]);
        assert!(grown < SLACK, "{grown} KiB more are resident");
        let status = self.server.terminate();
        assert_eq!(status.code(), Some(0), "{}", self.server.messages());
    }
}

fn options() -> RawOptions {
    RawOptions {
        queues: QUEUES,
        memory: 4 << 20,
        ..RawOptions::default()
    }
}

/// Reads that were made available, with their places, queue by queue.
struct Load(Vec<Vec<(u64, Submitted)>>);

impl Load {
    /// So many reads on each queue.
    fn begin(raw: &mut RawFrontEnd, each: u64, seed: u32) -> Load {
        let mut queue_of = |queue: usize, number: u64| {
            let place = (u64::from(seed) * 7 + number + queue as u64) % PLACES;
            let read = Request::read(sector(place), PIECE);
            (place, raw.submit(queue, read, Form::Indirect))
        };
        let queues = 0..QUEUES as usize;
        Load(
            queues
                .map(|queue| (0..each).map(|number| queue_of(queue, number)).collect())
                .collect(),
        )
    }

    /// Each is answered, once, and with its data.
    fn finish(self, raw: &mut RawFrontEnd) {
        for (queue, load) in self.0.into_iter().enumerate() {
            let mut answers: Vec<_> = load.iter().map(|_| raw.used(queue)).collect();
            for (place, submitted) in load {
                let head = u32::from(submitted.head);
                let at = answers.iter().position(|used| used.id == head);
                let used = answers.swap_remove(at.expect("each is answered once"));
                let outcome = raw.outcome(submitted, used);
                assert_eq!(outcome.status, S_OK);
                assert!(outcome.data == contents(place));
            }
            assert!(raw.queues[queue].take_used().is_none(), "answered twice");
        }
    }
}

#[test]
fn a_front_end_may_leave_at_any_step_of_setting_up() {
    Patient::new().suffers(|server, round| {
        let options = RawOptions {
            channel: round % 3 == 0,
            inflight: round % 2 == 0,
            ..options()
        };
        let mut raw = RawFrontEnd::silent(server.socket(), &options).unwrap();
        let step = round % 9;
        if step == 0 {
            return;
        }
        drop(raw);
        raw = RawFrontEnd::negotiate(server.socket(), &options).unwrap();
        if step >= 2 {
            raw.set_memory().unwrap();
        }
        if step >= 3 {
            raw.start_queue(0, 0).unwrap();
        }
        if step >= 4 {
            raw.enable(0, true).unwrap();
        }
        if step >= 5 {
            raw.start_queue(1, 0).unwrap();
            raw.enable(1, true).unwrap();
        }
        if step >= 6 {
            Load::begin(&mut raw, 12, round);
        }
        if step >= 7 {
            raw.stop_queue(1).unwrap();
        }
        if step >= 8 {
            let _ = raw.messages.send(m::RESET_OWNER, 0, &[], &[]);
        }
    });
}

/// As QEMU does when it loses a server: with all its requests, and behind the last
/// answer.
#[test]
fn a_front_end_may_connect_anew_in_a_loop() {
    Patient::new().suffers(|server, round| {
        let options = RawOptions {
            inflight: round % 2 == 0,
            ..options()
        };
        let mut raw = RawFrontEnd::connect(server.socket(), &options).unwrap();
        for again in 0..3 {
            let load = Load::begin(&mut raw, 12, round + again);
            raw.reconnect(server.socket()).unwrap();
            load.finish(&mut raw);
        }
    });
}

/// Guest address of memory that comes and goes, and where the front end sees it.
const EXTRA: u64 = 0x2_0000_0000;
const EXTRA_USER: u64 = 0x7f00_0000_0000;

/// Puts a read into the ring whose data goes to `EXTRA`, and returns its status.
fn read_into_extra(raw: &mut RawFrontEnd, place: u64) -> u8 {
    let head = raw.put(&header(T_IN, sector(place)));
    let status = raw.put(&[S_UNTOUCHED]);
    let chain = vec![
        readable(head, 16),
        writable(EXTRA, PIECE),
        writable(status, 1),
    ];
    let head = raw.queues[0].put_chain(chain);
    raw.queues[0].publish(head);
    raw.queues[0].kick();
    assert_eq!(raw.used(0).id, u32::from(head));
    raw.get(status, 1)[0]
}

/// As memory is plugged into a guest and taken out of it while its disk works: by
/// a whole new table, or a region by itself.
#[test]
fn memory_may_come_and_go_with_requests_in_flight() {
    const UNTOUCHED: u8 = 0x9c;
    Patient::new().suffers(|server, round| {
        let mut raw = RawFrontEnd::connect(server.socket(), &options()).unwrap();
        let (rings, data) = (raw.rings(), Arc::clone(&raw.arena.memory));
        let usual = [raw.rings_region(), raw.data_region()];
        let mut last: Option<Arc<GuestMemory>> = None;
        for again in 0..2 {
            let whole_table = (round + again) % 2 == 0;
            let extra = GuestMemory::new(2 * PIECE);
            extra.fill(0, 2 * PIECE, UNTOUCHED);
            let region = Region {
                guest: EXTRA,
                len: extra.len() as u64,
                user: EXTRA_USER,
                file_offset: 0,
            };
            let load = Load::begin(&mut raw, 12, round);
            let messages = &mut raw.messages;
            match whole_table {
                true => {
                    let table = Region::table(&[usual[0], usual[1], region]);
                    let files = [rings.fd(), data.fd(), extra.fd()];
                    messages.tell(m::SET_MEM_TABLE, &table, &files).unwrap();
                }
                false => {
                    let files = [extra.fd()];
                    messages
                        .tell(m::ADD_MEM_REG, &region.single(), &files)
                        .unwrap();
                }
            }
            load.finish(&mut raw);
            let place = u64::from(round + again) % PLACES;
            assert_eq!(read_into_extra(&mut raw, place), S_OK);
            assert!(extra.read(0, PIECE) == contents(place));
            // What had its place before is not written any more.
            if let Some(last) = last.take() {
                assert!(last.read(0, 2 * PIECE) == vec![UNTOUCHED; 2 * PIECE]);
            }
            let load = Load::begin(&mut raw, 12, round + 1);
            let messages = &mut raw.messages;
            match whole_table {
                true => {
                    let files = [rings.fd(), data.fd()];
                    let table = Region::table(&usual);
                    messages.tell(m::SET_MEM_TABLE, &table, &files).unwrap();
                }
                false => messages
                    .tell(m::REM_MEM_REG, &region.single(), &[])
                    .unwrap(),
            }
            extra.fill(0, 2 * PIECE, UNTOUCHED);
            load.finish(&mut raw);
            assert_eq!(read_into_extra(&mut raw, place), S_IOERR);
            assert!(extra.read(0, 2 * PIECE) == vec![UNTOUCHED; 2 * PIECE]);
            last = Some(extra);
        }
    });
}

#[test]
fn a_queue_that_is_disabled_rests_until_it_is_enabled() {
    Patient::new().suffers(|server, round| {
        let mut raw = RawFrontEnd::connect(server.socket(), &options()).unwrap();
        let mut load = Load::begin(&mut raw, 8, round);
        raw.enable(0, false).unwrap();
        let used = raw.queues[0].used_idx();
        // One more while it rests; the other queue goes on.
        let read = Request::read(sector(5), PIECE);
        let more = raw.submit(0, read, Form::Indirect);
        load.0[0].push((5, more));
        eventually("the other queue goes on", || {
            (raw.queues[1].used_idx() == 8).then_some(())
        });
        raw.config().unwrap();
        assert_eq!(raw.queues[0].used_idx(), used, "a disabled queue went on");
        raw.enable(0, true).unwrap();
        load.finish(&mut raw);
    });
}

/// Its answers fill the socket, and its queues go on. The next one is served as
/// soon as it has left.
#[test]
fn a_front_end_that_reads_no_answers_stops_nothing() {
    Patient::new().suffers(|server, round| {
        let mut raw = RawFrontEnd::connect(server.socket(), &options()).unwrap();
        raw.messages.set_patience(Duration::from_millis(2));
        let question = m::config_space(0, 0, &[0; 57]);
        let asked = (0..u32::MAX)
            .take_while(|_| raw.messages.send(m::GET_CONFIG, 0, &question, &[]).is_ok())
            .count();
        assert!(asked > 10, "the socket took {asked} messages");
        Load::begin(&mut raw, 8, round).finish(&mut raw);
    });
}

struct Over(AtomicBool);

/// Also when the test fails.
struct End<'a>(&'a Over);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn floods_of_kicks_and_messages_cost_nothing_that_stays() {
    Patient::new().suffers(|server, round| {
        let options = RawOptions {
            inflight: true,
            ..options()
        };
        let mut raw = RawFrontEnd::connect(server.socket(), &options).unwrap();
        let kick = raw.queues[0].kick.try_clone().unwrap();
        let over = Over(AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.0.load(Ordering::Relaxed) {
                    let _ = rustix::io::write(&kick, &1u64.to_ne_bytes());
                }
            });
            let _end = End(&over);
            for again in 0..3 {
                let load = Load::begin(&mut raw, 12, round + again);
                for index in 0..40u64 {
                    let queue = (index % 2).to_le_bytes();
                    let call = raw.queues[(index % 2) as usize].call.as_fd();
                    let send = |request| raw.messages.send(request, 0, &queue, &[call]);
                    send(m::SET_VRING_CALL).unwrap();
                    send(m::SET_VRING_ERR).unwrap();
                }
                let asked = m::inflight(0, 0, QUEUES as u16, 64);
                for _ in 0..10 {
                    let reply = raw.messages.ask(m::GET_INFLIGHT_FD, &asked).unwrap();
                    assert_eq!(reply.files.len(), 1);
                }
                load.finish(&mut raw);
            }
        });
    });
}

/// Descriptors whose other ends are closed, or that are no eventfds at all.
#[test]
fn descriptors_that_lead_nowhere_stop_nothing() {
    Patient::new().suffers(|server, round| {
        let mut raw = RawFrontEnd::connect(server.socket(), &options()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (from_pipe, to_pipe) = rustix::pipe::pipe().unwrap();
        let number = 0u64.to_le_bytes();
        let load = Load::begin(&mut raw, 4, round);
        let messages = &mut raw.messages;
        let calls: [OwnedFd; 2] = [theirs.into(), to_pipe];
        for request in [m::SET_VRING_CALL, m::SET_VRING_ERR] {
            let call = calls[round as usize % 2].as_fd();
            messages.tell(request, &number, &[call]).unwrap();
        }
        drop((ours, from_pipe));
        load.finish(&mut raw);
        Load::begin(&mut raw, 4, round).finish(&mut raw);
    });
}

/// A front end can end the process that serves it, and not without its being said.
#[test]
fn memory_that_is_cut_short_ends_the_server_with_the_reason() {
    let mut patient = Patient::new();
    let raw = patient.connect();
    rustix::fs::ftruncate(raw.rings().fd(), 0).unwrap();
    raw.queues[0].kick();
    let status = patient.server.wait();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    let said = patient.server.messages();
    let cause = "memory that the front end of the disk shares is gone";
    assert_eq!(said.matches(cause).count(), 1, "{said}");
    assert!(said.contains("help: seal the memory"), "{said}");
    let command = patient.home.serve_command(&["disk.img", "--queues", "2"]);
    patient.server.restart(command);
    // It is not taken again, and that ends nothing.
    let mut again = RawFrontEnd::negotiate(patient.server.socket(), &options()).unwrap();
    assert!(
        again.set_memory_of(&raw).is_err(),
        "memory that is gone was taken"
    );
    drop((raw, again));
    patient.serves();
    let said = patient.server.messages();
    assert!(said.contains("reaches beyond its file"), "{said}");
}
