//! The order of commands, whatever fails.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::tests::{MINUTE, Outcomes, closed, store};
use super::*;
use crate::mode::Mode;
use crate::store::Record;
use crate::store::redis::commands::tests::SERVER;
use crate::store::redis::in_flight::{InFlight, InFlightCall};

#[derive(Clone, Copy, Debug)]
enum Step {
    Submit(usize, Command<(), ()>),
    Send,
    /// The oldest call has its reply. By these bits, Redis refused some of its commands that end a
    /// hold.
    Replied(u8),
    /// The oldest call has its reply. By these bits, some of its releases are to grant the lock.
    ToBeGranted(u8),
    /// The oldest call fails, except its commands that end a hold.
    Fails,
    /// All calls are to be sent again.
    Recall,
    Retry,
    /// The connection breaks: all calls and refused commands are to be sent again, and some fail.
    Breaks,
}

fn step() -> impl Strategy<Value = Step> {
    let command = prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(queue, again)| Command::Acquire {
            token: 0,
            mode: Mode::Exclusive,
            queue,
            watch: false,
            again,
        }),
        (any::<bool>(), any::<bool>()).prop_map(|(contended, queued)| Command::Release {
            token: 0,
            contended,
            queued,
            reply: (),
        }),
        Just(Command::Complete {
            token: 0,
            record: (),
            reply: (),
        }),
        Just(Command::Renew {
            token: 0,
            mode: Mode::Exclusive
        }),
    ];
    prop_oneof![
        12 => (0..3_usize, command).prop_map(|(key, command)| Step::Submit(key, command)),
        6 => Just(Step::Send),
        4 => any::<u8>().prop_map(Step::Replied),
        2 => any::<u8>().prop_map(Step::ToBeGranted),
        1 => Just(Step::Fails),
        1 => Just(Step::Recall),
        2 => Just(Step::Retry),
        1 => Just(Step::Breaks),
    ]
}

/// Takes the next call, and checks that its commands overtake none for the same key.
fn send(store: &RedisStore, in_flight: &mut InFlight<'_>, late: &HashSet<u64>) {
    let Some(commands) = store.take_commands(in_flight.calls.len()) else {
        return;
    };
    for (place, pending) in commands.iter().enumerate() {
        let of_key = |other: &&Pending| other.key == pending.key;
        let queue = store.queue();
        let behind = queue.ends.iter().chain(&queue.others);
        let behind = behind.chain(&commands[place + 1..]);
        for later in behind.filter(of_key) {
            assert!(
                later.number > pending.number,
                "{pending:?} overtook {later:?}"
            );
        }
        // Only a command that was refused, or a release that is to grant the lock, comes late.
        let before = in_flight.calls.iter().flat_map(|call| &call.commands);
        for earlier in before.filter(of_key) {
            assert!(
                earlier.number < pending.number || late.contains(&pending.number),
                "{earlier:?} overtook {pending:?}"
            );
        }
    }
    in_flight.push(InFlightCall {
        sent_at: Time::now(),
        server: SERVER.into(),
        commands,
    });
}

proptest! {
    #[test]
    fn commands_for_one_key_are_sent_in_order_of_submission_whatever_happens(
        steps in vec(step(), 1..120),
    ) {
        let (store, outcomes) = (store(MINUTE), Outcomes::default());
        let mut in_flight = InFlight::new(&store);
        let mut late = HashSet::new();
        for step in steps {
            match step {
                Step::Submit(key, command) => {
                    let record = |(): &()| Record {
                        content: "done".into(),
                        retention: MINUTE,
                    };
                    store.put(key, command.carrying(record, None));
                }
                Step::Send => send(&store, &mut in_flight, &late),
                Step::Replied(bits) if !in_flight.calls.is_empty() => {
                    for (place, pending) in in_flight.pop().commands.into_iter().enumerate() {
                        if pending.ends_hold() && bits >> (place % 8) & 1 == 1 {
                            late.insert(pending.number);
                            in_flight.keep(pending);
                        }
                    }
                }
                Step::Fails if !in_flight.calls.is_empty() => {
                    store.fail(in_flight.pop(), &closed(), true, &outcomes);
                    // The connection is closed then.
                    in_flight.recall();
                }
                Step::ToBeGranted(bits) if !in_flight.calls.is_empty() => {
                    for (place, mut pending) in in_flight.pop().commands.into_iter().enumerate() {
                        let Command::Release { contended: false, queued: false, .. } =
                            pending.command
                        else {
                            continue;
                        };
                        if bits >> (place % 8) & 1 == 1 {
                            late.insert(pending.number);
                            pending.grant_next();
                            store.put_back(vec![pending]);
                        }
                    }
                }
                Step::Replied(_) | Step::ToBeGranted(_) | Step::Fails => {}
                Step::Recall => in_flight.recall(),
                Step::Retry => in_flight.retry(),
                Step::Breaks => {
                    in_flight = InFlight::new(&store);
                    store.fail_first(|pending| pending.attempts >= 2, &closed(), &outcomes);
                }
            }
        }
        // All commands go out in the end.
        drop(in_flight);
        let mut in_flight = InFlight::new(&store);
        while !store.queue().is_empty() {
            send(&store, &mut in_flight, &late);
            in_flight.pop();
        }
        prop_assert!(store.is_drained());
    }
}
