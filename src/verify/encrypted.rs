//! The checks of a disk that has to be encrypted.

use super::error::Error;
use super::repeats::Repeats;
use super::report::{Check, Outcome, Scope};
use super::run::{Keys, Subject, no_key};
use super::sample::{ENDS, Extent};
use super::scan::{Means, scan};
use super::shape::{self, Shape};
use super::source::Source;
use super::special::{chi_square_quantile, chi_square_tails};
use super::tally::{Look, Tally};
use super::tweaks::{cipher, other_tweak};
use crate::error::Explain as _;
use crate::secret::Dek;
use crate::volume::{self, Description, Inspection, Layout};

/// How often true ciphertext fails the test of the whole, at each of its ends.
pub const FALSE_ALARM: f64 = 1e-9;

/// How many bytes the test of the whole needs to be as exact as it says.
const ENOUGH: u64 = 64 << 10;

/// Of a full scan each of so many units is looked at in decrypted form: what
/// shows that the key is the right one comes many times over.
const EVERY: u64 = 16;

/// Looks at a disk that has to be encrypted.
pub fn verify(
    subject: &Subject,
    keys: Keys,
    extent: Extent,
    means: &Means,
) -> Result<(Option<Scope>, Vec<Check>), Error> {
    let (inspection, description) = match &subject.volume {
        Ok((inspection, description)) => (inspection, description),
        Err(error) => return Ok((None, vec![no_volume(error)])),
    };
    let mut checks = vec![header(inspection, description), no_key(&keys)];
    if let Some(check) = settled(description) {
        checks.push(check);
        return Ok((None, checks));
    }
    match inspection.check_data(description) {
        Ok(_) => {}
        // Another header, or another file, was meant.
        Err(error @ (volume::Error::DetachedHeader { .. } | volume::Error::OtherVolume { .. })) => {
            return Err(error.into());
        }
        Err(error) => {
            checks.push(Check::new("length", Outcome::Unknown, error.to_string()));
            return Ok((None, checks));
        }
    }
    let dek = match &keys {
        Keys::Proven { dek, .. } => Some(dek),
        _ => None,
    };
    let layout = description.layout;
    let source = Source::new(
        inspection.data_file(),
        subject.location.data.clone(),
        inspection.data_is_block(),
        (layout.data_offset, layout.size),
        layout.sector_size.bytes(),
    )?;
    let cipher = dek.map(|dek| cipher(dek, layout, 0)).transpose()?;
    let shape = Shape::new(source.unit());
    let look = Look {
        source: &source,
        cipher: cipher.as_ref(),
        shape: &shape,
        // Half of the alarms for what is stored, half for what is decrypted.
        needed: shape::needed(source.units()) + 1.0,
        every: match extent {
            Extent::Full => EVERY,
            Extent::Sample { .. } => 1,
        },
        in_use: subject.in_use(),
    };
    let (tally, repeats) = scan(&look, extent, means)?;
    // What names a place comes first.
    checks.push(units(&tally, &source, dek.is_some()));
    checks.push(whole(&tally));
    checks.push(repeated(&tally, &repeats));
    checks.push(zeroes(&tally, layout, source.is_block()));
    checks.push(match dek {
        Some(dek) => decrypted(&tally, &look, dek, layout)?,
        None => Check::new(
            "decrypted",
            Outcome::Unknown,
            "without the key nobody sees whether the data is encrypted with it",
        ),
    });
    Ok((Some(scope(&source, extent, &tally)), checks))
}

/// What was looked at.
pub fn scope(source: &Source, extent: Extent, tally: &Tally) -> Scope {
    let (sample, seed) = match extent {
        Extent::Full => (None, None),
        Extent::Sample { units, seed } => (Some(units), Some(seed)),
    };
    Scope {
        full: extent == Extent::Full,
        seed,
        sample,
        ends: sample.map(|_| ENDS.min(source.size())),
        unit: source.unit() as u64,
        units: source.units(),
        looked_at: tally.units,
        bytes: tally.bytes,
    }
}

fn no_volume(error: &volume::Error) -> Check {
    let outcome = match error {
        volume::Error::NotAVolume { .. } => Outcome::Failed,
        // Of somebody else's making, or damaged: that says nothing of its data.
        _ => Outcome::Unknown,
    };
    let mut says = crate::error::chain(error);
    if let Some(help) = error.help() {
        says = format!("{says} ({help})");
    }
    Check::new("header", outcome, says)
}

/// Whether all of the data has to be encrypted with one key; the check that says
/// otherwise.
fn settled(description: &Description) -> Option<Check> {
    let token = &description.token;
    if let Some(plain) = &token.plain {
        let says = format!(
            "its header says that its data has been plain since {}",
            plain.since
        );
        return Some(Check::new("settled", Outcome::Failed, says));
    }
    let rekey = token.rekey.as_ref()?;
    let says = format!(
        "its data is being {} since {}: which part is which is not known without the journal",
        rekey.doing(),
        rekey.since
    );
    Some(Check::new("settled", Outcome::Unknown, says))
}

fn header(inspection: &Inspection, description: &Description) -> Check {
    let found = inspection.found();
    let check = match found.is_whole() {
        true => Check::new(
            "header",
            Outcome::Passed,
            "both copies of the LUKS2 header are good and equal, and have one sealblk token",
        ),
        false => Check::new(
            "header",
            Outcome::Unknown,
            format!(
                "one of the two header copies is not good ({found}): repair it first, with `sealblk volume repair`"
            ),
        ),
    };
    check
        .with("update", description.seqid)
        .with("keyslots", description.keyslots)
}

/// Chi-square over the frequencies of bytes in all that is not zeroes.
pub fn whole(tally: &Tally) -> Check {
    let total: u64 = tally.counts.iter().sum();
    if total == 0 {
        return Check::new(
            "whole",
            Outcome::Unknown,
            "nothing but zeroes is stored there: nothing was written yet, so that nothing can be seen",
        );
    }
    let value = chi_square(&tally.counts);
    let (below, above) = chi_square_tails(255, value);
    let low = chi_square_quantile(255, 1.0 - FALSE_ALARM);
    let high = chi_square_quantile(255, FALSE_ALARM);
    let (outcome, says) = if total < ENOUGH {
        let says = format!("{total} bytes are too few for a test of the whole");
        (Outcome::Passed, says)
    } else if value > high {
        let says = format!(
            "its bytes are not evenly distributed: chi-square is {value:.1}, and of ciphertext it exceeds {high:.1} once in 10^9 times"
        );
        (Outcome::Failed, says)
    } else if value < low {
        let says = format!(
            "its bytes are more evenly distributed than ciphertext: chi-square is {value:.1}, and of ciphertext it is less than {low:.1} once in 10^9 times"
        );
        (Outcome::Failed, says)
    } else {
        let says = format!(
            "all bytes are as likely as each other: chi-square is {value:.1}, within {low:.1} to {high:.1}"
        );
        (Outcome::Passed, says)
    };
    Check::new("whole", outcome, says)
        .with("bytes", total)
        .with("chi_square", value)
        .with("degrees_of_freedom", 255)
        .with("p_below", below)
        .with("p_above", above)
        .with("low", low)
        .with("high", high)
        .with("false_alarm", 2.0 * FALSE_ALARM)
}

pub fn chi_square(counts: &[u64; 256]) -> f64 {
    let total: u64 = counts.iter().sum();
    let expected = total as f64 / 256.0;
    let sum: f64 = counts
        .iter()
        .map(|count| (*count as f64 - expected).powi(2))
        .sum();
    sum / expected
}

/// Whether any unit looks like anything but ciphertext.
fn units(tally: &Tally, source: &Source, with_key: bool) -> Check {
    let (outcome, says) = match tally.shaped_at.first() {
        None if tally.written() == 0 => (Outcome::Unknown, "no unit was written".into()),
        None => (
            Outcome::Passed,
            format!("none of {} units has a shape", tally.written()),
        ),
        Some(first) => {
            let at = first * source.unit() as u64;
            let how = match with_key {
                true => format!(
                    "{} of them turn to noise when they are decrypted, so they were never encrypted",
                    tally.plaintext
                ),
                false => "ciphertext has none".into(),
            };
            let says = format!(
                "{} of {} units are stored with a shape, the first at byte {at} of the disk: {how}. If this is a device that held something before, the guest has not overwritten it",
                tally.shaped,
                tally.written(),
            );
            (Outcome::Failed, says)
        }
    };
    Check::new("units", outcome, says)
        .with("written", tally.written())
        .with("shaped", tally.shaped)
        .with("plaintext", tally.plaintext)
        .with("read_again", tally.torn)
        .with("first_units", tally.shaped_at.clone())
        .with("bits_needed", shape::needed(source.units()) + 1.0)
        .with("false_alarm", 2.0_f64.powi(-30))
}

fn repeated(tally: &Tally, repeats: &Repeats) -> Check {
    let check = match (tally.neighbours, repeats.first) {
        (0, None) => Check::new(
            "repeats",
            Outcome::Passed,
            "no block of ciphertext comes twice",
        ),
        (0, Some((one, other))) => Check::new(
            "repeats",
            Outcome::Failed,
            format!(
                "{} units begin with the same block as another one, as units {one} and {other} do: they were encrypted with the same tweak, or copied",
                repeats.found
            ),
        ),
        (blocks, _) => Check::new(
            "repeats",
            Outcome::Failed,
            format!(
                "{blocks} blocks are equal to the one before them: they were encrypted without a tweak"
            ),
        ),
    };
    check
        .with("equal_neighbours", tally.neighbours)
        .with("equal_beginnings", repeats.found)
}

/// Whether what is stored as zeroes may be.
fn zeroes(tally: &Tally, layout: Layout, block: bool) -> Check {
    let (zero, holes) = (tally.zero, tally.holes);
    let (outcome, says) = if zero == 0 {
        (Outcome::Passed, "no unit is stored as zeroes".to_owned())
    } else if layout.zero_units {
        let says = format!(
            "{zero} units are stored as zeroes, and read as zeroes: the volume has zero units, for space that was discarded or never written"
        );
        (Outcome::Passed, says)
    } else if zero == holes {
        let says = format!("{zero} units are holes of the file: they were never written");
        (Outcome::Passed, says)
    } else if block {
        let says = format!(
            "{zero} units are stored as zeroes: on a block device that is space which was never written"
        );
        (Outcome::Passed, says)
    } else {
        let says = format!(
            "{} units are stored as zeroes, and are neither holes nor zero units of the volume: the file was filled with zeroes before, or copied without its holes, or somebody wrote zeroes past the encryption",
            zero - holes
        );
        (Outcome::Unknown, says)
    };
    Check::new("zeroes", outcome, says)
        .with("units", zero)
        .with("holes", holes)
        .with("zero_units", layout.zero_units)
}

/// Whether the data is encrypted with this key, and with the right tweaks.
fn decrypted(tally: &Tally, look: &Look<'_>, dek: &Dek, layout: Layout) -> Result<Check, Error> {
    // Noise may be what the guest wrote, or what the wrong tweak makes.
    let other = match tally.legible < tally.tried {
        true => other_tweak(look, dek, layout)?,
        false => None,
    };
    let (outcome, says) = if tally.same > 0 {
        let says = format!("{} units are the same when decrypted", tally.same);
        (Outcome::Failed, says)
    } else if let Some(how) = other {
        let says = format!(
            "data is encrypted with this key, but with other tweaks: {how}. The guest reads noise there"
        );
        (Outcome::Failed, says)
    } else if tally.legible > 0 {
        let says = format!(
            "{} of {} units have a shape once they are decrypted, and none as they are stored: they are encrypted with this key",
            tally.legible, tally.tried
        );
        (Outcome::Passed, says)
    } else if tally.written() == 0 {
        (Outcome::Unknown, "there is nothing to decrypt yet".into())
    } else {
        let says = format!(
            "none of {} units has a shape once it is decrypted: the guest has written nothing but what looks like noise (compressed, or encrypted by itself), or the data is encrypted with another key",
            tally.tried
        );
        (Outcome::Unknown, says)
    };
    Ok(Check::new("decrypted", outcome, says)
        .with("tried", tally.tried)
        .with("legible", tally.legible))
}
