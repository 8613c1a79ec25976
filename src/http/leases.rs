//! The leases that a request runs under, in its extensions.

use http::Extensions;

use crate::key::LockKey;
use crate::lease::{Lease, Leases};

/// The leases that a request runs under besides the one that its handler finds. They are in its
/// extensions too, so that no lock is taken twice.
#[derive(Clone, Default)]
struct OuterLeases(Vec<Lease>);

/// Makes this the lease that the handler finds in the extensions. The one before it stays among the
/// outer ones.
pub(crate) fn insert_lease(lease: Lease, extensions: &mut Extensions) {
    if let Some(outer) = extensions.insert(lease) {
        let leases = extensions.get_or_insert_default::<OuterLeases>();
        leases.0.push(outer);
    }
}

/// Makes these the leases that the handler finds in the extensions. If there is one only, it finds
/// that as the [`Lease`], too.
pub(crate) fn insert_leases(leases: Leases, extensions: &mut Extensions) {
    match leases.as_slice() {
        [lease] => insert_lease(lease.clone(), extensions),
        all => {
            let outer = extensions.get_or_insert_default::<OuterLeases>();
            outer.0.extend_from_slice(all);
        }
    }
    extensions.insert(leases);
}

/// Like [`insert_lease`], but never takes another lease's place: the handler should find its
/// resource's lock, not the idempotency key's.
pub(crate) fn insert_secondary_lease(lease: Lease, extensions: &mut Extensions) {
    if extensions.get::<Lease>().is_none() {
        extensions.insert(lease);
    } else {
        let leases = extensions.get_or_insert_default::<OuterLeases>();
        leases.0.push(lease);
    }
}

/// Returns whether the request runs under a lease already.
pub(crate) fn has_lease(extensions: &Extensions) -> bool {
    extensions.get::<Lease>().is_some() || extensions.get::<OuterLeases>().is_some()
}

/// Returns the lease on that key, if the request runs under one already.
pub(crate) fn find_lease<'a>(
    extensions: &'a Extensions,
    manager: u64,
    key: &LockKey,
) -> Option<&'a Lease> {
    let outer = extensions.get::<OuterLeases>();
    let outer = outer.map_or(&[][..], |leases| &leases.0);
    let mut leases = extensions.get::<Lease>().into_iter().chain(outer);
    leases.find(|lease| lease.is_on(manager, key))
}
