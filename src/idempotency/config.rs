//! [`Config`]: the settings that the layer and its services share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Response, StatusCode};
use sha2::{Digest, Sha256};

use super::header;
use super::stored_response::Fingerprint;
use crate::error::{Error, ErrorKind};
use crate::http::{OnLost, Rejection, RejectionResponder, Wait};
use crate::key::{self, KeyResult, LockKey};
use crate::manager::LockManager;
use crate::observe::{self, Meter, Role};

#[derive(Clone)]
pub(super) struct Config {
    pub(super) locks: LockManager,
    pub(super) meter: Meter,
    pub(super) any_method: bool,
    pub(super) key: KeySource,
    pub(super) scope: Arc<FindScope>,
    pub(super) require_key: bool,
    pub(super) fingerprint: Option<Arc<TakeFingerprint>>,
    pub(super) wait: Wait,
    pub(super) retention: Duration,
    pub(super) remember: Arc<Remember>,
    pub(super) max_request_body: usize,
    pub(super) max_response_body: usize,
    pub(super) on_lost: OnLost,
    pub(super) rejection: Option<Arc<RejectionResponder>>,
}

/// Where the key of a request comes from.
#[derive(Clone)]
pub(super) enum KeySource {
    Header(HeaderName),
    Closure(Arc<FindKey>),
}

pub(super) type FindKey = dyn Fn(&Parts, &Bytes) -> KeyResult + Send + Sync;
pub(super) type FindScope = dyn Fn(&Parts) -> KeyResult + Send + Sync;
pub(super) type TakeFingerprint = dyn Fn(&Parts, &Bytes) -> Fingerprint + Send + Sync;
pub(super) type Remember = dyn Fn(StatusCode) -> bool + Send + Sync;

pub(super) const MIB: usize = 1 << 20;
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

impl Config {
    /// The defaults, for a key in that header.
    pub(super) fn new(locks: LockManager, header: HeaderName) -> Self {
        Self {
            locks,
            meter: Meter::unnamed(Role::IdempotencyLayer),
            any_method: false,
            key: KeySource::Header(header),
            scope: Arc::new(key::method_and_path()),
            require_key: false,
            fingerprint: Some(Arc::new(|_, body| Sha256::digest(body).into())),
            wait: Wait::default(),
            retention: DAY,
            remember: Arc::new(|status| {
                !status.is_server_error() && !matches!(status.as_u16(), 408 | 425 | 429)
            }),
            max_request_body: MIB,
            max_response_body: MIB,
            on_lost: OnLost::default(),
            rejection: None,
        }
    }

    /// Whether there may be a key in a request with that head, or one is required.
    pub(super) fn may_have_key(&self, parts: &Parts) -> bool {
        let method = self.any_method || matches!(parts.method, Method::POST | Method::PATCH);
        method
            && match &self.key {
                KeySource::Header(name) => self.require_key || parts.headers.contains_key(name),
                KeySource::Closure(_) => true,
            }
    }

    /// Whether the key must be in the head of a request.
    pub(super) fn is_key_in_head(&self) -> bool {
        matches!(self.key, KeySource::Header(_))
    }

    /// Returns the key if the head has it. Fails if what the head has is no valid key.
    pub(super) fn key_in_head(&self, parts: &Parts) -> Result<Option<LockKey>, Error> {
        match &self.key {
            KeySource::Header(name) => in_header(parts, name)?
                .map(|key| self.scoped(parts, &key))
                .transpose(),
            KeySource::Closure(_) => Ok(None),
        }
    }

    /// Returns the key that the user's closure finds in the head or the body.
    pub(super) fn key_in_body(
        &self,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Option<LockKey>, Error> {
        let KeySource::Closure(find) = &self.key else {
            return Ok(None);
        };
        match find(parts, body) {
            Ok(key) => self.scoped(parts, key.as_str()).map(Some),
            Err(error) if error.kind() == ErrorKind::MissingKey => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts an idempotency key into its scope.
    fn scoped(&self, parts: &Parts, key: &str) -> Result<LockKey, Error> {
        let scope = (self.scope)(parts)?;
        LockKey::record([scope.as_str(), key])
    }

    pub(super) fn fingerprint(&self, parts: &Parts, body: &Bytes) -> Option<Fingerprint> {
        self.fingerprint.as_ref().map(|take| take(parts, body))
    }

    pub(super) fn remembers(&self, status: StatusCode) -> bool {
        (self.remember)(status)
    }

    pub(super) fn respond(&self, rejection: Rejection) -> Response<Bytes> {
        observe::rejected(&self.meter, rejection.kind());
        rejection.into_response(self.rejection.as_deref())
    }
}

fn in_header(parts: &Parts, name: &HeaderName) -> Result<Option<String>, Error> {
    let mut values = parts.headers.get_all(name).iter();
    let invalid = || {
        Error::new(
            ErrorKind::InvalidKey,
            format!("the header {name} is not one key of 1 to 255 visible ASCII characters"),
        )
    };
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => header::parse(value.as_bytes())
            .map(Some)
            .ok_or_else(invalid),
        (Some(_), Some(_)) => Err(invalid()),
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("meter", &self.meter)
            .field("require_key", &self.require_key)
            .field("wait", &self.wait)
            .field("retention", &self.retention)
            .field("max_request_body", &self.max_request_body)
            .field("max_response_body", &self.max_response_body)
            .field("on_lost", &self.on_lost)
            .finish_non_exhaustive()
    }
}
