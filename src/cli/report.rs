//! `sealblk report`: signed reports of verifications, and the key of this host
//! that signs them.

use std::io::{self, Read as _};
use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use super::{print, print_json};
use crate::config::Config;
use crate::error::{Failure, Kind, io_kind};
use crate::verify::{Envelope, HostKey, PublicKey, Report};

/// What follows `sealblk report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
`sealblk verify VOLUME --sign > REPORT` makes a signed report. Whoever has the
public key of the host checks it, anywhere:

  on the host, once:    sealblk report make-key
  on the host:          sealblk report show-key --pem > HOST.pub
  anywhere:             sealblk report check REPORT --public-key HOST.pub

A report says what the host says. It proves nothing against a host whose root is
not to be trusted.")]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check the signature of a report, and show what it says
    ///
    /// Exits with status 0 if the report is what the host wrote, whatever its
    /// verdict is; with 7 if not, and with 8 if another key signed it.
    Check {
        /// The report; - for standard input
        #[arg(value_name = "REPORT")]
        report: PathBuf,
        /// File with the public key of the host, or the key in hexadecimal digits
        #[arg(long, value_name = "FILE|KEY")]
        public_key: String,
        /// Only if the report has this text, which was given to `verify --nonce`
        #[arg(long, value_name = "TEXT")]
        nonce: Option<String>,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Make the key of this host; an existing one is never overwritten
    MakeKey {
        /// Where to write it [default: as configured, or /etc/sealblk/report.key]
        #[arg(long, value_name = "PATH")]
        key: Option<PathBuf>,
    },
    /// Show the public half of the key of this host
    ShowKey {
        /// Where the key is [default: as configured, or /etc/sealblk/report.key]
        #[arg(long, value_name = "PATH")]
        key: Option<PathBuf>,
        /// In PEM, as OpenSSL has it
        #[arg(long, conflicts_with = "json")]
        pem: bool,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
///
/// # Errors
/// Whatever the command fails with.
pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let path = |key: Option<PathBuf>| key.unwrap_or_else(|| config.verify.key.clone());
    match args.action {
        Action::Check {
            report,
            public_key,
            nonce,
            json,
        } => {
            let key = PublicKey::named(&public_key)?;
            let report = Envelope::parse(&read(&report)?)?.open(&key)?;
            check_nonce(&report, nonce.as_deref())?;
            match json {
                true => print_json(&report),
                false => print(format_args!(
                    "signed     {} on host {}, by sealblk {} with key {key}\n{report}",
                    report.time, report.host, report.sealblk
                )),
            }
        }
        Action::MakeKey { key } => {
            let path = path(key);
            let made = HostKey::make(&path)?;
            print(format_args!(
                "made the key of this host in {}; its public half, for those who check reports, is\n{}\n",
                path.display(),
                made.public()
            ))
        }
        Action::ShowKey { key, pem, json } => {
            #[derive(Serialize)]
            struct Shown {
                key_file: PathBuf,
                public_key: String,
                pem: String,
            }
            let path = path(key);
            let public = HostKey::read(&path)?.public();
            match (pem, json) {
                (true, _) => print(public.pem()),
                (_, true) => print_json(&Shown {
                    key_file: path,
                    public_key: public.to_string(),
                    pem: public.pem(),
                }),
                _ => print(format_args!("{public}\n")),
            }
        }
    }
}

fn check_nonce(report: &Report, expected: Option<&str>) -> Result<(), Failure> {
    match expected {
        Some(expected) if report.nonce.as_deref() != Some(expected) => Err(Failure::new(
            Kind::Corrupt,
            format!(
                "the report has {}, and not {expected:?}: it was made for another occasion",
                match &report.nonce {
                    Some(nonce) => format!("nonce {nonce:?}"),
                    None => "no nonce".into(),
                }
            ),
            Some("have one made with `sealblk verify --sign --nonce`".into()),
        )),
        _ => Ok(()),
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    let read = || -> io::Result<Vec<u8>> {
        match path.as_os_str() == "-" {
            false => std::fs::read(path),
            true => {
                let mut bytes = Vec::new();
                io::stdin().lock().read_to_end(&mut bytes)?;
                Ok(bytes)
            }
        }
    };
    read().map_err(|error| {
        Failure::new(
            io_kind(&error),
            format!("cannot read {}: {error}", path.display()),
            Some("name the file that `sealblk verify --sign` wrote".into()),
        )
    })
}
