//! Random requests for few locks.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::client::Held;
use crate::handling::Handling;
use crate::history::What;
use crate::holding::hold;
use crate::support::random::Random;
use crate::variety::Variety;
use crate::worker::{Me, Mood, Orders};

/// All that are locked.
pub const KEYS: [&str; 14] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "y", "z",
];

/// The keys that most requests are for: with longer holds, there are more.
pub fn keys(orders: &Orders) -> &'static [&'static str] {
    match orders.has(Variety::LongHolds) {
        true => &KEYS[..12],
        false => &KEYS[..4],
    }
}

/// For [`mingle`] alone: a process has few requests for them at a time.
const RARE_KEYS: &[&str] = &["y", "z"];

pub async fn make(me: Me, handling: Option<Handling>, mut random: Random) {
    loop {
        match me.mood() {
            Mood::Wild => {}
            Mood::Patient => {
                wait(&me, Duration::from_secs(20), &mut random).await;
                continue;
            }
            Mood::Finished => return,
        }
        let patience = random.millis(100, 2500);
        let most = match me.worker.orders.has(Variety::Events) {
            true => 250,
            false => 100,
        };
        match (random.below(most), &handling) {
            (0..35, _) => wait(&me, patience, &mut random).await,
            (35..50, _) => {
                let key = random.pick(keys(&me.worker.orders));
                attempt(&me, key, &mut random).await;
            }
            // Only the crate's has an idempotency layer, and requests that can be dropped at any
            // time.
            (_, None) => wait(&me, patience, &mut random).await,
            (50..60, Some(_)) => give_up_soon(&me, &mut random).await,
            (60..64, Some(_)) => {
                let several = (0..20).map(|_| random.fork());
                let several = several.map(|mut random| {
                    let me = me.clone();
                    async move { give_up_soon(&me, &mut random).await }
                });
                futures_util::future::join_all(several).await;
            }
            (64..76, Some(_)) => mingle(&me, &mut random).await,
            (76..82, Some(handling)) => handling.serve(&me, &mut random).await,
            (_, Some(handling)) => handling.deliver(&me, &mut random).await,
        }
        tokio::time::sleep(random.millis(0, 10)).await;
    }
}

async fn wait(me: &Me, patience: Duration, random: &mut Random) {
    let (id, key) = (me.next_id(), random.pick(keys(&me.worker.orders)));
    me.log
        .note(What::Asked, id, patience.as_nanos() as u64, &me.name(key));
    let answer = me.client.acquire(key, Some(patience)).await;
    answered(me, id, key, answer, random).await;
}

async fn attempt(me: &Me, key: &str, random: &mut Random) {
    let id = me.next_id();
    let within = me.worker.orders.answers_within();
    me.log
        .note(What::Tried, id, within.as_nanos() as u64, &me.name(key));
    let answer = me.client.acquire(key, None).await;
    answered(me, id, key, answer, random).await;
}

async fn give_up_soon(me: &Me, random: &mut Random) {
    let key = random.pick(keys(&me.worker.orders));
    let limit = if random.chance(30) {
        random.millis(0, 2)
    } else {
        random.millis(0, 300)
    };
    let polls = 1 + random.below(4);
    give_up(me, key, limit, polls, random).await;
}

/// For one lock, at the same time: a request that waits, and leaves at some moment, and several
/// that do not wait.
async fn mingle(me: &Me, random: &mut Random) {
    let key = random.pick(RARE_KEYS);
    let (mut own, leaves) = (random.fork(), random.millis(0, 1200));
    let waits = give_up(me, key, leaves, u64::MAX, &mut own);
    let attempts = (0..12).map(|_| (random.fork(), random.millis(0, 1200)));
    let attempts = attempts.map(|(mut random, after)| async move {
        tokio::time::sleep(after).await;
        attempt(me, key, &mut random).await;
    });
    let attempts: Vec<_> = attempts.collect();
    tokio::join!(waits, futures_util::future::join_all(attempts));
}

/// Drops the request at some moment: when it was polled so often, or after some time.
async fn give_up(me: &Me, key: &str, limit: Duration, mut polls: u64, random: &mut Random) {
    let id = me.next_id();
    let patience = Duration::from_secs(5);
    me.log
        .note(What::Asked, id, patience.as_nanos() as u64, &me.name(key));
    let answer = {
        let mut request = pin!(me.client.acquire(key, Some(patience)));
        let some_polls = std::future::poll_fn(|context| {
            polls = polls.saturating_sub(1);
            match request.as_mut().poll(context) {
                Poll::Pending if polls == 0 => Poll::Ready(None),
                answer => answer.map(Some),
            }
        });
        tokio::time::timeout(limit, some_polls).await.ok().flatten()
    };
    match answer {
        Some(answer) => answered(me, id, key, answer, random).await,
        None => me.log.note(What::Cancelled, id, 0, ""),
    }
}

async fn answered(me: &Me, id: u64, key: &str, answer: Result<Held, String>, random: &mut Random) {
    match answer {
        Ok(held) => {
            me.log.note(What::Granted, id, held.token(), "");
            hold(me, id, key, held, random).await;
        }
        Err(why) => me.log.note(What::Refused, id, 0, &why),
    }
}
