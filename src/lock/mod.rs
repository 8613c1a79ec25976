//! The middleware that runs requests under a lock.

mod body;
mod future;
mod held;
mod layer;
mod service;

pub use self::body::ResponseBody;
pub use self::future::ResponseFuture;
pub use self::layer::{DistributedLockLayer, Hold, OnUnavailable, Unlocked};
pub use self::service::DistributedLock;
pub use crate::http::{OnLost, Rejection, RejectionKind};
