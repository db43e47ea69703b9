//! A guest that changes descriptors, headers and data while the server looks
//! at them. What its own requests do is its own matter.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Target;
use super::support::raw_front_end::{DATA, Form};
use super::support::raw_queue::{Descriptor, INDIRECT, NEXT, WRITE, readable, writable};
use super::support::request::*;

fn descriptors_change_under_the_server(mut target: Target) {
    let mut raw = target.connect();
    let rings = raw.rings();
    let data = std::sync::Arc::clone(&raw.arena.memory);
    let header_at = raw.put(&header(T_IN, 0));
    let buffer = raw.put(&[0; 4096]);
    let status = raw.put(&[S_UNTOUCHED]);
    let good = [
        Descriptor {
            flags: NEXT,
            next: 1,
            ..readable(header_at, 16)
        },
        Descriptor {
            flags: NEXT | WRITE,
            next: 2,
            ..writable(buffer, 4096)
        },
        writable(status, 1),
    ];
    // Never a type that changes the disk, so that its contents can be checked.
    let headers = [
        header(T_IN, 0),
        header(T_IN, super::SECTORS),
        header(T_IN, u64::MAX),
        header(T_FLUSH, 0),
        header(T_GET_ID, 0),
        header(77, 0),
    ];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0usize;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let mut bad = good[round % 3];
                match round / 3 % 5 {
                    0 => bad.address = round as u64 * 0x9e37_79b9,
                    1 => bad.len = (round as u32).wrapping_mul(0x9e37_79b9),
                    2 => bad.next = round as u16,
                    3 => {
                        bad.flags = (round as u16).wrapping_mul(0x9e37) & (NEXT | WRITE | INDIRECT)
                    }
                    _ => {}
                }
                let at = 16 * (round % 3);
                rings.write(at, &bad.bytes());
                let header = &headers[round % headers.len()];
                data.write((header_at - DATA) as usize, header);
                rings.write(at, &good[round % 3].bytes());
            }
        });
        let start = Instant::now();
        let mut last_progress = Instant::now();
        let mut published = 0u16;
        raw.queues[0].put_literally(0, &good);
        while start.elapsed() < Duration::from_secs(1) {
            raw.queues[0].publish(0);
            raw.queues[0].kick();
            published += 1;
            while raw.queues[0].take_used().is_some() {
                published -= 1;
                last_progress = Instant::now();
            }
            // A ring may break; then it is given up.
            if published > 32 {
                std::thread::yield_now();
                if last_progress.elapsed() > Duration::from_millis(150) {
                    break;
                }
            }
            if published >= 60 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(raw);
    target.assert_unharmed("descriptors that changed");
    target.assert_small();
}

/// A write whose data changes on its way: the block holds a mix of old and new
/// data, and no other block changes.
fn data_changes_under_the_server(target: Target) {
    let mut raw = target.connect();
    let stop = AtomicBool::new(false);
    let sector = (1 << 20) / 512 + 64;
    let zeroes = vec![0u8; 64 << 10];
    raw.succeed(0, Request::write(sector - 64, &zeroes), Form::Direct);
    let at = raw.put(&[0; 4096]);
    let data = std::sync::Arc::clone(&raw.arena.memory);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = 0u8;
            while !stop.load(Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                data.fill((at - DATA) as usize, 4096, byte);
            }
        });
        for _ in 0..200 {
            let status = raw.put(&[S_UNTOUCHED]);
            let chain = vec![
                readable(raw.put(&header(T_OUT, sector)), 16),
                readable(at, 4096),
                writable(status, 1),
            ];
            let head = raw.queues[0].put_chain(chain);
            raw.queues[0].publish(head);
            raw.queues[0].kick();
            raw.used(0);
            assert_eq!(raw.get(status, 1), [S_OK]);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let found = raw.succeed(0, Request::read(sector - 64, 64 << 10), Form::Direct);
    assert!(found.data[..32 << 10].iter().all(|byte| *byte == 0));
    assert!(
        found.data[(32 << 10) + 4096..]
            .iter()
            .all(|byte| *byte == 0)
    );
}

mod sealblk {
    use super::Target;

    #[test]
    fn descriptors_change_under_the_server() {
        super::descriptors_change_under_the_server(Target::sealblk());
    }

    #[test]
    fn data_changes_under_the_server() {
        super::data_changes_under_the_server(Target::sealblk());
    }
}

mod qemu {
    use super::Target;

    #[test]
    fn descriptors_change_under_the_server() {
        super::descriptors_change_under_the_server(Target::qemu());
    }

    #[test]
    fn data_changes_under_the_server() {
        super::data_changes_under_the_server(Target::qemu());
    }
}
