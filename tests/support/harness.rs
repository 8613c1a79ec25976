//! For programs that start themselves as worker processes, and so cannot leave `main` to libtest:
//! runs their tests one after another, and starts the workers.
//!
//! It takes libtest's arguments as far as `cargo test` needs them: names to choose, `--skip`,
//! `--exact` and `--list`.

use std::future::Future;
use std::io::BufRead;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::{ExitCode, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::process::Command;
use tokio::runtime::Runtime;

pub type Test = fn() -> Pin<Box<dyn Future<Output = ()>>>;

/// Makes the list of tests for [`run`].
macro_rules! tests {
    ($($name:ident)*) => {
        const TESTS: &[(&str, $crate::harness::Test)] =
            &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

/// Options of libtest that have a value behind them.
const WITH_VALUE: [&str; 6] = [
    "--color",
    "--format",
    "--logfile",
    "--shuffle-seed",
    "--test-threads",
    "-Z",
];

/// The tests that the command line chooses.
#[derive(Default)]
struct Choice {
    names: Vec<String>,
    skipped: Vec<String>,
    is_exact: bool,
    lists: bool,
}

impl Choice {
    fn of(mut args: impl Iterator<Item = String>) -> Self {
        let mut choice = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => choice.is_exact = true,
                "--list" => choice.lists = true,
                "--skip" => choice.skipped.extend(args.next()),
                option if WITH_VALUE.contains(&option) => drop(args.next()),
                option if option.starts_with('-') => {}
                _ => choice.names.push(arg),
            }
        }
        choice
    }

    fn has(&self, test: &str) -> bool {
        let matches = |names: &[String]| {
            names.iter().any(|name| match self.is_exact {
                true => test == name,
                false => test.contains(name.as_str()),
            })
        };
        (self.names.is_empty() || matches(&self.names)) && !matches(&self.skipped)
    }
}

/// Runs those tests that the command line chooses, each in a runtime of its own.
pub fn run(tests: &[(&str, Test)]) -> ExitCode {
    let choice = Choice::of(std::env::args().skip(1));
    let (chosen, others): (Vec<_>, Vec<_>) = tests.iter().partition(|(name, _)| choice.has(name));
    if choice.lists {
        for (name, _) in &chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let started = Instant::now();
    let mut failed = 0;
    for (name, test) in &chosen {
        let run = || Runtime::new().unwrap().block_on(test());
        let ok = catch_unwind(AssertUnwindSafe(run)).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += usize::from(!ok);
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        chosen.len() - failed,
        others.len(),
        started.elapsed().as_secs_f64(),
    );
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(101),
    }
}

/// This program once more, as a worker: it is killed with the value that [`Command::spawn`]
/// returns, and tells by its variables that it is one.
pub fn worker() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.stdin(Stdio::piped()).kill_on_drop(true);
    command
}

/// A worker's side: hands each line of the standard input over, in a thread of its own. The process
/// ends with its input: the test is over then, however it ended.
pub fn obey_input(mut obey: impl FnMut(String) + Send + 'static) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            obey(line.unwrap());
        }
        std::process::exit(1);
    });
}

/// A seed from this variable of the environment, to repeat what was, or else from the clock.
pub fn seed(variable: &str) -> u64 {
    let seed = match std::env::var(variable) {
        Ok(seed) => seed.parse().expect(variable),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64,
    };
    println!("{variable}={seed}");
    seed
}
