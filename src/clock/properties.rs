use proptest::collection::vec;
use proptest::prelude::*;

use super::tests::Machine;
use super::*;

#[test]
fn a_short_suspension_is_noticed_once_however_the_readings_are_pulled_apart() {
    let pause = (
        prop_oneof![4 => 20_u64..100, 1 => 0_u64..100_000_000],
        prop_oneof![8 => Just(0), 1 => 0_u64..100_000_000],
    );
    // For fewer readings than there are attempts: one of those is tight.
    let look = vec(pause, 0..ATTEMPTS as usize);
    proptest!(|(looks in vec(look, 1..20), before in 0_u64..1_000_000_000)| {
        let machine = Machine::default();
        machine.suspended.set(before);
        let (first, mut noticed) = (machine.look(), 0);
        for pauses in looks {
            machine.pauses.replace(pauses.into());
            noticed = noticed.max(machine.look().since(&first));
            machine.pauses.take();
            let suspended = machine.suspended.get() - before;
            prop_assert!(noticed <= suspended, "{noticed} of {suspended}");
            // A suspension between the readings is for the next look.
            noticed = noticed.max(machine.look().since(&first));
            prop_assert!(suspended - noticed <= 2 * TIGHT, "{noticed} of {suspended}");
        }
    });
}
