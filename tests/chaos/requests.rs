//! Random requests for few locks.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::client::Held;
use crate::handling::Handling;
use crate::history::What;
use crate::holding::hold;
use crate::random::Random;
use crate::worker::{COMMAND_TIMEOUT, Me, Mood};

pub const KEYS: [&str; 4] = ["a", "b", "c", "d"];

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
        let patience = random.ms(100, 2500);
        match (random.below(100), &handling) {
            (0..40, _) => wait(&me, patience, &mut random).await,
            (40..55, _) => attempt(&me, &mut random).await,
            // Only the crate's has an idempotency layer, and requests that can be dropped at any time.
            (_, None) => wait(&me, patience, &mut random).await,
            (55..75, Some(_)) => give_up(&me, &mut random).await,
            (75..80, Some(_)) => {
                let several = (0..20).map(|_| random.fork());
                let several = several.map(|mut random| {
                    let me = me.clone();
                    async move { give_up(&me, &mut random).await }
                });
                futures_util::future::join_all(several).await;
            }
            (_, Some(handling)) => handling.deliver(&me, &mut random).await,
        }
        tokio::time::sleep(random.ms(0, 10)).await;
    }
}

async fn wait(me: &Me, patience: Duration, random: &mut Random) {
    let (id, key) = (me.next_id(), random.pick(&KEYS));
    me.log
        .note(What::Asked, id, patience.as_nanos() as u64, key);
    let answer = me.client.acquire(key, Some(patience)).await;
    answered(me, id, key, answer, random).await;
}

async fn attempt(me: &Me, random: &mut Random) {
    let (id, key) = (me.next_id(), random.pick(&KEYS));
    // It may have to wait for the connection first, and then for the answer.
    let within = 2 * COMMAND_TIMEOUT;
    me.log.note(What::Tried, id, within.as_nanos() as u64, key);
    let answer = me.client.acquire(key, None).await;
    answered(me, id, key, answer, random).await;
}

/// Drops the request at some moment: when it was polled so often, or after some time.
async fn give_up(me: &Me, random: &mut Random) {
    let (id, key) = (me.next_id(), random.pick(&KEYS));
    let patience = Duration::from_secs(5);
    me.log
        .note(What::Asked, id, patience.as_nanos() as u64, key);
    let answer = {
        let mut polls = 1 + random.below(4);
        let mut request = pin!(me.client.acquire(key, Some(patience)));
        let some_polls = std::future::poll_fn(|context| {
            polls = polls.saturating_sub(1);
            match request.as_mut().poll(context) {
                Poll::Pending if polls == 0 => Poll::Ready(None),
                answer => answer.map(Some),
            }
        });
        let limit = if random.chance(30) {
            random.ms(0, 2)
        } else {
            random.ms(0, 300)
        };
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
