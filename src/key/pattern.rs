//! [`PathPattern`]: says which part of a path becomes the key.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::into_lock_key::KeyResult;
use super::lock_key::JoinedParts;
use crate::error::{Error, ErrorKind};

/// A pattern such as `/accounts/{id}/transfer`, parsed once when the layer is made.
pub(super) struct PathPattern {
    text: String,
    segments: Vec<Segment>,
    /// How many of the segments are part of the key: those up to the last parameter.
    in_key: usize,
    /// Whether anything may follow the segments.
    is_open: bool,
}

#[derive(PartialEq, Eq)]
enum Segment {
    Literal(String),
    Parameter,
    /// Takes all that is left of the path.
    CatchAll,
}

impl PathPattern {
    /// Parses a pattern. The error completes the sentence "the path pattern …".
    pub(super) fn parse(pattern: &str) -> Result<Self, String> {
        let rest = pattern
            .strip_prefix('/')
            .ok_or("does not begin with a slash")?;
        let mut texts: Vec<&str> = rest.split('/').collect();
        let is_open = texts.pop_if(|last| *last == "**").is_some();
        let segments = texts.into_iter().map(Segment::parse);
        let segments: Vec<Segment> = segments.collect::<Result<_, _>>()?;
        let catch_all = segments.iter().position(|s| *s == Segment::CatchAll);
        if catch_all.is_some_and(|at| is_open || at + 1 < segments.len()) {
            return Err("has a parameter like {*rest} before its end".to_owned());
        }
        let is_literal = |segment: &Segment| matches!(segment, Segment::Literal(_));
        let last = segments.iter().rposition(|segment| !is_literal(segment));
        let in_key = 1 + last.ok_or(
            "has no parameter like {id}, so that one lock would be for all requests: if that is meant, use the closure |_| \"name\" in place of key::path",
        )?;
        if segments[..in_key].contains(&Segment::Literal(String::new())) {
            return Err("has an empty segment".to_owned());
        }
        Ok(Self {
            text: pattern.to_owned(),
            segments,
            in_key,
            is_open,
        })
    }

    /// Returns the key of a path: its segments up to the last parameter, joined.
    pub(super) fn key(&self, path: &str) -> KeyResult {
        let mut key = JoinedParts::default();
        let mut left = path.strip_prefix('/');
        for (at, expected) in self.segments.iter().enumerate() {
            let path = left.ok_or_else(|| self.mismatch())?;
            let (segment, next) = match path.split_once('/') {
                Some((segment, next)) => (segment, Some(next)),
                None => (path, None),
            };
            left = next;
            match expected {
                Segment::Literal(literal) => {
                    if !percent_decode_str(segment).eq(literal.bytes()) {
                        return Err(self.mismatch());
                    }
                    if at < self.in_key {
                        key.push(literal)?;
                    }
                }
                Segment::Parameter => key.push(&decoded(segment)?)?,
                Segment::CatchAll => {
                    key.push(&decoded(path)?)?;
                    left = None;
                }
            }
        }
        match left {
            Some(_) if !self.is_open => Err(self.mismatch()),
            _ => key.into_key(),
        }
    }

    fn mismatch(&self) -> Error {
        Error::new(
            ErrorKind::Config,
            format!(
                "the path of the request does not match {:?}, the pattern of key::path",
                self.text
            ),
        )
    }
}

impl Segment {
    fn parse(segment: &str) -> Result<Self, String> {
        let name = segment
            .strip_prefix('{')
            .and_then(|name| name.strip_suffix('}'));
        match name {
            Some("" | "*") => Err("has a parameter without a name".to_owned()),
            Some(name) if name.contains(['{', '}']) => Err(Self::brace()),
            Some(name) if name.starts_with('*') => Ok(Self::CatchAll),
            Some(_) => Ok(Self::Parameter),
            None if segment.contains(['{', '}']) => Err(Self::brace()),
            None if segment == "**" => Err("has ** before its end".to_owned()),
            None if segment.starts_with(':') => Err(format!(
                "has the segment {segment}: a parameter is written {{{}}}",
                &segment[1..]
            )),
            None if segment.starts_with('*') => Err(format!(
                "has the segment {segment}: for anything that may follow, write **; to have it in the key, write {{*rest}}"
            )),
            None => Ok(Self::Literal(segment.to_owned())),
        }
    }

    fn brace() -> String {
        "has a brace inside a segment: a parameter is a whole segment, like {id}".to_owned()
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

    /// Returns the text of the key, or why there is none.
    fn key(pattern: &str, path: &str) -> Result<String, ErrorKind> {
        let key = PathPattern::parse(pattern).unwrap().key(path);
        key.map(|key| key.as_str().to_owned())
            .map_err(|error| error.kind())
    }

    #[test]
    fn the_table_of_patterns_and_paths_is_right() {
        for (pattern, path, text) in [
            ("/accounts/{id}", "/accounts/7", "accounts:7"),
            (
                "/accounts/{id}/transfer",
                "/accounts/7/transfer",
                "accounts:7",
            ),
            (
                "/accounts/{id}/deposit",
                "/accounts/7/deposit",
                "accounts:7",
            ),
            ("/accounts/{id}/**", "/accounts/7", "accounts:7"),
            ("/accounts/{id}/**", "/accounts/7/", "accounts:7"),
            ("/accounts/{id}/**", "/accounts/7/cards/9", "accounts:7"),
            (
                "/accounts/{id}/cards/{card}/block",
                "/accounts/7/cards/9/block",
                "accounts:7:cards:9",
            ),
            ("/files/{*path}", "/files/a/b.txt", "files:a/b.txt"),
            ("/files/{*path}", "/files/a%2Fb.txt", "files:a/b.txt"),
            (
                "/accounts/{id}/{*rest}",
                "/accounts/7/cards/9",
                "accounts:7:cards/9",
            ),
            ("/accounts/{id}/", "/accounts/7/", "accounts:7"),
            ("/accounts/{id}", "/accounts/%37", "accounts:7"),
            ("/accounts/{id}", "/%61ccounts/7", "accounts:7"),
            ("/accounts/{id}", "/accounts/a:b", "accounts:a%3Ab"),
            ("/{id}", "/7", "7"),
        ] {
            assert_eq!(key(pattern, path).as_deref(), Ok(text), "{pattern} {path}");
        }
    }

    #[test]
    fn a_path_that_does_not_match_is_a_mistake_of_the_service() {
        for (pattern, path) in [
            ("/accounts/{id}", "/accounts"),
            ("/accounts/{id}", "/accounts/7/"),
            ("/accounts/{id}", "/accounts/7/transfer"),
            ("/accounts/{id}", "/Accounts/7"),
            ("/accounts/{id}", "/api/accounts/7"),
            ("/accounts/{id}", "/%ff/7"),
            ("/accounts/{id}", "*"),
            ("/accounts/{id}", ""),
            ("/accounts/{id}/", "/accounts/7"),
            ("/accounts/{id}/transfer", "/accounts/7/deposit"),
            ("/accounts/{id}/transfer", "/accounts/7"),
            ("/accounts/{id}/**", "/accounts"),
            ("/files/{*path}", "/files"),
        ] {
            assert_eq!(key(pattern, path), Err(ErrorKind::Config), "{path}");
        }
    }

    #[test]
    fn an_empty_parameter_and_broken_utf8_are_invalid() {
        for (pattern, path) in [
            ("/accounts/{id}", "/accounts/"),
            ("/accounts/{id}", "/accounts/%ff"),
            ("/accounts/{id}/**", "/accounts//transfer"),
            ("/files/{*path}", "/files/"),
            ("/files/{*path}", "/files/a/%ff"),
        ] {
            assert_eq!(key(pattern, path), Err(ErrorKind::InvalidKey), "{path}");
        }
    }

    #[test]
    fn a_slash_inside_a_parameter_stays_inside() {
        let nested = |path| key("/a/{x}/{y}", path).unwrap();
        assert_ne!(nested("/a/b%2Fc/d"), nested("/a/b/c%2Fd"));
    }

    #[test]
    fn a_pattern_that_is_wrong_or_names_nothing_is_refused_with_what_to_write() {
        for (pattern, hint) in [
            ("accounts/{id}", "slash"),
            ("/a{id}", "whole segment"),
            ("/a/{id", "whole segment"),
            ("/a/{{id}}", "whole segment"),
            ("/{}", "without a name"),
            ("/{*}", "without a name"),
            ("/{*rest}/a", "before its end"),
            ("/{*rest}/**", "before its end"),
            ("/a/**/{id}", "** before its end"),
            ("/{id}/**/**", "** before its end"),
            ("/accounts/:id", "written {id}"),
            ("/accounts/*rest", "write {*rest}"),
            ("/accounts/{id}/*", "write **"),
            ("/", "|_| \"name\""),
            ("/transfers", "no parameter"),
            ("/transfers/**", "no parameter"),
            ("/**", "no parameter"),
            ("/accounts//{id}", "empty segment"),
        ] {
            let why = PathPattern::parse(pattern).err().expect(pattern);
            assert!(why.contains(hint), "{pattern} {why}");
        }
    }
}
