//! Reads the idempotency key in a header.

/// The length of the longest key in a header, in bytes.
pub(crate) const MAX_LEN: usize = 255;

/// Reads a key that is quoted (a string of RFC 9651, as the draft has it) or bare (as most clients
/// send it): either way it is the same key. `None` if it is not 1 to 255 visible ASCII characters.
pub(crate) fn parse(value: &[u8]) -> Option<String> {
    let key = match value.strip_prefix(b"\"") {
        Some(quoted) => unquote(quoted)?,
        None => value.to_vec(),
    };
    let is_valid = (1..=MAX_LEN).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    String::from_utf8(key).ok().filter(|_| is_valid)
}

/// Returns what stands before the closing quote, which must be the last character.
fn unquote(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(quoted.len());
    let mut rest = quoted.iter().copied();
    loop {
        match rest.next()? {
            b'"' => return rest.next().is_none().then_some(key),
            b'\\' => key.push(
                rest.next()
                    .filter(|escaped| matches!(escaped, b'"' | b'\\'))?,
            ),
            other => key.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_and_bare_keys_are_the_same() {
        for (value, key) in [
            (&br#""8e03978e-40d5""#[..], "8e03978e-40d5"),
            (b"8e03978e-40d5", "8e03978e-40d5"),
            (br#""a\"b\\c""#, r#"a"b\c"#),
            (br#"a"b"#, r#"a"b"#),
            (b"a;b=1", "a;b=1"),
        ] {
            assert_eq!(parse(value).as_deref(), Some(key));
        }
        assert_eq!(parse(&[b'x'; MAX_LEN]).unwrap().len(), MAX_LEN);
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for value in [
            &b""[..],
            br#""""#,
            b"\"",
            b"\"a",
            b"\"a\"b",
            br#""a\"#,
            br#""a\b""#,
            br#""a";p=1"#,
            b"a b",
            b"\"a b\"",
            b"a\tb",
            b"a\x7f",
            b"\xc3\xa9",
            &[b'x'; MAX_LEN + 1],
        ] {
            assert_eq!(parse(value), None, "{}", value.escape_ascii());
        }
    }
}
