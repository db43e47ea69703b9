//! Waiting for what is asynchronous (the key services) from code that is not.
#![forbid(unsafe_code)]

use std::future::Future;
use std::io;

use crate::secret::before_rest;

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
    // A name look-up that hangs would otherwise be waited for here, beyond
    // every deadline.
    runtime.shutdown_background();
    before_rest();
    Ok(output)
}
