use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::tests::COMMANDS;
use super::*;

fn values() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        8 => -10_i64..10,
        1 => any::<i64>(),
        1 => (-4_i64..4).prop_map(|more| 2 * MAX_FENCE as i64 + more),
    ];
    let value = prop_oneof![
        12 => number.prop_map(Value::Int),
        2 => any::<Vec<u8>>().prop_map(Value::BulkString),
        1 => Just(Value::Nil),
        1 => any::<bool>().prop_map(Value::Boolean),
        1 => any::<f64>().prop_map(Value::Double),
        1 => any::<String>().prop_map(Value::SimpleString),
        1 => Just(Value::Okay),
    ];
    value.prop_recursive(2, 8, 5, |value| vec(value, 0..6).prop_map(Value::Array))
}

proptest! {
    #[test]
    fn whatever_redis_replies_an_answer_fits_its_command(
        commands in vec((any::<bool>(), select(&COMMANDS[..])), 0..4),
        reply in prop_oneof![values(), vec(values(), 0..6).prop_map(Value::Array)],
    ) {
        let (lock, record) = (LockKey::new("a").unwrap(), LockKey::record(["a"]).unwrap());
        let commands: Vec<(&LockKey, Command)> = commands
            .into_iter()
            .map(|(is_lock, command)| (if is_lock { &lock } else { &record }, command))
            .collect();
        if let Ok(answers) = answers(commands.iter().copied(), reply) {
            prop_assert_eq!(answers.len(), commands.len());
            for ((key, command), answer) in commands.into_iter().zip(answers) {
                prop_assert!(fits(key, command, &answer), "{:?}: {:?}", command, answer);
            }
        }
    }
}
