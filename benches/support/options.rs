//! The words behind `--` on the command line.

use std::time::Duration;

/// The parts of a benchmark that are to run: those that are named, or all.
pub struct Parts(Vec<String>);

impl Parts {
    pub fn from_args() -> Self {
        Self::of(std::env::args().skip(1))
    }

    /// Cargo adds options of its own, which are left out.
    pub fn of(words: impl Iterator<Item = String>) -> Self {
        Self(words.filter(|word| !word.starts_with('-')).collect())
    }

    pub fn wants(&self, part: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|chosen| chosen == part)
    }
}

/// Whether a run shall only show that everything works: `--quick`.
fn is_quick() -> bool {
    std::env::args().any(|word| word == "--quick")
}

/// Returns how many rounds to measure.
pub fn rounds(usual: usize) -> usize {
    if is_quick() { usual.min(3) } else { usual }
}

/// Returns how long a measurement is to take.
pub fn time(usual: Duration) -> Duration {
    if is_quick() { usual / 4 } else { usual }
}

/// Returns how many requests to measure.
pub fn requests(usual: usize) -> usize {
    if is_quick() { usual / 4 } else { usual }
}
