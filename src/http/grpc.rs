//! Reads the headers of gRPC requests and responses, without a gRPC library.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

/// Whether the content type is `application/grpc`, with or without a suffix or parameters. gRPC-Web
/// does not count: its clients read HTTP statuses.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    is_type(headers, b"application/grpc")
}

/// Whether this is gRPC-Web before it is translated: `application/grpc-web` or
/// `application/grpc-web-text`.
fn is_grpc_web(headers: &HeaderMap) -> bool {
    is_type(headers, b"application/grpc-web") || is_type(headers, b"application/grpc-web-text")
}

/// Whether the content is of that type, with or without a suffix or parameters.
fn is_type(headers: &HeaderMap, name: &[u8]) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .split_at_checked(name.len())
            .is_some_and(|(begin, rest)| {
                begin.eq_ignore_ascii_case(name)
                    && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
            })
    })
}

/// Returns how much longer the client of a gRPC or gRPC-Web call waits for its response, from the
/// header `grpc-timeout`: at most eight digits and a unit, as the
/// [protocol](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) has it. `None` if
/// there is none, or none that can be read.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    if !is_grpc(headers) && !is_grpc_web(headers) {
        return None;
    }
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Returns the HTTP status that a call's `grpc-status` stands for, if there is one. `ABORTED` and
/// `CANCELLED` say nothing about the call itself: they stand for 503, like `UNAVAILABLE`.
pub(crate) fn status(fields: &HeaderMap) -> Option<StatusCode> {
    let code = fields.get("grpc-status")?.to_str().ok()?;
    Some(match code {
        "0" => StatusCode::OK,
        "3" | "9" | "11" => StatusCode::BAD_REQUEST,
        "16" => StatusCode::UNAUTHORIZED,
        "7" => StatusCode::FORBIDDEN,
        "5" => StatusCode::NOT_FOUND,
        "6" => StatusCode::CONFLICT,
        "8" => StatusCode::TOO_MANY_REQUESTS,
        "12" => StatusCode::NOT_IMPLEMENTED,
        "1" | "10" | "14" => StatusCode::SERVICE_UNAVAILABLE,
        "4" => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_eight_digits_and_a_unit() {
        let read = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, "application/grpc".try_into().unwrap());
            headers.insert("grpc-timeout", value.try_into().unwrap());
            timeout(&headers)
        };
        assert_eq!(read(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(read(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(
            read(b"99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for nonsense in [
            &b"m"[..],
            b"",
            b"250",
            b"+1S",
            b"123456789S",
            b"1d",
            b"1 S",
            b"\xff",
            b"1\xc3\xa9",
        ] {
            assert_eq!(read(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }
}
