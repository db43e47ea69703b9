//! What is simulated: a volume of one kind, and where its parts are.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::disk::{Disk, SECTOR};
use crate::crypt::{Engine, Params, SectorCipher, Transform};
use crate::rekey::{Facts, Geometry, Journal, Keys, Kind, Medium, Transforms};
use crate::secret::{Dek, Secret};
use crate::units::SectorSize;

/// Where the journal is: two slots of one block.
pub const AREA: Range<u64> = 0..8192;

/// One volume.
#[derive(Clone)]
pub struct Case {
    pub kind: Kind,
    pub unit: SectorSize,
    /// Whether units of zeroes read as zeroes, in the encrypted states.
    pub zero_units: bool,
    /// Whether the header is in the same file as the data, and has one cache with it.
    pub inline: bool,
    /// How long the disk is, in sectors.
    pub sectors: usize,
    pub geometry: Geometry,
    pub transforms: Transforms,
    pub keys: Arc<Keys>,
}

impl Case {
    pub fn new(kind: Kind, unit: SectorSize, zero_units: bool, inline: bool) -> Self {
        // Not a multiple of any region, nor of a block if units are smaller.
        let sectors = match unit {
            SectorSize::B512 => 83,
            SectorSize::B4096 => 88,
        };
        let facts = Facts {
            id: Uuid::from_u128(7),
            kind,
            binding: b"a volume".to_vec(),
            data_offset: if inline { AREA.end } else { 0 },
            size: (sectors * SECTOR) as u64,
        };
        let dek = |seed: u8| {
            let bytes: Vec<u8> = (0..64).map(|i| seed ^ i).collect();
            Dek::try_from(Secret::copy_of(&bytes).unwrap()).unwrap()
        };
        let (old, new) = match kind {
            Kind::Rekey => (Some(dek(0x11)), Some(dek(0x99))),
            Kind::Encrypt => (None, Some(dek(0x99))),
            Kind::Decrypt => (Some(dek(0x11)), None),
        };
        let transform = |dek: &Option<Dek>| {
            let params = Params {
                sector_size: unit,
                iv_tweak: 3,
                zero_units,
            };
            Arc::new(match dek {
                Some(dek) => {
                    Transform::Cipher(SectorCipher::new(Engine::best(), dek, params).unwrap())
                }
                None => Transform::Plain(unit),
            })
        };
        Case {
            kind,
            unit,
            zero_units,
            inline,
            sectors,
            geometry: Geometry::new(&facts, unit).unwrap(),
            transforms: Transforms {
                old: transform(&old),
                new: transform(&new),
            },
            keys: Keys::derive(&facts, old.as_ref(), new.as_ref())
                .unwrap()
                .into(),
        }
    }

    /// Every kind, unit and place, with units of zeroes.
    pub fn all() -> Vec<Case> {
        let mut all = Vec::new();
        for kind in [Kind::Rekey, Kind::Encrypt, Kind::Decrypt] {
            for unit in [SectorSize::B512, SectorSize::B4096] {
                for zero_units in [true, false] {
                    for inline in [true, false] {
                        all.push(Case::new(kind, unit, zero_units, inline));
                    }
                }
            }
        }
        all
    }

    pub fn disks(&self) -> Vec<Disk> {
        let data = self.sectors * SECTOR;
        if self.inline {
            vec![Disk::new(AREA.end as usize + data)]
        } else {
            vec![Disk::new(AREA.end as usize), Disk::new(data)]
        }
    }

    /// The disk that the data is on; the journal is on disk 0.
    pub fn data_disk(&self) -> usize {
        usize::from(!self.inline)
    }

    /// The sector of the file that a sector of the disk is.
    pub fn in_file(&self, sector: usize) -> usize {
        self.geometry.in_file((sector * SECTOR) as u64) as usize / SECTOR
    }

    pub fn journal<M: Medium>(&self, medium: M) -> Journal<M> {
        Journal::new(medium, AREA, self.keys.clone(), self.geometry).unwrap()
    }

    /// How units are stored on that side of the boundary.
    pub fn state(&self, sector: usize, boundary: u64) -> &Transform {
        if ((sector * SECTOR) as u64) < boundary {
            &self.transforms.new
        } else {
            &self.transforms.old
        }
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} in units of {}, zero units {}, header {}",
            self.kind,
            self.unit,
            if self.zero_units { "on" } else { "off" },
            if self.inline { "inline" } else { "detached" }
        )
    }
}
