//! Shared by the benchmarks.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations
)]

pub mod clock;
pub mod command_stats;
pub mod figures;
pub mod load;
pub mod monitor;
pub mod options;
pub mod orders;
pub mod recipe;
pub mod usage;
pub mod workers;
