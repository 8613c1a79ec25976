//! What differs from worker to worker, or is out of the ordinary, in a phase.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variety {
    /// The settings of the managers, as during a rolling deployment.
    Settings,
    /// The runtimes that managers are made in and used from.
    Runtimes,
    /// The databases of the server.
    Databases,
    /// Some handlers block their thread, perhaps beyond the lease.
    Blocking,
    /// Locks are held for longer than otherwise.
    LongHolds,
    /// Most requests are events, and there are more of them.
    Events,
    /// Some responses to events are long.
    LongAnswers,
}

impl Variety {
    const ALL: [Self; 7] = [
        Self::Settings,
        Self::Runtimes,
        Self::Databases,
        Self::Blocking,
        Self::LongHolds,
        Self::Events,
        Self::LongAnswers,
    ];

    /// One word, for the orders of a worker.
    pub fn word(several: &[Self]) -> String {
        let digits = several.iter().map(|one| (*one as usize).to_string());
        format!("v{}", digits.collect::<String>())
    }

    pub fn parse(word: &str) -> Option<Vec<Self>> {
        let digits = word.strip_prefix('v')?.chars();
        let several = digits.map(|digit| Self::ALL.get(digit.to_digit(10)? as usize).copied());
        several.collect()
    }
}
