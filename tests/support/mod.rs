//! Real parts to test against, shared by the tests, the benchmarks and the proofs: Redis servers, a
//! proxy that can misbehave, and ways to wait for what must happen.
//!
//! A program takes them with `#[path = "…/tests/support/mod.rs"] mod support;`. Besides these
//! files, `tests/support` has some that not every program needs, as they bring dependencies along
//! or start processes: `once`, `nodes` with `way`, `servers`, `strict`, `certificates` and
//! `harness`. A program that wants one of them declares it in the same way, at its root, next to
//! `support`.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_debug_implementations,
    missing_docs
)]

mod cluster;
mod gate;
mod inspect;
mod managers;
mod mixed;
mod proxy;
pub mod random;
mod redis_server;
mod sentinel;
mod wait;

pub use cluster::Cluster;
pub use gate::{Gate, OnDrop};
pub use inspect::{
    calls, clients, eventually_no_trace, eventually_queued, expires_in, is_fence, names,
    queue_length, run, script_calls, sets, statistic, text, value, watched_keys,
};
pub use managers::{connections_per_manager, knows_what_was_said, minute, short_lived};
pub use mixed::mixed_load;
pub use proxy::{Mode, Proxy};
pub use redis_server::{
    ClosedPort, FREE_PORT, RedisServer, connect_patiently, has_resp3, is_before_redis_7,
    server_program, signal,
};
pub use sentinel::{PRIMARY, Sentinel, SentinelSet, sentinel_cut_off};
pub use wait::{PATIENCE, eventually, soon};
