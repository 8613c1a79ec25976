//! The leases that a request runs under, in its extensions.

use http::Extensions;

use crate::key::LockKey;
use crate::lease::Lease;

/// The locks that a request holds beside the one in its `Lease`, in its extensions: none is taken twice.
#[derive(Clone, Default)]
struct Outer(Vec<Lease>);

/// Puts a lease into the extensions of the request that now runs under it.
pub(crate) fn hold(lease: Lease, extensions: &mut Extensions) {
    if let Some(outer) = extensions.insert(lease) {
        extensions.get_or_insert_default::<Outer>().0.push(outer);
    }
}

/// The same for a lease that is not what the handler looks for: that on what the request works on goes first.
pub(crate) fn hold_beside(lease: Lease, extensions: &mut Extensions) {
    if extensions.get::<Lease>().is_none() {
        extensions.insert(lease);
    } else {
        extensions.get_or_insert_default::<Outer>().0.push(lease);
    }
}

/// The lease on that key, if the request runs under one already.
pub(crate) fn held<'a>(
    extensions: &'a Extensions,
    manager: u64,
    key: &LockKey,
) -> Option<&'a Lease> {
    let outer = extensions.get::<Outer>().map_or(&[][..], |outer| &outer.0);
    let mut leases = extensions.get::<Lease>().into_iter().chain(outer);
    leases.find(|lease| lease.is_on(manager, key))
}
