//! What is next: how long a region, or how long a hole.

use super::Mover;
use crate::rekey::{Direction, Error, Fence, Medium};

/// A hole is stepped over, instead of moved, if it is so many regions long.
const JUMP: u64 = 4;

impl<J: Medium, D: Medium, F: Fence> Mover<J, D, F> {
    /// How long the region is that follows `skip` bytes next to the boundary: 0
    /// if there is none, or a hole that is better stepped over.
    pub(super) fn length(&self, skip: u64) -> Result<u64, Error> {
        let left = self.data.geometry.left(self.position) - skip;
        if left == 0 || self.hole(skip)? > 0 {
            return Ok(0);
        }
        let length = self.lengths.now();
        if length >= left {
            return Ok(left);
        }
        // Up to a whole block of the disk, from wherever this starts.
        let odd = match self.position.direction {
            Direction::Forward => (self.position.boundary + skip + length) % 4096,
            Direction::Back => (4096 - (self.position.boundary - skip - length) % 4096) % 4096,
        };
        Ok(if odd < length { length - odd } else { length })
    }

    /// How long the hole is that follows `skip` bytes next to the boundary, if
    /// stepping over it is better than moving it; else 0.
    pub(super) fn hole(&self, skip: u64) -> Result<u64, Error> {
        if !self.data.transforms.zero_stays() {
            return Ok(0);
        }
        let geometry = self.data.geometry;
        let left = geometry.left(self.position) - skip;
        let least = JUMP * self.lengths.now();
        if left < least {
            return Ok(0);
        }
        let data_from = |position: u64| -> Result<u64, Error> {
            let (from, end) = (
                geometry.in_file(position),
                geometry.in_file(geometry.size()),
            );
            let data = self.data.medium.data_from(from, end);
            data.map(|data| data - geometry.in_file(0))
                .map_err(Error::io("look for holes"))
        };
        let from = self.position.next(skip, 0);
        let hole = match self.position.direction {
            Direction::Forward => match data_from(from)? - from {
                hole if hole == left => left,
                hole => hole & !4095,
            },
            Direction::Back => {
                // Files are asked upwards only: so ever larger pieces are tried.
                let mut hole = 0;
                let mut tried = least & !4095;
                while tried <= left && data_from(from - tried)? >= from {
                    hole = tried;
                    tried = if tried < left {
                        (tried * 2).min(left)
                    } else {
                        break;
                    };
                }
                hole
            }
        };
        Ok(if hole >= least { hole } else { 0 })
    }
}
