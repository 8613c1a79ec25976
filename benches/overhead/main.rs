//! The cost of the layer to a request whose lock no other wants: `cargo bench --bench overhead`.
//!
//! All figures are measured in turns with their reference, in the same run. The reference on Redis
//! is the cheapest recipe that can be written by hand: `SET key token NX PX ttl`, the work, then a
//! compare-and-delete by `EVALSHA`, on one multiplexed connection that all clients of a process
//! share. It comes with both commands awaited, and with its release in the background. The layer
//! comes with `.wait(…)` and without.
//!
//! Words behind `--` choose parts: memory, redis, one, many, nodes, http, and with
//! `--features observed` the part of that name. `--quick` only shows that they run.

#![allow(unreachable_pub)]

mod in_memory;
mod inside_redis;
mod many_clients;
mod node;
mod nodes;
#[cfg(feature = "observed")]
mod observed;
mod one_client;
mod over_http;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../tests/support/mod.rs"]
mod test_support;
mod ways;

use support::figures::Figures;
use support::options::Parts;
use support::orders::runtime;
use support::workers;
use test_support::RedisServer;

fn main() {
    if let Ok(url) = std::env::var(workers::URL) {
        node::run(&url);
        return;
    }
    runtime(2).block_on(run(&Parts::from_args()));
}

async fn run(parts: &Parts) {
    let server = RedisServer::start().await;
    let mut figures = Figures::default();
    if parts.wants("memory") {
        in_memory::measure(&mut figures).await;
    }
    if parts.wants("redis") {
        inside_redis::locks(&server, &mut figures).await;
        inside_redis::hand_offs(&server, &mut figures).await;
    }
    if parts.wants("one") {
        one_client::measure(&server, &mut figures).await;
    }
    if parts.wants("many") {
        many_clients::measure(&server, &mut figures).await;
    }
    if parts.wants("nodes") {
        nodes::measure(&server, &mut figures).await;
    }
    #[cfg(feature = "observed")]
    if parts.wants("observed") {
        observed::measure(&server, &mut figures).await;
    }
    if parts.wants("http") {
        over_http::compare(&server, &mut figures).await;
    }
    figures.print();
}
