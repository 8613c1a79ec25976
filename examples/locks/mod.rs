//! Where the examples keep their locks. The environment says:
//!
//! | Variables, for example | Locks in |
//! |---|---|
//! | `REDIS_URL=redis://127.0.0.1:6379` | one server |
//! | `SENTINELS=127.0.0.1:26379,…`, `SENTINEL_MASTER=mymaster` | the primary that the sentinels know |
//! | `REDIS_CLUSTER=127.0.0.1:7000,…` | a cluster; `examples/cluster.sh` starts one |
//! | none of these | the memory of this process |

use std::io::Write;

use tower_distributed_lock::{Error, ErrorKind, LockManager, LockManagerBuilder};

/// Returns a manager for each of these nodes, which have nothing but Redis in common. If the locks
/// are in memory, there can be one node only: the first.
pub(crate) async fn connect(
    nodes: impl IntoIterator<Item = LockManagerBuilder>,
) -> Result<Vec<LockManager>, Error> {
    let mut managers = Vec::new();
    let mut place = "";
    for node in nodes {
        // A server that is used for the first time is in quarantine, as one that lost its data. An
        // example does not wait until that is over; a service should leave it on.
        let at_once = || node.clone().quarantine(false);
        let locks = if let Some(url) = variable("REDIS_URL")? {
            place = "in Redis, at REDIS_URL"; // not printed: a URL may hold a password
            node.connect(url).await?
        } else if let Some(sentinels) = variable("SENTINELS")? {
            place = "in Redis, which SENTINELS watch";
            let name = variable("SENTINEL_MASTER")?.unwrap_or_else(|| "mymaster".to_owned());
            at_once().connect_sentinel(urls(&sentinels), name).await?
        } else if let Some(servers) = variable("REDIS_CLUSTER")? {
            place = "in a cluster, at REDIS_CLUSTER";
            at_once().connect_cluster(urls(&servers)).await?
        } else {
            place = "in the memory of this process (REDIS_URL is not set)";
            managers.push(node.in_memory()?);
            break;
        };
        managers.push(locks);
    }
    // A reader that has gone away (`| head`) is no failure.
    let _ = writeln!(std::io::stdout(), "Locks: {place}");
    Ok(managers)
}

fn variable(name: &str) -> Result<Option<String>, Error> {
    let text = std::env::var_os(name).map(std::ffi::OsString::into_string);
    let not_text = |_| Error::new(ErrorKind::Config, format!("{name} is not text"));
    text.transpose().map_err(not_text)
}

fn urls(servers: &str) -> Vec<String> {
    let url = |server: &str| match server.contains("://") {
        true => server.to_owned(),
        false => format!("redis://{server}"),
    };
    servers.split(',').map(url).collect()
}
