//! [`Query`]: what a request asks for.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::inspect::LockCursor;
use crate::key::Kind;

/// The query of a URI.
#[derive(Clone, Copy)]
pub(super) struct Query<'a>(pub(super) &'a str);

impl<'a> Query<'a> {
    /// Returns a parameter, empty if it is not there.
    pub(super) fn get(self, name: &str) -> Cow<'a, str> {
        let parameters = self.0.split('&');
        let mut values = parameters.filter_map(|parameter| {
            let (found, value) = parameter.split_once('=')?;
            (found == name).then_some(value)
        });
        let value = values.next().unwrap_or_default();
        percent_decode_str(value).decode_utf8_lossy()
    }
}

/// Returns a place in the list of all locks, as [`cursor_text`] has written it. Empty: the
/// beginning.
pub(super) fn cursor(text: &str) -> Option<LockCursor> {
    if text.is_empty() {
        return Some(LockCursor::locks());
    }
    let mut parts = text.splitn(3, '.');
    let kind = match parts.next()? {
        "locks" => Kind::Lock,
        "records" => Kind::Record,
        _ => return None,
    };
    Some(LockCursor {
        kind,
        server: parts.next()?.parse().ok()?,
        position: parts.next()?.parse().ok()?,
    })
}

pub(super) fn cursor_text(cursor: LockCursor) -> String {
    let kind = match cursor.kind {
        Kind::Lock => "locks",
        Kind::Record => "records",
    };
    format!("{kind}.{}.{}", cursor.server, cursor.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_by_its_name() {
        let query = Query("view=lock&id=a%20b&id=c&empty=&alone");
        assert_eq!(query.get("view"), "lock");
        assert_eq!(query.get("id"), "a b");
        for name in ["empty", "alone", "other", "iew"] {
            assert_eq!(query.get(name), "");
        }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for text in ["locks.0.0", "records.2.18446744073709551615"] {
            assert_eq!(cursor_text(cursor(text).unwrap()), text);
        }
        assert_eq!(cursor(""), Some(LockCursor::locks()));
        for text in ["locks", "locks.1", "locks.a.1", "locks.1.2.3", "other.1.2"] {
            assert_eq!(cursor(text), None, "{text}");
        }
    }
}
