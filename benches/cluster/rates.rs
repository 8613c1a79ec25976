//! How many locks that no other wants are taken in a second: `rates`.

use std::time::Duration;

use crate::support::figures::{Figures, Goal, Turns};
use crate::support::load::load;
use crate::support::options::{rounds, time};
use crate::test_support::Cluster;
use crate::ways::{Client, Way};

const CLIENTS: usize = 64;
const ROUND: Duration = Duration::from_millis(700);

/// Measures clusters of one primary and of three, in turns: what more servers cost, or bring, is
/// seen from the same rounds.
pub async fn measure(figures: &mut Figures) {
    let clusters = [
        ("1_primary", Cluster::start(1, 0).await),
        ("3_primaries", Cluster::start(3, 0).await),
    ];
    let mut rates = Turns::default();
    let mut costs = Turns::default();
    for _ in 0..rounds(9) {
        for (name, cluster) in &clusters {
            for way in Way::ALL {
                let (rate, cpu) = rate(way, cluster).await;
                rates.add((*name, way), rate);
                costs.add((*name, way), cpu);
            }
        }
    }
    println!("{CLIENTS} clients of one process, each lock with a key of its own");
    for (name, _) in &clusters {
        for way in Way::ALL {
            println!(
                "  {name:11} {:10} {:8.0} locks/s, {:5.1} µs of CPU each",
                way.word(),
                rates.median((*name, way)),
                costs.median((*name, way)),
            );
        }
    }
    for (name, _) in &clusters {
        let ratio = |way| rates.ratio((*name, way), (*name, Way::Awaited));
        let figure = |way: Way| format!("cluster_rate_{name}_{}_vs_awaited", way.word());
        figures.add(
            &figure(Way::Manager),
            ratio(Way::Manager),
            &Goal::AtLeast(1.2),
        );
        figures.note(&figure(Way::Background), ratio(Way::Background));
    }
    for way in Way::ALL {
        let name = format!("cluster_rate_3_primaries_vs_1_{}", way.word());
        let ratio = rates.ratio((clusters[1].0, way), (clusters[0].0, way));
        figures.note(&name, ratio);
    }
}

async fn rate(way: Way, cluster: &Cluster) -> (f64, f64) {
    let client = Client::connect(way, cluster).await;
    for number in 0..CLIENTS {
        assert!(client.lock(format!("first/{number}")).await);
    }
    let used = client.clone();
    let measured = load(CLIENTS, time(ROUND), move |client, number| {
        let used = used.clone();
        async move { assert!(used.lock(format!("{client}/{number}")).await) }
    })
    .await;
    // What is released in the background is released by then.
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.close().await;
    measured
}
