//! The settings that choose one of a few names. The doc comments are what
//! `--help` shows.
#![forbid(unsafe_code)]

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::engine::trouble;

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize, Serialize, ToSchema,
        )]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }
    };
}

choice! {
    /// What a guest's DISCARD does.
    Discard {
        /// Nothing: how much of the disk is used stays hidden
        #[default]
        Ignore,
        /// Frees the space in the backing file, which shows what is unused
        Pass,
    }
}

choice! {
    /// Whether to go around the host's page cache (O_DIRECT).
    Direct {
        /// Where the file system can
        #[default]
        Auto,
        /// Refuse to serve where it cannot
        Always,
        /// Use the page cache
        Never,
    }
}

choice! {
    /// What is done when the file or device below a disk fails.
    OnError {
        /// The guest has an I/O error
        #[default]
        Report,
        /// The disk stops until that is over; its guest waits
        Stop,
        /// The same where no space is left, and `report` for all else
        Enospc,
        /// What failed is tried again, while all else goes on
        Retry,
    }
}

impl From<OnError> for trouble::OnError {
    fn from(choice: OnError) -> Self {
        match choice {
            OnError::Report => trouble::OnError::Report,
            OnError::Stop => trouble::OnError::Stop,
            OnError::Enospc => trouble::OnError::Enospc,
            OnError::Retry => trouble::OnError::Retry,
        }
    }
}

choice! {
    /// When a write is durable.
    Cache {
        /// When the guest flushes
        #[default]
        Writeback,
        /// When it completes
        Writethrough,
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// For people
        #[default]
        Text,
        /// One JSON object a line
        Json,
    }
}

choice! {
    /// The least severe level that is logged.
    LogLevel {
        /// Nothing
        Off,
        /// What failed
        Error,
        /// What may fail soon
        Warn,
        /// What was done
        #[default]
        Info,
        /// How it was done
        Debug,
        /// Every step
        Trace,
    }
}
