//! The one error type of this crate.

use std::fmt;
use std::sync::Arc;

/// Why a lock could not be taken, kept or configured.
///
/// [`kind`](Error::kind) tells the cases apart. The message says what went wrong, in Redis' own words where they are
/// known, and what to do. It never holds a lock's key or a password.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Arc<str>,
}

/// The cases of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Somebody else holds the lock, and the caller did not want to wait.
    Held,
    /// The lock did not become free within the time that the caller was ready to wait. If it is not known whether others held
    /// it, as Redis did not answer, that is [`Unavailable`](Self::Unavailable).
    TimedOut,
    /// Too many callers wait for this lock already.
    QueueFull,
    /// The key cannot name a lock: it is empty, or not text.
    InvalidKey,
    /// Redis did not answer, or answered with an error. Whether the lock is free is unknown.
    Unavailable,
    /// The manager was closed.
    Closed,
    /// The lock is no longer ours.
    Lost,
    /// A setting makes no sense.
    Config,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn of(kind: ErrorKind) -> Self {
        Self::new(
            kind,
            match kind {
                ErrorKind::Held => "the lock is held by another request",
                ErrorKind::TimedOut => "the lock did not become free in the time given to wait",
                ErrorKind::QueueFull => "too many requests wait for this lock already",
                ErrorKind::InvalidKey => "the lock key is not valid",
                ErrorKind::Unavailable => "the lock store did not answer in time",
                ErrorKind::Closed => "the lock manager was closed",
                ErrorKind::Lost => "the lock was lost before it was released",
                ErrorKind::Config => "the configuration is not valid",
            },
        )
    }

    /// Which case this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
