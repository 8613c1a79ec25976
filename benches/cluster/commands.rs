//! What all servers of the cluster have to do for a lock, by their own account: `commands`.

use std::time::Duration;

use crate::support::command_stats::CommandStats;
use crate::support::figures::{Figures, Goal};
use crate::support::options::requests;
use crate::test_support::Cluster;
use crate::ways::{Client, Way};

/// Measures locks of three primaries: taken and released one at a time, and handed from one process
/// to another.
pub async fn measure(figures: &mut Figures) {
    let cluster = Cluster::start(3, 0).await;
    println!("3 primaries, a free lock, one at a time (what scripts call counts, too)");
    for way in [Way::Awaited, Way::Manager] {
        let locks = requests(4000);
        let client = Client::connect(way, &cluster).await;
        let used = client.clone();
        let stats = stats_of(&cluster, async move {
            for number in 0..locks {
                assert!(used.lock(number.to_string()).await);
            }
        })
        .await;
        client.close().await;
        println!("  {:10} {}", way.word(), stats.describe(locks));
        let each = |count: u64| count as f64 / locks as f64;
        let name = way.word();
        figures.note(
            &format!("cluster_commands_per_lock_{name}"),
            each(stats.calls()),
        );
        figures.add(
            &format!("cluster_publishes_per_lock_{name}"),
            each(stats.of("publish").calls),
            &Goal::AtMost(0.0),
        );
    }
    hand_offs(&cluster, figures).await;
}

/// Two processes wait for the same lock all the time.
async fn hand_offs(cluster: &Cluster, figures: &mut Figures) {
    let sections = requests(2000);
    let builder = || tower_distributed_lock::LockManager::builder().quarantine(false);
    let one = builder().connect_cluster(cluster.urls()).await.unwrap();
    let other = builder().connect_cluster(cluster.urls()).await.unwrap();
    let wants = [one.clone(), other.clone()];
    let stats = stats_of(cluster, async move {
        let tasks = wants.map(|locks| {
            tokio::spawn(async move {
                for _ in 0..sections / 2 {
                    let wait = Duration::from_secs(30);
                    let guard = locks.acquire("wanted", wait).await.unwrap();
                    guard.release().await.unwrap();
                }
            })
        });
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
    println!("  hand-offs  {}", stats.describe(sections));
    let each = |count: u64| count as f64 / sections as f64;
    figures.note("cluster_commands_per_section", each(stats.calls()));
    let publishes = each(stats.of("publish").calls);
    figures.note("cluster_publishes_per_section", publishes);
    one.close().await;
    other.close().await;
}

/// Returns what all servers did while the work went on, and shortly behind it.
async fn stats_of(
    cluster: &Cluster,
    work: impl Future<Output = ()> + Send + 'static,
) -> CommandStats {
    let settle = || tokio::time::sleep(Duration::from_millis(50));
    settle().await;
    for place in 0..cluster.servers.len() {
        CommandStats::reset(&cluster.client(place).await).await;
    }
    tokio::spawn(work).await.unwrap();
    settle().await;
    let mut all = CommandStats::default();
    for place in 0..cluster.servers.len() {
        all.add(CommandStats::read(&cluster.client(place).await).await);
    }
    all
}
