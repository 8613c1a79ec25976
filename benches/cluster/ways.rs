//! The ways to take and release a lock, behind one interface.

use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use tower_distributed_lock::LockManager;

use crate::support::orders::text;
use crate::support::recipe::Recipe;
use crate::test_support::Cluster;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By hand, with both commands awaited: the reference.
    Awaited,
    /// By hand, with the release in the background.
    Background,
    /// A manager whose guards are dropped, as the layer does.
    Manager,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Awaited, Self::Background, Self::Manager];

    pub fn word(self) -> &'static str {
        match self {
            Self::Awaited => "awaited",
            Self::Background => "background",
            Self::Manager => "manager",
        }
    }
}

/// Takes locks in one of the ways.
#[derive(Clone)]
pub enum Client {
    Awaited(Recipe<ClusterConnection>),
    Background(Recipe<ClusterConnection>),
    Manager(LockManager),
}

impl Client {
    /// Connects to all primaries. No quarantine: a new cluster has lost nothing, and a failover is
    /// to show how soon the new primary is found.
    pub async fn connect(way: Way, cluster: &Cluster) -> Self {
        match way {
            Way::Manager => {
                let builder = LockManager::builder().quarantine(false);
                Self::Manager(builder.connect_cluster(cluster.urls()).await.unwrap())
            }
            way => {
                let redis = ClusterClient::new(cluster.urls()).unwrap();
                let redis = redis.get_async_connection().await.unwrap();
                let recipe = Recipe::on(redis).await.unwrap();
                match way {
                    Way::Background => Self::Background(recipe),
                    _ => Self::Awaited(recipe),
                }
            }
        }
    }

    /// Takes a lock that no other wants, and releases it. Returns whether it was to be had.
    pub async fn lock(&self, key: String) -> bool {
        match self {
            Self::Manager(locks) => locks.try_acquire(key).await.is_ok(),
            Self::Awaited(recipe) | Self::Background(recipe) => {
                let (mut recipe, name) = (recipe.clone(), format!("hand:{key}"));
                let Ok(Some(token)) = recipe.try_acquire(&name).await else {
                    return false;
                };
                match self {
                    Self::Background(_) => recipe.release_in_background(name, token),
                    _ => assert!(recipe.release(&name, &token).await.unwrap()),
                }
                true
            }
        }
    }

    /// Takes a lock that no other wants, and does not wait for its release: a recipe's expires.
    ///
    /// # Errors
    ///
    /// Why it is not to be had.
    pub async fn take(&self, key: String) -> Result<(), String> {
        match self {
            Self::Manager(locks) => locks.try_acquire(key).await.map(drop).map_err(text),
            Self::Awaited(recipe) | Self::Background(recipe) => {
                let taken = recipe.clone().try_acquire(&format!("hand:{key}")).await;
                taken.map_err(text)?.map(drop).ok_or("held".to_owned())
            }
        }
    }

    pub async fn close(self) {
        if let Self::Manager(locks) = self {
            locks.close().await;
        }
    }
}
