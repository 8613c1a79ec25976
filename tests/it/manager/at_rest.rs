//! Whatever happened, nothing is left of it.

use std::time::Duration;

use tower_distributed_lock::LockManager;

use crate::nodes::Store;
use crate::support::{eventually, eventually_no_trace, mixed_load, short_lived, soon};

on_every_store! {
    Store:
    a_mixed_load_leaves_nothing_behind
}

async fn a_mixed_load_leaves_nothing_behind(store: Store) {
    // The readers of a lock that was taken from them stay in Redis until they expire.
    let one = store.manager(short_lived(3000)).await;
    let two = match store.server {
        Some(_) => {
            store
                .manager(short_lived(3000).burst(0, Duration::ZERO))
                .await
        }
        None => one.clone(),
    };
    soon("it is over", mixed_load([one.clone(), two.clone()])).await;
    let rests = |locks: &LockManager| {
        let stats = locks.stats();
        stats.held + stats.waiting + stats.queued == 0
    };
    eventually("both are at rest", || async { rests(&one) && rests(&two) }).await;
    if let Some(server) = &store.server {
        eventually_no_trace(&server.client().await).await;
    }
    for locks in [one, two] {
        soon("an end", locks.close()).await;
    }
}
