//! Locks in a Redis Cluster: `cargo bench --bench cluster`.
//!
//! The bench starts real redis-servers in cluster mode, all on this machine, and ends them. The
//! reference is the recipe that is written by hand, on the cluster client of redis-rs: `SET key
//! token NX PX ttl`, then a compare-and-delete by `EVALSHA`. All is measured in turns with it, or
//! at the same failover.
//!
//! Words behind `--` choose parts: rates, commands, failover. `--quick` only shows that they run.

#![allow(unreachable_pub)]

mod commands;
mod failover;
mod rates;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../tests/support/mod.rs"]
mod test_support;
mod ways;

use support::figures::Figures;
use support::options::Parts;
use support::orders::runtime;

fn main() {
    runtime(2).block_on(run(&Parts::from_args()));
}

async fn run(parts: &Parts) {
    let mut figures = Figures::default();
    if parts.wants("rates") {
        rates::measure(&mut figures).await;
    }
    if parts.wants("commands") {
        commands::measure(&mut figures).await;
    }
    if parts.wants("failover") {
        failover::measure(&mut figures).await;
    }
    figures.print();
}
