//! A web page that shows the locks of a process, live: a Tower service.
//!
//! [`inspector`] makes it of a [`LockManager`]. It shows the hottest locks with
//! their holders on a timeline, who waits, how long requests waited, what was refused and what was
//! lost; and, on demand, who has a lock in any process. All of it can be had as JSON.
//!
//! ```
//! use axum::Router;
//! use tower_distributed_lock::{LockManager, inspector};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let locks = LockManager::in_memory(); // or connect("redis://127.0.0.1:6379").await?
//! let internal: Router = Router::new().nest_service("/locks", inspector(locks));
//! # let _ = internal;
//! # }
//! ```
//!
//! # Put authentication outside
//!
//! **The inspector does not ask who is there.** Whoever reaches it sees how the service is used,
//! and with [`allow_force_release`](Inspector::allow_force_release) can take locks from their
//! holders. Keys are shown by their [fingerprints](crate::LockKey::fingerprint) unless
//! [`show_keys`](Inspector::show_keys) says otherwise: they often are customers, accounts or
//! documents.
//!
//! So put a layer around it that lets operators in alone, or serve it on a port that no one else
//! can reach. A page on the internet can make a browser send requests to `localhost` and to
//! internal addresses, and can give them names of its own (DNS rebinding): there, too, it takes a
//! login.
//!
//! ```
//! use axum::{Router, extract::Request, http::StatusCode, middleware::{Next, from_fn}};
//! use axum::response::{IntoResponse, Response};
//! use tower_distributed_lock::{LockManager, inspector};
//!
//! async fn operators_only(request: Request, next: Next) -> Response {
//!     match is_operator(&request) {
//!         true => next.run(request).await,
//!         false => StatusCode::FORBIDDEN.into_response(),
//!     }
//! }
//! # fn is_operator(_: &Request) -> bool { false }
//!
//! # fn routes(locks: LockManager) -> Router {
//! Router::new()
//!     .nest_service("/locks", inspector(locks).show_keys(true).allow_force_release(true))
//!     .layer(from_fn(operators_only))
//! # }
//! ```
//!
//! # What is of this process, and what of all
//!
//! What moves on the page is of one process, that of the manager: its holders, its waiting
//! requests, its losses. To see it costs Redis nothing. Locks of other processes are looked up in
//! Redis when the page's reader asks for them: one lock, or some of all at a time. Behind a load
//! balancer, each process needs an address of its own: the page that is opened there is of that
//! process.
//!
//! # What it costs
//!
//! Nothing until it is made. From then on, a request for a lock takes a mutex of the manager about
//! four times. What happened of late, in up to 256 locks one by one, those that are waited for
//! before others, takes some megabytes at most. While a page is
//! open, the locks of the process are looked at once a second, 10 000 of them at most, however many
//! pages there are.
//!
//! # Addresses
//!
//! All is at one address, and told apart by the query; the path is not looked at. So it works under
//! any prefix, with a slash at the end or without.
//!
//! | Request | Response |
//! |---|---|
//! | `GET` | the page |
//! | `GET ?view=snapshot` | what this process knows, as JSON; at most a second old |
//! | `GET ?view=events` | the same once a second, as server-sent events; at most 16 at once |
//! | `GET ?view=locks` | some of all locks, in Redis; `&from=` what `next` was in the last response. `&from=records.0.0` begins with the idempotency keys |
//! | `GET ?view=lock&id=…` | one lock, in Redis; the id is one that the inspector has shown |
//! | `POST ?view=lock` | the same, for the key in the body |
//! | `POST ?do=force-release&id=…` | takes the lock from its holder |
//!
//! More fields may be added to the JSON in any version. A stream of events ends after a minute, and
//! the page begins another: so authentication is looked at again, and a server that shuts down
//! gracefully is not kept waiting. After [`drain`](crate::LockManager::drain), it ends at once.
//!
//! # Requests from other sites
//!
//! Taking a lock from its holder needs a `POST` with the header `x-tower-distributed-lock`, which
//! no form and no link can send. It is refused if the browser says that another site sends it
//! (`Sec-Fetch-Site`), or, where it does not say so, if `Origin` is not the `Host`. A proxy outside
//! that rewrites `Host` must be reached over HTTPS, so that browsers send the former. The page
//! loads nothing from elsewhere, runs no script but its own, and cannot be framed
//! (`Content-Security-Policy`).

mod body;
mod events;
mod json;
mod known;
mod origin;
mod page;
mod query;
mod service;
mod view;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use self::body::InspectorBody;
use self::known::Known;
pub use self::service::InspectorFuture;
use crate::manager::LockManager;

/// How many streams of events there are at once.
const STREAMS: usize = 16;
/// How many questions Redis is asked at once.
const QUESTIONS: usize = 4;
/// A snapshot that is younger is good enough.
const FRESH: Duration = Duration::from_millis(900);

/// Makes a web page that shows these locks, as a Tower service: see the [module](self). Anyone who
/// can reach it sees it, so put authentication outside.
///
/// # Example
///
/// ```
/// use axum::Router;
/// use tower_distributed_lock::{LockManager, inspector};
///
/// # fn routes(locks: LockManager) -> Router {
/// Router::new().nest_service("/locks", inspector(locks))
/// # }
/// ```
pub fn inspector(locks: LockManager) -> Inspector {
    // From now on, the manager keeps its journal.
    locks.journal();
    Inspector::new(locks, Settings::default())
}

/// The Tower service made by [`inspector`]. It takes requests with any body, and never fails.
///
/// A clone is cheap, and shares the limits on streams and questions.
#[derive(Clone)]
#[must_use = "an inspector does nothing until it is put into a router"]
pub struct Inspector {
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Settings {
    show_keys: bool,
    allow_force_release: bool,
}

/// What all clones share.
struct Shared {
    locks: LockManager,
    settings: Settings,
    known: Known,
    streams: Arc<Semaphore>,
    questions: Semaphore,
    snapshot: Mutex<Option<(Instant, Bytes)>>,
}

impl Inspector {
    /// Another one for other settings: what was shown under one must not come out under another.
    fn new(locks: LockManager, settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared {
                locks,
                settings,
                known: Known::default(),
                streams: Arc::new(Semaphore::new(STREAMS)),
                questions: Semaphore::new(QUESTIONS),
                snapshot: Mutex::default(),
            }),
        }
    }

    fn with(&self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings;
        change(&mut settings);
        Self::new(self.shared.locks.clone(), settings)
    }

    /// Sets whether keys are shown as they are. Default: `false`: by their
    /// [fingerprints](crate::LockKey::fingerprint).
    ///
    /// # Keys may be personal data
    ///
    /// A key that comes from a path, a header or a token may name a customer. All who reach the
    /// page then read it.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{LockManager, inspector};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let page = inspector(LockManager::in_memory()).show_keys(true);
    /// # let _ = page;
    /// # }
    /// ```
    pub fn show_keys(self, show: bool) -> Self {
        self.with(|settings| settings.show_keys = show)
    }

    /// Sets whether the page has a button that takes a lock from its holder, by
    /// [`LockManager::force_release`]. Default: `false`: such requests are answered with 403.
    ///
    /// # Until the holder has heard of it, there are two
    ///
    /// All who reach the page can then stop requests of the service. Put authentication outside.
    /// With the feature `tracing`, each use is an event.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{LockManager, inspector};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let page = inspector(LockManager::in_memory()).allow_force_release(true);
    /// # let _ = page;
    /// # }
    /// ```
    pub fn allow_force_release(self, allow: bool) -> Self {
        self.with(|settings| settings.allow_force_release = allow)
    }
}

impl Shared {
    /// Returns what this process knows, as JSON: for all readers, it is found out once a second.
    fn snapshot(&self) -> Bytes {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &*snapshot {
            Some((taken, json)) if now < *taken + FRESH => json.clone(),
            _ => {
                let json = Bytes::from(view::snapshot(self));
                *snapshot = Some((now, json.clone()));
                json
            }
        }
    }
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}
