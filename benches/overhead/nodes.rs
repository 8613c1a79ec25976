//! Many small nodes that share one Redis, and what that costs it: `nodes`.

use std::time::Duration;

use redis::aio::MultiplexedConnection;

use crate::support::figures::{Figures, Goal, Turns};
use crate::support::options::{rounds, time};
use crate::support::orders::text;
use crate::support::usage::Usage;
use crate::support::workers::{Worker, ask_all, moment};
use crate::test_support::RedisServer;
use crate::ways::{Way, compare};

const ROUND: Duration = Duration::from_secs(1);

pub async fn measure(server: &RedisServer, figures: &mut Figures) {
    let many = Fleet::start(server, 8, 2).measure().await;
    let rates = &many.rates;
    compare(figures, "rate_8_nodes", rates, &Goal::AtLeast(1.5));
    let cpu = many.of(|usage| usage.redis_cpu);
    compare(figures, "redis_cpu_8_nodes", &cpu, &Goal::AtMost(0.6));
    many.note_wake_ups(figures, "8_nodes");
    // Unlike in `one`, where a runtime of two threads may pass tasks from one to the other.
    let one = Fleet::start(server, 1, 1).measure().await;
    for way in [Way::Layer, Way::WaitingLayer, Way::Background] {
        let name = format!("rate_1_client_1_thread_{}_vs_awaited", way.word());
        figures.note(&name, one.rates.ratio(way, Way::Awaited));
    }
    one.note_wake_ups(figures, "1_client");
}

/// Worker processes with so many clients each.
struct Fleet<'a> {
    server: &'a RedisServer,
    workers: Vec<Worker>,
    clients: usize,
}

#[derive(Default)]
struct Measured {
    rates: Turns<Way>,
    usages: Vec<(Way, Usage)>,
}

impl<'a> Fleet<'a> {
    fn start(server: &'a RedisServer, processes: usize, clients: usize) -> Self {
        Self {
            server,
            workers: (0..processes).map(|_| Worker::start(server)).collect(),
            clients,
        }
    }

    async fn measure(mut self) -> Measured {
        let redis = self.server.client().await;
        let mut measured = Measured::default();
        for _ in 0..rounds(9) {
            for way in Way::ALL {
                let (rate, usage) = self.turn(way, &redis).await.unwrap();
                measured.rates.add(way, rate);
                measured.usages.push((way, usage));
            }
        }
        let (processes, clients) = (self.workers.len(), self.clients);
        println!(
            "processes × clients: {processes} × {clients}, each request with a key of its own"
        );
        measured.print();
        measured
    }

    /// Returns the requests per second, and what each of them used.
    async fn turn(
        &mut self,
        way: Way,
        redis: &MultiplexedConnection,
    ) -> Result<(f64, Usage), String> {
        ask_all(&mut self.workers, &format!("connect {}", way.word())).await?;
        let processes: Vec<_> = self.workers.iter().filter_map(Worker::pid).collect();
        let before = Usage::read(redis, &processes).await;
        let from = Duration::from_millis(100);
        let (from, until) = (moment(from), moment(from + time(ROUND)));
        let line = format!("run {} {from} {until}", self.clients);
        let mut requests = 0.0;
        for count in ask_all(&mut self.workers, &line).await? {
            requests += count.parse::<f64>().map_err(text)?;
        }
        let usage = Usage::read(redis, &processes).await;
        let rate = requests / time(ROUND).as_secs_f64();
        Ok((rate, usage.per_request(before, requests)))
    }
}

impl Measured {
    fn of(&self, value: impl Fn(&Usage) -> f64) -> Turns<Way> {
        let mut turns = Turns::default();
        for (way, usage) in &self.usages {
            turns.add(*way, value(usage));
        }
        turns
    }

    fn print(&self) {
        let (cpu, reads) = (
            self.of(|usage| usage.redis_cpu),
            self.of(|usage| usage.redis_reads),
        );
        let (redis, service) = self.wake_ups();
        for way in Way::ALL {
            println!(
                "  {:13} {:8.0} requests/s; each: {:.1} µs of CPU, {:.3} reads and {:.3} wake-ups of Redis, \
                 {:.3} wake-ups of the service",
                way.word(),
                self.rates.median(way),
                cpu.median(way),
                reads.median(way),
                redis.median(way),
                service.median(way),
            );
        }
    }

    fn note_wake_ups(&self, figures: &mut Figures, name: &str) {
        let (redis, service) = self.wake_ups();
        for (of, turns) in [("redis", redis), ("service", service)] {
            for way in Way::ALL {
                let name = format!("wake_ups_{of}_{name}_{}", way.word());
                figures.note(&name, turns.spread(way));
            }
        }
    }

    /// Returns those of Redis, and those of the service.
    fn wake_ups(&self) -> (Turns<Way>, Turns<Way>) {
        (
            self.of(|usage| usage.redis_wake_ups),
            self.of(|usage| usage.service_wake_ups),
        )
    }
}
