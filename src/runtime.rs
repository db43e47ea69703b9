//! Waiting for what is asynchronous (the key services) from code that is not.
#![forbid(unsafe_code)]

use std::future::Future;
use std::io;
use std::time::Duration;

use crate::secret::before_rest;

/// So long it waits for threads to leave: those that have nothing to do leave at once,
/// and none is in a library any more when the process ends. A name look-up, or a
/// library, that hangs is not waited for beyond every deadline.
const LAST: Duration = Duration::from_millis(100);

/// Runs a future to its end on a runtime of its own, on this thread. For
/// commands, and for what comes before serving: the data plane has no runtime.
///
/// # Errors
/// When the runtime cannot be made, for want of file descriptors for example.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(before_rest)
        .build()?;
    let output = runtime.block_on(future);
    runtime.shutdown_timeout(LAST);
    before_rest();
    Ok(output)
}
