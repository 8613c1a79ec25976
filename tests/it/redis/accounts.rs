//! Clients that take locks as fast as they can, and look whether they hold them alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tower_distributed_lock::{ErrorKind, LockGuard, LockManager};

use crate::support::random::Random;
use crate::support::{eventually, soon};

/// What each lock is for.
pub struct Accounts {
    shared: Arc<Shared>,
    /// Each returns how many locks it has had.
    clients: JoinSet<usize>,
}

struct Shared {
    accounts: Vec<Account>,
    is_over: AtomicBool,
    /// How many locks have been taken.
    taken: AtomicUsize,
}

/// Who is in the part that only a holder may be in, and the last fencing token there.
#[derive(Default)]
struct Account {
    is_taken: AtomicBool,
    last_token: AtomicU64,
}

impl Accounts {
    pub fn new(count: usize) -> Self {
        let accounts = (0..count).map(|_| Account::default()).collect();
        Self {
            shared: Arc::new(Shared {
                accounts,
                is_over: AtomicBool::new(false),
                taken: AtomicUsize::new(0),
            }),
            clients: JoinSet::new(),
        }
    }

    /// Starts a client. `name` names the lock of an account, and `wait` says how long to wait for
    /// it.
    pub fn add_client(
        &mut self,
        locks: &LockManager,
        seed: u64,
        name: fn(usize) -> String,
        wait: fn(&mut Random) -> Option<Duration>,
    ) {
        let (locks, shared) = (locks.clone(), Arc::clone(&self.shared));
        self.clients.spawn(async move {
            let mut random = Random::new(seed);
            let mut held = 0;
            while !shared.is_over.load(Ordering::SeqCst) {
                let number = random.below(shared.accounts.len() as u64) as usize;
                let asked = match wait(&mut random) {
                    Some(wait) => locks.acquire(name(number), wait).await,
                    None => locks.try_acquire(name(number)).await,
                };
                let Ok(guard) = asked else {
                    continue;
                };
                shared.accounts[number].visit(&guard).await;
                // A lock that is wanted may not be handed on before its slot has arrived.
                if random.below(2) == 0
                    && let Err(late) = guard.release().await
                {
                    assert_eq!(late.kind(), ErrorKind::Unavailable);
                }
                shared.taken.fetch_add(1, Ordering::SeqCst);
                held += 1;
            }
            held
        });
    }

    pub async fn some_are_taken(&self) {
        let before = self.shared.taken.load(Ordering::SeqCst);
        eventually("locks are taken", || async {
            self.shared.taken.load(Ordering::SeqCst) > before + 20
        })
        .await;
    }

    /// Waits until all clients have ended, which have found nothing wrong.
    pub async fn end(self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        let held = soon("all clients end", self.clients.join_all()).await;
        assert!(held.iter().all(|held| *held > 0), "{held:?}");
    }
}

impl Account {
    async fn visit(&self, guard: &LockGuard) {
        assert!(!self.is_taken.swap(true, Ordering::SeqCst), "two holders");
        let token = guard.fencing_token();
        let last = self.last_token.swap(token, Ordering::SeqCst);
        assert!(last < token, "a fencing token that did not rise");
        tokio::task::yield_now().await;
        assert!(guard.lease().is_held(), "{:?}", guard.lease().lost_reason());
        self.is_taken.store(false, Ordering::SeqCst);
    }
}
