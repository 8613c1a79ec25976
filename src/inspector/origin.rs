//! [`check`]: refuses what another site makes a browser send.

use http::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use http::request::Parts;

/// No form and no link can send it, and no script of another site without being allowed to.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-tower-distributed-lock");

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns why the request is not carried out, if another site may have sent it.
///
/// A browser sends `Sec-Fetch-Site` to addresses that it trusts (HTTPS and `localhost`), and
/// `Origin` with every `POST`. What sends neither is no browser, and has no one's cookies.
pub(super) fn check(request: &Parts) -> Result<(), &'static str> {
    let header = |name: &HeaderName| request.headers.get(name).map(HeaderValue::as_bytes);
    if !request.headers.contains_key(HEADER) {
        return Err("the header x-tower-distributed-lock is missing");
    }
    if let Some(site) = header(&SEC_FETCH_SITE) {
        return match site {
            b"same-origin" => Ok(()),
            _ => Err("the request comes from another site (Sec-Fetch-Site)"),
        };
    }
    let Some(origin) = header(&ORIGIN) else {
        return Ok(());
    };
    let authority = request.uri.authority().map(|host| host.as_str().as_bytes());
    let host = header(&HOST).or(authority);
    let origin = std::str::from_utf8(origin).ok();
    let origin = origin.and_then(|origin| origin.split_once("://"));
    match (origin, host) {
        (Some((_, origin)), Some(host)) if origin.as_bytes().eq_ignore_ascii_case(host) => Ok(()),
        _ => Err("the request comes from another site: its Origin is not the Host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(headers: &[(&str, &str)]) -> bool {
        let mut request = http::Request::post("https://a.example/locks");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0).is_ok()
    }

    const OURS: (&str, &str) = ("x-tower-distributed-lock", "1");

    #[test]
    fn the_header_is_needed() {
        assert!(!is_allowed(&[("sec-fetch-site", "same-origin")]));
        assert!(is_allowed(&[OURS, ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn other_sites_are_refused_by_what_the_browser_says_of_them() {
        for site in ["cross-site", "same-site", "none", ""] {
            assert!(!is_allowed(&[OURS, ("sec-fetch-site", site)]), "{site}");
        }
    }

    #[test]
    fn where_the_browser_says_nothing_the_origin_must_be_the_host() {
        let host = ("host", "a.example:8080");
        for (origin, expected) in [
            ("http://a.example:8080", true),
            ("https://A.example:8080", true),
            ("http://a.example", false),
            ("http://a.example:8080.evil.example", false),
            ("http://evil.example", false),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(
                is_allowed(&[OURS, host, ("origin", origin)]),
                expected,
                "{origin}"
            );
        }
        // HTTP/2 has the host in the URI.
        assert!(is_allowed(&[OURS, ("origin", "https://a.example")]));
        // What is no browser says nothing at all.
        assert!(is_allowed(&[OURS]));
    }
}
