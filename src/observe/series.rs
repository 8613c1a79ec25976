//! The handles of a recorder: registered once, so that to record costs no look-up.

use std::sync::{Arc, OnceLock};

use metrics::{Counter, Histogram, IntoF64};

use super::catalogue::describe;

/// Registers these handles when they are first needed: the program must have installed its recorder
/// by then. Without one, there are none.
pub(super) struct Handles<T>(OnceLock<Option<Box<T>>>);

impl<T> Handles<T> {
    pub(super) fn get(&self, register: impl FnOnce() -> T) -> Option<&T> {
        let registered = self.0.get_or_init(|| {
            has_recorder().then(|| {
                describe();
                Box::new(register())
            })
        });
        registered.as_deref()
    }
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

/// Returns whether a recorder is installed. A handle asks for its value only if it has a recorder
/// behind it.
fn has_recorder() -> bool {
    struct Probe<'a>(&'a mut bool);

    impl IntoF64 for Probe<'_> {
        fn into_f64(self) -> f64 {
            *self.0 = true;
            0.0
        }
    }

    let mut has_recorder = false;
    metrics::gauge!("lock.waiters").increment(Probe(&mut has_recorder));
    has_recorder
}

/// Counters that differ in one label, all of them there from the beginning: the first increment
/// would be lost to a query for an increase.
pub(super) struct Counters<const N: usize>([Counter; N]);

impl<const N: usize> Counters<N> {
    pub(super) fn register(
        metric: &'static str,
        label: &'static str,
        values: [&'static str; N],
        name: Option<&Arc<str>>,
    ) -> Self {
        Self(values.map(|value| match name {
            Some(name) => metrics::counter!(metric, "name" => Arc::clone(name), label => value),
            None => metrics::counter!(metric, label => value),
        }))
    }

    pub(super) fn increment(&self, value: usize) {
        self.0[value].increment(1);
    }
}

/// Histograms that differ in two labels, each of them registered when it is first needed: most have
/// nothing to count, and a histogram is large.
pub(super) struct Histograms<const N: usize>([OnceLock<Histogram>; N]);

impl<const N: usize> Histograms<N> {
    pub(super) fn new() -> Self {
        Self([const { OnceLock::new() }; N])
    }

    pub(super) fn get(&self, index: usize, register: impl FnOnce() -> Histogram) -> &Histogram {
        self.0[index].get_or_init(register)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_recorder_nothing_is_registered() {
        let handles: Handles<()> = Handles::default();
        assert_eq!(handles.get(|| unreachable!("there is no recorder")), None);
        assert!(matches!(handles.0.get(), Some(None)), "looked for once");
    }
}
