//! Every service gives access to the one inside, as those of Tower do.

use tower::Layer;
use tower_distributed_lock::{
    DetachLayer, DistributedLockLayer, IdempotencyLayer, LockManager, key,
};

#[tokio::test]
async fn the_service_inside_can_be_seen_changed_and_taken_out() {
    let locks = LockManager::in_memory();

    let mut locked = DistributedLockLayer::new(locks.clone(), key::method_and_path()).layer(1);
    *locked.get_mut() += 1;
    assert_eq!((*locked.get_ref(), locked.into_inner()), (2, 2));

    let mut once = IdempotencyLayer::new(locks).layer(1);
    *once.get_mut() += 1;
    assert_eq!((*once.get_ref(), once.into_inner()), (2, 2));

    let mut detached = DetachLayer::new().layer(1);
    *detached.get_mut() += 1;
    assert_eq!((*detached.get_ref(), detached.into_inner()), (2, 2));
}
