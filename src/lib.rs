//! wip
#![cfg_attr(docsrs, feature(doc_cfg))]

mod body;
mod clock;
mod detach;
mod error;
mod future;
mod guard;
pub mod key;
mod layer;
mod manager;
mod rejection;
mod service;
mod store;
mod trace;

pub use self::body::ResponseBody;
pub use self::detach::{Detach, DetachFuture, DetachLayer};
pub use self::error::{Error, ErrorKind};
pub use self::future::ResponseFuture;
pub use self::guard::{Lease, LockGuard};
pub use self::key::{IntoLockKey, LockKey};
pub use self::layer::{DistributedLockLayer, Hold, OnLost, OnUnavailable, Unlocked};
pub use self::manager::slot::LostReason;
pub use self::manager::{LockManager, LockManagerBuilder};
pub use self::rejection::{Rejection, RejectionKind};
pub use self::service::DistributedLock;
