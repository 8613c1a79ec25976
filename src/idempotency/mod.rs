//! Handled once, answered every time.
mod body;
mod header;
mod layer;
mod read;
mod record;
mod replay;
mod run;
mod service;

pub use self::body::IdempotencyBody;
pub use self::layer::IdempotencyLayer;
pub use self::service::{Idempotency, IdempotencyFuture};
