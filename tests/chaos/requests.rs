//! Random requests for few locks.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::client::Held;
use crate::handling::Handling;
use crate::history::What;
use crate::holding::{give_back, hold, look, watch_losses};
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

/// What a request wants.
#[derive(Clone, Debug)]
pub enum Wish {
    Own(&'static str),
    Share(&'static str),
    /// All at once, or none. They are sorted.
    OwnAll(Vec<&'static str>),
}

impl Wish {
    fn random(me: &Me, random: &mut Random) -> Self {
        let keys = keys(&me.worker.orders);
        match random.below(100) {
            0..25 => Self::Share(random.pick(keys)),
            // While one of several is waited for, the history does not say which others are held.
            // So half of the keys are never taken together with others.
            25..35 => {
                let mut keys = keys[keys.len() / 2..].to_vec();
                while keys.len() > 3 || keys.len() > 2 && random.chance(50) {
                    keys.remove(random.below(keys.len() as u64) as usize);
                }
                Self::OwnAll(keys)
            }
            _ => Self::Own(random.pick(keys)),
        }
    }

    /// Of one key.
    fn of(key: &'static str, random: &mut Random) -> Self {
        match random.chance(40) {
            true => Self::Share(key),
            false => Self::Own(key),
        }
    }

    pub fn keys(&self) -> &[&'static str] {
        match self {
            Self::Own(key) | Self::Share(key) => std::slice::from_ref(key),
            Self::OwnAll(keys) => keys,
        }
    }

    async fn granted(&self, me: &Me, wait: Option<Duration>) -> Result<Held, String> {
        match self {
            Self::Own(key) => me.client.acquire(key, wait).await,
            Self::Share(key) => me.client.share(key, wait).await,
            Self::OwnAll(keys) => me.client.acquire_all(keys, wait).await,
        }
    }

    /// Notes that it is asked for. Returns the numbers of its requests, one for each key.
    fn asked(&self, me: &Me, wait: Option<Duration>) -> Vec<u64> {
        let what = match (self, wait) {
            (_, None) => What::Tried,
            (Self::OwnAll(_), _) => What::AskedAll,
            (Self::Own(_) | Self::Share(_), _) => What::Asked,
        };
        let within = wait.unwrap_or(me.worker.orders.answers_within());
        let within = within.as_nanos() as u64;
        let note = |key: &&'static str| {
            let id = me.next_id();
            me.log.note(what, id, within, &me.name(key));
            id
        };
        self.keys().iter().map(note).collect()
    }
}

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
            (35..46, _) => {
                let wish = Wish::random(&me, &mut random);
                attempt(&me, &wish, &mut random).await;
            }
            (46..50, _) => read_and_write(&me, &mut random).await,
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
    request(me, &Wish::random(me, random), Some(patience), random).await;
}

async fn attempt(me: &Me, wish: &Wish, random: &mut Random) {
    request(me, wish, None, random).await;
}

async fn request(me: &Me, wish: &Wish, wait: Option<Duration>, random: &mut Random) {
    let ids = wish.asked(me, wait);
    let answer = wish.granted(me, wait).await;
    answered(me, &ids, wish, answer, random).await;
}

/// Shares one lock, and takes another alone meanwhile, by a call of its own: in the order of the
/// keys, as all do.
async fn read_and_write(me: &Me, random: &mut Random) {
    let keys = keys(&me.worker.orders);
    let read = random.below(keys.len() as u64 - 1) as usize;
    let (read, write) = (Wish::Share(keys[read]), Wish::Own(keys[read + 1]));
    let patience = random.millis(100, 1000);
    let ids = read.asked(me, Some(patience));
    match read.granted(me, Some(patience)).await {
        Ok(held) => {
            noted(me, &ids, &read, &held);
            let lost = watch_losses(me, &ids, &held);
            look(&me.log, ids[0], || held.is_held());
            request(me, &write, Some(patience), random).await;
            look(&me.log, ids[0], || held.is_held());
            give_back(me, &ids, held, lost, random).await;
        }
        Err(why) => me.log.note(What::Refused, ids[0], 0, &why),
    }
}

async fn give_up_soon(me: &Me, random: &mut Random) {
    let wish = Wish::random(me, random);
    let limit = if random.chance(30) {
        random.millis(0, 2)
    } else {
        random.millis(0, 300)
    };
    let polls = 1 + random.below(4);
    give_up(me, &wish, limit, polls, random).await;
}

/// For one lock, at the same time: a request that waits, and leaves at some moment, and several
/// that do not wait.
async fn mingle(me: &Me, random: &mut Random) {
    let key = random.pick(RARE_KEYS);
    let (mut own, leaves) = (random.fork(), random.millis(0, 1200));
    let wish = Wish::of(key, random);
    let waits = give_up(me, &wish, leaves, u64::MAX, &mut own);
    let attempts = (0..12).map(|_| (random.fork(), random.millis(0, 1200)));
    let attempts = attempts.map(|(mut random, after)| async move {
        tokio::time::sleep(after).await;
        attempt(me, &Wish::of(key, &mut random), &mut random).await;
    });
    let attempts: Vec<_> = attempts.collect();
    tokio::join!(waits, futures_util::future::join_all(attempts));
}

/// Drops the request at some moment: when it was polled so often, or after some time.
async fn give_up(me: &Me, wish: &Wish, limit: Duration, mut polls: u64, random: &mut Random) {
    let patience = Duration::from_secs(5);
    let ids = wish.asked(me, Some(patience));
    let answer = {
        let mut request = pin!(wish.granted(me, Some(patience)));
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
        Some(answer) => answered(me, &ids, wish, answer, random).await,
        None => ids
            .iter()
            .for_each(|id| me.log.note(What::Cancelled, *id, 0, "")),
    }
}

async fn answered(
    me: &Me,
    ids: &[u64],
    wish: &Wish,
    answer: Result<Held, String>,
    random: &mut Random,
) {
    match answer {
        Ok(held) => {
            noted(me, ids, wish, &held);
            hold(me, ids, wish, held, random).await;
        }
        Err(why) => ids
            .iter()
            .for_each(|id| me.log.note(What::Refused, *id, 0, &why)),
    }
}

/// Notes that it was granted.
fn noted(me: &Me, ids: &[u64], wish: &Wish, held: &Held) {
    let how = match wish {
        Wish::Own(_) => String::new(),
        Wish::Share(_) => "shared".to_owned(),
        Wish::OwnAll(_) => format!("with {}", ids[0]),
    };
    for (id, token) in ids.iter().zip(held.tokens()) {
        me.log.note(What::Granted, *id, token, &how);
    }
}
