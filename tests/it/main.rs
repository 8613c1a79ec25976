//! Everything that can run side by side in one process: a room for each subject, and `support` for
//! all.
//!
//! What needs a process of its own is next to this folder: `chaos`, `processes` and `storm` start
//! themselves as workers, and `tracing` has a subscriber for the whole process.

#![allow(unreachable_pub)]
// The examples that are tested here share one.
#![allow(clippy::duplicate_mod)]

#[cfg(feature = "tls")]
#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/once.rs"]
mod once;
#[macro_use]
#[path = "../support/nodes.rs"]
mod nodes;
#[path = "../support/servers/mod.rs"]
mod servers;
#[path = "../support/strict.rs"]
mod strict;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/way.rs"]
mod way;
#[allow(dead_code)] // Its `main`, and what only that uses.
#[path = "../../examples/webhook.rs"]
mod webhook;
#[allow(dead_code)]
#[path = "../../examples/websocket.rs"]
mod websocket;

mod doubles;
mod idempotency;
mod inspector;
mod lock;
mod manager;
mod operator;
mod redis;
