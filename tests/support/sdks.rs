//! Programs that use the official packages of an API: the scripts `sdk.py` and `sdk.mjs` of a folder.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::programs::{find, run_folder};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use uuid::Uuid;

use super::client::{get, http, post};
use super::eventually;
use super::process::LIMIT;
use super::setup::{pair, setup_on};
use super::tokens::{SECRET, token};

/// The arguments of the host.
const HOST: [&str; 4] = ["--rate", "2000", "--models", "tinyllama,vision"];
/// How long a package may take for its next line.
const LINE_LIMIT: Duration = Duration::from_mins(2);

/// The language of a package.
#[derive(Clone, Copy)]
pub enum Sdk {
    Python,
    Node,
}

/// A program that uses the package.
pub struct Driver {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Sdk {
    /// Has the script of this folder check two replicas that sign users in, and compares the names of
    /// what has passed, which spaces separate.
    pub async fn passes_signed_in(self, folder: &str, checks: &str) {
        let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_USER_TURNS_PER_MINUTE", "2")];
        let pair = pair(&HOST, &settings).await;
        let [one, two] = &pair.replicas;
        let driver = self.run(folder, &["checks", &token("alice"), &one.url, &two.url]);
        assert_eq!(driver.checks().await.join(" "), checks);
    }

    /// Has the script of this folder check two replicas, and compares the names of what has passed.
    pub async fn passes(self, folder: &str, checks: &str) {
        let pair = pair(&HOST, &[]).await;
        let [one, two] = &pair.replicas;
        assert_eq!(self.run(folder, &[&one.url, &two.url]).checks().await.join(" "), checks);
    }

    /// Has the script of this folder ask two replicas whose queue is full, and compares the names of what
    /// has passed.
    pub async fn meets_a_full_queue(self, folder: &str) {
        let settings = [("JARVIS_OLLAMA_SLOTS", "1"), ("JARVIS_QUEUE_LIMIT", "1")];
        let pair = pair(&HOST, &settings).await;
        let [one, two] = &pair.replicas;
        let url = format!("{}/api/v1/chat/", one.url);
        let hold = async || {
            let body = json!({"message": "[[tokens=3000 rate=1]] on and on", "stream": true});
            http().post(&url).json(&body).send().await.expect("a response")
        };
        let running = hold().await;
        let runs = async || get(&pair.ollama, "/sim/stats").await.body["running"] == 1;
        assert!(eventually(LIMIT, runs).await, "the turn does not begin");
        let streams = [running, hold().await];
        let body = json!({"message": "[[tokens=1]] hi"});
        let is_full = async || {
            let [one, two] =
                [post(one, "/api/v1/chat/", &body).await, post(two, "/api/v1/chat/", &body).await];
            one.body["code"] == "queue_full" && two.body["code"] == "queue_full"
        };
        assert!(streams.iter().all(|stream| stream.status() == 200));
        assert!(eventually(LIMIT, is_full).await, "the queue has no end");
        let driver = self.run(folder, &["full", &one.url, &two.url]);
        assert_eq!(driver.checks().await, ["queue_full"]);
    }

    /// Begins an answer at one replica by this request, has the script of this folder read it from
    /// another one, and kills the first. Returns what the script has read, and the same answer as one
    /// reply.
    pub async fn reads_on(self, folder: &str, path: &str, mut request: Value) -> (Value, Value) {
        let pair = pair(&HOST, &[("JARVIS_LEASE_MS", "2000")]).await;
        let [writing, reading] = &pair.replicas;
        let key = Uuid::new_v4().to_string();
        let question = request["messages"][0]["content"].as_str().expect("a question").to_owned();
        let begun = http().post(format!("{}{path}", writing.url)).header("idempotency-key", &key);
        let mut begun = begun.json(&request).send().await.expect("a response");
        begun.chunk().await.expect("a chunk");
        let mut driver = self.run(folder, &["read", &key, &question, &reading.url]);
        assert_eq!(driver.line().await, Some(json!({"begun": true})));
        writing.kill();
        let read = driver.line().await.expect("the whole text");
        assert_eq!(driver.line().await, None);
        request["stream"] = json!(false);
        (read, post(reading, path, &request).await.body)
    }

    /// Runs each block of code in the package's language below a heading of a page in `docs`, against a
    /// replica in place of `HOST`. Checks that each block ends well and prints an answer.
    pub async fn runs_the_blocks_of(self, page: &str, heading: &str) {
        let setup = setup_on(&HOST, &[]).await;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
        let page = std::fs::read_to_string(path).expect("a page");
        let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect("the heading");
        let section = section.split("\n## ").next().unwrap_or_default();
        let fence = match self {
            Self::Python => "\n```python\n",
            Self::Node => "\n```js\n",
        };
        let blocks: Vec<_> = section.split(fence).skip(1).collect();
        assert!(!blocks.is_empty(), "{heading} has no block of code");
        for block in blocks {
            let code = block.split("\n```").next().unwrap_or_default();
            assert!(code.contains("http://HOST:10200"), "no HOST in\n{code}");
            let code = code.replace("http://HOST:10200", &setup.replica.url);
            let mut command = self.program();
            match self {
                Self::Python => command.arg("-c"),
                // Node.js looks for the modules of such code in the working directory.
                Self::Node => command
                    .args(["--input-type=module", "--eval"])
                    .current_dir(run_folder().join("node")),
            };
            let run = command.arg(&code).kill_on_drop(true).output();
            let output = timeout(LINE_LIMIT, run).await.expect("an end in time");
            let output = output.expect("a program: `make test` installs its packages");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}\n{code}\n{errors}", output.status);
            assert!(!output.stdout.trim_ascii().is_empty(), "no answer is printed by\n{code}");
        }
    }

    /// Runs the script of this folder of tests.
    pub fn run(self, folder: &str, arguments: &[&str]) -> Driver {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
        let mut command = self.program();
        match self {
            Self::Python => {
                let support = scripts.with_file_name("support");
                command.arg(scripts.join("sdk.py")).env("PYTHONPATH", support)
            }
            Self::Node => {
                command.arg(scripts.join("sdk.mjs")).arg(run_folder().join("node/node_modules"))
            }
        };
        command.args(arguments);
        Driver::start(command)
    }

    /// Returns the program that runs the code of the package's users.
    fn program(self) -> Command {
        match self {
            Self::Python => {
                let mut command = Command::new(run_folder().join("venv/bin/python"));
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Self::Node => Command::new(find("node").expect("Node.js")),
        }
    }
}

impl Driver {
    /// Starts a program that prints a line of JSON for each thing that it did.
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let spawned = command.spawn();
        let mut child = spawned.expect("a program: `make test` installs it from PyPI and npm");
        let output = child.stdout.take().expect("its output");
        Self { child, lines: BufReader::new(output).lines() }
    }

    /// Returns the next line; none where the program has ended well.
    pub async fn line(&mut self) -> Option<Value> {
        self.line_within(LINE_LIMIT).await
    }

    /// Returns the next line of the program as [`Driver::line`] does, waiting for so long at most.
    pub async fn line_within(&mut self, limit: Duration) -> Option<Value> {
        let line = timeout(limit, self.lines.next_line()).await.expect("a line in time");
        if let Some(line) = line.expect("output") {
            return Some(serde_json::from_str(&line).expect("JSON"));
        }
        let status = self.child.wait().await.expect("an end");
        let mut errors = String::new();
        let printed = self.child.stderr.as_mut().expect("its errors");
        printed.read_to_string(&mut errors).await.expect("a text");
        assert!(status.success(), "{status}\n{errors}");
        None
    }

    /// Returns the names of the checks that passed, once the program has ended well.
    pub async fn checks(mut self) -> Vec<String> {
        let mut passed = Vec::new();
        while let Some(line) = self.line().await {
            passed.push(line["check"].as_str().expect("a name").to_owned());
        }
        passed
    }
}
