//! Figures with their goals, and the statistics behind them.

/// The figures of a run, printed at its end, one line each.
#[derive(Default)]
pub struct Figures(Vec<String>);

pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Figures {
    pub fn add(&mut self, name: &str, value: impl Into<Spread>, goal: &Goal) {
        let value = value.into();
        let (sign, target, met) = match *goal {
            Goal::AtMost(target) => ("≤", target, value.median <= target),
            Goal::AtLeast(target) => ("≥", target, value.median >= target),
        };
        let verdict = if met { "met" } else { "missed" };
        let quartiles = value.quartiles();
        self.0.push(format!(
            "figure {name} {:.3} goal {sign} {target}{quartiles} {verdict}",
            value.median
        ));
    }

    /// Adds a figure that has no goal.
    pub fn note(&mut self, name: &str, value: impl Into<Spread>) {
        let value = value.into();
        let quartiles = value.quartiles();
        self.0
            .push(format!("figure {name} {:.3}{quartiles}", value.median));
    }

    pub fn print(&self) {
        println!();
        for line in &self.0 {
            println!("{line}");
        }
    }
}

/// The median of several values, and the quartiles, which say how noisy the machine was.
#[derive(Clone, Copy)]
pub struct Spread {
    pub median: f64,
    quartiles: Option<(f64, f64)>,
}

impl Spread {
    /// Returns NaN, which meets no goal, if there is no value or one of them is NaN.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return f64::NAN.into();
        }
        let median = median(&mut values);
        let quarter = values.len() / 4;
        Self {
            median,
            quartiles: Some((values[quarter], values[values.len() - 1 - quarter])),
        }
    }

    fn quartiles(&self) -> String {
        match self.quartiles {
            Some((low, high)) => format!(" quartiles {low:.3}..{high:.3}"),
            None => String::new(),
        }
    }
}

/// A value that was measured once, or does not vary.
impl From<f64> for Spread {
    fn from(value: f64) -> Self {
        Self {
            median: value,
            quartiles: None,
        }
    }
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the value that 99 of 100 do not exceed.
pub fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length => values[(length * 99).div_ceil(100) - 1],
    }
}

/// One measured quantity of several contenders that take turns.
pub struct Turns<T>(Vec<(T, Vec<f64>)>);

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Turns<T> {
    pub fn add(&mut self, contender: T, value: f64) {
        match self.0.iter_mut().find(|(other, _)| *other == contender) {
            Some((_, values)) => values.push(value),
            None => self.0.push((contender, vec![value])),
        }
    }

    pub fn spread(&self, contender: T) -> Spread {
        Spread::of(self.values(contender).iter().copied())
    }

    pub fn median(&self, contender: T) -> f64 {
        self.spread(contender).median
    }

    /// Returns the spread of a contender's value divided by the reference's of the same round.
    pub fn ratio(&self, contender: T, reference: T) -> Spread {
        self.pairs(contender, reference, |value, reference| value / reference)
    }

    /// Returns the spread of something that is computed from two contenders of the same round.
    pub fn pairs(&self, contender: T, reference: T, of: impl Fn(f64, f64) -> f64) -> Spread {
        let pairs = self
            .values(contender)
            .iter()
            .zip(self.values(reference))
            .map(|(value, reference)| of(*value, *reference));
        Spread::of(pairs)
    }

    pub fn values(&self, contender: T) -> &[f64] {
        let found = self.0.iter().find(|(other, _)| *other == contender);
        found.map_or(&[], |(_, values)| values)
    }
}
