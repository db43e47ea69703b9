//! A TCP proxy that can be made to fail in the ways of networks and servers.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is wrong with the server behind it, or with the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It does not listen.
    Refuse,
    /// It takes connections and requests, and answers none.
    Silent,
    /// Its answers come after this time.
    Slow(Duration),
    /// It breaks off when it is asked something.
    Cut,
    /// It gives this answer to anything.
    Answer(Vec<u8>),
    /// The proxy ends.
    End,
}

impl Fault {
    /// An HTTP answer with this status line, headers and body.
    pub fn http(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        let text = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
        );
        Fault::Answer(text.into_bytes())
    }
}

struct State {
    fault: Fault,
    /// How many connections were taken.
    taken: usize,
    /// To be cut when the fault changes.
    open: Vec<TcpStream>,
    /// What went through it.
    seen: Seen,
}

/// What went through a proxy, of all connections, as it came.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub requests: Vec<u8>,
    pub answers: Vec<u8>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits while the fault is this one.
    fn wait_while(&self, fault: &Fault) {
        let state = self.lock();
        drop(
            self.changed
                .wait_while(state, |state| state.fault == *fault),
        );
    }
}

/// A proxy to one server on this host, until it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    _reserved: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// A port that nobody else is given while what is returned is open, for a listener
/// that comes and goes: connections are refused while there is none.
fn reserve_port() -> (OwnedFd, u16) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, sockopt};
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    // As the standard library has it for listeners: both share the port.
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
    (socket, address.port())
}

impl Proxy {
    /// A proxy to the server at `target`, without a fault.
    pub fn to(target: u16) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                fault: Fault::None,
                taken: 0,
                open: Vec::new(),
                seen: Seen::default(),
            }),
            changed: Condvar::new(),
        });
        let (reserved, port) = reserve_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let own = shared.clone();
        let thread = std::thread::spawn(move || run(&own, listener, target));
        Proxy {
            shared,
            port,
            _reserved: reserved,
            thread: Some(thread),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections it has taken so far.
    pub fn taken(&self) -> usize {
        self.shared.lock().taken
    }

    /// What has gone through it since this was asked for the last time.
    pub fn seen(&self) -> Seen {
        std::mem::take(&mut self.shared.lock().seen)
    }

    /// Cuts all connections; new ones meet this fault. When it returns, it is so.
    pub fn set(&self, fault: Fault) {
        let listens = fault != Fault::Refuse && fault != Fault::End;
        {
            let mut state = self.shared.lock();
            state.fault = fault;
            for stream in state.open.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
        // Wakes it where it waits for a connection, and waits until it has seen
        // the change. That connection is not counted: it brings no request.
        loop {
            match TcpStream::connect(("127.0.0.1", self.port)) {
                Ok(_) if listens => return,
                Err(_) if !listens => return,
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Fault::End);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn run(shared: &Arc<Shared>, mut listener: TcpListener, target: u16) {
    let address = listener.local_addr().unwrap();
    loop {
        let (stream, _) = listener.accept().unwrap();
        let fault = shared.lock().fault.clone();
        match fault {
            Fault::End => return,
            Fault::Refuse => {
                drop((stream, listener));
                shared.wait_while(&fault);
                if shared.lock().fault == Fault::End {
                    return;
                }
                listener = TcpListener::bind(address).unwrap();
            }
            fault => {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    // What breaks here is what the test wants to see.
                    let _ = serve(&shared, stream, &fault, target);
                });
            }
        }
    }
}

fn serve(
    shared: &Arc<Shared>,
    mut client: TcpStream,
    fault: &Fault,
    target: u16,
) -> io::Result<()> {
    let mut first = vec![0; 64 << 10];
    let length = client.read(&mut first)?;
    if length == 0 {
        return Ok(());
    }
    shared.lock().open.push(client.try_clone()?);
    // Whoever waits for the count may change the fault then, which cuts what is open.
    let sent = match fault {
        Fault::Answer(answer) => client
            .write_all(answer)
            .and_then(|()| client.shutdown(Shutdown::Write)),
        _ => Ok(()),
    };
    shared.lock().taken += 1;
    sent?;
    let delay = match fault {
        Fault::Silent => {
            shared.wait_while(fault);
            return Ok(());
        }
        Fault::Answer(_) => {
            // Until the client is done: closing before that could lose the answer.
            return io::copy(&mut client, &mut io::sink()).map(drop);
        }
        Fault::Cut => return client.shutdown(Shutdown::Both),
        Fault::Slow(delay) => *delay,
        _ => Duration::ZERO,
    };
    let mut server = TcpStream::connect(("127.0.0.1", target))?;
    shared.lock().open.push(server.try_clone()?);
    shared.lock().seen.requests.extend(&first[..length]);
    server.write_all(&first[..length])?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let own = shared.clone();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut bytes) {
            own.lock().seen.requests.extend(&bytes[..length]);
            if to_server.write_all(&bytes[..length]).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Write);
    });
    loop {
        let length = server.read(&mut first)?;
        if length == 0 {
            return client.shutdown(Shutdown::Write);
        }
        shared.lock().seen.answers.extend(&first[..length]);
        std::thread::sleep(delay);
        client.write_all(&first[..length])?;
    }
}
