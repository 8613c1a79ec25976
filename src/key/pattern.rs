//! [`PathPattern`]: says which part of a path becomes the key.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::into_lock_key::KeyResult;
use super::lock_key::LockKey;
use crate::error::{Error, ErrorKind};

/// A pattern such as `/accounts/{id}/{*rest}`, parsed once when the layer is made.
pub(super) struct PathPattern(Vec<Segment>);

#[derive(PartialEq, Eq)]
enum Segment {
    Literal(String),
    Parameter,
    Rest,
}

impl PathPattern {
    /// Parses a pattern. The error completes the sentence "the path pattern …".
    pub(super) fn parse(pattern: &str) -> Result<Self, &'static str> {
        let segments = pattern
            .strip_prefix('/')
            .ok_or("does not begin with a slash")?;
        let segments: Vec<Segment> = segments
            .split('/')
            .map(Segment::parse)
            .collect::<Result<_, _>>()?;
        match segments.iter().position(|s| *s == Segment::Rest) {
            Some(at) if at + 1 < segments.len() => Err("has {*rest} before its end"),
            _ => Ok(Self(segments)),
        }
    }

    /// Returns the key of a path: the segments before `{*rest}`, joined. `None` if the path does
    /// not match.
    pub(super) fn key(&self, path: &str) -> KeyResult {
        let mut parts = Vec::with_capacity(self.0.len());
        let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
        for expected in &self.0 {
            if *expected == Segment::Rest {
                return LockKey::join(parts).map(Some);
            }
            let Some(segment) = segments.next() else {
                return Ok(None);
            };
            let segment = decoded(segment)?;
            match expected {
                Segment::Literal(literal) if *literal != *segment => return Ok(None),
                // `/` alone has one empty literal, which names nothing.
                Segment::Literal(literal) if literal.is_empty() => parts.push(Cow::Borrowed("/")),
                _ => parts.push(segment),
            }
        }
        match segments.next() {
            Some(_) => Ok(None),
            None => LockKey::join(parts).map(Some),
        }
    }
}

impl Segment {
    fn parse(segment: &str) -> Result<Self, &'static str> {
        let name = segment
            .strip_prefix('{')
            .and_then(|name| name.strip_suffix('}'));
        match name {
            Some("" | "*") => Err("has a parameter without a name"),
            Some(name) if name.starts_with('*') => Ok(Self::Rest),
            Some(_) => Ok(Self::Parameter),
            None if segment.contains(['{', '}']) => {
                Err("has a brace inside a segment: a parameter is a whole segment, like {id}")
            }
            None => Ok(Self::Literal(segment.to_owned())),
        }
    }
}

/// Decodes the percent-escapes of a path or a segment. Fails if the result is not UTF-8.
pub(super) fn decoded(raw: &str) -> Result<Cow<'_, str>, Error> {
    percent_decode_str(raw).decode_utf8().map_err(|_| {
        Error::new(
            ErrorKind::InvalidKey,
            "the path is not UTF-8 once its escapes are read",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_patterns_are_refused() {
        for pattern in ["accounts", "/a{id}", "/{}", "/{*}", "/{*rest}/a", "/a/{id"] {
            assert!(PathPattern::parse(pattern).is_err(), "{pattern}");
        }
    }
}
