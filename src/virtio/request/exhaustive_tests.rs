//! The arithmetic of the parser at every edge, and every short chain there is.

use super::*;

/// Numbers around an edge, wrapped.
fn near(edge: u64) -> impl Iterator<Item = u64> {
    (0..12u64).flat_map(move |step| [edge.wrapping_add(step), edge.wrapping_sub(step)])
}

/// 12 capacities, 240 sectors and 384 lengths around each power of two where
/// something could overflow, in both units: 2.2 million cases against 128 bits.
#[test]
fn an_extent_is_on_the_disk_for_all_numbers_near_an_edge() {
    let edges = [
        0,
        40,
        1 << 32,
        1 << 54,
        1 << 55,
        u64::MAX / 512,
        1 << 63,
        i64::MAX as u64,
        u64::MAX,
        u64::MAX - 4096,
    ];
    let sectors: Vec<u64> = edges.into_iter().flat_map(near).collect();
    let lengths = [0, 512, 4096, 40 * 512, 1 << 32, 1 << 63, u64::MAX];
    let mut bytes: Vec<u64> = lengths.into_iter().flat_map(near).collect();
    bytes.extend((0..48).map(|sectors| sectors * 512));
    bytes.extend((0..48).map(|units| units * 4096));
    bytes.extend((0..120).map(|step| u64::from(u32::MAX) - 60 * 512 + step * 512));
    let capacities = [
        0,
        1,
        7,
        8,
        9,
        39,
        40,
        1 << 32,
        (1 << 54) - 1,
        1 << 54,
        1 << 55,
        u64::MAX,
    ];
    let mut good = 0u64;
    for sector_size in [SectorSize::B512, SectorSize::B4096] {
        let unit = sector_size.bytes() as u128;
        for capacity in capacities {
            let limits = Limits {
                capacity,
                sector_size,
                read_only: false,
                discard: true,
            };
            for &sector in &sectors {
                for &bytes in &bytes {
                    let (start, len) = (u128::from(sector) * 512, u128::from(bytes));
                    let fits = len > 0
                        && len % unit == 0
                        && start % unit == 0
                        && start + len <= u128::from(capacity) * 512;
                    let extent = limits.extent(Sector(sector), bytes);
                    assert_eq!(extent.is_ok(), fits, "{sector} {bytes} {capacity} {unit}");
                    if let Ok(extent) = extent {
                        assert_eq!((extent.sector.0, extent.bytes), (sector, bytes));
                        good += 1;
                    }
                }
            }
        }
    }
    assert!(good > 1000, "{good} that fit");
}

/// Each chain of up to four descriptors of seven kinds, as each request, at two
/// sectors, in the ring and in a table, ended well; those of one and two also with loops and bad links: 79,184 cases.
#[test]
fn every_short_chain_is_as_the_model_says() {
    let part = |writable, address, len| Part {
        writable,
        address,
        len,
    };
    let alphabet = [
        part(false, DATA + 0x7f00, 16),
        part(false, DATA + 0x100, 512),
        // Across the seam of two regions.
        part(false, DATA + DATA_BYTES - 8, 16),
        part(true, DATA + 0x7e00, 1),
        part(true, DATA + DATA_BYTES - 100, 513),
        part(false, u64::MAX - 7, 8),
        part(true, 1 << 40, 512),
    ];
    let mut range = 2u64.to_le_bytes().to_vec();
    range.extend(3u32.to_le_bytes());
    range.extend(0u32.to_le_bytes());
    let limits = Limits {
        capacity: CAPACITY,
        sector_size: SectorSize::B512,
        read_only: false,
        discard: true,
    };
    let memory = memory();
    let mut segments = Vec::with_capacity(MAX_SEGMENTS);
    let (mut cases, mut good) = (0u32, 0u32);
    for len in 1..=4u32 {
        for word in 0..(alphabet.len() as u32).pow(len) {
            let letter = |at| (word / 7u32.pow(at) % 7) as usize;
            let parts: Vec<Part> = (0..len).map(|at| alphabet[letter(at)].clone()).collect();
            for kind in [0, 1, 4, 8, 11, 13, 99] {
                for (sector, indirect, end) in [
                    (0, false, End::Well),
                    (CAPACITY - 1, true, End::Well),
                    (CAPACITY, false, End::Well),
                    (u64::MAX, true, End::Well),
                    (0, false, End::At(0)),
                    (0, true, End::At(19)),
                ] {
                    // A loop is longer than the model follows.
                    if matches!(end, End::At(_)) && len > 2 {
                        continue;
                    }
                    let case = Case {
                        parts: parts.clone(),
                        end,
                        indirect,
                        kind,
                        sector,
                        payload: range.clone(),
                        limits,
                    };
                    give(&case, &memory);
                    let wanted = expected(&case, &memory);
                    let parsed = run(&case, &memory, &mut segments);
                    let got = parsed.request.map(|request| match request {
                        Request::Read(extent) | Request::Write(extent) => vec![extent],
                        Request::Discard(extents) | Request::WriteZeroes(extents) => {
                            extents.to_vec()
                        }
                        Request::Flush | Request::GetId => vec![],
                    });
                    let pairs = |list: Vec<Extent>| -> Vec<(u64, u64)> {
                        list.iter().map(|it| (it.sector.0, it.bytes)).collect()
                    };
                    let got = got.map(pairs);
                    assert_eq!(got, wanted, "{case:?}");
                    cases += 1;
                    good += u32::from(got.is_ok());
                }
            }
        }
    }
    assert!(cases > 70_000 && good > 100, "{good} of {cases}");
}
