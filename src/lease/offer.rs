//! [`Offer`]: who is to release a lock, the layer that took it or the handler.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// An offer that one of two ends: the handler accepts it, or the layer withdraws it.
pub(super) struct Offer<T>(Mutex<State<T>>);

enum State<T> {
    None,
    Made(T),
    Accepted,
    /// Accepted, and the layer has seen that.
    Settled,
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
            other => {
                *state = other;
                None
            }
        }
    }

    /// Makes an offer again that was accepted. Returns whether the layer is still there for it.
    pub(super) fn give_back(&self, offered: T) -> bool {
        let mut state = self.state();
        let is_open = matches!(*state, State::Accepted);
        if is_open {
            *state = State::Made(offered);
        }
        is_open
    }

    /// Ends the offer. Returns whether it was accepted before.
    pub(super) fn withdraw(&self) -> bool {
        let mut state = self.state();
        match *state {
            State::Made(_) => *state = State::None,
            State::Accepted => *state = State::Settled,
            State::None | State::Settled => {}
        }
        matches!(*state, State::Settled)
    }

    pub(super) fn is_accepted(&self) -> bool {
        matches!(*self.state(), State::Accepted | State::Settled)
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
