//! Slots: the 16 384 parts into which a Redis Cluster divides its keys.

use std::sync::OnceLock;

/// How many slots there are. Source: the Redis Cluster specification.
pub(in crate::store::redis) const SLOTS: u16 = 16_384;

/// Returns the slot of a key: by its hash tag, the text between the first `{` and the next `}`, or
/// by all of it if there is no such text. Source: the Redis Cluster specification.
pub(in crate::store::redis) fn slot(name: &str) -> u16 {
    let tag = name.split_once('{').and_then(|(_, behind)| {
        let (tag, _) = behind.split_once('}')?;
        (!tag.is_empty()).then_some(tag)
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(name).as_bytes()) % SLOTS
}

/// Returns a hash tag that puts a key into this slot. Every version of this crate must return the
/// same: the counters of fences are found by it.
pub(in crate::store::redis) fn tag(slot: u16) -> &'static str {
    static TAGS: OnceLock<Vec<String>> = OnceLock::new();
    &TAGS.get_or_init(tags)[usize::from(slot % SLOTS)]
}

/// For each slot, the first number in base 36 that is in it.
fn tags() -> Vec<String> {
    let mut tags = vec![String::new(); usize::from(SLOTS)];
    let mut left = tags.len();
    for number in 0_u32.. {
        let tag = base36(number);
        let place = &mut tags[usize::from(slot(&tag))];
        if place.is_empty() {
            *place = tag;
            left -= 1;
        }
        if left == 0 {
            break;
        }
    }
    tags
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).expect("less than 36"));
        number /= 36;
        if number == 0 {
            break;
        }
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn keys_are_in_the_slots_that_the_specification_says() {
        // CLUSTER KEYSLOT of redis-server.
        for (name, expected) in [
            ("123456789", 0x31C3),
            ("foo", 12_182),
            ("{user1000}.following", 3_443),
            ("{user1000}.followers", 3_443),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
            ("foo{bar}{zap}", 5_061),
        ] {
            assert_eq!(slot(name), expected, "{name}");
        }
    }

    #[test]
    fn every_slot_has_a_tag_which_never_changes() {
        let mut all = Sha256::new();
        for number in 0..SLOTS {
            assert_eq!(slot(&format!("{{{}}}:fence", tag(number))), number);
            all.update(tag(number));
            all.update("\n");
        }
        let all: String = all
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            all,
            "310d5916719b3a0ad22a1c3725c8e111862ca55941e8ff28af8ce3a745e2b88c"
        );
    }
}
