use proptest::collection::vec;
use proptest::prelude::*;

use super::tests::manifest;
use super::*;

proptest! {
    #[test]
    fn what_was_written_is_read(id: u128, length in 0..=MAX_RECORD, each in 1..=usize::MAX >> 32, byte: u8) {
        let manifest = manifest(id, length, each, byte);
        prop_assert_eq!(Manifest::decode(&manifest.encode()), Some(Ok(manifest)));
    }

    #[test]
    fn whatever_begins_like_a_manifest_is_one_or_damaged(version in 0_u8..4, rest in vec(any::<u8>(), 55..65)) {
        let bytes = [MAGIC, &[version], &rest].concat();
        match Manifest::decode(&bytes).unwrap() {
            Ok(manifest) => prop_assert_eq!(&manifest.encode()[..], &bytes[..]),
            Err(Damage::Version(read)) => prop_assert!(read == version && version > VERSION),
            Err(damage) => prop_assert_eq!(damage, Damage::Corrupt),
        }
    }

    #[test]
    fn the_parts_are_the_whole_record(length in 0..2000_usize, each in 1..300_usize) {
        let parts = manifest(0, length, each, 0).parts;
        let mut end = 0;
        for range in parts.ranges() {
            prop_assert_eq!(range.start, end);
            prop_assert!(!range.is_empty() && range.len() <= each);
            end = range.end;
        }
        prop_assert_eq!(end, length);
        prop_assert_eq!(parts.ranges().count(), parts.count());
    }
}
