//! [`Credentials`]: a login that changes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;
use tokio::time::sleep;

/// How long until a login that failed is tried again, on a connection that is logged in still.
const RETRY: Duration = Duration::from_secs(1);

/// A user and a password, as the callback of
/// [`LockManagerBuilder::credentials`](crate::LockManagerBuilder::credentials) returns them.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_distributed_lock::Credentials;
///
/// let token = Credentials::new("worker", "a token").valid_for(Duration::from_secs(900));
/// assert!(!format!("{token:?}").contains("a token"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(super) user: Option<String>,
    pub(super) password: String,
    pub(super) valid_for: Option<Duration>,
}

impl Credentials {
    /// Returns the credentials of this user.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: Some(user.into()),
            password: password.into(),
            valid_for: None,
        }
    }

    /// Returns the credentials of the default user (`requirepass`).
    pub fn password(password: impl Into<String>) -> Self {
        Self {
            user: None,
            password: password.into(),
            valid_for: None,
        }
    }

    /// Sets how long, from now on, the server accepts them. When three quarters of that have
    /// passed, the callback is asked again, and the connection logs in with what it returns. If
    /// that fails, it is tried again each second. Default: for as long as the connection lives.
    pub fn valid_for(mut self, time: Duration) -> Self {
        self.valid_for = Some(time);
        self
    }
}

/// Leaves the password out.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .field("valid_for", &self.valid_for)
            .finish_non_exhaustive()
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Credentials, BoxError>> + Send>>;

/// Asks the service for credentials.
#[derive(Clone)]
pub(crate) struct CredentialsCallback(Arc<dyn Fn() -> Answer + Send + Sync>);

impl CredentialsCallback {
    pub(crate) fn new<F, R, E>(callback: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Arc::new(move || {
            let answer = callback();
            Box::pin(async move { answer.await.map_err(Into::into) })
        }))
    }

    pub(super) async fn ask(&self) -> Result<Credentials, BoxError> {
        (self.0)().await
    }

    /// Logs in again whenever the credentials are about to expire.
    pub(super) async fn keep_logged_in(
        self,
        mut connection: MultiplexedConnection,
        mut valid_for: Option<Duration>,
    ) {
        while let Some(valid) = valid_for {
            sleep((valid / 4 * 3).max(Duration::from_millis(10))).await;
            loop {
                let login = match self.ask().await {
                    Ok(credentials) => match log_in(&mut connection, &credentials).await {
                        Ok(()) => Ok(credentials.valid_for),
                        // There is nothing left to log in on.
                        Err(error) if error.is_io_error() => return,
                        Err(error) => Err(error.into()),
                    },
                    Err(error) => Err(error),
                };
                match login {
                    Ok(next) => {
                        valid_for = next;
                        break;
                    }
                    Err(error) => crate::observe::not_logged_in(&error),
                }
                sleep(RETRY).await;
            }
        }
    }
}

impl fmt::Debug for CredentialsCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialsCallback")
            .finish_non_exhaustive()
    }
}

// It is only ever called.
impl std::panic::UnwindSafe for CredentialsCallback {}
impl std::panic::RefUnwindSafe for CredentialsCallback {}

async fn log_in(
    connection: &mut MultiplexedConnection,
    credentials: &Credentials,
) -> Result<(), RedisError> {
    let mut auth = redis::cmd("AUTH");
    if let Some(user) = &credentials.user {
        auth.arg(user);
    }
    auth.arg(&credentials.password);
    auth.query_async(connection).await
}
