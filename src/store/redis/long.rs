//! [`LongRecords`]: the way of records that are too long to come with an answer.

use bytes::Bytes;
use redis::RedisError;
use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{RedisStore, batch};
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;

/// A connection of their own, made when the first one is wanted: the driver's is a subscriber's, and Redis closes that when too
/// much is to be sent there (`client-output-buffer-limit pubsub`). Nor is a lock to wait behind megabytes.
#[derive(Debug, Default)]
pub(super) struct LongRecords {
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl RedisStore {
    pub(crate) async fn fetch(&self, key: &LockKey) -> Result<Bytes, Error> {
        let limit = self.settings.command_timeout;
        let why = match timeout(limit, self.get(key)).await {
            Ok(Ok(Some(record))) => return Ok(record.into()),
            // It expired, just now.
            Ok(Ok(None)) => return Err(Error::of(ErrorKind::Unavailable)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {limit:?}"),
        };
        *self.long_records.connection.lock().await = None;
        Err(self.address.unavailable(&why))
    }

    async fn get(&self, key: &LockKey) -> Result<Option<Vec<u8>>, RedisError> {
        let mut connection = {
            let mut kept = self.long_records.connection.lock().await;
            match &*kept {
                Some(connection) => connection.clone(),
                None => kept.insert(self.address.connect_for_long().await?).clone(),
            }
        };
        let owner = batch::owner_name(&self.settings.prefix, key);
        redis::cmd("GET")
            .arg(owner)
            .query_async(&mut connection)
            .await
    }
}
