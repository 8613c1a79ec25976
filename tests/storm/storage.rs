//! What the events have their effects on: a Redis of its own, which knows nothing of the locks,
//! with a log.
//!
//! Each line of the log is written in one step with what it tells of, so that the log is *the*
//! order of the storm.

use std::fmt;

use redis::aio::MultiplexedConnection;
use redis::{Script, ToRedisArgs};

use crate::support::connect_patiently;

/// One run of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    pub event: u64,
    /// Which run of that event it is, from 1.
    pub number: u64,
    /// The process that it ran in. No two have the same number.
    pub node: u64,
}

/// This is also the response body of a run.
impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.event, self.number, self.node)
    }
}

impl Run {
    fn parse(text: &str) -> Option<Self> {
        let (event, rest) = text.split_once('.')?;
        let (number, node) = rest.split_once('@')?;
        Some(Self {
            event: event.parse().ok()?,
            number: number.parse().ok()?,
            node: node.parse().ok()?,
        })
    }
}

/// What a run does with an account, for which it takes the account's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    pub run: Run,
    pub account: u64,
    /// It shares the lock.
    pub reads: bool,
}

impl fmt::Display for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.reads { "reads" } else { "writes" };
        write!(f, "{} {how} {}", self.run, self.account)
    }
}

impl Visit {
    fn parse(text: &str) -> Option<Self> {
        let (run, rest) = text.split_once(' ')?;
        let (how, account) = rest.split_once(' ')?;
        Some(Self {
            run: Run::parse(run)?,
            account: account.parse().ok()?,
            reads: how == "reads",
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Entry {
    // A run's, in this order.
    Began(Run),
    TookEffect(Run),
    Succeeded(Run),
    Failed(Run),
    Panicked(Run),
    /// The run was dropped before it came to one of these ends.
    Dropped(Run),
    /// The run's end, whatever it was, came when its lease was over.
    Outlived(Run),
    /// It has the account's lock now, and is about to give it back.
    Entered(Visit),
    Left(Visit),
    /// Its lock was over before it gave it back.
    LeftLate(Visit),
    /// The node did not run for so many ms.
    StoodStill(u64),
    // The driver's.
    /// A client has a 200 for that event.
    Answered(u64),
    /// That node gets a SIGKILL now.
    Kill(u64),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Began(run) => write!(f, "began {run}"),
            Self::TookEffect(run) => write!(f, "took-effect {run}"),
            Self::Succeeded(run) => write!(f, "succeeded {run}"),
            Self::Failed(run) => write!(f, "failed {run}"),
            Self::Panicked(run) => write!(f, "panicked {run}"),
            Self::Dropped(run) => write!(f, "dropped {run}"),
            Self::Outlived(run) => write!(f, "outlived {run}"),
            Self::Entered(visit) => write!(f, "entered {visit}"),
            Self::Left(visit) => write!(f, "left {visit}"),
            Self::LeftLate(visit) => write!(f, "left-late {visit}"),
            Self::StoodStill(ms) => write!(f, "stood-still {ms}"),
            Self::Answered(event) => write!(f, "answered {event}"),
            Self::Kill(node) => write!(f, "kill {node}"),
        }
    }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let (what, whom) = line.split_once(' ')?;
        let run = || Run::parse(whom);
        Some(match what {
            "began" => Self::Began(run()?),
            "took-effect" => Self::TookEffect(run()?),
            "succeeded" => Self::Succeeded(run()?),
            "failed" => Self::Failed(run()?),
            "panicked" => Self::Panicked(run()?),
            "dropped" => Self::Dropped(run()?),
            "outlived" => Self::Outlived(run()?),
            "entered" => Self::Entered(Visit::parse(whom)?),
            "left" => Self::Left(Visit::parse(whom)?),
            "left-late" => Self::LeftLate(Visit::parse(whom)?),
            "stood-still" => Self::StoodStill(whom.parse().ok()?),
            "answered" => Self::Answered(whom.parse().ok()?),
            "kill" => Self::Kill(whom.parse().ok()?),
            _ => return None,
        })
    }
}

#[derive(Clone)]
pub struct Storage(MultiplexedConnection);

impl Storage {
    pub async fn connect(url: &str) -> Self {
        Self(connect_patiently(url).await.unwrap())
    }

    pub async fn begin(&self, event: u64, node: u64) -> Run {
        let begin = "local number = redis.call('INCR', KEYS[1])
                     redis.call('RPUSH', 'log', 'began ' .. ARGV[1] .. '.' .. number .. '@' .. ARGV[2])
                     return number";
        let arguments = [event, node];
        let number = self.run(begin, &format!("runs:{event}"), &arguments).await;
        Run {
            event,
            number,
            node,
        }
    }

    pub async fn take_effect(&self, run: Run) {
        let take_effect = "redis.call('RPUSH', 'log', ARGV[1]) return redis.call('INCR', KEYS[1])";
        let line = Entry::TookEffect(run).to_string();
        self.run(take_effect, &format!("effect:{}", run.event), &line)
            .await;
    }

    pub async fn log(&self, entry: Entry) {
        let log = "return redis.call('RPUSH', KEYS[1], ARGV[1])";
        self.run(log, "log", &entry.to_string()).await;
    }

    async fn run(&self, script: &str, key: &str, arguments: impl ToRedisArgs) -> u64 {
        let script = Script::new(script);
        let mut call = script.key(key);
        let call = call.arg(arguments);
        call.invoke_async(&mut self.0.clone()).await.unwrap()
    }

    pub async fn read(&self) -> Vec<Entry> {
        let mut read = redis::cmd("LRANGE");
        let read = read.arg("log").arg(0).arg(-1);
        let lines: Vec<String> = read.query_async(&mut self.0.clone()).await.unwrap();
        lines
            .iter()
            .map(|line| Entry::parse(line).unwrap_or_else(|| panic!("{line:?}")))
            .collect()
    }

    /// How often it says that the event took effect.
    pub async fn effects(&self, event: u64) -> u64 {
        let mut get = redis::cmd("GET");
        let get = get.arg(format!("effect:{event}"));
        let effects: Option<u64> = get.query_async(&mut self.0.clone()).await.unwrap();
        effects.unwrap_or(0)
    }
}
