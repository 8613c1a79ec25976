//! [`ModeOf`]: whether a request has its lock alone. [`share_safe_methods`]: by its method.

use std::sync::Arc;

use http::request::Parts;

use crate::mode::Mode;

/// A user's closure that says whether a request has its lock alone.
pub(super) type ModeOf = Arc<dyn Fn(&Parts) -> Mode + Send + Sync>;

/// Shares the lock among requests with a *safe* method ([RFC 9110]), which only reads: GET, HEAD,
/// OPTIONS and TRACE. For [`DistributedLockLayer::mode`].
///
/// # Example
///
/// ```
/// use tower_distributed_lock::{Mode, lock::share_safe_methods};
///
/// let (parts, ()) = http::Request::get("/").body(()).unwrap().into_parts();
/// assert_eq!(share_safe_methods(&parts), Mode::Shared);
/// let (parts, ()) = http::Request::post("/").body(()).unwrap().into_parts();
/// assert_eq!(share_safe_methods(&parts), Mode::Exclusive);
/// ```
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110#section-9.2.1
/// [`DistributedLockLayer::mode`]: crate::DistributedLockLayer::mode
pub fn share_safe_methods(request: &Parts) -> Mode {
    match request.method.is_safe() {
        true => Mode::Shared,
        false => Mode::Exclusive,
    }
}
