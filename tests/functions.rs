//! The promises of the Redis Functions and of their record.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use jarvis::budget::{Budget, ListOrder, StorageLimits};
use jarvis::config::LimitSettings;
use jarvis::digest::sha256_hex;
use jarvis::limits::{RateLimits, RequestKind, Subject};
use jarvis::membership::MembershipStore;
use jarvis::queue::{
    Grant, HostAccess, HostKey, HostReport, Overview, QueueLimits, QueueStore, Returned, Ticket,
    TicketSource,
};
use jarvis::redis::functions::{LIBRARIES, declaration::DECLARED};
use jarvis::redis::{Conditions, Observer, Redis, RedisError, migrations};
use jarvis::session::image::RequestImages;
use jarvis::session::model::User;
use jarvis::session::store::{
    Acceptance, Cancellation, ClaimAttempt, Clearing, IdempotencyKey, ImportedSession,
    NewConversation, NewTurn, OpenTurn, Proposal, ReadFrom, Selection, SessionChange,
    SessionLimits, TakenBack, Transfer, Update, bucket, message,
};
use jarvis::session::{Control, GenerationId, Owner, Role, SessionId, Store, Tag};
use jarvis::sign_in::{ApiKeyStore, CreatedKey};
use jarvis::source::Source;
use support::eventually;
use support::process::LIMIT;
use support::redis::RedisServer;
use support::store::{new_turn, options};

const RECORD: &str = "jarvis:{migrations}:applied";

fn connect(server: &RedisServer) -> Redis {
    Redis::connect(&options(&server.url())).expect("a client")
}

fn store_on(redis: &Redis, name: &str) -> Store {
    Store::new(redis.clone(), name.to_owned(), SessionLimits::default())
}

fn keyed_turn(key: Option<&str>) -> NewTurn {
    let key = key.map(|key| IdempotencyKey { key: key.to_owned(), body: "b".to_owned() });
    NewTurn { key, ..new_turn("m", "a question") }
}

async fn whole_turn(store: &Store, session: SessionId, key: Option<&str>) {
    let owner = Owner::Anonymous;
    let proposal = Proposal::new(&owner, session, &keyed_turn(key));
    let accepted = store.accept(&proposal).await.expect("accepted");
    let Acceptance::New { turn, .. } = accepted else { panic!("a second turn") };
    let open = store.open_turn(&turn).await.expect("Redis").expect("an open turn");
    assert_eq!((open.generation, open.fence), (turn.generation, turn.fence));
    let (tag, next) = (Tag::random(), Tag::random());
    store.restore(&turn).await.expect("Redis");
    store.begin(&turn).await.expect("Redis");
    store.start(&turn, tag, None).await.expect("Redis");
    store.append(&turn, tag, 0, true, "too much").await.expect("Redis");
    store
        .rewind(&turn, tag, next, TakenBack { length: 3, restarts: 0 }, true)
        .await
        .expect("Redis");
    store.note_continued(&turn, &[], None).await.expect("Redis");
    let header = message(Role::Assistant, Utc::now());
    let events = [(Tag::random(), Control::Done {})];
    store.finish(&turn, next, 3, &header, &events).await.expect("Redis");
    store.upstream_closed(&turn).await.expect("Redis");
    let listeners = store.listeners(turn.session).await.expect("Redis");
    assert_eq!(listeners, Some(0), "nobody is subscribed");
}

async fn every_call_of_a_session(redis: &Redis) {
    let (owner, session) = (Owner::Anonymous, SessionId::random());
    let (store, other) = (store_on(redis, "r1"), store_on(redis, "r2"));
    whole_turn(&store, session, Some("k")).await;
    let mut images = RequestImages::default();
    images.add("R0lGODlhAQABAAAAADs=", &mut Vec::new()).expect("an image");
    let images = images.into_images();
    store.put_images(&owner, session, None, &images).await.expect("Redis");
    let data = store.image(&owner, session, &images[0].reference).await.expect("Redis");
    assert_eq!(data.as_ref(), Some(&images[0].data));
    store.drop_images(&owner, session, &images).await.expect("Redis");
    assert_eq!(store.image(&owner, session, &images[0].reference).await.expect("Redis"), None);
    let title = Some("title".to_owned());
    let change = SessionChange { title, ..SessionChange::default() };
    store.update(&mut Update::new(&owner, session, change)).await.expect("Redis");
    store.describe(&owner, session).await.expect("Redis");
    store.page(&owner, session, 0, 5).await.expect("Redis");
    store.find_message(&owner, session, uuid::Uuid::new_v4()).await.expect("Redis");
    store.conversation(&owner, session).await.expect("Redis");
    let first = store.page(&owner, session, 0, 1).await.expect("Redis").messages[0].id;
    let generation = GenerationId::of_question(first);
    let question = store.question(&owner, session, generation).await.expect("Redis");
    assert_eq!(question.map(|question| question.id), Some(first));
    assert!(store.hide_request(&owner, session, generation).await.expect("Redis"));
    assert_eq!(store.question(&owner, session, generation).await.expect("Redis"), None);
    store.select(&mut Selection::new(&owner, session, first)).await.expect("Redis");
    store.read(&owner, session, ReadFrom::RunningTurn).await.expect("Redis");
    let proposal = Proposal::new(&owner, session, &keyed_turn(None));
    store.accept(&proposal).await.expect("Redis");
    let mut open: Vec<OpenTurn> = store.open_turns(bucket(session)).await.expect("Redis");
    other.claim(&ClaimAttempt::new(open.remove(0))).await.expect("Redis");
    store.cancel(&Cancellation::new(&owner, session, None)).await.expect("Redis");
    let budget = Budget::new(store.clone(), StorageLimits::default());
    budget.room(&owner, "n", session).await.expect("room");
    budget.record("n", session).await;
    budget.record_again(SessionId::random()).await;
    store.clear(&mut Clearing::new(&owner, session, true)).await.expect("Redis");
    store.evict(&owner, session).await.expect("Redis");
    every_call_of_a_user(&store, &budget).await;
    let membership = MembershipStore::new(redis.clone(), "r1".to_owned());
    membership.heartbeat(true, Vec::new(), None).await.expect("Redis");
    let living = membership.living(vec!["r1".to_owned(), "r2".to_owned()]).await;
    assert_eq!(living.expect("Redis"), ["r1".to_owned()].into());
    membership.sign_off().await.expect("Redis");
    let living = membership.living(vec!["r1".to_owned()]).await.expect("Redis");
    assert!(living.is_empty(), "it has signed off");
    membership.remove_replica("r1", -1, "signed_off", 0).await.expect("Redis");
}

async fn every_call_of_a_user(store: &Store, budget: &Budget) {
    let (owner, session) = (Owner::User(User::local("user").expect("a user")), SessionId::random());
    store
        .accept(&Proposal::new(&Owner::Anonymous, session, &keyed_turn(None)))
        .await
        .expect("Redis");
    store.transfer(&mut Transfer::new(&owner, session)).await.expect("Redis");
    budget.record("", session).await;
    let listing = budget.reserve_claim(&owner, SessionId::random()).await.expect("room");
    budget.withdraw(&owner, SessionId::random(), listing).await;
    budget.list(&owner, ListOrder::Newest, None, 1).await.expect("Redis");
    budget.unlist_gone(&owner, &[SessionId::random()]).await.expect("Redis");
    budget.delete_all(&owner, "deletion").await.expect("Redis");
    budget.delete_next("deletion", &[session], 1).await.expect("Redis");
    budget.abandoned_deletions().await.expect("Redis");
    let conversation = NewConversation {
        session: SessionId::random(),
        model: "m".to_owned(),
        metadata: "{}".to_owned(),
        created_at: Utc::now(),
        messages: Vec::new(),
    };
    store.create_conversation(&owner, &conversation).await.expect("Redis");
    let added = [message(Role::System, Utc::now())];
    store.add_messages(&owner, conversation.session, &added).await.expect("Redis");
    let imported = ImportedSession {
        session: SessionId::random(),
        title: "t".to_owned(),
        model: "m".to_owned(),
        created_at: "2026-01-01T00:00:00Z".parse().expect("a time"),
        pinned: false,
        archived: false,
        entries: Vec::new(),
    };
    store.import_messages(&owner, &imported, None).await.expect("Redis");
    store.import_commit(&owner, &imported).await.expect("Redis");
}

async fn every_call_of_the_queue(redis: &Redis, url: &str) {
    let limits = QueueLimits { waiting: 9, waiting_of_source: 9, running_of_address: 9 };
    let queue = QueueStore::new(redis.clone(), "r1".to_owned(), limits);
    let name = HostKey("host".to_owned());
    let models = [("m:latest".to_owned(), true)].into();
    let report =
        HostReport { name: name.clone(), slots: 1, via: HostAccess::Open, trials: 0, models };
    queue.report(&[report]).await.expect("Redis");
    let generation = GenerationId::random();
    let text = "u".to_owned();
    let ticket = Ticket {
        generation,
        user: text.clone(),
        source: TicketSource { name: text.clone(), networks: Vec::new() },
        is_of_address: false,
        model: "m:latest".to_owned(),
        session: text,
        prefixes: (0..8).map(|n| format!("{n:024}")).collect(),
        has_text: false,
    };
    queue.join(&ticket, None).await.expect("Redis");
    let why = Returned { excluded: Duration::ZERO, full: Duration::ZERO, has_text: false };
    let grant = Grant { host: name.clone(), number: 1 };
    queue.give_back(generation, &grant, why).await.expect("Redis");
    queue.restore(&ticket, &name, "1").await.expect("Redis");
    queue.tick().await.expect("Redis");
    queue.statuses(&[generation]).await.expect("Redis");
    queue.room("m:latest", &ticket.source).await.expect("Redis");
    queue.holdings().await.expect("Redis");
    queue.release(generation).await.expect("Redis");
    queue.free("r1", None).await.expect("Redis");
    let mut observer = Observer::connect(&options(url)).expect("a client");
    let overview = Overview::read(&mut observer).await.expect("Redis");
    assert_eq!(overview.hosts.total, 0, "its replica reports none");
}

async fn every_call_of_limits(redis: &Redis, server: &RedisServer) {
    let membership = MembershipStore::new(redis.clone(), "r1".to_owned());
    let settings = LimitSettings { user_sockets: 3, ..LimitSettings::default() };
    let limits = RateLimits::start(redis, membership, settings);
    let user = User::local("alice").expect("a name");
    let subject = Subject { owner: Owner::User(user), key: None, source: Source::default() };
    let subject = Arc::new(subject);
    let admission = limits.admit(&subject, RequestKind::Socket, None).await;
    let socket = admission.map_err(|refusal| refusal.to_string()).expect("admitted").socket;
    // The sockets that are open are renewed from the beginning on, and then every few minutes.
    limits.renew_sockets().await;
    drop(socket);
    let released = async || called(server).contains("jarvis_limit_release_1");
    assert!(eventually(LIMIT, released).await);
}

async fn every_call_of_api_keys(redis: &Redis) {
    let keys = ApiKeyStore::new(redis.clone());
    let created = keys.create("user").await.expect("Redis");
    let CreatedKey::Key(key, id) = created else { panic!("no room") };
    let digest = sha256_hex(key.expose().as_bytes());
    assert_eq!(keys.check(&[digest]).await.expect("Redis"), [Some("user".to_owned())]);
    assert_eq!(keys.list().await.expect("Redis").len(), 1);
    assert!(keys.revoke(&id).await.expect("Redis"));
}

/// Returns the functions that Redis ran since its log was emptied.
fn called(server: &RedisServer) -> BTreeSet<String> {
    let log = server.cli(&["SLOWLOG", "GET", "-1"]);
    log.lines().filter(|line| line.starts_with("jarvis_")).map(str::to_owned).collect()
}

fn log_every_command(server: &RedisServer) {
    server.cli(&["CONFIG", "SET", "slowlog-max-len", "100000"]);
    server.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
}

#[tokio::test]
async fn every_function_is_called_by_the_names_that_it_declares() {
    let server = RedisServer::start();
    let redis = connect(&server);
    migrations::apply(&redis).await.expect("migrations");
    log_every_command(&server);
    // A debug build refuses a call whose names, or their order, are not those of its function.
    every_call_of_a_session(&redis).await;
    every_call_of_the_queue(&redis, &server.url()).await;
    every_call_of_api_keys(&redis).await;
    every_call_of_limits(&redis, &server).await;
    let conditions = Conditions::of(&redis);
    let mut probed = conditions.subscribe();
    let probe = tokio::spawn(conditions.follow());
    let first = tokio::time::timeout(Duration::from_secs(20), probed.changed()).await;
    first.expect("a probe in time").expect("a condition");
    probe.abort();
    let declared: BTreeSet<String> = DECLARED.keys().cloned().collect();
    assert_eq!(called(&server), declared);
}

/// Writes the data of an earlier build: the record of layout 1, and a session of it.
fn leave_the_first_layout(server: &RedisServer) {
    let applied = r#"{"name":"0001_session.lua","sha256":"00","oldest":"0.1.0"}"#;
    server.cli(&["HSET", RECORD, "1", applied]);
    server.cli(&["RPUSH", "jarvis:{b0}:s:00000000-0000-4000-8000-000000000000:messages", "{}\nx"]);
}

#[tokio::test]
async fn a_redis_of_another_layout_is_refused_and_left_as_it_is() {
    for later in [false, true] {
        let server = RedisServer::start();
        if later {
            server.cli(&["HSET", RECORD, "layout", "4"]);
        } else {
            leave_the_first_layout(&server);
        }
        let before = server.cli(&["HGETALL", RECORD]);
        let refused = migrations::apply(&connect(&server)).await.expect_err("another layout");
        assert!(matches!(refused, RedisError::Migration(_)), "{refused}");
        for command in ["migrate", "serve"] {
            let output = Command::new(env!("CARGO_BIN_EXE_jarvis"))
                .arg(command)
                .env("JARVIS_REDIS_URL", server.url())
                .env("JARVIS_LISTEN", "127.0.0.1:0")
                .output()
                .expect("jarvis");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command}: {said}");
            let what_to_do = if later { "Start a later release" } else { "make purge" };
            assert!(said.contains(what_to_do), "{command}: {said}");
        }
        assert_eq!(server.cli(&["HGETALL", RECORD]), before, "nothing is changed");
        assert_eq!(server.cli(&["FUNCTION", "LIST"]).trim(), "", "nothing is loaded");
    }
}

/// Returns the session's library as a later release has it: every function of this one, and a
/// second version of one of them.
fn newer_library() -> String {
    let library = LIBRARIES.iter().find(|library| library.name == "jarvis_session");
    let library = library.expect("a library");
    let append = library.commands.iter().find(|file| file.path.ends_with("/append.lua"));
    let second = append.expect("a command").text.replace("version = 1", "version = 2");
    format!("{}do\n{second}end\n", library.code)
}

#[tokio::test]
async fn an_older_and_a_newer_library_serve_their_replicas_side_by_side() {
    let server = RedisServer::start();
    let redis = connect(&server);
    migrations::apply(&redis).await.expect("migrations");
    let (owner, session) = (Owner::Anonymous, SessionId::random());
    whole_turn(&store_on(&redis, "older"), session, None).await;
    // The newer replica starts: it loads its library, and records its file.
    let newer = newer_library();
    let load = || server.cli(&["FUNCTION", "LOAD", "REPLACE", &newer]);
    assert_eq!(load().trim(), "jarvis_session");
    server.cli(&["HSET", RECORD, "session/append_2.lua", "00"]);
    let append = |version: u8| {
        let function = format!("jarvis_append_{version}");
        let (channel, answer) = ("jarvis:{b0}:s:x", "jarvis:{b0}:s:x:answer");
        let arguments = ["anonymous", "g", "f", "0", "0", "0", "text", "-"];
        server.cli(&[&["FCALL", &function, "2", channel, answer], &arguments[..]].concat())
    };
    assert_eq!(append(2).trim(), "fenced", "the newer one is there");
    whole_turn(&store_on(&redis, "older"), session, None).await;
    // An older replica that starts only now does not take the newer one's function away.
    let late = connect(&server);
    migrations::apply(&late).await.expect("the same layout");
    whole_turn(&store_on(&late, "late"), session, None).await;
    assert_eq!(append(2).trim(), "fenced");
    // On a server that came back empty each loads its missing functions, and both continue.
    server.cli(&["FUNCTION", "FLUSH"]);
    whole_turn(&store_on(&late, "late"), session, None).await;
    assert!(append(2).contains("not found"), "the older one does not have it");
    load();
    whole_turn(&store_on(&redis, "older"), session, None).await;
    assert_eq!(append(2).trim(), "fenced");
    let count = store_on(&redis, "x").describe(&owner, session).await.expect("a session");
    assert_eq!(count.info.message_count, 10);
}

#[tokio::test]
async fn a_replica_that_misses_a_function_of_a_newer_layout_gets_an_error_that_says_so() {
    let server = RedisServer::start();
    let redis = connect(&server);
    migrations::apply(&redis).await.expect("migrations");
    server.cli(&["HSET", RECORD, "layout", "4"]);
    server.cli(&["FUNCTION", "FLUSH"]);
    let membership = MembershipStore::new(redis, "r".to_owned());
    let refused = membership.heartbeat(true, Vec::new(), None).await.expect_err("a later layout");
    assert!(refused.to_string().contains("Start a later release"), "{refused}");
    assert_eq!(server.cli(&["FUNCTION", "LIST"]).trim(), "", "nothing is loaded");
}

#[tokio::test]
async fn a_server_keeps_its_number_when_functions_are_loaded_again_and_gets_another_with_a_start() {
    let server = RedisServer::start();
    let number = async || {
        let redis = connect(&server);
        migrations::apply(&redis).await.expect("migrations");
        let membership = MembershipStore::new(redis, "r".to_owned());
        membership.heartbeat(false, Vec::new(), None).await.expect("Redis").server
    };
    let first = number().await;
    assert_eq!(number().await, first, "every replica loads the functions at its start");
    server.restart();
    assert_ne!(number().await, first);
    server.cli(&["ACL", "SETUSER", "jarvis", "-info"]);
    assert!(number().await > 0, "a user that may not read it gets another one");
}
