//! [`IntoLockKey`]: what a closure may return as a key.

use super::lock_key::LockKey;
use crate::error::Error;

/// What a key closure may return: a key, no key, or an error.
///
/// | Returned | The request |
/// |---|---|
/// | a [`LockKey`], a `String` or a `&'static str` | has that key |
/// | `None` | has no key: it runs without a lock, unless the layer says `require_key(true)` |
/// | `Err`, or text that cannot be a key (it is empty) | is answered with 400 |
///
/// It is implemented for any nesting of `Option` and `Result<_, Error>` around these, so that `?`
/// and [`LockKey::join`] can be used as they are:
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockKey, LockManager};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// DistributedLockLayer::new(locks, |req| {
///     let tenant = req.headers.get("x-tenant")?.to_str().ok()?; // no such header: no lock
///     Some(LockKey::join(["tenant", tenant])) // an empty header: 400
/// })
/// # }
/// ```
pub trait IntoLockKey {
    /// Returns the key, or `None` where the request has none.
    ///
    /// # Errors
    ///
    /// Returns an error of kind [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey) where what
    /// was found cannot be a key.
    fn into_lock_key(self) -> Result<Option<LockKey>, Error>;
}

impl IntoLockKey for LockKey {
    fn into_lock_key(self) -> Result<Option<LockKey>, Error> {
        Ok(Some(self))
    }
}

impl IntoLockKey for String {
    fn into_lock_key(self) -> Result<Option<LockKey>, Error> {
        LockKey::new(self).map(Some)
    }
}

impl IntoLockKey for &'static str {
    fn into_lock_key(self) -> Result<Option<LockKey>, Error> {
        LockKey::new(self).map(Some)
    }
}

impl<K: IntoLockKey> IntoLockKey for Option<K> {
    fn into_lock_key(self) -> Result<Option<LockKey>, Error> {
        self.map_or(Ok(None), K::into_lock_key)
    }
}

impl<K: IntoLockKey> IntoLockKey for Result<K, Error> {
    fn into_lock_key(self) -> Result<Option<LockKey>, Error> {
        self.and_then(K::into_lock_key)
    }
}

/// What the closures of this module return: a key, `None` (no key), or an error (400).
pub type KeyResult = Result<Option<LockKey>, Error>;
