//! A region in parts, over as many threads as there are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::Error;
use crate::secret::scrub_stack;

/// Does `each` part, on that many threads; on this one, if it is one. The first
/// failure ends it, and parts that nobody has begun are left out.
///
/// # Errors
/// The first failure, or that a thread panicked.
pub fn over<T: Send>(
    threads: usize,
    parts: impl Iterator<Item = T> + Send,
    each: impl Fn(T) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    if threads <= 1 {
        for part in parts {
            each(part)?;
        }
        scrub_stack();
        return Ok(());
    }
    let parts = Mutex::new(parts);
    let failed = AtomicBool::new(false);
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> Result<(), Error> {
        while !failed.load(Ordering::Relaxed)
            && let Some(part) = next()
        {
            each(part).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        // It was encrypted or decrypted here, and the stack may be another's next.
        scrub_stack();
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let here = work();
        // All of them, and the first failure.
        others.into_iter().fold(here, |result, thread| {
            result.and(thread.join().unwrap_or(Err(Error::Panicked)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_part_is_done_once_and_a_failure_ends_it() {
        for threads in [1, 2, 5] {
            let sum = AtomicU64::new(0);
            over(threads, 0..1000, |part| {
                sum.fetch_add(part, Ordering::Relaxed);
                Ok(())
            })
            .unwrap();
            assert_eq!(sum.into_inner(), 499_500);
            let done = AtomicU64::new(0);
            let failed = over(threads, 0..u64::MAX, |part| {
                done.fetch_add(1, Ordering::Relaxed);
                if part == 7 {
                    return Err(Error::Unfit("seven"));
                }
                Ok(())
            });
            assert!(matches!(failed, Err(Error::Unfit("seven"))));
        }
    }
}
