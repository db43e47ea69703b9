//! The checks of a disk that has to be not encrypted.

use std::os::unix::fs::FileExt as _;

use super::encrypted::{chi_square, scope};
use super::error::Error;
use super::report::{Check, Outcome, Scope};
use super::run::Subject;
use super::sample::Extent;
use super::scan::{Means, scan};
use super::shape::{self, Shape};
use super::source::Source;
use super::tally::{Look, Tally};
use crate::volume;

/// Bytes of the units that are looked at: what file systems and hosts allocate.
const UNIT: usize = 4096;

/// Of what is not encrypted at least one unit in so many has a shape.
const SHARE: u64 = 100;

/// Fewer units without a shape say nothing.
const ENOUGH: u64 = 64;

/// Signatures of what is encrypted.
const ENCRYPTED: [&str; 4] = [
    "a LUKS1 header",
    "a LUKS2 header",
    "a second LUKS2 header",
    "a BitLocker volume",
];

/// Where a qcow2 image says how it is encrypted, as a big-endian number; 0: not.
const QCOW2_CRYPT_METHOD: u64 = 32;

/// Looks at a disk that has to be not encrypted.
pub fn verify(
    subject: &Subject,
    extent: Extent,
    means: &Means,
) -> Result<(Option<Scope>, Vec<Check>), Error> {
    let bare = &subject.bare;
    let source = Source::new(
        bare.file(),
        subject.location.data.clone(),
        bare.is_block(),
        (0, bare.length()?),
        UNIT,
    )?;
    let shape = Shape::new(UNIT);
    let look = Look {
        source: &source,
        cipher: None,
        shape: &shape,
        needed: shape::needed(source.units()),
        every: 1,
        in_use: false,
    };
    let signature = signature(subject)?;
    let (tally, _) = scan(&look, extent, means)?;
    let checks = vec![signature, content(&tally)];
    Ok((Some(scope(&source, extent, &tally)), checks))
}

/// What the disk says that it is.
fn signature(subject: &Subject) -> Result<Check, Error> {
    let check = |outcome, says| Ok(Check::new("signature", outcome, says));
    match &subject.volume {
        // A detached one, which is not on the disk itself.
        Ok((_, description))
            if description.token.plain.is_some() && description.layout.data_offset == 0 => {}
        Ok((_, description)) => {
            if let Some(plain) = &description.token.plain {
                let says = format!(
                    "its header says that it has been plain since {}",
                    plain.since
                );
                return check(Outcome::Passed, says);
            }
            let says = format!(
                "it is sealblk volume {}, which is encrypted",
                description.uuid
            );
            return check(Outcome::Failed, says);
        }
        Err(volume::Error::NotAVolume { .. }) => {}
        Err(error) => {
            let says = format!("it has a header of an encrypted device: {error}");
            return check(Outcome::Failed, says);
        }
    }
    let Some(found) = subject.bare.recognise()? else {
        let says = "nothing that is known to be encrypted was recognised, and nothing else";
        return check(Outcome::Passed, says.into());
    };
    if ENCRYPTED.contains(&&*found.what) {
        return check(Outcome::Failed, format!("there is {found}"));
    }
    if found.what == "a qcow2 image" {
        let mut method = [0; 4];
        let file = subject.bare.file();
        let read = file.read_exact_at(&mut method, QCOW2_CRYPT_METHOD);
        read.map_err(|error| Error::read(&subject.location.data, error))?;
        if method != [0; 4] {
            let says = format!("there is {found}, whose content is encrypted");
            return check(Outcome::Failed, says);
        }
    }
    check(Outcome::Passed, format!("there is {found}"))
}

/// Whether what is stored there is such as ciphertext is not.
fn content(tally: &Tally) -> Check {
    let (written, shaped) = (tally.written(), tally.shaped);
    let (outcome, says) = if written == 0 {
        let says = "nothing but zeroes is stored there: encrypted or not, it is empty";
        (Outcome::Unknown, says.to_owned())
    } else if shaped == 0 && written >= ENOUGH {
        let says = format!("all of {written} units look like noise, as ciphertext does");
        (Outcome::Failed, says)
    } else if shaped * SHARE < written || shaped == 0 {
        let says = format!(
            "only {shaped} of {written} units have a shape: most of what is stored there was compressed or encrypted"
        );
        (Outcome::Unknown, says)
    } else {
        let says =
            format!("{shaped} of {written} units have a shape, which ciphertext does not have");
        (Outcome::Passed, says)
    };
    let check = Check::new("content", outcome, says)
        .with("written", written)
        .with("shaped", shaped)
        .with("zeroes", tally.zero)
        .with("false_alarm", 2.0_f64.powi(-30));
    match written {
        0 => check,
        _ => check.with("chi_square", chi_square(&tally.counts)),
    }
}
