//! An answer that breaks off after any of its characters reads as if it had not.
#![allow(missing_docs, reason = "tests")]

mod support;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::client::{Socket, get, http, joined, kinds, post};
use support::fleet::ready_replicas;
use support::process::{Process, ollama_sim, ollama_sim_at};
use support::redis::RedisServer;

/// The separator between the characters of an answer, each of which is a piece.
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

const MODEL: &str = "tinyllama:latest";

struct Fleet {
    _redis: RedisServer,
    hosts: Vec<Process>,
    replicas: Vec<Process>,
}

impl Fleet {
    /// Starts two replicas, and a host for each of these models.
    async fn start(models: &[String]) -> Self {
        let redis = RedisServer::start();
        let hosts: Vec<_> = models
            .iter()
            .map(|model| ollama_sim(&["--slots", "1000", "--models", model]))
            .collect();
        let urls: Vec<_> = hosts.iter().map(|host| format!("{};slots=1000", host.url)).collect();
        let urls = urls.join(",");
        let settings = [("JARVIS_REDIS_TIMEOUT_MS", "10000"), ("JARVIS_QUEUE_SHARE", "1000")];
        let replicas = ready_replicas(2, &redis.url(), &urls, &settings).await;
        Self { _redis: redis, hosts, replicas }
    }

    async fn with_one_host() -> Self {
        Self::start(&[MODEL.to_owned()]).await
    }
}

/// Returns a question, the pieces of its answer, and the fault after the first `at` of them.
struct Question<'a> {
    model: &'a str,
    pieces: &'a [&'a str],
    at: usize,
    directives: String,
}

impl Question<'_> {
    async fn ask(self, fleet: &Fleet) -> Trial {
        let session = uuid::Uuid::new_v4().to_string();
        let path = format!("/ws?session_id={session}");
        let (mut asking, _) = Socket::open(&fleet.replicas[0], &path).await;
        let (reading, _) = Socket::open(&fleet.replicas[1], &path).await;
        let (text, directives) = (self.pieces.join(BY), self.directives);
        let message = format!("{session} [[{directives} by={BY} say]]{text}");
        asking.say(&json!({"type": "chat", "model": self.model, "message": message})).await;
        let (answer, before) = (self.pieces.concat(), self.pieces[..self.at].concat());
        Trial { asking, reading, answer, before, events: Vec::new() }
    }
}

/// A question whose answer breaks off, and a client that reads it from the second replica.
struct Trial {
    asking: Socket,
    reading: Socket,
    answer: String,
    /// Returns the text that a reader has when the answer breaks off.
    before: String,
    events: Vec<Value>,
}

impl Trial {
    /// Reads until the client has all text before the fault.
    async fn read_up_to_the_break(&mut self) {
        while joined(&self.events).len() < self.before.len() {
            self.events.push(self.reading.event().await);
        }
        assert_eq!(joined(&self.events), self.before);
    }

    /// Reads to the end: the client has the answer, and no text was taken back.
    async fn read_to_the_end(mut self) {
        self.events.extend(self.reading.until("stream_end").await);
        // Without a host turns wait, which is an event.
        self.events.retain(|event| event["type"] != "queued");
        let order = ["message_received", "stream_start", "stream_chunk", "stream_end"];
        assert_eq!(kinds(&self.events), order, "after {:?}", self.before);
        assert_eq!(joined(&self.events), self.answer, "after {:?}", self.before);
        let end = self.events.last().expect("an end");
        assert_eq!(end["full_response"], self.answer.as_str());
        drop(self.asking);
    }
}

fn characters(answer: &str) -> Vec<&str> {
    answer.split_inclusive(|_: char| true).collect()
}

#[tokio::test]
async fn a_stream_that_breaks_off_after_any_character_of_any_script_leaves_no_trace() {
    // Each answer has a host of its own: a host that breaks off too often in a row is left alone
    // for a while.
    let models: Vec<_> =
        (0..ANSWERS.len()).map(|number| format!("answer-{number}:latest")).collect();
    let fleet = Fleet::start(&models).await;
    join_all(ANSWERS.iter().zip(&models).map(async |(answer, model)| {
        let pieces = characters(answer);
        for at in 1..pieces.len() {
            let fault = ["cut", "error", "end"][at % 3];
            let directives = format!("fault={fault}@{at}");
            let question = Question { model, pieces: &pieces, at, directives };
            question.ask(&fleet).await.read_to_the_end().await;
        }
    }))
    .await;
    for (host, answer) in fleet.hosts.iter().zip(ANSWERS) {
        let stats = get(host, "/sim/stats").await.body;
        assert_eq!(stats["faulted"], characters(answer).len() - 1, "every one broke off: {stats}");
    }
}

#[tokio::test]
async fn a_writer_killed_after_any_character_of_any_script_leaves_no_trace() {
    let fleet = Fleet::with_one_host().await;
    let answers = ANSWERS.map(characters);
    let mut asked = Vec::new();
    for pieces in &answers {
        let questions = (1..pieces.len()).map(|at| {
            let directives = format!("fault=stall@{at}");
            Question { model: MODEL, pieces, at, directives }.ask(&fleet)
        });
        let mut now = join_all(questions).await;
        join_all(now.iter_mut().map(Trial::read_up_to_the_break)).await;
        asked.extend(now);
    }
    assert!(asked.len() > 200, "{} places", asked.len());
    fleet.replicas[0].kill();
    join_all(asked.into_iter().map(Trial::read_to_the_end)).await;
}

#[tokio::test]
async fn a_host_killed_after_any_character_of_any_script_leaves_no_trace() {
    let mut fleet = Fleet::with_one_host().await;
    let mut asked = Vec::new();
    let answers = ANSWERS.map(characters);
    for at in 1..answers.iter().map(Vec::len).max().expect("answers") {
        let longer: Vec<_> = answers.iter().filter(|pieces| at < pieces.len()).collect();
        let times = longer.len();
        // The fault is not in the message, because the host that is started again would repeat it.
        let stall =
            json!({"fault": "stall", "after_pieces": at, "times": times, "path": "/api/chat"});
        post(&fleet.hosts[0], "/sim/faults", &stall).await;
        let now = longer.into_iter().map(|pieces| {
            Question { model: MODEL, pieces, at, directives: String::new() }.ask(&fleet)
        });
        let mut now = join_all(now).await;
        join_all(now.iter_mut().map(Trial::read_up_to_the_break)).await;
        asked.extend(now);
    }
    assert!(asked.len() > 200, "{} places", asked.len());
    let address = fleet.hosts[0].url.replace("http://", "");
    fleet.hosts[0].kill();
    fleet.hosts[0] = ollama_sim_at(&address, &["--slots", "1000", "--models", MODEL]);
    join_all(asked.into_iter().map(Trial::read_to_the_end)).await;
}

#[tokio::test]
async fn a_model_that_goes_another_way_from_an_earlier_character_leaves_no_trace() {
    let fleet = Fleet::with_one_host().await;
    // The second piece is a token of several characters. From within it the model continues
    // otherwise.
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
    for pieces in answers {
        let directives = "strict fault=cut@2".to_owned();
        let question = Question { model: MODEL, pieces: &pieces, at: 2, directives };
        question.ask(&fleet).await.read_to_the_end().await;
    }
}

#[tokio::test]
async fn the_model_continues_after_whole_characters_and_before_blanks_and_half_an_emoji() {
    let fleet = Fleet::with_one_host().await;
    for (pieces, expected) in [
        (["fran\u{e7}", "ais"], vec!["fran\u{e7}"]),
        (["\u{4eca}\u{5929}", "\u{6c14}"], vec!["\u{4eca}\u{5929}"]),
        (["fran\u{e7}ais \n", "et"], vec!["fran\u{e7}ais", "fran\u{e7}ais \n"]),
        (["flag \u{1f1eb}", "\u{1f1f7}"], vec!["flag", "flag \u{1f1eb}"]),
    ] {
        let directives = "strict fault=cut@1".to_owned();
        let question = Question { model: MODEL, pieces: &pieces, at: 1, directives };
        question.ask(&fleet).await.read_to_the_end().await;
        let requests = get(&fleet.hosts[0], "/sim/requests").await.body;
        let requests = requests["requests"].as_array().expect("requests").clone();
        let continued = requests.iter().filter(|request| {
            request["path"] == "/api/generate" && request["options"]["num_predict"] != 1
        });
        let so_far: Vec<_> = continued
            .filter_map(|request| request["prompt"].as_str())
            .filter_map(|prompt| prompt.rsplit("<|im_start|>assistant\n").next())
            .collect();
        assert_eq!(so_far, expected, "{pieces:?}");
        http().delete(format!("{}/sim/requests", fleet.hosts[0].url)).send().await.expect("gone");
    }
}
