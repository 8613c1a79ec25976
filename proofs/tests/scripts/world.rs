//! [`World`]: the server and its clients, one after the other.

use std::cell::Cell;
use std::time::{Duration, Instant};

use redis::{Cmd, Connection, ConnectionLike, Value, cmd};

use crate::calls::{Done, Link, Sources, carry_out, connect};
use crate::model::{Mutation, Process};
use crate::oracle::{Oracle, Window};
use crate::programs::{Call, Event, Step};
use crate::support::{PATIENCE, RedisServer};
use crate::wire::{command, inbox, text};
use crate::{Check, EPOCH, FENCE, OWNERS, PROCESSES, QUEUES, READERS, same};

/// A connection of a process, on which it listens.
pub(crate) struct Inbox {
    pub(crate) connection: Connection,
    pub(crate) channel: String,
    pub(crate) payloads: Vec<String>,
}

impl Inbox {
    pub(crate) fn all(server: &RedisServer) -> Vec<Self> {
        let inbox = |process| Self {
            connection: connect_to(server),
            channel: inbox(process),
            payloads: Vec::new(),
        };
        (0..PROCESSES).map(inbox).collect()
    }

    /// Takes all messages before the reply. Those that were published before it are among them.
    pub(crate) fn ask(&mut self, words: &[&str]) {
        let packed = command(words).get_packed_command();
        self.connection.send_packed_command(&packed).unwrap();
        loop {
            let answer = self.connection.recv_response().unwrap();
            let Value::Array(parts) = &answer else {
                return;
            };
            match (text(&parts[0]).as_deref(), parts.last()) {
                (Some("message"), Some(payload)) => self.payloads.push(text(payload).unwrap()),
                _ => return,
            }
        }
    }

    pub(crate) fn listen(&mut self, does: bool) {
        let channel = self.channel.clone();
        let command = if does { "SUBSCRIBE" } else { "UNSUBSCRIBE" };
        self.ask(&[command, &channel]);
    }

    pub(crate) fn take(&mut self) -> Vec<String> {
        self.ask(&["PING"]);
        std::mem::take(&mut self.payloads)
    }
}

pub(crate) struct World {
    pub(crate) sources: Sources,
    pub(crate) client: Connection,
    pub(crate) inboxes: Vec<Inbox>,
    /// Whether the server has a snapshot.
    pub(crate) has_saved: bool,
    pub(crate) server: RedisServer,
    pub(crate) runtime: tokio::runtime::Runtime,
}

pub(crate) fn connect_to(server: &RedisServer) -> Connection {
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// Carries out some commands at once. Errors are among the replies.
pub(crate) fn ask(client: &mut Connection, commands: &[Cmd]) -> Vec<Value> {
    let packed: Vec<u8> = commands.iter().flat_map(Cmd::get_packed_command).collect();
    client
        .req_packed_commands(&packed, 0, commands.len())
        .unwrap()
}

pub(crate) fn micros(time: &Value) -> u64 {
    let (seconds, micros): (u64, u64) = redis::from_redis_value(time.clone()).unwrap();
    seconds * 1_000_000 + micros
}

/// Carries out the commands in one write, and returns when that was.
pub(crate) fn timed(client: &mut Connection, commands: &[Cmd]) -> (Window, Vec<Value>) {
    let mut timed = vec![cmd("TIME")];
    timed.extend_from_slice(commands);
    timed.push(cmd("TIME"));
    let mut answers = ask(client, &timed);
    let time = Window {
        from_us: micros(&answers.remove(0)),
        to_us: micros(&answers.pop().unwrap()),
    };
    (time, answers)
}

impl World {
    pub(crate) fn start(sources: Sources) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(RedisServer::start());
        Self {
            sources,
            client: connect_to(&server),
            inboxes: Inbox::all(&server),
            has_saved: false,
            server,
            runtime,
        }
    }

    /// All locks are free, all processes listen, and the server knows the scripts.
    pub(crate) fn begin(&mut self) {
        ask(&mut self.client, &[cmd("FLUSHALL")]);
        if std::mem::take(&mut self.has_saved) {
            ask(&mut self.client, &[cmd("SAVE")]);
        }
        ask(&mut self.client, &self.sources.load());
        for inbox in &mut self.inboxes {
            inbox.listen(true);
            inbox.take();
        }
    }

    pub(crate) fn step(&mut self, oracle: &mut Oracle, step: &Step) -> Check {
        match step {
            Step::Call(call) => {
                self.act(oracle, call.client, Some(call))?;
                self.compare(oracle)?;
            }
            Step::Connects(process, settings) => {
                ask(&mut self.client, &self.sources.load());
                oracle.links[usize::from(*process)] = Link::new(*settings);
                self.act(oracle, *process, None)?;
                self.compare(oracle)?;
            }
            Step::Listens(process, does) => {
                self.inboxes[usize::from(*process)].listen(*does);
                oracle.listening[usize::from(*process)] = *does;
            }
            Step::Happens(event, key) => self.happens(oracle, *event, *key)?,
            Step::ScriptsFlushed => {
                ask(&mut self.client, &[command(&["SCRIPT", "FLUSH"])]);
            }
            Step::Saves => {
                self.has_saved = true;
                let saved = ask(&mut self.client, &[cmd("SAVE")]);
                same("a save", &saved, &vec![Value::Okay])?;
                oracle.saves();
            }
            Step::Restarts => self.restart(oracle)?,
        }
        Ok(())
    }

    pub(crate) fn restart(&mut self, oracle: &mut Oracle) -> Check {
        self.server.kill();
        self.runtime.block_on(self.server.restart());
        self.client = connect_to(&self.server);
        self.inboxes = Inbox::all(&self.server);
        for (inbox, does) in self.inboxes.iter_mut().zip(oracle.listening) {
            inbox.listen(does);
        }
        let (time, _) = timed(&mut self.client, &[]);
        oracle.restarted(time);
        self.compare(oracle)?;
        for process in 0..PROCESSES {
            self.act(oracle, process, None)?;
        }
        self.compare(oracle)
    }

    /// A client makes a call, or else a new connection.
    pub(crate) fn act(
        &mut self,
        oracle: &mut Oracle,
        client: Process,
        call: Option<&Call>,
    ) -> Check {
        let Self {
            sources,
            client: connection,
            ..
        } = self;
        let mut link = oracle.links[usize::from(client)].clone();
        let window = Cell::new(None);
        let mut send = |commands: &[Cmd]| {
            let (time, values) = timed(connection, commands);
            window.set(Some(time));
            values
        };
        let mut tell = |all: Vec<Done>| {
            let time = window.get().expect("all was sent");
            all.iter()
                .try_for_each(|done| oracle.done(time, client, done))
        };
        let result = match call {
            Some(call) => carry_out(sources, call, &mut link, &mut send, &mut tell),
            None => connect(sources, &mut link, &mut send, &mut tell),
        };
        oracle.links[usize::from(client)] = link;
        result
    }

    pub(crate) fn happens(&mut self, oracle: &mut Oracle, event: Event, key: usize) -> Check {
        let (time, _) = timed(&mut self.client, &[]);
        let fence_ahead = time.to_us.max(oracle.highest_fence) + 1_000_000;
        let (time, _) = timed(&mut self.client, &event.commands(key, fence_ahead));
        if let Some(name) = event.expiring(key) {
            self.wait_until_gone(name);
        }
        oracle.happens(time, event, key, fence_ahead);
        self.compare(oracle)
    }

    pub(crate) fn wait_until_gone(&mut self, name: &str) {
        let started = Instant::now();
        while ask(&mut self.client, &[command(&["EXISTS", name])]) != [Value::Int(0)] {
            assert!(started.elapsed() < PATIENCE, "{name} does not expire");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Compares all that can be seen.
    pub(crate) fn compare(&mut self, oracle: &mut Oracle) -> Check {
        let payloads: Vec<_> = self.inboxes.iter_mut().map(Inbox::take).collect();
        oracle.inboxes(&payloads)?;
        let counters = self.compare_keys(oracle)?;
        oracle.counter(counters)
    }

    /// Compares the locks' keys. Returns what the server has under the fence's and the epoch's.
    pub(crate) fn compare_keys(&mut self, oracle: &Oracle) -> Result<[Value; 2], String> {
        let mut look = vec![command(&["GET", FENCE]), command(&["GET", EPOCH])];
        for ((owner, queue), readers) in OWNERS.iter().zip(&QUEUES).zip(&READERS) {
            look.push(command(&["GET", owner]));
            look.push(command(&["PTTL", owner]));
            look.push(command(&["LRANGE", queue, "0", "-1"]));
            look.push(command(&["PTTL", queue]));
            look.push(command(&["ZRANGE", readers, "0", "-1", "WITHSCORES"]));
            look.push(command(&["PTTL", readers]));
        }
        let (time, found) = timed(&mut self.client, &look);
        for (key, found) in found[2..].chunks(6).enumerate() {
            oracle.keys(time.now_ms(), key, found)?;
        }
        Ok([found[0].clone(), found[1].clone()])
    }

    /// Takes the steps one by one, and compares after each.
    pub(crate) fn run(&mut self, mutation: Option<Mutation>, steps: &[Step]) -> Check {
        self.begin();
        let mut oracle = Oracle::new(mutation);
        for process in 0..PROCESSES {
            self.act(&mut oracle, process, None)?;
        }
        for (index, step) in steps.iter().enumerate() {
            self.step(&mut oracle, step)
                .map_err(|error| format!("step {index}: {error}"))?;
        }
        Ok(())
    }
}
