//! The quickstart, as a new user starts it.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::support::{RedisServer, eventually_no_trace, soon};

/// The program that `cargo test` has built beside this one.
fn quickstart() -> Command {
    let this = std::env::current_exe().unwrap();
    let built = this.parent().unwrap().parent().unwrap();
    let program = built.join("examples/quickstart");
    assert!(
        program.exists(),
        "the quickstart is not built: cargo build --all-features --example quickstart"
    );
    let mut command = Command::new(program);
    for variable in ["REDIS_URL", "SENTINELS", "SENTINEL_MASTER"] {
        command.env_remove(variable);
    }
    command.stdout(Stdio::piped()).kill_on_drop(true);
    command
}

pub async fn the_quickstart_goes_on_when_its_reader_goes_away() {
    let mut child = quickstart().spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = soon("it says where the locks are", lines.next_line()).await;
    assert!(first.unwrap().unwrap().contains("memory"));
    drop(lines);
    assert!(soon("it ends", child.wait()).await.unwrap().success());
}

pub async fn the_quickstart_runs_two_nodes_on_one_redis() {
    let server = RedisServer::start().await;
    let mut child = quickstart().env("REDIS_URL", server.url()).spawn().unwrap();
    let mut shown = String::new();
    let mut output = child.stdout.take().unwrap();
    let read = soon("it ends", output.read_to_string(&mut shown)).await;
    read.unwrap();
    assert!(child.wait().await.unwrap().success(), "{shown}");
    for node in ["A", "B"] {
        let is_row = |line: &str| line.split_whitespace().nth(1) == Some(node);
        assert!(shown.lines().any(is_row), "node {node}: {shown}");
    }
    eventually_no_trace(&server.client().await).await;
}
