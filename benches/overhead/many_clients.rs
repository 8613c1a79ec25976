//! How many requests the clients of one process get through, and their CPU time: `many`.

use std::time::Duration;

use crate::support::figures::{Figures, Goal, Turns};
use crate::support::load::load;
use crate::support::options::{rounds, time};
use crate::test_support::{self, RedisServer};
use crate::ways::{Client, Way, compare};

const ROUND: Duration = Duration::from_millis(700);

pub async fn measure(server: &RedisServer, figures: &mut Figures) {
    many(
        server,
        figures,
        64,
        &Goal::AtLeast(1.2),
        Some(&Goal::AtMost(0.6)),
    )
    .await;
    many(server, figures, 256, &Goal::AtLeast(1.6), None).await;
}

async fn many(
    server: &RedisServer,
    figures: &mut Figures,
    clients: usize,
    rate_goal: &Goal,
    cpu_goal: Option<&Goal>,
) {
    let redis = server.client().await;
    let (mut rates, mut costs, mut reads) = (Turns::default(), Turns::default(), Turns::default());
    let mut connections = 0;
    for _ in 0..rounds(9) {
        for way in Way::ALL {
            let client = Client::connect(way, &server.url()).await.unwrap();
            client.request("/first".to_owned()).await;
            let before = test_support::statistic(&redis, "total_reads_processed").await;
            let used = client.clone();
            let (rate, cpu) = load(clients, time(ROUND), move |client, number| {
                let used = used.clone();
                async move { used.request(format!("/{client}/{number}")).await }
            })
            .await;
            let after = test_support::statistic(&redis, "total_reads_processed").await;
            rates.add(way, rate);
            costs.add(way, cpu);
            let requests = rate * time(ROUND).as_secs_f64();
            reads.add(way, (after - before) as f64 / requests);
            if way == Way::Layer {
                // Each connection of the layer listens to one channel.
                let all = test_support::clients(&redis).await;
                let ours = all.iter().filter(|line| line.contains(" sub=1 ")).count();
                connections = connections.max(ours);
            }
            client.close().await;
        }
    }
    println!("{clients} clients, each request with a key of its own");
    for way in Way::ALL {
        println!(
            "  {:13} {:8.0} requests/s, {:5.1} µs of CPU and {:.3} reads of Redis each",
            way.word(),
            rates.median(way),
            costs.median(way),
            reads.median(way),
        );
    }
    compare(
        figures,
        &format!("rate_{clients}_clients"),
        &rates,
        rate_goal,
    );
    if let Some(goal) = cpu_goal {
        compare(
            figures,
            &format!("client_cpu_{clients}_clients"),
            &costs,
            goal,
        );
    }
    let name = format!("connections_{clients}_clients");
    figures.add(&name, connections as f64, &Goal::AtMost(1.0));
}
