//! [`OnLost`]: what becomes of a request whose lock is lost.

/// What happens to a request whose lock is lost: see [`DistributedLockLayer::on_lost`](crate::DistributedLockLayer::on_lost).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnLost {
    /// Its handler is stopped where it awaits, and it is answered with 503. So is one that could
    /// not be stopped, as it blocked its thread, whatever response it returned. If its body was
    /// already on its way, the body ends with an error.
    #[default]
    Cancel,
    /// It runs on. The handler can watch [`Lease::lost`](crate::Lease::lost) itself.
    Continue,
}
