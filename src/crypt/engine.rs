//! Which implementations of the cipher there are, and which this CPU runs.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::Error;
use crate::error::{Explain, Kind};

/// An implementation of AES-256-XTS. All give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// AVX-512 with VAES and VPCLMULQDQ: 32 blocks at a time.
    #[cfg(target_arch = "x86_64")]
    Vaes512,
    /// AVX2 with VAES and VPCLMULQDQ: 16 blocks at a time.
    #[cfg(target_arch = "x86_64")]
    Vaes256,
    /// AES-NI and AVX: eight blocks at a time.
    #[cfg(target_arch = "x86_64")]
    Aesni,
    /// The `aes` and `xts-mode` crates, unit by unit: runs everywhere.
    Portable,
    /// AWS-LC, unit by unit: for those who need a validated module.
    #[cfg(any(feature = "aws-lc", feature = "fips"))]
    AwsLc,
}

impl Engine {
    /// Every engine, the fastest first; after the portable one, those that are
    /// never chosen by themselves.
    const ALL: &[Engine] = &[
        #[cfg(target_arch = "x86_64")]
        Engine::Vaes512,
        #[cfg(target_arch = "x86_64")]
        Engine::Vaes256,
        #[cfg(target_arch = "x86_64")]
        Engine::Aesni,
        Engine::Portable,
        #[cfg(any(feature = "aws-lc", feature = "fips"))]
        Engine::AwsLc,
    ];

    /// How many engines there are.
    pub(super) const COUNT: usize = Self::ALL.len();

    /// The engines that this CPU can run: the fastest first, and after the
    /// portable one those that are never chosen by themselves.
    pub fn available() -> Vec<Engine> {
        Self::ALL
            .iter()
            .copied()
            .filter(|engine| engine.runs_here())
            .collect()
    }

    /// The fastest engine that this CPU can run.
    pub fn best() -> Engine {
        Self::ALL
            .iter()
            .copied()
            .find(|engine| engine.runs_here())
            .unwrap_or(Engine::Portable)
    }

    /// Checks that it gives the known answers on this CPU, as is done before
    /// it serves a disk.
    ///
    /// # Errors
    /// When it does not, or cannot run here.
    pub fn self_test(self) -> Result<(), Error> {
        super::selftest::passed(self)
    }

    /// The name in configuration, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes512 => "vaes512",
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes256 => "vaes256",
            #[cfg(target_arch = "x86_64")]
            Engine::Aesni => "aesni",
            Engine::Portable => "portable",
            #[cfg(any(feature = "aws-lc", feature = "fips"))]
            Engine::AwsLc => "aws-lc",
        }
    }

    /// Refuses an engine that this CPU cannot run.
    pub(super) fn check(self) -> Result<(), Error> {
        if self.runs_here() {
            return Ok(());
        }
        Err(Error::Unavailable {
            engine: self,
            needs: self.needs(),
        })
    }

    /// The CPU features that the engine is built on.
    fn needs(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes512 => "AVX-512 (F, BW, DQ), VAES and VPCLMULQDQ",
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes256 => "AVX2, VAES and VPCLMULQDQ",
            #[cfg(target_arch = "x86_64")]
            Engine::Aesni => "AES-NI and AVX",
            Engine::Portable => "nothing special",
            #[cfg(any(feature = "aws-lc", feature = "fips"))]
            Engine::AwsLc => "an AWS-LC that has passed its own tests",
        }
    }

    fn runs_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes512 => {
                is_x86_feature_detected!("aes")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("vaes")
                    && is_x86_feature_detected!("vpclmulqdq")
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes256 => {
                is_x86_feature_detected!("aes")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("vaes")
                    && is_x86_feature_detected!("vpclmulqdq")
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Aesni => is_x86_feature_detected!("aes") && is_x86_feature_detected!("avx"),
            Engine::Portable => true,
            #[cfg(any(feature = "aws-lc", feature = "fips"))]
            Engine::AwsLc => super::aws_lc::usable(),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no engine's.
#[derive(Debug, thiserror::Error)]
#[error("there is no cipher engine {0:?}")]
pub struct UnknownEngine(String);

impl Explain for UnknownEngine {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn help(&self) -> Option<String> {
        let names: Vec<_> = Engine::ALL.iter().map(|engine| engine.name()).collect();
        let names = names.join(", ");
        Some(match self.0.as_str() {
            // A name of which a build without it knows all the same.
            "aws-lc" => format!(
                "build sealblk with --features aws-lc, or fips; or use auto, or one of: {names}"
            ),
            _ => format!("use auto, or one of: {names}"),
        })
    }
}

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        Self::ALL
            .iter()
            .copied()
            .find(|engine| engine.name() == name)
            .ok_or_else(|| UnknownEngine(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_the_best_engine_is_available() {
        for &engine in Engine::ALL {
            assert_eq!(engine.to_string().parse::<Engine>().unwrap(), engine);
        }
        assert_eq!(Engine::available().first(), Some(&Engine::best()));
        assert!(Engine::available().contains(&Engine::Portable));
        // Nobody gets it who has not asked for it.
        assert_ne!(Engine::best().name(), "aws-lc");
        match "aws-lc".parse::<Engine>() {
            Ok(engine) => assert!(engine.self_test().is_ok()),
            Err(unknown) => assert!(unknown.help().unwrap().contains("--features aws-lc")),
        }
        let unknown = "rot13".parse::<Engine>().unwrap_err();
        assert!(unknown.help().unwrap().contains("portable"));
    }
}
