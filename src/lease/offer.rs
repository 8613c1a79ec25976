//! [`Offer`]: who is to release a lock, the layer that took it or the handler.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// An offer that one of two ends, once: the handler accepts it, or the layer withdraws it.
pub(super) struct Offer<T>(Mutex<State<T>>);

enum State<T> {
    None,
    Made(T),
    Accepted,
}

impl<T> Default for Offer<T> {
    fn default() -> Self {
        Self(Mutex::new(State::None))
    }
}

impl<T> Offer<T> {
    pub(super) fn make(&self, offered: T) {
        *self.state() = State::Made(offered);
    }

    pub(super) fn accept(&self) -> Option<T> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::None) {
            State::Made(offered) => {
                *state = State::Accepted;
                Some(offered)
            }
            State::Accepted => {
                *state = State::Accepted;
                None
            }
            State::None => None,
        }
    }

    /// Ends the offer. Returns whether it was accepted before.
    pub(super) fn withdraw(&self) -> bool {
        let mut state = self.state();
        if let State::Made(_) = *state {
            *state = State::None;
        }
        matches!(*state, State::Accepted)
    }

    pub(super) fn is_accepted(&self) -> bool {
        matches!(*self.state(), State::Accepted)
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
