//! [`SlotMap`]: which primary has which slots.

use redis::Value;

use super::slots::SLOTS;

/// The primaries of a cluster, and their slots.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SlotMap {
    pub(super) primaries: Vec<Primary>,
    /// For each slot, the place of its primary. `None`: no primary has the slot.
    owners: Vec<Option<usize>>,
}

/// A primary, as the cluster tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Primary {
    pub(super) id: String,
    pub(super) host: String,
    pub(super) port: u16,
}

impl SlotMap {
    /// Reads the reply to `CLUSTER SLOTS` of the server that was `asked`. A server that does not
    /// know its own host's name leaves it out: it is the one that was asked for.
    pub(super) fn read(reply: &Value, asked: &str) -> Option<Self> {
        let mut map = Self {
            primaries: Vec::new(),
            owners: vec![None; usize::from(SLOTS)],
        };
        for range in array(reply)? {
            let [first, last, primary, ..] = array(range)? else {
                return None;
            };
            let (first, last) = (slot_number(first)?, slot_number(last)?);
            let [host, port, id, ..] = array(primary)? else {
                return None;
            };
            let host = match host {
                Value::Nil => "",
                host => text(host)?,
            };
            let primary = Primary {
                id: text(id)?.to_owned(),
                // Redis 7 says `?` where hosts are told by names, and has none.
                host: if matches!(host, "" | "?") {
                    asked
                } else {
                    host
                }
                .to_owned(),
                port: number(port)?.try_into().ok()?,
            };
            let known = map.primaries.iter().position(|known| *known == primary);
            let place = known.unwrap_or_else(|| {
                map.primaries.push(primary);
                map.primaries.len() - 1
            });
            map.owners.get_mut(first..=last)?.fill(Some(place));
        }
        (!map.primaries.is_empty()).then_some(map)
    }

    /// Returns the place of the primary of each slot.
    pub(super) fn owners(&self) -> impl Iterator<Item = Option<usize>> {
        self.owners.iter().copied()
    }

    /// Returns the slot of this primary in which lies what is not about a single lock: one that
    /// all processes choose, and that seldom changes when slots move.
    pub(super) fn home_of(&self, place: usize) -> u16 {
        let id = self.primaries[place].id.as_bytes();
        let owned = (0..SLOTS).filter(|slot| self.owners[usize::from(*slot)] == Some(place));
        let rank = |slot: &u16| {
            let mut hash = crc32fast::Hasher::new();
            hash.update(&slot.to_be_bytes());
            hash.update(id);
            hash.finalize()
        };
        owned.min_by_key(rank).unwrap_or_default()
    }
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

fn slot_number(value: &Value) -> Option<usize> {
    let slot = usize::try_from(number(value)?).ok()?;
    (slot < usize::from(SLOTS)).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn range(first: i64, last: i64, host: Value, id: &str) -> Value {
        let primary = Value::Array(vec![host, Value::Int(7000), bulk(id), Value::Array(vec![])]);
        let replica = Value::Array(vec![
            bulk("r"),
            Value::Int(7001),
            bulk("r"),
            Value::Array(vec![]),
        ]);
        Value::Array(vec![Value::Int(first), Value::Int(last), primary, replica])
    }

    #[test]
    fn a_primary_may_have_several_ranges_and_a_slot_no_primary() {
        let reply = Value::Array(vec![
            range(0, 9, bulk("a"), "1"),
            range(10, 19, bulk("b"), "2"),
            range(30, 39, bulk("a"), "1"),
        ]);
        let map = SlotMap::read(&reply, "asked").unwrap();
        assert_eq!(map.primaries.len(), 2);
        let owners: Vec<_> = map.owners().collect();
        assert_eq!(
            (owners[0], owners[19], owners[20], owners[39]),
            (Some(0), Some(1), None, Some(0))
        );
    }

    #[test]
    fn a_host_that_is_left_out_is_the_one_that_was_asked() {
        for host in [Value::Nil, bulk(""), bulk("?")] {
            let map =
                SlotMap::read(&Value::Array(vec![range(0, 16_383, host, "1")]), "asked").unwrap();
            assert_eq!(map.primaries[0].host, "asked");
        }
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for reply in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(9, 16_384, bulk("a"), "1")]),
            Value::Array(vec![range(-1, 5, bulk("a"), "1")]),
            Value::Array(vec![range(9, 5, bulk("a"), "1")]),
        ] {
            assert_eq!(SlotMap::read(&reply, "asked"), None, "{reply:?}");
        }
    }
}
