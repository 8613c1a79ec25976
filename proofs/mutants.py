#!/usr/bin/env python3
"""Takes rules out of a copy of the crate, one by one, and runs the tests that must then fail.

    proofs/mutants.py           # all mutants; each takes a build
    proofs/mutants.py grant     # those with that word in their name

Says which test noticed each. Ends with 1 if one was not noticed, or does not fit the source.
"""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TREE = ROOT / "target" / "mutants" / "tree"

SLOT = "src/manager/slot/mod.rs"
MACHINE = "src/manager/slot/machine/mod.rs"
REQUESTS = "src/manager/slot/machine/requests.rs"
HOLDERS = "src/manager/slot/machine/holders.rs"
REPLIES = "src/manager/slot/machine/replies.rs"
NOTICES = "src/manager/slot/machine/notices.rs"
GRANT = "src/manager/slot/machine/grant.rs"
EVENT = "src/manager/core/event.rs"
BACKGROUND = "src/manager/background.rs"
COMMANDS = "src/store/redis/commands.rs"
CONNECTION = "src/store/redis/connection.rs"
DRIVER = "src/store/redis/driver.rs"
PENDING = "src/store/redis/pending.rs"
ADDRESS = "src/store/redis/address.rs"
CONFIRMING = "src/store/redis/confirming.rs"
PROBE = "src/store/redis/probe.rs"
PUSHES = "src/store/redis/pushes.rs"
WATCH = "src/store/redis/sentinel/watch.rs"
SEVERAL = "src/manager/several.rs"
LOCK_KEYS = "src/key/lock_keys.rs"
HOLDING = "src/manager/slot/holding.rs"
SHARE = "src/store/redis/scripts/share.lua"
RENEW_SHARED = "src/store/redis/scripts/renew_shared.lua"
GRANT_SCRIPT = "src/store/redis/scripts/grant.lua"
ACQUIRE = "src/store/redis/scripts/acquire.lua"
QUEUE_SCRIPT = "src/store/redis/scripts/parts/queue.lua"
RENEW = "src/store/redis/scripts/renew.lua"
COMPLETE = "src/store/redis/scripts/complete.lua"
QUARANTINE = "src/store/redis/scripts/quarantine.lua"

# The mistake; for each change, the file, the code, and the code in its place; the tests that must
# notice, each on its own.
MUTANTS = [
    (
        "a slot rests for nobody",
        [
            (
                REPLIES,
                "match self.slot.waiters.is_empty() {\n            true => State::Idle,",
                "match attempt.for_new_requests {\n            true => State::Idle,",
            )
        ],
        [
            "--lib a_slot_whose_last_waiter_left",
            "--test model with_requests_of_both_kinds",
        ],
    ),
    (
        "a lock that nobody takes panics",
        [
            (
                REPLIES,
                "match self.slot.waiters.is_empty() {\n            true => State::Idle,",
                "match attempt.for_new_requests {\n            true => State::Idle,",
            ),
            (
                GRANT,
                "        if holding.lingers() {\n",
                "        if holding.lingers() {\n            panic!();\n",
            ),
            (EVENT, "let result = shielded(|| {", "let result = Some({"),
        ],
        ["--test it requests_that_join_and_leave"],
    ),
    (
        "what changed is written to",
        [(NOTICES, "State::Holding(_) => self.check(),", "State::Holding(_) => self.renew(),")],
        ["--test it holders_of_one_name"],
    ),
    (
        "a record in flight is forgotten",
        [
            (
                HOLDERS,
                "            record,\n            reply,\n        });\n        true",
                "            record,\n            reply,\n        });\n        self.end_hold();\n        true",
            )
        ],
        [
            "--test model with_records_that_redis_refuses",
            "--test it an_answer_that_redis_refuses_for_a_moment",
        ],
    ),
    (
        "a grant is trusted for the receiver's time to live",
        [(GRANT, "granted.ttl.min(self.env.rules.grant_ttl)", "granted.ttl.max(self.env.rules.grant_ttl)")],
        [
            "--test model with_processes_of_different_settings",
            "--test it a_grant_is_trusted_for_no_longer",
        ],
    ),
    (
        "a process does not expect the one that gave it the lock",
        [(SLOT, "self.wanted_until.is_some_and(|until| env.now < until)", "false")],
        ["--lib a_lock_that_another_process_gave"],
    ),
    (
        "a process expects others for ever",
        [
            (
                MACHINE,
                "State::Idle if !self.slot.expects_others(self.env) => self.slot.wanted_until = None,",
                "",
            )
        ],
        ["--lib the_memory_of_a_lock_that_another_process_got_is_short"],
    ),
    (
        "the queue expires as the last one asks",
        [(QUEUE_SCRIPT, "if length == 1 or call('PTTL', queue) < lasts then", "do")],
        [
            "--test scripts whatever_clients_do",
            "--test it a_process_with_a_short_time_to_live",
        ],
    ),
    (
        "max_hold leaves the lock to expire",
        [
            (
                MACHINE,
                "            let token = holding.token;\n"
                "            self.send(Command::Release {\n"
                "                token,\n"
                "                contended: true,\n"
                "                queued: false,\n"
                "                reply: S::default(),\n"
                "            });\n"
                "            self.end_hold();",
                "            self.end_hold();",
            )
        ],
        ["--test it a_lock_that_is_lost_by_max_hold"],
    ),
    (
        "a lock goes on as its holder is told of max_hold",
        [("src/manager/slot/rules.rs", "(limit, limit + Self::margin(self.ttl))", "(limit, limit)")],
        ["--lib a_holder_has_time_to_stop"],
    ),
    (
        "max_hold cuts off the writing of a record",
        [("src/manager/guard.rs", "core.recording(&lease, time);", "")],
        ["--test it an_answer_that_takes_longer_to_write"],
    ),
    (
        "a release that is refused stays on a replica",
        [
            (
                "src/store/redis/driver.rs",
                "&& said.is_of_no_use\n",
                "&& said.is_of_no_use\n                && !pending.ends_hold()\n",
            )
        ],
        ["--test it a_release_that_a_replica_refuses"],
    ),
    (
        "a block of fences is shared out wrongly",
        [(COMMANDS, "last - block.takes + 1 + block.given", "last + block.given")],
        ["--lib the_block_of_fences_is_shared_out"],
    ),
    (
        "a counter that was lost is used",
        [(COMMANDS, "if last >= self.seed + count => Ok(last)", "=> Ok(last)")],
        ["--lib a_fence_that_is_not_above_the_seed"],
    ),
    (
        "a script's fences do not follow the clock",
        [(COMMANDS, "true => MAX_FENCE,", "true => server.seed,")],
        ["--lib a_script_that_draws_a_fence_raises_the_counter"],
    ),
    (
        "a new connection goes on with a counter that was lost",
        [
            (
                CONNECTION,
                'redis::cmd("EVAL");\n    seed.arg(scripts::SEED.source).arg(1).arg(fence);',
                'redis::cmd("INCRBY");\n    seed.arg(fence).arg(0);',
            )
        ],
        [
            "--test it fencing_tokens_go_on_rising_whatever",
            "--test it a_server_that_was_restarted_empty",
        ],
    ),
    (
        "fences are seeded at connect only",
        [(CONNECTION, "SEED_EVERY: Duration = Duration::from_millis(2)", "SEED_EVERY: Duration = Duration::from_secs(100)")],
        ["--test it fences_follow_the_clock"],
    ),
    (
        "a lock gets no mark",
        [(QUEUE_SCRIPT, "    call('SET', lock, value .. '!', 'KEEPTTL')\n", "")],
        ["--test scripts whatever_clients_do"],
    ),
    (
        "a renewal removes the mark",
        [(RENEW, "redis.call('PEXPIRE', KEYS[1], ARGV[2])", "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])")],
        ["--test scripts whatever_clients_do"],
    ),
    (
        "a take that is sent again trusts its own token",
        [
            (COMMANDS, "} if !self.is_repeated => Way::Take,", "} => Way::Take,"),
            (COMMANDS, "self.take(server, sent)?", "self.take(settings, server, sent)?"),
            (COMMANDS, "fn take(&mut self, server: &Server,", "fn take(&mut self, settings: &Settings, server: &Server,"),
            (
                COMMANDS,
                "            Ok(Value::BulkString(value)) => {\n",
                "            Ok(Value::BulkString(value)) if is_token(&value, &sent.token(settings)) => {\n"
                "                said(acquired(false))\n            }\n"
                "            Ok(Value::BulkString(value)) => {\n",
            ),
        ],
        [
            "--lib any_other_acquire_goes_by_the_script",
            "--test it a_take_that_is_sent_again",
        ],
    ),
    (
        "an acquire that is sent again renews nothing",
        [(ACQUIRE, "  call('PEXPIRE', lock, ttl)\n", "")],
        [
            "--test scripts whatever_clients_do",
            "--test it a_take_that_is_sent_again",
        ],
    ),
    (
        "a completion trusts the mark",
        [(COMPLETE, "for _, waiting in", "if value == token then\n  return 2\nend\nfor _, waiting in")],
        ["--test scripts those_who_waited_for_a_lease"],
    ),
    (
        "a reader gets past a writer that waits",
        [(SHARE, "(not first or first == waits or call('ZSCORE', readers, token))", "true")],
        [
            "--test scripts whatever_clients_do",
            "--test it a_writer_that_waits_lets_no_reader_past",
        ],
    ),
    (
        "a process lets requests share past a writer that waits",
        [(HOLDING, "self.mode.is_shared() && self.contended.is_none() &&", "self.mode.is_shared() &&")],
        [
            "--lib none_joins_past_a_process_that_waits",
            "--test it a_writer_among_readers_without_end",
        ],
    ),
    (
        "requests share past a writer that waits in their process",
        [(REQUESTS, "mode.is_shared() && self.slot.waiters.is_empty()", "mode.is_shared()")],
        [
            "--lib none_joins_past_one_that_waits_here",
            "--test it over_memory::a_writer_among_readers_without_end",
        ],
    ),
    (
        "a server is not asked to share a lock",
        [(PROBE, "acquire(READER, Mode::Shared, false)", "acquire(READER, Mode::Exclusive, false)")],
        ["--test it rights_that_a_user_lacks"],
    ),
    (
        "a writer is granted while the lease of a reader lasts",
        [(GRANT_SCRIPT, "is_shared = call('EXISTS', readers) == 1", "is_shared = false")],
        [
            "--test scripts whatever_clients_do",
            "--test it a_reader_that_released",
        ],
    ),
    (
        "renewals keep a dead reader alive",
        [
            (
                RENEW_SHARED,
                "call('PEXPIRE', readers, lasts)",
                "for _, all in ipairs(call('ZRANGE', readers, '0', '-1')) do\n"
                "  call('ZADD', readers, call('ZSCORE', readers, token), all)\n"
                "end\n"
                "call('PEXPIRE', readers, lasts)",
            )
        ],
        [
            "--test scripts whatever_clients_do",
            "--test processes the_renewals_of_other_readers",
        ],
    ),
    (
        "a share that lingers is not given up",
        [
            (
                MACHINE,
                "holding.contend(self.env);\n            if holding.lingers() {",
                "holding.contend(self.env);\n            if false {",
            )
        ],
        [
            "--lib a_share_that_lingers_ends_when_it_is_wanted",
            "--test it a_share_that_lingers_is_given_up",
        ],
    ),
    (
        "a share that lingers is lost without a release",
        [
            (
                MACHINE,
                "        if holding.lingers() {\n            self.let_go(S::default());\n            return;\n        }\n"
                "        // A holder whose",
                "        // A holder whose",
            )
        ],
        [
            "--lib a_share_that_lingers_is_released_though",
            "--test model with_readers_and_slow_networks",
        ],
    ),
    (
        "a quarantine that a new connection finds is not kept",
        [(CONNECTION, "self.quarantined_until = ready.quarantined_until;", "let _ = ready.quarantined_until;")],
        [
            "--test it a_server_that_was_restarted_empty",
            "--test it a_promoted_replica_that_lacks",
        ],
    ),
    (
        "a replica that a sentinel names is used",
        [(ADDRESS, "if !found.is_primary {", "if false {")],
        ["--test it a_server_that_says_it_is_a_replica"],
    ),
    (
        "one sentinel is enough to leave a primary",
        [(WATCH, " && self.is_replaced().await", "")],
        ["--test it one_sentinel_that_was_cut_off"],
    ),
    (
        "the sentinels are not watched",
        [(ADDRESS, "link.tasks.spawn(watch);", "drop(watch);")],
        ["--test it an_old_primary_is_left"],
    ),
    (
        "an old primary is not outlasted",
        [(ADDRESS, "link.zombie = ZOMBIE;", "let _ = ZOMBIE;")],
        ["--test it an_old_primary_is_left"],
    ),
    (
        "an epoch does not follow its primary's slots",
        [(CONNECTION, "let has_moved = epoch.home != home;", "let has_moved = epoch.home > 16384;")],
        ["--test it slots_that_move_start_no_quarantine"],
    ),
    (
        "an epoch whose slot has moved is taken for lost",
        [(COMMANDS, "Some(\"MOVED\" | \"ASK\")) => slots_moved = true", "Some(\"ASK\")) => slots_moved = true")],
        ["--test it slots_that_move_start_no_quarantine"],
    ),
    (
        "replicas are not counted",
        [(CONFIRMING, "(replicas < needed as usize).then_some(failed)", "(replicas > 99).then_some(failed)")],
        [
            "--test it a_lock_that_no_replica_has",
            "--test it a_share_that_no_replica_has",
            "--test it several_locks_are_all_on_a_replica",
        ],
    ),
    (
        "a grant needs no replica",
        [(DRIVER, "after.filter(|_| self.settings.min_replicas == 0)", "after")],
        ["--test it a_lock_that_is_handed_over_is_on"],
    ),
    (
        "an unsubscribe that was not asked for is let through",
        [(PUSHES, "            ..,\n        ) => Some(Push::Unasked),", "            ..,\n        ) => None,")],
        ["--test it an_unsubscribe_that_was_not_asked_for"],
    ),
    (
        "a reply that may be a push is used",
        [(DRIVER, "Some(Ok(_)) if link.observed.is_out_of_step() =>", "Some(Ok(_)) if false =>")],
        ["--test it an_unsubscribe_that_was_not_asked_for"],
    ),
    (
        "a quarantine looks only for lost data",
        [(QUARANTINE, "if known ~= server then", "if not known then")],
        [
            "--test scripts whatever_clients_do",
            "--test it a_promoted_replica_that_lacks",
        ],
    ),
    (
        "the epoch of another connection counts",
        [(COMMANDS, "Some(known)) if epoch == known.value => {}", "Some(_)) if epoch != *b\"\" => {}")],
        ["--lib another_epoch_says_that_data_was_lost"],
    ),
    (
        "a server that is not ready grants locks",
        [(CONNECTION, " && self.unready.is_none()", "")],
        ["--test it while_the_quarantine_is_not_known"],
    ),
    (
        "a run past its lease succeeds where Redis is silent",
        [
            (
                "src/idempotency/run.rs",
                "if (error.kind() == ErrorKind::Lost || !was_held)",
                "if error.kind() == ErrorKind::Lost",
            )
        ],
        ["--test it a_handler_that_blocked_past_its_lease_is_no_success_if"],
    ),
    (
        "a wait that is over was always in vain",
        [(REQUESTS, "if attempt.unanswered => ErrorKind::Unavailable", "if attempt.unanswered => ErrorKind::TimedOut")],
        ["--test it a_wait_ends_on_time"],
    ),
    (
        "an answer that came too late refuses all",
        [
            (
                REPLIES,
                "false => self.acquire_failed(attempt, &unavailable()),",
                "false => {\n                        self.reject_waiting(&unavailable());\n"
                "                        self.acquire_failed(attempt, &unavailable());\n                    }",
            )
        ],
        ["--lib who_waits_already_goes_on_to_wait_after"],
    ),
    (
        "the manager stays on a runtime of one thread",
        [(BACKGROUND, "!self.store.needs_to_run() ||", "true ||")],
        [
            "--test it a_manager_works_where_its_own_runtime",
            "--test it a_lock_is_renewed_while_its_thread",
        ],
    ),
    (
        "a request has no bound of its own",
        [("src/store/mod.rs", "Self::Redis(redis) => Some(redis.replies_within())", "Self::Redis(_) => None")],
        ["--test it a_request_is_answered_though_nothing_drives"],
    ),
    (
        "a waker that panics unwinds",
        [
            (
                EVENT,
                "            shielded(|| {\n                sender.send(match decision {",
                "            let _ = Some({\n                sender.send(match decision {",
            )
        ],
        ["--test it a_waker_that_panics"],
    ),
    (
        "a background task that panicked is not started again",
        [(BACKGROUND, "} else if !core.is_running.swap(true, Ordering::SeqCst) {", "} else if false {")],
        ["--test tracing panics_is_told_and_started_again"],
    ),
    (
        "a caller is told before the slot is",
        [
            (
                PENDING,
                "        events.replied(&self.key, self.command.bare(), outcome);\n",
                "        let bare = self.command.bare();\n",
            ),
            (
                PENDING,
                "            shielded(|| reply.send(settled));\n        }\n",
                "            shielded(|| reply.send(settled));\n"
                "            std::thread::sleep(std::time::Duration::from_millis(50));\n        }\n"
                "        events.replied(&self.key, bare, outcome);\n",
            ),
        ],
        ["--test it managers_with_other_prefixes"],
    ),
    (
        "a fence is drawn at a slot's new primary while the old one has it",
        [(COMMANDS, "(!self.is_asking() || is_there())", "(is_there() || true)")],
        ["--lib each_command_to_a_server_to_which", "--test it while_a_slot_moves_its_locks"],
    ),
    (
        "a lease counts from the write that drew its fence",
        [(PENDING, "self.taken().map_or(sent_at, |taken| taken.sent_at)", "sent_at")],
        ["--lib a_lease_counts_from_the_write"],
    ),
    (
        "an acquire at a slot's new primary is given up as any other",
        [
            (
                PENDING,
                "        if let Some(to) = self.asks() {\n",
                "        if let (Some(to), false) = (self.asks(), true) {\n",
            )
        ],
        ["--test it a_take_that_the_new_primary_does_not_answer"],
    ),
    (
        "a lock that lacks its fence is not released",
        [
            (
                PENDING,
                "self.attempts > 0 || self.is_repeated() || self.taken().is_some()",
                "self.attempts > 0 || self.is_repeated()",
            )
        ],
        ["--lib a_lease_counts_from_the_write"],
    ),
    (
        "a handler that blocked past its lease succeeds",
        [
            (
                "src/lock/finish.rs",
                "if let Some(lost) = lock.loss() {\n        drop(response);",
                "if let (Some(lost), false) = (lock.loss(), true) {\n        drop(response);",
            ),
            (
                "src/lock/finish.rs",
                "if let Some(lost) = lock.loss() {\n        drop(hold_until);",
                "if let (Some(lost), false) = (lock.loss(), true) {\n        drop(hold_until);",
            ),
        ],
        ["--test it a_handler_that_blocked_past_its_lease"],
    ),
    (
        "keys are taken unsorted",
        [(LOCK_KEYS, "keys.sort_unstable_by(|one, other| one.order().cmp(&other.order()));", "")],
        [
            "--lib keys_are_sorted_by_their_bytes",
            "--test it calls_that_name_the_same_keys_crosswise",
            "--test it transfers_in_both_directions",
        ],
    ),
    (
        "a partial hold is left behind",
        [
            (
                SEVERAL,
                "return Err(refused(error, guards.len()));",
                "let at = guards.len();\n                std::mem::forget(guards);\n"
                "                return Err(refused(error, at));",
            )
        ],
        ["--test it all_are_taken_or_none", "--lib whatever_happens_locks_are_held_once"],
    ),
    (
        "a lock that was lost on the way is taken for held",
        [(SEVERAL, "guards.truncate(lost.unwrap_or(keys.len()));", "let _ = lost;")],
        ["--test it a_lock_that_is_lost_while_another_is_waited_for"],
    ),
    (
        "each key has a wait of its own",
        [(SEVERAL, "self.wait.map(|wait| wait.saturating_sub(since))", "self.wait.filter(|wait| *wait > since / 100)")],
        ["--test it the_wait_is_one_for_all_keys"],
    ),
    (
        "commands for several keys go out one by one",
        [("src/store/redis/queue.rs", " || queue.held_back > 0 {", " {")],
        ["--lib commands_that_are_held_back"],
    ),
    (
        "the loss of one lock of several is no loss",
        [
            ("src/lock/held_lock.rs", ".any(Lease::is_lost_to_layer)", ".all(Lease::is_lost_to_layer)"),
            ("src/lease/several.rs", "select_all(all).await.0", "futures_util::future::join_all(all).await.swap_remove(0)"),
        ],
        ["--test it to_lose_one_lock_stops", "--test it a_lock_that_another_client_deletes_is"],
    ),
]


def copy():
    """The tracked files and no others, each only if it changed: a build has little to do then."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for file in TREE.rglob("*"):
        if file.is_file() and str(file.relative_to(TREE)) not in names:
            file.unlink()
    for name in filter(None, names):
        source, target = ROOT / name, TREE / name
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copy(source, target)


def passes(test):
    *target, name = test.split(" ")
    command = ["cargo", "test", "--quiet", "--workspace", "--all-features", *target, "--", name]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TREE.parent / "build")}
    try:
        done = subprocess.run(
            command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        return False
    if "running 0 tests" in done.stdout and "running 1" not in done.stdout:
        raise SystemExit(f"no such test: {test}")
    if "error: could not compile" in done.stderr:
        raise SystemExit(f"does not compile, with {test}:\n{done.stderr[-3000:]}")
    return done.returncode == 0


def main():
    wanted = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if all(word in mutant[0] for word in wanted)]
    unnoticed = 0
    for name, changes, tests in chosen:
        copy()
        for path, old, new in changes:
            file = TREE / path
            source = file.read_text()
            if source.count(old) != 1:
                raise SystemExit(f"{name}: not once in {path}: {old!r}")
            file.write_text(source.replace(old, new))
        for test in tests:
            noticed = not passes(test)
            unnoticed += not noticed
            print(f"{'noticed' if noticed else 'NOT NOTICED'}: {name}: {test}", flush=True)
    copy()
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
