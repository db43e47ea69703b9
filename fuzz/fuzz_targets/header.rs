//! LUKS2 headers from bytes that anybody may have written: binary header, JSON
//! and token.
//!
//! Reading, opening, repairing and rewriting never panic. What is accepted is
//! written back as what it was, repair changes nothing but the copy that does
//! not count, and a volume that opens has a layout that can be relied upon.
#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::error::Explain;
use sealblk::secret::{Dek, Secret};
use sealblk::volume::luks2::binary::{COPY_BYTES, field};
use sealblk::volume::luks2::{Binary, Found, Header, Metadata, Which, copies};
use sealblk::volume::{Access, Description, Location, Token, Volume, token};
use sealblk_fuzz::source::Source;
use serde_json::Value;

/// What the volume's file has at most, so that some layouts fit and some do not.
const FILE_BYTES: u64 = 32 << 20;

/// Digests that take longer are slow, as they should be, and not looked at.
const ITERATIONS: u64 = 2000;

static FILE: LazyLock<File> = LazyLock::new(|| {
    let memfd = memfd_create("volume", MemfdFlags::CLOEXEC).expect("a memfd");
    File::from(memfd)
});

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    let Some(image) = image(&mut source) else {
        return;
    };
    match copies::read(&image) {
        Err(lost) => drop(format!("{lost:?} {}", lost.no_trace())),
        Ok(found) => {
            check_copies(&image, &found);
            check_meaning(&image, &found);
        }
    }
    check_file(&image);
});

/// Both copies, rarely with a wrong byte here and there.
fn image(source: &mut Source<'_>) -> Option<Vec<u8>> {
    let flags = source.byte();
    let copy_bytes = source.pick(&[COPY_BYTES[0], COPY_BYTES[0], COPY_BYTES[1], COPY_BYTES[2]]);
    let patches: Vec<(u32, u8)> = match source.rarely() {
        true => (0..=source.below(8))
            .map(|_| (source.u32(), source.byte()))
            .collect(),
        false => Vec::new(),
    };
    let first = binary(source, copy_bytes);
    let mut second = first.clone();
    if flags & 1 != 0 {
        second.seqid = source.mostly(first.seqid.wrapping_add(1), Source::odd_number);
        second.label = first.label;
    }
    let json = source.rest();
    let (one, two) = match json.iter().position(|&byte| byte == 0) {
        Some(at) if flags & 2 != 0 => (&json[..at], &json[at + 1..]),
        _ => (json, json),
    };
    let mut image = vec![0; 2 * copy_bytes as usize + 8192];
    if flags & 0x30 != 0x30 {
        let copy = first.encode(Which::Primary, one, &[1; 64])?;
        image[..copy.len()].copy_from_slice(&copy);
    }
    if flags & 0xc0 != 0xc0 {
        let copy = second.encode(Which::Secondary, two, &[2; 64])?;
        image[copy.len()..2 * copy.len()].copy_from_slice(&copy);
    }
    for (at, byte) in patches {
        // Half of them in the binary headers, which are a small part of it.
        let len = image.len();
        let at = match at & 1 {
            0 => (at >> 1) as usize % 512 + copy_bytes as usize * (at >> 31) as usize,
            _ => (at >> 1) as usize % len,
        };
        image[at] ^= byte;
    }
    if flags & 0x0c == 0x0c {
        image.truncate(usize::from(source.u16()));
    }
    Some(image)
}

fn binary(source: &mut Source<'_>, copy_bytes: u64) -> Binary {
    const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
    let seqid = u64::from(source.byte());
    let text = source.mostly(false, |_| true);
    let mut binary = Binary {
        copy_bytes,
        seqid: source.mostly(seqid, Source::odd_number),
        label: [0; 48],
        uuid: field(UUID).expect("it fits"),
        subsystem: field("sealblk").expect("it fits"),
    };
    if text {
        let mut fill = |field: &mut [u8]| {
            let bytes = source.take(field.len());
            field.fill(0);
            field[..bytes.len()].copy_from_slice(bytes);
        };
        fill(&mut binary.label);
        fill(&mut binary.uuid);
        fill(&mut binary.subsystem);
    }
    binary
}

/// Writing, repairing and replacing what was read.
fn check_copies(image: &Vec<u8>, found: &Found) {
    let header = &found.header;
    let mut text = header.metadata.text();
    text.push(0);
    assert_eq!(Metadata::parse(&text).as_ref(), Ok(&header.metadata));

    let (needed, room) = header.fill();
    let fits = needed <= room;
    let encoded = header.encode(Which::Primary).expect("random bytes");
    assert_eq!(encoded.is_some(), fits);
    let whole = image.len() as u64 >= 2 * header.binary.copy_bytes;

    let mut fresh = vec![0; 2 * header.binary.copy_bytes as usize];
    let created = copies::create(&mut fresh, header);
    assert_eq!(created.is_ok(), fits);
    if fits {
        let again = copies::read(&fresh).expect("a new header is read");
        assert!(again.is_whole() && again.header == *header);
    }

    let mut repaired = image.clone();
    match copies::repair(&mut repaired, found) {
        Ok(None) => assert!(found.is_whole() && repaired == *image),
        Ok(Some(which)) => {
            let again = copies::read(&repaired).expect("a repaired header is read");
            assert!(again.is_whole() && again.header == *header);
            let copy = header.binary.copy_bytes as usize;
            let other = match which {
                Which::Primary => copy..2 * copy,
                Which::Secondary => 0..copy,
            };
            assert_eq!(repaired[other.clone()], image[other]);
        }
        Err(_) => assert!(!fits || !whole),
    }

    let mut replaced = image.clone();
    let mut new = header.clone();
    match copies::replace(&mut replaced, found, &mut new) {
        Ok(()) => {
            let again = copies::read(&replaced).expect("a rewritten header is read");
            assert!(again.is_whole() && again.header == new);
            assert!(new.binary.seqid > header.binary.seqid);
            assert_eq!(new.metadata, header.metadata);
        }
        Err(_) => assert!(!fits || !whole || replaced == *image),
    }
}

/// What sealblk takes the header for.
fn check_meaning(image: &Vec<u8>, found: &Found) {
    let path = Path::new("volume");
    let description = match Description::of(&found.header, path) {
        Ok(description) => description,
        Err(error) => return drop(format!("{error} {:?} {:?}", error.kind(), error.help())),
    };
    let layout = description.layout;
    let unit = layout.sector_size.bytes() as u64;
    assert!(layout.size > 0 && layout.size % unit == 0);
    assert!(layout.data_offset == 0 || layout.data_offset >= description.header_area);
    assert!(i64::try_from(layout.end()).is_ok());
    assert!(layout.iv_tweak.checked_add(layout.size / 512).is_some());

    let json = description.token.to_json().expect("a token is written");
    let again = Token::from_json(&json).expect("a token of ours is read");
    assert_eq!(again, description.token);

    if iterations(&found.header) <= ITERATIONS {
        let key: [u8; 64] = std::array::from_fn(|at| at as u8);
        let dek = Secret::copy_of(&key).expect("locked memory");
        let dek = Dek::try_from(dek).expect("two different keys");
        assert!(description.verify_dek(&dek, path).is_err());
    }

    let mut new = found.header.clone();
    new.metadata
        .replace_token(token::TYPE, json)
        .expect("there is one token");
    let mut replaced = image.clone();
    if copies::replace(&mut replaced, found, &mut new).is_ok() {
        let again = copies::read(&replaced).expect("a rewritten header is read");
        let again = Description::of(&again.header, path).expect("it means something");
        assert_eq!(again.token, description.token);
        assert_eq!(again.layout, layout);
    }
}

fn iterations(header: &Header) -> u64 {
    let digests = header.metadata.document().get("digests");
    digests
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|digests| digests.values())
        .filter_map(|digest| digest.get("iterations")?.as_u64())
        .max()
        .unwrap_or(0)
}

/// The same through a file, as `sealblk serve` and `volume repair` open it.
fn check_file(image: &[u8]) {
    FILE.set_len(0).expect("a shorter file");
    FILE.set_len(FILE_BYTES).expect("a sparse file");
    FILE.write_all_at(image, 0).expect("memory");
    let location = Location {
        data: format!("/proc/self/fd/{}", FILE.as_raw_fd()).into(),
        header: None,
    };
    let unchanged = || {
        let mut bytes = vec![0; image.len()];
        FILE.read_exact_at(&mut bytes, 0).expect("memory");
        bytes == image
    };
    if let Err(error) = Volume::open(&location, Access::ReadOnly) {
        drop(format!("{error} {:?} {:?}", error.kind(), error.help()));
    }
    assert!(unchanged(), "reading changed something");
    let Ok(mut volume) = Volume::open(&location, Access::ReadWrite) else {
        return;
    };
    assert!(volume.repaired().is_some() || unchanged());
    assert!(volume.layout().end() <= FILE_BYTES);
    let found = copies::read(&&*FILE).expect("it was just read");
    assert!(found.is_whole());
    let token = volume.token().clone();
    match volume.set_token(token.clone()) {
        Ok(()) => {
            drop(volume);
            let again = Volume::open(&location, Access::ReadWrite).expect("it was just written");
            assert_eq!(again.repaired(), None);
            assert_eq!(*again.token(), token);
        }
        Err(error) => drop(format!("{error} {:?} {:?}", error.kind(), error.help())),
    }
}
