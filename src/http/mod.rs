//! What the middlewares for locks and for idempotency keys share.

mod content;
pub(crate) mod grpc;
mod leases;
mod on_lost;
mod protocol;
mod rejection;

pub(crate) use self::content::{Content, Frames, Joined, Rest, Whole};
pub(crate) use self::leases::{held, hold, hold_beside};
pub use self::on_lost::OnLost;
pub(crate) use self::protocol::Protocol;
pub(crate) use self::rejection::{Layer, Respond};
pub use self::rejection::{Rejection, RejectionKind};
