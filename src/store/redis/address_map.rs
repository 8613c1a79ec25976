//! [`AddressMap`]: where servers are for this process.

use std::fmt;
use std::sync::Arc;

/// Returns where a server is to be reached that a cluster or a sentinel tells of.
type Map = dyn Fn(&str, u16) -> Option<(String, u16)> + Send + Sync;

/// A user's closure.
#[derive(Clone)]
pub(crate) struct AddressMap(Arc<Map>);

impl AddressMap {
    pub(crate) fn new<F>(map: F) -> Self
    where
        F: Fn(&str, u16) -> Option<(String, u16)> + Send + Sync + 'static,
    {
        Self(Arc::new(map))
    }

    pub(super) fn of(&self, host: &str, port: u16) -> Option<(String, u16)> {
        (self.0)(host, port)
    }
}

impl fmt::Debug for AddressMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressMap").finish_non_exhaustive()
    }
}
