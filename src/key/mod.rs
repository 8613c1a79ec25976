//! What is locked: [`LockKey`], and functions that make one from a request.
//!
//! A key comes, more often than not, from a stranger's request. Three rules keep that safe:
//!
//! - **Parts do not run together.** [`LockKey::join`] escapes its separator, so `("a:b", "c")` and
//!   `("a", "b:c")` are two locks.
//! - **Size is bounded.** A key longer than [`LockKey::MAX_LEN`] bytes is replaced by its SHA-256.
//! - **Keys are not printed.** `Debug` and the crate's `tracing` events show a short hash.
//!
//! The functions of this module ([`header`], [`path`], [`method_and_path`], [`scope`], [`join`]) return closures
//! for [`DistributedLockLayer::new`](crate::DistributedLockLayer::new):
//!
//! ```
//! use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let locks = LockManager::in_memory();
//! // One lock per account, whatever is done to it: /accounts/7, /accounts/7/transfer, …
//! let layer = DistributedLockLayer::new(locks, key::path("/accounts/{id}/{*rest}"));
//! # }
//! ```

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, OnceLock};

use http::HeaderName;
use http::request::Parts;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind};

/// The name of a lock, unique within the prefix of its [`LockManager`](crate::LockManager).
///
/// In Redis it stands behind that prefix, byte for byte, so that other clients can take the same lock.
///
/// ```
/// use tower_distributed_lock::LockKey;
///
/// let key = LockKey::new("account:7")?;
/// assert_eq!(key, LockKey::join(["account", "7"])?);
/// assert_ne!(LockKey::join(["a:b", "c"])?, LockKey::join(["a", "b:c"])?);
/// assert!(LockKey::new("").is_err());
/// # Ok::<(), tower_distributed_lock::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct LockKey {
    /// Keyed, so that nobody can choose keys with equal hashes. Taken once: a key is looked up several times on its way.
    hash: u64,
    kind: Kind,
    text: Arc<str>,
}

/// What a key names. Keys of different kinds have nothing to do with each other, whatever their texts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Lock,
    /// What was answered to an idempotency key, and before that, who is about to answer.
    Record,
}

impl Hash for LockKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// What stands between the parts of a joined key.
const SEPARATOR: &str = ":";
/// How a key that was replaced by its hash begins.
const HASHED: &str = "sha256:";
/// Escaped in a joined part: the separator, the escape itself, and braces, which choose a slot in Redis Cluster.
const ESCAPED: &AsciiSet = &CONTROLS.add(b':').add(b'%').add(b'{').add(b'}');

impl LockKey {
    /// The longest key that is used as it is, in bytes. A longer one is replaced by its SHA-256.
    pub const MAX_LEN: usize = 512;

    /// A key of one piece.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`] if it is empty.
    pub fn new(key: impl AsRef<str>) -> Result<Self, Error> {
        let key = key.as_ref();
        if key.is_empty() {
            return Err(Error::new(ErrorKind::InvalidKey, "the lock key is empty"));
        }
        // A short key that looks like a hash is hashed too: it must not name a long key's lock.
        if key.len() > Self::MAX_LEN || key.starts_with(HASHED) {
            let digest = Sha256::digest(key.as_bytes());
            return Ok(Self::of(Kind::Lock, &format!("{HASHED}{}", Hex(&digest))));
        }
        Ok(Self::of(Kind::Lock, key))
    }

    fn of(kind: Kind, text: &str) -> Self {
        static KEYED: OnceLock<RandomState> = OnceLock::new();
        Self {
            hash: KEYED.get_or_init(RandomState::new).hash_one((kind, text)),
            kind,
            text: text.into(),
        }
    }

    /// The key of a record, of several parts. Its text holds no braces.
    pub(crate) fn record<'a>(parts: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        Ok(Self::of(Kind::Record, &Self::join(parts)?.text))
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The hash that it was made with.
    pub(crate) fn hashed(&self) -> u64 {
        self.hash
    }

    /// A key of several parts, `a:b:c`. A part's own `:`, `%`, braces and control characters are percent-escaped, so
    /// different parts are different locks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`] if there is no part or one is empty: a part that is missing by
    /// mistake would otherwise make all such requests share one lock.
    pub fn join<I>(parts: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut joined = String::new();
        for part in parts {
            let part = part.as_ref();
            if part.is_empty() {
                return Err(Error::new(
                    ErrorKind::InvalidKey,
                    "a part of the lock key is empty",
                ));
            }
            if !joined.is_empty() {
                joined.push_str(SEPARATOR);
            }
            joined.extend(utf8_percent_encode(part, ESCAPED));
        }
        Self::new(joined)
    }

    /// A key whose text came from a store.
    pub(crate) fn from_store(kind: Kind, text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::of(kind, text))
    }

    /// This key inside a scope of its own: the key as it is, behind the escaped name.
    fn within(&self, scope: &str) -> Result<Self, Error> {
        let scope = Self::join([scope])?;
        Self::new(format!("{}{SEPARATOR}{}", scope.text, self.text))
    }

    /// The key's text, as it stands in Redis behind the prefix.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Sixteen hexadecimal digits of the key's SHA-256: enough to follow one key through a log,
    /// not enough to read it there. This is what `Debug` and the `tracing` events show.
    pub fn fingerprint(&self) -> String {
        Hex(&Sha256::digest(self.text.as_bytes())[..8]).to_string()
    }
}

impl fmt::Debug for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockKey({})", self.fingerprint())
    }
}

impl TryFrom<&str> for LockKey {
    type Error = Error;

    fn try_from(key: &str) -> Result<Self, Error> {
        Self::new(key)
    }
}

impl TryFrom<String> for LockKey {
    type Error = Error;

    fn try_from(key: String) -> Result<Self, Error> {
        Self::new(key)
    }
}

impl TryFrom<&String> for LockKey {
    type Error = Error;

    fn try_from(key: &String) -> Result<Self, Error> {
        Self::new(key)
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a key closure may return: a key, no key (`None`: the request needs no lock), or an error (400).
///
/// Implemented for `String`, `&'static str` and [`LockKey`], and for any nesting of `Option` and `Result<_, Error>` around
/// them.
pub trait IntoLockKey {
    /// The key, `None` where the request needs no lock.
    ///
    /// # Errors
    ///
    /// Of kind [`ErrorKind::InvalidKey`], where what was found cannot be a key.
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

/// What the closures of this module return.
pub type KeyResult = Result<Option<LockKey>, Error>;

/// The value of a request header. No such header: no lock.
///
/// The value is the whole key. In a [`scope`], it cannot name the lock of something else.
///
/// A value that is not visible ASCII is an invalid key, answered with 400, and so is a header that is there more
/// than once: which of the values the handler will read is unknown here.
///
/// # Panics
///
/// If `name` cannot be a header's name.
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

/// The request's method and path, `POST:/accounts/7`. The query does not count.
///
/// In a nested axum router, the path is what is left of it there: give each a [`scope`] of its own.
///
/// The path is percent-decoded first, as routers do: `/accounts/%37` must not get past the lock of `/accounts/7`.
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

/// The part of the path that a pattern names: `/accounts/{id}/{*rest}` locks each account once, whatever follows.
///
/// `{name}` stands for one segment and becomes part of the key, other segments must be equal, and `{*rest}` at the
/// end stands for anything that may follow, nothing included, and is no part of the key. A path that does
/// not match needs no lock. Segments are percent-decoded before they are compared and used, as routers do.
///
/// A segment is text. If the handler parses it, `7` and `07` may be the same to it, and two locks here: make the key in a
/// middleware then, from what was parsed ([`from_extension`](crate::DistributedLockLayer::from_extension)).
///
/// # Panics
///
/// If the pattern does not begin with `/`, holds a brace that is not part of a whole segment, or has `{*rest}`
/// before its end.
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
    let pattern: Arc<[Segment]> = parse_pattern(pattern)
        .unwrap_or_else(|why| panic!("the path pattern {pattern:?} {why}"))
        .into();
    move |req| match_path(&pattern, req.uri.path())
}

/// The key that `key` finds, in a scope of its own: two layers with different scopes never share a lock.
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// DistributedLockLayer::new(locks, key::scope("transfers", key::header("x-account-id")))
/// # }
/// ```
///
/// # Panics
///
/// If `name` is empty.
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

/// The keys that two closures find, joined. If one finds none, the request needs no lock.
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

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Parameter,
    Rest,
}

fn parse_pattern(pattern: &str) -> Result<Vec<Segment>, &'static str> {
    let segments = pattern
        .strip_prefix('/')
        .ok_or("does not begin with a slash")?;
    let segments: Vec<Segment> = segments
        .split('/')
        .map(|segment| {
            let name = segment
                .strip_prefix('{')
                .and_then(|name| name.strip_suffix('}'));
            match name {
                Some("" | "*") => Err("has a parameter without a name"),
                Some(name) if name.starts_with('*') => Ok(Segment::Rest),
                Some(_) => Ok(Segment::Parameter),
                None if segment.contains(['{', '}']) => {
                    Err("has a brace inside a segment: a parameter is a whole segment, like {id}")
                }
                None => Ok(Segment::Literal(segment.to_owned())),
            }
        })
        .collect::<Result<_, _>>()?;
    match segments.iter().position(|s| *s == Segment::Rest) {
        Some(at) if at + 1 < segments.len() => Err("has {*rest} before its end"),
        _ => Ok(segments),
    }
}

fn match_path(pattern: &[Segment], path: &str) -> KeyResult {
    let mut parts = Vec::with_capacity(pattern.len());
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
    for expected in pattern {
        if *expected == Segment::Rest {
            return LockKey::join(parts).map(Some);
        }
        let Some(segment) = segments.next() else {
            return Ok(None);
        };
        let segment = decoded(segment)?;
        match expected {
            Segment::Literal(literal) if *literal != *segment => return Ok(None),
            // `/` alone has one empty literal, which names nothing.
            Segment::Literal(literal) if literal.is_empty() => parts.push(Cow::Borrowed("/")),
            _ => parts.push(segment),
        }
    }
    match segments.next() {
        Some(_) => Ok(None),
        None => LockKey::join(parts).map(Some),
    }
}

fn decoded(raw: &str) -> Result<Cow<'_, str>, Error> {
    percent_decode_str(raw).decode_utf8().map_err(|_| {
        Error::new(
            ErrorKind::InvalidKey,
            "the path is not UTF-8 once its escapes are read",
        )
    })
}

#[cfg(all(test, feature = "properties"))]
mod properties;

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
    fn an_empty_key_and_an_empty_part_are_refused() {
        assert_eq!(LockKey::new("").unwrap_err().kind(), ErrorKind::InvalidKey);
        assert!(LockKey::join(["a", ""]).is_err());
        assert!(LockKey::join([] as [&str; 0]).is_err());
    }

    #[test]
    fn a_long_key_is_hashed_and_differs_from_its_neighbours() {
        let long = "k".repeat(LockKey::MAX_LEN + 1);
        let hashed = LockKey::new(&long).unwrap();
        assert_eq!(hashed.as_str().len(), "sha256:".len() + 64);
        assert_ne!(hashed, LockKey::new(long + "k").unwrap());
        let whole = LockKey::new("k".repeat(LockKey::MAX_LEN)).unwrap();
        assert_eq!(whole.as_str().len(), LockKey::MAX_LEN);
    }

    #[test]
    fn a_short_key_cannot_pose_as_the_hash_of_a_long_one() {
        let hashed = LockKey::new("k".repeat(4000)).unwrap();
        assert_ne!(LockKey::new(hashed.as_str()).unwrap(), hashed);
    }

    #[test]
    fn line_breaks_and_braces_in_parts_are_escaped() {
        let key = LockKey::join(["a\r\nb", "{c}"]).unwrap();
        assert_eq!(key.as_str(), "a%0D%0Ab:%7Bc%7D");
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let key = LockKey::new("customer@example.com").unwrap();
        assert!(!format!("{key:?}").contains("customer"));
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
    fn wrong_patterns_are_refused() {
        for pattern in ["accounts", "/a{id}", "/{}", "/{*}", "/{*rest}/a", "/a/{id"] {
            assert!(parse_pattern(pattern).is_err(), "{pattern}");
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
