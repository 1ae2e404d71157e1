//! The promises of `jarvis chat` to the person who types.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use support::client::{get, until_ok};
use support::eventually;
use support::metrics::until_metric;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::tokens::{SECRET, token};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

/// A running `jarvis chat`.
struct Chat {
    child: Child,
    /// Standard output: answers alone.
    output: Arc<Mutex<String>>,
    /// Standard error: everything else.
    notes: Arc<Mutex<String>>,
}

impl Chat {
    fn start(url: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_jarvis"))
            .args(["chat", "--url", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("jarvis chat");
        let output = collected(child.stdout.take().expect("stdout"));
        let notes = collected(child.stderr.take().expect("stderr"));
        Self { child, output, notes }
    }

    fn type_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{line}").expect("a line");
    }

    async fn until_shown(&self, text: &str) {
        until(&self.output, text).await;
    }

    async fn until_noted(&self, text: &str) {
        until(&self.notes, text).await;
    }
}

/// Collects what a process writes.
fn collected(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&text);
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(size @ 1..) = from.read(&mut part) {
            sink.lock().expect("a text").push_str(&String::from_utf8_lossy(&part[..size]));
        }
    });
    text
}

async fn until(written: &Mutex<String>, text: &str) {
    let written = || written.lock().expect("a text").clone();
    assert!(
        eventually(LIMIT, async || written().contains(text)).await,
        "{text:?} is not in {:?}",
        written()
    );
}

/// Runs the command to its end with this input, and returns its success, output and notes.
async fn ended(arguments: &[&str], input: &str, token: Option<String>) -> (bool, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_jarvis"));
    command.args(arguments).env_remove("JARVIS_TOKEN").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(token) = token {
        command.env("JARVIS_TOKEN", token);
    }
    let mut child = command.spawn().expect("jarvis");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(input.as_bytes()).await.expect("the input");
    drop(stdin);
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("its end");
    let output = output.expect("an output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
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
    let whole = format!("{answer}\n{}\n", expected("And another one"));
    assert_eq!(*chat.output.lock().expect("a text"), whole, "answers alone");
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
    second.until_noted("waiting at position 1").await;
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

#[tokio::test]
async fn one_question_with_piped_input_prints_its_answer_alone_and_goes_on_in_its_session() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "400"]));
    let replica = replica_with(&redis, &ollama, &[]).await;
    let session = Uuid::new_v4().to_string();
    let ask = |question| vec!["chat", "--url", &replica.url, "--session", &session, question];

    let (success, output, notes) = ended(&ask("why?"), "line one\nline two\n", None).await;
    let question = "why?\n\nline one\nline two";
    assert_eq!((success, output), (true, expected(question) + "\n"), "{notes}");
    let (success, output, notes) = ended(&ask("and then?"), "", None).await;
    assert_eq!((success, output), (true, expected("and then?") + "\n"), "{notes}");
    let stored = get(&replica, &format!("/api/v1/chat/sessions/{session}")).await;
    let texts: Vec<_> = stored.body["messages"].as_array().expect("messages").iter().collect();
    let texts: Vec<_> = texts.iter().map(|it| it["content"].as_str().expect("a text")).collect();
    let answers = [expected(question), expected("and then?")];
    assert_eq!(texts, [question, &answers[0], "and then?", &answers[1]]);
}

#[tokio::test]
async fn one_question_is_answered_whole_though_its_replica_is_killed() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "40"]));
    let replica = replica_with(&redis, &ollama, &[("JARVIS_LEASE_MS", "1000")]).await;
    let arguments = ["chat", "--url", &replica.url, "[[count tokens=60]] go"];
    let asking = ended(&arguments, "", None);
    let killing = async {
        until_metric(&replica, "a first token", |text| {
            text.lines().any(|line| {
                line.contains("time_to_first_token")
                    && line.contains("_count")
                    && line.ends_with(" 1")
            })
        })
        .await;
        replica.kill();
        replica.restart().expect("a replica");
    };
    let ((success, output, notes), ()) = tokio::join!(asking, killing);
    assert_eq!((success, output), (true, expected("[[count tokens=60]] go") + "\n"), "{notes}");
    assert!(notes.contains("reconnecting"), "{notes}");
}

#[tokio::test]
async fn a_question_without_an_answer_fails_and_says_why() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    let replica = replica_with(&redis, &ollama, &[]).await;
    let arguments = ["chat", "--url", &replica.url, "--model", "nosuch:1b", "why?"];
    let (success, output, notes) = ended(&arguments, "", None).await;
    assert_eq!((success, output.as_str()), (false, ""));
    assert!(notes.contains("nosuch:1b"), "{notes}");
    let long = "x".repeat(200 << 10);
    let (success, _, notes) = ended(&arguments, &long, None).await;
    assert!(!success && notes.contains("the input is longer"), "{notes}");
}

#[tokio::test]
async fn sessions_are_listed_and_found_by_their_words_in_the_terminal() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "400"]));
    let replica = replica_with(&redis, &ollama, &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let of_alice = || Some(token("alice"));
    let mut sessions = Vec::new();
    for question in ["apples are red", "pears are green"] {
        let session = Uuid::new_v4().to_string();
        let arguments = ["chat", "--url", &replica.url, "--session", &session, question];
        let (success, _, notes) = ended(&arguments, "", of_alice()).await;
        assert!(success, "{notes}");
        sessions.push(session);
    }
    let list = async |more: &[&str]| {
        let arguments = [&["sessions", "--url", &replica.url], more].concat();
        let (success, output, notes) = ended(&arguments, "", of_alice()).await;
        assert!(success, "{notes}");
        output
    };
    let all = list(&[]).await;
    let lines: Vec<_> = all.lines().collect();
    assert_eq!(lines.len(), 2, "{all}");
    assert!(lines[0].starts_with(&sessions[1]) && lines[0].ends_with("pears are green"), "{all}");
    assert!(lines[1].starts_with(&sessions[0]) && lines[1].ends_with("apples are red"), "{all}");
    assert_eq!(list(&["--limit", "1"]).await.lines().count(), 1);
    assert!(list(&["RED", "apples"]).await.starts_with(&sessions[0]));
    assert_eq!(list(&["nothing-has-this"]).await, "");
    let (success, output, notes) = ended(&["sessions", "--url", &replica.url], "", None).await;
    assert!(!success && output.is_empty() && notes.contains("JARVIS_TOKEN"), "{notes}");
}
