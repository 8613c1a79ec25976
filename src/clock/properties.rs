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
    // Pauses for fewer readings than there are attempts: one attempt is tight.
    let reading = vec(pause, 0..ATTEMPTS as usize);
    proptest!(|(readings in vec(reading, 1..20), before in 0_u64..1_000_000_000)| {
        let machine = Machine::default();
        machine.suspended.set(before);
        let (first, mut noticed) = (machine.read(), 0);
        for pauses in readings {
            machine.pauses.replace(pauses.into());
            noticed = noticed.max(machine.read().since(&first));
            machine.pauses.take();
            let suspended = machine.suspended.get() - before;
            prop_assert!(noticed <= suspended, "{noticed} of {suspended}");
            // A suspension between two readings of the clocks is found by the next read.
            noticed = noticed.max(machine.read().since(&first));
            prop_assert!(suspended - noticed <= 2 * TIGHT, "{noticed} of {suspended}");
        }
    });
}
