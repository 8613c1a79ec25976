//! [`OnLost`]: what happens to a request whose lock is lost.

/// What happens to a request whose lock is lost while it runs.
///
/// A setting of both layers: [`DistributedLockLayer::on_lost`] and [`IdempotencyLayer::on_lost`].
///
/// [`DistributedLockLayer::on_lost`]: crate::DistributedLockLayer::on_lost
/// [`IdempotencyLayer::on_lost`]: crate::IdempotencyLayer::on_lost
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnLost {
    /// The handler is stopped where it awaits, and the request is answered with 503.
    ///
    /// A handler that could not be stopped, as it blocked its thread, is answered with 503 as well,
    /// whatever response it returned. If the body of the response was already on its way, the body
    /// ends with an error.
    #[default]
    Cancel,
    /// The request runs on. Its handler can watch [`Lease::lost`](crate::Lease::lost) itself.
    ///
    /// # Warning
    ///
    /// From then on, another request may hold the lock and run at the same time, and a response is
    /// passed on as a success though the lock is gone. Choose this only if the storage checks the
    /// [fencing token](crate::Lease::fencing_token) of every write, or if the handler itself stops
    /// at a safe point.
    Continue,
}
