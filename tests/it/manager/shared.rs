//! Readers that share a lock, and writers that have it alone.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tower_distributed_lock::{Error, ErrorKind, LockGuard, LockManager, LostReason, Mode};

use super::WAIT;
use crate::nodes::Nodes;
use crate::support::{
    RedisServer, calls, eventually, eventually_no_trace, eventually_queued, expires_in,
    knows_what_was_said, minute, queue_length, run, script_calls, short_lived, soon, value,
};

on_every_store! {
    Nodes:
    readers_hold_together_on_all_nodes
    a_writer_holds_alone
    all_readers_that_wait_are_let_in_together
    a_writer_that_waits_lets_no_reader_past
    a_reader_among_many_writers_has_its_turn
    a_writer_among_readers_without_end_has_its_turn
    a_readers_token_lies_between_those_of_the_writers
    a_reader_that_released_leaves_the_lock_free
    a_share_that_lingers_is_given_up_for_a_writer_that_waits
    a_reader_dropped_at_any_moment_leaves_no_lock
    a_writer_that_gives_up_makes_way_for_the_readers_behind_it
    closing_ends_a_share_that_lingers
    a_reader_may_hold_no_longer_than_a_writer
}

fn held(result: Result<LockGuard, Error>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Held);
}

/// Waits until so many processes are in the queue in Redis.
async fn both_wait(nodes: &Nodes, processes: usize) {
    if let Some(server) = nodes.server() {
        eventually_queued(&server.client().await, "a", processes).await;
    }
}

async fn readers_hold_together_on_all_nodes(nodes: Nodes) {
    let one = nodes.one.try_acquire_shared("a").await.unwrap();
    let another = nodes.one.acquire_shared("a", WAIT).await.unwrap();
    let two = nodes.two.try_acquire_shared("a").await.unwrap();
    for guard in [&one, &another, &two] {
        assert!(guard.lease().is_held());
        assert_eq!(guard.lease().mode(), Mode::Shared);
    }
    held(nodes.one.try_acquire("a").await);
    held(nodes.two.try_acquire("a").await);
    drop((one, another, two));
    nodes.are_at_rest().await;
}

async fn a_writer_holds_alone(nodes: Nodes) {
    let writer = nodes.one.try_acquire("a").await.unwrap();
    assert_eq!(writer.lease().mode(), Mode::Exclusive);
    for locks in [&nodes.one, &nodes.two] {
        held(locks.try_acquire_shared("a").await);
        held(locks.try_acquire("a").await);
        let limit = Duration::from_millis(50);
        let error = locks.acquire_shared("a", limit).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
    drop(writer);
    nodes.are_at_rest().await;
}

async fn all_readers_that_wait_are_let_in_together(nodes: Nodes) {
    let writer = nodes.one.try_acquire("a").await.unwrap();
    let three = nodes.third().await;
    let managers = [&nodes.one, &nodes.two, &three];
    let mut waiting: Vec<_> = managers
        .iter()
        .flat_map(|locks| (0..4).map(|_| Box::pin(locks.acquire_shared("a", WAIT))))
        .collect();
    for waiter in &mut waiting {
        assert!(futures_util::poll!(waiter).is_pending());
    }
    both_wait(&nodes, 2).await;
    drop(writer);
    // None of them lets go before all have it.
    let readers = soon("all have it", join_all(waiting)).await;
    let readers: Vec<_> = readers.into_iter().map(Result::unwrap).collect();
    assert!(readers.iter().all(|reader| reader.lease().is_held()));
    held(nodes.two.try_acquire("a").await);
    drop(readers);
    nodes.are_at_rest().await;
}

async fn a_writer_that_waits_lets_no_reader_past(nodes: Nodes) {
    let first = nodes.one.try_acquire_shared("a").await.unwrap();
    let mut writer = Box::pin(nodes.two.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut writer).is_pending());
    both_wait(&nodes, 1).await;
    knows_what_was_said(&nodes.one).await;
    held(nodes.one.try_acquire_shared("a").await);
    held(nodes.two.try_acquire_shared("a").await);
    // This one knows of no other, and asks Redis.
    let three = nodes.third().await;
    held(three.try_acquire_shared("a").await);
    let mut readers =
        [&nodes.one, &nodes.two].map(|locks| Box::pin(locks.acquire_shared("a", WAIT)));
    for reader in &mut readers {
        assert!(futures_util::poll!(reader).is_pending());
    }
    drop(first);
    let writer = soon("the writer has its turn", writer).await.unwrap();
    for reader in &mut readers {
        assert!(futures_util::poll!(reader).is_pending());
    }
    let token = writer.fencing_token();
    drop(writer);
    for reader in readers {
        let reader = soon("the readers have theirs", reader).await.unwrap();
        assert!(reader.fencing_token() > token);
    }
    nodes.are_at_rest().await;
}

async fn a_reader_among_many_writers_has_its_turn(nodes: Nodes) {
    let first = nodes.one.try_acquire("a").await.unwrap();
    let mut reader = Box::pin(nodes.two.acquire_shared("a", WAIT));
    assert!(futures_util::poll!(&mut reader).is_pending());
    both_wait(&nodes, 1).await;
    let mut writers: Vec<_> = (0..100)
        .map(|_| Box::pin(nodes.one.acquire("a", WAIT)))
        .collect();
    for writer in &mut writers {
        assert!(futures_util::poll!(writer).is_pending());
    }
    knows_what_was_said(&nodes.one).await;
    drop(first);
    let reading = async { soon("the reader", reader).await.unwrap().fencing_token() };
    let writing = async {
        let mut tokens = Vec::new();
        for writer in writers {
            tokens.push(soon("a writer", writer).await.unwrap().fencing_token());
        }
        tokens
    };
    let (reader, writers) = tokio::join!(reading, writing);
    let before = writers.iter().filter(|token| **token < reader).count();
    assert!(before <= 20, "{before} went first");
}

async fn a_writer_among_readers_without_end_has_its_turn(nodes: Nodes) {
    // There is always a reader on each node.
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let reads = Arc::new(AtomicUsize::new(0));
    let reading: Vec<_> = [&nodes.one, &nodes.two]
        .into_iter()
        .flat_map(|locks| (0..4).map(|_| (locks.clone(), stopped.clone())))
        .map(|(locks, stopped)| {
            let reads = Arc::clone(&reads);
            tokio::spawn(async move {
                while !*stopped.borrow() {
                    let guard = locks.acquire_shared("a", WAIT).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(3)).await;
                    drop(guard);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for locks in [&nodes.one, &nodes.two].repeat(5) {
        let before = reads.load(Ordering::Relaxed);
        eventually("some read", || async {
            reads.load(Ordering::Relaxed) > before + 8
        })
        .await;
        let writing = locks.acquire("a", WAIT);
        let guard = soon("the writer has its turn", writing).await.unwrap();
        assert!(guard.lease().is_held());
    }
    stop.send(true).unwrap();
    for reader in reading {
        soon("the reader ends", reader).await.unwrap();
    }
    nodes.are_at_rest().await;
}

async fn a_readers_token_lies_between_those_of_the_writers(nodes: Nodes) {
    let mut last = 0;
    for _ in 0..3 {
        for (writes, reads) in [(&nodes.one, &nodes.two), (&nodes.two, &nodes.one)] {
            let writer = writes.acquire("a", WAIT).await.unwrap();
            assert!(writer.fencing_token() > last);
            let before = writer.fencing_token();
            drop(writer);
            let readers = [
                reads.acquire_shared("a", WAIT).await.unwrap(),
                writes.acquire_shared("a", WAIT).await.unwrap(),
                reads.acquire_shared("a", WAIT).await.unwrap(),
            ];
            for reader in &readers {
                assert!(reader.fencing_token() > before);
                last = last.max(reader.fencing_token());
            }
        }
    }
}

async fn a_reader_that_released_leaves_the_lock_free(nodes: Nodes) {
    for _ in 0..3 {
        let one = nodes.one.try_acquire_shared("a").await.unwrap();
        let two = nodes.two.try_acquire_shared("a").await.unwrap();
        one.release().await.unwrap();
        held(nodes.one.try_acquire("a").await);
        two.release().await.unwrap();
        let writer = nodes.one.try_acquire("a").await.unwrap();
        writer.release().await.unwrap();
    }
    nodes.are_at_rest().await;
}

async fn a_share_that_lingers_is_given_up_for_a_writer_that_waits(nodes: Nodes) {
    for _ in 0..20 {
        drop(nodes.one.try_acquire_shared("a").await.unwrap());
        let started = tokio::time::Instant::now();
        let writer = nodes.two.acquire("a", WAIT).await.unwrap();
        // It lingers for 100 ms if nothing tells that it is wanted.
        if started.elapsed() < Duration::from_millis(50) {
            return;
        }
        writer.release().await.unwrap();
    }
    panic!("a writer has to wait until a share has lingered");
}

async fn a_reader_dropped_at_any_moment_leaves_no_lock(nodes: Nodes) {
    let kinds = [true, false, true, true, false];
    for number in 0..60 {
        let (locks, polls) = ([&nodes.one, &nodes.two][number % 2], number % 4);
        let mut acquiring: Pin<Box<dyn Future<Output = Result<LockGuard, Error>> + '_>> =
            match kinds[number % kinds.len()] {
                true => Box::pin(locks.acquire_shared("a", WAIT)),
                false => Box::pin(locks.acquire("a", WAIT)),
            };
        for _ in 0..polls {
            if futures_util::poll!(&mut acquiring).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
            if polls > 2 {
                tokio::time::sleep(Duration::from_micros(300)).await;
                break;
            }
        }
    }
    nodes.are_at_rest().await;
}

async fn a_writer_that_gives_up_makes_way_for_the_readers_behind_it(nodes: Nodes) {
    let reader = nodes.one.try_acquire_shared("a").await.unwrap();
    let mut writer = Box::pin(nodes.two.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut writer).is_pending());
    both_wait(&nodes, 1).await;
    let three = nodes.third().await;
    let mut behind = Box::pin(three.acquire_shared("a", WAIT));
    assert!(futures_util::poll!(&mut behind).is_pending());
    both_wait(&nodes, 2).await;
    drop(writer);
    let behind = soon("it joins the other reader", behind).await.unwrap();
    assert!(reader.lease().is_held() && behind.lease().is_held());
}

async fn closing_ends_a_share_that_lingers(nodes: Nodes) {
    drop(nodes.one.try_acquire_shared("a").await.unwrap());
    soon("it is closed", nodes.one.close()).await;
    if let Some(server) = nodes.server() {
        eventually_no_trace(&server.client().await).await;
    }
}

async fn a_reader_may_hold_no_longer_than_a_writer(nodes: Nodes) {
    let builder = minute().max_hold(Duration::from_millis(300));
    let locks = nodes.manager(builder).await;
    let first = locks.try_acquire_shared("b").await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let second = locks.try_acquire_shared("b").await.unwrap();
    let lost = soon("the first is told", first.lost()).await;
    assert_eq!(lost, LostReason::MaxHold);
    assert!(second.lease().is_held());
    let released = first.release().await.unwrap_err();
    assert_eq!(released.kind(), ErrorKind::Lost);
    let lost = soon("the second is told", second.lost()).await;
    assert_eq!(lost, LostReason::MaxHold);
    let writer = soon("it is free", locks.acquire("b", WAIT)).await.unwrap();
    drop((writer, second));
}

// What only Redis can show.

#[tokio::test]
async fn in_redis_a_process_is_one_reader() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let other = minute().connect(&server.url()).await.unwrap();
    let readers = join_all((0..100).map(|_| locks.acquire_shared("a", WAIT))).await;
    let _other = other.acquire_shared("a", WAIT).await.unwrap();
    assert_eq!(value(&redis, "lock:a").await.unwrap(), "shared");
    assert_eq!(
        run(&redis, "ZCARD {lock:a}:readers").await,
        redis::Value::Int(2)
    );
    assert!(expires_in(&redis, "lock:a").await <= Duration::from_secs(60));
    assert!(expires_in(&redis, "{lock:a}:readers").await <= Duration::from_secs(60));
    drop(readers);
    eventually("the process leaves", || async {
        run(&redis, "ZCARD {lock:a}:readers").await == redis::Value::Int(1)
    })
    .await;
}

#[tokio::test]
async fn the_lock_expires_with_the_last_of_its_readers() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let long = minute().connect(&server.url()).await.unwrap();
    let short = short_lived(20_000).connect(&server.url()).await.unwrap();
    let short = short.try_acquire_shared("a").await.unwrap();
    let long = long.try_acquire_shared("a").await.unwrap();
    assert!(expires_in(&redis, "lock:a").await > Duration::from_secs(50));
    long.release().await.unwrap();
    for name in ["lock:a", "{lock:a}:readers"] {
        assert!(expires_in(&redis, name).await <= Duration::from_secs(20));
    }
    drop(short);
}

#[tokio::test]
async fn a_hot_key_that_is_only_read_costs_redis_nothing() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let commands = async || {
        let counts = ["set", "incrby"].map(|name| calls(&redis, name));
        join_all(counts).await.into_iter().sum::<u64>() + script_calls(&redis).await
    };
    let before = commands().await;
    for _ in 0..2_000 {
        let guard = locks.acquire_shared("a", WAIT).await.unwrap();
        tokio::task::yield_now().await;
        drop(guard);
    }
    let cost = commands().await - before;
    assert!(cost <= 20, "{cost} commands for 2000 reads");
}

#[tokio::test]
async fn a_shared_lock_that_is_deleted_or_overwritten_is_lost_by_all_that_share_it() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for change in ["DEL lock:a", "SET lock:a x PX 60000", "FLUSHALL"] {
        let locks = short_lived(600).connect(&server.url()).await.unwrap();
        let one = locks.acquire_shared("a", WAIT).await.unwrap();
        let two = locks.acquire_shared("a", WAIT).await.unwrap();
        run(&redis, change).await;
        for reader in [&one, &two] {
            let lost = soon("it is told", reader.lost()).await;
            assert_eq!(lost, LostReason::Taken, "{change}");
        }
        let released = one.release().await.unwrap_err();
        assert_eq!(released.kind(), ErrorKind::Lost);
        drop(two);
        run(&redis, "DEL lock:a").await;
    }
}

#[tokio::test]
async fn a_share_is_renewed_for_as_long_as_a_request_has_it() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = short_lived(300).connect(&server.url()).await.unwrap();
    let other = short_lived(300).connect(&server.url()).await.unwrap();
    let one = locks.acquire_shared("a", WAIT).await.unwrap();
    let two = other.acquire_shared("a", WAIT).await.unwrap();
    // Longer than several times to live.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(one.lease().is_held() && two.lease().is_held());
    drop((one, two));
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_reader_that_was_not_told_learns_from_its_renewal_that_it_is_wanted() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = short_lived(900).connect(&server.url()).await.unwrap();
    let reader = locks.acquire_shared("a", WAIT).await.unwrap();
    let writer = writer_that_tells_nobody(&server).await;
    eventually("it lets no other in", || async {
        locks.try_acquire_shared("a").await.is_err()
    })
    .await;
    drop((writer, reader));
    // The writer is gone: it is passed over.
    let _reader = soon("it is free", locks.acquire_shared("a", WAIT))
        .await
        .unwrap();
    assert_eq!(queue_length(&redis, "a").await, 0);
}

#[tokio::test]
async fn a_writer_that_gave_up_keeps_no_reader_out() {
    let server = RedisServer::start().await;
    let locks = short_lived(900).connect(&server.url()).await.unwrap();
    let others = minute().connect(&server.url()).await.unwrap();
    let _reader = locks.try_acquire_shared("a").await.unwrap();
    let mut writer = Box::pin(others.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut writer).is_pending());
    eventually("its readers hear of it", || async {
        locks.try_acquire_shared("a").await.is_err()
    })
    .await;
    drop(writer);
    let waits = locks.acquire_shared("a", WAIT);
    drop(soon("a reader that waits is let in", waits).await.unwrap());
    eventually("so is one that does not", || async {
        locks.try_acquire_shared("a").await.is_ok()
    })
    .await;
}

/// Waits for the lock `a` as a writer does, without telling those who share it. Its process is gone
/// when this is dropped.
async fn writer_that_tells_nobody(server: &RedisServer) -> redis::aio::PubSub {
    let process = "00000000000000000000000000000001";
    let client = redis::Client::open(server.url()).unwrap();
    let mut inbox = client.get_async_pubsub().await.unwrap();
    let channel = format!("lock:inbox:{process}");
    inbox.subscribe(channel).await.unwrap();
    let redis = server.client().await;
    run(&redis, &format!("RPUSH {{lock:a}}:queue {process}:1")).await;
    run(&redis, "SET lock:a shared! KEEPTTL").await;
    inbox
}

#[tokio::test]
async fn a_reader_drops_the_mark_of_a_writer_that_is_gone() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = short_lived(900).connect(&server.url()).await.unwrap();
    let others = minute().connect(&server.url()).await.unwrap();
    let _reader = locks.acquire_shared("a", WAIT).await.unwrap();
    let writer = writer_that_tells_nobody(&server).await;
    eventually("it lets no other in", || async {
        locks.try_acquire_shared("a").await.is_err()
    })
    .await;
    held(others.try_acquire_shared("a").await);
    drop(writer);
    eventually("one of another process gets in", || async {
        others.try_acquire_shared("a").await.is_ok()
    })
    .await;
    assert_eq!(queue_length(&redis, "a").await, 0);
    eventually("and then one of its own", || async {
        locks.try_acquire_shared("a").await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_value_that_says_shared_without_readers_is_another_clients() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    for foreign in ["shared", "shared!"] {
        run(&redis, &format!("SET lock:a {foreign} PX 60000")).await;
        held(locks.try_acquire_shared("a").await);
        held(locks.try_acquire("a").await);
        let limit = Duration::from_millis(50);
        locks.acquire("a", limit).await.unwrap_err();
        locks.acquire_shared("a", limit).await.unwrap_err();
        assert_eq!(value(&redis, "lock:a").await.unwrap(), foreign);
        let waiting = [true, false].map(|shares| {
            let locks = locks.clone();
            tokio::spawn(async move {
                match shares {
                    true => locks.acquire_shared("a", WAIT).await.map(drop),
                    false => locks.acquire("a", WAIT).await.map(drop),
                }
            })
        });
        eventually_queued(&redis, "a", 1).await;
        run(&redis, "DEL lock:a").await;
        for waiting in waiting {
            soon("we go on", waiting).await.unwrap().unwrap();
        }
        eventually_no_trace(&redis).await;
    }
}
