//! One region, or one hole, further.

use super::Mover;
use crate::rekey::handle::Pace;
use crate::rekey::region::Region;
use crate::rekey::rules::Rule;
use crate::rekey::{Error, Fence, Medium};

/// What came of a step.
enum Step {
    /// The region was moved; the next one is closed for writing and covered.
    Moved(Option<Region>),
    /// The fence did not let it.
    Held,
}

impl<J: Medium, D: Medium, F: Fence> Mover<J, D, F> {
    /// One region further, if the fence lets it.
    pub(super) fn step(&mut self, pace: &Pace) -> Result<bool, Error> {
        let Some(mut region) = self.current.take() else {
            return self.begin();
        };
        let length = region.length();
        let step = if self.data.transforms.distinct(self.position.direction)
            || !self.data.rules.keep(Rule::RecordPlain)
        {
            self.overlapped(&mut region)
        } else {
            self.recorded(&mut region)
        };
        match step {
            Ok(Step::Moved(next)) => {
                self.current = next;
                self.spare = Some(region);
                self.account(length, pace);
                Ok(true)
            }
            Ok(Step::Held) => Ok(false),
            Err(error) => {
                // Its tags are what it takes to find out how far it was written.
                self.current = Some(region);
                Err(error)
            }
        }
    }

    /// From rest: covers the first region, or steps over a hole.
    fn begin(&mut self) -> Result<bool, Error> {
        let hole = self.hole(0)?;
        if hole > 0 {
            return self.jump(hole);
        }
        let length = self.length(0)?;
        let direction = self.position.direction;
        if !self.fence.close_for_writing(direction, length) {
            return Ok(false);
        }
        self.at_rest = false;
        let Some(region) = self.load_and_sync(0, length)? else {
            return Ok(false);
        };
        self.record(self.position, Some(&region), None)?;
        if !self.data.transforms.distinct(direction) {
            // Here no other record follows before it is written.
            self.record(self.position, Some(&region), None)?;
        }
        self.current = Some(region);
        Ok(true)
    }

    /// Moves a region and opens it at once, the next one being covered as well:
    /// what a guest writes there is told from what was there by its tag.
    fn overlapped(&mut self, region: &mut Region) -> Result<Step, Error> {
        let (direction, length) = (self.position.direction, region.length());
        let ahead = self.length(length)?;
        if ahead > 0 && !self.fence.close_for_writing(direction, length + ahead) {
            return Ok(Step::Held);
        }
        let next = self.load_and_sync(length, ahead)?;
        let covered = next
            .as_ref()
            .filter(|_| self.data.rules.keep(Rule::CoverTwo));
        if self.data.rules.keep(Rule::RecordFirst) {
            self.record(self.position, Some(region), covered)?;
        }
        if !self.fence.close_for_reading(direction, length) {
            return Ok(Step::Held);
        }
        self.writing = true;
        self.data.store(region, direction)?;
        if !self.data.rules.keep(Rule::RecordFirst) {
            self.record(self.position, Some(region), covered)?;
        }
        self.writing = false;
        self.position = self.position.beyond(length);
        self.fence.advance(direction, length);
        Ok(Step::Moved(next))
    }

    /// Moves a region, and opens it when it is recorded that it was moved.
    fn recorded(&mut self, region: &mut Region) -> Result<Step, Error> {
        let (direction, length) = (self.position.direction, region.length());
        if !self.fence.close_for_reading(direction, length) {
            return Ok(Step::Held);
        }
        self.writing = true;
        self.data.store(region, direction)?;
        let mut ahead = self.length(length)?;
        if ahead > 0 && !self.fence.close_for_writing(direction, length + ahead) {
            ahead = 0;
        }
        let next = self.load_and_sync(length, ahead)?;
        let beyond = self.position.beyond(length);
        self.record(beyond, next.as_ref(), None)?;
        self.record(beyond, next.as_ref(), None)?;
        self.writing = false;
        self.position = beyond;
        self.fence.advance(direction, length);
        if next.is_none() {
            self.fence.open();
            self.at_rest = true;
        }
        Ok(Step::Moved(next))
    }

    /// From rest: a hole is zeroes with both keys, and nothing is to be moved.
    fn jump(&mut self, hole: u64) -> Result<bool, Error> {
        let direction = self.position.direction;
        self.at_rest = false;
        if !self.fence.close_for_writing(direction, hole)
            || !self.fence.close_for_reading(direction, hole)
        {
            return Ok(false);
        }
        // Before it was closed, a guest may have written there.
        if self.hole(0)? < hole {
            return Ok(true);
        }
        self.data.sync()?;
        let beyond = self.position.beyond(hole);
        self.journal.rest(beyond)?;
        self.position = beyond;
        self.fence.advance(direction, hole);
        self.fence.open();
        self.at_rest = true;
        self.report(hole, None);
        Ok(true)
    }

    /// Finishes a region that was being written when something failed.
    pub(super) fn mend(&mut self) -> Result<(), Error> {
        let Some(region) = &self.current else {
            self.writing = false;
            return Ok(());
        };
        let (direction, length) = (self.position.direction, region.length());
        self.data
            .mend(self.journal.keys(), region.start, &region.tags, direction)?;
        self.data.sync()?;
        let beyond = self.position.beyond(length);
        self.journal.rest(beyond)?;
        self.writing = false;
        self.position = beyond;
        self.spare = self.current.take();
        self.fence.advance(direction, length);
        self.fence.open();
        self.at_rest = true;
        self.report(length, None);
        Ok(())
    }
}
