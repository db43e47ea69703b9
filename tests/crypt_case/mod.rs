//! One case of the comparison between cipher engines, shared by the property
//! tests and by fuzzing: a request of any shape gives the same bytes with
//! every engine as with the portable one, and touches nothing else.

use std::ptr::NonNull;

use sealblk::crypt::{Engine, Params, SectorCipher};
use sealblk::secret::{Dek, Secret};
use sealblk::segment::{Segment, SegmentCursor};
use sealblk::units::{Sector, SectorSize};

/// What guest memory between and around segments holds, and must keep.
const CANARY: u8 = 0xee;

/// A request and how it is handled.
#[derive(Clone, Debug)]
pub struct Case {
    /// The unit size.
    pub long: bool,
    /// The length of the request in units.
    pub units: usize,
    /// The number of the first unit, in sectors, rounded down to a unit.
    pub first: u64,
    /// Added to it.
    pub iv_tweak: u64,
    /// Whether stored zeroes read as zeroes.
    pub zero_units: bool,
    /// Which units are stored as zeroes: those whose bit is set, repeated every 64.
    pub zeroed: u64,
    /// Starts the generator of keys and data.
    pub seed: u64,
    /// Lengths of the segments, repeated until the request is covered.
    pub lengths: Vec<u16>,
    /// Bytes between segments, and before the first.
    pub gap: u8,
    /// Units handled in one call.
    pub chunk: usize,
    /// How far our buffer is from alignment.
    pub misaligned: u8,
}

impl Case {
    /// A case from arbitrary bytes.
    #[allow(dead_code, reason = "used by the fuzz target alone")]
    pub fn from_bytes(bytes: &[u8]) -> Case {
        let mut bytes = bytes.iter().copied();
        let mut byte = || bytes.next().unwrap_or(0);
        let mut word = || u64::from_le_bytes(std::array::from_fn(|_| byte()));
        let (first, iv_tweak, zeroed, seed, shape) = (word(), word(), word(), word(), word());
        let [flags, units, chunk, gap, misaligned, ..] = shape.to_le_bytes();
        Case {
            long: flags & 1 != 0,
            units: units as usize * if flags & 2 != 0 { 3 } else { 1 },
            first,
            iv_tweak,
            zero_units: flags & 4 != 0,
            zeroed: if flags & 8 != 0 { zeroed } else { 0 },
            seed,
            lengths: std::iter::from_fn(|| {
                Some(u16::from_le_bytes([bytes.next()?, bytes.next()?]))
            })
            .take(64)
            .collect(),
            gap,
            chunk: chunk.into(),
            misaligned,
        }
    }

    /// Runs it on every engine that this CPU has.
    pub fn check(&self) {
        let mut random = SplitMix(self.seed);
        let mut key = [0; 64];
        random.fill(&mut key);
        let dek = Dek::try_from(Secret::copy_of(&key).unwrap()).unwrap();
        let unit = if self.long {
            SectorSize::B4096
        } else {
            SectorSize::B512
        };
        let params = Params {
            sector_size: unit,
            iv_tweak: self.iv_tweak,
            zero_units: self.zero_units,
        };
        // A unit of 4096 bytes is 16 times as much work as one of 512.
        let units = self.units % if self.long { 70 } else { 600 };
        let first = Sector(self.first / unit.sectors() * unit.sectors());

        let oracle = SectorCipher::new(Engine::Portable, &dek, params).unwrap();
        let mut plain = vec![0; units * unit.bytes()];
        random.fill(&mut plain);
        let mut encrypted = plain.clone();
        oracle.encrypt_in_place(first, &mut encrypted);
        let mut stored = encrypted.clone();
        for (at, unit) in stored.chunks_exact_mut(unit.bytes()).enumerate() {
            if self.zeroed >> (at % 64) & 1 != 0 {
                // Now and then only almost zero: a lone bit at the very end.
                unit.fill(0);
                unit[unit.len() - 1] = u8::from(at % 5 == 4);
            }
        }
        let mut decrypted = stored.clone();
        oracle.decrypt_in_place(first, &mut decrypted);
        if self.zeroed == 0 {
            assert_eq!(decrypted, plain);
        }

        for engine in Engine::available() {
            let cipher = SectorCipher::new(engine, &dek, params).unwrap();
            let same = |what: &str, got: &[u8], expected: &[u8]| {
                let differs = got.iter().zip(expected).position(|(a, b)| a != b);
                assert_eq!(got.len(), expected.len());
                assert_eq!(differs, None, "{engine}: {what} differs at this byte");
            };

            let mut guest = Guest::new(self, plain.len());
            guest.write(&plain);
            let before = guest.memory.clone();
            same(
                "encrypted",
                &self.encrypt(&cipher, first, &mut guest, plain.len()),
                &encrypted,
            );
            same("the guest's memory", &guest.memory, &before);

            let mut guest = Guest::new(self, plain.len());
            self.decrypt(&cipher, first, &stored, &mut guest);
            let mut expected = Guest::new(self, plain.len());
            expected.write(&decrypted);
            same("decrypted", &guest.memory, &expected.memory);

            let mut buffer = plain.clone();
            cipher.encrypt_in_place(first, &mut buffer);
            same("encrypted in place", &buffer, &encrypted);
            buffer.copy_from_slice(&stored);
            cipher.decrypt_in_place(first, &mut buffer);
            same("decrypted in place", &buffer, &decrypted);

            let mut zeroes = vec![0; plain.len()];
            oracle.encrypt_in_place(first, &mut zeroes);
            buffer.fill(0xaa);
            cipher.encrypt_zeroes(first, &mut buffer);
            same("encrypted zeroes", &buffer, &zeroes);
        }
    }

    /// Bytes in a call, and bytes of our buffer that come before and after.
    fn chunks(&self, unit: SectorSize) -> (usize, usize) {
        let units = if self.chunk == 0 {
            usize::MAX / 8192
        } else {
            self.chunk
        };
        (units * unit.bytes(), (self.misaligned % 64).into())
    }

    fn encrypt(
        &self,
        cipher: &SectorCipher,
        first: Sector,
        guest: &mut Guest,
        len: usize,
    ) -> Vec<u8> {
        let (step, margin) = self.chunks(cipher.params().sector_size);
        let segments = guest.segments();
        let mut cursor = SegmentCursor::new(&segments);
        let mut buffer = vec![CANARY; margin + len + margin];
        for start in (0..len).step_by(step) {
            let end = len.min(start + step);
            let first = Sector(first.0.wrapping_add(start as u64 / 512));
            let to = &mut buffer[margin + start..margin + end];
            // SAFETY: the segments lie in the guest's own memory.
            unsafe { cipher.encrypt(first, &mut cursor, to) };
        }
        assert_eq!(cursor.remaining(), 0);
        let (before, rest) = buffer.split_at(margin);
        let (data, after) = rest.split_at(len);
        assert!(before.iter().chain(after).all(|&byte| byte == CANARY));
        data.to_vec()
    }

    fn decrypt(&self, cipher: &SectorCipher, first: Sector, stored: &[u8], guest: &mut Guest) {
        let (step, margin) = self.chunks(cipher.params().sector_size);
        let segments = guest.segments();
        let mut cursor = SegmentCursor::new(&segments);
        let mut buffer = vec![CANARY; margin];
        buffer.extend_from_slice(stored);
        for start in (0..stored.len()).step_by(step) {
            let end = stored.len().min(start + step);
            let first = Sector(first.0.wrapping_add(start as u64 / 512));
            let from = &mut buffer[margin + start..margin + end];
            // SAFETY: the segments lie in the guest's own memory.
            unsafe { cipher.decrypt(first, from, &mut cursor) };
        }
        assert_eq!(cursor.remaining(), 0);
        assert!(buffer[..margin].iter().all(|&byte| byte == CANARY));
    }
}

/// Memory with segments in it, and canaries around them.
struct Guest {
    memory: Vec<u8>,
    /// Offset and length.
    places: Vec<(usize, usize)>,
}

impl Guest {
    fn new(case: &Case, len: usize) -> Self {
        let gap = usize::from(case.gap);
        // Segments that come to nothing at all would never cover the request,
        // and many thousands that are tiny take long.
        let useful = case.lengths.iter().any(|&length| length > 0);
        let mut lengths = case.lengths.iter().map(|&length| length.into()).cycle();
        let (mut places, mut at, mut left) = (Vec::new(), gap, len);
        while left > 0 {
            let next = match useful && places.len() < 2000 {
                true => lengths.next().unwrap_or(left),
                false => left,
            };
            let length = left.min(next);
            places.push((at, length));
            at += length + gap;
            left -= length;
        }
        Guest {
            memory: vec![CANARY; at],
            places,
        }
    }

    fn write(&mut self, mut data: &[u8]) {
        for &(at, length) in &self.places {
            let (now, later) = data.split_at(length);
            self.memory[at..at + length].copy_from_slice(now);
            data = later;
        }
    }

    fn segments(&mut self) -> Vec<Segment> {
        let base = NonNull::new(self.memory.as_mut_ptr()).unwrap();
        self.places
            .iter()
            // SAFETY: all places are inside the memory.
            .map(|&(at, length)| Segment::new(unsafe { base.add(at) }, length))
            .collect()
    }
}

/// A small generator of bytes (SplitMix64), so that a case is its own seed.
pub struct SplitMix(pub u64);

impl SplitMix {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
