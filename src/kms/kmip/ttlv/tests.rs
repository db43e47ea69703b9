//! The encoding against the examples of the specification, and against
//! whatever else there may be.

use proptest::prelude::*;

use super::*;

/// KMIP 1.4, section 9.1.2: the examples.
#[test]
fn the_examples_of_the_specification() {
    let tag = Tag(0x42_0020);
    let inner = vec![
        Item::new(Tag(0x42_0004), Value::Enumeration(254)),
        Item::new(Tag(0x42_0005), Value::Integer(255)),
    ];
    #[rustfmt::skip]
    let table: [(Value<'_>, &str); 10] = [
        (Value::Integer(8), "42002002000000040000000800000000"),
        (Value::LongInteger(123_456_789_000_000_000), "420020030000000801b69b4ba5749200"),
        (Value::BigInteger(&[0, 0, 0, 0, 3, 0xfd, 0x35, 0xeb, 0x6b, 0xc2, 0xdf, 0x46, 0x18, 0x08, 0, 0]),
            "42002004000000100000000003fd35eb6bc2df4618080000"),
        (Value::Enumeration(255), "4200200500000004000000ff00000000"),
        (Value::Boolean(true), "42002006000000080000000000000001"),
        (Value::Text("Hello World"), "420020070000000b48656c6c6f20576f726c640000000000"),
        (Value::Bytes(&[1, 2, 3]), "42002008000000030102030000000000"),
        (Value::DateTime(0x47da_67f8), "42002009000000080000000047da67f8"),
        (Value::Interval(864_000), "4200200a00000004000d2f0000000000"),
        (Value::Structure(inner),
            "42002001000000204200040500000004000000fe000000004200050200000004000000ff00000000"),
    ];
    for (value, hex) in table {
        let item = Item::new(tag, value);
        let bytes = hex::decode(hex).unwrap();
        assert_eq!(item.encode().unwrap()[..], bytes, "{item:?}");
        assert_eq!(decode(&bytes).unwrap(), item);
    }
}

#[test]
fn what_is_not_one_item_is_refused() {
    let nested = |levels: usize| {
        let mut item = Item::new(Tag(1), Value::Boolean(true));
        for _ in 0..levels {
            item = Item::structure(Tag(1), vec![item]);
        }
        item.encode().unwrap()
    };
    assert!(decode(&nested(DEPTH_MAX)).is_ok());
    assert_eq!(decode(&nested(DEPTH_MAX + 1)), Err(Malformed::Deep));
    // Far deeper than a stack.
    assert_eq!(decode(&nested(100)), Err(Malformed::Deep));
    #[rustfmt::skip]
    let table = [
        ("", Malformed::Short),
        ("42002002000000", Malformed::Short),
        ("420020020000000400000008", Malformed::Short),
        ("42002007ffffffff4141414141414141", Malformed::Short),
        ("4200200200000004000000080000000042", Malformed::Long),
        ("42002002000000080000000000000008", Malformed::Length { kind: 2, length: 8 }),
        ("4200200400000000", Malformed::Length { kind: 4, length: 0 }),
        ("42002004000000040000000000000000", Malformed::Length { kind: 4, length: 4 }),
        ("42002006000000080000000000000002", Malformed::Boolean),
        ("4200200700000001ff00000000000000", Malformed::Text),
        ("4200200000000000", Malformed::Type(0)),
        ("4200200c00000000", Malformed::Type(12)),
        // A structure that ends within its only item.
        ("42002001000000084200040500000004", Malformed::Short),
    ];
    for (hex, expected) in table {
        assert_eq!(decode(&hex::decode(hex).unwrap()), Err(expected), "{hex:?}");
    }
}

#[test]
fn bytes_are_never_shown() {
    let item = Item::structure(
        Tag(0x42_0043),
        vec![Item::new(Tag(0x42_0043), Value::Bytes(b"key material"))],
    );
    assert_eq!(
        format!("{item:?}"),
        "Item { tag: 420043, value: [Item { tag: 420043, value: 12 bytes }] }"
    );
}

/// A tree that owns its bytes, from which an [`Item`] borrows.
#[derive(Clone, Debug)]
enum Tree {
    Structure(Vec<(u32, Tree)>),
    Integer(i32),
    LongInteger(i64),
    BigInteger(Vec<u8>),
    Enumeration(u32),
    Boolean(bool),
    Text(String),
    Bytes(Vec<u8>),
    DateTime(i64),
    Interval(u32),
    DateTimeExtended(i64),
}

impl Tree {
    fn item(&self, tag: u32) -> Item<'_> {
        let value = match self {
            Tree::Structure(items) => {
                Value::Structure(items.iter().map(|(tag, tree)| tree.item(*tag)).collect())
            }
            Tree::Integer(number) => Value::Integer(*number),
            Tree::LongInteger(number) => Value::LongInteger(*number),
            Tree::BigInteger(bytes) => Value::BigInteger(bytes),
            Tree::Enumeration(number) => Value::Enumeration(*number),
            Tree::Boolean(yes) => Value::Boolean(*yes),
            Tree::Text(text) => Value::Text(text),
            Tree::Bytes(bytes) => Value::Bytes(bytes),
            Tree::DateTime(number) => Value::DateTime(*number),
            Tree::Interval(number) => Value::Interval(*number),
            Tree::DateTimeExtended(number) => Value::DateTimeExtended(*number),
        };
        Item::new(Tag(tag), value)
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        any::<i32>().prop_map(Tree::Integer),
        any::<i64>().prop_map(Tree::LongInteger),
        prop::collection::vec(any::<[u8; 8]>(), 1..4).prop_map(|w| Tree::BigInteger(w.concat())),
        any::<u32>().prop_map(Tree::Enumeration),
        any::<bool>().prop_map(Tree::Boolean),
        ".{0,20}".prop_map(Tree::Text),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Tree::Bytes),
        any::<i64>().prop_map(Tree::DateTime),
        any::<u32>().prop_map(Tree::Interval),
        any::<i64>().prop_map(Tree::DateTimeExtended),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop::collection::vec((0..0x0100_0000u32, inner), 0..6).prop_map(Tree::Structure)
    })
}

/// Bytes that look like TTLV more often than by chance.
fn nearly_ttlv() -> impl Strategy<Value = Vec<u8>> {
    let item = (
        any::<u8>(),
        0..13u8,
        0..24u8,
        prop::collection::vec(any::<u8>(), 0..24),
    );
    prop::collection::vec(item, 0..12).prop_map(|items| {
        let mut bytes = Vec::new();
        for (tag, kind, length, value) in items {
            bytes.extend_from_slice(&[0x42, 0, tag, kind, 0, 0, 0, length]);
            bytes.extend_from_slice(&value);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(tree in tree(), tag in 0..0x0100_0000u32) {
        let item = tree.item(tag);
        let bytes = item.encode().unwrap();
        prop_assert_eq!(bytes.len(), item.encoded_len());
        prop_assert_eq!(decode(&bytes).unwrap(), item);
    }

    #[test]
    fn an_end_that_is_missing_is_noticed(tree in tree(), cut in any::<prop::sample::Index>()) {
        let bytes = tree.item(7).encode().unwrap();
        prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]), Err(Malformed::Short));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn what_is_accepted_is_written_back_as_long_as_it_was(bytes in nearly_ttlv()) {
        if let Ok(item) = decode(&bytes) {
            let again = item.encode().unwrap();
            prop_assert_eq!(again.len(), bytes.len());
            prop_assert_eq!(decode(&again).unwrap(), item);
        }
    }

    #[test]
    fn a_changed_message_is_decoded_or_refused(
        tree in tree(),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
    ) {
        let mut bytes = tree.item(7).encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = decode(&bytes);
    }
}
