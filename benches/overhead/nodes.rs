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

/// Measures nodes whose runtime has two threads, as most services have as many as there are cores,
/// and nodes of one thread. In those, the layer works on a thread of its own, as the runtime's may
/// be blocked by a handler.
pub async fn measure(server: &RedisServer, figures: &mut Figures) {
    for (threads, suffix) in [(2, ""), (1, "_1_thread")] {
        let many = Fleet::start(server, 8, threads, 2).measure().await;
        let name = format!("8_nodes{suffix}");
        compare(
            figures,
            &format!("rate_{name}"),
            &many.rates,
            &Goal::AtLeast(1.5),
        );
        let cpu = many.of(|usage| usage.redis_cpu);
        compare(
            figures,
            &format!("redis_cpu_{name}"),
            &cpu,
            &Goal::AtMost(0.6),
        );
        many.note_wake_ups(figures, &name);
        let one = Fleet::start(server, 1, threads, 1).measure().await;
        one.note_wake_ups(figures, &format!("1_client{suffix}"));
    }
}

/// Worker processes with so many clients each.
struct Fleet<'a> {
    server: &'a RedisServer,
    workers: Vec<Worker>,
    threads: usize,
    clients: usize,
}

#[derive(Default)]
struct Measured {
    rates: Turns<Way>,
    usages: Vec<(Way, Usage)>,
}

impl<'a> Fleet<'a> {
    fn start(server: &'a RedisServer, processes: usize, threads: usize, clients: usize) -> Self {
        let workers = (0..processes).map(|_| Worker::with_threads(server, threads));
        Self {
            server,
            workers: workers.collect(),
            threads,
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
        let (processes, threads, clients) = (self.workers.len(), self.threads, self.clients);
        println!(
            "{clients} client(s) in each of {processes} process(es) of {threads} thread(s), all with keys of their own"
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
