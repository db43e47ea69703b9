//! What the AES instructions of this CPU allow at best: the rate of a loop of
//! nothing but independent ones.

use std::time::Instant;

use sealblk::crypt::Engine;

/// Times the loop. Gives nanoseconds for one AES block of 14 rounds, with the
/// widest instruction that the engine uses; that of the best engine for those
/// of which it is not known. None on CPUs without.
#[cfg(target_arch = "x86_64")]
pub fn measure(engine: Option<Engine>) -> Option<f64> {
    use std::arch::asm;
    const LOOPS: u64 = 120;
    /// 14 rounds of 12 independent registers.
    macro_rules! saturate {
        ($op:literal, $blocks:literal) => {{
            let start = Instant::now();
            // SAFETY: `Engine::available` lists an engine only where the CPU
            // has its instructions; nothing but declared registers is touched.
            unsafe {
                asm!(
                    "2:",
                    ".rept 14",
                    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11",
                    $op,
                    ".endr",
                    ".endr",
                    "dec {loops}",
                    "jnz 2b",
                    "vzeroupper",
                    loops = inout(reg) LOOPS => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm15") _,
                    options(nomem, nostack),
                );
            }
            start.elapsed().as_secs_f64() * 1e9 / (LOOPS * 12 * $blocks) as f64
        }};
    }
    match engine {
        Some(Engine::Vaes512) => Some(saturate!("vaesenc zmm\\r, zmm\\r, zmm15", 4)),
        Some(Engine::Vaes256) => Some(saturate!("vaesenc ymm\\r, ymm\\r, ymm15", 2)),
        Some(Engine::Aesni) => Some(saturate!("vaesenc xmm\\r, xmm\\r, xmm15", 1)),
        _ if Engine::best() == Engine::Portable => None,
        _ => measure(Some(Engine::best())),
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn measure(_: Option<Engine>) -> Option<f64> {
    None
}
