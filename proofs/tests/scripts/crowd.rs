//! [`Crowd`]: several clients at the same time.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Barrier;

use redis::{Cmd, Connection, cmd};

use crate::calls::{Done, Link, Sources, carry_out, connect};
use crate::model::Process;
use crate::oracle::{Oracle, Window};
use crate::programs::Step;
use crate::wire::{command, process_of, text};
use crate::world::{Inbox, World, ask, connect_to};
use crate::{Check, FENCE, PROCESSES, same};

/// Several clients at the same time, and one that sees in which order the server serves them.
pub(crate) struct Crowd {
    pub(crate) world: World,
    pub(crate) clients: Vec<Connection>,
    /// By address.
    pub(crate) numbers: HashMap<String, Process>,
    pub(crate) monitor: Connection,
    /// How often the server turned from one process's commands to another's.
    pub(crate) turns: usize,
}

/// A command that the server carried out, as `MONITOR` tells it.
pub(crate) struct Served {
    pub(crate) at_us: u64,
    /// The client's address.
    pub(crate) by: String,
    pub(crate) words: Vec<String>,
    /// How many fences its script drew.
    pub(crate) draws: usize,
    /// The clock that its script read, if it set the counter of fences to that once, and first.
    pub(crate) clock_us: Option<u64>,
}

impl Crowd {
    pub(crate) fn start(sources: Sources) -> Self {
        let world = World::start(sources);
        let mut clients: Vec<_> = (0..=PROCESSES).map(|_| connect_to(&world.server)).collect();
        let numbers = clients.iter_mut().map(address).zip(0..).collect();
        let mut monitor = connect_to(&world.server);
        let packed = cmd("MONITOR").get_packed_command();
        monitor.send_packed_command(&packed).unwrap();
        monitor.recv_response().unwrap();
        Self {
            world,
            clients,
            numbers,
            monitor,
            turns: 0,
        }
    }

    /// Returns the commands of clients since the last call, in the server's order.
    pub(crate) fn order(&mut self) -> Vec<Served> {
        ask(&mut self.world.client, &[command(&["ECHO", "so far"])]);
        let mut order: Vec<Served> = Vec::new();
        loop {
            let line = text(&self.monitor.recv_response().unwrap()).unwrap();
            let served = served(&line).unwrap_or_else(|| panic!("{line:?}"));
            if served.words[0] == "ECHO" {
                return order;
            }
            if served.by != "lua" {
                order.push(served);
                continue;
            }
            let script = order.last_mut().expect("a script was called");
            match &served.words[..] {
                [does, key] if does == "INCR" && key == FENCE => script.draws += 1,
                [does, key, clock] if does == "SET" && key == FENCE => {
                    let is_first = script.draws < 2;
                    script.clock_us = is_first.then(|| clock.parse().unwrap());
                }
                _ => {}
            }
        }
    }

    pub(crate) fn run(&mut self, programs: &[Vec<Step>]) -> Check {
        self.world.begin();
        self.order();
        let mut done = self.at_once(programs)?;
        let order = self.order();
        self.replay(programs, &order, &mut done)
    }

    /// Runs the programs at the same time. Returns what came of each one's commands.
    pub(crate) fn at_once(
        &mut self,
        programs: &[Vec<Step>],
    ) -> Result<Vec<VecDeque<Done>>, String> {
        let sources = &self.world.sources;
        let barrier = &Barrier::new(programs.len());
        let mut inboxes = self.world.inboxes.iter_mut();
        std::thread::scope(|scope| {
            let clients = self.clients.iter_mut();
            let threads = programs.iter().zip(clients).map(|(program, client)| {
                let inbox = inboxes.next();
                scope.spawn(move || {
                    barrier.wait();
                    run_program(program, sources, client, inbox)
                })
            });
            let threads: Vec<_> = threads.collect();
            let done = threads.into_iter().map(|thread| thread.join().unwrap());
            done.collect()
        })
    }

    pub(crate) fn replay(
        &mut self,
        programs: &[Vec<Step>],
        order: &[Served],
        done: &mut [VecDeque<Done>],
    ) -> Check {
        let mut oracle = Oracle::new(None);
        let mut foreign = programs[usize::from(PROCESSES)].iter();
        let mut last = None;
        for served in order {
            // A script's clock may be a little off the time at which the server says that it
            // served the call. Where it matters, it is known.
            let time = Window {
                from_us: served.clock_us.unwrap_or(served.at_us - 1_000_000),
                to_us: served.clock_us.unwrap_or(served.at_us + 1_000_000),
            };
            match self.numbers.get(&served.by) {
                Some(&client) if client < PROCESSES => {
                    let done = done[usize::from(client)].pop_front().unwrap();
                    oracle.done(time, client, &done)?;
                    self.turns += usize::from(last.replace(client) != Some(client));
                }
                Some(_) => match foreign.next().unwrap() {
                    Step::Happens(event, key) => oracle.happens(time, *event, *key, 0),
                    other => unreachable!("{other:?} is no event"),
                },
                None => {
                    let does = match served.words[0].as_str() {
                        "SUBSCRIBE" => true,
                        "UNSUBSCRIBE" => false,
                        _ => continue,
                    };
                    let process = process_of(&served.words[1]).unwrap();
                    oracle.listening[usize::from(process)] = does;
                }
            }
        }
        let left = done.iter().map(VecDeque::len).sum::<usize>() + foreign.len();
        same("steps that the server did not see", &left, &0)?;
        let inboxes = self.world.inboxes.iter_mut();
        let payloads: Vec<_> = inboxes.map(Inbox::take).collect();
        oracle.inboxes(&payloads)?;
        self.world.compare_keys(&oracle).map(drop)
    }
}

pub(crate) fn address(client: &mut Connection) -> String {
    let info = text(&ask(client, &[command(&["CLIENT", "INFO"])])[0]).unwrap();
    let address = info.split(' ').find_map(|word| word.strip_prefix("addr="));
    address.expect("a client has an address").to_owned()
}

/// Sends commands one by one, so that others' come in between.
pub(crate) fn run_program(
    program: &[Step],
    sources: &Sources,
    client: &mut Connection,
    mut inbox: Option<&mut Inbox>,
) -> Result<VecDeque<Done>, String> {
    let (mut all, mut link) = (VecDeque::new(), Link::default());
    let client = RefCell::new(client);
    let mut send = |commands: &[Cmd]| {
        let commands = commands.iter();
        let values =
            commands.flat_map(|one| ask(&mut client.borrow_mut(), std::slice::from_ref(one)));
        values.collect::<Vec<_>>()
    };
    let mut tell = |done| {
        all.extend(done);
        Ok(())
    };
    if inbox.is_some() {
        connect(sources, &mut link, &mut send, &mut tell)?;
    }
    for step in program {
        match step {
            Step::Call(call) => carry_out(sources, call, &mut link, &mut send, &mut tell)?,
            Step::Connects(_, settings) => {
                link = Link::new(*settings);
                connect(sources, &mut link, &mut send, &mut tell)?;
            }
            Step::Listens(_, does) => inbox.as_mut().unwrap().listen(*does),
            Step::Happens(event, key) => {
                drop(ask(&mut client.borrow_mut(), &event.commands(*key, 0)));
            }
            Step::ScriptsFlushed | Step::Saves | Step::Restarts => {}
        }
    }
    Ok(all)
}

/// Reads a line of `MONITOR`.
pub(crate) fn served(line: &str) -> Option<Served> {
    let (time, rest) = line.split_once(" [")?;
    let (seconds, micros) = time.split_once('.')?;
    let (by, words) = rest.split_once("] \"")?;
    let words = words.strip_suffix('"')?.split("\" \"");
    Some(Served {
        at_us: seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?,
        by: by.split_once(' ')?.1.to_owned(),
        words: words.map(str::to_owned).collect(),
        draws: 0,
        clock_us: None,
    })
}
