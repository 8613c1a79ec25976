//! [`shielded`]: runs code of others.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs what may panic and must not take its caller along: wakers and subscribers that belong to the
/// service. Returns `None` if it did. Its message has been printed by the panic hook.
///
/// What it changes must make sense at whatever point it stops.
pub(crate) fn shielded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
