//! What the server sends of its own accord.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use redis::{Msg, PushInfo, PushKind, Value};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{MissedTickBehavior, timeout};

use crate::clock::Time;

#[derive(Debug)]
pub(super) enum Push {
    /// A message came into the inbox. The server sent it `after` that time, if that is known.
    Message {
        payload: Vec<u8>,
        after: Option<Time>,
    },
    /// Another client changed these keys.
    Changed(Vec<Value>),
    /// The whole database was flushed, or Redis no longer tracks any key.
    AllChanged,
    /// The sentinels say that another server is the primary.
    Replaced,
    /// A subscription was ended, or begun, that this process did not ask for.
    Unasked,
    Closed,
}

/// When the newest command was sent of those that have their reply, and whether replies can be told
/// apart still.
///
/// On one connection, replies and pushes come in the order in which the server produced them. A
/// push that comes after that reply was therefore produced after that time.
#[derive(Clone, Debug)]
pub(super) struct Observed(Arc<State>);

#[derive(Debug)]
struct State {
    newest: AtomicU64,
    is_out_of_step: AtomicBool,
}

impl Observed {
    /// Must be called before the connection is made: all that comes over it is newer.
    pub(super) fn now() -> Self {
        Self(Arc::new(State {
            newest: AtomicU64::new(Time::now().as_nanos()),
            is_out_of_step: AtomicBool::new(false),
        }))
    }

    /// Notes that the reply to a command that was sent at that time is here.
    pub(super) fn reply_to(&self, sent_at: Time) {
        self.0
            .newest
            .fetch_max(sent_at.as_nanos(), Ordering::AcqRel);
    }

    /// Returns whether the client library may have taken a push for a reply. It does so with those
    /// that say that a subscription begins or ends, as it expects them to be asked for: from then
    /// on, each command would get the reply to the one before. No reply may be used then.
    pub(super) fn is_out_of_step(&self) -> bool {
        self.0.is_out_of_step.load(Ordering::Acquire)
    }

    fn newest(&self) -> Time {
        Time::from_nanos(self.0.newest.load(Ordering::Acquire))
    }
}

/// Passes on the pushes that come between the replies. The returned function must be called as each
/// push comes, and not when a task gets around to it: newer replies may have been noted by then.
pub(super) fn forward(
    pushes: UnboundedSender<Push>,
    observed: Observed,
) -> impl Fn(PushInfo) -> Result<(), ()> {
    move |push| {
        let push = read(push, observed.newest());
        if let Some(Push::Unasked) = push {
            observed.0.is_out_of_step.store(true, Ordering::Release);
        }
        push.map_or(Ok(()), |push| pushes.send(push).map_err(|_| ()))
    }
}

fn read(push: PushInfo, after: Time) -> Option<Push> {
    let mut data = push.data.into_iter();
    match (push.kind, data.next(), data.next()) {
        (PushKind::Message, Some(_), Some(Value::BulkString(payload))) => Some(Push::Message {
            payload,
            after: Some(after),
        }),
        (PushKind::Invalidate, Some(Value::Array(keys)), _) => Some(Push::Changed(keys)),
        (PushKind::Invalidate, ..) => Some(Push::AllChanged),
        (PushKind::Disconnection, ..) => Some(Push::Closed),
        // Only a plain SUBSCRIBE is ever sent. A server of a cluster ends subscriptions to shard
        // channels of its own accord, and a proxy may keep the inbox on one.
        (
            PushKind::Unsubscribe
            | PushKind::PUnsubscribe
            | PushKind::SUnsubscribe
            | PushKind::PSubscribe
            | PushKind::SSubscribe,
            ..,
        ) => Some(Push::Unasked),
        _ => None,
    }
}

/// Passes on the messages of an inbox that has a connection of its own, until that fails or the
/// receiver is gone. Nothing is known of their order among the replies, so they have no time.
pub(super) async fn listen(inbox: PubSub, pushes: UnboundedSender<Push>, limit: Duration) {
    let (mut sink, mut messages) = inbox.split();
    let mut heartbeat = tokio::time::interval(limit.max(Duration::from_secs(1)));
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = messages.next() => match message.as_ref().map(Msg::get_payload_bytes) {
                Some(payload) => {
                    let payload = payload.to_vec();
                    let _ = pushes.send(Push::Message { payload, after: None });
                }
                None => break,
            },
            _ = heartbeat.tick() => match timeout(limit, sink.ping::<Value>()).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => break,
            },
            () = pushes.closed() => return,
        }
    }
    let _ = pushes.send(Push::Closed);
}
