//! Connections: who may have how many, and how long they may take.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::manager::peer::Peer;
use crate::patience::Patient;
use crate::quota::Quota;

/// The most bytes that the head of a request has.
const HEAD_MAX: usize = 16 << 10;

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. More wait to be accepted.
    pub connections: usize,
    /// Connections of one user at once, other than root and our own. More are
    /// closed: one user does not keep the others out.
    pub connections_of_user: usize,
    /// How long the head of a request may take to arrive, and how long a
    /// connection may be idle.
    pub head_time: Duration,
    /// How long a body may take to arrive.
    pub body_time: Duration,
    /// How long a client may leave an answer unread.
    pub answer_time: Duration,
    /// How long requests may take after the manager was told to end.
    pub end_time: Duration,
}

/// How often it is told that a user has too many connections.
const COMPLAINTS: Quota = Quota::new(20, Duration::from_secs(10));

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1024,
            connections_of_user: 128,
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(10),
            answer_time: Duration::from_secs(10),
            end_time: Duration::from_secs(30),
        }
    }
}

/// How many connections each user has.
#[derive(Clone, Debug, Default)]
struct Users(Arc<Mutex<HashMap<u32, usize>>>);

/// One connection that is counted.
#[derive(Debug)]
struct Counted {
    users: Users,
    uid: u32,
}

impl Users {
    /// Counts one more, unless that is too many.
    fn count(&self, uid: u32, most: usize) -> Option<Counted> {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(uid).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted {
            users: self.clone(),
            uid,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut users = self.users.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

/// Serves connections until `stopping` becomes true; then lets requests in
/// flight end.
pub async fn serve(
    listener: UnixListener,
    app: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let own = rustix::process::geteuid().as_raw();
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut complaints = COMPLAINTS;
    let users = Users::default();
    let mut connections = JoinSet::new();
    loop {
        // Ended ones are collected, so that they do not pile up.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            () = told(&mut stopping) => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a connection was closed: its peer is not known");
                continue;
            }
        };
        let most = match peer.uid {
            uid if uid == 0 || uid == own => usize::MAX,
            _ => limits.connections_of_user,
        };
        let Some(counted) = users.count(peer.uid, most) else {
            // Whoever has too many may try for ever.
            if complaints.take(Instant::now()) {
                tracing::warn!(
                    uid = peer.uid,
                    most,
                    "a connection was closed: its user has too many"
                );
            }
            continue;
        };
        let app = app.clone().layer(Extension(peer));
        let stopping = stopping.clone();
        connections.spawn(async move {
            let _held = (place, counted);
            connection(stream, app, limits, stopping).await;
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.end_time, ended).await.is_err() {
        tracing::warn!("requests that did not end are left without an answer");
    }
}

/// Waits until the manager is about to end.
pub(super) async fn told(stopping: &mut watch::Receiver<bool>) {
    // That the one who would tell is gone means the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The next connection, as soon as there is room for it.
async fn accept(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            // Most likely no descriptor is left: it would fail again at once.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(
    stream: UnixStream,
    app: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(HEAD_MAX);
    let service = TowerToHyperService::new(app);
    let stream = Patient::new(stream, limits.answer_time);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = told(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // What a client does wrong on its connection is its own affair.
    if let Err(error) = result {
        tracing::debug!(error, "a connection ended");
    }
}
