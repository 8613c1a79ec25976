//! Requests that give up, at whatever moment.

use crate::support::{PATIENCE, RedisServer, eventually_no_trace, minute};
use std::time::{Duration, Instant};

/// How many requests give up.
const TIMES: u64 = 100_000;

const TASKS: u64 = 100;

const KEYS: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_cancellations_leave_no_lock_behind() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let limit = Duration::from_secs(5);
    // No expiry can be the explanation, as it would take a minute.
    let builder = minute().command_timeout(limit);
    let managers = [
        builder.clone().connect(&server.url()).await.unwrap(),
        builder.connect(&server.url()).await.unwrap(),
    ];
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let locks = managers[(task % 2) as usize].clone();
            tokio::spawn(async move {
                let mut held = 0;
                for time in 0..TIMES / TASKS {
                    let number = task.wrapping_mul(31).wrapping_add(time.wrapping_mul(17));
                    let key = format!("key:{}", number % KEYS);
                    // It is polled a different number of times for each request, while others are
                    // at work.
                    let polls = number % 4;
                    let mut asking = Box::pin(async {
                        match number % 3 {
                            0 => locks.try_acquire(key).await,
                            _ => locks.acquire(key, PATIENCE).await,
                        }
                    });
                    for _ in 0..polls {
                        if let std::task::Poll::Ready(result) = futures_util::poll!(&mut asking) {
                            held += u64::from(result.is_ok());
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                }
                held
            })
        })
        .collect();
    let mut held = 0;
    for task in tasks {
        held += task.await.unwrap();
    }
    let given_up = Instant::now();
    eventually_no_trace(&redis).await;
    println!("{held} of {TIMES} held the lock before they gave up");
    assert!(given_up.elapsed() < limit, "longer than a command may take");
    // And the managers work as before.
    for locks in &managers {
        for key in 0..KEYS {
            let guard = locks.acquire(format!("key:{key}"), PATIENCE);
            guard.await.unwrap().release().await.unwrap();
        }
    }
}
