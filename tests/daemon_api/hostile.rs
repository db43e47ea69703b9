//! Clients that are many, slow, or make no sense. Others are served meanwhile.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;

use super::support::daemon::{Daemon, read_reply};
use super::support::server::{DEADLINE, eventually};

fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(2 * DEADLINE)).unwrap();
    stream
}

#[test]
fn two_hundred_at_once_are_all_answered() {
    let daemon = Daemon::start();
    const CLIENTS: usize = 200;
    let barrier = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut stream = connect(&daemon);
                    // All are connected before the first one asks.
                    barrier.wait();
                    let request = "GET /v1/disks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
                    stream.write_all(request.as_bytes()).unwrap();
                    read_reply(&mut stream).map(|reply| reply.status)
                })
            })
            .collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), Some(200));
        }
    });
}

#[test]
fn slow_clients_keep_nobody_out_and_are_let_go() {
    let daemon = Daemon::start();
    assert_eq!(daemon.get("/v1/status").status, 200);
    // With a connection or two that are not closed quite yet.
    let before = daemon.server.open_files();
    let mut slow = Vec::new();
    for index in 0..100 {
        let mut stream = connect(&daemon);
        match index % 3 {
            0 => {}
            1 => stream
                .write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX-A: ")
                .unwrap(),
            _ => stream
                .write_all(
                    b"POST /v1/disks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                      Content-Length: 1000\r\n\r\n{",
                )
                .unwrap(),
        }
        slow.push(stream);
    }
    eventually("all are accepted", || {
        (daemon.server.open_files() >= before + 90).then_some(())
    });
    assert_eq!(daemon.get("/v1/status").status, 200);
    for (index, mut stream) in slow.into_iter().enumerate() {
        let status = read_reply(&mut stream).map(|reply| reply.status);
        let fair = match index % 3 {
            2 => status == Some(408),
            _ => status.is_none_or(|status| status == 408),
        };
        assert!(fair, "{index}: {status:?}");
    }
    eventually("they are let go", || {
        (daemon.server.open_files() <= before + 5).then_some(())
    });
}

#[test]
fn huge_and_senseless_requests_are_refused() {
    let mut daemon = Daemon::start();
    let head = "POST /v1/disks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let huge = format!("{head}Content-Length: 1000000000000\r\n\r\n{{");
    let chunked = {
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(3)
        )
    };
    let long_head = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(10_000));
    for (request, expected) in [
        (huge.as_bytes(), &[413][..]),
        (chunked.as_bytes(), &[413]),
        (long_head.as_bytes(), &[414, 431]),
        (many.as_bytes(), &[431]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[400]),
        (b"GET / HTTP/9.9\r\n\r\n", &[400, 505]),
        (b"nonsense\r\n\r\n", &[400]),
        (
            b"GET /v1/status HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            &[400],
        ),
    ] {
        let mut stream = connect(&daemon);
        // It may be closed before all is written.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let status = read_reply(&mut stream).map(|reply| reply.status);
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        assert!(
            status.is_none_or(|status| expected.contains(&status)),
            "{shown}: {status:?}"
        );
        assert_eq!(daemon.get("/v1/status").status, 200, "after {shown}");
    }
    daemon.server.assert_running("them all");
    let kib = daemon.server.memory_kib("VmHWM");
    assert!(kib < 200 << 10, "{kib} KiB");
}
