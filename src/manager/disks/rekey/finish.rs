//! How an operation on all data of an attached disk ends in its header, once its
//! worker says that everything was moved and is durable.
//!
//! The header is written, and the journal destroyed ([`Step::RekeyFinished`]); then
//! the worker forgets the key of the other state ([`Step::RekeyForgotten`]); then
//! what people wanted of it is forgotten. A crash after any of these leaves
//! something that the next manager finds: an operation whose data was all moved,
//! a worker with two keys of a volume that needs one, or a file.
//!
//! That the worker says so is not enough: a guest may have taken it over. The
//! journal says so, too, or nothing is written.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::begin::{derive, main_key};
use crate::audit::{Event, RekeyEvent};
use crate::conversion::wraps_like;
use crate::error::{Failure, Kind as ErrorKind};
use crate::keys::{Context, KeySets};
use crate::manager::disks::{Command, Disks, Settings, Step};
use crate::rekey::{Direction, Facts, Geometry, Journal, Kind, Position, open_previous};
use crate::rewrap::KeyFrom;
use crate::secret::Dek;
use crate::volume::Volume;

/// An operation that has ended, as its header says.
#[derive(Debug)]
pub struct Ended {
    /// The key of the volume from now on, if it is another one.
    pub dek: Option<Arc<Dek>>,
}

impl Disks {
    /// Ends the operation on a disk all of whose data was moved, unless it ends
    /// when that is detached.
    pub(super) async fn finish(&self, context: &Context, name: &str) -> Result<(), Failure> {
        let (keys, settings) = (self.shared.keys.clone(), self.shared.settings.clone());
        let shared = self.shared.clone();
        let (context, disk) = (context.clone(), name.to_owned());
        let ended = self
            .on_volume(name, async move |volume, key| {
                let Some(rekey) = volume.rekey().cloned() else {
                    return Ok(Ended { dek: None });
                };
                let context = Context {
                    volume: Some(volume.uuid()),
                    ..context
                };
                let (ended, direction) = finish(&keys, &context, &settings, volume, key).await?;
                shared.marks.note(volume, rekey.id, true);
                shared.record(Event::Rekey(RekeyEvent {
                    severity: RekeyEvent::severity_of(rekey.kind),
                    kind: rekey.kind,
                    action: match direction {
                        Direction::Forward => "finish",
                        Direction::Back => "finish_back",
                    },
                    volume: volume.uuid(),
                    operation: rekey.id,
                    disk: &disk,
                    key_set: &volume.token().key_set,
                    path: volume.data_path(),
                }));
                Ok(ended)
            })
            .await?;
        let entry = self.entry(name)?;
        entry.send(Command::Moved { ended }).await
    }
}

async fn finish(
    keys: &KeySets,
    context: &Context,
    settings: &Settings,
    volume: &mut Volume,
    key: KeyFrom,
) -> Result<(Ended, Direction), Failure> {
    let Some(facts) = volume.rekey_facts() else {
        return Err(not_all_moved("the header has no operation"));
    };
    let main = main_key(keys, context, volume, key).await?;
    let old = previous_key(volume, &facts, &main)?;
    let position = position(volume, &facts, &main, old.as_ref())?;
    // One that was turned at its very end is on its way.
    let all_new = position.boundary == facts.size && position.direction == Direction::Forward;
    let all_old = position.boundary == 0 && position.direction == Direction::Back;
    let dek = match (facts.kind, all_new, all_old) {
        (Kind::Rekey | Kind::Encrypt, true, _) | (Kind::Decrypt, _, true) => {
            volume.finish_rekey()?;
            None
        }
        (Kind::Rekey, _, true) => {
            let old = old.ok_or_else(|| not_all_moved("the header has no old key"))?;
            let wraps = wraps_like(keys, context, volume, &old).await?;
            volume.finish_back(&old, wraps)?;
            Some(Arc::new(old))
        }
        (Kind::Encrypt, _, true) | (Kind::Decrypt, true, _) => {
            return Err(not_all_moved(
                "its data is plain, and it ends when it is detached",
            ));
        }
        _ => {
            return Err(not_all_moved(
                "the journal says that data is left to be moved",
            ));
        }
    };
    settings.step(Step::RekeyFinished);
    Ok((Ended { dek }, position.direction))
}

/// The old key of a rekey, which its header has in itself.
pub(in crate::manager) fn previous_key(
    volume: &Volume,
    facts: &Facts,
    main: &Dek,
) -> Result<Option<Dek>, Failure> {
    let sealed = volume.rekey().and_then(|rekey| rekey.previous.as_deref());
    let open = |sealed| open_previous(facts, main, sealed).map_err(Failure::from);
    sealed.map(open).transpose()
}

/// Where the operation on a volume is, according to its journal, at rest.
///
/// # Errors
/// When it cannot be read, or data may be under way.
pub(in crate::manager) fn position(
    volume: &Volume,
    facts: &Facts,
    main: &Dek,
    old: Option<&Dek>,
) -> Result<Position, Failure> {
    let derived = derive(facts, main, old)?;
    let area = volume.journal_area()?;
    let geometry = Geometry::new(facts, volume.layout().sector_size)?;
    let found = Journal::new(volume.journal_file(), area, derived, geometry)?.read()?;
    match found.covered {
        0 => Ok(found.position),
        _ => Err(not_all_moved("the journal says that data is under way")),
    }
}

fn not_all_moved(why: &str) -> Failure {
    Failure::new(
        ErrorKind::Internal,
        format!("the operation cannot end: {why}"),
        Some("look at the log of the worker; the data is as safe as it was".into()),
    )
}
