//! How one queue sees the fence.

use std::ops::Range;
use std::sync::Arc;

use super::Transforms;
use super::plan::Plan;
use crate::crypt::Transform;

/// What is done to units. What gives space back writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// They are read.
    Read,
    /// They are changed.
    Write,
}

/// What may be done with the first bytes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// So many are on one side of the boundary, and open.
    Open(u64),
    /// So many are closed.
    Closed(u64),
    /// They are closed, and it is not known when they will be opened.
    Failing(Failing),
}

/// Why requests to what is closed do not wait until it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// Moving it has failed at the disk below with this errno, and is tried again:
    /// they have that error as well.
    Below(i32),
    /// Nobody tries that any more.
    ForGood,
}

/// A plan, with the transforms that it is about.
#[derive(Debug)]
pub struct View {
    era: u64,
    /// There is a boundary, or something is closed.
    moving: bool,
    failing: Option<Failing>,
    boundary: u64,
    closed: [Range<u64>; 2],
    transforms: Transforms,
}

impl View {
    pub(super) fn new(plan: &Plan, transforms: &Transforms) -> Self {
        View {
            era: plan.era,
            moving: plan.moving,
            failing: plan.failing,
            boundary: plan.boundary,
            closed: plan.closed.clone(),
            transforms: transforms.clone(),
        }
    }

    /// The number of the plan.
    #[inline]
    pub fn era(&self) -> u64 {
        self.era
    }

    /// Whether operations have to be [cut](View::cut).
    #[inline]
    pub fn is_moving(&self) -> bool {
        self.moving
    }

    /// How the unit at this byte of the disk is stored.
    #[inline]
    pub fn transform(&self, position: u64) -> &Transform {
        &self.transforms[usize::from(position < self.boundary)]
    }

    /// What may be done with `len` bytes from `start` on.
    #[cold]
    pub fn cut(&self, access: Access, start: u64, len: u64) -> Cut {
        let closed = &self.closed[access as usize];
        if closed.contains(&start) {
            return match self.failing {
                Some(failing) => Cut::Failing(failing),
                None => Cut::Closed(len.min(closed.end - start)),
            };
        }
        let edges = [closed.start, self.boundary].into_iter();
        let ahead = edges.filter(|edge| *edge > start).map(|edge| edge - start);
        Cut::Open(ahead.fold(len, u64::min))
    }

    /// Whether an operation that is in flight touches what is closed.
    pub fn is_closed(&self, access: Access, start: u64, len: u64) -> bool {
        let closed = &self.closed[access as usize];
        !closed.is_empty() && start < closed.end && closed.start < start.saturating_add(len)
    }
}

/// For tests and assertions: the way of these units is the same in both.
pub(super) fn agree(one: &View, other: &View, start: u64, len: u64) -> bool {
    let ends = [start, start.saturating_add(len).saturating_sub(1)];
    ends.into_iter().all(|at| {
        let transform =
            |view: &View| Arc::as_ptr(&view.transforms[usize::from(at < view.boundary)]);
        transform(one) == transform(other)
    })
}
