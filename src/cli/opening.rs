//! What a volume may be opened with beside its own key set: the flags of all
//! commands that open one.

use std::path::PathBuf;

use crate::error::Failure;
use crate::prepare::Opening;

/// Flags for break-glass access.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Break-glass")]
pub struct OpeningArgs {
    /// Use the wraps of other key sets if the volume's own one yields no key
    ///
    /// For when the own key set's service is lost. It is recorded as an alert.
    #[arg(long)]
    pub break_glass: bool,

    /// Also if the volume's own key set works, and denies its key
    ///
    /// This gets around the will of the key's owner.
    #[arg(long)]
    pub even_if_denied: bool,

    /// Use the recovery key in this file if the volume's own key set yields no key
    #[arg(long, value_name = "FILE")]
    pub recovery_key_file: Option<PathBuf>,
}

impl OpeningArgs {
    /// Nothing without a way that it is about.
    ///
    /// # Errors
    /// When there is none.
    pub fn check(&self) -> Result<(), Failure> {
        match self.even_if_denied && !self.break_glass && self.recovery_key_file.is_none() {
            true => Err(Failure::new(
                crate::error::Kind::Usage,
                "--even-if-denied says what for, and not how",
                Some("add --break-glass, or --recovery-key-file with the key from the safe".into()),
            )),
            false => Ok(()),
        }
    }

    /// What it means.
    ///
    /// # Errors
    /// When the file has no recovery key, or the flags make no sense.
    pub fn resolve(&self) -> Result<Opening, Failure> {
        self.check()?;
        let (glass, denied) = (self.break_glass, self.even_if_denied);
        Ok(Opening::new(
            glass,
            denied,
            self.recovery_key_file.as_deref(),
        )?)
    }
}
