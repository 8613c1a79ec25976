//! [`shielded`]: runs code that may panic, and must not take its caller along.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs work that may panic: it calls wakers and subscribers of the service, or has a mistake of
/// this crate. Returns `None` if the work panicked. The panic hook has printed the message by then.
///
/// Whatever the work changes must make sense at any point at which it may stop.
pub(crate) fn shielded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
