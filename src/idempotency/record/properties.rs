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

fn record() -> impl Strategy<Value = Record> {
    let body = (vec(any::<u8>(), 0..200), option::of(headers()));
    let body = body.prop_map(|(data, trailers)| Whole {
        data: data.into(),
        trailers,
    });
    let status = (100_u16..1000).prop_map(|status| StatusCode::from_u16(status).unwrap());
    let fingerprint = option::of(any::<[u8; 32]>());
    (fingerprint, status, headers(), option::of(body)).prop_map(
        |(fingerprint, status, headers, body)| Record {
            fingerprint,
            status,
            headers,
            body,
        },
    )
}

proptest! {
    #[test]
    fn what_was_written_is_read(record in record()) {
        let read = Record::decode(record.encode());
        prop_assert_eq!(read.as_ref(), Ok(&record));
        // The order of a field's values, too, which `==` does not see across names.
        let fields = |record: &Record| format!("{:?}", record.headers);
        prop_assert_eq!(fields(&read.unwrap()), fields(&record));
    }

    #[test]
    fn what_was_cut_off_or_is_too_long_is_corrupt(record in record(), at in any::<prop::sample::Index>()) {
        let whole = record.encode();
        let cut = whole.slice(..at.index(whole.len()));
        prop_assert_eq!(Record::decode(cut), Err(Unreadable::Corrupt));
        let mut longer = whole.to_vec();
        longer.push(0);
        prop_assert_eq!(Record::decode(longer.into()), Err(Unreadable::Corrupt));
    }

    #[test]
    fn nothing_makes_it_panic(record in record(), at in any::<prop::sample::Index>(), byte: u8, rest in vec(any::<u8>(), 0..60)) {
        let mut changed = unseal(record.encode()).unwrap().to_vec();
        let length = changed.len();
        changed[at.index(length)] = byte;
        // The checksum would keep all of that out.
        if let Ok(record) = Record::decode(seal(changed[..].into())) {
            prop_assert_eq!(Record::decode(record.encode()), Ok(record));
        }
        let content = [MAGIC, &[VERSION], &rest].concat();
        let _ = Record::decode(seal(content[..].into()));
        let _ = Record::decode(content.into());
    }

    #[test]
    fn a_newer_version_is_told_as_such(record in record(), version in 2_u8..) {
        let mut newer = record.encode().to_vec();
        newer[MAGIC.len()] = version;
        prop_assert_eq!(Record::decode(newer.into()), Err(Unreadable::Version(version)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_single_bit_can_change_unnoticed(record in record()) {
        let record = record.encode();
        for bit in 0..8 * record.len() {
            let mut damaged = record.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let expected = match (bit / 8, damaged[MAGIC.len()]) {
                (4, version @ 1..) => Unreadable::Version(version),
                _ => Unreadable::Corrupt,
            };
            prop_assert_eq!(Record::decode(damaged.into()), Err(expected), "bit {}", bit);
        }
    }
}
