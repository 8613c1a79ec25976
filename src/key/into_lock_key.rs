//! [`IntoLockKey`]: what can be made a key.

use super::lock_key::{JoinedParts, LockKey};
use crate::error::{Error, ErrorKind};

/// What can be made a key: by a closure of a layer, or in a call of
/// [`LockManager::acquire`](crate::LockManager::acquire).
///
/// | Value | Key | The request of a layer |
/// |---|---|---|
/// | a [`LockKey`] | itself | |
/// | `"account:7"`: `&str`, `String` | `account:7` | |
/// | `7`: any integer | `7` | |
/// | `("account", 7)`: two to four of all these | `account:7`, as [`LockKey::join`] makes it | |
/// | `Some(value)`, `Ok(value)` | that of the value | |
/// | `None` | [`ErrorKind::MissingKey`] | is answered with 400, unless the layer says [`optional_key`] |
/// | empty text, in a tuple as well | [`ErrorKind::InvalidKey`] | is answered with 400 |
/// | `Err`: [`Error::new`] makes one | the error | is refused, with the status of the error's kind |
///
/// `Option` and `Result<_, Error>` may be nested, so that `?` can be used as it is:
///
/// ```
/// # use tower_distributed_lock::{DistributedLockLayer, LockManager};
/// # fn layer(locks: LockManager) -> DistributedLockLayer {
/// DistributedLockLayer::new(locks, |req| {
///     let tenant = req.headers.get("x-tenant")?.to_str().ok()?; // no such header: 400
///     Some(("tenant", tenant.to_owned())) // tenant:7; an empty header: 400
/// })
/// # }
/// ```
///
/// A type of your own becomes a key by the ones above:
///
/// ```
/// use tower_distributed_lock::{Error, LockKey, key::IntoLockKey};
///
/// struct AccountId(u64);
///
/// impl IntoLockKey for AccountId {
///     fn into_lock_key(self) -> Result<LockKey, Error> {
///         ("account", self.0).into_lock_key()
///     }
/// }
///
/// assert_eq!(AccountId(7).into_lock_key()?.as_str(), "account:7");
/// # Ok::<(), Error>(())
/// ```
///
/// An array or a `Vec` is not one key, but [several](crate::key::IntoLockKeys).
///
/// [`optional_key`]: crate::DistributedLockLayer::optional_key
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be made the key of a lock",
    label = "no key can be made of `{Self}`",
    note = "a key is a `LockKey`, a text, an integer, a tuple of two to four of these, or an `Option` or a `Result<_, tower_distributed_lock::Error>` of one",
    note = "of another type, such as a UUID: `value.to_string()`; for a type of your own: `impl IntoLockKey`",
    note = "an array or a `Vec` is several keys, which only `DistributedLockLayer` and `LockManager::acquire_all` take"
)]
pub trait IntoLockKey {
    /// Returns the key.
    ///
    /// # Errors
    ///
    /// Returns an error of kind [`ErrorKind::MissingKey`] where there is none, and
    /// [`ErrorKind::InvalidKey`] where what is there cannot be one.
    fn into_lock_key(self) -> Result<LockKey, Error>;

    /// Adds this to a key of several parts. A text adds itself, without becoming a key before: its
    /// length counts only within the whole.
    #[doc(hidden)]
    fn join_to(self, parts: &mut JoinedParts) -> Result<(), Error>
    where
        Self: Sized,
    {
        parts.push(self.into_lock_key()?.as_str())
    }
}

impl IntoLockKey for LockKey {
    fn into_lock_key(self) -> Result<LockKey, Error> {
        Ok(self)
    }
}

impl IntoLockKey for &LockKey {
    fn into_lock_key(self) -> Result<LockKey, Error> {
        Ok(self.clone())
    }
}

macro_rules! texts {
    ($($text:ty)*) => { $(
        impl IntoLockKey for $text {
            fn into_lock_key(self) -> Result<LockKey, Error> {
                LockKey::new(self)
            }

            fn join_to(self, parts: &mut JoinedParts) -> Result<(), Error> {
                parts.push(self.as_ref())
            }
        }
    )* };
}

texts! { &str String &String }

macro_rules! integers {
    ($($integer:ty)*) => { $(
        impl IntoLockKey for $integer {
            fn into_lock_key(self) -> Result<LockKey, Error> {
                LockKey::new(self.to_string())
            }

            fn join_to(self, parts: &mut JoinedParts) -> Result<(), Error> {
                parts.push_number(self);
                Ok(())
            }
        }
    )* };
}

integers! { u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize }

macro_rules! tuples {
    ($(($($K:ident $part:ident),*))*) => { $(
        impl<$($K: IntoLockKey),*> IntoLockKey for ($($K,)*) {
            fn into_lock_key(self) -> Result<LockKey, Error> {
                let ($($part,)*) = self;
                let mut parts = JoinedParts::default();
                $($part.join_to(&mut parts)?;)*
                parts.into_key()
            }
        }
    )* };
}

tuples! {
    (A a, B b)
    (A a, B b, C c)
    (A a, B b, C c, D d)
}

impl<K: IntoLockKey> IntoLockKey for Option<K> {
    fn into_lock_key(self) -> Result<LockKey, Error> {
        self.ok_or_else(|| Error::of(ErrorKind::MissingKey))?
            .into_lock_key()
    }

    fn join_to(self, parts: &mut JoinedParts) -> Result<(), Error> {
        self.ok_or_else(|| Error::of(ErrorKind::MissingKey))?
            .join_to(parts)
    }
}

impl<K: IntoLockKey> IntoLockKey for Result<K, Error> {
    fn into_lock_key(self) -> Result<LockKey, Error> {
        self?.into_lock_key()
    }

    fn join_to(self, parts: &mut JoinedParts) -> Result<(), Error> {
        self?.join_to(parts)
    }
}

/// What the closures of this module return: a key, or why there is none.
pub type KeyResult = Result<LockKey, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: impl IntoLockKey) -> String {
        key.into_lock_key().unwrap().as_str().to_owned()
    }

    #[test]
    fn numbers_and_texts_are_keys() {
        assert_eq!(text("a:b"), "a:b");
        assert_eq!(text(String::from("a")), "a");
        assert_eq!(text(7), "7");
        assert_eq!(text(i128::MIN), i128::MIN.to_string());
        assert_eq!(text(u128::MAX), u128::MAX.to_string());
        assert_eq!(text(Some(Ok(Some(7_u8)))), "7");
    }

    #[test]
    fn a_tuple_is_the_key_of_its_joined_parts() {
        let long = "k:".repeat(LockKey::MAX_LEN);
        for part in ["7", "a:b", "{%}", "sha256:7", &long] {
            let joined = LockKey::join(["account", part]).unwrap();
            assert_eq!(("account", part).into_lock_key().unwrap(), joined);
            let owned = (String::from("account"), Some(part.to_owned()));
            assert_eq!(owned.into_lock_key().unwrap(), joined);
            let nested = ("account", LockKey::new("a:b").unwrap(), part, -7);
            assert_eq!(
                nested.into_lock_key().unwrap(),
                LockKey::join(["account", "a:b", part, "-7"]).unwrap()
            );
        }
        assert_eq!(text(("account", 7_u64)), "account:7");
        assert_eq!(text((("a", "b"), 7, "c")), "a%3Ab:7:c");
    }

    #[test]
    fn a_part_that_is_missing_or_empty_makes_no_key() {
        let kind = |key: Result<LockKey, Error>| key.unwrap_err().kind();
        assert_eq!(kind(None::<u8>.into_lock_key()), ErrorKind::MissingKey);
        assert_eq!(
            kind(("a", None::<u8>).into_lock_key()),
            ErrorKind::MissingKey
        );
        assert_eq!(kind(("a", "", 7).into_lock_key()), ErrorKind::InvalidKey);
        let invalid = LockKey::new("");
        assert_eq!(kind((7, invalid).into_lock_key()), ErrorKind::InvalidKey);
    }
}
