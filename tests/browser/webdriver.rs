//! A browser, driven by [WebDriver](https://www.w3.org/TR/webdriver2/): as much of a client as
//! these tests need.

use std::io::{Read, Write};
use std::process::Stdio;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::{PATIENCE, soon};

const DRIVER: &str = "chromedriver";
const BROWSERS: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// A browser with one window. It ends with this value.
pub struct Browser {
    port: u16,
    session: String,
    /// Killed with this value, after [`Drop::drop`].
    _driver: Child,
}

/// Says what is missing, if something is.
pub fn is_installed() -> Result<(), String> {
    match (runs(DRIVER), browser()) {
        (true, Some(_)) => Ok(()),
        (false, _) => Err(format!("there is no {DRIVER}")),
        (true, None) => Err(format!("there is no {}", BROWSERS[0])),
    }
}

fn runs(program: &str) -> bool {
    let mut command = std::process::Command::new(program);
    command.arg("--version").stdout(Stdio::null());
    command
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn browser() -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let programs = BROWSERS
        .iter()
        .flat_map(|name| folders.iter().map(move |in_| in_.join(name)));
    let found = programs.into_iter().find(|program| program.is_file())?;
    Some(found.to_string_lossy().into_owned())
}

impl Browser {
    pub async fn start() -> Self {
        let mut driver = Command::new(DRIVER)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = soon("the driver starts", lines.next_line()).await.unwrap();
            let line = line.expect("the driver goes on");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').parse().unwrap();
            }
        };
        // Nothing may block the driver.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let mut browser = Self {
            port,
            session: String::new(),
            _driver: driver,
        };
        let options = json!({
            "binary": self::browser(),
            // In a container, there is no sandbox to be had, and little shared memory.
            "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                "--window-size=1440,1000", "--hide-scrollbars"],
        });
        let session = browser
            .call(
                "POST",
                "/session",
                &json!({"capabilities": {"alwaysMatch": {
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL"},
                }}}),
            )
            .await;
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, reply) = soon("the driver answers", self.http(method, path, body)).await;
        assert_eq!(status, 200, "{method} {path}: {reply:#}");
        reply["value"].clone()
    }

    async fn http(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        // The driver keeps the connection.
        let (mut stream, mut line) = (BufReader::new(stream), String::new());
        stream.read_line(&mut line).await.unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            let header = line.to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        let path = format!("{}{path}", self.session);
        self.call("POST", &path, &body).await
    }

    pub async fn open(&self, url: &str) {
        self.command("/url", json!({ "url": url })).await;
    }

    /// Runs a script, which returns something.
    pub async fn run(&self, script: &str, arguments: Value) -> Value {
        let body = json!({ "script": script, "args": arguments });
        self.command("/execute/sync", body).await
    }

    /// Like [`run`](Self::run), for one that returns a promise.
    pub async fn run_async(&self, script: &str, arguments: Value) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             (async (...given) => {{ {script} }})(...arguments).then(done, (e) => done(String(e)));"
        );
        let body = json!({ "script": script, "args": arguments });
        self.command("/execute/async", body).await
    }

    /// Waits until a script returns something that is as expected.
    pub async fn eventually(
        &self,
        what: &str,
        script: &str,
        arguments: Value,
        expected: impl Fn(&Value) -> bool,
    ) -> Value {
        let began = std::time::Instant::now();
        loop {
            let found = self.run(script, arguments.clone()).await;
            if expected(&found) {
                return found;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain until {what}: {found:#}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Presses keys, one after the other, wherever the focus is.
    pub async fn press(&self, keys: &str) {
        let mut actions = Vec::new();
        for key in keys.chars() {
            for what in ["keyDown", "keyUp"] {
                actions.push(json!({ "type": what, "value": key.to_string() }));
            }
        }
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": actions });
        self.command("/actions", json!({ "actions": [keyboard] }))
            .await;
    }

    /// A command of Chromium's own protocol.
    pub async fn chromium(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.command("/goog/cdp/execute", body).await
    }

    pub async fn prefers(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let command = "Emulation.setEmulatedMedia";
        self.chromium(command, json!({ "features": features }))
            .await;
    }

    pub async fn is_wide(&self, width: u32, height: u32) {
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.chromium("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// What the browser complained about: scripts that failed, and what the policy forbade.
    pub async fn complaints(&self) -> Vec<Value> {
        let log = self.command("/se/log", json!({ "type": "browser" })).await;
        log.as_array().unwrap().clone()
    }

    pub async fn picture(&self) -> Vec<u8> {
        let picture = self
            .chromium("Page.captureScreenshot", json!({ "format": "png" }))
            .await;
        let picture = picture["data"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD
            .decode(picture)
            .unwrap()
    }
}

/// Ends the session, and with it the browser, however the test ended: a driver that is killed would
/// leave it running.
impl Drop for Browser {
    fn drop(&mut self) {
        let end = || {
            let mut driver = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
            driver.set_read_timeout(Some(PATIENCE))?;
            let path = &self.session;
            write!(
                driver,
                "DELETE {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\n\r\n",
                self.port
            )?;
            // Until it has ended.
            driver.read_exact(&mut [0])
        };
        if let Err(error) = end() {
            eprintln!("the browser may still run: {error}");
        }
    }
}
