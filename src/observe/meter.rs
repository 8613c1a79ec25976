//! [`Meter`]: what is counted under the name of a layer.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "metrics")]
use self::instruments::Instruments;
#[cfg(feature = "metrics")]
use super::series::Handles;
#[cfg(feature = "tracing")]
use super::{Mistake, seldom::Seldom};
#[cfg(feature = "tracing")]
use crate::clock::Time;

/// The name under which locks and requests are counted: that of a layer, or of a manager.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    role: Role,
    #[cfg(feature = "metrics")]
    instruments: Handles<Instruments>,
    #[cfg(feature = "tracing")]
    mistakes: [Seldom; Mistake::COUNT],
}

/// Who has the name: it decides what there is to count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Manager,
    LockLayer,
    IdempotencyLayer,
}

impl Meter {
    /// What has no name of its own.
    pub(crate) const DEFAULT: &str = "default";

    /// Makes a meter with that name.
    ///
    /// # Panics
    ///
    /// Panics if the name is empty.
    pub(crate) fn new(name: &str, role: Role) -> Self {
        assert!(
            !name.is_empty(),
            "the name is empty: leave it out to count under {:?}",
            Self::DEFAULT
        );
        Self(Arc::new(Inner {
            name: name.into(),
            role,
            #[cfg(feature = "metrics")]
            instruments: Handles::default(),
            #[cfg(feature = "tracing")]
            mistakes: Default::default(),
        }))
    }

    /// Makes a meter with the default name.
    pub(crate) fn unnamed(role: Role) -> Self {
        Self::new(Self::DEFAULT, role)
    }

    #[cfg_attr(not(any(feature = "tracing", feature = "inspector")), allow(dead_code))]
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns true once a minute for each mistake.
    #[cfg(feature = "tracing")]
    pub(super) fn is_to_tell_of(&self, mistake: Mistake) -> bool {
        self.0.mistakes[mistake as usize].is_due(Time::now())
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Meter").field(&self.0.name).finish()
    }
}

#[cfg(feature = "metrics")]
mod instruments;
