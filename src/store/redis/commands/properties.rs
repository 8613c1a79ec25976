//! Replies of any form, and calls of any commands.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::fits::fits;
use super::tests::{commands, error, lock, record, settings, words_of};
use super::*;

const SEED: u64 = 1_000;
const OTHER: &[u8] = b"0000000000000000000000000000000b:9";
const EPOCH: &[u8] = b"e";

/// A command, by its place among all kinds, for a lock or a record.
#[derive(Clone, Copy, Debug)]
struct Kinds {
    command: usize,
    is_record: bool,
    is_repeated: bool,
}

fn kinds() -> impl Strategy<Value = Vec<Kinds>> {
    let kinds = (0..commands().len(), any::<bool>(), any::<bool>());
    let kinds = kinds.prop_map(|(command, is_record, is_repeated)| Kinds {
        command,
        is_record,
        is_repeated,
    });
    vec(kinds, 0..8)
}

fn servers() -> impl Strategy<Value = Server> {
    let facts = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    facts.prop_map(|(takes_with_get, watches, has_epoch, may_give)| Server {
        takes_with_get,
        watches,
        seed: SEED,
        epoch: has_epoch.then(|| Epoch {
            home: 0,
            name: "{lock:}:epoch".to_owned(),
            value: EPOCH.to_vec(),
        }),
        may_give,
    })
}

/// Makes the commands of a call.
struct Mix {
    settings: Settings,
    keys: [LockKey; 2],
    commands: Vec<Command>,
    kinds: Vec<Kinds>,
}

impl Mix {
    fn of(kinds: Vec<Kinds>) -> Self {
        Self {
            settings: settings(),
            keys: [lock(), record()],
            commands: commands(),
            kinds,
        }
    }

    fn sent(&self) -> impl Iterator<Item = Sent<'_>> + Clone {
        self.kinds.iter().map(|kinds| Sent {
            key: &self.keys[usize::from(kinds.is_record)],
            command: &self.commands[kinds.command],
            is_repeated: kinds.is_repeated,
            moving: None,
        })
    }

    fn call(&self, server: &Server) -> Call {
        self.call_after(server, false)
    }

    fn call_after(&self, server: &Server, seeded: bool) -> Call {
        let seed = Seed {
            slot: 0,
            is_asking: false,
        };
        let ahead = Ahead {
            seeds: seeded.then_some(seed).into_iter().collect(),
            ..Ahead::default()
        };
        call(&self.settings, server, self.sent(), Scripts::ByHash, &ahead)
    }

    fn read(&self, server: &Server, values: &[Value]) -> Result<Replies, Unusable> {
        replies(&self.settings, server, self.sent(), values.to_vec())
    }
}

fn values() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        8 => -10_i64..10,
        1 => any::<i64>(),
        1 => (-4_i64..4).prop_map(|more| MAX_FENCE as i64 + more),
        4 => (0_i64..12).prop_map(|more| SEED as i64 + more),
    ];
    let text = prop_oneof![
        any::<Vec<u8>>(),
        Just(OTHER.to_vec()),
        Just(EPOCH.to_vec()),
        Just(b"0000000000000000000000000000000a:7".to_vec()),
    ];
    let code = select(&["OOM no", "READONLY no", "WRONGTYPE no", "ERR no", "x"][..]);
    let value = prop_oneof![
        12 => number.prop_map(Value::Int),
        6 => text.prop_map(Value::BulkString),
        4 => Just(Value::Nil),
        1 => any::<bool>().prop_map(Value::Boolean),
        1 => any::<f64>().prop_map(Value::Double),
        1 => any::<String>().prop_map(Value::SimpleString),
        4 => Just(Value::Okay),
        2 => code.prop_map(error),
    ];
    value.prop_recursive(2, 8, 5, |value| vec(value, 0..6).prop_map(Value::Array))
}

/// Returns a reply that Redis documents for a command with these words, or an error, by `choice`.
fn documented(words: &str, choice: usize, takes: usize) -> Value {
    let pick = |values: &[i64]| Value::Int(values[choice % values.len()]);
    let words: Vec<&str> = words.split(' ').collect();
    let can_fail = words[0] != "GET" && words[0] != "INCRBY";
    if can_fail && choice % 8 == 7 {
        return error(["OOM no", "READONLY no", "WRONGTYPE no"][choice % 3]);
    }
    match words[..] {
        ["SET", .., "GET", "PX", _] | ["GETRANGE", ..] if choice.is_multiple_of(2) => {
            Value::BulkString(OTHER.to_vec())
        }
        ["SET", .., "GET", "PX", _] => Value::Nil,
        ["SET", ..] if choice.is_multiple_of(2) => Value::Nil,
        ["SET", ..] | ["CLIENT", ..] => Value::Okay,
        ["GETRANGE", ..] => Value::BulkString(Vec::new()),
        ["EVALSHA", "acquire" | "share", ..] if choice.is_multiple_of(3) => {
            let (fence, waiting) = (SEED as usize + 1 + choice, choice % 2);
            let numbers = [fence, waiting].map(|number| Value::Int(number as i64));
            Value::Array(numbers.to_vec())
        }
        ["EVALSHA", "acquire" | "share", ..] => pick(&[-3, -4, -5, -120]),
        ["EVALSHA", "release", ..] => pick(&[1, 2, 3]),
        ["EVALSHA", "grant", ..] => pick(&[1, 2, 3, 4]),
        ["EVALSHA", "renew" | "renew_shared", ..] => pick(&[1, 2, 3]),
        ["EVALSHA", "complete", ..] => pick(&[1, 2]),
        ["EXISTS", _] => pick(&[0, 1]),
        // Other processes count, too.
        ["INCRBY", _, _] => Value::Int((SEED as usize + takes + choice % 3) as i64),
        ["GET", _] => Value::BulkString(EPOCH.to_vec()),
        ["PING"] => Value::SimpleString("PONG".to_owned()),
        _ => panic!("{words:?}"),
    }
}

/// Returns a documented reply to each command of a call that has one.
fn all_documented(call: &Call, choices: &[usize]) -> Vec<Value> {
    let words = words_of(call);
    let counted = words.iter().find(|words| words.starts_with("INCRBY"));
    let takes = counted.map_or(0, |words| {
        words.rsplit(' ').next().unwrap().parse().unwrap()
    });
    let replies = words.iter().skip(call.skipped).zip(choices.iter().cycle());
    let replies = replies.map(|(words, choice)| documented(words, *choice, takes));
    replies.collect()
}

fn choices() -> impl Strategy<Value = Vec<usize>> {
    vec(0..1000_usize, 16)
}

proptest! {
    #[test]
    fn whatever_redis_returns_a_reply_fits_its_command(
        kinds in kinds(),
        server in servers(),
        choices in choices(),
        changes in vec((any::<Index>(), values()), 0..4),
        is_documented in any::<bool>(),
        others in vec(values(), 0..12),
    ) {
        let mix = Mix::of(kinds);
        let mut returned = others;
        if is_documented {
            returned = all_documented(&mix.call(&server), &choices);
            for (at, value) in changes {
                let at = at.index(returned.len());
                returned[at] = value;
            }
        }
        if let Ok(replies) = mix.read(&server, &returned) {
            prop_assert_eq!(replies.said.len(), mix.kinds.len());
            for (sent, said) in mix.sent().zip(&replies.said) {
                let fits = fits(sent.key, sent.command, said);
                prop_assert!(fits, "{:?}: {:?}", sent.command, said.result);
            }
        }
    }

    #[test]
    fn a_call_has_as_many_replies_as_it_announces(
        kinds in kinds(),
        server in servers(),
        choices in choices(),
        seeded in any::<bool>(),
    ) {
        let mix = Mix::of(kinds);
        let call = mix.call_after(&server, seeded);
        prop_assert_eq!(call.pipeline.cmd_iter().count(), call.skipped + call.replies);
        let mut returned = all_documented(&call, &choices);
        prop_assert_eq!(returned.len(), call.replies);
        prop_assert!(mix.read(&server, &returned).is_ok());
        returned.push(Value::Int(2));
        prop_assert!(matches!(mix.read(&server, &returned), Err(Unusable::Unexpected)));
        returned.truncate(call.replies - 1);
        prop_assert!(matches!(mix.read(&server, &returned), Err(Unusable::Unexpected)));
    }

    #[test]
    fn all_that_won_share_out_the_block_of_fences_in_order(
        kinds in kinds(),
        server in servers(),
        choices in choices(),
    ) {
        let mix = Mix::of(kinds);
        let call = mix.call(&server);
        let returned = all_documented(&call, &choices);
        let said = mix.read(&server, &returned).ok().unwrap().said;
        let takes = mix.sent().filter(Sent::draws_fence).count() as u64;
        let last = returned.iter().rev().find_map(|value| match value {
            Value::Int(last) if takes > 0 => Some(*last as u64),
            _ => None,
        });
        let fences: Vec<u64> = mix
            .sent()
            .zip(&said)
            .filter_map(|(sent, said)| match said.result {
                Ok(Reply::Acquired { fence, .. }) if sent.draws_fence() => Some(fence),
                _ => None,
            })
            .collect();
        prop_assert!(fences.is_sorted_by(|one, next| one < next), "{:?}", fences);
        for fence in fences {
            let last = last.unwrap();
            prop_assert!(fence > SEED && fence > last - takes && fence <= last);
        }
    }

    #[test]
    fn a_script_that_redis_does_not_know_is_noticed_anywhere(
        kinds in kinds(),
        server in servers(),
        choices in choices(),
        at in any::<Index>(),
    ) {
        let mix = Mix::of(kinds);
        let mut returned = all_documented(&mix.call(&server), &choices);
        let at = at.index(returned.len());
        returned[at] = error("NOSCRIPT No matching script");
        prop_assert!(matches!(mix.read(&server, &returned), Err(Unusable::NoScript)));
    }

    #[test]
    fn a_fence_or_an_epoch_that_was_not_there_before_says_that_data_was_lost(
        kinds in kinds(),
        server in servers(),
        choices in choices(),
        below in 0..SEED,
    ) {
        let mix = Mix::of(kinds);
        let call = mix.call(&server);
        let words = words_of(&call).split_off(call.skipped);
        let returned = all_documented(&call, &choices);
        let with = |command: &str, value: Value| {
            let at = words.iter().position(|words| words.starts_with(command))?;
            let mut returned = returned.clone();
            returned[at] = value;
            Some(mix.read(&server, &returned))
        };
        let takes = mix.sent().filter(Sent::draws_fence).count() as u64;
        let fence = (SEED + takes).saturating_sub(1 + below);
        let drawn = |fence| Value::Array(vec![Value::Int(fence as i64), Value::Int(0)]);
        let reads = [
            with("INCRBY", Value::Int(fence as i64)),
            with("GET {lock:}", Value::BulkString(b"f".to_vec())),
            with("EVALSHA acquire", drawn(SEED - below)),
            with("EVALSHA share", drawn(SEED - below)),
        ];
        for read in reads.into_iter().flatten() {
            prop_assert!(matches!(read, Err(Unusable::LostData)));
        }
    }
}
