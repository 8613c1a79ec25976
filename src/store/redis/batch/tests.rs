//! Names, messages and replies.

use super::*;

fn queue(lock_name: &str) -> String {
    let mut name = lock_name.to_owned();
    write_queue_name(&mut name);
    name
}

#[test]
fn a_queue_lies_in_the_slot_of_its_lock_and_outside_of_the_names_of_locks() {
    assert_eq!(queue("lock:a"), "{lock:a}:queue");
    assert_eq!(queue("lock:{u}1"), "{u}:queue:lock:{u}1");
    assert_eq!(queue("lock:{}1"), "{}:queue:lock:{}1");
}

#[test]
fn a_record_is_named_as_no_lock_and_no_queue_is() {
    let name = |key: &LockKey| lock_name("lock:", key);
    let record = LockKey::record(["a{b}", "c"]).unwrap();
    assert_eq!(name(&record), "{lock:a%7Bb%7D:c}:record");
    assert_eq!(
        queue(&name(&record)),
        "{lock:a%7Bb%7D:c}:queue:{lock:a%7Bb%7D:c}:record"
    );
    assert_eq!(key_of("lock:", &name(&record)), Some(record.clone()));
    let part = part_name("lock:", &record, &Uuid::from_u128(0xa), 12);
    assert_eq!(
        part,
        "{lock:a%7Bb%7D:c}:part:0000000000000000000000000000000a:12"
    );
    assert_eq!(key_of("lock:", &part), None);
    for text in ["a:c", "{lock:a:c}:record", "a:c}:record"] {
        let lock = LockKey::new(text).unwrap();
        assert_eq!(name(&lock), format!("lock:{text}"));
        assert_eq!(key_of("lock:", &name(&lock)), Some(lock));
    }
    let record = LockKey::record(["a:c"]).unwrap();
    assert!(record != LockKey::new(record.as_str()).unwrap());
    assert_eq!(key_of("lock:", "{lock:a"), None);
    assert_eq!(key_of("lock:", "{other:a}:record"), None);
}

#[test]
fn keys_with_braces_cannot_reach_the_queue_of_another() {
    let locks = [
        "lock:{lock:x}:queue",
        "lock:x}:queue:lock:{lock:x",
        "lock:{}:queue:lock:x",
        "lock:x",
        "lock:{lock:x}",
    ];
    let mut names: Vec<String> = locks.iter().map(|lock| queue(lock)).collect();
    names.extend(locks.map(str::to_owned));
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn messages_are_read_and_nonsense_is_passed_over() {
    let key = LockKey::new("a:b").unwrap();
    let after = Some(Time::from_nanos(5));
    let granted = Granted {
        token: 12,
        fence: 1_795_000_000_000_000,
        ttl: Duration::from_millis(300),
        contended: true,
        after,
    };
    assert_eq!(
        message("lock:", b"g12:1795000000000000:300:1:lock:a:b", after),
        Some((key.clone(), Notice::Granted(granted)))
    );
    assert_eq!(
        message("lock:", b"w7:lock:a:b", after),
        Some((key, Notice::Contended { token: 7 }))
    );
    let record = LockKey::record(["a", "b"]).unwrap();
    assert_eq!(
        message("lock:", b"c7:{lock:a:b}:record", after),
        Some((record, Notice::Changed))
    );
    for nonsense in [
        &b"g:lock:a"[..],
        b"w7:other:a",
        b"x1:lock:a",
        b"\xff",
        b"",
        b"w7:lock:",
        b"g7:lock:a",
        b"g7:1:300:1:other:a",
        b"g7:1:lock:a",
        b"g7:9007199254740993:300:1:lock:a",
    ] {
        assert_eq!(message("lock:", nonsense, None), None);
    }
}

const ACQUIRE: Command<(), ()> = Command::Acquire {
    token: 1,
    queue: true,
    watch: false,
    again: false,
};
const RELEASE: Command<(), ()> = Command::Release {
    token: 1,
    contended: false,
    reply: (),
};
const COMPLETE: Command<(), ()> = Command::Complete {
    token: 1,
    record: (),
    reply: (),
};
const RENEW: Command<(), ()> = Command::Renew { token: 1 };
pub(super) const COMMANDS: [Command<(), ()>; 4] = [ACQUIRE, RELEASE, COMPLETE, RENEW];

#[test]
fn replies_say_what_the_script_means() {
    let means = |command, returned| reply(&command, returned).unwrap();
    let held = |remaining: Option<u64>, foreign| Reply::HeldElsewhere {
        remaining: remaining.map(Duration::from_millis),
        foreign,
    };
    assert_eq!(means(ACQUIRE, -(5 + 2 * 70)), held(Some(70), false));
    assert_eq!(means(ACQUIRE, -6), held(Some(0), true));
    assert_eq!(means(ACQUIRE, -(5 - 2)), held(None, false));
    assert_eq!(means(ACQUIRE, -(5 - 2 + 1)), held(None, true));
    assert_eq!(
        means(ACQUIRE, 2 * 9 + 1),
        Reply::Acquired {
            fence: 9,
            contended: true
        }
    );
    assert_eq!(means(RENEW, 2), Reply::Renewed { contended: false });
    assert_eq!(means(RENEW, 1), Reply::Gone);
    for (returned, had_it, granted) in [
        (1, false, false),
        (2, true, false),
        (3, false, true),
        (4, true, true),
    ] {
        let released = Reply::Released { had_it, granted };
        assert_eq!(means(RELEASE, returned), released);
    }
}

/// Reads the script's reply to one command.
fn one(key: &LockKey, command: Command<(), ()>, returned: Value) -> Option<Result<Reply, Failure>> {
    let mut replies = replies([(key, &command)].into_iter(), returned).ok()?;
    assert_eq!(replies.len(), 1);
    replies.pop()
}

#[test]
fn a_reply_that_the_script_does_not_document_is_refused() {
    let lock = LockKey::new("a").unwrap();
    let record = LockKey::record(["a"]).unwrap();
    let too_much = 2 * (MAX_FENCE as i64 + 1);
    for command in COMMANDS {
        let refuses = |reply: Value| one(&lock, command, reply).is_none();
        assert!(refuses(Value::Nil));
        assert!(refuses(Value::Int(2)));
        assert!(refuses(Value::Array(vec![])));
        for value in [
            Value::Nil,
            Value::BulkString(b"x".to_vec()),
            Value::SimpleString("OK".to_owned()),
            Value::Array(vec![Value::Int(2)]),
            Value::Double(2.0),
            Value::Int(too_much),
            Value::Int(i64::MAX),
        ] {
            assert!(refuses(Value::Array(vec![value])), "{command:?}");
        }
        // Only a text may follow the replies.
        assert!(refuses(Value::Array(vec![Value::Int(2); 2])));
    }
    let refuses = |key, command, replies: &[i64]| {
        replies
            .iter()
            .all(|reply| one(key, command, Value::Array(vec![Value::Int(*reply)])).is_none())
    };
    for key in [&lock, &record] {
        assert!(refuses(key, ACQUIRE, &[1]));
    }
    assert!(refuses(&lock, RELEASE, &[-1, -2, 5, 6]));
    assert!(refuses(&lock, COMPLETE, &[-1, -2, 3]));
    assert!(refuses(&lock, RENEW, &[-1, -2, -3, i64::MIN, 4]));
    for command in [RELEASE, COMPLETE, RENEW] {
        let text = Value::Array(vec![Value::BulkString(b"x".to_vec())]);
        assert!(one(&record, command, text).is_none());
    }
}

#[test]
fn an_error_says_whether_the_token_has_got_something() {
    let key = LockKey::new("a").unwrap();
    let failure = |command, reply| {
        let reason = Value::BulkString(b"OOM".to_vec());
        let reply = Value::Array(vec![Value::Int(reply), reason]);
        one(&key, command, reply).unwrap().unwrap_err()
    };
    for command in COMMANDS {
        let failure = failure(command, 0);
        assert!(!failure.unknown && failure.error.to_string().contains("OOM"));
    }
    assert!(failure(ACQUIRE, -2).unknown);
    assert!(!failure(ACQUIRE, -1).unknown, "quarantined");
}
