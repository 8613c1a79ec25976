//! Locks kept in a Redis Cluster.
//!
//! A [`ClusterStore`] is a router: it has one [`RedisStore`] for each primary, with a connection, a
//! queue and a breaker of its own, and gives each command to the store of its slot. A command that
//! a primary does not carry out, as it does not have the slot or not now, comes back into
//! [`Redirected`], and goes out again when the router has asked the cluster for its slots, or at
//! once if it knows where to: see [`moving`](super::moving). Commands for one lock are all about
//! one slot, so all rules about a single server hold.

mod redirected;
mod slot_map;
mod slots;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use redis::Value;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

pub(super) use self::redirected::Redirected;
use self::slot_map::{Primary, SlotMap};
pub(super) use self::slots::{slot, tag};
use super::address::Address;
use super::credentials::CredentialsCallback;
use super::endpoint::Endpoint;
use super::manifest::{Damage, Manifest};
use super::moving::ToldAddress;
use super::names::{Home, Names, lock_name};
use super::pending::Pending;
use super::server::RedisServer;
use super::told::Told;
use super::{RedisStore, Settings};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::inspect::{LockCursor, LockPage, LockReport};
use crate::key::LockKey;
use crate::store::{Command, Connected, Events, Failure, Options, Outcome, Record};

/// How events call it: each primary has events of its own.
const NAME: &str = "the cluster";
/// The slots are not asked for more often than this…
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// …and this often if nothing says that they have changed.
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// How much longer than the first answer others may take: the newest one counts.
const GRACE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct ClusterStore {
    /// Tells this manager's tokens from all others.
    id: Uuid,
    settings: Settings,
    /// Where to ask for the slots at first.
    seeds: Vec<Endpoint>,
    credentials: Option<CredentialsCallback>,
    routes: RwLock<Routes>,
    /// Notified when the slots were found out.
    adopted: Notify,
    redirected: Arc<Redirected>,
    told: Told,
}

#[derive(Debug, Default)]
struct Routes {
    nodes: HashMap<Primary, Node>,
    /// The store of each slot. Empty until the slots are known.
    owners: Vec<Option<Arc<RedisStore>>>,
}

#[derive(Clone, Debug)]
struct Node {
    store: Arc<RedisStore>,
    /// Notified when the node is no primary any more.
    gone: Arc<Notify>,
}

impl ClusterStore {
    /// Reads where the servers are. [`run`](Self::run) connects.
    pub(crate) fn new(servers: Vec<RedisServer>, options: &Options) -> Result<Self, Error> {
        let config = |message| Err(Error::new(ErrorKind::Config, message));
        if servers.is_empty() {
            return config("a cluster needs the URL of at least one of its servers");
        }
        let seeds = servers.into_iter();
        let seeds = seeds.map(|server| {
            let seed = server.endpoint(&options.tls)?;
            Ok(seed.with_map(options.address_map.clone()))
        });
        let id = Uuid::new_v4();
        let names = Names::new(options.prefix.clone(), id);
        Ok(Self {
            id,
            seeds: seeds.collect::<Result<_, Error>>()?,
            settings: Settings::new(names, options),
            credentials: options.credentials.clone(),
            routes: RwLock::default(),
            adopted: Notify::new(),
            redirected: Arc::default(),
            told: Told::default(),
        })
    }

    /// See [`Store::instance`](crate::store::Store::instance).
    #[cfg(feature = "inspector")]
    pub(crate) fn instance(&self) -> &str {
        &self.settings.instance
    }

    /// See [`Store::submit`](crate::store::Store::submit).
    pub(crate) fn submit(&self, now: Time, key: &LockKey, command: Command) -> Option<Outcome> {
        match self.owner(key) {
            Some(store) => store.submit(now, key, command),
            None => {
                let pending = Pending::new(key.clone(), command, now);
                self.redirected.put(pending);
                None
            }
        }
    }

    /// See [`Store::run`](crate::store::Store::run).
    pub(crate) async fn run(
        &self,
        mut connected: Option<Connected>,
        events: &impl Events,
        is_finished: impl Fn() -> bool,
    ) {
        let mut drivers = FuturesUnordered::new();
        // After a runtime ended, its drivers are started again here.
        for node in self.routes().nodes.values() {
            drivers.push(drive(node.clone(), None, events, &is_finished));
        }
        loop {
            let discovered = {
                let discovering = self.discover();
                tokio::pin!(discovering);
                loop {
                    tokio::select! {
                        discovered = &mut discovering => break discovered,
                        () = self.redirected.arrived() => self.pass_on(),
                        Some(gone) = drivers.next(), if !drivers.is_empty() => self.reroute(&gone),
                    }
                }
            };
            let mut opening = FuturesUnordered::new();
            match discovered {
                Ok(map) => {
                    self.told.up(NAME);
                    for node in self.adopt(&map, events) {
                        let opened = connected.is_some().then(|| {
                            let (sender, opened) = oneshot::channel();
                            opening.push(opened);
                            sender
                        });
                        drivers.push(drive(node, opened, events, &is_finished));
                    }
                }
                Err(error) => {
                    if let Some(connected) = connected.take() {
                        let _ = connected.send(Err(error));
                        return;
                    }
                    self.told.down(NAME, &error);
                }
            }
            while let Some(caller) = connected.take() {
                tokio::select! {
                    opened = opening.next() => match opened {
                        Some(Ok(Ok(()))) => connected = Some(caller),
                        Some(Ok(Err(error))) => {
                            let _ = caller.send(Err(error));
                            return;
                        }
                        Some(Err(_)) => return,
                        None => {
                            let _ = caller.send(Ok(()));
                        }
                    },
                    Some(_) = drivers.next(), if !drivers.is_empty() => connected = Some(caller),
                }
            }
            self.resend(events);
            let asked = Instant::now();
            let mut next = asked + self.pause();
            loop {
                if is_finished() {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(next) => break,
                    () = self.redirected.notified() => next = next.min(asked + MIN_PAUSE),
                    () = self.redirected.arrived() => self.pass_on(),
                    Some(gone) = drivers.next(), if !drivers.is_empty() => self.reroute(&gone),
                }
            }
        }
    }

    /// Returns how long to wait before the slots are asked for again.
    fn pause(&self) -> Duration {
        let is_well = self.redirected.is_empty() && self.is_connected();
        if is_well { MAX_PAUSE } else { MIN_PAUSE }
    }

    /// Asks all servers that are known for the slots. Returns the newest answer.
    async fn discover(&self) -> Result<SlotMap, Error> {
        let known: Vec<Endpoint> = {
            let routes = self.routes();
            let primaries = routes.nodes.keys();
            primaries.map(|primary| self.endpoint(primary)).collect()
        };
        let mut asking: FuturesUnordered<_> = known
            .iter()
            .chain(&self.seeds)
            .map(|server| self.ask(server))
            .collect();
        let (mut best, mut failed): (Option<(u64, SlotMap)>, _) = (None, None);
        let give_up = tokio::time::sleep(self.settings.command_timeout);
        tokio::pin!(give_up);
        loop {
            tokio::select! {
                asked = asking.next() => match asked {
                    Some(Ok((epoch, map))) => {
                        if best.is_none() {
                            give_up.as_mut().reset(Instant::now() + GRACE);
                        }
                        if best.as_ref().is_none_or(|(newest, _)| epoch > *newest) {
                            best = Some((epoch, map));
                        }
                    }
                    Some(Err(error)) => failed = Some(error),
                    None => break,
                },
                () = &mut give_up => break,
            }
        }
        match (best, failed) {
            (Some((_, map)), _) => Ok(map),
            (None, Some(error)) => Err(error),
            (None, None) => Err(super::queue::no_reply(&self.settings.command_timeout)),
        }
    }

    /// Asks a server for the slots, and for the epoch of what it says.
    async fn ask(&self, server: &Endpoint) -> Result<(u64, SlotMap), Error> {
        let address = Address::of(server.clone(), self.credentials.clone());
        let limit = self.settings.command_timeout;
        let asking = async {
            let connecting = address.connect_for_long(server, &self.settings);
            let mut connection = connecting.await?;
            let mut questions = redis::pipe();
            questions.cmd("CLUSTER").arg("INFO");
            questions.cmd("CLUSTER").arg("SLOTS");
            let answers = questions.query_async(&mut connection).await;
            answers.map_err(|error| address.failed(error, &self.settings))
        };
        let late = |_| Err(address.unavailable(&format!("no answer within {limit:?}")));
        let answers: (String, Value) = timeout(limit, asking).await.unwrap_or_else(late)?;
        let (info, slots) = answers;
        let epoch = info.lines().find_map(|line| {
            line.strip_prefix("cluster_current_epoch:")?
                .trim()
                .parse()
                .ok()
        });
        SlotMap::read(&slots, server.host().map_or("localhost", |(host, _)| host))
            .zip(epoch)
            .map(|(map, epoch)| (epoch, map))
            .ok_or_else(|| address.unavailable("it knows no primary of its cluster"))
    }

    /// Takes over the cluster's slots. Returns the nodes that are new.
    fn adopt(&self, map: &SlotMap, events: &impl Events) -> Vec<Node> {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let mut started = Vec::new();
        for (place, primary) in map.primaries.iter().enumerate() {
            let home = map.home_of(place);
            let known = routes.nodes.entry(primary.clone());
            let node = known.or_insert_with(|| {
                let node = self.node(primary, Home::at(home));
                started.push(node.clone());
                node
            });
            if let Some(known) = node.store.settings.names.home() {
                known.move_to(home);
            }
        }
        routes.nodes.retain(|primary, node| {
            let stays = map.primaries.contains(primary);
            if !stays {
                node.gone.notify_one();
            }
            stays
        });
        let stores: Vec<_> = map
            .primaries
            .iter()
            .map(|primary| &routes.nodes[primary].store)
            .collect();
        let owners: Vec<_> = map
            .owners()
            .map(|place| place.map(|place| Arc::clone(stores[place])))
            .collect();
        let has_moved = |(old, new): (&Option<Arc<RedisStore>>, &Option<Arc<RedisStore>>)| {
            old.as_ref().map(Arc::as_ptr) != new.as_ref().map(Arc::as_ptr)
        };
        let is_changed = routes.owners.iter().zip(&owners).any(has_moved);
        routes.owners = owners;
        drop(routes);
        self.adopted.notify_waiters();
        if is_changed {
            events.reconnected();
        }
        started
    }

    fn node(&self, primary: &Primary, home: Home) -> Node {
        let settings = Settings {
            names: Names::of_primary(&self.settings.names.prefix, self.id, &primary.id, home),
            ..self.settings.clone()
        };
        let address = Address::of(self.endpoint(primary), self.credentials.clone());
        let mut store = RedisStore::with(settings, address);
        store.redirected = Some(Arc::clone(&self.redirected));
        Node {
            store: Arc::new(store),
            gone: Arc::default(),
        }
    }

    fn endpoint(&self, primary: &Primary) -> Endpoint {
        self.seeds[0].at((primary.host.clone(), primary.port))
    }

    /// Sends what was left to a node that is no primary any more to the owners of its slots.
    fn reroute(&self, gone: &RedisStore) {
        for mut pending in gone.take_all() {
            pending.start_again();
            self.redirected.put(pending);
        }
    }

    /// Sends commands whose slots are on their way to where they go on.
    fn pass_on(&self) {
        for mut pending in self.redirected.take_going_on() {
            let store = match pending.asks() {
                Some(server) => self.at(server),
                None => self.owner(&pending.key),
            };
            match store {
                Some(store) => store.take_over(pending),
                // A server that has no slots yet is not known.
                None => {
                    pending.start_again();
                    self.redirected.put(pending);
                }
            }
        }
    }

    /// Returns the store of the primary of which another one has told.
    fn at(&self, server: &ToldAddress) -> Option<Arc<RedisStore>> {
        let is_it = |primary: &Primary| {
            primary.port == server.port && (server.host.is_empty() || primary.host == server.host)
        };
        let routes = self.routes();
        let mut nodes = routes.nodes.iter();
        let (_, node) = nodes.find(|(primary, _)| is_it(primary))?;
        Some(Arc::clone(&node.store))
    }

    /// Sends what has come back to the owners of its slots, or fails it if its time is over.
    fn resend(&self, events: &impl Events) {
        let now = Time::now();
        let mut homeless = Vec::new();
        for pending in self.redirected.take() {
            let is_over = match pending.ends_hold() {
                true => pending.is_over(now, self.settings.ttl, events),
                false => now.since(pending.submitted) > self.settings.command_timeout,
            };
            match self.owner(&pending.key) {
                _ if is_over => {
                    let error = no_owner();
                    let unknown = pending.is_known_there();
                    pending.finish(now, Err(Failure { error, unknown }), events);
                }
                Some(store) => store.take_over(pending),
                None => homeless.push(pending),
            }
        }
        self.redirected.put_back(homeless);
    }

    fn owner(&self, key: &LockKey) -> Option<Arc<RedisStore>> {
        let slot = slot(&lock_name(&self.settings.names.prefix, key));
        self.routes()
            .owners
            .get(usize::from(slot))
            .cloned()
            .flatten()
    }

    /// Returns the store for a long record's parts.
    fn owner_of_parts(&self, key: &LockKey) -> Result<Arc<RedisStore>, Error> {
        self.owner(key).ok_or_else(no_owner)
    }

    /// Returns the store of a key, also right after the manager was made.
    async fn known_owner(&self, key: &LockKey) -> Result<Arc<RedisStore>, Error> {
        self.slots_are_known().await?;
        self.owner_of_parts(key)
    }

    /// Waits for at most a command timeout.
    async fn slots_are_known(&self) -> Result<(), Error> {
        let limit = self.settings.command_timeout;
        let known = async {
            loop {
                let adopted = self.adopted.notified();
                if !self.routes().owners.is_empty() {
                    return;
                }
                adopted.await;
            }
        };
        timeout(limit, known)
            .await
            .map_err(|_| super::queue::no_reply(&limit))
    }

    fn routes(&self) -> RwLockReadGuard<'_, Routes> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn stores(&self) -> Vec<Arc<RedisStore>> {
        let routes = self.routes();
        routes
            .nodes
            .values()
            .map(|node| Arc::clone(&node.store))
            .collect()
    }

    /// Wakes all drivers, as if commands had been submitted.
    pub(crate) fn wake(&self) {
        for store in self.stores() {
            store.wake();
        }
        self.redirected.notify();
    }

    /// See [`Store::disconnect`](crate::store::Store::disconnect).
    pub(crate) fn disconnect(&self) {
        self.stores().iter().for_each(|store| store.disconnect());
    }

    /// Like [`RedisStore::replies_within`], and a command may be redirected meanwhile.
    pub(crate) fn replies_within(&self) -> Duration {
        self.settings.replies_within() + 2 * self.settings.command_timeout
    }

    pub(crate) fn time_to_put_aside(&self) -> Duration {
        super::long::time_to_put_aside(self.settings.command_timeout)
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.redirected.is_empty() && self.stores().iter().all(|store| store.is_drained())
    }

    pub(crate) fn is_connected(&self) -> bool {
        let stores = self.stores();
        !stores.is_empty() && stores.iter().all(|store| store.is_connected())
    }

    pub(crate) async fn put_aside(
        &self,
        key: &LockKey,
        record: &Record,
        hold: Duration,
        lost: impl Future,
    ) -> Result<Manifest, Error> {
        let store = self.owner_of_parts(key)?;
        store.put_aside(key, record, hold, lost).await
    }

    pub(crate) async fn discard(&self, key: &LockKey, manifest: Manifest) {
        if let Ok(store) = self.owner_of_parts(key) {
            store.discard(key, manifest.parts()).await;
        }
    }

    pub(crate) async fn fetch(
        &self,
        key: &LockKey,
        found: Bytes,
    ) -> Result<Result<Bytes, Damage>, Error> {
        self.owner_of_parts(key)?.fetch(key, found).await
    }

    pub(crate) async fn forget(&self, key: &LockKey) -> Result<bool, Error> {
        self.known_owner(key).await?.forget(key).await
    }

    /// Waits for all primaries: see [`RedisStore::ping`].
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        self.slots_are_known().await?;
        if self.routes().owners.iter().any(Option::is_none) {
            return Err(no_owner());
        }
        let stores = self.stores();
        let pings = stores.iter().map(|store| store.ping());
        try_join_all(pings).await.map(drop)
    }

    pub(crate) async fn inspect(&self, key: &LockKey) -> Result<LockReport, Error> {
        self.known_owner(key).await?.inspect(key).await
    }

    /// Lists the locks of one primary after the other, in the order of their ids.
    pub(crate) async fn list(&self, cursor: LockCursor) -> Result<LockPage, Error> {
        self.slots_are_known().await?;
        let mut nodes: Vec<(String, Arc<RedisStore>)> = {
            let routes = self.routes();
            let nodes = routes.nodes.iter();
            nodes
                .map(|(primary, node)| (primary.id.clone(), Arc::clone(&node.store)))
                .collect()
        };
        nodes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let Some((_, store)) = nodes.get(cursor.server) else {
            let (locks, next) = (Vec::new(), None);
            return Ok(LockPage { locks, next });
        };
        let mut page = store.list(cursor).await?;
        if page.next.is_none() && cursor.server + 1 < nodes.len() {
            page.next = Some(LockCursor {
                server: cursor.server + 1,
                position: 0,
                ..cursor
            });
        }
        Ok(page)
    }

    pub(crate) async fn force_release(&self, key: &LockKey) -> Result<bool, Error> {
        self.known_owner(key).await?.force_release(key).await
    }
}

fn no_owner() -> Error {
    let message = "no server of the cluster has the key's slot";
    Error::new(ErrorKind::Unavailable, message)
}

/// Runs the driver of a node, until all is finished or the node is no primary any more. What is in
/// flight then is in its queue again.
async fn drive(
    node: Node,
    connected: Option<Connected>,
    events: &impl Events,
    is_finished: impl Fn() -> bool,
) -> Arc<RedisStore> {
    tokio::select! {
        () = node.store.run(connected, events, is_finished) => {}
        () = node.gone.notified() => node.store.told.gone(&node.store.address.display()),
    }
    node.store
}
