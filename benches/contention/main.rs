//! Locks that many want at once: `cargo bench --bench contention`.
//!
//! In one run, on one redis-server: this crate, the textbook recipe (`SET NX PX`,
//! compare-and-delete, tried again after 1 to 5 ms), the published crates `rslock` (its delay
//! between tries set to up to 5 ms, in place of 200) and `distributed-lock-redis` (which does not
//! wait for a held lock, and is tried again like the recipe); of those that readers share, the lock
//! of `distributed-lock-redis`, and a recipe by hand, a counter of readers and a writer's key; and
//! the limits: a `tokio::sync::Mutex` or `RwLock`, a message by `PUBLISH`. Figures are medians over
//! several rounds, in turns with their references.
//!
//! Words behind `--` choose parts: one, once, gap, four, readers, zipf, several, queue, memory.
//! `--quick` only shows that they run.
//! `--svg <path>` says where the plot goes, from the top of the repository (default:
//! `contention.svg` in cargo's target directory).

#![allow(unreachable_pub)]

mod by_hand;
mod contenders;
mod load;
mod memory;
mod one_process;
mod plot;
mod processes;
mod queue;
mod random;
mod readers;
mod rounds;
mod several;
#[path = "../support/mod.rs"]
mod support;
mod table;
#[path = "../../tests/support/mod.rs"]
mod test_support;
mod worker;

use std::path::{Path, PathBuf};

use plot::Panel;
use support::figures::Figures;
use support::options::Parts;
use support::orders::runtime;
use support::workers;
use test_support::RedisServer;

fn main() {
    if let Ok(url) = std::env::var(workers::URL) {
        worker::run(&url);
        return;
    }
    runtime(2).block_on(run(&Chosen::from_args()));
}

struct Chosen {
    parts: Parts,
    svg: PathBuf,
}

impl Chosen {
    fn from_args() -> Self {
        // `tmp` lies in cargo's target directory, wherever that is.
        let mut svg = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("contention.svg");
        let mut words: Vec<String> = std::env::args().skip(1).collect();
        if let Some(at) = words.iter().position(|word| word == "--svg") {
            words.remove(at);
            assert!(at < words.len(), "a path follows --svg");
            let path = words.remove(at);
            // Cargo starts a benchmark in its package's folder, which is one below the top.
            svg = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        }
        Self {
            parts: Parts::of(words.into_iter()),
            svg,
        }
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.wants(part)
    }
}

async fn run(chosen: &Chosen) {
    let server = RedisServer::start().await;
    let mut figures = Figures::default();
    let mut panels = Vec::new();
    if chosen.wants("one") {
        let table = one_process::one(&server, &mut figures).await;
        table.print();
        let title = "One process, 64 waiters on one key, no hold";
        panels.push(Panel::new(
            title,
            "sections per second, more is better",
            &table,
            0,
        ));
    }
    if chosen.wants("once") {
        one_process::once(&server, &mut figures).await.print();
    }
    if chosen.wants("gap") {
        processes::gap(&server, &mut figures).await;
    }
    if chosen.wants("four") {
        let table = processes::four(&server, &mut figures).await;
        table.print();
        let title = "4 processes × 16 waiters on one key, 1 ms hold";
        let wait = "p99 wait, as a multiple of the ideal (64 sections), less is better";
        panels.push(Panel::new(title, wait, &table, processes::P99));
        let commands = "Redis commands per section, less is better";
        panels.push(Panel::new(title, commands, &table, processes::COMMANDS));
    }
    if chosen.wants("readers") {
        readers::measure(&server, &mut figures).await.print();
    }
    if chosen.wants("zipf") {
        one_process::zipf(&server, &mut figures).await.print();
    }
    if chosen.wants("several") {
        several::measure(&server, &mut figures).await;
    }
    if chosen.wants("queue") {
        queue::measure(&mut figures).await;
    }
    if chosen.wants("memory") {
        memory::measure(&mut figures).await;
    }
    figures.print();
    if !panels.is_empty() {
        match std::fs::write(&chosen.svg, plot::svg(&panels)) {
            Ok(()) => println!("\nplot: {}", chosen.svg.display()),
            Err(error) => println!("\nno plot at {}: {error}", chosen.svg.display()),
        }
    }
}
