use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn joined_keys_are_equal_only_if_their_parts_are(
        a in prop::collection::vec("[ab:%{}\r]{1,3}", 1..4),
        b in prop::collection::vec("[ab:%{}\r]{1,3}", 1..4),
    ) {
        let equal = LockKey::join(&a).unwrap() == LockKey::join(&b).unwrap();
        prop_assert_eq!(equal, a == b);
    }
}
