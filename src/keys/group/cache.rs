//! Group keys in memory: each is asked for once, by whoever comes first.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::kms;
use crate::kms::{Class, Wrapped};
use crate::secret::Secret;

/// Which wrapped key: the hash of all that it consists of, and of the key set
/// that has it opened. A volume that claims the id of another's group key
/// does not get that key.
pub type Id = [u8; 32];

/// The id of `wrapped`, as key set `key_set` has it opened by `provider`.
pub fn id(key_set: &str, provider: &str, wrapped: &Wrapped) -> Id {
    let mut hash = Sha256::new();
    let fields = [
        key_set.as_bytes(),
        provider.as_bytes(),
        wrapped.key_id.as_bytes(),
        wrapped.version.as_bytes(),
        wrapped.alg.as_bytes(),
        &wrapped.bytes,
    ];
    for field in fields {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

/// The group keys that were unwrapped lately.
#[derive(Debug, Default)]
pub struct Cache(Mutex<HashMap<Id, Arc<Slot>>>);

#[derive(Debug, Default)]
struct Slot(tokio::sync::Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The key, and until when it may be used without asking again.
    key: Option<(Arc<Secret>, Instant)>,
    /// The last failure, and when it ended.
    failed: Option<(kms::Error, Instant)>,
}

impl Cache {
    /// The key of that id: from memory, or else by `fetch`, which is then
    /// good for `fresh`. Whoever comes while it is fetched waits, and shares
    /// what comes of it, also a failure: so many volumes do not become as many
    /// calls to a service that does not answer.
    ///
    /// # Errors
    /// What `fetch` failed with.
    pub async fn get(
        &self,
        id: Id,
        fresh: Duration,
        fetch: impl Future<Output = Result<Secret, kms::Error>>,
    ) -> Result<Arc<Secret>, kms::Error> {
        let arrived = Instant::now();
        let slot = self.slots().entry(id).or_default().clone();
        let mut state = slot.0.lock().await;
        if let Some((key, until)) = &state.key
            && Instant::now() < *until
        {
            return Ok(key.clone());
        }
        if let Some((error, ended)) = &state.failed
            && *ended >= arrived
        {
            return Err(error.clone());
        }
        // Not before the call: the old answer is out of date already.
        state.key = None;
        match fetch.await {
            Ok(key) => {
                let key = Arc::new(key);
                *state = State {
                    key: Some((key.clone(), Instant::now() + fresh)),
                    failed: None,
                };
                Ok(key)
            }
            Err(error) => {
                state.failed = Some((error.clone(), Instant::now()));
                Err(error)
            }
        }
    }

    /// Whether the key of that id can be had without asking for it.
    pub fn holds(&self, id: &Id) -> bool {
        let slot = self.slots().get(id).cloned();
        slot.is_some_and(|slot| match slot.0.try_lock() {
            Ok(state) => matches!(&state.key, Some((_, until)) if Instant::now() < *until),
            Err(_) => false,
        })
    }

    /// Puts a key there that was just made.
    pub async fn put(&self, id: Id, fresh: Duration, key: Arc<Secret>) {
        let slot = self.slots().entry(id).or_default().clone();
        slot.0.lock().await.key = Some((key, Instant::now() + fresh));
    }

    /// Forgets the keys whose time is over, so that they are wiped, and what
    /// nobody waits for.
    pub fn forget_old(&self) {
        let now = Instant::now();
        self.slots().retain(|_, slot| match slot.0.try_lock() {
            Ok(state) => matches!(&state.key, Some((_, until)) if now < *until),
            Err(_) => true,
        });
    }

    /// Forgets the key of that id.
    pub fn forget(&self, id: &Id) {
        self.slots().remove(id);
    }

    /// Forgets all keys.
    pub fn clear(&self) {
        self.slots().clear();
    }

    /// How many keys there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.slots().len()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Id, Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a use that could not be recorded.
pub fn unrecorded(error: &std::io::Error) -> kms::Error {
    kms::Error::new(
        Class::Unreachable,
        format!("the use of the key cannot be recorded: {error}"),
        "make the audit log writable again: check its file system and permissions",
    )
    .with_kind(crate::error::io_kind(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::Denied;
    use std::sync::atomic::{AtomicU32, Ordering};

    const FRESH: Duration = Duration::from_secs(3600);
    const ID: Id = [7; 32];

    fn run<F: Future>(future: F) -> F::Output {
        crate::runtime::block_on(future).unwrap()
    }

    /// Calls `get` from several tasks at once, each of which takes its time.
    fn storm(
        cache: &Arc<Cache>,
        calls: &Arc<AtomicU32>,
        fail: bool,
    ) -> Vec<Result<(), kms::Error>> {
        run(async {
            let tasks: Vec<_> = (0..50)
                .map(|_| {
                    let (cache, calls) = (cache.clone(), calls.clone());
                    tokio::spawn(async move {
                        let fetch = async {
                            calls.fetch_add(1, Ordering::SeqCst);
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            match fail {
                                true => Err(kms::Error::new(
                                    Class::Denied(Denied::Disabled),
                                    "no",
                                    "ask",
                                )),
                                false => Ok(Secret::random(32).unwrap()),
                            }
                        };
                        cache.get(ID, FRESH, fetch).await.map(|_| ())
                    })
                })
                .collect();
            let mut results = Vec::new();
            for task in tasks {
                results.push(task.await.unwrap());
            }
            results
        })
    }

    #[test]
    fn many_who_come_at_once_cost_one_call() {
        let (cache, calls) = (Arc::new(Cache::default()), Arc::default());
        assert!(storm(&cache, &calls, false).iter().all(Result::is_ok));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert!(storm(&cache, &calls, false).iter().all(Result::is_ok));
        assert_eq!(calls.load(Ordering::SeqCst), 1, "it is in memory");
    }

    #[test]
    fn a_failure_is_shared_by_those_who_waited_and_not_kept() {
        let (cache, calls) = (Arc::new(Cache::default()), Arc::default());
        assert!(storm(&cache, &calls, true).iter().all(Result::is_err));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert!(storm(&cache, &calls, false).iter().all(Result::is_ok));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_key_is_used_no_longer_than_it_is_fresh() {
        let cache = Cache::default();
        let fetch = || async { Ok(Secret::random(32).unwrap()) };
        let first = run(cache.get(ID, Duration::ZERO, fetch())).unwrap();
        let second = run(cache.get(ID, FRESH, fetch())).unwrap();
        assert_ne!(*first, *second);
        assert_eq!(run(cache.get(ID, FRESH, fetch())).unwrap(), second);
        cache.forget_old();
        assert_eq!(cache.len(), 1);
        cache.clear();
        assert_eq!(cache.len(), 0);
    }
}
