//! Whether the guest of a disk could come from another host, without anything that
//! stays.
#![forbid(unsafe_code)]

use std::path::Path;

use super::registry::info_of;
use super::{Disks, blocking};
use crate::error::{Failure, Kind};
use crate::keys::Context;
use crate::manager::held::KeyFacts;
use crate::manager::model::{DiskInfo, DiskState};
use crate::manager::state::Record;
use crate::manager::supervise::{Data, Opened};
use crate::prepare::{self, Opening};

impl Disks {
    /// Gets the key of a volume that was opened and proves it, as an attach would,
    /// and then lets go of both.
    ///
    /// # Errors
    /// What keeps it from being attached.
    pub(super) async fn try_out(
        &self,
        context: &Context,
        mut record: Record,
        opened: Opened,
        opening: Opening,
    ) -> Result<DiskInfo, Failure> {
        let Opened { data, spec, .. } = opened;
        let Data::Volume(volume) = data else {
            return Err(super::no_header(&record.name));
        };
        let directory = record.socket.parent().unwrap_or(Path::new("/")).to_owned();
        if record.name.is_empty() {
            record.name = spec.uuid.to_string();
        }
        let unwrapped = prepare::unwrap(&self.shared.keys, context, &volume, &opening).await?;
        let marks = self.shared.marks.clone();
        let facts = blocking(move || -> Result<KeyFacts, Failure> {
            marks.check(&volume)?;
            volume.verify_dek(&unwrapped.dek)?;
            if !directory.is_dir() {
                let what = format!(
                    "there is no directory {} for the socket",
                    directory.display()
                );
                let next = "make it, so that QEMU may connect there";
                return Err(Failure::new(Kind::NotFound, what, Some(next.into())));
            }
            let facts = KeyFacts::new(&volume.token().key_set, &unwrapped.wraps);
            Ok(facts.opened_by(&unwrapped.wraps, unwrapped.wrap))
        });
        let facts = facts.await??;
        Ok(DiskInfo {
            uuid: Some(spec.uuid),
            state: DiskState::Incoming,
            size: Some(spec.size),
            sector_size: u32::try_from(spec.sector_size.bytes()).ok(),
            engine: Some(spec.engine.name().into()),
            key_set: Some(facts.key_set),
            provider: facts.provider,
            key_id: facts.key_id,
            key_version: facts.key_version,
            break_glass: facts.break_glass,
            ..info_of(&record)
        })
    }
}
