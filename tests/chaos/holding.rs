//! A holder's work: it looks whether it still has the lock, and writes, or reads if it shares it.

use std::time::Duration;

use crate::client::{Client, Held};
use crate::clock::nanos;
use crate::history::{Log, What};
use crate::requests::Wish;
use crate::support::random::Random;
use crate::variety::Variety;
use crate::worker::{Me, Mood};

/// Returns whether the lock is held, and notes in the history when that was found.
pub fn look(log: &Log, id: u64, is_held: impl FnOnce() -> bool) -> bool {
    look_at_all(log, &[id], is_held)
}

/// Like [`look`], for locks that are held together: they are, or none is.
fn look_at_all(log: &Log, ids: &[u64], is_held: impl FnOnce() -> bool) -> bool {
    let before = nanos();
    let is_held = is_held();
    let what = if is_held { What::Held } else { What::NotHeld };
    for id in ids {
        log.since(before, what, *id, 0, "");
    }
    is_held
}

/// `ids` are those of the requests for the keys of the wish.
pub async fn hold(me: &Me, ids: &[u64], wish: &Wish, held: Held, random: &mut Random) {
    // The crate's locks change hands more often; the textbook's mistakes show in long holds.
    let (short, long) = match me.client {
        Client::Crate(_) if me.worker.orders.has(Variety::LongHolds) => (40, 75),
        Client::Crate(_) => (84, 97),
        Client::Textbook(_) => (65, 88),
    };
    // With the textbook's lock, a late renewal may find that it is held after all.
    let ends_when_lost = matches!(me.client, Client::Crate(_));
    let time = match random.below(100) {
        _ if me.mood() != Mood::Wild => random.millis(0, 10),
        percent if percent < short => random.millis(0, 50),
        percent if percent < long => random.millis(50, 400),
        // Over more than one renewal, and sometimes over more than `max_hold`.
        _ => random.millis(400, 2000),
    };
    let lost = watch_losses(me, ids, &held);
    let until = nanos() + time.as_nanos() as u64;
    let mut is_held = look_at_all(&me.log, ids, || held.is_held());
    while (is_held || !ends_when_lost) && nanos() < until {
        if is_held && random.chance(40) {
            if random.chance(10) {
                // The write takes its time, perhaps beyond the loss.
                tokio::time::sleep(random.millis(0, 150)).await;
            }
            use_all(me, ids, wish, &held, "").await;
        } else if random.chance(10) {
            // It works for a while without a look.
            tokio::time::sleep(random.millis(50, 400)).await;
        } else {
            tokio::time::sleep(random.millis(0, 12)).await;
        }
        is_held = look_at_all(&me.log, ids, || held.is_held());
    }
    if !is_held && random.chance(30) {
        // This holder writes all the same: the store has to refuse it.
        for _ in 0..5 {
            use_all(me, ids, wish, &held, "careless").await;
            tokio::time::sleep(random.millis(0, 60)).await;
        }
    }
    give_back(me, ids, held, lost, random).await;
}

/// Writes down when each of the locks is lost. The future ends with the last.
pub fn watch_losses(me: &Me, ids: &[u64], held: &Held) -> impl Future + use<> {
    let watching = ids.iter().zip(held.lost()).map(|(id, lost)| {
        let (log, id) = (me.log.clone(), *id);
        tokio::spawn(async move {
            if let Some(reason) = lost.await {
                log.note(What::Signal, id, 0, &reason);
            }
        })
    });
    futures_util::future::join_all(watching.collect::<Vec<_>>())
}

/// Releases, or drops, what is held.
pub async fn give_back(me: &Me, ids: &[u64], held: Held, lost: impl Future, random: &mut Random) {
    for id in ids {
        me.log.note(What::Ended, *id, 0, "");
    }
    // Dropping the textbook's lock releases nothing.
    if random.chance(50) || matches!(held, Held::Textbook(_)) {
        let before = nanos();
        let answer = held.release().await;
        me.log.since(before, What::Released, ids[0], 0, &answer);
    } else {
        drop(held);
    }
    // It ends when the locks are released. The textbook's lock never tells.
    let _ = tokio::time::timeout(Duration::from_secs(20), lost).await;
}

/// Writes under each of the locks, or reads under the one that is shared.
async fn use_all(me: &Me, ids: &[u64], wish: &Wish, held: &Held, how: &str) {
    for ((id, key), token) in ids.iter().zip(wish.keys()).zip(held.tokens()) {
        let (before, name) = (nanos(), me.name(key));
        let mut store = me.store.clone();
        let accepted = match wish {
            Wish::Share(_) => store.read(&name, token).await,
            Wish::Own(_) | Wish::OwnAll(_) => store.write(&name, token).await,
        };
        let what = if accepted {
            What::Accepted
        } else {
            What::Rejected
        };
        me.log.since(before, what, *id, token, how);
    }
}
