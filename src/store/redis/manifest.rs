//! [`Manifest`]: what is in the lock's place for a record that is kept in parts.
//!
//! Binary, in this order; numbers are big-endian:
//!
//! | | |
//! |---|---|
//! | `TDLM` | no token of a lock and no record begins like that |
//! | version, 1 byte | 1 |
//! | the parts' id, 16 bytes | see [`part_name`](super::names::part_name) |
//! | length of the record, 8 bytes | |
//! | length of each part but the last, 4 bytes | |
//! | SHA-256 of the record, 32 bytes | |

use std::fmt;
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

const MAGIC: &[u8] = b"TDLM";
const VERSION: u8 = 1;
const LENGTH: usize = 4 + 1 + 16 + 8 + 4 + 32;
/// More bytes than any record has: the layer keeps no body of more than half of this.
const MAX_RECORD: usize = 512 << 20;

/// A record that is cut into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Is in the names of all these parts, and of no others.
    pub(super) id: Uuid,
    /// Bytes of the record.
    pub(super) length: usize,
    /// Bytes of each part but the last.
    pub(super) each: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(super) parts: Parts,
    pub(super) checksum: [u8; 32],
}

/// Why a record cannot be read, though Redis has its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// A newer version of this crate wrote the manifest.
    Version(u8),
    /// This crate writes no such manifest.
    Corrupt,
    /// A part is not there, or has another length.
    Missing,
    /// The parts are not those that were written.
    Checksum,
}

impl Parts {
    /// Returns the parts of a record of so many bytes, `None` if it is too long.
    pub(super) fn of(length: usize, each: usize) -> Option<Self> {
        let id = Uuid::new_v4();
        (length <= MAX_RECORD).then_some(Self { id, length, each })
    }

    pub(super) fn count(&self) -> usize {
        self.length.div_ceil(self.each)
    }

    /// Returns where in the record each part is.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { length, each, .. } = *self;
        (0..length)
            .step_by(each)
            .map(move |begin| begin..length.min(begin + each))
    }
}

impl Manifest {
    pub(in crate::store) fn parts(&self) -> Parts {
        self.parts
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(LENGTH);
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        out.put_slice(self.parts.id.as_bytes());
        out.put_u64(self.parts.length as u64);
        out.put_u32(self.parts.each as u32);
        out.put_slice(&self.checksum);
        out.freeze()
    }

    /// Reads a manifest. `None`: these bytes are none, but perhaps a record.
    pub(super) fn decode(bytes: &[u8]) -> Option<Result<Self, Damage>> {
        let rest = bytes.strip_prefix(MAGIC)?;
        Some(match rest.first() {
            Some(&VERSION) if bytes.len() == LENGTH => Self::fields(&rest[1..]),
            Some(&version) if version > VERSION => Err(Damage::Version(version)),
            _ => Err(Damage::Corrupt),
        })
    }

    fn fields(mut bytes: &[u8]) -> Result<Self, Damage> {
        let id = Uuid::from_u128(bytes.get_u128());
        let length = usize::try_from(bytes.get_u64()).unwrap_or(usize::MAX);
        let each = bytes.get_u32() as usize;
        let mut checksum = [0; 32];
        bytes.copy_to_slice(&mut checksum);
        let parts = Parts { id, length, each };
        match length <= MAX_RECORD && each > 0 {
            true => Ok(Self { parts, checksum }),
            false => Err(Damage::Corrupt),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(
                f,
                "its manifest has version {version}, and this crate reads version {VERSION}: a newer version of the crate wrote it"
            ),
            Self::Corrupt => f.write_str("its manifest is not what this crate wrote"),
            Self::Missing => f.write_str(
                "one of its parts is missing: Redis evicted it, or another client deleted it",
            ),
            Self::Checksum => f.write_str("its parts are not what was written"),
        }
    }
}

#[cfg(all(test, feature = "properties"))]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn manifest(id: u128, length: usize, each: usize, byte: u8) -> Manifest {
        Manifest {
            parts: Parts {
                id: Uuid::from_u128(id),
                length,
                each,
            },
            checksum: [byte; 32],
        }
    }

    #[test]
    fn a_manifest_of_more_than_a_record_can_have_is_corrupt() {
        for (length, each) in [(MAX_RECORD + 1, 1), (usize::MAX, 1), (1, 0)] {
            let bytes = manifest(1, length, each, 0).encode();
            assert_eq!(Manifest::decode(&bytes), Some(Err(Damage::Corrupt)));
        }
        assert!(Parts::of(MAX_RECORD + 1, 1).is_none());
    }

    #[test]
    fn a_record_or_a_token_is_no_manifest() {
        for other in [
            &b"TDLR\x01"[..],
            b"0123456789abcdef0123456789abcdef:1",
            b"TDL",
            b"",
        ] {
            assert_eq!(Manifest::decode(other), None);
        }
    }

    /// A new version of the crate must be able to read what this one wrote.
    #[test]
    fn the_form_stays_as_it_is() {
        let form = [
            &b"TDLM\x01"[..],
            b"\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f",
            b"\0\0\0\0\0\x01\x02\x03",
            b"\0\0\x04\0",
            &[7; 32],
        ];
        let id = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f;
        assert_eq!(manifest(id, 0x01_02_03, 0x400, 7).encode(), form.concat());
    }
}
