//! The promises of `jarvis chat` to the person who types.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use support::client::until_ok;
use support::eventually;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;

/// A running `jarvis chat`.
struct Chat {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Chat {
    fn start(url: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_jarvis"))
            .args(["chat", "--url", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("jarvis chat");
        let output = Arc::new(Mutex::new(String::new()));
        let (mut stdout, sink) = (child.stdout.take().expect("stdout"), Arc::clone(&output));
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(size @ 1..) = stdout.read(&mut part) {
                sink.lock().expect("a text").push_str(&String::from_utf8_lossy(&part[..size]));
            }
        });
        Self { child, output }
    }

    fn type_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{line}").expect("a line");
    }

    /// Returns the output without the remarks on the connection.
    fn shown(&self) -> String {
        let output = self.output.lock().expect("a text").clone();
        let mut parts = output.split(" [");
        let mut shown = parts.next().unwrap_or_default().to_owned();
        parts.for_each(|part| shown.push_str(part.split_once("] ").map_or("", |(_, rest)| rest)));
        shown
    }

    async fn until_shown(&self, text: &str) {
        let shown = eventually(LIMIT, async || self.shown().contains(text)).await;
        assert!(shown, "{text:?} is not in {:?}", self.shown());
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn replica_with(redis: &RedisServer, ollama: &Process, extra: &[(&str, &str)]) -> Process {
    let replica = jarvis(&redis.url(), &ollama.url, extra);
    until_ok(&replica, "/health/ready").await;
    replica
}

fn expected(message: &str) -> String {
    ollama_sim::script_answer("tinyllama:latest", message, None, 64)
}

#[tokio::test]
async fn an_answer_continues_in_the_terminal_after_its_replica_was_killed() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "25"]));
    let replica = replica_with(&redis, &ollama, &[("JARVIS_LEASE_MS", "1000")]).await;
    let mut chat = Chat::start(&replica.url);
    let question = "Tell me a story";
    let answer = expected(question);
    chat.type_line(question);
    let beginning: String = answer.chars().take(answer.chars().count() / 4).collect();
    chat.until_shown(&beginning).await;
    replica.kill();
    replica.restart().expect("a replica");
    chat.until_shown(&answer).await;
    // The next question is answered, too, and an empty line ends the conversation.
    chat.type_line("And another one");
    chat.until_shown(&expected("And another one")).await;
    chat.type_line("");
    let mut code = None;
    let ended = eventually(LIMIT, async || {
        let status = chat.child.try_wait().expect("a child");
        code = status.and_then(|status| status.code());
        code.is_some()
    });
    assert!(ended.await, "the command does not end");
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn a_question_that_waits_shows_its_position() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "20"]));
    let replica = replica_with(&redis, &ollama, &[("JARVIS_OLLAMA_SLOTS", "1")]).await;
    let mut first = Chat::start(&replica.url);
    first.type_line("[[count tokens=100]] first");
    first.until_shown("1 2 3").await;
    let mut second = Chat::start(&replica.url);
    second.type_line("[[count tokens=3]] second");
    second.until_shown("waiting at position 1").await;
    second.until_shown("1 2 3").await;
}

#[test]
fn without_a_replica_the_command_reports_that_and_fails() {
    let output = Command::new(env!("CARGO_BIN_EXE_jarvis"))
        .args(["chat", "--url", "http://127.0.0.1:9"])
        .stdin(Stdio::null())
        .output()
        .expect("jarvis chat");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("no server replies at http://127.0.0.1:9/"));
}
