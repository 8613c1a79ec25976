//! What the middlewares for locks and for idempotency keys have in common.

mod content;
pub(crate) mod grpc;
mod leases;
mod on_lost;
mod protocol;
mod rejection;
mod wait;

pub(crate) use self::content::{Collected, Content, Frames, Joined, Rest};
pub(crate) use self::leases::{
    find_lease, has_lease, insert_lease, insert_leases, insert_secondary_lease,
};
pub use self::on_lost::OnLost;
pub(crate) use self::protocol::Protocol;
pub(crate) use self::rejection::{Reason, RejectedBy, RejectionResponder};
pub use self::rejection::{Rejection, RejectionKind};
pub(crate) use self::wait::Wait;
pub use self::wait::prefer_wait;
