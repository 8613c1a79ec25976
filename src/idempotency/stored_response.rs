//! [`StoredResponse`]: a response, in the form in which it is kept in Redis.
//!
//! Binary, in this order; numbers are big-endian:
//!
//! | | |
//! |---|---|
//! | `TDLR` | no lock's token begins like that |
//! | version, 1 byte | 1 |
//! | flags, 1 byte | 1: a fingerprint, 2: a body, 4: trailers |
//! | fencing token of the run, 8 bytes | no two runs store the same bytes, whatever they responded |
//! | fingerprint, 32 bytes | if there is one |
//! | status, 2 bytes | |
//! | header fields | |
//! | length of the body, 4 bytes; the body | if there is one |
//! | trailer fields | if there are any |
//! | CRC-32, 4 bytes | of all that comes before |
//!
//! Fields are their number in 2 bytes, and for each the length of its name in 2 bytes, the name,
//! the length of its value in 4 bytes, the value.
//!
//! Without the checksum, damaged bytes could be replayed as another response. It finds every change
//! of up to 32 bits in a row, and took 45 ns for a KiB and 18 µs for a MiB, where a SHA-256 took
//! 660 ns and 615 µs.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::http::Collected;

const MAGIC: &[u8] = b"TDLR";
const VERSION: u8 = 1;

const FINGERPRINT: u8 = 1;
const BODY: u8 = 2;
const TRAILERS: u8 = 4;

/// The SHA-256 of a request's payload.
pub(crate) type Fingerprint = [u8; 32];

/// The response to an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredResponse {
    /// The fencing token of the run. Without it, a run that lost its lock could not be told from
    /// another whose response has the same bytes, and is in the lock's place.
    pub(crate) fencing_token: u64,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `None` if it was not kept.
    pub(crate) body: Option<Collected>,
}

/// Why a stored response cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// A newer version of this crate wrote it.
    Version(u8),
    Corrupt,
}

impl StoredResponse {
    pub(crate) fn encode(&self) -> Bytes {
        let body = self.body.as_ref();
        let trailers = body.and_then(|body| body.trailers.as_ref());
        let mut flags = 0;
        for (flag, is_there) in [
            (FINGERPRINT, self.fingerprint.is_some()),
            (BODY, body.is_some()),
            (TRAILERS, trailers.is_some()),
        ] {
            flags |= if is_there { flag } else { 0 };
        }
        let length = body.map_or(0, |body| body.data.len());
        let mut out = BytesMut::with_capacity(512 + length);
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        out.put_u8(flags);
        out.put_u64(self.fencing_token);
        out.put_slice(self.fingerprint.as_ref().map_or(&[], |hash| hash));
        out.put_u16(self.status.as_u16());
        put_fields(&mut out, &self.headers);
        if let Some(body) = body {
            put(&mut out, &body.data);
        }
        if let Some(trailers) = trailers {
            put_fields(&mut out, trailers);
        }
        seal(out)
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Unreadable> {
        if !bytes.starts_with(MAGIC) {
            return Err(Unreadable::Corrupt);
        }
        match bytes.get(MAGIC.len()) {
            Some(&VERSION) => {}
            None | Some(0) => return Err(Unreadable::Corrupt),
            // The form of what follows is unknown.
            Some(&version) => return Err(Unreadable::Version(version)),
        }
        let mut content = unseal(bytes)?;
        split(&mut content, MAGIC.len() + 1)?;
        let flags = byte(&mut content)?;
        let has = |flag| flags & flag != 0;
        if flags & !(FINGERPRINT | BODY | TRAILERS) != 0 || has(TRAILERS) && !has(BODY) {
            return Err(Unreadable::Corrupt);
        }
        let fencing_token = u64::from_be_bytes(array(&mut content)?);
        let fingerprint = match has(FINGERPRINT) {
            true => Some(array(&mut content)?),
            false => None,
        };
        let status = u16::from_be_bytes(array(&mut content)?);
        let status = StatusCode::from_u16(status).map_err(|_| Unreadable::Corrupt)?;
        let headers = fields(&mut content)?;
        let body = match has(BODY) {
            true => Some(Collected {
                data: take(&mut content)?,
                trailers: match has(TRAILERS) {
                    true => Some(fields(&mut content)?),
                    false => None,
                },
            }),
            false => None,
        };
        if !content.is_empty() {
            return Err(Unreadable::Corrupt);
        }
        Ok(Self {
            fencing_token,
            fingerprint,
            status,
            headers,
            body,
        })
    }
}

/// Appends the checksum of the content.
pub(crate) fn seal(mut content: BytesMut) -> Bytes {
    let checksum = crc32fast::hash(&content);
    content.put_u32(checksum);
    content.freeze()
}

fn unseal(mut bytes: Bytes) -> Result<Bytes, Unreadable> {
    let length = bytes.len().checked_sub(size_of::<u32>());
    let content = split(&mut bytes, length.ok_or(Unreadable::Corrupt)?)?;
    match crc32fast::hash(&content) == bytes.get_u32() {
        true => Ok(content),
        false => Err(Unreadable::Corrupt),
    }
}

fn put(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).expect("bodies and headers are limited to less"));
    out.put_slice(bytes);
}

fn put_fields(out: &mut BytesMut, fields: &HeaderMap) {
    out.put_u16(u16::try_from(fields.len()).expect("a HeaderMap holds no more than 2^15 fields"));
    for (name, value) in fields {
        let name = name.as_str();
        out.put_u16(u16::try_from(name.len()).expect("a HeaderName is no longer than 2^16 - 1"));
        out.put_slice(name.as_bytes());
        put(out, value.as_bytes());
    }
}

fn split(bytes: &mut Bytes, length: usize) -> Result<Bytes, Unreadable> {
    match length <= bytes.len() {
        true => Ok(bytes.split_to(length)),
        false => Err(Unreadable::Corrupt),
    }
}

fn array<const N: usize>(bytes: &mut Bytes) -> Result<[u8; N], Unreadable> {
    let bytes = split(bytes, N)?;
    Ok(bytes[..].try_into().expect("as long as it was split"))
}

fn byte(bytes: &mut Bytes) -> Result<u8, Unreadable> {
    array(bytes).map(|[byte]| byte)
}

fn take(bytes: &mut Bytes) -> Result<Bytes, Unreadable> {
    let length = u32::from_be_bytes(array(bytes)?);
    split(bytes, length as usize)
}

fn fields(bytes: &mut Bytes) -> Result<HeaderMap, Unreadable> {
    let mut fields = HeaderMap::new();
    for _ in 0..u16::from_be_bytes(array(bytes)?) {
        let length = u16::from_be_bytes(array(bytes)?);
        let name = split(bytes, length.into())?;
        let name = HeaderName::from_bytes(&name).map_err(|_| Unreadable::Corrupt)?;
        let value = HeaderValue::from_maybe_shared(take(bytes)?);
        let value = value.map_err(|_| Unreadable::Corrupt)?;
        let appended = fields.try_append(name, value);
        appended.map_err(|_| Unreadable::Corrupt)?;
    }
    Ok(fields)
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(
                f,
                "it has version {version}, and this crate reads version {VERSION}: a newer one wrote it"
            ),
            Self::Corrupt => f.write_str("it is not what this crate wrote"),
        }
    }
}

#[cfg(all(test, feature = "properties"))]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    /// From the first release on, a new version of the crate must be able to read what an older one
    /// wrote.
    #[test]
    fn the_form_stays_as_it_is() {
        let mut headers = HeaderMap::new();
        headers.insert("a", HeaderValue::from_static("b"));
        let stored = StoredResponse {
            fencing_token: 0x0102_0304_0506_0708,
            fingerprint: Some([7; 32]),
            status: StatusCode::CREATED,
            headers,
            body: Some(Collected {
                data: Bytes::from_static(b"body"),
                trailers: Some(HeaderMap::new()),
            }),
        };
        let form = [
            &b"TDLR\x01\x07"[..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[7; 32],
            b"\x00\xc9",
            b"\x00\x01\x00\x01a\x00\x00\x00\x01b",
            b"\x00\x00\x00\x04body",
            b"\x00\x00",
            b"\xd9\x80\xdb\x32",
        ];
        assert_eq!(stored.encode(), form.concat());
        assert_eq!(StoredResponse::decode(form.concat().into()), Ok(stored));
    }
}
