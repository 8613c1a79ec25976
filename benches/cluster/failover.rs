//! How soon locks are to be had when a replica has taken over: `failover`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::support::figures::{Figures, Spread, Turns};
use crate::support::options::rounds;
use crate::test_support::{Cluster, text};
use crate::ways::{Client, Way};

/// A request comes each time.
const PERIOD: Duration = Duration::from_millis(5);
const WAYS: [Way; 2] = [Way::Awaited, Way::Manager];
/// No recovery takes so long.
const BOUND: Duration = Duration::from_secs(60);

/// Measures from the promotion of the replica to the first lock that is given after it. Requests of
/// both ways meet the same failover.
pub async fn measure(figures: &mut Figures) {
    let mut cluster = Cluster::start(3, 1).await;
    // A lock of the first primary, whose replica is server 3.
    let tag = tag_of_first(&cluster).await;
    let mut primary = 0;
    for (name, is_planned) in [("planned", true), ("unplanned", false)] {
        let mut recovered = Turns::default();
        for _ in 0..rounds(7) {
            let replica = 3 - primary;
            let mut clients = Vec::new();
            for way in WAYS {
                clients.push((way, Arc::new(Client::connect(way, &cluster).await)));
            }
            let (sender, mut answers) = mpsc::unbounded_channel();
            let requests = tokio::spawn(request(clients, tag.clone(), sender));
            let promoted = tokio::spawn(promoted(cluster.client(replica).await));
            // Both ways have used the old primary.
            for _ in 0..20 {
                answers.recv().await;
            }
            match is_planned {
                true => cluster.fail_over_to(replica).await,
                false => cluster.servers[primary].kill(),
            }
            let promoted = promoted.await.unwrap();
            let first = first_given(&mut answers, promoted).await;
            for way in WAYS {
                let took = first.iter().find(|(of, _)| *of == way);
                let ms = took.map_or(f64::NAN, |(_, took)| took.as_secs_f64() * 1e3);
                recovered.add(way, ms);
            }
            requests.abort();
            let _ = requests.await;
            if !is_planned {
                cluster.servers[primary].restart().await;
                cluster.eventually_agreed().await;
                replicates(&cluster, primary).await;
            }
            primary = replica;
        }
        println!("{name} failover: from the promotion of the replica to the first lock");
        for way in WAYS {
            println!("  {:10} {:8.1} ms", way.word(), recovered.median(way));
            let took: Spread = recovered.spread(way);
            figures.note(&format!("cluster_recovery_ms_{name}_{}", way.word()), took);
        }
    }
}

/// When a request for a lock was answered, and how.
struct Answer {
    way: Way,
    at: Instant,
    result: Result<(), String>,
}

/// Sends requests for locks of one slot until it is dropped, and tells of each answer.
async fn request(
    clients: Vec<(Way, Arc<Client>)>,
    tag: String,
    answers: mpsc::UnboundedSender<Answer>,
) {
    let mut sent = JoinSet::new();
    let mut period = tokio::time::interval(PERIOD);
    for number in 0_u64.. {
        period.tick().await;
        while sent.try_join_next().is_some() {}
        for (way, client) in &clients {
            let (way, client, answers) = (*way, Arc::clone(client), answers.clone());
            let key = format!("{{{tag}}}{number}");
            sent.spawn(async move {
                let result = client.take(key).await;
                let at = Instant::now();
                let _ = answers.send(Answer { way, at, result });
            });
        }
    }
}

/// Waits until the server is a primary, and returns when.
async fn promoted(redis: MultiplexedConnection) -> Instant {
    let is_primary = async || {
        let role = text(&redis, "INFO replication").await;
        role.contains("role:master")
    };
    while !is_primary().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Instant::now()
}

/// Returns how long after that time each way got its first lock, if it did.
async fn first_given(
    answers: &mut mpsc::UnboundedReceiver<Answer>,
    since: Instant,
) -> Vec<(Way, Duration)> {
    let mut first: Vec<(Way, Duration)> = Vec::new();
    let mut refused = None;
    let waiting = async {
        while first.len() < WAYS.len() {
            let Answer { way, at, result } = answers.recv().await.expect("requests go on");
            let is_known = first.iter().any(|(known, _)| *known == way);
            match result {
                Ok(()) if at >= since && !is_known => first.push((way, at - since)),
                Ok(()) => {}
                Err(error) => refused = Some((way, at, error)),
            }
        }
    };
    let waited = tokio::time::timeout(BOUND, waiting).await;
    if waited.is_err() {
        println!("within {BOUND:?}, only {first:?} had a lock; last refusal: {refused:?}");
    }
    first
}

/// Waits until the server follows its new primary, and so may take its place again.
async fn replicates(cluster: &Cluster, place: usize) {
    let redis = cluster.client(place).await;
    while !text(&redis, "INFO replication")
        .await
        .contains("master_link_status:up")
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn tag_of_first(cluster: &Cluster) -> String {
    for number in 0.. {
        let tag = format!("t{number}");
        if cluster.owner(cluster.slot(&tag).await) == 0 {
            return tag;
        }
    }
    unreachable!("the first primary has slots")
}
