//! What `rekey`, `encrypt` and `decrypt` of volumes that nobody uses have in
//! common: how fast, which way, until when, and what is told and recorded.

use std::fmt;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use uuid::Uuid;

use super::create::{absolute, note};
use super::watch::{duration, watched};
use crate::audit::{Event, Outcome, RekeyEvent};
use crate::cli::{ask, print, print_json, record};
use crate::config::Config;
use crate::conversion::{InPlace, Sides, Speed, finish};
use crate::error::{Explain as _, Failure, Kind as ErrorKind};
use crate::keys::Context;
use crate::keys::ledger::{Known, Ledger};
use crate::rekey::{Direction, Kind};
use crate::units::Bytes;
use crate::volume::{Error, Location, Volume};

/// Flags that all of them have.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct SpeedArgs {
    /// Move no more than so many bytes per second, such as 200M
    #[arg(long, value_name = "BYTES", value_parser = limit)]
    limit: Option<NonZeroU64>,
}

fn limit(text: &str) -> Result<NonZeroU64, String> {
    let Bytes(bytes) = text.parse()?;
    NonZeroU64::new(bytes).ok_or_else(|| "with a limit of 0 nothing would be moved".into())
}

impl From<SpeedArgs> for Speed {
    fn from(args: SpeedArgs) -> Self {
        Speed { limit: args.limit }
    }
}

/// Which way an operation is to go.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct WayArgs {
    /// Undo it: go back to what the data was before
    #[arg(long)]
    back: bool,

    /// Go on forward, after --back
    #[arg(long, conflicts_with = "back")]
    forward: bool,
}

impl WayArgs {
    fn direction(self) -> Option<Direction> {
        match (self.back, self.forward) {
            (true, _) => Some(Direction::Back),
            (_, true) => Some(Direction::Forward),
            _ => None,
        }
    }

    /// Whether it says anything.
    pub fn is_given(self) -> bool {
        self.direction().is_some()
    }

    /// Fails if it says where something is to go that is not under way.
    ///
    /// # Errors
    /// [`Error::NothingUnderWay`].
    pub fn check_none(self, location: &Location) -> Result<(), Failure> {
        match self.direction() {
            None => Ok(()),
            Some(_) => {
                let path = location.header.as_ref().unwrap_or(&location.data);
                Err(Error::NothingUnderWay { path: path.clone() }.into())
            }
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is prepared, and nothing was moved.
    Prepared,
    /// It was interrupted, and goes on when the command is repeated.
    Paused,
    /// All data is new.
    Done,
    /// All data is old again.
    TakenBack,
}

/// What was done. The names are part of the interface.
#[derive(Debug, Serialize)]
pub struct Done {
    pub uuid: Uuid,
    pub operation: Uuid,
    pub kind: Kind,
    pub state: State,
    /// In bytes.
    pub size: u64,
    /// Bytes that are not what they are to be.
    pub left: u64,
    /// Bytes that were moved by this command, holes included.
    pub moved: u64,
    /// How long that took.
    pub seconds: f64,
    /// What people have to know beside.
    #[serde(skip)]
    pub next: String,
}

impl Done {
    /// Says it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn tell(&self, json: bool) -> Result<(), Failure> {
        match json {
            true => print_json(self),
            false => print(format_args!("{self}")),
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (uuid, size) = (self.uuid, Bytes(self.size));
        match (self.state, self.kind) {
            (State::Prepared, _) => {
                writeln!(f, "volume {uuid} is prepared, and its data is as it was")?
            }
            (State::Paused, _) => {
                let percent = self.left as f64 * 100.0 / self.size.max(1) as f64;
                writeln!(
                    f,
                    "paused: {percent:.1} % of the data of volume {uuid} are left; this is safe for \
                     as long as you like\nnext: go on with the same command"
                )?;
            }
            (State::Done, Kind::Rekey) => writeln!(
                f,
                "all {size} of volume {uuid} are encrypted with its new key, and the old one is \
                 destroyed"
            )?,
            (State::Done, Kind::Encrypt) => {
                writeln!(f, "all {size} of volume {uuid} are encrypted")?
            }
            (State::Done, Kind::Decrypt) => writeln!(
                f,
                "all {size} of what was volume {uuid} are plain, and its key is destroyed"
            )?,
            (State::TakenBack, Kind::Rekey) => {
                writeln!(f, "all {size} of volume {uuid} have their old key again")?;
            }
            (State::TakenBack, Kind::Encrypt) => {
                writeln!(
                    f,
                    "all {size} of what was to be volume {uuid} are plain again"
                )?;
            }
            (State::TakenBack, Kind::Decrypt) => {
                writeln!(f, "all {size} of volume {uuid} are encrypted again")?;
            }
        }
        if self.moved > 0 && self.seconds > 0.0 {
            let rate = self.moved as f64 / self.seconds / f64::from(1 << 20);
            let took = duration(self.seconds.ceil() as u64);
            writeln!(
                f,
                "moved {} in {took}, {rate:.0} MiB/s",
                rounded(self.moved)
            )?;
        }
        f.write_str(&self.next)
    }
}

/// Not to the byte.
fn rounded(bytes: u64) -> Bytes {
    match bytes {
        0..0x10_0000 => Bytes(bytes),
        _ => Bytes(bytes >> 20 << 20),
    }
}

/// An operation, and where it is told and recorded.
pub struct Operation<'o> {
    pub config: &'o Config,
    pub location: &'o Location,
    pub speed: Speed,
    pub way: WayArgs,
}

impl Operation<'_> {
    /// Moves what is left, and ends it.
    ///
    /// # Errors
    /// When a device, or a key service that wraps the old key again, fails.
    pub fn carry_out(
        &self,
        mut volume: Volume,
        sides: &Sides,
        begun: bool,
    ) -> Result<Done, Failure> {
        // What is not on record does not happen.
        let action = match (begun, self.way.direction()) {
            (true, _) => "begin",
            (false, Some(Direction::Back)) => "back",
            (false, _) => "resume",
        };
        self.record(&volume, sides, action)?;
        let mut moving = InPlace::recover(&volume, sides, self.speed)?;
        let handle = moving.handle();
        if let Some(direction) = self.way.direction() {
            handle.turn(direction);
        }
        let start = Instant::now();
        let far = || {
            let progress = handle.progress();
            (progress.size - progress.left(), progress.size)
        };
        let rest = handle.clone();
        let done = until_signal(move || rest.rest(), || watched(far, || moving.run()))?;
        let done = done.inspect_err(|_| self.failed(&volume, sides))?;
        let took = start.elapsed();
        let (progress, direction) = (handle.progress(), moving.position().direction);
        drop(moving);
        let state = match (done, direction) {
            (false, _) => State::Paused,
            (true, Direction::Forward) => State::Done,
            (true, Direction::Back) => State::TakenBack,
        };
        match state {
            State::Prepared | State::Paused => self.record(&volume, sides, "pause")?,
            State::Done | State::TakenBack => {
                let keys = self.config.key_sets();
                let context = Context::local(Some(volume.uuid()));
                ask(finish(&keys, &context, &mut volume, sides, direction))?;
                self.known(&volume);
                let action = match state {
                    State::Done => "finish",
                    _ => "finish_back",
                };
                self.record(&volume, sides, action)?;
            }
        }
        Ok(Done {
            left: progress.left(),
            moved: progress.moved,
            ..self.done(&volume, sides, state, took)
        })
    }

    /// What there is to say before anything was moved.
    pub fn done(&self, volume: &Volume, sides: &Sides, state: State, took: Duration) -> Done {
        Done {
            uuid: volume.uuid(),
            operation: sides.facts.id,
            kind: sides.facts.kind,
            state,
            size: sides.facts.size,
            left: sides.facts.size,
            moved: 0,
            seconds: took.as_secs_f64(),
            next: String::new(),
        }
    }

    /// Records that it was begun, or whatever it was.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn record(&self, volume: &Volume, sides: &Sides, action: &str) -> Result<(), Failure> {
        self.recorded(volume, sides, action, Outcome::Ok)
    }

    fn recorded(
        &self,
        volume: &Volume,
        sides: &Sides,
        action: &str,
        outcome: Outcome,
    ) -> Result<(), Failure> {
        let event = Event::Rekey(RekeyEvent {
            severity: RekeyEvent::severity_of(sides.facts.kind),
            kind: sides.facts.kind,
            action,
            volume: volume.uuid(),
            operation: sides.facts.id,
            disk: "",
            key_set: &volume.token().key_set,
            path: &self.location.data,
        });
        record(self.config, event, outcome)
    }

    /// It stopped by itself. What made it do so is told anyway.
    pub fn failed(&self, volume: &Volume, sides: &Sides) {
        if let Err(failure) = self.record(volume, sides, "pause") {
            tracing::warn!("that it has stopped is not on record: {failure}");
        }
    }

    /// Notes which keys the volume needs now.
    pub fn known(&self, volume: &Volume) {
        known(self.config, self.location, volume);
    }
}

/// Notes which keys the volume at `location` needs now, as its header says: none,
/// when all its data is plain.
pub fn known(config: &Config, location: &Location, volume: &Volume) {
    let (uuid, token) = (volume.uuid(), volume.token());
    let Some(since) = token.keyless_since() else {
        let place = absolute(location);
        return note(
            config,
            &Known::new(uuid, place, &token.key_set, &token.wraps),
        );
    };
    Ledger::below(&config.daemon.state_dir).decrypted(uuid, since);
}

/// Does `work`; a signal that is to end the process lets it `rest` first, another
/// one ends it at once, which loses nothing either.
///
/// # Errors
/// When signals cannot be handled.
pub fn until_signal<T>(rest: impl Fn() + Send, work: impl FnOnce() -> T) -> Result<T, Failure> {
    struct Close(signal_hook::iterator::Handle);
    impl Drop for Close {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|error| {
        let message = format!("cannot handle signals: {error}");
        Failure::new(ErrorKind::Io, message, None)
    })?;
    let close = Close(signals.handle());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut told = false;
            for _ in signals.forever() {
                if told {
                    std::process::exit(ErrorKind::Internal.exit_status().into());
                }
                told = true;
                rest();
            }
        });
        let _close = close;
        Ok(work())
    })
}

/// Somebody uses it: what to do instead.
pub fn in_use(error: Error) -> Failure {
    match error {
        Error::Busy { .. } => Failure::new(
            error.kind(),
            error.to_string(),
            Some(
                "the data of a disk that the daemon serves is moved with `sealblk rekey`; \
                 otherwise detach it, or stop what has it open"
                    .into(),
            ),
        ),
        error => error.into(),
    }
}
