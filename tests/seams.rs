//! What readers see of an answer that is broken off after any of its characters: nothing.
#![allow(missing_docs, reason = "tests")]

mod support;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::client::{Socket, get, http, joined, kinds, post, until_ok};
use support::process::{Process, jarvis, ollama_sim, ollama_sim_at};
use support::redis::RedisServer;
use tokio::time::Instant;

/// Between the characters of an answer, where each is a piece of its own.
const BY: &str = "\u{ac}";

/// Answers in many scripts: precomposed and combining marks, conjuncts, jamo, emoji sequences,
/// flags, keycaps, right-to-left text, code and tables.
const ANSWERS: [&str; 12] = [
    "Le gar\u{e7}on fran\u{e7}ais, de\u{301}ja\u{300}  l\u{e0}\u{a0}! ",
    "\u{bf}El ni\u{f1}o comi\u{f3} pi\u{f1}a?\n\u{a1}S\u{ed}!",
    "\u{4eca}\u{5929}\u{5929}\u{6c14}\u{5f88}\u{597d}\u{ff0c}\u{6211}\u{4eec}\u{3000}\u{6563}\u{6b65}\u{3002}",
    "\u{304c}\u{304b}\u{3099}\u{3067}\u{3059}\u{3002}\u{30ab}\u{30bf}\u{30ab}\u{30ca}\u{ff01}",
    "\u{645}\u{64e}\u{631}\u{652}\u{62d}\u{64e}\u{628}\u{627}\u{60c} \u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
    "\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947}, \u{915}\u{94d}\u{937}\u{92e}\u{93e} \u{915}\u{94d}\u{200d}\u{937}\u{964}",
    "\u{e27}\u{e31}\u{e19}\u{e19}\u{e35}\u{e49} \u{e40}\u{e23}\u{e32}",
    "\u{d55c}\u{ad6d}\u{c5b4} \u{1112}\u{1161}\u{11ab}\u{1100}\u{116e}\u{11a8}",
    "\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{1f3f3}\u{fe0f}\u{200d}\u{1f308} \u{1f1eb}\u{1f1f7}\u{1f1e9}\u{1f1ea}",
    "1\u{fe0f}\u{20e3} \u{2764}\u{fe0f}\u{1f44d}\u{1f3fd} \u{1f3f4}\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}.",
    "```py\ndef f(x):\n\treturn  {\"a\": [x]}\n```\n\nDone.",
    "| a | b |\n|:--|--:|\n| 1 | \u{e9} |\n\n",
];

struct Fleet {
    _redis: RedisServer,
    host: Process,
    replicas: Vec<Process>,
}

impl Fleet {
    async fn start() -> Self {
        let redis = RedisServer::start();
        let host = ollama_sim(&["--slots", "1000"]);
        let url = format!("{};slots=1000", host.url);
        let settings = [("JARVIS_LEASE_MS", "1000"), ("JARVIS_QUEUE_SHARE", "1000")];
        let replicas: Vec<_> = (0..2).map(|_| jarvis(&redis.url(), &url, &settings)).collect();
        for replica in &replicas {
            until_ok(replica, "/health/ready").await;
        }
        Self { _redis: redis, host, replicas }
    }
}

/// One question whose answer is broken off, and a client that reads it from the second replica.
struct Asked {
    asking: Socket,
    reading: Socket,
    answer: String,
    /// What a reader has when the answer breaks off.
    before: String,
    events: Vec<Value>,
}

impl Asked {
    /// The pieces of the answer are given; the fault strikes after the first `at` of them.
    async fn new(fleet: &Fleet, pieces: &[&str], at: usize, fault: &str, more: &str) -> Self {
        let session = uuid::Uuid::new_v4().to_string();
        let path = format!("/ws?session_id={session}");
        let (mut asking, _) = Socket::open(&fleet.replicas[0], &path).await;
        let (reading, _) = Socket::open(&fleet.replicas[1], &path).await;
        let text = pieces.join(BY);
        let fault = if fault.is_empty() { fault.to_owned() } else { format!("fault={fault}@{at}") };
        let message = format!("{session} [[{more} {fault} by={BY} say]]{text}");
        asking.say(&json!({"type": "chat", "message": message})).await;
        let (answer, before) = (pieces.concat(), pieces[..at].concat());
        Self { asking, reading, answer, before, events: Vec::new() }
    }

    /// Reads until the client has all that comes before the fault.
    async fn read_up_to_the_break(&mut self) {
        while joined(&self.events).len() < self.before.len() {
            self.events.push(self.reading.event().await);
        }
        assert_eq!(joined(&self.events), self.before);
    }

    /// Reads to the end: the client has the answer, and never had to give text back.
    async fn read_to_the_end(mut self) {
        self.events.extend(self.reading.until("stream_end").await);
        let order = ["message_received", "stream_start", "stream_chunk", "stream_end"];
        assert_eq!(kinds(&self.events), order, "after {:?}", self.before);
        assert_eq!(joined(&self.events), self.answer, "after {:?}", self.before);
        let end = self.events.last().expect("an end");
        assert_eq!(end["full_response"], self.answer.as_str());
        drop(self.asking);
    }
}

/// Asks for each answer as often as it has characters, each time with the fault after another.
async fn broken_after_every_character(fleet: &Fleet, fault: &str) -> Vec<Asked> {
    let mut all = Vec::new();
    for answer in ANSWERS {
        let pieces: Vec<&str> = answer.split_inclusive(|_: char| true).collect();
        let asked = (1..pieces.len()).map(|at| Asked::new(fleet, &pieces, at, fault, ""));
        all.extend(join_all(asked).await);
    }
    assert!(all.len() > 200, "{} places", all.len());
    all
}

#[tokio::test]
async fn a_stream_that_breaks_off_after_any_character_of_any_script_leaves_no_trace() {
    let fleet = Fleet::start().await;
    for fault in ["cut", "error", "end"] {
        let asked = broken_after_every_character(&fleet, fault).await;
        let turns = asked.len();
        join_all(asked.into_iter().map(Asked::read_to_the_end)).await;
        let stats = get(&fleet.host, "/sim/stats").await.body;
        assert!(stats["faulted"].as_u64() >= Some(turns as u64), "every one broke off: {stats}");
    }
}

#[tokio::test]
async fn a_writer_killed_after_any_character_of_any_script_leaves_no_trace() {
    let mut fleet = Fleet::start().await;
    let mut asked = broken_after_every_character(&fleet, "stall").await;
    join_all(asked.iter_mut().map(Asked::read_up_to_the_break)).await;
    fleet.replicas[0].kill();
    join_all(asked.into_iter().map(Asked::read_to_the_end)).await;
}

#[tokio::test]
async fn a_host_killed_after_any_character_of_any_script_leaves_no_trace() {
    let mut fleet = Fleet::start().await;
    let mut asked = Vec::new();
    let answers = ANSWERS.map(|answer| answer.split_inclusive(|_: char| true).collect::<Vec<_>>());
    for at in 1..answers.iter().map(Vec::len).max().expect("answers") {
        let longer: Vec<_> = answers.iter().filter(|pieces| at < pieces.len()).collect();
        let times = longer.len();
        let stall =
            json!({"fault": "stall", "after_pieces": at, "times": times, "path": "/api/chat"});
        post(&fleet.host, "/sim/faults", &stall).await;
        let now = longer.into_iter().map(|pieces| Asked::new(&fleet, pieces, at, "", ""));
        let mut now = join_all(now).await;
        join_all(now.iter_mut().map(Asked::read_up_to_the_break)).await;
        asked.extend(now);
    }
    assert!(asked.len() > 200, "{} places", asked.len());
    let address = fleet.host.url.replace("http://", "");
    fleet.host.kill();
    fleet.host = ollama_sim_at(&address, &["--slots", "1000"]);
    join_all(asked.into_iter().map(Asked::read_to_the_end)).await;
}

#[tokio::test]
async fn a_model_that_goes_another_way_from_an_earlier_character_leaves_no_trace() {
    let fleet = Fleet::start().await;
    // The second piece is a token of several characters. From within it the model goes another way.
    let answers = [
        ["fr", "an\u{e7}", "ais"],
        ["ni", "n\u{303}\u{f1}", "o"],
        ["\u{4eca}", "\u{5929}\u{5929}", "\u{6c14}"],
        ["\u{304c}", "\u{304b}\u{3099}", "\u{3067}"],
        ["\u{645}", "\u{631}\u{62d}", "\u{628}"],
        ["\u{928}", "\u{92e}\u{938}\u{94d}", "\u{924}\u{947}"],
        ["\u{e27}", "\u{e31}\u{e19}\u{e35}\u{e49}", "\u{e01}"],
        ["\u{d55c}", "\u{ad6d}\u{1112}\u{1161}", "\u{11ab}"],
        ["a ", "b \u{1f44d}", "\u{1f3fd} c"],
        ["a ", "b \u{1f1eb}", "\u{1f1f7} c"],
        ["a ", "b 1\u{fe0f}", "\u{20e3} c"],
        ["a ", "b \u{1f469}\u{200d}", "\u{1f469} c"],
        ["one", " two\n\n", "three"],
        ["if x:", "\n\t", "return"],
        ["| a", " | \n", "| b |"],
    ];
    for fault in ["cut", "error", "end"] {
        let asked = answers.iter().map(|pieces| Asked::new(&fleet, pieces, 2, fault, "strict"));
        join_all(join_all(asked).await.into_iter().map(Asked::read_to_the_end)).await;
    }
}

#[tokio::test]
async fn the_model_goes_on_after_whole_characters_and_before_blanks_and_half_an_emoji() {
    let fleet = Fleet::start().await;
    for (pieces, expected) in [
        (["fran\u{e7}", "ais"], vec!["fran\u{e7}"]),
        (["\u{4eca}\u{5929}", "\u{6c14}"], vec!["\u{4eca}\u{5929}"]),
        (["fran\u{e7}ais \n", "et"], vec!["fran\u{e7}ais", "fran\u{e7}ais \n"]),
        (["flag \u{1f1eb}", "\u{1f1f7}"], vec!["flag", "flag \u{1f1eb}"]),
    ] {
        let asked = Asked::new(&fleet, &pieces, 1, "cut", "strict").await;
        asked.read_to_the_end().await;
        let requests = get(&fleet.host, "/sim/requests").await.body;
        let requests = requests["requests"].as_array().expect("requests").clone();
        let continued = requests.iter().filter(|request| {
            request["path"] == "/api/generate" && request["options"]["num_predict"] != 1
        });
        let so_far: Vec<_> = continued
            .filter_map(|request| request["prompt"].as_str())
            .filter_map(|prompt| prompt.rsplit("<|im_start|>assistant\n").next())
            .collect();
        assert_eq!(so_far, expected, "{pieces:?}");
        http().delete(format!("{}/sim/requests", fleet.host.url)).send().await.expect("gone");
    }
}
