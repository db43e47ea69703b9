//! Connections: who may have how many, and how long they may take.
//!
//! Whoever connects has shown nothing yet, and may never do so. Such
//! connections have room of their own, in which the newest one displaces the
//! oldest: a host needs a fraction of a second there. Behind it each host has
//! its share, so that none keeps the others out.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::calls::Caller;
use super::identity::Identity;
use super::service;
use super::state::Broker;
use crate::config::broker::Limits;
use crate::patience::Patient;

/// The most bytes that the head of a request has.
const HEAD_MAX: usize = 16 << 10;

/// How long calls may take after the broker was told to end.
const END_TIME: Duration = Duration::from_secs(30);

/// Connections of those whose certificate is that of no host, all together.
const STRANGERS: usize = 16;

/// Serves connections until `stopping` becomes true; then lets calls in flight
/// end.
pub async fn serve(
    listener: TcpListener,
    broker: Arc<Broker>,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let serving = Arc::new(Serving {
        app: service::router(broker.clone(), limits.request_timeout),
        broker,
        limits,
        stopping: stopping.clone(),
        entering: Mutex::default(),
        inside: Mutex::default(),
    });
    let mut connections = JoinSet::new();
    for number in 0u64.. {
        // Ended ones are collected, so that they do not pile up.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            () = told(&mut stopping) => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely no descriptor is left: it would fail again at once.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (told, waits) = tokio::sync::oneshot::channel::<()>();
        let task = serving.clone();
        let handle = connections.spawn(async move {
            // Until it is on the list of those who enter.
            let _ = waits.await;
            task.connection(number, stream, peer).await;
        });
        serving.enter(number, handle);
        let _ = told.send(());
    }
    drop(listener);
    // Those who have shown nothing have nothing to wait for.
    for (_, entering) in std::mem::take(&mut *serving.entering()) {
        entering.abort();
    }
    let ended = async {
        while connections.join_next().await.is_some() {}
        // Those whose host has gone away are to be recorded as well.
        serving.broker.idle().await;
    };
    if tokio::time::timeout(END_TIME, ended).await.is_err() {
        tracing::warn!("calls that did not end are left without an answer");
    }
}

/// Waits until the broker is about to end.
async fn told(stopping: &mut watch::Receiver<bool>) {
    // That the one who would tell is gone means the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

struct Serving {
    broker: Arc<Broker>,
    app: Router,
    limits: Limits,
    stopping: watch::Receiver<bool>,
    /// Connections that have not shown a certificate yet, in their order.
    entering: Mutex<BTreeMap<u64, AbortHandle>>,
    /// How many connections each host has.
    inside: Mutex<HashMap<String, usize>>,
}

impl Serving {
    fn entering(&self) -> MutexGuard<'_, BTreeMap<u64, AbortHandle>> {
        self.entering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inside(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a new connection, which displaces the oldest one where
    /// there are too many.
    fn enter(&self, number: u64, handle: AbortHandle) {
        let mut entering = self.entering();
        entering.insert(number, handle);
        if entering.len() > self.limits.handshakes
            && let Some((_, oldest)) = entering.pop_first()
        {
            oldest.abort();
            self.broker.metrics.handshake_failed("displaced");
        }
    }

    async fn connection(self: Arc<Self>, number: u64, stream: TcpStream, peer: SocketAddr) {
        let mut tls = self.broker.tls();
        let config = tls.borrow_and_update().clone();
        let _ = stream.set_nodelay(true);
        let shaking = TlsAcceptor::from(config).accept(stream);
        let shaken = tokio::time::timeout(self.limits.handshake_timeout, shaking).await;
        if self.entering().remove(&number).is_none() {
            return;
        }
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.not_shaken(peer, &error),
            Err(_) => {
                self.broker.metrics.handshake_failed("timeout");
                return tracing::debug!(%peer, "a connection was closed: it shows nothing");
            }
        };
        let identity = identity(&stream).map(Arc::new);
        let caller = Caller {
            identity,
            peer: peer.to_string(),
        };
        let Some(_place) = self.place(&caller) else {
            return;
        };
        self.serve(stream, caller, tls).await;
    }

    fn not_shaken(&self, peer: SocketAddr, error: &io::Error) {
        use rustls::Error as E;
        let cause = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let reason = match cause {
            Some(E::InvalidCertificate(_)) => "certificate",
            Some(E::NoCertificatesPresented) => "no_certificate",
            Some(_) => "tls",
            None => "broken_off",
        };
        self.broker.metrics.handshake_failed(reason);
        match reason {
            // A host may wonder why.
            "certificate" | "no_certificate" => {
                tracing::info!(%peer, reason, "a connection was refused: {error}");
            }
            _ => tracing::debug!(%peer, reason, "a connection was refused: {error}"),
        }
    }

    /// A place among the connections of that host.
    fn place(self: &Arc<Self>, caller: &Caller) -> Option<Place> {
        let host = match (self.broker.known(caller), &caller.identity) {
            (Ok(()), Some(identity)) => identity.name().to_owned(),
            _ => String::new(),
        };
        let most = match host.is_empty() {
            true => STRANGERS,
            false => self.limits.connections_of_host,
        };
        let mut inside = self.inside();
        let all: usize = inside.values().sum();
        let reason = if inside.get(&host).is_some_and(|count| *count >= most) {
            "host"
        } else if all >= self.limits.connections {
            "all"
        } else {
            *inside.entry(host.clone()).or_default() += 1;
            drop(inside);
            self.broker.metrics.connections(1);
            return Some(Place {
                serving: self.clone(),
                host,
            });
        };
        drop(inside);
        self.broker.metrics.connection_closed(reason);
        tracing::warn!(
            peer = caller.peer,
            certificate = host,
            "a connection was closed: there are too many of {reason}"
        );
        None
    }

    async fn serve(
        &self,
        stream: TlsStream<TcpStream>,
        caller: Caller,
        mut tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    ) {
        let mut builder = Builder::new(TokioExecutor::new()).http1_only();
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.request_timeout)
            .max_buf_size(HEAD_MAX);
        let peer = caller.peer.clone();
        let service = TowerToHyperService::new(self.app.clone().layer(Extension(caller)));
        let stream = Patient::new(stream, self.limits.request_timeout);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut stopping = self.stopping.clone();
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = told(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            // Other authorities are trusted now, perhaps not this one's.
            _ = tls.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        // What a client does wrong on its connection is its own affair.
        if let Err(error) = result {
            tracing::debug!(peer, error, "a connection ended");
        }
    }
}

/// Whose the connection is.
fn identity(stream: &TlsStream<TcpStream>) -> Option<Identity> {
    let (_, connection) = stream.get_ref();
    Identity::of(connection.peer_certificates()?.first()?)
}

/// One connection that is counted.
struct Place {
    serving: Arc<Serving>,
    host: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.serving.broker.metrics.connections(-1);
        let mut inside = self.serving.inside();
        if let Some(count) = inside.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.host);
            }
        }
    }
}
