//! The time that Redis says it took for commands.

use std::collections::BTreeMap;

use redis::aio::MultiplexedConnection;

use crate::test_support;

/// The commands since the last [reset](CommandStats::reset), without those that look at them.
#[derive(Clone, Default)]
pub struct CommandStats(BTreeMap<String, Stat>);

#[derive(Clone, Copy, Default)]
pub struct Stat {
    pub calls: u64,
    pub micros: f64,
}

impl CommandStats {
    pub async fn reset(redis: &MultiplexedConnection) {
        test_support::run(redis, "CONFIG RESETSTAT").await;
    }

    pub async fn read(redis: &MultiplexedConnection) -> Self {
        let stats = test_support::text(redis, "INFO commandstats").await;
        let commands = stats.lines().filter_map(parse);
        Self(
            commands
                .filter(|(name, _)| !matches!(name.as_str(), "info" | "config|resetstat" | "llen"))
                .collect(),
        )
    }

    /// Adds what another server has carried out.
    pub fn add(&mut self, other: Self) {
        for (name, Stat { calls, micros }) in other.0 {
            let stat = self.0.entry(name).or_default();
            stat.calls += calls;
            stat.micros += micros;
        }
    }

    /// Returns how many commands there were, those included that scripts called.
    pub fn calls(&self) -> u64 {
        self.0.values().map(|stat| stat.calls).sum()
    }

    pub fn of(&self, command: &str) -> Stat {
        self.0.get(command).copied().unwrap_or_default()
    }

    /// Returns the time of the commands that are chosen by their names, in µs. What a script calls
    /// is in the time of the script's call, and again in that of its own command.
    pub fn micros(&self, is_chosen: impl Fn(&str) -> bool) -> f64 {
        let chosen = self.0.iter().filter(|(name, _)| is_chosen(name));
        chosen.map(|(_, stat)| stat.micros).sum()
    }

    /// Says how often each command was carried out for each of so many requests, and its time.
    pub fn describe(&self, requests: usize) -> String {
        let commands = self.0.iter().map(|(name, stat)| {
            let calls = stat.calls as f64 / requests as f64;
            let each = stat.micros / stat.calls as f64;
            format!("{name} {calls:.2} × {each:.2} µs")
        });
        commands.collect::<Vec<_>>().join(", ")
    }
}

/// cmdstat_set:calls=2,usec=4,usec_per_call=2.00,rejected_calls=0,failed_calls=0
fn parse(line: &str) -> Option<(String, Stat)> {
    let (name, values) = line.strip_prefix("cmdstat_")?.split_once(':')?;
    let value = |key: &str| {
        let mut values = values.split(',');
        values.find_map(|value| value.strip_prefix(key)?.strip_prefix('='))
    };
    let calls = value("calls")?.parse().ok()?;
    let micros = value("usec")?.parse().ok()?;
    Some((name.to_owned(), Stat { calls, micros }))
}
