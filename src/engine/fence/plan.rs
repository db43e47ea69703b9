//! What is to hold for all queues. It lies under the lock of the disk's hold.

use std::ops::Range;

use super::view::{Access, Failing};
use crate::rekey::Direction;

/// Where the boundary is, and what is closed. Positions are bytes of the disk.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Its number.
    pub era: u64,
    /// The number of the first plan for this move.
    pub since: u64,
    /// There are two ways.
    pub moving: bool,
    /// Nothing may be written, by nobody.
    pub read_only: bool,
    /// Which way the boundary goes, as was said last.
    pub direction: Direction,
    pub boundary: u64,
    pub size: u64,
    /// Bytes of a unit.
    pub unit: u64,
    /// What is closed, by [`Access`]. What is closed for reading is closed for
    /// writing.
    pub closed: [Range<u64>; 2],
    /// What no operation touches that is in flight: the keeper's.
    pub cleared: Range<u64>,
    /// The keeper is to come to rest.
    pub halted: bool,
    /// There is a keeper.
    pub kept: bool,
    /// Nobody knows how what is closed is stored, and requests that touch it do not
    /// wait for that.
    pub failing: Option<Failing>,
    /// The keeper tries to find out, all the same.
    pub mending: bool,
    /// A queue has ended, and the kernel may still write for it.
    pub lost: bool,
}

impl Plan {
    /// The plan of a disk whose data is not moved, after this one.
    pub fn none(&self) -> Plan {
        Plan {
            era: self.era,
            halted: self.halted,
            lost: self.lost,
            ..Plan::default()
        }
    }

    pub fn is_open(&self) -> bool {
        self.closed.iter().all(Range::is_empty)
    }

    /// Whether somebody is expected to open what is closed.
    pub fn is_under_way(&self) -> bool {
        !self.is_open() && (self.failing.is_none() || self.mending)
    }

    /// The `bytes` next to the boundary, of which there may be fewer. Nothing
    /// when they are no whole units.
    pub fn region(&self, direction: Direction, bytes: u64) -> Option<Range<u64>> {
        let region = match direction {
            Direction::Forward => self.boundary..self.size.min(self.boundary.saturating_add(bytes)),
            Direction::Back => self.boundary.saturating_sub(bytes)..self.boundary,
        };
        let whole = |position: u64| position.is_multiple_of(self.unit.max(1));
        (whole(region.start) && whole(region.end)).then_some(region)
    }

    /// Closes the region, with what lies between it and what is closed.
    pub fn close(&mut self, access: Access, region: &Range<u64>) {
        let close = |closed: &mut Range<u64>| {
            *closed = match closed.is_empty() {
                true => region.clone(),
                false => closed.start.min(region.start)..closed.end.max(region.end),
            }
        };
        close(&mut self.closed[Access::Write as usize]);
        if access == Access::Read {
            close(&mut self.closed[Access::Read as usize]);
        }
    }

    /// Whether all of the region is closed.
    pub fn is_closed(&self, access: Access, region: &Range<u64>) -> bool {
        covers(&self.closed[access as usize], region)
    }

    /// The boundary goes to the other side of the region, which is the keeper's;
    /// false when it is not.
    pub fn advance(&mut self, direction: Direction, region: &Range<u64>) -> bool {
        if !covers(&self.cleared, region) {
            return false;
        }
        self.direction = direction;
        let writing = &mut self.closed[Access::Write as usize];
        match direction {
            Direction::Forward => {
                self.boundary = region.end;
                writing.start = region.end;
            }
            Direction::Back => {
                self.boundary = region.start;
                writing.end = region.start;
            }
        }
        if writing.is_empty() {
            *writing = 0..0;
        }
        self.closed[Access::Read as usize] = 0..0;
        self.cleared = 0..0;
        self.mended();
        true
    }

    pub fn open(&mut self) {
        self.closed = [0..0, 0..0];
        self.cleared = 0..0;
        self.mended();
    }

    fn mended(&mut self) {
        self.failing = None;
        self.mending = false;
    }
}

fn covers(whole: &Range<u64>, part: &Range<u64>) -> bool {
    part.is_empty() || (whole.start <= part.start && part.end <= whole.end)
}
