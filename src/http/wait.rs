//! [`Wait`]: how long a request waits for its lock. [`prefer_wait`]: as long as its client asks
//! for.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::request::Parts;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long requests wait: a setting of both layers.
#[derive(Clone, Default)]
pub(crate) struct Wait {
    configured: Option<Duration>,
    for_request: Option<Arc<WaitFor>>,
}

/// A user's closure that says how long a request waits.
type WaitFor = dyn Fn(&Parts) -> Option<Duration> + Send + Sync;

impl Wait {
    pub(crate) fn set(&mut self, wait: Duration) {
        assert!(wait <= DAY, "wait is longer than a day: {wait:?}");
        self.configured = Some(wait);
    }

    pub(crate) fn set_for(
        &mut self,
        wait_for: impl Fn(&Parts) -> Option<Duration> + Send + Sync + 'static,
    ) {
        self.for_request = Some(Arc::new(wait_for));
    }

    /// Returns how long this request waits, if at all.
    pub(crate) fn of(&self, request: &Parts) -> Option<Duration> {
        let own = self.for_request.as_ref().and_then(|find| find(request));
        own.map(|own| own.min(DAY)).or(self.configured)
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.configured.fmt(f)
    }
}

/// Returns a closure for [`DistributedLockLayer::wait_for`] and [`IdempotencyLayer::wait_for`]: a
/// request with the header `Prefer: wait=5` ([RFC 7240]) waits for five seconds, or for `max` if
/// that is less. `wait=0` does not wait.
///
/// A request without such a preference, or with one that cannot be read, waits for as long as the
/// layer's `wait` says.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_distributed_lock::lock::prefer_wait;
///
/// let wait = prefer_wait(Duration::from_secs(10));
/// let request = |prefer| http::Request::get("/").header("prefer", prefer).body(()).unwrap();
/// let (parts, ()) = request("respond-async, wait=5").into_parts();
/// assert_eq!(wait(&parts), Some(Duration::from_secs(5)));
/// let (parts, ()) = request("wait=3600").into_parts();
/// assert_eq!(wait(&parts), Some(Duration::from_secs(10)));
/// let (parts, ()) = request("return=minimal").into_parts();
/// assert_eq!(wait(&parts), None);
/// ```
///
/// [RFC 7240]: https://www.rfc-editor.org/rfc/rfc7240#section-4.3
/// [`DistributedLockLayer::wait_for`]: crate::DistributedLockLayer::wait_for
/// [`IdempotencyLayer::wait_for`]: crate::IdempotencyLayer::wait_for
pub fn prefer_wait(
    max: Duration,
) -> impl Fn(&Parts) -> Option<Duration> + Clone + Send + Sync + 'static {
    move |request| preferred(&request.headers).map(|wait| wait.min(max))
}

/// Returns the client's preference. Of several, the first counts.
fn preferred(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter();
    let mut preferences = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let wait = preferences.find_map(|preference| {
        let without_parameters = preference.split(';').next()?;
        let (name, value) = without_parameters.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then_some(value)
    })?;
    let wait = wait.trim();
    let quoted = wait
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let digits = quoted.unwrap_or(wait);
    // The standard library would also accept a sign. Few digits, so that all are numbers.
    let is_number = digits.len() <= 10 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = digits.parse().ok().filter(|_| is_number)?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_preference_to_wait_counts() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("prefer", value.parse().unwrap());
            }
            preferred(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(read(&["wait=5"]), Some(5));
        assert_eq!(
            read(&["respond-async, Wait = \"7\" ; x=1, wait=9"]),
            Some(7)
        );
        assert_eq!(read(&["return=minimal", "wait=0"]), Some(0));
        assert_eq!(read(&["wait=9999999999"]), Some(9_999_999_999));
        for none in [
            &[][..],
            &["wait"],
            &["wait="],
            &["wait=-1"],
            &["wait=+1"],
            &["wait=1.5"],
            &["wait=x, wait=5"],
            &["wait=99999999999"],
            &["waits=5"],
        ] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }
}
