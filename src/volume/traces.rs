//! Traces of a journal behind a header that cannot be read any more, or that
//! another is to take the place of. What a journal says is not for this room,
//! which has no key for it; but that there is one, and of which operation, tells
//! which backups of the header would mean other data than what is there.
#![forbid(unsafe_code)]

use std::ops::Range;

use uuid::Uuid;

use super::description::ALIGNMENT;
use super::device::Device;
use super::error::Error;
use super::luks2::HeaderIo as _;

/// What a record of the journal begins with (`docs/rekey.md`).
const MAGIC: &[u8; 8] = b"SBLKJRNL";
/// Where a record says which operation it is of.
const ID: Range<usize> = 16..32;

/// The operations that records in `area` say they are of: none, one, or, where
/// one was begun after another, two.
///
/// # Errors
/// When reading fails.
pub fn operations(device: &Device, area: &Range<u64>) -> Result<Vec<Uuid>, Error> {
    let slot = (area.end.saturating_sub(area.start) / 2) / ALIGNMENT * ALIGNMENT;
    let mut found = Vec::new();
    for start in [area.start, area.start + slot] {
        let mut head = [0; ID.end];
        let count = device.file().read_at(&mut head, start);
        let count = count.map_err(|error| device.error("read", error))?;
        if count == head.len()
            && head.starts_with(MAGIC)
            && let Ok(id) = Uuid::from_slice(&head[ID])
            && !found.contains(&id)
        {
            found.push(id);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Access;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn records_are_found_where_slots_begin_and_nowhere_else() {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(64 << 10).unwrap();
        let device = Device::open(named.path(), Access::ReadOnly).unwrap();
        // Slots of 8 KiB, and 4 KiB that are in neither.
        let area = 32 << 10..52 << 10;
        let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
        let put = |id: Uuid, at: u64| {
            let record = [&MAGIC[..], &[0, 0, 0, 1, 0, 0, 0, 96], id.as_bytes()].concat();
            named.as_file().write_all_at(&record, at).unwrap();
        };
        assert!(operations(&device, &area).unwrap().is_empty());
        put(one, 36 << 10);
        assert!(operations(&device, &area).unwrap().is_empty());
        put(one, 40 << 10);
        assert_eq!(operations(&device, &area).unwrap(), [one]);
        put(two, 32 << 10);
        assert_eq!(operations(&device, &area).unwrap(), [two, one]);
    }

    /// As the room that keeps it writes it.
    #[test]
    fn a_journal_is_found_from_its_first_record_on() {
        use crate::rekey::{Facts, Geometry, Journal, Keys, Kind};
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(64 << 10).unwrap();
        let device = Device::open(named.path(), Access::ReadOnly).unwrap();
        let facts = Facts {
            id: Uuid::new_v4(),
            kind: Kind::Encrypt,
            binding: vec![1, 2, 3],
            data_offset: 0,
            size: 1 << 20,
        };
        let dek = crate::secret::Dek::generate().unwrap();
        // Also where the slots do not fill it.
        for end in [40 << 10, 60 << 10, 64 << 10] {
            let area = 32 << 10..end;
            let keys = Keys::derive(&facts, None, Some(&dek)).unwrap();
            let geometry = Geometry::new(&facts, crate::units::SectorSize::B512).unwrap();
            let file = named.reopen().unwrap();
            let mut journal = Journal::new(file, area.clone(), keys, geometry).unwrap();
            assert!(operations(&device, &area).unwrap().is_empty());
            journal.create().unwrap();
            assert_eq!(operations(&device, &area).unwrap(), [facts.id]);
            // Either slot is enough.
            let slot = (area.end - area.start) / 2 / ALIGNMENT * ALIGNMENT;
            for at in [area.start, area.start + slot] {
                let mut kept = vec![0; 4096];
                named.as_file().read_exact_at(&mut kept, at).unwrap();
                named.as_file().write_all_at(&[0; 4096], at).unwrap();
                assert_eq!(operations(&device, &area).unwrap(), [facts.id]);
                named.as_file().write_all_at(&kept, at).unwrap();
            }
            journal.wipe().unwrap();
            assert!(operations(&device, &area).unwrap().is_empty());
        }
    }

    #[test]
    fn the_magic_is_that_of_the_page() {
        let page = include_str!("../../docs/rekey.md");
        let magic = std::str::from_utf8(MAGIC).unwrap();
        assert!(page.contains(&format!("magic `{magic}`")));
    }
}
