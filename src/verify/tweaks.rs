//! Ciphertext with the right key and the wrong tweaks: a unit that is read at
//! another place than it was written for.

use zeroize::Zeroizing;

use super::error::Error;
use super::shape;
use super::source::Buffer;
use super::tally::{Look, sector_of};
use crate::crypt::{Engine, Params, SectorCipher};
use crate::secret::Dek;
use crate::units::SECTOR_BYTES;
use crate::volume::Layout;

/// How many units are tried with other tweaks.
const TRIED: usize = 64;

/// How tweaks can be wrong.
#[derive(Clone, Copy, Debug)]
enum Mistake {
    /// By so many sectors, modulo 2^64.
    By(u64),
    /// All units have that of the first one.
    First,
    /// Units are counted, and not sectors.
    Units,
}

impl Mistake {
    /// By how many sectors the tweak of a unit is off then, modulo 2^64.
    fn shift(self, unit: u64, sectors: u64) -> u64 {
        let right = unit * sectors;
        match self {
            Mistake::By(sectors) => sectors,
            Mistake::First => right.wrapping_neg(),
            Mistake::Units => unit.wrapping_sub(right),
        }
    }
}

/// Mistakes that have been made, and what they are.
fn mistakes(layout: Layout) -> Vec<(Mistake, &'static str)> {
    let unit = layout.sector_size.sectors();
    let mut all = vec![
        (Mistake::By(unit), "each is that of the next unit"),
        (
            Mistake::By(unit.wrapping_neg()),
            "each is that of the unit before",
        ),
        (Mistake::First, "all units have the first one's"),
    ];
    if unit > 1 {
        all.extend([
            (Mistake::Units, "units are counted in the place of sectors"),
            (Mistake::By(1), "each is one sector too high"),
            (
                Mistake::By(1_u64.wrapping_neg()),
                "each is one sector too low",
            ),
        ]);
    }
    if layout.data_offset > 0 {
        let offset = layout.data_offset / SECTOR_BYTES;
        all.push((Mistake::By(offset), "they count from the start of the file"));
    }
    if layout.iv_tweak > 0 {
        let without = Mistake::By(layout.iv_tweak.wrapping_neg());
        all.push((without, "iv_tweak was left out"));
    }
    all
}

/// What decrypts units whose tweaks are off by `shift` sectors.
pub fn cipher(dek: &Dek, layout: Layout, shift: u64) -> Result<SectorCipher, Error> {
    let params = Params {
        sector_size: layout.sector_size,
        iv_tweak: layout.iv_tweak.wrapping_add(shift),
        zero_units: layout.zero_units,
    };
    Ok(SectorCipher::new(Engine::best(), dek, params)?)
}

/// The mistake in its tweak with which a unit can be read that cannot be read
/// without. The first units are tried, and some from everywhere.
pub fn other_tweak(
    look: &Look<'_>,
    dek: &Dek,
    layout: Layout,
) -> Result<Option<&'static str>, Error> {
    let (source, size) = (look.source, look.source.unit());
    let mistakes = mistakes(layout);
    // As many more chances for noise to look like something.
    let needed = look.needed + ((TRIED * mistakes.len()) as f64).log2();
    let total = source.units();
    let steps = usize::try_from((total / 512).max(1)).unwrap_or(usize::MAX);
    let places = (0..TRIED as u64).chain((0..total).step_by(steps));
    let mut buffer = Buffer::new(size);
    let mut tried = 0;
    for number in places.filter(|number| *number < total) {
        let stored = source.read(number, 1, &mut buffer)?;
        if stored.iter().all(|byte| *byte == 0) {
            continue;
        }
        let readable = |shift: u64| -> Result<bool, Error> {
            let mut plain = Zeroizing::new(stored.to_vec());
            cipher(dek, layout, shift)?.decrypt_in_place(sector_of(number, size), &mut plain);
            Ok(look.shape.bits(&plain, &shape::count(&plain)) >= needed)
        };
        if readable(0)? {
            continue;
        }
        for (mistake, what) in &mistakes {
            if readable(mistake.shift(number, layout.sector_size.sectors()))? {
                return Ok(Some(what));
            }
        }
        tried += 1;
        if tried >= TRIED {
            break;
        }
    }
    Ok(None)
}
