//! [`shielded`]: runs code of the service, which may panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs work that calls wakers and subscribers of the service, whose panic must not unwind the
/// caller. Returns `None` if the work panicked. The panic hook has printed the message by then.
///
/// Whatever the work changes must make sense at any point at which it may stop.
pub(crate) fn shielded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
