//! [`Pings`]: callers that want to know whether locks can be taken.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::clock::Time;
use crate::error::Error;
use crate::shield::shielded;

type Answer = oneshot::Sender<Result<(), Error>>;

/// Callers that wait for the reply to anything that was sent after they asked.
#[derive(Debug, Default)]
pub(super) struct Pings(Mutex<Vec<(Time, Answer)>>);

impl Pings {
    pub(super) fn ask(&self) -> oneshot::Receiver<Result<(), Error>> {
        let (answer, answered) = oneshot::channel();
        let mut waiting = self.waiting();
        // Those that gave up are gone for good.
        waiting.retain(|(_, answer)| !answer.is_closed());
        waiting.push((Time::now(), answer));
        answered
    }

    /// Returns whether a caller needs the reply to a command that is still to be sent: none in
    /// flight was sent after it asked, the newest at that time.
    pub(super) fn need_a_command(&self, newest: Option<Time>) -> bool {
        let waiting = self.waiting();
        let last = waiting.last();
        last.is_some_and(|(asked, _)| newest.is_none_or(|newest| newest < *asked))
    }

    /// Answers those that asked before the command was sent whose reply is here.
    pub(super) fn answer(&self, sent_at: Time, result: impl FnOnce() -> Result<(), Error>) {
        let mut waiting = self.waiting();
        if waiting.is_empty() {
            return;
        }
        let (due, later) = waiting.drain(..).partition(|(asked, _)| *asked <= sent_at);
        *waiting = later;
        drop(waiting);
        let due: Vec<(Time, Answer)> = due;
        let result = result();
        for (_, answer) in due {
            shielded(|| answer.send(result.clone()));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(Time, Answer)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
