//! The rules of `docs/rekey.md` that the simulator of power losses breaks, one
//! after the other, to see that it would notice.

/// A rule on the order of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The data is synced before a record says what is in it.
    SyncFirst,
    /// Records cover the region after next as well, before the next is moved.
    CoverTwo,
    /// A region is written when its record is durable, not before.
    RecordFirst,
    /// Nothing is opened before it is at rest.
    RestFirst,
    /// To rest takes two records.
    RestTwice,
    /// What was moved is durable before a record at rest says so.
    SyncBeforeRest,
    /// What guests can make look unmoved is recorded before they may write.
    RecordPlain,
    /// Recovery puts its record into both slots before it moves anything.
    SecureFirst,
    /// Recovery leaves units of zeroes alone that are so in both states.
    ZeroesStay,
}

/// All are kept, but for one that a test may break.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    #[cfg(test)]
    pub broken: Option<Rule>,
}

impl Rules {
    /// Whether that rule is kept: always, outside tests.
    pub fn keep(self, rule: Rule) -> bool {
        #[cfg(test)]
        return self.broken != Some(rule);
        #[cfg(not(test))]
        {
            let _ = rule;
            true
        }
    }
}
