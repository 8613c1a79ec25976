//! How long one client waits: `one`.

use std::time::Instant;

use crate::support::figures::{Figures, Goal, Turns, median};
use crate::support::options::{requests, rounds};
use crate::test_support::RedisServer;
use crate::ways::{Client, Hello, Way, compare, through};

pub async fn measure(server: &RedisServer, figures: &mut Figures) {
    let requests = requests(2000);
    let mut added = Turns::default();
    for _ in 0..rounds(11) {
        let started = Instant::now();
        for _ in 0..requests {
            through(Hello, "/a".to_owned()).await;
        }
        let bare = started.elapsed().as_secs_f64() * 1e6 / requests as f64;
        for way in Way::ALL {
            let client = Client::connect(way, &server.url()).await.unwrap();
            let used = client.clone();
            let latency = tokio::spawn(async move { latency(&used, requests).await });
            added.add(way, latency.await.unwrap() - bare);
            client.close().await;
        }
    }
    println!("one client: the latency that is added to a request");
    for way in Way::ALL {
        println!("  {:13} {:7.1} µs", way.word(), added.median(way));
    }
    compare(figures, "latency_1_client", &added, &Goal::AtMost(0.55));
}

/// Returns the median, in µs. What the first requests have to set up is not part of it.
async fn latency(client: &Client, requests: usize) -> f64 {
    let mut latencies = Vec::with_capacity(requests);
    for number in 0..requests {
        let key = format!("/{number}");
        let started = Instant::now();
        client.request(key).await;
        latencies.push(started.elapsed().as_secs_f64() * 1e6);
    }
    median(&mut latencies)
}
