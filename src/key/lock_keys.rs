//! [`LockKeys`]: the locks of one request. [`IntoLockKeys`]: what can be made that.

use std::slice;
use std::vec;

use super::into_lock_key::IntoLockKey;
use super::lock_key::LockKey;
use crate::error::{Error, ErrorKind};

/// The locks of one request: one key or several, sorted, each of them once.
///
/// An array and a `Vec` become this by themselves, where a layer's closure returns one: see
/// [`IntoLockKeys`]. It is needed by name where an outer middleware puts several keys into the
/// extensions, for [`from_extension`](crate::DistributedLockLayer::from_extension).
///
/// # Example
///
/// ```
/// use tower_distributed_lock::{LockKey, key::LockKeys};
///
/// let keys = LockKeys::new([("account", 9), ("account", 7), ("account", 9)])?;
/// let texts: Vec<&str> = keys.as_slice().iter().map(LockKey::as_str).collect();
/// assert_eq!(texts, ["account:7", "account:9"]);
/// # Ok::<(), tower_distributed_lock::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockKeys(Keys);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Keys {
    /// A key that was given as one. It needs no memory on the heap.
    One(LockKey),
    /// Sorted, without duplicates. Never empty.
    Several(Vec<LockKey>),
}

impl LockKeys {
    /// Makes the keys of several values.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::MissingKey`] if there is none, and the error of a value that is no key.
    pub fn new<I>(keys: I) -> Result<Self, Error>
    where
        I: IntoIterator<Item: IntoLockKey>,
    {
        let keys = keys.into_iter().map(IntoLockKey::into_lock_key);
        let mut keys = keys.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(Error::of(ErrorKind::MissingKey));
        }
        // All processes take locks in this order, and so never wait for each other in a circle.
        // Versions of this crate that run side by side must agree on it.
        keys.sort_unstable_by(|one, other| one.order().cmp(&other.order()));
        keys.dedup();
        Ok(Self(Keys::Several(keys)))
    }

    /// Returns the keys, in the order in which requests wait for them.
    pub fn as_slice(&self) -> &[LockKey] {
        match &self.0 {
            Keys::One(key) => slice::from_ref(key),
            Keys::Several(keys) => keys,
        }
    }

    /// Returns the key that was given as one. `None` if several were, be it that only one is left
    /// of them.
    pub(crate) fn one(&self) -> Option<&LockKey> {
        match &self.0 {
            Keys::One(key) => Some(key),
            Keys::Several(_) => None,
        }
    }

    /// Like [`one`](Self::one), by value.
    pub(crate) fn into_one(self) -> Result<LockKey, Self> {
        match self.0 {
            Keys::One(key) => Ok(key),
            Keys::Several(_) => Err(self),
        }
    }

    /// Leaves out the keys for which `is_held` holds. Returns the others, if there are any.
    pub(crate) fn without(self, is_held: impl Fn(&LockKey) -> bool) -> Option<Self> {
        let keys = match self.0 {
            Keys::One(key) => return (!is_held(&key)).then(|| key.into()),
            Keys::Several(mut keys) => {
                keys.retain(|key| !is_held(key));
                keys
            }
        };
        (!keys.is_empty()).then_some(Self(Keys::Several(keys)))
    }
}

impl From<LockKey> for LockKeys {
    fn from(key: LockKey) -> Self {
        Self(Keys::One(key))
    }
}

impl IntoIterator for LockKeys {
    type Item = LockKey;
    type IntoIter = vec::IntoIter<LockKey>;

    fn into_iter(self) -> Self::IntoIter {
        match self.0 {
            Keys::One(key) => vec![key].into_iter(),
            Keys::Several(keys) => keys.into_iter(),
        }
    }
}

impl<'a> IntoIterator for &'a LockKeys {
    type Item = &'a LockKey;
    type IntoIter = slice::Iter<'a, LockKey>;

    fn into_iter(self) -> Self::IntoIter {
        self.as_slice().iter()
    }
}

/// What the closure of a [`DistributedLockLayer`](crate::DistributedLockLayer) returns: one key, or
/// several, all of which the request then holds.
///
/// | Value | Locks |
/// |---|---|
/// | whatever is [`IntoLockKey`], a tuple such as `("account", 7)` included | one |
/// | `[key, key]`: an array, or a `Vec`, of these | several |
/// | [`LockKeys`] | several |
/// | `Some` or `Ok` of the above | the same |
/// | `None`, an empty `Vec` | no key: 400, unless the layer says [`optional_key`] |
/// | `Err` | the request is refused, with the status of the error's kind |
///
/// A tuple is never several keys: it is the parts of one. So what is one lock stays one.
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockManager};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// // A transfer holds both accounts. Whether from 7 to 9 or from 9 to 7, it cannot deadlock.
/// DistributedLockLayer::new(locks, |req| {
///     let account = |name| req.headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
///     Some([("account", account("x-from")?), ("account", account("x-to")?)])
/// })
/// # }
/// ```
///
/// [`optional_key`]: crate::DistributedLockLayer::optional_key
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a lock key nor several",
    label = "the keys of a request cannot be made of this",
    note = "several keys are an array, a `Vec` or `LockKeys` of texts, numbers or tuples of these"
)]
pub trait IntoLockKeys {
    /// Returns the keys.
    ///
    /// # Errors
    ///
    /// Like [`IntoLockKey::into_lock_key`].
    fn into_lock_keys(self) -> KeysResult;
}

/// The keys of a request, or why there are none.
pub type KeysResult = Result<LockKeys, Error>;

impl<K: IntoLockKey> IntoLockKeys for K {
    fn into_lock_keys(self) -> KeysResult {
        self.into_lock_key().map(LockKeys::from)
    }
}

impl IntoLockKeys for LockKeys {
    fn into_lock_keys(self) -> KeysResult {
        Ok(self)
    }
}

impl<K: IntoLockKey> IntoLockKeys for Vec<K> {
    fn into_lock_keys(self) -> KeysResult {
        LockKeys::new(self)
    }
}

impl<K: IntoLockKey, const N: usize> IntoLockKeys for [K; N] {
    fn into_lock_keys(self) -> KeysResult {
        LockKeys::new(self)
    }
}

macro_rules! wrapped {
    ($([$($generics:tt)*] $keys:ty;)*) => { $(
        impl<$($generics)*> IntoLockKeys for Option<$keys> {
            fn into_lock_keys(self) -> KeysResult {
                let missing = || Error::of(ErrorKind::MissingKey);
                self.ok_or_else(missing)?.into_lock_keys()
            }
        }

        impl<$($generics)*> IntoLockKeys for Result<$keys, Error> {
            fn into_lock_keys(self) -> KeysResult {
                self?.into_lock_keys()
            }
        }
    )* };
}

wrapped! {
    [] LockKeys;
    [K: IntoLockKey] Vec<K>;
    [K: IntoLockKey, const N: usize] [K; N];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(keys: impl IntoLockKeys) -> Vec<String> {
        let keys = keys.into_lock_keys().unwrap().into_iter();
        keys.map(|key| key.as_str().to_owned()).collect()
    }

    fn kind(keys: impl IntoLockKeys) -> ErrorKind {
        keys.into_lock_keys().unwrap_err().kind()
    }

    #[test]
    fn arrays_and_vecs_are_several_keys_and_a_tuple_is_one() {
        assert_eq!(texts(("a", "b")), ["a:b"]);
        assert_eq!(texts(["a", "b"]), ["a", "b"]);
        assert_eq!(texts(vec![("a", 2), ("a", 1)]), ["a:1", "a:2"]);
        assert_eq!(texts(Some([7, 8])), ["7", "8"]);
        assert_eq!(texts(Ok(vec!["a"])), ["a"]);
        assert_eq!(texts([Some("b"), Some("a")]), ["a", "b"]);
        assert_eq!(texts(LockKeys::new(["b", "a"])), ["a", "b"]);
    }

    #[test]
    fn keys_are_sorted_by_their_bytes_and_each_is_there_once() {
        let keys = ["b", "a", "10", "9", "b", "a\u{0}", "ä", "a"];
        assert_eq!(texts(keys), ["10", "9", "a", "a\u{0}", "b", "ä"]);
        let twice = LockKeys::new(["a", "b", "a"]).unwrap();
        assert_eq!(LockKeys::new(["b", "a"]).unwrap(), twice);
    }

    #[test]
    fn one_that_is_missing_or_invalid_spoils_all() {
        assert_eq!(kind([] as [&str; 0]), ErrorKind::MissingKey);
        assert_eq!(kind(None::<Vec<u8>>), ErrorKind::MissingKey);
        assert_eq!(kind([Some("a"), None]), ErrorKind::MissingKey);
        assert_eq!(kind(vec!["a", ""]), ErrorKind::InvalidKey);
        let failed = Error::of(ErrorKind::Config);
        assert_eq!(kind(Err::<[u8; 2], _>(failed)), ErrorKind::Config);
    }
}
