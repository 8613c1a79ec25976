//! Several rounds of one workload, in turns, and their medians.

use crate::contenders::Kind;
use crate::support::figures::{Spread, median};
use crate::table::{Table, Values};

pub struct Rounds(Vec<(Kind, Vec<Values>)>);

impl Rounds {
    /// Measures each of these contenders in each round, in turns.
    pub async fn measure(
        kinds: &[Kind],
        count: usize,
        one: impl AsyncFnMut(Kind, usize) -> Values,
    ) -> Self {
        Self::measure_again(kinds, |_| true, count, one).await
    }

    /// Like [`measure`](Self::measure), but only some contenders are measured again after the first
    /// round.
    pub async fn measure_again(
        kinds: &[Kind],
        is_again: impl Fn(Kind) -> bool,
        count: usize,
        mut one: impl AsyncFnMut(Kind, usize) -> Values,
    ) -> Self {
        let mut rounds: Vec<(Kind, Vec<Values>)> =
            kinds.iter().map(|kind| (*kind, Vec::new())).collect();
        for round in 0..count {
            for (kind, values) in &mut rounds {
                if round == 0 || is_again(*kind) {
                    values.push(one(*kind, round).await);
                }
            }
        }
        Self(rounds)
    }

    /// Adds a row of medians for each contender.
    pub fn fill(&self, table: &mut Table) {
        for (kind, rounds) in &self.0 {
            let rounds: Result<Vec<&Vec<f64>>, String> = rounds
                .iter()
                .map(|values| values.as_ref().map_err(Clone::clone))
                .collect();
            let medians = rounds.map(|rounds| {
                let columns = rounds.first().map_or(0, |values| values.len());
                (0..columns)
                    .map(|column| median_of(rounds.iter().map(|values| values[column])))
                    .collect()
            });
            table.row(*kind, medians);
        }
    }

    /// Returns the spread of a contender's values.
    pub fn spread(&self, kind: Kind, column: usize) -> Spread {
        let rounds = self.0.iter().filter(|(other, _)| *other == kind);
        let rounds = rounds.flat_map(|(_, rounds)| rounds);
        Spread::of(rounds.map(|values| values.as_ref().map_or(f64::NAN, |values| values[column])))
    }

    /// Returns the spread, over the rounds, of one contender's value divided by the other's in the
    /// same round.
    pub fn ratio(&self, kind: Kind, reference: Kind, column: usize) -> Spread {
        let of = |kind| self.0.iter().find(|(other, _)| *other == kind);
        let (Some((_, ours)), Some((_, theirs))) = (of(kind), of(reference)) else {
            return f64::NAN.into();
        };
        let pairs = ours.iter().zip(theirs);
        Spread::of(pairs.filter_map(|pair| match pair {
            (Ok(ours), Ok(theirs)) => Some(ours[column] / theirs[column]),
            _ => None,
        }))
    }

    /// Returns the sum over all rounds.
    pub fn sum(&self, kind: Kind, column: usize) -> f64 {
        let rounds = self.0.iter().filter(|(other, _)| *other == kind);
        let rounds = rounds.flat_map(|(_, rounds)| rounds);
        rounds
            .map(|values| values.as_ref().map_or(f64::NAN, |values| values[column]))
            .sum()
    }
}

fn median_of(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    match values.is_empty() {
        true => f64::NAN,
        false => median(&mut values),
    }
}
