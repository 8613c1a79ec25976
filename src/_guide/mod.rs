//! A guide to this crate, for reading rather than for looking things up. The module has no
//! items.
//!
//! The reference, which begins at the [crate's page](crate), tells what each type and each setting
//! does. These pages tell what to do with them, and what to expect.
//!
//! | Page | Read it |
//! |---|---|
//! | [`keys`] | before you choose what a request locks |
//! | [`idempotency`] | to handle webhooks and payments once |
//! | [`exactly_once`] | to know when a handler may run twice all the same |
//! | [`guarantees`] | before you rely on a lock |
//! | [`operations`] | before you go to production: Redis' version and settings, ACLs, failover, metrics, sizing |
//! | [`runbook`] | when an alert fires: what it means, and where to look |
//! | [`topologies`] | to choose between one server, Sentinel and a managed service, and to connect to it |
//! | [`recipes`] | for WebSockets, `select!` on a loss, JWT claims, tokens in JSON, Unix sockets, services that are not `Clone`, tonic's `named_layer` |
//! | [`testing`] | to test a service that uses these layers |
//! | [`interop`] | to share locks with background jobs and with other clients of Redis |
//!
//! # Which layer for what
//!
//! - Requests that change one resource must not overlap, and all of them are to run:
//!   [`DistributedLockLayer`](crate::DistributedLockLayer). They run one after the other.
//! - The same request may arrive twice, and is to run once:
//!   [`IdempotencyLayer`](crate::IdempotencyLayer). The duplicates get the response of the first. A
//!   lock alone only keeps two from running *at the same time*: the second would run afterwards.
//! - A request is to run to its end when its client leaves: [`DetachLayer`](crate::DetachLayer),
//!   outside of the lock. An `IdempotencyLayer` does that by itself.
//! - No request is involved: [`LockManager::acquire`](crate::LockManager::acquire).

pub mod exactly_once;
pub mod guarantees;
pub mod idempotency;
pub mod interop;
pub mod keys;
pub mod operations;
pub mod recipes;
pub mod runbook;
pub mod testing;
pub mod topologies;
