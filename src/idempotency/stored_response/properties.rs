use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn headers() -> impl Strategy<Value = HeaderMap> {
    let value = vec(
        any::<u8>().prop_filter("a header may hold it", |byte| {
            HeaderValue::from_bytes(&[*byte]).is_ok()
        }),
        0..40,
    );
    vec(("[a-d][a-z0-9-]{0,2}", value), 0..12).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(&value).unwrap());
        }
        headers
    })
}

fn stored() -> impl Strategy<Value = StoredResponse> {
    let body = (vec(any::<u8>(), 0..200), option::of(headers()));
    let body = body.prop_map(|(data, trailers)| Collected {
        data: data.into(),
        trailers,
    });
    let status = (100_u16..1000).prop_map(|status| StatusCode::from_u16(status).unwrap());
    let fingerprint = option::of(any::<[u8; 32]>());
    (
        any::<u64>(),
        fingerprint,
        status,
        headers(),
        option::of(body),
    )
        .prop_map(
            |(fencing_token, fingerprint, status, headers, body)| StoredResponse {
                fencing_token,
                fingerprint,
                status,
                headers,
                body,
            },
        )
}

proptest! {
    #[test]
    fn what_was_written_is_read(stored in stored()) {
        let read = StoredResponse::decode(stored.encode());
        prop_assert_eq!(read.as_ref(), Ok(&stored));
        // The order of a field's values, too, which `==` does not see across names.
        let fields = |stored: &StoredResponse| format!("{:?}", stored.headers);
        prop_assert_eq!(fields(&read.unwrap()), fields(&stored));
    }

    #[test]
    fn what_was_cut_off_or_is_too_long_is_corrupt(stored in stored(), at in any::<prop::sample::Index>()) {
        let encoded = stored.encode();
        let cut = encoded.slice(..at.index(encoded.len()));
        prop_assert_eq!(StoredResponse::decode(cut), Err(Unreadable::Corrupt));
        let mut longer = encoded.to_vec();
        longer.push(0);
        prop_assert_eq!(StoredResponse::decode(longer.into()), Err(Unreadable::Corrupt));
    }

    #[test]
    fn nothing_makes_it_panic(stored in stored(), at in any::<prop::sample::Index>(), byte: u8, rest in vec(any::<u8>(), 0..60)) {
        let mut changed = unseal(stored.encode()).unwrap().to_vec();
        let length = changed.len();
        changed[at.index(length)] = byte;
        // The checksum would keep all of that out.
        if let Ok(stored) = StoredResponse::decode(seal(changed[..].into())) {
            prop_assert_eq!(StoredResponse::decode(stored.encode()), Ok(stored));
        }
        let content = [MAGIC, &[VERSION], &rest].concat();
        let _ = StoredResponse::decode(seal(content[..].into()));
        let _ = StoredResponse::decode(content.into());
    }

    #[test]
    fn a_newer_version_is_told_as_such(stored in stored(), version in 2_u8..) {
        let mut newer = stored.encode().to_vec();
        newer[MAGIC.len()] = version;
        prop_assert_eq!(StoredResponse::decode(newer.into()), Err(Unreadable::Version(version)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_single_bit_can_change_unnoticed(stored in stored()) {
        let stored = stored.encode();
        for bit in 0..8 * stored.len() {
            let mut damaged = stored.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let expected = match (bit / 8, damaged[MAGIC.len()]) {
                (4, version @ 1..) => Unreadable::Version(version),
                _ => Unreadable::Corrupt,
            };
            prop_assert_eq!(StoredResponse::decode(damaged.into()), Err(expected), "bit {}", bit);
        }
    }
}
