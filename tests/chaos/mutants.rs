//! Shows that the checker can fail: the textbook's lock passes it, and none of its classic mistakes
//! does. Under the same workload and the same faults, all at the same time.

use std::path::Path;
use std::time::Duration;

use crate::faults::Gremlin;
use crate::is_chosen;
use crate::phases::{Outcome, Phase};
use crate::support::random::Random;
use crate::textbook::Flaw;
use crate::topology::Topology;

/// Of the time: see [`Phase::part`].
pub const PART: f64 = 6.0;

/// More than what the crate has to stand in the same time: a mistake is to show soon.
const ROUGH: &[Gremlin] = &[Gremlin::Outages, Gremlin::Processes, Gremlin::Server];

const CORRECT: Phase = Phase {
    name: "textbook",
    topology: Topology::One,
    part: PART,
    gremlins: ROUGH,
    variety: &[],
    workers: 4,
    textbook: Some(Flaw::None),
    quarantine: false,
    exclusive: true,
};

fn mutant(name: &'static str, flaw: Flaw) -> Phase {
    let textbook = Some(flaw);
    Phase {
        name,
        textbook,
        ..CORRECT
    }
}

fn phases() -> Vec<Phase> {
    let lossy = Phase {
        gremlins: &[Gremlin::Loss, Gremlin::Processes],
        exclusive: false,
        ..CORRECT
    };
    vec![
        CORRECT,
        Phase {
            name: "textbook, data is lost",
            ..lossy.clone()
        },
        mutant("mutant: releases blindly", Flaw::ReleasesBlindly),
        mutant("mutant: renews blindly", Flaw::RenewsBlindly),
        mutant("mutant: trusts from the reply", Flaw::TrustsFromTheReply),
        mutant("mutant: forgets to stop", Flaw::ForgetsToStop),
        mutant("mutant: first reader unlocks", Flaw::FirstReaderUnlocks),
        mutant("mutant: keeps a part", Flaw::KeepsAPart),
        Phase {
            name: "mutant: counts fences",
            textbook: Some(Flaw::CountsFences),
            ..lossy
        },
    ]
}

/// In less, a mistake may not show however often it is tried.
const LEAST: Duration = Duration::from_secs(4);

/// How often a mutant is tried before it counts as not caught.
const ROUNDS: usize = 12;

pub async fn run(time: Duration, dir: &Path, random: &mut Random) -> Vec<Outcome> {
    let time = time.max(LEAST);
    let chosen = phases().into_iter().filter(|phase| is_chosen(phase.name));
    let runs = chosen.map(|phase| {
        let (dir, mut random) = (dir.join(phase.name), random.fork());
        async move {
            let mut round = 1;
            loop {
                let dir = dir.join(round.to_string());
                let outcome = phase.clone().run(time, &dir, random.fork()).await;
                if outcome.is_as_expected() || !outcome.is_mutant() || round == ROUNDS {
                    return outcome;
                }
                round += 1;
            }
        }
    });
    let runs: Vec<_> = runs.collect();
    futures_util::future::join_all(runs).await
}
