//! How the managers of the suite get to their server.

use tower_distributed_lock::{LockManager, LockManagerBuilder};

#[cfg(feature = "tls")]
use crate::certificates::Certificates;
use crate::support::{Cluster, PRIMARY, RedisServer, Sentinel, clients};

/// The variable that chooses how the suite gets to one server: `unix` (a Unix socket), `tls` or
/// `sentinel`. Without it, by TCP.
const WAY: &str = "TOWER_DISTRIBUTED_LOCK_TEST_WAY";

pub enum Way {
    Tcp,
    Unix,
    #[cfg(feature = "tls")]
    Tls(Certificates),
    /// By a sentinel, that says where the server is.
    Sentinel(Sentinel),
    /// It is a cluster of one.
    Cluster,
}

impl Way {
    /// Starts a server, and what leads to it. The server can be reached by TCP as well, for a look
    /// from outside.
    pub async fn chosen() -> (RedisServer, Self) {
        match std::env::var(WAY).as_deref() {
            Err(_) => (RedisServer::start().await, Self::Tcp),
            Ok("unix") => {
                let server = RedisServer::start_with(&["--unixsocket", SOCKET]).await;
                (server, Self::Unix)
            }
            #[cfg(feature = "tls")]
            Ok("tls") => {
                let certificates = Certificates::of(&["127.0.0.1"]);
                let args = certificates.args("no");
                let args: Vec<_> = args.iter().map(String::as_str).collect();
                let server = RedisServer::start_with(&args).await;
                (server, Self::Tls(certificates))
            }
            Ok("sentinel") => {
                let server = RedisServer::start().await;
                let sentinel = Sentinel::start(server.port).await;
                (server, Self::Sentinel(sentinel))
            }
            Ok(other) => panic!("{WAY} is {other}: set it to unix, tls or sentinel, or unset it"),
        }
    }

    /// A cluster of one server, which has all slots: commands for keys of several slots are errors
    /// there, as in any cluster.
    pub async fn cluster() -> (RedisServer, Self) {
        let mut cluster = Cluster::start(1, 0).await;
        (cluster.servers.pop().unwrap(), Self::Cluster)
    }

    pub async fn connect(&self, server: &RedisServer, builder: LockManagerBuilder) -> LockManager {
        let locks = match self {
            Self::Tcp => builder.connect(server.url()).await,
            Self::Unix => {
                let socket = server.file(SOCKET);
                let url = format!("redis+unix://{}", socket.display());
                builder.connect(url).await
            }
            #[cfg(feature = "tls")]
            Self::Tls(certificates) => {
                let url = format!("rediss://127.0.0.1:{}", server.argument("--tls-port"));
                let builder = builder.tls_root_certificate(certificates.authority.as_str());
                builder.connect(url).await
            }
            // The servers are new.
            Self::Sentinel(sentinel) => {
                let sentinels = [format!("redis://127.0.0.1:{}", sentinel.port)];
                let builder = builder.quarantine(false);
                builder.connect_sentinel(sentinels, PRIMARY).await
            }
            Self::Cluster => {
                let builder = builder.quarantine(false);
                builder.connect_cluster([server.url()]).await
            }
        };
        locks.unwrap()
    }

    /// Returns whether the server, or the sentinel, sees a manager come by that way.
    pub async fn is_taken(&self, server: &RedisServer) -> bool {
        let all = clients(&server.client().await).await;
        let mut managers = all.iter().filter(|line| line.contains(" name=tower"));
        match self {
            Self::Unix => managers.any(|line| line.contains(SOCKET)),
            #[cfg(feature = "tls")]
            Self::Tls(_) => {
                let laddr = format!(" laddr=127.0.0.1:{} ", server.argument("--tls-port"));
                managers.any(|line| line.contains(&laddr))
            }
            // Besides this look at it, it is watched.
            Self::Sentinel(sentinel) => {
                let watching = clients(&sentinel.client().await).await;
                watching.len() > 1 && managers.next().is_some()
            }
            Self::Tcp | Self::Cluster => managers.any(|line| line.contains(" addr=127.0.0.1:")),
        }
    }
}

/// In the server's folder.
const SOCKET: &str = "redis.sock";
