//! Random programs on whole managers. The test speaks for the [server](crate::store::fake), and
//! sets the clock.
//!
//! They run in the member `proofs`, 10 000 of them unless `CORE_CASES` says another number. A
//! million:
//!
//! ```sh
//! CORE_CASES=1000000 cargo test --release -p tower-distributed-lock-proofs --all-features --lib \
//!     core::tests
//! ```

mod link;
mod program;
mod tasks;
mod world;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::mode::Mode;
use program::{End, Step, Tamper};
use tasks::Watch;
use world::World;

fn run(steps: &[Step], drops_replies: bool) -> Result<(), TestCaseError> {
    #[cfg(feature = "tracing")]
    let _subscriber = tracing::subscriber::set_default(tasks::Subscriber);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let _watch = Watch::begin();
    let wrong = runtime.block_on(tokio::task::unconstrained(async {
        let mut world = World::new(drops_replies);
        for step in steps {
            world.step(step).await;
            if let Some(wrong) = world.wrong() {
                return Some(format!("{step:?}: {wrong}"));
            }
        }
        world.settle().await
    }));
    wrong.map_or(Ok(()), |wrong| Err(TestCaseError::fail(wrong)))
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        // A better generator would take half of the time.
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    }
}

#[test]
fn whatever_happens_locks_are_held_once_requests_are_answered_and_nothing_is_left() {
    let cases = std::env::var("CORE_CASES").map_or(10_000, |cases| {
        cases.parse().expect("CORE_CASES is a number")
    });
    let mut runner = TestRunner::new(config(cases));
    if let Err(error) = runner.run(&program::programs(), |steps| run(&steps, false)) {
        panic!("{error}\n{runner}");
    }
}

#[test]
fn a_reply_that_is_lost_without_a_word_is_noticed() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::XorShift);
    let mut runner = TestRunner::new_with_rng(config(10_000), rng);
    let result = runner.run(&program::programs(), |steps| run(&steps, true));
    assert!(matches!(result, Err(TestError::Fail(..))), "{result:?}");
}

fn holds(program: &[Step]) {
    run(program, false).unwrap();
}

const TAKE: Step = Step::Take {
    manager: 0,
    key: 0,
    wait: None,
    mode: Mode::Exclusive,
    touchy: false,
};

#[test]
fn a_request_that_is_cancelled_wakes_nobody_while_its_slot_is_locked() {
    // If its waker were called there, it would panic, and the slot would be given up.
    let touchy = Step::Take {
        manager: 0,
        key: 0,
        wait: Some(1000),
        mode: Mode::Exclusive,
        touchy: true,
    };
    holds(&[TAKE, Step::Exchange(0), touchy, Step::Cancel(0)]);
}

#[test]
fn a_record_where_a_lock_should_be_is_an_error_of_the_request() {
    let tamper = Tamper::Unfit {
        command: 0,
        reply: 5,
    };
    let deliver = Step::Deliver {
        manager: 0,
        count: 1,
        tamper,
    };
    holds(&[TAKE, Step::Send(0), Step::CarryOut(0), deliver]);
}

#[test]
fn fences_go_on_rising_where_the_counter_is_lost() {
    let end = Step::End {
        guard: 0,
        end: End::Dropped,
        touchy: false,
    };
    let served = Step::Pass {
        ms: 100,
        served: true,
    };
    let all = [TAKE, served.clone(), end, served.clone(), Step::Flush];
    holds(&[&all[..], &[TAKE, served]].concat());
}
