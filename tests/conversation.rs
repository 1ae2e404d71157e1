//! Turns that bring their own conversation: the prompt of the model, and the parts that are stored.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use jarvis::budget::StorageLimits;
use jarvis::config::{LimitSettings, Titles};
use jarvis::generation::{GenerationSettings, Generations, host_reports};
use jarvis::limits::RateLimits;
use jarvis::membership::MembershipStore;
use jarvis::ollama::Fleet;
use jarvis::queue::{Queue, QueueLimits, QueueStore};
use jarvis::session::model::ToolCall;
use jarvis::session::store::{
    Acceptance, Begin, Cancellation, Claim, ClaimAttempt, Clearing, IdempotencyKey, NewTurn,
    OwnConversation, Proposal, REQUEST_BYTES, ReadFrom, ReadOutcome, Restored, SessionLimits, Turn,
    Written, bucket, channel, message,
};
use jarvis::session::{
    Control, Cursor, Feeds, GenerationId, Message, Owner, Role, SessionId, Status, Store,
    StoreError, Tag,
};
use jarvis::source::SourceKey;
use serde_json::{Value, json};
use support::client::get;
use support::eventually;
use support::process::{LIMIT, Process, ollama_sim};
use support::redis::RedisServer;
use support::redis_time::{begin_timing, takes_moments, timed_calls};
use support::samples;
use support::store::{connect, new_turn, retried};
use tokio::runtime::Runtime;

const MODEL: &str = "tinyllama:latest";
const OWNER: Owner = Owner::Anonymous;
/// The time without a heartbeat after which a replica is gone.
const LEASE: Duration = Duration::from_millis(600);

fn said(role: Role, content: &str) -> Message {
    Message { content: content.to_owned(), ..message(role, Utc::now()) }
}

/// Returns a message of each role, and texts that are awkward to store.
fn conversation() -> Vec<Message> {
    vec![
        said(Role::System, "Be brief.\nBe kind."),
        said(Role::User, "first"),
        said(Role::Assistant, "\u{2}an answer that begins as thoughts do"),
        said(Role::Tool, "{\"degrees\": 21}"),
        said(Role::Assistant, ""),
    ]
}

/// Returns the messages as the model gets them.
fn as_sent(messages: &[Message], question: &str) -> Value {
    let sent =
        messages.iter().map(|message| json!({"role": message.role, "content": message.content}));
    sent.chain([json!({"role": "user", "content": question})]).collect()
}

fn own_turn(question: &str, messages: Vec<Message>) -> NewTurn {
    let conversation = Some(OwnConversation::new(messages).expect("not too large"));
    NewTurn { conversation, ..new_turn(MODEL, question) }
}

/// A replica in a runtime of its own, which ends as abruptly as in a crash.
struct Replica {
    runtime: Option<Runtime>,
    generations: Generations,
    store: Store,
}

impl Replica {
    fn start(server: &RedisServer, ollama: &Process) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Runtime::new().expect("a runtime");
        let (generations, store) = runtime.block_on(async {
            let redis = connect(&server.url()).await;
            let name = uuid::Uuid::new_v4().to_string();
            let limits =
                QueueLimits { waiting: 100, waiting_of_source: 100, running_of_address: 100 };
            let queue = QueueStore::new(redis.clone(), name.clone(), limits);
            let store = Store::new(redis.clone(), name.clone(), SessionLimits::default());
            let feeds = Feeds::start(&redis, store.clone()).expect("feeds");
            let membership = MembershipStore::new(redis.clone(), name);
            let fleet = Fleet::new(samples::hosts(&[&ollama.url], 2, LIMIT));
            let fleet = fleet.expect("a fleet");
            let reports = fleet.clone();
            let queue =
                Queue::start(&redis, queue, move || host_reports(&reports)).expect("a queue");
            let host_wait = Duration::from_secs(20);
            let limits = RateLimits::start(&redis, membership.clone(), LimitSettings::default());
            let settings = GenerationSettings {
                limits,
                num_ctx_cap: 4096,
                host_wait,
                abandon_after: Duration::from_mins(5),
                lease: LEASE,
                storage: StorageLimits::default(),
                source_key: SourceKey::default(),
                titles: Titles::default(),
            };
            let generations =
                Generations::start(store.clone(), feeds, fleet, queue, membership, settings);
            (generations, store)
        });
        Self { runtime: Some(runtime), generations, store }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it lives").block_on(work)
    }

    fn submit(&self, session: SessionId, new: NewTurn) -> Result<GenerationId, StoreError> {
        let submitted = self.run(self.generations.submit(&OWNER, session, new, &mut None));
        match submitted {
            Ok(submitted) => Ok(submitted.generation),
            Err(jarvis::generation::SubmitError::Store(error)) => Err(error),
            Err(error) => panic!("not submitted: {error}"),
        }
    }

    fn kill(&mut self) {
        self.runtime.take().expect("it lives").shutdown_background();
    }

    /// Waits for the end of the answer and returns it.
    fn answer(&self, session: SessionId, generation: GenerationId) -> Message {
        self.run(async {
            let mut found = None;
            let ended = eventually(LIMIT, async || {
                let message = self.store.find_message(&OWNER, session, generation.0).await;
                found = message.ok().flatten();
                found.is_some()
            });
            assert!(ended.await, "no answer");
            found.expect("an answer").message
        })
    }

    /// Waits until this many bytes of the answer are stored.
    fn wait_for_text(&self, server: &RedisServer, session: SessionId, bytes: usize) {
        let key = format!("{}:answer", channel(session));
        let length = || server.cli(&["STRLEN", &key]).trim().parse::<usize>().expect("a length");
        assert!(self.run(eventually(LIMIT, async || length() >= bytes)), "no text");
    }

    fn journal(&self, ollama: &Process) -> Vec<Value> {
        let reply = self.run(get(ollama, "/sim/requests"));
        reply.body["requests"].as_array().cloned().unwrap_or_default()
    }
}

fn expected(question: &str) -> String {
    ollama_sim::script_answer(MODEL, question, None, 1000)
}

/// Returns the seconds until a session's hash expires, and whether all its keys expire.
fn expires(server: &RedisServer, session: SessionId) -> i64 {
    let keys = server.cli(&["KEYS", &format!("{}*", channel(session))]);
    let times = keys.lines().map(|key| {
        let seconds: i64 = server.cli(&["TTL", key]).trim().parse().expect("seconds");
        assert!(seconds > 0, "{key} never expires");
        (key, seconds)
    });
    let times: Vec<_> = times.filter(|(key, _)| !key.contains(":ended:")).collect();
    times.iter().map(|(_, seconds)| *seconds).max().expect("a key")
}

#[test]
fn the_model_gets_exactly_the_conversation_that_came_with_the_turn() {
    let (server, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "500"]));
    let replica = Replica::start(&server, &ollama);
    let session = SessionId::random();
    let question = "[[tokens=20]] what now?";
    let generation = replica.submit(session, own_turn(question, conversation())).expect("accepted");
    let answer = replica.answer(session, generation);
    assert_eq!((answer.content, answer.status), (expected(question), Some(Status::Complete)));
    let chats: Vec<Value> = replica.journal(&ollama);
    let chat = chats.iter().find(|entry| entry["path"] == "/api/chat").expect("a chat");
    assert_eq!(chat["messages"], as_sent(&conversation(), question));
    // Without messages the model gets the question alone: there is no history.
    let alone = SessionId::random();
    let generation = replica.submit(alone, own_turn(question, Vec::new())).expect("accepted");
    replica.answer(alone, generation);
    let chats = replica.journal(&ollama);
    assert_eq!(chats.last().expect("a chat")["messages"], as_sent(&[], question));
    for session in [session, alone] {
        let left = expires(&server, session);
        assert!((3000..=3600).contains(&left), "an hour after its end, not {left} s");
    }
    // The conversation is stored once, and not in the `accepted` event, too.
    let log = server.cli(&["LRANGE", &format!("{}:events", channel(session)), "0", "-1"]);
    assert!(!log.contains("what now?"), "{log}");
}

#[test]
fn a_turn_with_its_own_conversation_survives_the_replica_that_writes_it() {
    let (server, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "60"]));
    let mut first = Replica::start(&server, &ollama);
    let second = Replica::start(&server, &ollama);
    let session = SessionId::random();
    let question = "[[tokens=150]] go on";
    let generation = first.submit(session, own_turn(question, conversation())).expect("accepted");
    second.wait_for_text(&server, session, 60);
    assert!(expires(&server, session) > 3600, "not while it runs");
    first.kill();
    let answer = second.answer(session, generation);
    assert_eq!((answer.content, answer.writers), (expected(question), Some(2)));
    // The new writer had the prompt rendered from the same messages.
    let chats = second.journal(&ollama);
    let rendered = chats.iter().filter(|entry| entry["path"] == "/api/chat");
    let sent: Vec<_> = rendered.map(|entry| entry["messages"].clone()).collect();
    assert!(sent.len() > 1, "{sent:?}");
    assert!(sent.iter().all(|sent| *sent == as_sent(&conversation(), question)), "{sent:?}");
    assert!((3000..=3600).contains(&expires(&server, session)));
}

#[test]
fn a_failover_that_lost_a_turn_with_its_own_conversation_brings_all_of_it_back() {
    let (server, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "60"]));
    let replica = Replica::start(&server, &ollama);
    let session = SessionId::random();
    server.remember();
    let question = "[[tokens=150]] hold on";
    let generation = replica.submit(session, own_turn(question, conversation())).expect("accepted");
    replica.wait_for_text(&server, session, 60);
    server.lose_what_came_since();
    let answer = replica.answer(session, generation);
    assert_eq!(answer.content, expected(question));
    let page = replica.run(replica.store.page(&OWNER, session, 0, 50)).expect("a page");
    let stored: Vec<_> = page.messages.iter().map(|m| (m.role, m.content.clone())).collect();
    let mut whole = conversation();
    whole.extend([said(Role::User, question), said(Role::Assistant, &expected(question))]);
    let whole: Vec<_> = whole.iter().map(|m| (m.role, m.content.clone())).collect();
    assert_eq!(stored, whole);
    assert!((3000..=3600).contains(&expires(&server, session)));
}

#[test]
fn what_a_model_cannot_take_is_refused_and_never_shortened() {
    let (server, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "500"]));
    let replica = Replica::start(&server, &ollama);
    let session = SessionId::random();
    let long = vec![said(Role::User, &"word ".repeat(20_000)), said(Role::Assistant, "ok")];
    let generation = replica.submit(session, own_turn("and?", long)).expect("accepted");
    let answer = replica.answer(session, generation);
    assert_eq!(answer.status, Some(Status::Failed));
    assert_eq!(answer.error.expect("why").code, "context_too_long");
    let chats = replica.journal(&ollama);
    let sent = chats.iter().filter_map(|entry| entry["messages"].as_array());
    assert!(sent.clone().count() > 0 && sent.into_iter().all(|sent| sent.len() == 3));
}

/// The store alone, without a model.
struct Stored {
    server: RedisServer,
    store: Store,
    other: Store,
}

impl Stored {
    async fn start() -> Self {
        let server = RedisServer::start();
        let redis = connect(&server.url()).await;
        let store =
            |name: &str| Store::new(redis.clone(), name.to_owned(), SessionLimits::default());
        let (store, other) = (store("r1"), store("r2"));
        Self { server, store, other }
    }
}

#[tokio::test]
async fn a_conversation_that_is_refused_leaves_nothing() {
    let Stored { server, store, .. } = Stored::start().await;
    let keys = || server.cli(&["DBSIZE"]);
    let before = keys();
    let many = vec![said(Role::User, "x"); OwnConversation::MESSAGES + 1];
    let refused = OwnConversation::new(many).expect_err("too many");
    assert_eq!(refused.messages, 1001);
    let long = vec![said(Role::User, &"x".repeat(OwnConversation::BYTES + 1))];
    let refused = OwnConversation::new(long).expect_err("too long");
    assert!(refused.to_string().contains("at most 1000 messages and 1048576 bytes"), "{refused}");
    assert_eq!(keys(), before);
    // A session with a stored history gets no other one.
    let session = SessionId::random();
    let plain = new_turn(MODEL, "q");
    store.accept(&Proposal::new(&OWNER, session, &plain)).await.expect("accepted");
    let dump = || {
        let keys = server.cli(&["KEYS", "*"]);
        let mut dumps: Vec<_> =
            keys.lines().map(|key| server.cli(&["DEBUG", "DIGEST-VALUE", key])).collect();
        dumps.sort();
        dumps
    };
    let before = dump();
    let own = Proposal::new(&OWNER, session, &own_turn("q", conversation()));
    assert!(matches!(store.accept(&own).await, Err(StoreError::Occupied)));
    assert_eq!(dump(), before);
}

#[tokio::test]
async fn the_largest_conversation_is_stored_once() {
    let Stored { server, store, other } = Stored::start().await;
    let session = SessionId::random();
    let used = || -> usize {
        let info = server.cli(&["INFO", "memory"]);
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        line.and_then(|bytes| bytes.trim().parse().ok()).expect("bytes")
    };
    let before = used();
    let largest = thousand(&"x".repeat(536));
    let bytes: usize = largest.iter().map(OwnConversation::bytes_of).sum();
    let proposal = Proposal::new(&OWNER, session, &own_turn("q", largest));
    let accepted = store.accept(&proposal).await.expect("accepted");
    let Acceptance::New { turn, began: true, .. } = accepted else { panic!("{accepted:?}") };
    let grown = used() - before;
    assert!(grown < 2 * bytes, "{grown} bytes for {bytes}");
    println!("{bytes} bytes in 1,000 messages cost Redis {grown} bytes");
    let open = store.open_turns(bucket(session)).await.expect("open turns").remove(0);
    let claimed = other.claim(&ClaimAttempt::new(open)).await.expect("a claim");
    let Claim::Running(taken, 2) = claimed else { panic!("{claimed:?}") };
    assert_eq!(taken.own_conversation().expect("its own").bytes(), bytes);
    // Its messages are found by their ids, and counted, though they are not in the index.
    let page = store.page(&OWNER, session, 0, 500).await.expect("a page");
    for message in [&page.messages[0], &page.messages[499], page.messages.last().expect("one")] {
        let found = store.find_message(&OWNER, session, message.id).await.expect("Redis");
        assert_eq!(found.expect("it is there").message.id, message.id);
    }
    let unknown = store.find_message(&OWNER, session, uuid::Uuid::new_v4()).await.expect("Redis");
    assert!(unknown.is_none());
    let cleared = store.clear(&mut Clearing::new(&OWNER, session, false)).await.expect("cleared");
    assert_eq!(cleared, 1001, "with the question");
    assert_eq!(taken.question().content, turn.question().content);
}

/// Returns as many messages as a turn may bring, with this text and identifiers of their own.
fn thousand(text: &str) -> Vec<Message> {
    (0..OwnConversation::MESSAGES).map(|_| said(Role::User, text)).collect()
}

/// Returns conversations of as many bytes as there may be, each in another shape.
fn largest_conversations() -> [(&'static str, Vec<Message>); 6] {
    let of_calls = |character: &str, length: usize| {
        let arguments = character.repeat((OwnConversation::BYTES - 640) / length);
        let call = ToolCall { id: "call".to_owned(), name: "tool".to_owned(), arguments };
        vec![Message { tool_calls: vec![call], ..said(Role::Assistant, "") }]
    };
    [
        ("messages", thousand(&"x".repeat(536))),
        ("short messages", thousand("x")),
        ("one text", vec![said(Role::User, &"x".repeat(OwnConversation::BYTES - 512))]),
        ("arguments", of_calls("x", 1)),
        ("quotes", of_calls("\"", 2)),
        ("control characters", of_calls("\u{1}", 6)),
    ]
}

/// Expects each call of a function that `calls` makes to take Redis less than five milliseconds.
async fn takes_redis_moments(
    what: &str,
    server: &RedisServer,
    function: &str,
    mut calls: impl AsyncFnMut(),
) {
    let medians = takes_moments(what, async || {
        begin_timing(server);
        calls().await;
        timed_calls(server)
    });
    let medians = medians.await;
    assert!(medians.iter().any(|(called, _)| called == function), "{medians:?}");
}

/// Returns two replicas' stores over a Redis that writes no file, which would take its time, too.
async fn two_stores() -> (RedisServer, Store, Store) {
    let server = RedisServer::start_with(&["--appendonly", "no"]);
    let redis = connect(&server.url()).await;
    let store = |name: &str| Store::new(redis.clone(), name.to_owned(), SessionLimits::default());
    let (store, other) = (store("r1"), store("r2"));
    (server, store, other)
}

async fn accepted(store: &Store, session: SessionId, new: &NewTurn) -> Arc<Turn> {
    let accepted = store.accept(&Proposal::new(&OWNER, session, new)).await.expect("accepted");
    let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
    turn
}

/// Claims the running turn of a session for another replica, which restores it after Redis has lost
/// everything, creates it again and cancels it; then the session is deleted. Returns the turn as claimed.
async fn take_over_and_delete(
    server: &RedisServer,
    store: &Store,
    other: &Store,
    session: SessionId,
) -> Arc<Turn> {
    let open = store.open_turns(bucket(session)).await.expect("open turns").remove(0);
    let claimed = other.claim(&ClaimAttempt::new(open)).await.expect("a claim");
    let Claim::Running(taken, 2) = claimed else { panic!("{claimed:?}") };
    let lost = server.cli(&["KEYS", "jarvis:{b*"]);
    server.cli(&[&["DEL"], &lost.lines().collect::<Vec<_>>()[..]].concat());
    assert_eq!(other.restore(&taken).await.expect("Redis"), Restored::Waiting);
    assert_eq!(other.begin(&taken).await.expect("Redis"), Begin::Began);
    other.cancel(&Cancellation::new(&OWNER, session, None)).await.expect("cancelled");
    store.clear(&mut Clearing::new(&OWNER, session, true)).await.expect("deleted");
    taken
}

#[tokio::test]
async fn no_call_takes_redis_longer_than_five_milliseconds_for_the_largest_conversation() {
    let (server, store, other) = two_stores().await;
    for (shape, messages) in largest_conversations() {
        takes_redis_moments(shape, &server, "jarvis_accept_1", async || {
            let session = SessionId::random();
            accepted(&store, session, &own_turn("q", messages.clone())).await;
            let page = store.page(&OWNER, session, 0, 500).await.expect("a page");
            let first = page.messages.first().expect("a message").id;
            assert!(store.find_message(&OWNER, session, first).await.expect("Redis").is_some());
            let unknown = uuid::Uuid::new_v4();
            assert!(store.find_message(&OWNER, session, unknown).await.expect("Redis").is_none());
            assert!(store.own_turn(&OWNER, session).await.expect("Redis").is_some());
            let taken = take_over_and_delete(&server, &store, &other, session).await;
            assert_eq!(
                taken.own_conversation().map(|own| own.messages().len()),
                Some(messages.len())
            );
        })
        .await;
    }
}

#[tokio::test]
async fn no_call_takes_redis_longer_than_five_milliseconds_for_the_largest_request() {
    let (server, store, other) = two_stores().await;
    takes_moments_of_redis(
        "a long text",
        &server,
        &store,
        &other,
        &own_turn(&"x".repeat(1 << 20), Vec::new()),
    )
    .await;
    // An instruction that a response shows again: it is stored for the model, and once more as JSON within
    // JSON. Each character takes so many bytes of the bound.
    for (shape, character, bytes) in
        [("letters", "x", 2), ("quotes", "\"", 6), ("control", "\u{1}", 13)]
    {
        let instructions = character.repeat((REQUEST_BYTES as usize - 4096) / bytes);
        let shown = serde_json::to_string(&[&instructions]).expect("JSON");
        let text = "x".repeat(512 << 10);
        let mut new = own_turn(&text, Vec::new());
        new.spec.system = Some(instructions);
        let question = Message { request: Some(shown), ..message(Role::User, Utc::now()) };
        new.attached.question = Some(Box::new(question));
        let size = new.stored_size();
        assert!(size.request > REQUEST_BYTES - 8192 && !size.is_too_large(), "{shape}: {size:?}");
        takes_moments_of_redis(shape, &server, &store, &other, &new).await;
    }
}

/// Expects each call for this turn, which another replica takes over, to take Redis less than five
/// milliseconds.
async fn takes_moments_of_redis(
    shape: &str,
    server: &RedisServer,
    store: &Store,
    other: &Store,
    new: &NewTurn,
) {
    takes_redis_moments(shape, server, "jarvis_claim_1", async || {
        let session = SessionId::random();
        accepted(store, session, new).await;
        assert!(store.own_turn(&OWNER, session).await.expect("Redis").is_some());
        let read = store.read(&OWNER, session, ReadFrom::Cursor(Cursor::START, 0)).await;
        assert!(matches!(read, Ok(ReadOutcome::Window { .. })), "{read:?}");
        take_over_and_delete(server, store, other, session).await;
    })
    .await;
}

#[tokio::test]
async fn no_call_takes_redis_longer_than_five_milliseconds_while_large_turns_wait() {
    let (server, store, other) = two_stores().await;
    let mut large = new_turn(MODEL, &"x".repeat(32_768));
    // As much as an instruction, tools and a format may have together, in the form that takes most.
    large.spec.system = Some("\u{1}".repeat(64 << 10));
    takes_redis_moments("large turns", &server, "jarvis_begin_1", async || {
        let session = SessionId::random();
        let running = accepted(&store, session, &large).await;
        let mut waiting = Vec::new();
        for _ in 0..8 {
            waiting.push(accepted(&store, session, &large).await);
        }
        let cancel = async |generation| {
            store.cancel(&Cancellation::new(&OWNER, session, generation)).await.expect("Redis")
        };
        cancel(Some(GenerationId::random())).await;
        cancel(Some(waiting[7].generation)).await;
        let open = store.open_turns(bucket(session)).await.expect("open turns");
        let open = open.into_iter().find(|open| open.generation == waiting[6].generation);
        let claimed =
            other.claim(&ClaimAttempt::new(open.expect("it waits"))).await.expect("a claim");
        assert!(matches!(claimed, Claim::Waiting(_)), "{claimed:?}");
        cancel(Some(running.generation)).await;
        assert_eq!(store.begin(&waiting[0]).await.expect("Redis"), Begin::Began);
        store.clear(&mut Clearing::new(&OWNER, session, true)).await.expect("deleted");
    })
    .await;
}

#[tokio::test]
async fn a_waiting_turn_keeps_its_conversation_through_restore_and_claim() {
    let Stored { server, store, other } = Stored::start().await;
    let session = SessionId::random();
    server.remember();
    let proposal = Proposal::new(&OWNER, session, &own_turn("q", conversation()));
    let accepted = store.accept(&proposal).await.expect("accepted");
    let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
    server.lose_what_came_since();
    let restored = async || retried(async || store.restore(&turn).await).await;
    assert_eq!(restored().await, Restored::Waiting);
    assert_eq!(restored().await, Restored::Waiting, "a repeat adds nothing");
    let open = store.open_turns(bucket(session)).await.expect("open turns").remove(0);
    let claimed = other.claim(&ClaimAttempt::new(open)).await.expect("a claim");
    let Claim::Waiting(taken) = claimed else { panic!("{claimed:?}") };
    // Redis loses everything once more: the new writer restores all of it, too.
    let lost = server.cli(&["KEYS", "jarvis:{b*"]);
    let lost: Vec<&str> = lost.lines().collect();
    server.cli(&[&["DEL"], &lost[..]].concat());
    assert_eq!(other.restore(&taken).await.expect("Redis"), Restored::Waiting);
    assert_eq!(other.begin(&taken).await.expect("Redis"), Begin::Began);
    let page = other.page(&OWNER, session, 0, 50).await.expect("a page");
    let contents: Vec<_> = page.messages.iter().map(|m| m.content.clone()).collect();
    let own = conversation().into_iter().map(|m| m.content).chain(["q".to_owned()]);
    assert_eq!(contents, own.collect::<Vec<_>>());
    // Every end of the turn begins the last minutes of the session, which has no answer.
    assert!(expires(&server, session) > 3600);
    other.cancel(&Cancellation::new(&OWNER, session, None)).await.expect("cancelled");
    assert!((500..=600).contains(&expires(&server, session)));
}

#[tokio::test]
async fn a_clear_ends_all_turns_also_where_a_failover_brought_back_more_than_may_wait() {
    let Stored { server, store, .. } = Stored::start().await;
    let session = SessionId::random();
    let nine = async || {
        let mut turns = Vec::new();
        for _ in 0..9 {
            let turn = new_turn(MODEL, "q");
            let accepted = async || store.accept(&Proposal::new(&OWNER, session, &turn)).await;
            let Acceptance::New { turn, .. } = retried(accepted).await else { panic!("new") };
            turns.push(turn);
        }
        turns
    };
    server.remember();
    let lost = nine().await;
    server.lose_what_came_since();
    nine().await;
    for turn in &lost {
        assert_eq!(store.restore(turn).await.expect("Redis"), Restored::Waiting);
    }
    assert_eq!(store.open_turns(bucket(session)).await.expect("open turns").len(), 18);
    store.clear(&mut Clearing::new(&OWNER, session, false)).await.expect("cleared");
    assert_eq!(store.open_turns(bucket(session)).await.expect("open turns").len(), 0);
    let next = new_turn(MODEL, "next");
    let accepted = store.accept(&Proposal::new(&OWNER, session, &next)).await.expect("accepted");
    assert!(matches!(accepted, Acceptance::New { began: true, .. }), "{accepted:?}");
}

#[tokio::test]
async fn a_turn_is_claimed_in_a_session_whose_brought_conversation_was_cleared() {
    let Stored { server, store, other } = Stored::start().await;
    let session = SessionId::random();
    store
        .accept(&Proposal::new(&OWNER, session, &own_turn("q", conversation())))
        .await
        .expect("accepted");
    store.clear(&mut Clearing::new(&OWNER, session, false)).await.expect("cleared");
    server.remember();
    let plain = new_turn(MODEL, "q");
    let accepted = store.accept(&Proposal::new(&OWNER, session, &plain)).await.expect("accepted");
    let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
    server.lose_what_came_since();
    let restored = retried(async || store.restore(&turn).await).await;
    assert_eq!(restored, Restored::Waiting);
    let open = store.open_turns(bucket(session)).await.expect("open turns").remove(0);
    let claimed = other.claim(&ClaimAttempt::new(open)).await.expect("a claim");
    assert!(matches!(claimed, Claim::Waiting(_)), "{claimed:?}");
}

#[tokio::test]
async fn a_session_without_an_answer_expires_within_ten_minutes_and_one_with_an_answer_stays() {
    let Stored { server, store, .. } = Stored::start().await;
    let session = SessionId::random();
    let ask = async || {
        let turn = new_turn(MODEL, "q");
        let accepted = store.accept(&Proposal::new(&OWNER, session, &turn)).await.expect("Redis");
        let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
        let tag = Tag::random();
        store.start(&turn, tag, None).await.expect("Redis");
        (turn, tag)
    };
    let cancel = async || {
        store.cancel(&Cancellation::new(&OWNER, session, None)).await.expect("cancelled");
    };
    ask().await;
    assert!(expires(&server, session) > 3600, "not while a turn is open");
    cancel().await;
    assert!((500..=600).contains(&expires(&server, session)));
    let (turn, tag) = ask().await;
    store.append(&turn, tag, 0, true, "a part of an answer").await.expect("Redis");
    cancel().await;
    assert!(expires(&server, session) > 20 * 86400);
    ask().await;
    cancel().await;
    assert!(expires(&server, session) > 20 * 86400, "one answer is enough");
    // A deleted session that is used again is a new one.
    let mut deletion = Clearing::new(&OWNER, session, true);
    store.clear(&mut deletion).await.expect("deleted");
    ask().await;
    cancel().await;
    assert!((500..=600).contains(&expires(&server, session)));
}

#[tokio::test]
async fn a_key_finds_its_turn_while_the_session_lives_and_begins_another_after_it() {
    let Stored { server, store, .. } = Stored::start().await;
    let session = SessionId::random();
    let key = Some(IdempotencyKey { key: "k".into(), body: "b".into() });
    let keyed = NewTurn { key, ..own_turn("q", conversation()) };
    let propose = async || store.accept(&Proposal::new(&OWNER, session, &keyed)).await;
    let Ok(Acceptance::New { turn, .. }) = propose().await else { panic!("not accepted") };
    let again = propose().await.expect("Redis");
    assert!(matches!(again, Acceptance::Same { generation, .. } if generation == turn.generation));
    let tag = Tag::random();
    store.start(&turn, tag, None).await.expect("Redis");
    let header = message(Role::Assistant, Utc::now());
    let events = [(Tag::random(), Control::Done {})];
    let finished = store.finish(&turn, tag, 0, &header, &events).await.expect("Redis");
    assert_eq!(finished, Written::Ok);
    assert!(matches!(propose().await, Ok(Acceptance::Same { .. })));
    // The session has expired, and so has the record of its end.
    let keys = server.cli(&["KEYS", &format!("{}*", channel(session))]);
    for key in keys.lines().filter(|key| !key.contains(":key:")) {
        server.cli(&["DEL", key]);
    }
    assert!(matches!(propose().await, Ok(Acceptance::New { .. })));
}

#[tokio::test]
async fn a_claim_that_a_failover_lost_is_replied_again_until_its_holder_starts_the_answer() {
    let Stored { server, store, other } = Stored::start().await;
    let session = SessionId::random();
    let new = new_turn(MODEL, "q");
    let accepted = store.accept(&Proposal::new(&OWNER, session, &new)).await.expect("accepted");
    let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
    let tag = Tag::random();
    store.start(&turn, tag, None).await.expect("Redis");
    store.append(&turn, tag, 0, true, "so far").await.expect("Redis");
    assert_eq!(store.restore(&turn).await.expect("Redis"), Restored::Kept);
    server.remember();
    let open = store.open_turns(bucket(session)).await.expect("open turns").remove(0);
    let claimed = other.claim(&ClaimAttempt::new(open)).await.expect("a claim");
    let Claim::Running(taken, 2) = claimed else { panic!("{claimed:?}") };
    server.lose_what_came_since();
    let restored = async || retried(async || other.restore(&taken).await).await;
    assert_eq!(restored().await, Restored::Claimed);
    assert_eq!(restored().await, Restored::Claimed, "the first reply may be lost");
    other.start(&taken, Tag::random(), None).await.expect("Redis");
    assert_eq!(restored().await, Restored::Kept);
}
