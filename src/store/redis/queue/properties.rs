use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::tests::{Answers, MINUTE, closed, store};
use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Submit(usize, Command),
    Send,
    /// The oldest call is answered. Redis refused what ends a hold: some of it, by these bits.
    Answered(u8),
    /// The oldest call fails, but for what ends a hold.
    Fails,
    /// All calls are to be sent again.
    Recall,
    Retry,
    /// Both, and some commands fail: the connection broke.
    Breaks,
}

fn step() -> impl Strategy<Value = Step> {
    let command = prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(queue, again)| Command::Acquire {
            token: 0,
            queue,
            watch: false,
            again,
        }),
        any::<bool>().prop_map(|wanted| Command::Release { token: 0, wanted }),
        Just(Command::Complete { token: 0 }),
        Just(Command::Renew { token: 0 }),
    ];
    prop_oneof![
        12 => (0..3_usize, command).prop_map(|(key, command)| Step::Submit(key, command)),
        6 => Just(Step::Send),
        4 => any::<u8>().prop_map(Step::Answered),
        1 => Just(Step::Fails),
        1 => Just(Step::Recall),
        2 => Just(Step::Retry),
        1 => Just(Step::Breaks),
    ]
}

/// Takes the next call, and looks at all that it could have overtaken.
fn send(store: &RedisStore, on_the_way: &mut OnTheWay<'_>, refused: &HashSet<u64>) {
    let Some(commands) = store.take_commands(on_the_way.calls.len()) else {
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
        // A refused one alone comes late.
        let before = on_the_way.calls.iter().flat_map(|(_, commands)| commands);
        for earlier in before.filter(of_key) {
            assert!(
                earlier.number < pending.number || refused.contains(&pending.number),
                "{earlier:?} overtook {pending:?}"
            );
        }
    }
    on_the_way.push(Time::now(), commands);
}

proptest! {
    #[test]
    fn commands_for_one_key_are_sent_in_order_of_submission_whatever_happens(
        steps in vec(step(), 1..120),
    ) {
        let (store, answers) = (store(MINUTE), Answers::default());
        let mut on_the_way = OnTheWay::new(&store);
        let mut refused = HashSet::new();
        for step in steps {
            match step {
                Step::Submit(key, command) => store.put(key, command),
                Step::Send => send(&store, &mut on_the_way, &refused),
                Step::Answered(bits) if !on_the_way.calls.is_empty() => {
                    for (place, pending) in on_the_way.pop().1.into_iter().enumerate() {
                        if pending.ends_hold() && bits >> (place % 8) & 1 == 1 {
                            refused.insert(pending.number);
                            on_the_way.keep(pending);
                        }
                    }
                }
                Step::Fails if !on_the_way.calls.is_empty() => {
                    store.fail(on_the_way.pop(), &closed(), true, &answers);
                    // The connection is closed then.
                    on_the_way.recall();
                }
                Step::Answered(_) | Step::Fails => {}
                Step::Recall => on_the_way.recall(),
                Step::Retry => on_the_way.retry(),
                Step::Breaks => {
                    on_the_way = OnTheWay::new(&store);
                    store.fail_first(|pending| pending.attempts >= 2, &closed(), &answers);
                }
            }
        }
        // All of it goes out in the end.
        drop(on_the_way);
        let mut on_the_way = OnTheWay::new(&store);
        while !store.queue().is_empty() {
            send(&store, &mut on_the_way, &refused);
            on_the_way.pop();
        }
        prop_assert!(store.is_drained());
    }
}
