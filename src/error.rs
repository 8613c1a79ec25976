//! [`Error`]: the one error type of this crate.

use std::fmt;
use std::sync::Arc;

use crate::key::LockKey;

/// Why a lock could not be taken, kept or configured.
///
/// [`kind`](Error::kind) tells the cases apart. The message says what went wrong, in Redis' own
/// words where they are known, and what to do. It never holds a lock's key or a password. Of
/// several locks, [`key`](Error::key) tells which one it is about.
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
///
/// [`source`](std::error::Error::source) returns the error of the Redis client, where one is
/// the cause. The message has its text already.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    /// `None`: there is no more to say than the kind does.
    detail: Option<Arc<Detail>>,
    /// Which of several locks it is about.
    key: Option<Box<LockKey>>,
}

struct Detail {
    message: Box<str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
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
    /// There is no key: a request lacks what its key is made of.
    MissingKey,
    /// More keys are wanted at once than [`max_keys`](crate::LockManagerBuilder::max_keys) allows.
    TooManyKeys,
    /// Redis did not reply, or replied with an error. Whether the lock is free is unknown.
    Unavailable,
    /// The manager was closed.
    Closed,
    /// The caller no longer held the lock.
    Lost,
    /// A setting, or the URL of Redis, is not valid, or the layers and routes of a service are put
    /// together in such a way that a key cannot be made.
    Config,
}

#[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
impl ErrorKind {
    /// Returns the kind as spans, metrics and the inspector name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::TimedOut => "timed_out",
            Self::QueueFull => "queue_full",
            Self::MissingKey => "missing_key",
            Self::InvalidKey => "invalid_key",
            Self::TooManyKeys => "too_many_keys",
            Self::Unavailable => "unavailable",
            Self::Closed => "closed",
            Self::Lost => "lost",
            Self::Config => "config",
        }
    }
}

impl Error {
    /// Makes an error, for a closure or future that cannot make a key. A layer answers the request
    /// by the kind, as in the table of [`RejectionKind`](crate::lock::RejectionKind):
    /// [`InvalidKey`](ErrorKind::InvalidKey) with 400, [`Unavailable`](ErrorKind::Unavailable) with
    /// 503, [`Config`](ErrorKind::Config) with 500.
    ///
    /// The default response does not repeat the message. [`Rejection::error`] has it.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_distributed_lock::{DistributedLockLayer, Error, ErrorKind, LockManager};
    ///
    /// # #[derive(Clone)] struct Sessions;
    /// # impl Sessions { async fn user(&self) -> std::io::Result<u64> { Ok(7) } }
    /// # fn layer(locks: LockManager, sessions: Sessions) -> DistributedLockLayer {
    /// DistributedLockLayer::new_async(locks, move |_| {
    ///     let sessions = sessions.clone();
    ///     async move {
    ///         let away = |error| Error::new(ErrorKind::Unavailable, format!("sessions: {error}"));
    ///         sessions.user().await.map_err(away).map(|user| ("user", user))
    ///     }
    /// })
    /// # }
    /// ```
    ///
    /// [`Rejection::error`]: crate::lock::Rejection::error
    pub fn new(kind: ErrorKind, message: impl Into<Box<str>>) -> Self {
        Self::with(kind, message.into(), None)
    }

    /// An error with the error that caused it, whose text the message has.
    pub(crate) fn caused_by(
        kind: ErrorKind,
        message: impl Into<Box<str>>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::with(kind, message.into(), Some(Box::new(source)))
    }

    /// An error of which there is no more to say.
    pub(crate) fn of(kind: ErrorKind) -> Self {
        Self {
            kind,
            detail: None,
            key: None,
        }
    }

    /// Says which of several locks this error is about.
    pub(crate) fn about(mut self, key: &LockKey) -> Self {
        self.key = Some(Box::new(key.clone()));
        self
    }

    fn with(
        kind: ErrorKind,
        message: Box<str>,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            detail: Some(Arc::new(Detail { message, source })),
            ..Self::of(kind)
        }
    }

    /// Returns the error for a request that meets this one. What is wrong with a setting, and turns
    /// out only when Redis is asked, is no fault of the request.
    pub(crate) fn met_by_a_request(mut self) -> Self {
        if self.kind == ErrorKind::Config {
            self.kind = ErrorKind::Unavailable;
        }
        self
    }

    /// Returns which case this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns which key was refused or lost, of [several](crate::LockManager::acquire_all) that
    /// were wanted together. `None` where the caller named one key, or the error is about all.
    ///
    /// # Warning
    ///
    /// Keys come from clients. `Debug` shows a [fingerprint](LockKey::fingerprint), for logs.
    pub fn key(&self) -> Option<&LockKey> {
        self.key.as_deref()
    }

    fn message(&self) -> &str {
        match &self.detail {
            Some(detail) => &detail.message,
            None => match self.kind {
                ErrorKind::Held => "the lock is held by another request",
                ErrorKind::TimedOut => "the lock did not become free in the time given to wait",
                ErrorKind::QueueFull => "too many requests wait for this lock already",
                ErrorKind::InvalidKey => "the lock key is not valid",
                ErrorKind::MissingKey => "there is no lock key",
                ErrorKind::TooManyKeys => "too many keys are to be locked at once",
                ErrorKind::Unavailable => "the lock store did not answer in time",
                ErrorKind::Closed => "the lock manager was closed",
                ErrorKind::Lost => "the lock was lost before it was released",
                ErrorKind::Config => "the configuration is not valid",
            },
        }
    }
}

// The source is only ever read.
impl std::panic::UnwindSafe for Detail {}
impl std::panic::RefUnwindSafe for Detail {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug.field("kind", &self.kind);
        debug.field("message", &self.message());
        if let Some(key) = &self.key {
            debug.field("key", key);
        }
        debug.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.detail.as_ref()?.source.as_deref()?;
        Some(source)
    }
}
