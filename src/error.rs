//! [`Error`]: the one error type of this crate.

use std::fmt;
use std::sync::Arc;

/// Why a lock could not be taken, kept or configured.
///
/// [`kind`](Error::kind) tells the cases apart. The message says what went wrong, in Redis' own
/// words where they are known, and what to do. It never holds a lock's key or a password.
///
/// # Example
///
/// ```
/// use tower_distributed_lock::{ErrorKind, LockManager};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let locks = LockManager::in_memory();
/// match locks.try_acquire("report").await {
///     Ok(guard) => println!("writing the report, {guard:?}"),
///     Err(error) if error.kind() == ErrorKind::Held => println!("it is being written already"),
///     Err(error) => eprintln!("{error}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Arc<str>,
}

/// The cases of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another request or process holds the lock, and the caller did not want to wait.
    Held,
    /// The lock did not become free within the time that the caller was ready to wait. If Redis did
    /// not reply, so that it is not known whether the lock was held, that is
    /// [`Unavailable`](Self::Unavailable).
    TimedOut,
    /// Too many callers wait for this lock, or for all locks of the manager, already.
    QueueFull,
    /// The key cannot name a lock: it is empty, or not text.
    InvalidKey,
    /// Redis did not reply, or replied with an error. Whether the lock is free is unknown.
    Unavailable,
    /// The manager was closed.
    Closed,
    /// The caller no longer held the lock.
    Lost,
    /// A setting, or the URL of Redis, is not valid.
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

    /// Returns which case this is.
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
