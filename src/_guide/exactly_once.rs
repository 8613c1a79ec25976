//! What "once" can mean, and when a handler may run twice.
//!
//! The effect of a handler and the note that it is done are in two places, and no middleware can
//! write both at once. An [`IdempotencyLayer`](crate::IdempotencyLayer) promises that two runs for
//! one key are never under way at the same time, as long as Redis keeps its data and a run stops
//! when it is told that its lock is lost. Once a response is stored, no further run begins until
//! its retention is over.
//!
//! # When a handler runs a second time
//!
//! - **Its process dies**, or its machine does, after the effect and before the response is in
//!   Redis. The key is free when the manager's [`ttl`](crate::LockManagerBuilder::ttl) (10 s) is
//!   over, and the next duplicate runs.
//! - **It loses its lock**: its process is frozen, its machine suspended, or Redis away, for longer
//!   than the `ttl`; or it runs for longer than [`max_hold`](crate::LockManagerBuilder::max_hold).
//!   It is stopped where it awaits (with [`OnLost::Continue`](crate::lock::OnLost::Continue) it
//!   goes on), and what it has done stays done. A process that was frozen may go on before it has
//!   looked, at the same time as a second run.
//! - **Redis cannot be reached when it ends**, until the lock has expired. Its client gets the
//!   response all the same, after the `command_timeout` (1 s) at the latest, and the log has an
//!   error. The response is stored if Redis is back before the lock has expired. While Redis can be
//!   reached and only refuses the response (`OOM`, `READONLY`), the lock stays the run's, for a
//!   `ttl` or until `max_hold` is over, whichever is later.
//! - **Redis has lost the response**, or the lock of a run: by a restart without its data, by a
//!   failover, because another client deleted it, because Redis evicts keys (`maxmemory-policy`;
//!   use `noeviction`), or because its clock was set forward. Where only a part of a long response
//!   is gone, it cannot be read: 500, for as long as the rest is kept.
//! - **The response is not to be remembered**, or the handler ended with an error or a panic. Then
//!   it is meant to run again.
//! - **The duplicate comes after the [retention](crate::IdempotencyLayer::retention)**, or has
//!   another key: another scope, prefix or database, or a header that one version of a service
//!   reads and another does not.
//!
//! # If it must not happen
//!
//! Let the place of the effect decide.
//!
//! - In a database, insert the event's id into a unique column, in the transaction that has the
//!   effect. The second run fails there, whatever the reason for it.
//! - Or have the storage check the [fencing token](crate::Lease::fencing_token) of the handler's
//!   `Lease`. That keeps out a run that comes late, though not a second one.
//! - For an effect elsewhere, pass the key on, if the other side takes one, as payment providers
//!   often do.
//!
//! The layer is still worth having: it keeps the duplicates away from the database, and gives them
//! their response.
