//! The scripts, one for each operation that no command of Redis does.
//!
//! They give Redis numbers as strings where they can, as Lua is slow at writing out numbers.

use std::sync::OnceLock;

/// A script, with the SHA-1 that Redis knows it by.
pub(super) struct Script {
    pub(super) source: &'static str,
    hash: OnceLock<String>,
}

pub(super) static ACQUIRE: Script = Script::new(include_str!("scripts/acquire.lua"));
pub(super) static RELEASE: Script = Script::new(include_str!("scripts/release.lua"));
pub(super) static GRANT: Script = Script::new(include_str!("scripts/grant.lua"));
pub(super) static RENEW: Script = Script::new(include_str!("scripts/renew.lua"));
pub(super) static COMPLETE: Script = Script::new(include_str!("scripts/complete.lua"));
/// These run once for each connection, and need not be kept by Redis.
pub(super) static SEED: Script = Script::new(include_str!("scripts/seed.lua"));
pub(super) static QUARANTINE: Script = Script::new(include_str!("scripts/quarantine.lua"));
/// For questions, which are rare.
pub(super) static INSPECT: Script = Script::new(include_str!("scripts/inspect.lua"));

/// This one is rare, and may go out over another connection.
pub(super) static FORGET: Script = Script::new(include_str!("scripts/forget.lua"));

/// Those that Redis is to know by their hashes.
pub(super) static LOADED: [&Script; 5] = [&ACQUIRE, &RELEASE, &GRANT, &RENEW, &COMPLETE];

impl Script {
    const fn new(source: &'static str) -> Self {
        let hash = OnceLock::new();
        Self { source, hash }
    }

    pub(super) fn hash(&self) -> &str {
        self.hash
            .get_or_init(|| redis::Script::new(self.source).get_hash().to_owned())
    }
}
