//! [`Mistake`]: how a service can be put together wrongly.

use std::fmt;

/// How a service is put together wrongly, so that requests are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// No key can be made for a request.
    NoKey,
    /// An inner layer wants a lock alone that an outer one shares.
    Upgrade,
}

impl Mistake {
    /// How many there are.
    #[cfg(feature = "tracing")]
    pub(super) const COUNT: usize = Self::Upgrade as usize + 1;
}

/// What the event says.
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoKey => {
                "no key can be made for a request, as the service is put together: it does not run"
            }
            Self::Upgrade => {
                "a layer wants a lock alone that a layer outside of it shares: the request does not run"
            }
        })
    }
}
