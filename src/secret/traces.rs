//! What using a secret leaves behind in a thread: copies on the stack, and in
//! vector registers, which the kernel saves with a thread that waits.
//!
//! Two lines of defence. Who has computed with a key calls [`scrub_stack`], so
//! that nothing is left when it returns. And every thread of a runtime is wiped
//! deeper before it goes to sleep ([`before_rest`]), for what libraries do that
//! nobody here calls by name.

use super::registers;

/// How deep [`scrub_stack`] reaches. Programs that are not optimised need most.
const CALLS: usize = 16 << 10;

/// How deep the stack of a thread that goes to sleep is wiped: what polling a
/// task, with TLS and HTTP in it, uses at most.
const TASKS: usize = match cfg!(debug_assertions) {
    // There, a frame has each temporary value of an asynchronous function.
    true => 512 << 10,
    false => 96 << 10,
};

/// Overwrites the part of the stack that calls made just before have used, in
/// which by-value returns of key material leave copies, and all vector
/// registers. A precaution: the compiler promises nothing about where such
/// copies are.
#[inline(never)]
pub fn scrub_stack() {
    overwrite::<CALLS>();
    registers::clear();
}

/// Has `work` done, which computes with a key, in a frame of its own, of which
/// [`scrub_stack`] leaves nothing. What it returns is not wiped.
pub fn scrubbed<T>(work: impl FnOnce() -> T) -> T {
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let result = apart(work);
    scrub_stack();
    result
}

/// The same for more of the stack: for a thread that is about to wait for work.
#[inline(never)]
pub fn before_rest() {
    overwrite::<TASKS>();
    registers::clear();
}

#[inline(never)]
fn overwrite<const BYTES: usize>() {
    // Filling it is the overwriting, which must be done as somebody may look.
    let mut used = [0u8; BYTES];
    std::hint::black_box(&mut used);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDLE: u64 = 0x5ec2_e7a1_9d3b_0f64;

    /// Leaves a word in the middle of so much stack.
    #[inline(never)]
    fn leave<const WORDS: usize>() {
        let mut words = [0; WORDS];
        words[WORDS / 4..WORDS / 4 * 3].fill(!NEEDLE);
        // Not as a constant, which would be in the code.
        words.iter_mut().for_each(|word| *word = !*word);
        std::hint::black_box(&mut words);
    }

    /// How often the word is on the stack below this call.
    #[inline(never)]
    fn found() -> usize {
        const BELOW: usize = 128 << 10;
        let here = 0u64;
        let top = &raw const here;
        // SAFETY: a thread of a test has 2 MiB of stack, of which this is a
        // part that no frame is in but that of this loop.
        (64..BELOW / 8)
            .filter(|at| unsafe { std::ptr::read_volatile(top.sub(*at)) } == NEEDLE)
            .count()
    }

    #[test]
    fn what_calls_leave_on_the_stack_is_wiped_and_so_it_is_deeper_down_for_a_rest() {
        for (leave, wipe) in [
            (leave::<1024> as fn(), scrub_stack as fn()),
            (leave::<8192>, before_rest),
        ] {
            let thread = std::thread::spawn(move || {
                leave();
                let before = found();
                leave();
                wipe();
                (before, found())
            });
            let (before, after) = thread.join().unwrap();
            assert!(before > 100, "{before}");
            assert_eq!(after, 0);
        }
    }
}
