//! A node: a worker process whose clients lock keys that no other wants.

use std::time::Duration;

#[cfg(feature = "observed")]
use crate::observed::Observer;
use crate::support::clock;
use crate::support::load::requests;
use crate::support::orders::{Obey, obey_all, text};
use crate::ways::{Client, Way};

pub fn run(url: &str) {
    obey_all(Node {
        url: url.to_owned(),
        client: None,
    });
}

struct Node {
    url: String,
    client: Option<Client>,
}

impl Obey for Node {
    async fn obey(&mut self, words: &[&str]) -> Result<String, String> {
        match *words {
            #[cfg(feature = "observed")]
            ["observe", observer] => {
                let observer = Observer::parse(observer).ok_or("no such observer")?;
                if observer == Observer::Recorder {
                    metrics_exporter_prometheus::PrometheusBuilder::new()
                        .set_buckets(&[0.001, 0.01, 0.1, 1.0, 10.0])
                        .map_err(text)?
                        .install_recorder()
                        .map_err(text)?;
                }
                if observer == Observer::Subscriber {
                    tracing_subscriber::fmt().with_writer(std::io::sink).init();
                }
                let client = Client::connect(Way::WaitingLayer, &self.url).await?;
                if let (Observer::Inspector, Client::Layer(locks, _)) = (observer, &client) {
                    // The journal is kept from now on.
                    drop(tower_distributed_lock::inspector(locks.clone()));
                }
                self.client = Some(client);
                Ok("ready".to_owned())
            }
            ["connect", way] => {
                if let Some(client) = self.client.take() {
                    client.close().await;
                }
                let way = Way::parse(way).ok_or("no such way")?;
                let client = Client::connect(way, &self.url).await?;
                for number in 0..20 {
                    let key = format!("/{}/{number}", std::process::id());
                    client.request(key).await;
                }
                self.client = Some(client);
                Ok("ready".to_owned())
            }
            ["run", clients, from, until] => {
                let client = self.client.clone().ok_or("not connected")?;
                let from = clock::instant(from.parse().map_err(text)?);
                let until = clock::instant(until.parse().map_err(text)?);
                tokio::time::sleep_until(from.into()).await;
                let clients = clients.parse().map_err(text)?;
                let request = move |number, request| {
                    let (client, process) = (client.clone(), std::process::id());
                    let key = format!("/{process}/{number}/{request}");
                    async move { client.request(key).await }
                };
                let count = requests(clients, until, request).await;
                // What is released in the background is released by then.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(count.to_string())
            }
            _ => Err(format!("unknown order: {words:?}")),
        }
    }
}
