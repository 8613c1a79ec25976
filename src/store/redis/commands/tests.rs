//! The words of each command, and what each reply means.

use redis::{Arg, ServerError};
use uuid::Uuid;

use super::*;
use crate::clock::Time;
use crate::store::Record;
use crate::store::redis::moving::Taken;
use crate::store::redis::names::Names;

const TOKEN: &str = "0000000000000000000000000000000a:7";
const OTHER: &str = "0000000000000000000000000000000b:9";
const SEED: u64 = 1_000;

pub(super) fn settings() -> Settings {
    Settings {
        names: Names::new("lock:".to_owned(), Uuid::from_u128(0xa)),
        instance: String::new(),
        ttl: Duration::from_millis(1000),
        grant_ttl: Duration::from_millis(300),
        command_timeout: Duration::from_millis(200),
        quarantine: true,
        min_replicas: 0,
    }
}

/// A server of this day, which tracks nothing and has no quarantine.
pub(in crate::store::redis) const SERVER: Server = Server {
    takes_with_get: true,
    watches: false,
    seed: SEED,
    epoch: None,
    may_give: true,
};

/// A server of the days before `SET` took `NX` and `GET` together.
const OLD: Server = Server {
    takes_with_get: false,
    ..SERVER
};

fn watching() -> Server {
    Server {
        watches: true,
        ..SERVER
    }
}

pub(super) fn quarantined() -> Server {
    Server {
        epoch: Some(Epoch {
            home: 0,
            name: "{lock:}:epoch".to_owned(),
            value: b"e".to_vec(),
        }),
        ..SERVER
    }
}

pub(super) static TAKE: Command = acquire(false, false, false);
static QUEUE: Command = acquire(true, false, false);
static WATCH: Command = acquire(true, true, true);
static RELEASE: Command = release(false, false);
static GRANT: Command = release(true, false);
static RENEW: Command = Command::Renew {
    token: 7,
    mode: Mode::Exclusive,
};
static SHARE: Command = share(true);
static RENEW_SHARED: Command = Command::Renew {
    token: 7,
    mode: Mode::Shared,
};
static CHECK: Command = Command::Check { token: 7 };

pub(super) const fn acquire(queue: bool, watch: bool, again: bool) -> Command {
    Command::Acquire {
        token: 7,
        mode: Mode::Exclusive,
        queue,
        watch,
        again,
    }
}

const fn share(queue: bool) -> Command {
    Command::Acquire {
        token: 7,
        mode: Mode::Shared,
        queue,
        watch: false,
        again: false,
    }
}

pub(super) const fn release(contended: bool, queued: bool) -> Command {
    Command::Release {
        token: 7,
        contended,
        queued,
        reply: None,
    }
}

pub(super) fn complete() -> Command {
    Command::Complete {
        token: 7,
        record: Record {
            content: "done".into(),
            retention: Duration::from_secs(60),
        },
        reply: None,
    }
}

/// Returns one command for each way, and more where a command has several forms.
pub(super) fn commands() -> Vec<Command> {
    vec![
        acquire(false, false, false),
        acquire(true, false, false),
        acquire(true, true, true),
        share(false),
        Command::Renew {
            token: 7,
            mode: Mode::Shared,
        },
        release(false, false),
        release(true, false),
        release(false, true),
        Command::Renew {
            token: 7,
            mode: Mode::Exclusive,
        },
        Command::Check { token: 7 },
        complete(),
    ]
}

pub(super) fn lock() -> LockKey {
    LockKey::new("a").unwrap()
}

pub(super) fn record() -> LockKey {
    LockKey::record(["a"]).unwrap()
}

fn sent<'a>(key: &'a LockKey, command: &'a Command) -> Sent<'a> {
    Sent {
        key,
        command,
        is_repeated: false,
        moving: None,
    }
}

fn text(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

/// Returns an error as a server sends it.
pub(super) fn error(line: &str) -> Value {
    let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
    assert!(matches!(value, Value::ServerError(ServerError { .. })));
    value
}

/// Returns the words of each command in a pipeline. The names of scripts stand for their hashes and
/// their sources.
pub(super) fn words_of(call: &Call) -> Vec<String> {
    let named = [
        ("acquire", &scripts::ACQUIRE),
        ("share", &scripts::SHARE),
        ("renew_shared", &scripts::RENEW_SHARED),
        ("release", &scripts::RELEASE),
        ("grant", &scripts::GRANT),
        ("renew", &scripts::RENEW),
        ("complete", &scripts::COMPLETE),
    ];
    let word = |arg: Arg<&[u8]>| {
        let Arg::Simple(word) = arg else {
            unreachable!("no command has a cursor");
        };
        let is_script = |(_, script): &&(_, &Script)| {
            word == script.source.as_bytes() || word == script.hash().as_bytes()
        };
        match named.iter().find(is_script) {
            Some((name, _)) => (*name).to_owned(),
            None => String::from_utf8(word.to_vec()).unwrap(),
        }
    };
    let words = |command: &Cmd| command.args_iter().map(word).collect::<Vec<_>>().join(" ");
    call.pipeline.cmd_iter().map(words).collect()
}

fn sends(server: &Server, all: &[Sent<'_>]) -> Vec<String> {
    let call = call(
        &settings(),
        server,
        all.iter().copied(),
        Scripts::ByHash,
        &Ahead::default(),
    );
    words_of(&call)
}

fn seed(is_asking: bool) -> Seed {
    Seed { slot: 0, is_asking }
}

fn call_with(all: &[Sent<'_>], ahead: &Ahead) -> Call {
    let sent = all.iter().copied();
    call(&settings(), &SERVER, sent, Scripts::ByHash, ahead)
}

fn sends_one(server: &Server, key: &LockKey, command: &Command) -> Vec<String> {
    sends(server, &[sent(key, command)])
}

#[test]
fn a_token_that_redis_has_not_seen_takes_by_one_command_of_redis_and_one_for_the_fence() {
    assert_eq!(
        sends_one(&SERVER, &lock(), &TAKE),
        [
            format!("SET lock:a {TOKEN} NX GET PX 1000"),
            "INCRBY {lock:}:fence 1".to_owned(),
        ]
    );
    assert_eq!(
        sends_one(&OLD, &record(), &TAKE),
        [
            format!("SET {{lock:a}}:record {TOKEN} NX PX 1000"),
            "GETRANGE {lock:a}:record 0 16384".to_owned(),
            "INCRBY {lock:}:fence 1".to_owned(),
        ]
    );
}

#[test]
fn any_other_acquire_goes_by_the_script() {
    let acquires = |key: &LockKey, sent: Sent<'_>, queue: u8| {
        let (lock, is_record) = match key.kind() {
            Kind::Lock => ("lock:a {lock:a}:queue {lock:a}:readers", 0),
            Kind::Record => (
                "{lock:a}:record {lock:a}:queue:{lock:a}:record {lock:a}:readers:{lock:a}:record",
                1,
            ),
        };
        let words = format!(
            "EVALSHA acquire 4 {lock} {{lock:}}:fence {TOKEN} 1000 lock:inbox: {SEED} {queue} \
             {is_record}"
        );
        assert_eq!(sends(&SERVER, &[sent]), [words]);
    };
    for key in [lock(), record()] {
        let repeated = Sent {
            is_repeated: true,
            ..sent(&key, &TAKE)
        };
        acquires(&key, sent(&key, &QUEUE), 1);
        acquires(&key, sent(&key, &WATCH), 1);
        acquires(&key, sent(&key, &acquire(false, false, true)), 0);
        acquires(&key, sent(&key, &acquire(false, true, false)), 0);
        acquires(&key, repeated, 0);
    }
}

#[test]
fn every_share_goes_by_a_script_and_so_does_its_renewal() {
    for (command, queue) in [(share(false), 0), (share(true), 1)] {
        let words = format!(
            "EVALSHA share 4 lock:a {{lock:a}}:queue {{lock:a}}:readers {{lock:}}:fence {TOKEN} 1000 \
             lock:inbox: {SEED} {queue}"
        );
        assert_eq!(sends_one(&SERVER, &lock(), &command), [words]);
    }
    // Nothing is read for Redis to track it: each renewal changes the lock.
    for server in [SERVER, watching()] {
        assert_eq!(
            sends_one(&server, &lock(), &RENEW_SHARED),
            [format!(
                "EVALSHA renew_shared 2 lock:a {{lock:a}}:readers {TOKEN} 1000"
            )]
        );
    }
}

#[test]
fn a_release_has_the_script_that_grants_where_processes_may_wait_or_the_token_may() {
    let releases = format!("EVALSHA release 1 lock:a {TOKEN}");
    assert_eq!(sends_one(&SERVER, &lock(), &RELEASE), [releases]);
    let grants = |may_give: u8| {
        format!(
            "EVALSHA grant 4 lock:a {{lock:a}}:queue {{lock:}}:fence {{lock:a}}:readers {TOKEN} 300 \
             lock:inbox: 1000 {may_give}"
        )
    };
    // The new holder hears of the grant before this process gets its reply.
    let ping = "PING".to_owned();
    for queued in [false, true] {
        assert_eq!(
            sends_one(&SERVER, &lock(), &release(true, queued)),
            [ping.clone(), grants(1)]
        );
    }
    assert_eq!(
        sends_one(&SERVER, &lock(), &release(false, true)),
        [grants(1)]
    );
    let quarantined = Server {
        may_give: false,
        ..SERVER
    };
    assert_eq!(sends_one(&quarantined, &lock(), &GRANT), [ping, grants(0)]);
}

#[test]
fn a_grant_that_is_not_the_first_command_needs_no_other_in_front() {
    let key = lock();
    let words = sends(&SERVER, &[sent(&key, &QUEUE), sent(&key, &GRANT)]);
    assert_eq!(words.len(), 2);
    assert!(words[0].starts_with("EVALSHA acquire") && words[1].starts_with("EVALSHA grant"));
    let words = sends(&SERVER, &[sent(&key, &GRANT), sent(&key, &QUEUE)]);
    assert_eq!((words.len(), words[0].as_str()), (3, "PING"));
    let ahead = Ahead {
        seeds: [seed(false)].into_iter().collect(),
        ..Ahead::default()
    };
    let all = [sent(&key, &GRANT), sent(&key, &TAKE)];
    let words = words_of(&call_with(&all, &ahead));
    assert!(words[0].starts_with("EVAL ") && words[1].starts_with("EVALSHA grant"));
}

#[test]
fn a_script_that_draws_a_fence_raises_the_counter_to_the_clock_where_that_is_due() {
    let key = lock();
    let all = [&QUEUE, &SHARE, &GRANT].map(|command| sent(&key, command));
    let floors = |ahead: &Ahead, floor: u64| {
        let words = words_of(&call_with(&all, ahead));
        let floor = format!(" lock:inbox: {floor} ");
        words.iter().filter(|words| words.contains(&floor)).count()
    };
    assert_eq!(floors(&Ahead::default(), SEED), 3);
    let behind = |slot| Ahead {
        behind: [slot].into_iter().collect(),
        ..Ahead::default()
    };
    assert_eq!(floors(&behind(0), MAX_FENCE), 3);
    assert_eq!(floors(&behind(1), SEED), 3);
}

#[test]
fn renewals_and_completions_have_a_script_each_and_a_check_reads() {
    assert_eq!(
        sends_one(&SERVER, &lock(), &RENEW),
        [format!("EVALSHA renew 1 lock:a {TOKEN} 1000")]
    );
    assert_eq!(
        sends_one(&SERVER, &record(), &complete()),
        [format!(
            "EVALSHA complete 2 {{lock:a}}:record {{lock:a}}:queue:{{lock:a}}:record {TOKEN} done \
             60000 lock:inbox:"
        )]
    );
    assert_eq!(
        sends_one(&SERVER, &lock(), &CHECK),
        ["GETRANGE lock:a 0 64"]
    );
}

#[test]
fn what_is_watched_is_read_behind_its_command_for_redis_to_track_it() {
    let tracked = |command: &Command| {
        let words = sends_one(&watching(), &lock(), command);
        let at = words.iter().position(|words| words == "CLIENT CACHING YES");
        at.map(|at| (at, words[at + 1].clone()))
    };
    let read = "GETRANGE lock:a 0 64".to_owned();
    assert_eq!(tracked(&WATCH), Some((1, "EXISTS lock:a".to_owned())));
    assert_eq!(tracked(&RENEW), Some((1, read.clone())));
    // Its own read would be the same.
    assert_eq!(tracked(&CHECK), Some((0, read)));
    for other in [&TAKE, &QUEUE, &RELEASE, &GRANT, &complete()] {
        assert_eq!(tracked(other), None);
    }
    assert_eq!(sends_one(&watching(), &lock(), &CHECK).len(), 2);
}

#[test]
fn a_call_counts_its_takes_once_and_asks_for_the_epoch_behind_them() {
    let (lock, record) = (lock(), record());
    let renew = format!("EVALSHA renew 1 lock:a {TOKEN} 1000");
    let all = [
        sent(&lock, &TAKE),
        sent(&lock, &RENEW),
        sent(&record, &QUEUE),
    ];
    let words = sends(&quarantined(), &all);
    assert_eq!(words.len(), 5);
    assert_eq!(words[1], renew);
    assert_eq!(words[3..], ["INCRBY {lock:}:fence 1", "GET {lock:}:epoch"]);
    // No lock is given by the others.
    assert_eq!(sends(&quarantined(), &[sent(&lock, &RENEW)]), [renew]);
}

#[test]
fn a_call_without_commands_looks_whether_the_server_is_there_and_has_its_data() {
    assert_eq!(sends(&SERVER, &[]), ["PING"]);
    assert_eq!(sends(&quarantined(), &[]), ["GET {lock:}:epoch"]);
}

#[test]
fn scripts_that_redis_has_forgotten_go_with_their_sources() {
    let (key, all) = (lock(), commands());
    let all = all.iter().map(|command| sent(&key, command));
    let by_hash = words_of(&call(
        &settings(),
        &SERVER,
        all.clone(),
        Scripts::ByHash,
        &Ahead::default(),
    ));
    let by_source = words_of(&call(
        &settings(),
        &SERVER,
        all,
        Scripts::BySource,
        &Ahead::default(),
    ));
    let expected: Vec<_> = by_hash
        .iter()
        .map(|words| words.replacen("EVALSHA ", "EVAL ", 1))
        .collect();
    assert_eq!(by_source, expected);
    assert_ne!(by_source, by_hash);
}

/// Reads the replies to one command, without the fence that is drawn behind a take.
fn said_by(
    server: &Server,
    key: &LockKey,
    command: &Command,
    mut values: Vec<Value>,
) -> Option<Said> {
    let sent = [sent(key, command)].into_iter();
    if sent.clone().any(|sent| sent.draws_fence()) {
        values.push(Value::Int(SEED as i64 + 1));
    }
    let mut replies = replies(&settings(), server, sent, values).ok()?;
    assert_eq!(replies.said.len(), 1);
    replies.said.pop()
}

fn one(key: &LockKey, command: &Command, value: Value) -> Option<Said> {
    said_by(&SERVER, key, command, vec![value])
}

fn means(key: &LockKey, command: &Command, value: Value) -> Reply {
    let said = one(key, command, value).unwrap();
    assert!(!said.is_to_be_granted && !said.is_changed && !said.is_of_no_use);
    said.result.unwrap()
}

fn acquired_first(contended: bool) -> Reply {
    Reply::Acquired {
        fence: SEED + 1,
        contended,
    }
}

/// What a script says that gave its token the lock: the fence that it drew, which is so much above
/// the seed, and whether processes wait.
fn drawn(above: i64, waiting: i64) -> Value {
    Value::Array(vec![Value::Int(SEED as i64 + above), Value::Int(waiting)])
}

fn held(remaining: Option<u64>, foreign: bool) -> Reply {
    Reply::HeldElsewhere {
        remaining: remaining.map(Duration::from_millis),
        foreign,
    }
}

#[test]
fn a_take_says_that_the_lock_was_free_or_what_is_there() {
    let means = |key: &LockKey, value| means(key, &TAKE, value);
    let marked = format!("{OTHER}!");
    for key in [lock(), record()] {
        assert_eq!(means(&key, Value::Nil), acquired_first(false));
        assert_eq!(means(&key, text(OTHER)), held(None, false));
        assert_eq!(means(&key, text(&marked)), held(None, false));
    }
    for other in [
        "",
        "x",
        "0a:7",
        &marked.replace(':', ""),
        &TOKEN.replace('0', "x"),
    ] {
        assert_eq!(means(&lock(), text(other)), held(None, true));
        let found = Reply::Recorded(other.to_owned().into());
        assert_eq!(means(&record(), text(other)), found);
    }
}

#[test]
fn a_take_in_two_commands_means_the_same() {
    let means = |key: &LockKey, taken, found| {
        let said = said_by(&OLD, key, &TAKE, vec![taken, found]).unwrap();
        said.result.unwrap()
    };
    for key in [lock(), record()] {
        assert_eq!(means(&key, Value::Okay, text(TOKEN)), acquired_first(false));
        // It was given, whatever the read says.
        assert_eq!(
            means(&key, Value::Okay, error("LOADING")),
            acquired_first(false)
        );
        assert_eq!(means(&key, Value::Nil, text(OTHER)), held(None, false));
    }
    assert_eq!(means(&lock(), Value::Nil, text("x")), held(None, true));
    for shared in ["shared", "shared!"] {
        let there = || text(shared);
        assert_eq!(means(&lock(), Value::Nil, there()), held(None, false));
        let record_of = Reply::Recorded(shared.as_bytes().to_vec().into());
        assert_eq!(means(&record(), Value::Nil, there()), record_of);
    }
    let found = Reply::Recorded("x".into());
    assert_eq!(means(&record(), Value::Nil, text("x")), found);
}

#[test]
fn a_lock_that_became_free_between_two_commands_is_no_record() {
    for key in [lock(), record()] {
        let said = said_by(&OLD, &key, &TAKE, vec![Value::Nil, text("")]).unwrap();
        assert_eq!(said.result.unwrap(), held(None, false));
    }
}

#[test]
fn replies_say_what_the_heads_of_the_scripts_say() {
    let key = lock();
    let means_all = means;
    let means = |command: &Command, number| means(&key, command, Value::Int(number));
    for command in [&QUEUE, &SHARE] {
        let means = |waiting| means_all(&key, command, drawn(1, waiting));
        assert_eq!(means(0), acquired_first(false));
        assert_eq!(means(1), acquired_first(true));
    }
    assert_eq!(means(&QUEUE, -(5 + 2 * 70)), held(Some(70), false));
    assert_eq!(means(&QUEUE, -(5 + 2 * 70 + 1)), held(Some(70), true));
    assert_eq!(means(&QUEUE, -5), held(Some(0), false));
    assert_eq!(means(&QUEUE, -(5 - 2)), held(None, false));
    assert_eq!(means(&QUEUE, -(5 - 2 + 1)), held(None, true));
    let released = |had_it, granted| Reply::Released { had_it, granted };
    assert_eq!(means(&RELEASE, 1), released(false, false));
    assert_eq!(means(&RELEASE, 2), released(true, false));
    assert_eq!(means(&GRANT, 1), released(false, false));
    assert_eq!(means(&GRANT, 2), released(true, false));
    assert_eq!(means(&GRANT, 3), released(false, true));
    assert_eq!(means(&GRANT, 4), released(true, true));
    assert_eq!(means(&SHARE, -(5 + 2 * 70)), held(Some(70), false));
    assert_eq!(means(&SHARE, -(5 - 2 + 1)), held(None, true));
    assert_eq!(means(&RENEW_SHARED, 1), Reply::Gone);
    assert_eq!(means(&RENEW_SHARED, 2), Reply::Renewed { contended: false });
    assert_eq!(means(&RENEW_SHARED, 3), Reply::Renewed { contended: true });
    assert_eq!(means(&RENEW, 1), Reply::Gone);
    assert_eq!(means(&RENEW, 2), Reply::Renewed { contended: false });
    assert_eq!(means(&RENEW, 3), Reply::Renewed { contended: true });
    assert_eq!(means(&complete(), 1), Reply::Gone);
    assert_eq!(means(&complete(), 2), Reply::Completed);
}

#[test]
fn a_release_that_finds_a_mark_is_to_be_granted() {
    assert!(
        one(&lock(), &RELEASE, Value::Int(3))
            .unwrap()
            .is_to_be_granted
    );
}

#[test]
fn a_record_in_the_locks_place_is_the_reply_to_an_acquire() {
    let found = means(&record(), &QUEUE, text("stored"));
    assert_eq!(found, Reply::Recorded("stored".into()));
}

#[test]
fn a_check_compares_with_and_without_the_mark() {
    let means = |value: &str| means(&lock(), &CHECK, text(value));
    assert_eq!(means(TOKEN), Reply::Intact);
    assert_eq!(means(&format!("{TOKEN}!")), Reply::Intact);
    for other in ["", OTHER, "x", &format!("{TOKEN}!!"), &format!("{TOKEN}0")] {
        assert_eq!(means(other), Reply::Gone);
    }
}

#[test]
fn a_reply_that_is_not_documented_is_refused() {
    let (lock, record) = (lock(), record());
    let refuses = |key, command: &Command, value: Value| one(key, command, value).is_none();
    for command in commands() {
        for key in [&lock, &record] {
            for value in [
                Value::SimpleString("QUEUED".to_owned()),
                Value::Array(vec![]),
                Value::Array(vec![Value::Int(2)]),
                Value::Double(2.0),
                Value::Boolean(true),
            ] {
                assert!(refuses(key, &command, value), "{command:?}");
            }
        }
    }
    for command in commands().iter().skip(1) {
        assert!(refuses(&lock, command, Value::Nil), "{command:?}");
        assert!(refuses(&lock, command, Value::Okay), "{command:?}");
    }
    assert!(refuses(&lock, &TAKE, Value::Int(1)));
    assert!(refuses(&lock, &TAKE, Value::Okay));
    assert!(refuses(&lock, &CHECK, Value::Int(1)));
    let refuses_all = |key, command: &Command, numbers: &[i64]| {
        let mut numbers = numbers.iter();
        numbers.all(|number| refuses(key, command, Value::Int(*number)))
    };
    for key in [&lock, &record] {
        for command in [&QUEUE, &SHARE] {
            assert!(refuses_all(key, command, &[0, -1, -2, 1, 2, 3, i64::MAX]));
            assert!(refuses(key, command, drawn(1, 2)));
            assert!(refuses(key, command, drawn(1, -1)));
        }
        assert!(refuses_all(key, &RELEASE, &[-1, 0, 4, i64::MIN]));
        assert!(refuses_all(key, &GRANT, &[-1, 0, 5, i64::MIN]));
        assert!(refuses_all(key, &RENEW, &[-1, 0, 4, i64::MIN]));
        assert!(refuses_all(key, &complete(), &[-1, 0, 3, i64::MIN]));
    }
    // Only an acquire of a record finds one.
    assert!(refuses(&lock, &QUEUE, text("x")));
    for command in [&RELEASE, &GRANT, &RENEW, &complete()] {
        assert!(refuses(&record, command, text("x")), "{command:?}");
    }
    let old = |taken, found| said_by(&OLD, &lock, &TAKE, vec![taken, found]);
    assert!(old(Value::Int(1), text(OTHER)).is_none());
    assert!(old(text(OTHER), text(OTHER)).is_none());
    assert!(old(Value::Nil, Value::Int(1)).is_none());
}

#[test]
fn an_error_says_whether_the_token_may_have_got_something() {
    let key = lock();
    let failure = |command: &Command, line| {
        let said = one(&key, command, error(line)).unwrap();
        (said.is_of_no_use, said.result.unwrap_err())
    };
    for command in commands() {
        let (is_of_no_use, failure) = failure(&command, "OOM command not allowed");
        let message = failure.error.to_string();
        assert!(message.contains("OOM command not allowed"), "{message}");
        // A script may have done something before it failed.
        let is_script = matches!(sent(&key, &command).way(), Way::Acquire | Way::Share);
        assert_eq!(failure.unknown, is_script, "{command:?}");
        assert!(!is_of_no_use);
    }
    // A replica writes nothing.
    assert!(!failure(&QUEUE, "READONLY You can't write").1.unknown);
    assert!(!failure(&QUEUE, &within_script("READONLY")).1.unknown);
}

/// Returns an error within a script, as Redis 6 tells it.
fn within_script(code: &str) -> String {
    format!(
        "ERR Error running script (call to f_a): @user_script:1: @user_script: 8: -{code} 1 a:1"
    )
}

#[test]
fn a_fence_is_drawn_behind_a_take_and_by_scripts_that_may_give_the_lock() {
    for (command, behind, by_script) in [
        (&TAKE, true, false),
        (&QUEUE, false, true),
        (&SHARE, false, true),
        (&GRANT, false, true),
        (&RELEASE, false, false),
        (&RENEW, false, false),
        (&RENEW_SHARED, false, false),
        (&CHECK, false, false),
        (&complete(), false, false),
    ] {
        let (key, expected) = (lock(), (behind, by_script));
        let sent = sent(&key, command);
        let drawn = (sent.draws_fence(), sent.may_draw_fence());
        assert_eq!(drawn, expected, "{command:?}");
    }
}

#[test]
fn an_error_that_holds_for_the_server_makes_the_connection_useless() {
    for code in [
        "READONLY",
        "LOADING",
        "MASTERDOWN",
        "NOAUTH",
        "NOPERM",
        "CLUSTERDOWN",
        "MOVED",
    ] {
        for line in [format!("{code} 1 a:1"), within_script(code)] {
            for command in commands() {
                let said = one(&lock(), &command, error(&line)).unwrap();
                assert!(
                    said.is_of_no_use && said.result.is_err(),
                    "{command:?}: {line}"
                );
            }
        }
    }
}

#[test]
fn a_winner_whose_fence_is_refused_gives_its_lock_back() {
    let (lock, record) = (lock(), record());
    let calls = [
        sent(&lock, &TAKE),
        sent(&record, &TAKE),
        sent(&lock, &RENEW),
    ];
    let values = vec![
        Value::Nil,
        text("stored"),
        Value::Int(2),
        error("READONLY no"),
    ];
    let replies = replies(&settings(), &SERVER, calls.into_iter(), values);
    let said = replies.ok().unwrap().said;
    assert!(said[0].result.as_ref().unwrap_err().unknown && said[0].is_of_no_use);
    let found = Reply::Recorded("stored".into());
    assert_eq!(*said[1].result.as_ref().unwrap(), found);
    assert!(said[2].result.is_ok());
}

#[test]
fn the_block_of_fences_is_shared_out_in_order_among_those_that_won() {
    let (lock, record) = (lock(), record());
    let mut all = [&lock, &record, &lock, &record, &lock, &lock].map(|key| sent(key, &TAKE));
    // This one has drawn its own.
    all[3] = sent(&record, &QUEUE);
    let values = vec![
        Value::Nil,
        text(OTHER),
        text("x"),
        drawn(1, 0),
        Value::Nil,
        Value::Nil,
        // Another process had counted, too.
        Value::Int(SEED as i64 + 9),
    ];
    let replies = replies(&settings(), &SERVER, all.into_iter(), values);
    let said = replies.ok().unwrap().said.into_iter();
    let fences: Vec<_> = said
        .map(|said| match said.result {
            Ok(Reply::Acquired { fence, .. }) => Some(fence - SEED),
            _ => None,
        })
        .collect();
    let expected = [Some(5), None, None, Some(1), Some(6), Some(7)];
    assert_eq!(fences, expected);
}

fn unusable(server: &Server, command: &Command, values: Vec<Value>) -> Option<Unusable> {
    let (key, settings) = (lock(), settings());
    let sent = [sent(&key, command)].into_iter();
    replies(&settings, server, sent, values).err()
}

#[test]
fn a_fence_that_is_not_above_the_seed_says_that_data_was_lost() {
    let fence = |fence: i64| unusable(&SERVER, &TAKE, vec![Value::Nil, Value::Int(fence)]);
    let seed = SEED as i64;
    for lost in [i64::MIN, -1, 0, 1, seed] {
        assert!(matches!(fence(lost), Some(Unusable::LostData)), "{lost}");
    }
    assert!(fence(seed + 1).is_none());
    assert!(fence(MAX_FENCE as i64).is_none());
    // Lua would not count it exactly.
    let too_much = fence(MAX_FENCE as i64 + 1);
    assert!(matches!(too_much, Some(Unusable::Unexpected)));
    // So does one that a script has drawn.
    for command in [&QUEUE, &SHARE] {
        let fence = |above| unusable(&SERVER, command, vec![drawn(above, 0)]);
        for lost in [-seed - 1, -seed, 0] {
            assert!(matches!(fence(lost), Some(Unusable::LostData)), "{lost}");
        }
        assert!(fence(1).is_none());
        let too_much = fence(MAX_FENCE as i64 + 1 - seed);
        assert!(matches!(too_much, Some(Unusable::Unexpected)));
    }
    // A lock that was not given says the same.
    let values = vec![text(OTHER), Value::Int(1)];
    let lost = unusable(&SERVER, &TAKE, values);
    assert!(matches!(lost, Some(Unusable::LostData)));
}

#[test]
fn another_epoch_says_that_data_was_lost() {
    let server = quarantined();
    let fence = Value::Int(SEED as i64 + 1);
    let epoch = |epoch| unusable(&server, &TAKE, vec![Value::Nil, fence.clone(), epoch]);
    assert!(epoch(text("e")).is_none());
    for other in [text("f"), text(""), Value::Nil, error("ERR no")] {
        assert!(matches!(epoch(other), Some(Unusable::LostData)));
    }
    let heartbeat = |value| {
        let replies = replies(&settings(), &server, [].into_iter(), vec![value]);
        replies.map(|replies| replies.said.len())
    };
    assert!(matches!(heartbeat(text("e")), Ok(0)));
    assert!(matches!(heartbeat(Value::Nil), Err(Unusable::LostData)));
}

#[test]
fn a_tracked_read_that_differs_is_told() {
    let read = |command: &Command, said, read| {
        let values = [said, Some(Value::Okay), Some(read)];
        let values = values.into_iter().flatten().collect();
        let said = said_by(&watching(), &lock(), command, values).unwrap();
        (said.result.unwrap(), said.is_changed)
    };
    let (held, renewed) = (held(Some(70), true), Reply::Renewed { contended: true });
    let number = |number| Some(Value::Int(number));
    let watch = |is_there| read(&WATCH, number(-(5 + 2 * 70 + 1)), Value::Int(is_there));
    assert_eq!(watch(1), (held.clone(), false));
    assert_eq!(watch(0), (held, true));
    // A lock that was taken has nothing to be watched for.
    let taken = read(&WATCH, Some(drawn(1, 0)), Value::Int(1));
    assert_eq!(taken, (acquired_first(false), false));
    let renew = |value| read(&RENEW, number(3), value);
    assert_eq!(renew(text(TOKEN)), (renewed.clone(), false));
    assert_eq!(renew(text(&format!("{TOKEN}!"))), (renewed.clone(), false));
    for other in [text(""), text(OTHER), error("WRONGTYPE no")] {
        assert_eq!(renew(other), (renewed.clone(), true));
    }
    assert_eq!(read(&RENEW, number(1), text("")), (Reply::Gone, false));
    assert_eq!(read(&CHECK, None, text(TOKEN)), (Reply::Intact, false));
    for other in [text(""), text(OTHER), error("WRONGTYPE no")] {
        assert_eq!(read(&CHECK, None, other), (Reply::Gone, false));
    }
}

#[test]
fn a_check_that_redis_refused_does_not_say_that_the_lock_is_gone() {
    for line in [
        "BUSY Redis is busy running a script",
        "LOADING",
        "NOPERM no",
    ] {
        for (server, before) in [(SERVER, None), (watching(), Some(Value::Okay))] {
            let values = before.into_iter().chain([error(line)]).collect();
            let said = said_by(&server, &lock(), &CHECK, values).unwrap();
            assert!(said.result.is_err(), "{line}: {:?}", said.result);
        }
    }
}

#[test]
fn a_server_that_refuses_to_track_is_noted() {
    let values = vec![Value::Int(2), error("ERR CLIENT CACHING"), text(TOKEN)];
    let (key, settings) = (lock(), settings());
    let sent = [sent(&key, &RENEW)].into_iter();
    let replies = replies(&settings, &watching(), sent, values).ok().unwrap();
    assert!(replies.no_tracking.is_some());
    let reply = replies.said[0].result.as_ref().unwrap();
    assert_eq!(*reply, Reply::Renewed { contended: false });
}

/// Where a command stands that goes to the server to which its slot is on its way.
fn asking(fence_left: bool) -> Moving {
    let to = ToldAddress {
        host: "b".to_owned(),
        port: 7,
    };
    Moving {
        to: Some(to),
        fence_left,
        taken: None,
    }
}

fn taken() -> Moving {
    let taken = Taken {
        sent_at: Time::from_nanos(1),
        contended: true,
    };
    Moving {
        taken: Some(taken),
        ..Moving::default()
    }
}

fn moving<'a>(command: &'a Command, key: &'a LockKey, moving: &'a Moving) -> Sent<'a> {
    Sent {
        moving: Some(moving),
        ..sent(key, command)
    }
}

#[test]
fn each_command_to_a_server_to_which_its_slot_is_on_its_way_is_behind_asking() {
    let (key, with_fence, without) = (lock(), asking(true), asking(false));
    let take = format!("SET lock:a {TOKEN} NX GET PX 1000");
    let sends = |server: &Server, command, place| sends(server, &[moving(command, &key, place)]);
    assert_eq!(sends(&SERVER, &TAKE, &without), ["ASKING", &take]);
    assert_eq!(
        sends(&SERVER, &TAKE, &with_fence),
        ["ASKING", &take, "ASKING", "INCRBY {lock:}:fence 1"]
    );
    assert_eq!(
        sends(&OLD, &TAKE, &without),
        [
            "ASKING",
            &format!("SET lock:a {TOKEN} NX PX 1000"),
            "ASKING",
            "GETRANGE lock:a 0 16384"
        ]
    );
    // The data of that server counts, too.
    assert_eq!(
        sends(&quarantined(), &TAKE, &without),
        ["ASKING", &take, "GET {lock:}:epoch"]
    );
    // Redis would forget that the next read is tracked, or that it asks.
    for (command, words) in [
        (&RELEASE, format!("EVALSHA release 1 lock:a {TOKEN}")),
        (&RENEW, format!("EVALSHA renew 1 lock:a {TOKEN} 1000")),
        (&CHECK, "GETRANGE lock:a 0 64".to_owned()),
    ] {
        assert_eq!(sends(&watching(), command, &without), ["ASKING", &words]);
    }
    // Nothing is left to do but to draw the fence.
    let (fence, here) = ("INCRBY {lock:}:fence 1", taken());
    let there = Moving {
        taken: here.taken,
        ..asking(true)
    };
    assert_eq!(sends(&SERVER, &TAKE, &here), [fence]);
    assert_eq!(sends(&SERVER, &TAKE, &there), ["ASKING", fence]);
}

#[test]
fn a_counter_of_fences_is_seeded_where_it_is() {
    let (key, with_fence, without, taken) = (lock(), asking(true), asking(false), taken());
    assert!(moving(&TAKE, &key, &with_fence).draws_fence());
    assert!(!moving(&TAKE, &key, &without).draws_fence());
    assert!(moving(&TAKE, &key, &taken).draws_fence());
    let ahead = Ahead {
        seeds: [seed(true)].into_iter().collect(),
        ..Ahead::default()
    };
    let call = call_with(&[moving(&TAKE, &key, &with_fence)], &ahead);
    let words = words_of(&call);
    assert_eq!(words[0], "ASKING");
    assert!(words[1].starts_with("EVAL ") && words[1].ends_with("1 {lock:}:fence"));
    assert_eq!((call.skipped, call.replies), (2, 4));
}

const ASK: &str = "ASK 7 b:7";

fn says(place: Option<&Moving>, command: &Command, values: Vec<Value>) -> Said {
    let key = lock();
    let sent = Sent {
        moving: place,
        ..sent(&key, command)
    };
    let replies = replies(&settings(), &SERVER, std::iter::once(sent), values);
    replies.unwrap().said.pop().unwrap()
}

#[test]
fn a_take_goes_on_where_what_it_lacks_is() {
    let at = asking(false).to.unwrap();
    let ask = |fence_left| {
        let to = at.clone();
        Some(Redirect::Ask { to, fence_left })
    };
    let fence = |contended, at| Some(Redirect::Fence { contended, at });
    let (ok, drawn) = (|| Value::Okay, || Value::Int(SEED as i64 + 1));
    for (place, values, expected) in [
        // At the slot's primary.
        (None, vec![Value::Nil, drawn()], None),
        (None, vec![error(ASK), drawn()], ask(false)),
        (None, vec![error(ASK), error(ASK)], ask(true)),
        (
            None,
            vec![Value::Nil, error(ASK)],
            fence(false, Some(at.clone())),
        ),
        (None, vec![Value::Nil, error("MOVED 7 b:7")], None),
        (
            None,
            vec![error("MOVED 7 b:7"), drawn()],
            Some(Redirect::Later),
        ),
        // At the new server.
        (
            Some(asking(false)),
            vec![ok(), Value::Nil],
            fence(false, None),
        ),
        (
            Some(asking(true)),
            vec![ok(), Value::Nil, ok(), drawn()],
            None,
        ),
        (
            Some(asking(true)),
            vec![ok(), Value::Nil, ok(), error(ASK)],
            None,
        ),
        (
            Some(asking(false)),
            vec![ok(), error("MOVED 7 b:7")],
            Some(Redirect::Later),
        ),
        // The fence alone.
        (Some(taken()), vec![drawn()], None),
        (
            Some(taken()),
            vec![error(ASK)],
            fence(true, Some(at.clone())),
        ),
        (
            Some(taken()),
            vec![error("MOVED 7 b:7")],
            Some(Redirect::Later),
        ),
        (Some(taken()), vec![error("OOM no")], None),
    ] {
        let words = format!("{place:?} {values:?}");
        let has_fence = values.last() == Some(&drawn());
        let is_taken = values.contains(&Value::Nil) || words.contains("taken: Some");
        let said = says(place.as_ref(), &TAKE, values);
        assert_eq!(said.redirect, expected, "{words}");
        // It has its lock only with a fence. If it is to go on, nothing else is to be done with it.
        let is_held = matches!(said.result, Ok(Reply::Acquired { fence, .. }) if fence == SEED + 1);
        assert_eq!(is_held, has_fence && expected.is_none(), "{words}");
        // A lock that may have been taken is released.
        let failure = said.result.err();
        let unknown = failure.is_some_and(|failure| failure.unknown);
        assert_eq!(unknown, is_taken && !is_held, "{words}");
    }
    // What is about several keys waits.
    for (command, values) in [
        (&QUEUE, vec![error(ASK)]),
        (&SHARE, vec![error(ASK)]),
        (&GRANT, vec![error(ASK)]),
        (&complete(), vec![error(ASK)]),
    ] {
        let said = says(None, command, values);
        assert_eq!(said.redirect, Some(Redirect::Later), "{command:?}");
    }
    for command in [&RELEASE, &RENEW, &RENEW_SHARED, &CHECK] {
        let said = says(None, command, vec![error(ASK)]);
        assert_eq!(said.redirect, ask(false), "{command:?}");
    }
}

#[test]
fn a_take_whose_replicas_are_to_be_counted_waits_until_its_slot_has_arrived() {
    let settings = Settings {
        min_replicas: 1,
        ..settings()
    };
    let key = lock();
    let says = |values| {
        let sent = std::iter::once(sent(&key, &TAKE));
        let replies = replies(&settings, &SERVER, sent, values);
        replies.unwrap().said.pop().unwrap()
    };
    let said = says(vec![error(ASK), error(ASK)]);
    assert_eq!(said.redirect, Some(Redirect::Later));
    // Taken before the slot began to move: it is released.
    let said = says(vec![Value::Nil, error(ASK)]);
    assert_eq!(said.redirect, None);
    assert!(said.result.unwrap_err().unknown);
}
