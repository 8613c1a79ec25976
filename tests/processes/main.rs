//! Processes that are killed, stopped, ended: real ones.
//!
//! This program is its own worker: started with [`URL`](worker::URL) set, it does what it is told
//! on its standard input, and ends with it. Started without, it runs the tests, one after another.

#![allow(unreachable_pub)]

#[macro_use]
#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/mod.rs"]
mod support;

mod competition;
mod ends;
mod holders;
mod process;
mod quickstart;
mod readers;
mod transfers;
mod waiters;
mod worker;

use std::process::ExitCode;

use competition::{
    processes_in_competition_lose_no_update_and_each_has_a_share,
    processes_killed_and_frozen_at_random_lose_no_update,
};
use ends::{
    a_process_that_drops_its_runtime_and_lives_on_leaves_no_lock,
    a_process_that_ends_right_after_close_leaves_no_lock,
};
use holders::{
    a_holder_that_was_frozen_beyond_its_ttl_knows_that_it_lost_the_lock,
    an_answer_that_came_while_the_process_was_frozen_is_not_late,
    the_lock_of_a_killed_process_goes_to_a_waiter_when_it_expires,
};
use quickstart::{
    the_quickstart_goes_on_when_its_reader_goes_away, the_quickstart_runs_two_nodes_on_one_redis,
};
use readers::{
    a_killed_reader_frees_its_place_when_its_own_lease_expires,
    a_killed_writer_that_waited_keeps_no_reader_out,
    a_reader_that_was_frozen_beyond_its_ttl_knows_that_it_lost_the_lock,
    a_writer_waits_for_the_lease_of_a_reader_that_was_killed,
    readers_are_let_in_though_one_of_those_that_wait_was_killed,
    the_renewals_of_other_readers_do_not_keep_a_killed_one_alive,
};
use transfers::{
    processes_killed_in_the_middle_of_transfers_change_no_sum,
    transfers_between_random_accounts_never_change_their_sum,
};
use waiters::{
    a_waiting_process_that_was_killed_is_passed_over_at_once,
    waiting_processes_that_are_frozen_do_not_keep_the_lock_from_the_others,
};

tests! {
    the_lock_of_a_killed_process_goes_to_a_waiter_when_it_expires
    a_holder_that_was_frozen_beyond_its_ttl_knows_that_it_lost_the_lock
    processes_in_competition_lose_no_update_and_each_has_a_share
    a_waiting_process_that_was_killed_is_passed_over_at_once
    waiting_processes_that_are_frozen_do_not_keep_the_lock_from_the_others
    an_answer_that_came_while_the_process_was_frozen_is_not_late
    processes_killed_and_frozen_at_random_lose_no_update
    transfers_between_random_accounts_never_change_their_sum
    processes_killed_in_the_middle_of_transfers_change_no_sum
    a_killed_reader_frees_its_place_when_its_own_lease_expires
    a_killed_writer_that_waited_keeps_no_reader_out
    the_renewals_of_other_readers_do_not_keep_a_killed_one_alive
    a_writer_waits_for_the_lease_of_a_reader_that_was_killed
    a_reader_that_was_frozen_beyond_its_ttl_knows_that_it_lost_the_lock
    readers_are_let_in_though_one_of_those_that_wait_was_killed
    a_process_that_ends_right_after_close_leaves_no_lock
    a_process_that_drops_its_runtime_and_lives_on_leaves_no_lock
    the_quickstart_goes_on_when_its_reader_goes_away
    the_quickstart_runs_two_nodes_on_one_redis
}

fn main() -> ExitCode {
    if let Ok(url) = std::env::var(worker::URL) {
        worker::obey(&url);
        return ExitCode::SUCCESS;
    }
    harness::run(TESTS)
}
