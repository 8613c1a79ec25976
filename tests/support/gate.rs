//! Where a handler stops until the test lets it go on, and what tells that something was dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use super::soon;

/// Where a handler stops until the test lets it go on.
#[derive(Clone)]
pub struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            arrived: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
        }
    }

    /// The handler's side: waits for the test.
    pub async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.unwrap().forget();
    }

    /// Waits until one more handler has arrived.
    pub async fn arrived(&self) {
        soon("the handler is reached", self.arrived.acquire())
            .await
            .unwrap()
            .forget();
    }

    /// Whether no handler has arrived besides those that [`arrived`](Self::arrived) told of.
    pub fn nobody_else(&self) -> bool {
        self.arrived.available_permits() == 0
    }

    /// Lets one handler go on.
    pub fn open(&self) {
        self.open.add_permits(1);
    }
}

/// Says that it was dropped.
pub struct OnDrop(Arc<AtomicBool>);

impl OnDrop {
    pub fn new() -> (Self, Arc<AtomicBool>) {
        let dropped = Arc::new(AtomicBool::new(false));
        (Self(Arc::clone(&dropped)), dropped)
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
