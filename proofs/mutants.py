#!/usr/bin/env python3
"""Takes a rule out of a copy of the crate, and runs the tests that must then fail.

    proofs/mutants.py           # all of them; each takes a build
    proofs/mutants.py grant     # those with that word in their name

Says for each which test noticed. Ends with 1 if one was not noticed, or does not fit the source.
"""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TREE = ROOT / "target" / "mutants" / "tree"

SLOT = "src/manager/slot/mod.rs"
CORE = "src/manager/core.rs"
BACKGROUND = "src/manager/background.rs"
SCRIPT = "src/store/redis/scripts/lock.lua"

# What is taken out; where, and what is there instead; the tests that must notice, each alone.
MUTANTS = [
    (
        "a slot rests for nobody",
        [
            (
                SLOT,
                "match self.waiters.is_empty() {\n            true => State::Idle,",
                "match question.first {\n            true => State::Idle,",
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
                SLOT,
                "match self.waiters.is_empty() {\n            true => State::Idle,",
                "match question.first {\n            true => State::Idle,",
            ),
            (
                SLOT,
                "let Some(first) = self.waiters.pop() else {\n",
                "let Some(first) = self.waiters.pop() else {\n            panic!();\n",
            ),
            (CORE, "let result = shielded(|| {", "let result = Some({"),
        ],
        ["--test it requests_that_join_and_leave"],
    ),
    (
        "what changed is written to",
        [(SLOT, "Notice::Changed) => held.check(effects)", "Notice::Changed) => held.renew(effects)")],
        ["--test it holders_of_one_name"],
    ),
    (
        "a record that is on its way is forgotten",
        [
            (
                SLOT,
                "effects.push(Effect::Send(Command::Complete { token }));\n        true",
                "effects.push(Effect::Send(Command::Complete { token }));\n"
                "        self.let_go(env, effects);\n        true",
            )
        ],
        [
            "--test model with_records_that_redis_refuses",
            "--test it an_answer_that_redis_refuses_for_a_moment",
        ],
    ),
    (
        "a grant is trusted for the receiver's time to live",
        [(SLOT, "let ttl = ttl.min(env.rules.grant_ttl);", "let ttl = env.rules.grant_ttl.max(ttl);")],
        [
            "--test model with_processes_of_different_settings",
            "--test it a_grant_is_trusted_for_no_longer",
        ],
    ),
    (
        "the queue expires as the last one asks",
        [(SCRIPT, "if call('PTTL', queue) < lasts then", "do")],
        [
            "--test scripts whatever_clients_do",
            "--test it a_process_with_a_short_time_to_live",
        ],
    ),
    (
        "max_hold leaves the lock to expire",
        [(SLOT, "if reason == LostReason::MaxHold {", "if false {")],
        ["--test it a_lock_that_is_lost_by_max_hold"],
    ),
    (
        "a lock goes on as its holder is told of max_hold",
        [(SLOT, "(limit, limit + Self::margin(self.ttl))", "(limit, limit)")],
        ["--lib a_holder_has_time_to_stop"],
    ),
    (
        "max_hold cuts off the writing of a record",
        [("src/guard.rs", "core.recording(&lease, time);", "")],
        ["--test it an_answer_that_takes_longer_to_write"],
    ),
    (
        "a release that is refused stays on a replica",
        [
            (
                "src/store/redis/driver.rs",
                'if error.to_string().contains("READONLY") {',
                'if !pending.ends_hold() && error.to_string().contains("READONLY") {',
            )
        ],
        ["--test it a_release_that_a_replica_refuses"],
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
        [(SLOT, "if question.unanswered => ErrorKind::Unavailable", "if question.unanswered => ErrorKind::TimedOut")],
        ["--test it a_wait_ends_on_time"],
    ),
    (
        "an answer that came too late refuses all",
        [
            (
                SLOT,
                "effects.push(release(token));\n                    self.acquire_failed(env, question,",
                "effects.push(release(token));\n                    self.reject_waiting(&unavailable(), effects);\n"
                "                    self.acquire_failed(env, question,",
            )
        ],
        ["--lib who_waits_already_goes_on_to_wait_after"],
    ),
    (
        "the manager stays on a runtime of one thread",
        [(BACKGROUND, "runtime.runtime_flavor() != RuntimeFlavor::CurrentThread", "true || runtime.runtime_flavor() != RuntimeFlavor::CurrentThread")],
        [
            "--test it a_manager_works_where_its_own_runtime",
            "--test it a_lock_is_renewed_while_its_thread",
        ],
    ),
    (
        "a request has no bound of its own",
        [(CORE, "Store::Redis(_) => Some(3 * self.command_timeout)", "Store::Redis(_) => None")],
        ["--test it a_request_is_answered_though_nothing_drives"],
    ),
    (
        "a waker that panics unwinds",
        [
            (
                CORE,
                "            shielded(|| {\n                waiter.send(match answer {",
                "            let _ = Some({\n                waiter.send(match answer {",
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
        "a receipt comes before the slot is settled",
        [
            (
                "src/store/redis/queue.rs",
                "        events.answered(&self.key, self.command, Outcome { sent_at, result });\n",
                "",
            ),
            (
                "src/store/redis/queue.rs",
                "            shielded(|| receipt.send(settled));\n        }\n",
                "            shielded(|| receipt.send(settled));\n"
                "            std::thread::sleep(std::time::Duration::from_millis(50));\n        }\n"
                "        events.answered(&self.key, self.command, Outcome { sent_at, result });\n",
            ),
        ],
        ["--test it managers_with_other_prefixes"],
    ),
    (
        "a handler that blocked past its lease succeeds",
        [
            ("src/future.rs", "let begun = match held.is_lost() {", "let begun = match false {"),
            ("src/future.rs", "match begun.filter(|_| !held.is_lost()) {", "match begun {"),
        ],
        ["--test it lock::lost::a_handler_that_blocked_past_its_lease"],
    ),
]


def copy():
    """The tracked files, each only if it changed: so that a build has little to do."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
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
