//! The name of this process.

/// Returns the host's name and the process id, as in `api-7d9f:1`.
pub(super) fn default_name() -> String {
    let host = host().unwrap_or_else(|| "unknown".to_owned());
    format!("{host}:{}", std::process::id())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn host() -> Option<String> {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    (!host.is_empty()).then(|| host.into_owned())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn host() -> Option<String> {
    let variables = ["HOSTNAME", "COMPUTERNAME"];
    variables
        .iter()
        .find_map(|variable| std::env::var(variable).ok())
        .filter(|host| !host.is_empty())
}
