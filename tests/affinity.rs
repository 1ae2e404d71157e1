//! A conversation that comes with each request goes to the host that has its beginning in its cache.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::client::{get, http, send, until_ok};
use support::eventually;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::tokens::{SECRET, token};

const COMPLETIONS: &str = "/v1/chat/completions";
const MODEL: &str = "tinyllama:latest";

struct Fleet {
    hosts: [Process; 3],
    replicas: [Process; 2],
    _redis: RedisServer,
}

/// Starts three hosts with one slot each, which have the model in memory, and two replicas.
async fn fleet(settings: &[(&str, &str)]) -> Fleet {
    let redis = RedisServer::start();
    let host = || ollama_sim(&["--rate", "2000"]);
    let hosts = [host(), host(), host()];
    let urls = hosts.each_ref().map(|host| &*host.url).join(",");
    let own = [
        ("JARVIS_OLLAMA_SLOTS", "1"),
        ("JARVIS_JWT_SECRET", SECRET),
        ("JARVIS_PRELOAD", "tinyllama"),
        ("JARVIS_USER_TURNS_PER_MINUTE", "1000"),
        ("JARVIS_TRUSTED_PROXIES", "127.0.0.1/32"),
    ];
    let settings = [&own, settings].concat();
    let replica = || jarvis(&redis.url(), &urls, &settings);
    let replicas = [replica(), replica()];
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    // Both replicas report the same of the hosts: that each has the model in memory.
    let loaded = async || {
        let has = |name: &str| {
            let host = format!("jarvis:{{queue}}:host:{name}");
            redis.cli(&["HGET", &host, "has:tinyllama:latest"]).trim() == "loaded"
        };
        let reports = redis.cli(&["HVALS", "jarvis:{queue}:reports"]);
        let reports: Vec<_> = reports.split_whitespace().collect();
        let names = redis.cli(&["SMEMBERS", "jarvis:{queue}:hosts"]);
        let names: Vec<_> = names.split_whitespace().collect();
        matches!(*reports, [one, two] if one == two)
            && names.len() == 3
            && names.iter().all(|it| has(it))
    };
    assert!(eventually(LIMIT, loaded).await, "the model is not loaded");
    Fleet { hosts, replicas, _redis: redis }
}

/// The caller: a user, or the address of a stranger.
#[derive(Clone, Copy)]
enum Caller {
    User(&'static str),
    Address(&'static str),
}

impl Fleet {
    fn ask(
        &self,
        replica: usize,
        caller: Caller,
        messages: &[Value],
        stream: bool,
    ) -> reqwest::RequestBuilder {
        let body = json!({"model": MODEL, "messages": messages, "stream": stream});
        let request = http().post(format!("{}{COMPLETIONS}", self.replicas[replica].url));
        match caller {
            Caller::User(name) => request.bearer_auth(token(name)),
            Caller::Address(address) => request.header("x-forwarded-for", address),
        }
        .json(&body)
    }

    /// Asks for an answer, and returns it with the position of its host.
    async fn answer(&self, replica: usize, caller: Caller, messages: &[Value]) -> (Value, usize) {
        let before = self.chats().await;
        let reply = send(self.ask(replica, caller, messages, false)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let after = self.chats().await;
        let host = (0..before.len()).find(|at| after[*at] > before[*at]).expect("a host");
        (reply.body["choices"][0]["message"].clone(), host)
    }

    /// Begins a long answer, and returns its response with the position of its host.
    async fn hold(&self, caller: Caller, messages: &[Value]) -> (reqwest::Response, usize) {
        let before = self.running().await;
        let mut response = self.ask(0, caller, messages, true).send().await.expect("a response");
        response.chunk().await.expect("a chunk");
        let mut host = None;
        let begun = async || {
            let after = self.running().await;
            host = (0..before.len()).find(|at| after[*at] > before[*at]);
            host.is_some()
        };
        assert!(eventually(LIMIT, begun).await, "it does not begin");
        (response, host.expect("a host"))
    }

    async fn end(&self, response: reqwest::Response, host: usize) {
        drop(response);
        let ended = async || self.running().await[host] == 0;
        assert!(eventually(LIMIT, ended).await, "it does not end");
        // The slot is free a moment after the host is.
        let free = async || {
            get(&self.replicas[0], "/metrics").await.body.as_str().is_some_and(|text| {
                let used = text.lines().filter(|line| line.starts_with("jarvis_slots_used"));
                used.into_iter().all(|line| line.ends_with(" 0"))
            })
        };
        assert!(eventually(LIMIT, free).await, "its slot is not free");
    }

    /// Returns how many chats each host has begun.
    async fn chats(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for host in &self.hosts {
            let asked = get(host, "/sim/requests").await.body;
            let asked = asked["requests"].as_array().cloned().unwrap_or_default();
            let is_chat =
                |asked: &&Value| asked["path"] == "/api/chat" && asked["outcome"] != "load";
            all.push(asked.iter().filter(is_chat).count());
        }
        all
    }

    async fn running(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for host in &self.hosts {
            all.push(get(host, "/sim/stats").await.body["running"].as_u64().expect("a number"));
        }
        all
    }

    /// Grows a conversation over six requests through both replicas. It begins at another host than
    /// an unknown conversation; returns it, its host, and the host of unknown ones.
    async fn grow(&self, caller: Caller) -> (Vec<Value>, usize, usize) {
        let other = question("[[tokens=100000 rate=20]] something else");
        let (holding, usual) = self.hold(Caller::User("carol"), &[other]).await;
        let mut messages = vec![json!({"role": "system", "content": "be brief"})];
        let mut at = None;
        let mut holding = Some(holding);
        for turn in 0..6 {
            messages.push(question(&format!("[[tokens=5]] question {turn}")));
            let (answer, host) = self.answer(turn % 2, caller, &messages).await;
            assert_eq!(*at.get_or_insert(host), host, "request {turn}");
            messages.push(json!({"role": "assistant", "content": answer["content"]}));
            if let Some(holding) = holding.take() {
                self.end(holding, usual).await;
            }
        }
        let host = at.expect("a host");
        assert_ne!(host, usual);
        (messages, host, usual)
    }
}

fn question(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_conversation_stays_at_one_host_through_two_replicas_and_waits_for_no_busy_one() {
    let fleet = fleet(&[]).await;
    let alice = Caller::User("alice");
    let (mut messages, host, usual) = fleet.grow(alice).await;
    // Another's same conversation is an unknown one.
    let asked = &messages[..messages.len() - 1];
    assert_eq!(fleet.answer(1, Caller::User("bob"), asked).await.1, usual);
    assert_eq!(fleet.answer(1, alice, asked).await.1, host, "asked again");
    // A question in the middle is asked in another way.
    let mut edited = messages[..messages.len() - 4].to_vec();
    edited.push(question("[[tokens=5]] or rather"));
    assert_eq!(fleet.answer(0, alice, &edited).await.1, host);
    // While its host is busy, it goes to another one at once.
    messages.push(question("[[tokens=100000 rate=20]] a long one"));
    let (holding, held) = fleet.hold(alice, &messages).await;
    assert_eq!(held, host);
    messages.pop();
    messages.push(question("[[tokens=5]] a short one"));
    let since = Instant::now();
    let (_, elsewhere) = fleet.answer(1, alice, &messages).await;
    assert_ne!(elsewhere, host);
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    drop(holding);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_conversation_of_an_address_is_its_own_and_that_of_nobody_is_not_known() {
    let fleet = fleet(&[]).await;
    let (messages, host, usual) = fleet.grow(Caller::Address("203.0.113.7")).await;
    let asked = &messages[..messages.len() - 1];
    assert_eq!(fleet.answer(0, Caller::Address("203.0.113.8"), asked).await.1, usual);
    // On loopback nobody is known.
    assert_eq!(fleet.answer(0, Caller::Address("127.0.0.1"), asked).await.1, usual);
    assert_eq!(fleet.answer(0, Caller::Address("203.0.113.7"), asked).await.1, host);
}
