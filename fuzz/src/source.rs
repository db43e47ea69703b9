//! Bytes, taken one choice at a time.
#![forbid(unsafe_code)]

/// What is left of an input.
pub struct Source<'a> {
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Source { bytes }
    }

    /// Whether only zeroes would come.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// The next `count` bytes, or fewer at the end.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(count.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// One of these; the first is the usual one.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// True for one byte in sixteen.
    pub fn rarely(&mut self) -> bool {
        self.byte() >= 0xf0
    }

    /// The usual value, and rarely another one.
    pub fn mostly<T>(&mut self, usual: T, otherwise: impl FnOnce(&mut Self) -> T) -> T {
        match self.rarely() {
            true => otherwise(self),
            false => usual,
        }
    }

    /// A number that is rarely right: near a border, or anything.
    pub fn odd_number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.u64(),
            1 => u64::from(self.byte()),
            2 => u64::MAX - u64::from(self.byte()),
            _ => 1 << (self.byte() % 64),
        }
    }
}
