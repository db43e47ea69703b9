//! How an operation is found again that a crash may have ended anywhere.

use super::region::Data;
use super::rules::{Rule, Rules};
use super::{Error, Geometry, Journal, Medium, Position, Transforms};

/// Brings an operation to rest that may have been cut off anywhere, and says how
/// far it is. Nobody uses the disk meanwhile. Another crash while this runs does
/// no harm: the next one finds the same, and less to do.
///
/// # Errors
/// When no record is authentic, or says what cannot be: nothing is changed then.
/// Or when a device fails.
pub fn recover<J: Medium, D: Medium>(
    journal: &mut Journal<J>,
    data: D,
    geometry: Geometry,
    transforms: &Transforms,
    threads: usize,
) -> Result<Position, Error> {
    recover_by(
        Rules::default(),
        journal,
        data,
        geometry,
        transforms,
        threads,
    )
}

/// The same by rules that a test may break.
pub(super) fn recover_by<J: Medium, D: Medium>(
    rules: Rules,
    journal: &mut Journal<J>,
    data: D,
    geometry: Geometry,
    transforms: &Transforms,
    threads: usize,
) -> Result<Position, Error> {
    transforms.check(geometry)?;
    let found = journal.newest()?;
    let state = found.record.state;
    if found.is_at_rest() {
        return Ok(state.position);
    }
    // Whatever follows has a record in both slots that covers it: what was read
    // may be in a cache alone, and the other record may cover less.
    if rules.keep(Rule::SecureFirst) {
        journal.secure(&found)?;
    }
    if state.covered == 0 {
        return Ok(state.position);
    }
    let data = Data {
        medium: data,
        geometry,
        transforms: transforms.clone(),
        threads,
        rules,
    };
    data.mend(
        journal.keys(),
        state.covered_from(),
        &found.record.tags,
        state.position.direction,
    )?;
    data.sync()?;
    Ok(journal.rest(state.position.beyond(state.covered))?.position)
}
