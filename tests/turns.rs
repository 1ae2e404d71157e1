//! One turn as its clients see it: its beginning, its continuations, and the report at its end.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jarvis::redis::{Listener, MESSAGES, Subscriptions};
use serde_json::{Value, json};
use support::client::{Socket, chat, get, joined, kinds, post, until_ok};
use support::eventually;
use support::fleet::Fleet;
use support::process::{LIMIT, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::store;
use tokio::sync::mpsc;
use uuid::Uuid;

const MODEL: &str = "tinyllama:latest";

impl Fleet {
    async fn socket(&self, replica: usize, session: &str) -> Socket {
        Socket::open(&self.replicas[replica], &format!("/ws?session_id={session}")).await.0
    }

    async fn stored_answer(&self, session: &str) -> Value {
        let path = format!("/api/v1/chat/sessions/{session}");
        let history = get(&self.replicas[self.replicas.len() - 1], &path).await.body;
        let messages = history["messages"].as_array().expect("messages");
        messages.last().expect("an answer").clone()
    }
}

fn id() -> String {
    Uuid::new_v4().to_string()
}

fn expected(message: &str) -> String {
    ollama_sim::script_answer(MODEL, message, None, 1000)
}

/// Receives what is published on a channel, as another replica does.
struct Published(mpsc::Sender<String>);

impl Listener for Published {
    fn message(&self, _channel: &str, payload: &str) {
        let _ = self.0.try_send(payload.to_owned());
    }

    fn gap(&self) {}
}

async fn ask(socket: &mut Socket, message: &Value) -> Value {
    socket.say(message).await;
    socket.until("stream_end").await.pop().expect("an end")
}

#[tokio::test]
async fn a_waiting_turn_begins_as_soon_as_the_turn_before_it_ends() {
    const TURNS: usize = 9;
    let fleet = Fleet::start(2, &["--rate", "100"], &[]).await;
    let session = id();
    let (mut here, mut there) = (fleet.socket(0, &session).await, fleet.socket(1, &session).await);
    assert_eq!(chat(&fleet.replicas[0], &session, "[[tokens=3]] warm").await.status, 200);
    here.until("stream_end").await;
    let turn = |n: usize| json!({"type": "chat", "message": format!("[[tokens=20]] turn {n}")});
    // All turns but the first wait, in turn on either replica, so that their replicas join the
    // queue at different times.
    for n in 0..TURNS {
        let socket = if n % 2 == 0 { &mut here } else { &mut there };
        socket.say(&turn(n)).await;
    }
    let mut gaps = Vec::new();
    let mut ended: Option<Instant> = None;
    for _ in 0..TURNS {
        here.until("stream_start").await;
        gaps.extend(ended.map(|ended| ended.elapsed()));
        here.until("stream_end").await;
        ended = Some(Instant::now());
    }
    gaps.sort_unstable();
    let median = gaps[gaps.len() / 2];
    println!("from an end to the next beginning: {gaps:?}");
    assert!(median < Duration::from_millis(300), "{gaps:?}");
}

#[tokio::test]
async fn an_end_lists_each_continuation_and_its_reason_and_so_does_the_stored_answer() {
    let models = "tinyllama,thinker";
    let fleet = Fleet::start(1, &["--models", models, "--rate", "500"], &[]).await;
    for (message, think, continued) in [
        ("[[tokens=40]] undisturbed", false, json!(null)),
        (
            "[[tokens=60 fault=cut@20 fault=cut@15]] twice",
            false,
            json!([
                {"how": "exact", "why": "upstream_interrupted"},
                {"how": "exact", "why": "upstream_interrupted"},
            ]),
        ),
        // Where the host breaks off before the first piece, there is nothing to be continued.
        ("[[tokens=20 fault=refuse]] at once", false, json!(null)),
        (
            "[[tokens=40 think=20 fault=error@30]] anew",
            true,
            json!([{"how": "restarted", "why": "upstream_interrupted"}]),
        ),
        // The model would not have continued with the blanks that readers have.
        (
            "[[strict fault=cut@1 by=| say]]one  |two| three",
            false,
            json!([{"how": "approximate", "why": "upstream_interrupted"}]),
        ),
    ] {
        let session = id();
        let mut socket = fleet.socket(0, &session).await;
        let model = if think { "thinker" } else { "tinyllama" };
        let turn = json!({"type": "chat", "message": message, "model": model, "think": think,
            "temperature": 0});
        let end = ask(&mut socket, &turn).await;
        assert_eq!(end["continued"], continued, "{message}");
        assert_eq!(fleet.stored_answer(&session).await["continued"], continued, "{message}");
        assert!(!end["full_response"].as_str().expect("a text").is_empty(), "{message}");
    }
}

#[tokio::test]
async fn a_writer_that_takes_over_lists_the_continuations_before_it_too() {
    let extra = [("JARVIS_LEASE_MS", "1000")];
    let fleet = Fleet::start(2, &["--rate", "60"], &extra).await;
    let session = id();
    let message = "[[tokens=200 fault=cut@20]] go on";
    let (mut asking, mut watching) =
        (fleet.socket(0, &session).await, fleet.socket(1, &session).await);
    asking.say(&json!({"type": "chat", "message": message, "temperature": 0})).await;
    let mut events = Vec::new();
    let after_the_cut: String =
        ollama_sim::script_pieces(MODEL, message, None, 1000).into_iter().take(40).collect();
    while joined(&events).len() < after_the_cut.len() {
        events.push(watching.event().await);
    }
    fleet.replicas[0].kill();
    events.extend(watching.until("stream_end").await);
    let end = events.last().expect("an end");
    let continued = json!([
        {"how": "exact", "why": "upstream_interrupted"},
        {"how": "exact", "why": "replica_gone"},
    ]);
    assert_eq!(end["continued"], continued);
    assert_eq!(end["full_response"], expected(message).as_str());
    // The next turn begins without continuations.
    let next = ask(&mut watching, &json!({"type": "chat", "message": "[[tokens=5]] next"})).await;
    assert_eq!(next["continued"], json!(null));
}

#[tokio::test]
async fn an_answer_that_ends_without_the_count_of_its_host_still_has_its_usage() {
    let context = ["--model-ctx", "1000000", "--slots", "4"];
    let extra = [("JARVIS_NUM_CTX", "1000000"), ("JARVIS_MAX_TOKENS", "1000000")];
    let fleet = Fleet::start(1, &context, &extra).await;
    // The turns end by their size, and by the repetitions of the model.
    for (message, reason) in
        [("[[tokens=400000]] endless", "length"), ("[[tokens=50 repeat]] again", "repetition")]
    {
        let session = id();
        let turn = json!({"message": message, "session_id": session, "max_tokens": -1});
        let reply = post(&fleet.replicas[0], "/api/v1/chat", &turn).await;
        assert_eq!((reply.status, &reply.body["finish_reason"]), (200, &json!(reason)));
        let tokens = |name: &str| reply.body["usage"][name].as_u64().expect("a count");
        let text = reply.body["response"].as_str().expect("a text");
        let counted = ollama_sim::count_tokens(text) as u64;
        let completion = tokens("completion_tokens");
        // The host reported no count. A piece is at least one token, and of this model about two.
        assert!(completion <= counted && completion * 3 >= counted, "{completion} of {counted}");
        assert!((3..100).contains(&tokens("prompt_tokens")), "{}", reply.body["usage"]);
        assert_eq!(fleet.stored_answer(&session).await["usage"], reply.body["usage"]);
    }
}

#[tokio::test]
async fn a_host_whose_every_try_brings_only_a_few_pieces_keeps_a_turn_for_seconds_not_minutes() {
    let fleet = Fleet::start(1, &[], &[]).await;
    let session = id();
    let mut socket = fleet.socket(0, &session).await;
    let asked = Instant::now();
    socket.say(&json!({"type": "chat", "message": "[[tokens=500 fault=cut@2!]] a crawl"})).await;
    let events = socket.until("error").await;
    let error = events.last().expect("an error");
    assert_eq!(error["code"], "upstream_interrupted", "{error}");
    // Twelve attempts took three minutes.
    assert!(asked.elapsed() < Duration::from_secs(40), "{:?}", asked.elapsed());
    assert!(!joined(&events).is_empty(), "what there was is kept");
    let chats = get(&fleet.ollama, "/sim/stats").await.body;
    assert!(chats["faulted"].as_u64().expect("a count") >= 4, "it was tried again: {chats}");
}

#[tokio::test]
async fn a_host_that_breaks_off_often_and_makes_progress_brings_the_whole_answer() {
    let fleet = Fleet::start(1, &[], &[]).await;
    let faults = (1..=9).map(|_| "fault=cut@20").collect::<Vec<_>>().join(" ");
    let message = format!("[[tokens=250 {faults}]] in steps");
    let asked = Instant::now();
    let reply = chat(&fleet.replicas[0], &id(), &message).await;
    assert_eq!((reply.status, reply.body["response"].as_str()), (200, Some(&*expected(&message))));
    assert!(asked.elapsed() < LIMIT, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_response_in_one_piece_has_the_reasoning_as_rest_has_it() {
    let models = ["--models", "thinker", "--rate", "500"];
    let fleet = Fleet::start(2, &models, &[("JARVIS_DEFAULT_MODEL", "thinker")]).await;
    let session = id();
    let (mut whole, mut stream) =
        (fleet.socket(0, &session).await, fleet.socket(1, &session).await);
    let mut turn = json!({"type": "chat", "message": "[[tokens=20 think=15]] why?", "think": true,
        "stream": false, "message_id": "once"});
    whole.say(&turn).await;
    let response = whole.until("response").await.pop().expect("a response");
    let streamed = stream.until("stream_end").await;
    let reasoning: String = streamed
        .iter()
        .filter(|event| event["type"] == "stream_thinking")
        .filter_map(|event| event["content"].as_str())
        .collect();
    assert!(!reasoning.is_empty());
    assert_eq!(response["thinking"], reasoning.as_str());
    assert_eq!(response["content"], joined(&streamed).as_str());
    // A stored turn has the same, and one without continuations has none.
    whole.say(&turn).await;
    let again = whole.until("response").await.pop().expect("a response");
    assert_eq!(again["thinking"], reasoning.as_str());
    turn = json!({"type": "chat", "message": "[[tokens=5]] no", "stream": false});
    whole.say(&turn).await;
    let plain = whole.until("response").await;
    assert_eq!(kinds(&plain), ["message_received", "response"]);
    assert_eq!(plain[1].get("thinking"), None);
}

#[tokio::test]
async fn a_continuation_leaves_nothing_in_redis_when_its_turn_has_ended() {
    let fleet = Fleet::start(1, &["--rate", "200"], &[]).await;
    let session = id();
    let mut socket = fleet.socket(0, &session).await;
    let message = "[[tokens=60 fault=cut@20]] go on";
    socket.say(&json!({"type": "chat", "message": message})).await;
    let keys = || fleet.redis.cli(&["KEYS", &format!("*:s:{session}:messages")]);
    let noted = || fleet.redis.cli(&["HGET", keys().trim(), "continued"]).trim().to_owned();
    assert!(
        testkit::eventually(LIMIT, async || noted().contains("approximate")).await,
        "not noted"
    );
    socket.until("stream_end").await;
    assert_eq!(noted(), "");
}

#[tokio::test]
async fn text_is_published_while_the_writer_has_lost_its_subscription_and_another_replica_has_one()
{
    let redis = RedisServer::start();
    let user = |rule: &str| {
        let words = ["ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", rule];
        assert_eq!(redis.cli(&words).trim(), "OK");
    };
    user("+ssubscribe");
    let ollama = ollama_sim(&["--rate", "40"]);
    let writer = jarvis(&redis.url_as("ann:secret"), &ollama.url, &[]);
    until_ok(&writer, "/health/ready").await;
    let session = Uuid::new_v4();
    let message = "[[tokens=200]] published";
    let (mut socket, _) = Socket::open(&writer, &format!("/ws?session_id={session}")).await;
    socket.say(&json!({"type": "chat", "message": message})).await;
    socket.until("stream_chunk").await;
    // The other replica.
    let (sender, mut published) = mpsc::channel(4096);
    let listener: Arc<dyn Listener> = Arc::new(Published(sender));
    let other = store::connect(&redis.url()).await;
    let subscriptions =
        Subscriptions::start_with(&other, &listener, 1, MESSAGES).expect("a client");
    let channel = jarvis::session::store::channel(session.to_string().parse().expect("an id"));
    subscriptions.subscribe(&channel).await.expect("a subscription");
    let subscribers = || redis.cli(&["PUBSUB", "SHARDNUMSUB", &channel]);
    assert!(subscribers().trim().ends_with('2'), "{}", subscribers());
    // The writer's connections are lost, and its subscriptions are refused from then on.
    user("-ssubscribe");
    redis.cli(&["CLIENT", "KILL", "USER", "ann", "TYPE", "pubsub"]);
    let is_lost = eventually(LIMIT, async || subscribers().trim().ends_with('1'));
    assert!(is_lost.await, "{}", subscribers());
    // Text from before may still be on its way.
    let mut is_piece = async || loop {
        let published = tokio::time::timeout(LIMIT, published.recv()).await;
        let payload = published.expect("text is published").expect("a subscription");
        if payload.starts_with('p') {
            return;
        }
    };
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        is_piece().await;
    }
    // The writer's own clients lack nothing either.
    let events = socket.until("stream_end").await;
    let end = events.last().expect("an end");
    let text = ollama_sim::script_answer(MODEL, message, None, 1000);
    assert_eq!(end["full_response"], text.as_str());
    let pieces = events.iter().filter(|event| event["type"] == "stream_chunk").count();
    // A read once a second would bring some five.
    assert!(pieces > 60, "{pieces} pieces of 200 tokens: the writer's clients waited for reads");
}
