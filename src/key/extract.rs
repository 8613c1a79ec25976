//! Functions that return closures, which make a key of a request.

use std::sync::Arc;

use http::HeaderName;
use http::request::Parts;

use super::into_lock_key::{IntoLockKey, KeyResult};
use super::lock_key::LockKey;
use super::pattern::{PathPattern, decoded};
use crate::error::{Error, ErrorKind};

/// Takes the value of a request header as the key. A request without that header has no key.
///
/// The value is the whole key. Put it into a [`scope`], unless every key comes from that header: a
/// client could otherwise name the lock of something else.
///
/// A value that is not visible ASCII, or empty, is an invalid key, answered with 400. So is a
/// header that is there more than once, as it is unknown which of the values the handler will read.
///
/// # Panics
///
/// Panics if `name` cannot be a header's name.
///
/// # Example
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// let account = key::scope("account", key::header("x-account-id"));
/// DistributedLockLayer::new(locks, account).require_key(true)
/// # }
/// ```
pub fn header(name: &str) -> impl Fn(&Parts) -> KeyResult + Clone + Send + Sync + 'static {
    let name = HeaderName::from_bytes(name.as_bytes())
        .unwrap_or_else(|_| panic!("{name:?} cannot be the name of a header"));
    move |req| {
        let mut values = req.headers.get_all(&name).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(Error::new(
                ErrorKind::InvalidKey,
                format!("the header {name} is there more than once"),
            ));
        }
        let value = value.to_str().map_err(|_| {
            Error::new(
                ErrorKind::InvalidKey,
                format!("the header {name} is not visible ASCII"),
            )
        })?;
        LockKey::new(value).map(Some)
    }
}

/// Takes the request's method and path as the key: `POST:/accounts/7`. The query does not count.
///
/// The path is percent-decoded first, as routers do: `/accounts/%37` must not get past the lock of
/// `/accounts/7`. A path that is not UTF-8 then is answered with 400.
///
/// In a nested axum router, the path is what the outer router has left of it. Give each nested
/// router a [`scope`] of its own.
///
/// # Example
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// DistributedLockLayer::new(locks, key::method_and_path())
/// # }
/// ```
pub fn method_and_path() -> impl Fn(&Parts) -> KeyResult + Clone + Send + Sync + 'static {
    |req| LockKey::join([req.method.as_str(), &*decoded(req.uri.path())?]).map(Some)
}

/// Takes the part of the path that a pattern names: `/accounts/{id}/{*rest}` locks each account
/// once, whatever follows.
///
/// - `{name}` stands for one segment and becomes part of the key.
/// - `{*rest}` at the end stands for anything that may follow, nothing included, and is no part of
///   the key.
/// - Any other segment must be equal, and becomes part of the key.
///
/// A path that does not match has no key. Segments are percent-decoded before they are compared and
/// used, as routers do: `/accounts/%37` is `/accounts/7`. A parameter that is empty or not UTF-8 is
/// answered with 400.
///
/// A segment is text. If the handler parses it, `7`, `07` and `+7` may be the same to it, and are
/// three locks here. Then make the key in a middleware, from what was parsed:
/// [`from_extension`](crate::DistributedLockLayer::from_extension).
///
/// # Panics
///
/// Panics if the pattern does not begin with `/`, holds a brace that is not part of a whole
/// segment, or has `{*rest}` before its end.
///
/// # Example
///
/// ```
/// use tower_distributed_lock::{LockKey, key};
///
/// let account = key::path("/accounts/{id}/{*rest}");
/// let (parts, ()) = http::Request::get("/accounts/7/transfer").body(()).unwrap().into_parts();
/// assert_eq!(account(&parts)?, Some(LockKey::join(["accounts", "7"])?));
/// # Ok::<(), tower_distributed_lock::Error>(())
/// ```
pub fn path(pattern: &str) -> impl Fn(&Parts) -> KeyResult + Clone + Send + Sync + 'static {
    let pattern = PathPattern::parse(pattern)
        .unwrap_or_else(|why| panic!("the path pattern {pattern:?} {why}"));
    let pattern = Arc::new(pattern);
    move |req| pattern.key(req.uri.path())
}

/// Puts the key that `key` finds into a scope of its own: two layers with different scopes never
/// share a lock.
///
/// # Panics
///
/// Panics if `name` is empty.
///
/// # Example
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// DistributedLockLayer::new(locks, key::scope("transfers", key::header("x-account-id")))
/// # }
/// ```
pub fn scope<F, K>(
    name: &str,
    key: F,
) -> impl Fn(&Parts) -> KeyResult + Clone + Send + Sync + 'static
where
    F: Fn(&Parts) -> K + Clone + Send + Sync + 'static,
    K: IntoLockKey,
{
    assert!(!name.is_empty(), "the name of a key's scope is empty");
    let name: Arc<str> = name.into();
    move |req| match key(req).into_lock_key()? {
        Some(key) => key.within(&name).map(Some),
        None => Ok(None),
    }
}

/// Joins the keys that two closures find. If one of them finds none, the request has no key.
///
/// # Example
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// DistributedLockLayer::new(
///     locks,
///     key::join(key::header("x-tenant"), key::path("/accounts/{id}/{*rest}")),
/// )
/// # }
/// ```
pub fn join<F, G, K, L>(
    first: F,
    second: G,
) -> impl Fn(&Parts) -> KeyResult + Clone + Send + Sync + 'static
where
    F: Fn(&Parts) -> K + Clone + Send + Sync + 'static,
    G: Fn(&Parts) -> L + Clone + Send + Sync + 'static,
    K: IntoLockKey,
    L: IntoLockKey,
{
    move |req| match (first(req).into_lock_key()?, second(req).into_lock_key()?) {
        (Some(first), Some(second)) => LockKey::join([first.as_str(), second.as_str()]).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str) -> Parts {
        let (parts, ()) = http::Request::post(uri).body(()).unwrap().into_parts();
        parts
    }

    fn key(parts: &[&str]) -> Option<LockKey> {
        Some(LockKey::join(parts).unwrap())
    }

    #[test]
    fn a_pattern_takes_its_parameters_and_leaves_the_rest() {
        let account = path("/accounts/{id}/{*rest}");
        assert_eq!(
            account(&parts("/accounts/7")).unwrap(),
            key(&["accounts", "7"])
        );
        assert_eq!(
            account(&parts("/accounts/7/")).unwrap(),
            key(&["accounts", "7"])
        );
        assert_eq!(
            account(&parts("/accounts/7/transfer?x=1")).unwrap(),
            key(&["accounts", "7"])
        );
        assert_eq!(account(&parts("/accounts")).unwrap(), None);
        assert_eq!(account(&parts("/users/7")).unwrap(), None);
        let exact = path("/accounts/{id}");
        assert_eq!(exact(&parts("/accounts/7/transfer")).unwrap(), None);
        assert_eq!(path("/")(&parts("/")).unwrap(), key(&["/"]));
    }

    #[test]
    fn another_spelling_of_a_path_is_the_same_lock() {
        let account = path("/accounts/{id}");
        assert_eq!(
            account(&parts("/%61ccounts/%37")).unwrap(),
            account(&parts("/accounts/7")).unwrap()
        );
        assert_eq!(
            method_and_path()(&parts("/a/%37")).unwrap(),
            method_and_path()(&parts("/a/7")).unwrap()
        );
    }

    #[test]
    fn a_slash_inside_a_parameter_stays_inside() {
        let nested = path("/a/{x}/{y}");
        assert_ne!(
            nested(&parts("/a/b%2Fc/d")).unwrap(),
            nested(&parts("/a/b/c%2Fd")).unwrap()
        );
    }

    #[test]
    fn an_empty_parameter_and_broken_utf8_are_invalid() {
        let account = path("/accounts/{id}");
        for uri in ["/accounts/", "/accounts/%ff"] {
            let error = account(&parts(uri)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{uri}");
        }
    }

    #[test]
    fn a_header_is_a_key_only_if_it_is_one_readable_value() {
        let account = header("x-account");
        let mut request = parts("/");
        assert_eq!(account(&request).unwrap(), None);
        request.headers.insert("x-account", "7".parse().unwrap());
        assert_eq!(account(&request).unwrap(), Some(LockKey::new("7").unwrap()));
        request.headers.append("x-account", "8".parse().unwrap());
        assert!(account(&request).is_err());
        let raw = http::HeaderValue::from_bytes(b"\xff").unwrap();
        request.headers.insert("x-account", raw);
        assert_eq!(account(&request).unwrap_err().kind(), ErrorKind::InvalidKey);
    }

    #[test]
    fn scopes_and_joins_keep_keys_apart() {
        let mut request = parts("/accounts/7");
        request.headers.insert("x-tenant", "a:b".parse().unwrap());
        let by_tenant = scope("t", header("x-tenant"));
        assert_eq!(by_tenant(&request).unwrap().unwrap().as_str(), "t:a:b");
        let both = join(header("x-tenant"), path("/accounts/{id}"));
        assert_eq!(
            both(&request).unwrap().unwrap().as_str(),
            "a%3Ab:accounts%3A7"
        );
    }
}
