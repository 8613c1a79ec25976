//! A holder's work: it looks whether it still has the lock, and writes.

use std::time::Duration;

use crate::client::{Client, Held};
use crate::clock::nanos;
use crate::history::{Log, What};
use crate::support::random::Random;
use crate::variety::Variety;
use crate::worker::{Me, Mood};

/// Returns whether the lock is held, and notes in the history when that was found.
pub fn look(log: &Log, id: u64, is_held: impl FnOnce() -> bool) -> bool {
    let before = nanos();
    let is_held = is_held();
    let what = if is_held { What::Held } else { What::NotHeld };
    log.since(before, what, id, 0, "");
    is_held
}

pub async fn hold(me: &Me, id: u64, key: &str, held: Held, random: &mut Random) {
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
    let (log, lost) = (me.log.clone(), held.lost());
    let watching = tokio::spawn(async move {
        if let Some(reason) = lost.await {
            log.note(What::Signal, id, 0, &reason);
        }
    });
    let until = nanos() + time.as_nanos() as u64;
    let mut is_held = look(&me.log, id, || held.is_held());
    while (is_held || !ends_when_lost) && nanos() < until {
        if is_held && random.chance(40) {
            if random.chance(10) {
                // The write takes its time, perhaps beyond the loss.
                tokio::time::sleep(random.millis(0, 150)).await;
            }
            write(me, id, key, held.token(), "").await;
        } else if random.chance(10) {
            // It works for a while without a look.
            tokio::time::sleep(random.millis(50, 400)).await;
        } else {
            tokio::time::sleep(random.millis(0, 12)).await;
        }
        is_held = look(&me.log, id, || held.is_held());
    }
    if !is_held && random.chance(30) {
        // This holder writes all the same: the store has to refuse it.
        for _ in 0..5 {
            write(me, id, key, held.token(), "careless").await;
            tokio::time::sleep(random.millis(0, 60)).await;
        }
    }
    me.log.note(What::Ended, id, 0, "");
    // Dropping the textbook's lock releases nothing.
    if random.chance(50) || !ends_when_lost {
        let before = nanos();
        let answer = held.release().await;
        me.log.since(before, What::Released, id, 0, &answer);
    } else {
        drop(held);
    }
    // The task ends when the lock is released. The textbook's lock never tells.
    let _ = tokio::time::timeout(Duration::from_secs(20), watching).await;
}

async fn write(me: &Me, id: u64, key: &str, token: u64, how: &str) {
    let before = nanos();
    let accepted = me.store.clone().write(&me.name(key), token).await;
    let what = if accepted {
        What::Accepted
    } else {
        What::Rejected
    };
    me.log.since(before, what, id, token, how);
}
