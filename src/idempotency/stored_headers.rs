//! Which header fields of a response are stored.

use http::header::{CONNECTION, PROXY_AUTHENTICATE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Returns the fields that belong to the response: not those that belong to the connection that it
/// was sent on (RFC 9110, section 7.6.1).
pub(super) fn stored_headers(headers: &HeaderMap) -> HeaderMap {
    let mut stored = headers.clone();
    let named = headers.get_all(CONNECTION).iter();
    let named = named.filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|names| names.split(',')) {
        stored.remove(name.trim());
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_AUTHENTICATE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        stored.remove(name);
    }
    stored
}

/// Like [`stored_headers`], without the fields that describe a body: for a response whose body is
/// not kept.
pub(super) fn stored_headers_without_body(headers: &HeaderMap) -> HeaderMap {
    let mut stored = stored_headers(headers);
    let names: Vec<HeaderName> = stored
        .keys()
        .filter(|name| *name == TRAILER || name.as_str().starts_with("content-"))
        .cloned()
        .collect();
    for name in names {
        stored.remove(name);
    }
    stored
}
