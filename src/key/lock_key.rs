//! [`LockKey`]: the name of a lock.

use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, OnceLock};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind};

/// The name of a lock, unique within the prefix of its [`LockManager`](crate::LockManager).
///
/// In Redis it stands behind that prefix, byte for byte, so that other clients can take the same
/// lock: with the default prefix, the lock of the key `accounts:7` is the string `lock:accounts:7`.
///
/// # Example
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
    /// Seeded at random, so that a client cannot choose keys with equal hashes. Computed once, as
    /// a request looks its key up several times.
    hash: u64,
    kind: Kind,
    text: Arc<str>,
}

/// What a key names. Keys of different kinds are never equal, whatever their texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Lock,
    /// The stored response to an idempotency key. While its request runs, the lock of that run.
    Record,
}

impl Hash for LockKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Stands between the parts of a joined key.
const SEPARATOR: &str = ":";
/// Begins a key that was replaced by its hash.
const HASHED: &str = "sha256:";
/// Escaped in a joined part, besides what is not ASCII: the separator, the escape itself, and
/// braces, which choose a slot in Redis Cluster.
const ESCAPED: &AsciiSet = &CONTROLS.add(b':').add(b'%').add(b'{').add(b'}');

impl LockKey {
    /// The length of the longest key that is used as it is, in bytes. A longer one is replaced by
    /// its SHA-256.
    pub const MAX_LEN: usize = 512;

    /// Makes a key of one piece.
    ///
    /// # Errors
    ///
    /// Returns an error of kind [`ErrorKind::InvalidKey`] if it is empty.
    pub fn new(key: impl AsRef<str>) -> Result<Self, Error> {
        Self::bounded(Kind::Lock, key.as_ref())
    }

    fn bounded(kind: Kind, key: &str) -> Result<Self, Error> {
        if key.is_empty() {
            return Err(Error::new(ErrorKind::InvalidKey, "the lock key is empty"));
        }
        // A short key that looks like a hash is hashed too, lest it name a long key's lock.
        if key.len() > Self::MAX_LEN || key.starts_with(HASHED) {
            let digest = Sha256::digest(key.as_bytes());
            return Ok(Self::of(kind, &format!("{HASHED}{}", Hex(&digest))));
        }
        Ok(Self::of(kind, key))
    }

    fn of(kind: Kind, text: &str) -> Self {
        static SEEDED: OnceLock<RandomState> = OnceLock::new();
        Self {
            hash: SEEDED.get_or_init(RandomState::new).hash_one((kind, text)),
            kind,
            text: text.into(),
        }
    }

    /// Makes the key of a stored response, of several parts. Its text holds no braces.
    pub(crate) fn record<'a>(parts: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        Self::bounded(Kind::Record, &JoinedParts::of(parts)?.0)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns by what keys are sorted: the same in every process.
    pub(super) fn order(&self) -> impl Ord + '_ {
        (self.kind, &*self.text)
    }

    /// Returns the hash that was computed when the key was made.
    pub(crate) fn hashed(&self) -> u64 {
        self.hash
    }

    /// Makes a key of several parts, `a:b:c`. A part's own `:`, `%`, braces and control characters
    /// are percent-escaped, so that different parts are different locks; and so is whatever is not
    /// ASCII. `join(["streets", "zürich"])` is the key `streets:z%C3%BCrich`, and another one than
    /// [`new("streets:zürich")`](Self::new).
    ///
    /// # Errors
    ///
    /// Returns an error of kind [`ErrorKind::InvalidKey`] if there is no part or one is empty: a
    /// part that is missing by mistake would otherwise make all such requests share one lock.
    pub fn join<I>(parts: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        JoinedParts::of(parts)?.into_key()
    }

    /// Makes a key of the text that a store has of it.
    pub(crate) fn from_store(kind: Kind, text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::of(kind, text))
    }

    /// Puts this key into a scope: the key as it is, behind the escaped name of the scope.
    pub(super) fn within(&self, scope: &str) -> Result<Self, Error> {
        let scope = Self::join([scope])?;
        Self::new(format!("{}{SEPARATOR}{}", scope.text, self.text))
    }

    /// Returns the key's text, as it stands in Redis behind the prefix.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns sixteen hexadecimal digits of the key's SHA-256: enough to follow one key through a
    /// log, not enough to read it there. `Debug` and the `tracing` events show this.
    pub fn fingerprint(&self) -> String {
        Hex(&Sha256::digest(self.text.as_bytes())[..8]).to_string()
    }
}

/// The text of a key that is being made of several parts.
#[derive(Debug)]
pub struct JoinedParts(String);

impl Default for JoinedParts {
    fn default() -> Self {
        // Nearly all keys fit, so that the text is allocated once.
        Self(String::with_capacity(64))
    }
}

impl JoinedParts {
    fn of<I>(parts: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut joined = Self::default();
        for part in parts {
            joined.push(part.as_ref())?;
        }
        Ok(joined)
    }

    /// Adds a part, escaped.
    pub(super) fn push(&mut self, part: &str) -> Result<(), Error> {
        if part.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidKey,
                "a part of the lock key is empty",
            ));
        }
        self.separate();
        self.0.extend(utf8_percent_encode(part, ESCAPED));
        Ok(())
    }

    /// Adds a number, whose digits need no escape.
    pub(super) fn push_number(&mut self, number: impl fmt::Display) {
        self.separate();
        write!(self.0, "{number}").expect("a String takes any text");
    }

    fn separate(&mut self) {
        // No part is empty, so neither is the text behind the first one.
        if !self.0.is_empty() {
            self.0.push_str(SEPARATOR);
        }
    }

    pub(super) fn into_key(self) -> Result<LockKey, Error> {
        LockKey::new(self.0)
    }
}

impl fmt::Debug for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockKey({})", self.fingerprint())
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(all(test, feature = "properties"))]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

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
}
