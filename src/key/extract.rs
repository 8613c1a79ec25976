//! Functions that return closures, which make a key of a request.

use std::sync::Arc;

use http::HeaderName;
use http::request::Parts;

use super::into_lock_key::{IntoLockKey, KeyResult};
use super::lock_key::LockKey;
use super::pattern::{PathPattern, decoded};
use crate::error::{Error, ErrorKind};

/// Takes the value of a request header as the key: `7`, if the request has `x-account-id: 7`. A
/// request without that header has no key, and is answered with 400.
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
/// DistributedLockLayer::new(locks, account) // account:7
/// # }
/// ```
pub fn header(name: &str) -> impl Fn(&Parts) -> KeyResult + Clone + Send + Sync + 'static {
    let name = HeaderName::from_bytes(name.as_bytes())
        .unwrap_or_else(|_| panic!("{name:?} cannot be the name of a header"));
    move |req| {
        let mut values = req.headers.get_all(&name).iter();
        let Some(value) = values.next() else {
            return Err(Error::of(ErrorKind::MissingKey));
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
        LockKey::new(value)
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
    |req| LockKey::join([req.method.as_str(), &*decoded(req.uri.path())?])
}

/// Takes the part of the path that a pattern names, up to its last parameter:
/// `/accounts/{id}/transfer` and `/accounts/{id}/deposit` lock the same account.
///
/// - `{name}` stands for one segment and becomes part of the key.
/// - `{*name}` at the end stands for all that follows, at least one segment, as in a router, and
///   becomes part of the key.
/// - `**` at the end stands for anything that may follow, nothing included, and is no part of the
///   key: for one layer over many routes.
/// - Any other segment must be equal. It becomes part of the key if a parameter follows.
///
/// | Pattern | Path | Key |
/// |---|---|---|
/// | `/accounts/{id}` | `/accounts/7` | `accounts:7` |
/// | `/accounts/{id}/transfer` | `/accounts/7/transfer` | `accounts:7` |
/// | `/accounts/{id}/deposit` | `/accounts/7/deposit` | `accounts:7` |
/// | `/accounts/{id}/**` | `/accounts/7`, `/accounts/7/`, `/accounts/7/cards/9` | `accounts:7` |
/// | `/accounts/{id}/cards/{card}/block` | `/accounts/7/cards/9/block` | `accounts:7:cards:9` |
/// | `/files/{*path}` | `/files/a/b.txt` | `files:a/b.txt` |
/// | `/accounts/{id}/{*rest}` | `/accounts/7/cards/9` | `accounts:7:cards/9`, one of many locks in the account |
/// | `/accounts/{id}` | `/accounts/%37` | `accounts:7`: escapes are decoded, as routers do |
/// | `/accounts/{id}` | `/accounts/a:b` | `accounts:a%3Ab`: parts are escaped, as in [`LockKey::join`] |
/// | `/accounts/{id}/` | `/accounts/7/` | `accounts:7` |
/// | `/accounts/{id}` | `/accounts/7/` (a slash at the end) | does not match: 500 |
/// | `/accounts/{id}` | `/Accounts/7` (another case) | does not match: 500 |
/// | `/accounts/{id}` | `/accounts/` (an empty parameter), `/accounts/%ff` (not UTF-8) | invalid: 400 |
/// | `/accounts/{id}` inside of `nest("/api", …)` | `/api/accounts/7` | `accounts:7` |
/// | `/api/accounts/{id}` around the router that nests | `/api/accounts/7` | `api:accounts:7` |
///
/// In a nested axum router, the path is what the outer router has left of it. Two that are nested
/// at `/a` and `/b` share their keys, unless each has a [`scope`] of its own.
///
/// A path that does not match is a mistake of the service, answered with 500: the pattern differs
/// from the route, or the layer is also around other routes, and around paths that have none. Put
/// it on the routes that it is for, with axum's `route_layer`. If the others need no lock, say so:
/// [`optional_key`](crate::DistributedLockLayer::optional_key).
///
/// A segment is text. If the handler parses it, `7`, `07` and `+7` may be the same to it, and are
/// three locks here. Then make the key of what was parsed: see the [guide](crate::_guide::keys).
///
/// # Panics
///
/// Panics if the pattern
///
/// - has no parameter, so that one lock would be for all requests: if that is meant, use the
///   closure `|_| "name"`;
/// - has a segment that begins with `:` or `*`, which was a parameter in older routers: write
///   `{id}`, `{*rest}` or `**`;
/// - has `{*name}` or `**` before its end, a brace that is not part of a whole segment, or an empty
///   segment before a parameter;
/// - does not begin with `/`.
///
/// # Example
///
/// ```
/// use tower_distributed_lock::{LockKey, key};
///
/// let account = key::path("/accounts/{id}/transfer");
/// let (parts, ()) = http::Request::post("/accounts/7/transfer").body(()).unwrap().into_parts();
/// assert_eq!(account(&parts)?.as_str(), "accounts:7");
/// # Ok::<(), tower_distributed_lock::Error>(())
/// ```
pub fn path(pattern: &str) -> impl Fn(&Parts) -> KeyResult + Clone + Send + Sync + 'static {
    let pattern = PathPattern::parse(pattern)
        .unwrap_or_else(|why| panic!("the path pattern {pattern:?} {why}"));
    let pattern = Arc::new(pattern);
    move |req| pattern.key(req.uri.path())
}

/// Puts the key that `key` finds into a scope of its own, `transfers:7`: two layers with different
/// scopes never share a lock.
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
    move |req| key(req).into_lock_key()?.within(&name)
}

/// Joins the keys that two closures find. If one of them finds none, the request has no key.
///
/// Each of the two is one part, and so escaped: of `x-tenant: a` and the account 7, the key in the
/// example is `a:accounts%3A7`.
///
/// # Example
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// DistributedLockLayer::new(
///     locks,
///     key::join(key::header("x-tenant"), key::path("/accounts/{id}/**")),
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
    move |req| {
        let (first, second) = (first(req).into_lock_key()?, second(req).into_lock_key()?);
        LockKey::join([first.as_str(), second.as_str()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str) -> Parts {
        let (parts, ()) = http::Request::post(uri).body(()).unwrap().into_parts();
        parts
    }

    #[test]
    fn routes_to_one_account_share_its_lock() {
        let transfer = path("/accounts/{id}/transfer")(&parts("/accounts/7/transfer?x=1"));
        let deposit = path("/accounts/{id}/deposit")(&parts("/accounts/7/deposit"));
        assert_eq!(transfer.unwrap(), deposit.unwrap());
    }

    #[test]
    #[should_panic(expected = "the path pattern \"/accounts/:id\" has the segment :id")]
    fn a_pattern_of_an_older_router_panics() {
        let _ = path("/accounts/:id");
    }

    #[test]
    fn another_spelling_of_a_path_is_the_same_lock() {
        assert_eq!(
            method_and_path()(&parts("/a/%37")).unwrap(),
            method_and_path()(&parts("/a/7")).unwrap()
        );
        let broken = method_and_path()(&parts("/a/%ff")).unwrap_err();
        assert_eq!(broken.kind(), ErrorKind::InvalidKey);
    }

    #[test]
    fn a_header_is_a_key_only_if_it_is_one_readable_value() {
        let account = header("x-account");
        let mut request = parts("/");
        assert_eq!(account(&request).unwrap_err().kind(), ErrorKind::MissingKey);
        request.headers.insert("x-account", "7".parse().unwrap());
        assert_eq!(account(&request).unwrap(), LockKey::new("7").unwrap());
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
        assert_eq!(by_tenant(&request).unwrap().as_str(), "t:a:b");
        let both = join(header("x-tenant"), path("/accounts/{id}"));
        assert_eq!(both(&request).unwrap().as_str(), "a%3Ab:accounts%3A7");
    }

    #[test]
    fn scopes_and_joins_have_no_key_where_one_of_theirs_is_missing() {
        let request = parts("/accounts/7");
        let tenant = || header("x-tenant");
        let error = scope("t", tenant())(&request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingKey);
        let error = join(path("/accounts/{id}"), tenant())(&request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingKey);
        let error = scope("t", path("/users/{id}"))(&request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
