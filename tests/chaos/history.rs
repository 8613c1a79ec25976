//! What happened: each process writes lines to a file of its own, and the checker reads them all.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::clock::nanos;

macro_rules! whats {
    ($($(#[$doc:meta])* $what:ident)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum What { $($(#[$doc])* $what),* }

        impl What {
            fn parse(name: &str) -> Option<Self> {
                match name { $(stringify!($what) => Some(Self::$what),)* _ => None }
            }
        }
    };
}

whats! {
    /// A request for a lock, that waits (`number`: ns within which it must be answered; `text`: the
    /// key).
    Asked
    /// Like `Asked`, for one of several locks that are taken together: some may be held while
    /// others are waited for.
    AskedAll
    /// A request that does not wait, otherwise like `Asked`.
    Tried
    /// It has the lock (`number`: the fencing token; `text`: "shared", or "with" and the first of
    /// the requests whose locks are held together with this one).
    Granted
    /// It was refused (`text`: why).
    Refused
    /// It was dropped.
    Cancelled
    /// `is_held()` was true, between `before` and `at`.
    Held
    /// It was false.
    NotHeld
    /// `lost()` has resolved (`text`: why).
    Signal
    /// The holder is about to give the lock back.
    Ended
    /// `release()`, called at `before`, has answered (`text`: what).
    Released
    /// The store took a write, or let one read that shares the lock (`number`: its token; `text`:
    /// "careless" if the holder knew that it had lost the lock).
    Accepted
    /// It had seen a higher token.
    Rejected
    /// Nothing of a runtime of the process (`id`) ran between `before` and `at`.
    Stall
    /// A request for a layer (`number`, `text` as with `Asked`): an event, or a lock's key.
    Delivered
    /// Its answer (`text`).
    Answered
    /// Its handler runs (`number`: the fencing token; `text`: "shared" if it shares the lock).
    Began
    /// The handler has done its work (`number`: the status; `before`: until when its lease is
    /// good).
    Done
    /// A thread of the process panicked (`text`).
    Panicked
    /// The process is about to end by itself.
    Closed
    /// The process was killed, at this time at the latest (`by`: which).
    Killed
    /// A fault is about to begin (`text`: its name), and is over.
    FaultBegins
    FaultEnds
    /// A lock was in Redis, at some time between `before` and `at` (`number`: for so many ns more;
    /// `text`: its name and its value; behind a token that shares it, "shared").
    Seen
    /// Redis carried out so many commands (`number`) between `before` and `at`.
    Commands
}

#[derive(Clone, Debug)]
pub struct Event {
    pub at: u64,
    /// The number of the process.
    pub by: u32,
    pub what: What,
    /// Which request, fault or runtime of that process.
    pub id: u64,
    pub number: u64,
    pub before: u64,
    pub text: String,
}

/// A process's own part of the history.
#[derive(Clone)]
pub struct Log {
    file: Arc<File>,
    by: u32,
}

impl Log {
    pub fn create(path: &Path, by: u32) -> Self {
        let file = File::options().create(true).append(true).open(path);
        let file = Arc::new(file.unwrap());
        Self { file, by }
    }

    pub fn note(&self, what: What, id: u64, number: u64, text: &str) {
        self.write(nanos(), what, id, number, 0, text);
    }

    /// Something between `before` and now.
    pub fn since(&self, before: u64, what: What, id: u64, number: u64, text: &str) {
        self.write(nanos(), what, id, number, before, text);
    }

    pub fn of(&self, by: u32) -> Self {
        let file = Arc::clone(&self.file);
        Self { file, by }
    }

    /// In one call, so that a process that is killed leaves whole lines.
    pub fn write(&self, at: u64, what: What, id: u64, number: u64, before: u64, text: &str) {
        let by = self.by;
        let line = format!("{at} {by} {what:?} {id} {number} {before} {text}\n");
        (&*self.file).write_all(line.as_bytes()).unwrap();
    }
}

/// All histories in a directory, in order of time.
pub fn read(dir: &Path) -> Vec<Event> {
    let mut events = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "history")
        {
            let text = std::fs::read_to_string(path).unwrap();
            events.extend(text.lines().map(|line| parse(line).expect(line)));
        }
    }
    events.sort_by_key(|event: &Event| event.at);
    events
}

pub fn parse(line: &str) -> Option<Event> {
    let mut fields = line.splitn(7, ' ');
    let mut next = || fields.next();
    Some(Event {
        at: next()?.parse().ok()?,
        by: next()?.parse().ok()?,
        what: What::parse(next()?)?,
        id: next()?.parse().ok()?,
        number: next()?.parse().ok()?,
        before: next()?.parse().ok()?,
        text: next()?.to_owned(),
    })
}
