//! The clock of Redis is set, by libfaketime.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;

use super::Scene;
use crate::support::random::Random;
use crate::support::server_program;

/// The library (Debian: apt-get install faketime), if it is installed and this redis-server runs
/// with it.
pub async fn library() -> Option<&'static Path> {
    static LIBRARY: OnceCell<Option<PathBuf>> = OnceCell::const_new();
    LIBRARY.get_or_init(look).await.as_deref()
}

async fn look() -> Option<PathBuf> {
    let folders = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    let mut paths = folders
        .iter()
        .map(|folder| Path::new(folder).join("faketime/libfaketime.so.1"));
    let path = paths.find(|path| path.exists())?;
    let dir = std::env::temp_dir();
    // Where it does not go together with the server's memory allocator, even this hangs.
    let version = Command::new(server_program())
        .arg("--version")
        .envs(environment(&path, &dir))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    let status = tokio::time::timeout(Duration::from_secs(10), version).await;
    status.ok()?.ok()?.success().then_some(path)
}

/// The environment of a server whose clock can be set: see [`set`].
pub fn environment(library: &Path, dir: &Path) -> Vec<(String, String)> {
    // The first of them has the C library's own `malloc`: jemalloc, which Redis is linked with,
    // looks at the clock itself, and libfaketime needs memory to tell it.
    let preload = format!("libc_malloc_debug.so.0 {}", library.display());
    let file = dir.join("clock").display().to_string();
    [
        ("LD_PRELOAD", preload.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &file),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// At once: Redis never sees half a file.
pub fn set(dir: &Path, ms: i64) {
    let text = format!("{:+.3}\n", ms as f64 / 1000.0);
    std::fs::write(dir.join("clock.new"), text).unwrap();
    std::fs::rename(dir.join("clock.new"), dir.join("clock")).unwrap();
}

pub async fn disturb(scene: Arc<Scene>, forward: bool, mut random: Random) {
    let mut offset = 0;
    while scene.pause(random.millis(100, 900)).await {
        let step = match forward {
            true if random.chance(30) => random.below(3_600_000),
            true => random.below(1000),
            // What is locked then, by a worker that is killed, stays locked for that much longer.
            false => random.below(500),
        };
        let (name, step) = match forward {
            true => ("clock set forward", step as i64),
            false => ("clock set back", -(step as i64)),
        };
        offset += step;
        scene.fault(name, async { set(&scene.dir, offset) }).await;
    }
}
