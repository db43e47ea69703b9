//! Destroying what a volume has of its key: the wraps in both header copies,
//! the digest, and whatever was put into the rest of the header area.
//!
//! What takes the place of a header is a whole one again, written as any update
//! is: so at every instant the volume either opens, or says that it was erased.
//! It is made anew from the facts that are not secret, and has nothing of what
//! was in the old one: no token, field or keyslot of anybody's.
#![forbid(unsafe_code)]

use std::io;
use std::ops::Range;

use rustix::fs::{FallocateFlags, fallocate};

use super::description::Description;
use super::device::Access;
use super::error::Error;
use super::luks2::copies::{self, Found};
use super::luks2::digest::Digest;
use super::luks2::{Header, HeaderIo, Metadata};
use super::open::Volume;
use super::token::{Erased, Rekey, Token};

const CHUNK: usize = 1 << 20;
const BLOCK: usize = 4096;

impl Volume {
    /// Puts a header in the place of the one that is there, in both copies,
    /// which has no key any more and says so.
    ///
    /// # Errors
    /// [`Error::ChangedUnderneath`] leaves everything as it was. After
    /// [`Error::Io`] the old header may still be there; the call can be repeated.
    pub fn erase_keys(&mut self, erased: Erased) -> Result<(), Error> {
        let token = self.token();
        let token = Token::of_erased(&token.key_set, token.zero_units, erased);
        self.replace_by_keyless(token, None)
    }

    /// Puts a header in the place of the one that is there, of which nothing but
    /// the segment stays: with `token`, which has no wraps, and a digest that no
    /// key fits.
    ///
    /// `ended` is the operation that ends so: there is no other one under way then.
    ///
    /// # Errors
    /// As [`Volume::erase_keys`].
    pub(super) fn replace_by_keyless(
        &mut self,
        token: Token,
        ended: Option<&Rekey>,
    ) -> Result<(), Error> {
        let description = self.replace_header(token, ended)?;
        self.set_description(description);
        Ok(())
    }

    fn replace_header(&self, token: Token, ended: Option<&Rekey>) -> Result<Description, Error> {
        let device = self.header_device();
        let path = device.path();
        if self.access() != Access::ReadWrite {
            return Err(Error::ReadOnly { path: path.into() });
        }
        let _lock = device.lock_header(Access::ReadWrite)?;
        let found = self.read_locked_header()?;
        let now = Description::of(&found.header, path)?;
        if now.uuid != self.uuid() || now.layout != self.layout() {
            return Err(Error::ChangedUnderneath {
                path: path.into(),
                what: "it is of another volume, or of other data",
            });
        }
        if ended.is_some() && now.token.rekey.as_ref() != ended {
            return Err(Error::ChangedUnderneath {
                path: path.into(),
                what: "an operation on its data was begun or ended",
            });
        }
        let token = Token {
            key_set: now.token.key_set,
            ..token
        };
        let token = token.to_json().map_err(|source| Error::Token {
            path: path.into(),
            source,
        })?;
        let digest = Digest::of_no_key().map_err(|error| Error::Random(error.into()))?;
        let write = |error| device.error("overwrite the header of", error);
        let header = replace(&mut device.file(), &found, &digest, token, now.header_area);
        Description::of(&header.map_err(write)?, path)
    }

    /// Overwrites what lies between the header copies and the data (or the end
    /// of a detached header) with zeroes: keyslots that somebody made with
    /// cryptsetup, and whatever else was put there. How many bytes were not
    /// zero.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub fn wipe_header_area(&self) -> Result<u64, Error> {
        let end = match self.layout().data_offset {
            0 => self.description().header_area,
            data => data,
        };
        self.wipe_header(self.description().copies..end)
    }

    /// Overwrites a part of the header area with zeroes. How many bytes were not
    /// zero.
    pub(super) fn wipe_header(&self, range: Range<u64>) -> Result<u64, Error> {
        let device = self.header_device();
        let _lock = device.lock_header(Access::ReadWrite)?;
        let range = (range.start, range.end);
        wipe(&mut device.file(), range).map_err(|error| device.error("overwrite", error))
    }

    /// Gives the space of the data back, as far as what it lies on can. This
    /// destroys no key.
    ///
    /// # Errors
    /// When it cannot.
    pub fn discard_data(&self) -> Result<(), Error> {
        let layout = self.layout();
        let fail = |error| Error::io("discard the data of", self.data_path(), error);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(self.data_file(), punch, layout.data_offset, layout.size)
            .map_err(|error| fail(error.into()))?;
        self.data_file().sync_all().map_err(fail)
    }
}

/// Writes a header without a key over the one that was `found`.
fn replace(
    io: &mut impl HeaderIo,
    found: &Found,
    digest: &Digest,
    token: serde_json::Value,
    area: u64,
) -> io::Result<Header> {
    let old = &found.header;
    let fault = |fault| io::Error::other(format!("{fault}"));
    let segment = old.metadata.segment().map_err(fault)?;
    let copy_bytes = old.binary.copy_bytes;
    let metadata = Metadata::new(&segment, digest, token, copy_bytes, area).map_err(fault)?;
    let mut header = Header {
        binary: old.binary.clone(),
        metadata,
    };
    copies::replace(io, found, &mut header)?;
    Ok(header)
}

/// Writes zeroes wherever there are none, block by block: holes stay holes,
/// since nothing is in them.
fn wipe(io: &mut impl HeaderIo, (from, to): (u64, u64)) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let (mut position, mut wiped) = (from, 0);
    while position < to {
        let length = CHUNK.min(usize::try_from(to - position).unwrap_or(CHUNK));
        let count = io.read_at(&mut buffer[..length], position)?;
        let mut offset = position;
        for block in buffer[..count].chunks(BLOCK) {
            let used = block.iter().filter(|&&byte| byte != 0).count();
            if used > 0 {
                io.write_at(&[0; BLOCK][..block.len()], offset)?;
                wiped += used as u64;
            }
            offset += block.len() as u64;
        }
        position += length as u64;
    }
    io.sync()?;
    Ok(wiped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Dek;
    use crate::timestamp::Timestamp;
    use crate::volume::luks2::binary::{Binary, field};
    use crate::volume::luks2::{Segment, State};
    use crate::volume::{Bound, Wrap};

    const COPY: usize = 16 << 10;
    const AREA: usize = 64 << 10;
    const PIECE: usize = 512;
    const MARK: &str = "U2VhbGVkLCB0aGF0IG5vYm9keSByZWFkcyBpdA";

    /// A device that keeps each state it was in, piece by piece.
    struct Slow {
        now: Vec<u8>,
        states: Vec<Vec<u8>>,
    }

    impl HeaderIo for Slow {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.now.read_at(buffer, offset)
        }

        fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
            for (index, piece) in bytes.chunks(PIECE).enumerate() {
                let at = offset + (index * PIECE) as u64;
                self.now.write_at(piece, at)?;
                self.states.push(self.now.clone());
            }
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn token() -> serde_json::Value {
        let wrap = Wrap {
            key_set: "k".into(),
            provider: "file".into(),
            key_id: "k".into(),
            key_version: "1".into(),
            alg: "A256GCM".into(),
            bound: Bound::Aad,
            group: None,
            bytes: MARK.bytes().cycle().take(3000).collect(),
            extra: Default::default(),
        };
        let mut token = Token::new("k", true, vec![wrap]);
        token.extra.insert("later".into(), MARK.into());
        token.to_json().unwrap()
    }

    /// A header with keys wherever one can be.
    fn image() -> Vec<u8> {
        let segment = Segment {
            kind: "crypt".into(),
            offset: AREA as u64,
            size: 1 << 20,
            iv_tweak: 0,
            encryption: "aes-xts-plain64".into(),
            sector_size: 512,
        };
        let digest = Digest::of(&Dek::generate().unwrap()).unwrap();
        let metadata = Metadata::new(&segment, &digest, token(), COPY as u64, AREA as u64);
        let header = Header {
            binary: Binary {
                copy_bytes: COPY as u64,
                seqid: 7,
                label: field("erased").unwrap(),
                uuid: field("00112233-4455-6677-8899-aabbccddeeff").unwrap(),
                subsystem: field("sealblk").unwrap(),
            },
            metadata: metadata.unwrap(),
        };
        let mut image = vec![0; AREA];
        copies::create(&mut image, &header).unwrap();
        image[2 * COPY + 700..2 * COPY + 700 + MARK.len()].copy_from_slice(MARK.as_bytes());
        image
    }

    fn erased() -> serde_json::Value {
        let erased = Erased {
            since: Timestamp::now(),
            finished: true,
            key_stores: Vec::new(),
            partly_plain: false,
        };
        Token::of_erased("k", true, erased).to_json().unwrap()
    }

    fn replaced(io: &mut impl HeaderIo) -> Header {
        let found = copies::read(io).unwrap();
        let digest = Digest::of_no_key().unwrap();
        replace(io, &found, &digest, erased(), AREA as u64).unwrap()
    }

    fn is_erased(header: &Header) -> bool {
        let (_, token) = header.metadata.token("sealblk").unwrap().unwrap();
        Token::from_json(token).unwrap().erased.is_some()
    }

    #[test]
    fn erasing_that_is_cut_off_at_any_piece_leaves_a_volume_or_an_erased_one() {
        let mut device = Slow {
            now: image(),
            states: vec![image()],
        };
        replaced(&mut device);
        wipe(&mut device, (2 * COPY as u64, AREA as u64)).unwrap();
        let mut erased_from = None;
        for (count, state) in device.states.iter().enumerate() {
            let found = copies::read(state).expect("a header must be left");
            match is_erased(&found.header) {
                true => _ = erased_from.get_or_insert(count),
                false => assert_eq!(erased_from, None, "it came back at {count}"),
            }
            // What repeats it finishes it.
            let mut again = state.clone();
            copies::repair(&mut again, &found).unwrap();
            let header = replaced(&mut again);
            wipe(&mut again, (2 * COPY as u64, AREA as u64)).unwrap();
            assert_nothing_left(&again, &header);
        }
        // With the first copy, of which the end is zero before and after.
        assert!(erased_from.unwrap() <= COPY / PIECE, "{erased_from:?}");
        let header = copies::read(&device.now).unwrap().header;
        assert_nothing_left(&device.now, &header);
    }

    fn assert_nothing_left(image: &Vec<u8>, header: &Header) {
        let found = copies::read(image).unwrap();
        assert_eq!(
            (&found.primary, &found.secondary),
            (&State::Good, &State::Good)
        );
        assert!(is_erased(header) && found.header == *header);
        let old = self::image();
        for needle in [MARK.as_bytes(), &old[2 * COPY + 700..2 * COPY + 720]] {
            assert!(!image.windows(needle.len()).any(|part| part == needle));
        }
        let json = String::from_utf8_lossy(&old[4096..COPY]).into_owned();
        let digest = json.split("\"digest\":\"").nth(1).unwrap()[..40].to_owned();
        let text = String::from_utf8_lossy(image);
        assert!(!text.contains(&digest) && !text.contains("later"));
        assert!(image[2 * COPY..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn only_what_is_not_zero_is_overwritten() {
        let mut device = Slow {
            now: image(),
            states: Vec::new(),
        };
        let wiped = wipe(&mut device, (2 * COPY as u64, AREA as u64)).unwrap();
        assert_eq!(wiped, MARK.len() as u64);
        device.states.clear();
        assert_eq!(
            wipe(&mut device, (2 * COPY as u64, AREA as u64)).unwrap(),
            0
        );
        assert!(device.states.is_empty(), "holes were filled");
    }
}
