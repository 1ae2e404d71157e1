//! Turns whose task panics, over a real Redis and a scripted model host with one slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use testkit::folder::Folder;
use testkit::redis::RedisServer;
use testkit::server::Plan;
use testkit::{Server, binaries, eventually};

use super::super::{GenerationSettings, Generations, SubmitError, host_reports};
use crate::budget::StorageLimits;
use crate::config::{LimitSettings, Titles};
use crate::limits::{LimitKind, RateLimits, RequestKind, Subject};
use crate::membership::MembershipStore;
use crate::ollama::Fleet;
use crate::queue::{Queue, QueueLimits, QueueStore};
use crate::redis::{Redis, RedisOptions, migrations};
use crate::samples;
use crate::session::model::User;
use crate::session::store::{BUCKETS, IdempotencyKey, NewTurn, SessionLimits};
use crate::session::{
    Feeds, GenerationId, Message, Owner, SessionId, Status, Store, StoreError, TurnSpec,
};
use crate::source::{Source, SourceKey};
use crate::tls::TlsOptions;

/// Panics that a test puts into the turns of one replica.
#[derive(Default)]
pub(in super::super) struct InjectedPanics {
    in_answer: AtomicU32,
    at_start: AtomicU32,
}

impl InjectedPanics {
    /// Panics in the middle of an answer, if the test has injected one more panic there.
    pub(in super::super) fn strike_in_answer(&self, bytes: usize) {
        assert!(bytes < MIDDLE || !takes_one(&self.in_answer), "on purpose");
    }

    /// Panics at the start of a turn, if the test has injected one more panic there.
    pub(in super::super) fn strike_at_start(&self) {
        assert!(!takes_one(&self.at_start), "on purpose");
    }
}

fn takes_one(left: &AtomicU32) -> bool {
    let one_less = |left: u32| left.checked_sub(1);
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
}

const MODEL: &str = "tinyllama:latest";
const OWNER: Owner = Owner::Anonymous;
const QUESTION: &str = "[[tokens=40]] what now?";
/// Bytes of an answer after which it may panic.
const MIDDLE: usize = 40;
const LIMIT: Duration = Duration::from_secs(30);

struct Replica {
    generations: Generations,
    _host: Server,
    redis: RedisServer,
}

impl Replica {
    async fn start() -> Self {
        Self::start_with(LimitSettings::default()).await
    }

    async fn start_with(limits_of_callers: LimitSettings) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (server, host) = tokio::task::spawn_blocking(|| {
            let folder = Folder::temporary().expect("a folder");
            let binary = binaries::ollama_sim().expect("a host");
            let plan = Plan::host(binary, &["--rate", "400"], folder);
            (RedisServer::start(), Server::start(plan).expect("a host"))
        })
        .await
        .expect("servers");
        let command_timeout = Duration::from_secs(5);
        let options = RedisOptions {
            url: server.url(),
            command_timeout,
            acknowledgements: 0,
            tls: TlsOptions::default(),
        };
        let redis = Redis::connect(&options).expect("a client");
        migrations::apply(&redis).await.expect("migrations");
        let name = uuid::Uuid::new_v4().to_string();
        let limits = QueueLimits { waiting: 100, waiting_of_source: 100, running_of_address: 100 };
        let queue = QueueStore::new(redis.clone(), name.clone(), limits);
        let store = Store::new(redis.clone(), name.clone(), SessionLimits::default());
        let feeds = Feeds::start(&redis, store.clone()).expect("feeds");
        let fleet = Fleet::new(samples::hosts(&[&host.url], 1, LIMIT)).expect("a fleet");
        let reports = fleet.clone();
        let queue = Queue::start(&redis, queue, move || host_reports(&reports)).expect("a queue");
        let membership = MembershipStore::new(redis.clone(), name);
        let limits = RateLimits::start(&redis, membership.clone(), limits_of_callers);
        let settings = GenerationSettings {
            limits,
            storage: StorageLimits::default(),
            num_ctx_cap: 4096,
            host_wait: Duration::from_secs(20),
            abandon_after: Duration::from_mins(5),
            lease: Duration::from_secs(3),
            source_key: SourceKey::default(),
            titles: Titles::default(),
        };
        let generations = Generations::start(store, feeds, fleet, queue, membership, settings);
        Self { generations, _host: host, redis: server }
    }

    async fn submit(&self, session: SessionId) -> GenerationId {
        self.submit_with(session, TurnSpec::least(MODEL, 1000)).await
    }

    async fn submit_with(&self, session: SessionId, spec: TurnSpec) -> GenerationId {
        let new = NewTurn::of_text(spec, QUESTION.to_owned());
        self.generations.submit(&OWNER, session, new, &mut None).await.expect("accepted").generation
    }

    /// Returns the answer when it has ended.
    async fn answer(&self, session: SessionId, generation: GenerationId) -> Message {
        let find = || self.generations.store.find_message(&OWNER, session, generation.0);
        assert!(eventually(LIMIT, async || matches!(find().await, Ok(Some(_)))).await, "no end");
        find().await.expect("a reply").expect("a message").message
    }

    async fn answer_of_one_turn(&self) -> Message {
        let session = SessionId::random();
        let generation = self.submit(session).await;
        self.answer(session, generation).await
    }

    /// Asserts that no turn is open or listed, and that the only slot serves the next turn.
    async fn assert_nothing_is_left(&self) {
        let nothing_is_left = async || {
            for bucket in 0..BUCKETS {
                if !self.generations.store.open_turns(bucket).await.expect("a reply").is_empty() {
                    return false;
                }
            }
            self.generations.running().is_empty()
        };
        assert!(eventually(LIMIT, nothing_is_left).await, "a turn is left");
        let next = self.answer_of_one_turn().await;
        assert_eq!((next.status, next.content), (Some(Status::Complete), expected()));
    }
}

fn expected() -> String {
    ollama_sim::script_answer(MODEL, QUESTION, None, 1000)
}

#[tokio::test]
async fn an_ended_turn_counts_in_memory_with_all_its_texts() {
    let world = Replica::start().await;
    let system = "x".repeat(100_000);
    let spec = TurnSpec {
        system: Some(system.clone()),
        stop: vec!["y".repeat(200); 4],
        ..TurnSpec::least(MODEL, 1000)
    };
    let session = SessionId::random();
    let generation = world.submit_with(session, spec).await;
    let answer = world.answer(session, generation).await;
    let counted = async || world.generations.redo.bytes() > 0;
    assert!(eventually(LIMIT, counted).await, "the end is not kept");
    let least = system.len() + 800 + 2 * QUESTION.len() + answer.content.len();
    let bytes = world.generations.redo.bytes();
    assert!((least..least + 16_384).contains(&bytes), "{bytes} bytes for at least {least}");
}

fn alice() -> Owner {
    Owner::User(User::local("alice").expect("a name"))
}

#[tokio::test]
async fn an_end_is_kept_before_its_tokens_are_counted_where_redis_does_not_count_them() {
    let settings = LimitSettings { user_tokens_per_day: 1_000_000, ..LimitSettings::default() };
    let world = Replica::start_with(settings).await;
    // The keys of limits are those of a node that is away.
    let acl = ["ACL", "SETUSER", "jarvis", "resetkeys", "~jarvis:{[^l]*"];
    assert_eq!(world.redis.cli(&acl).trim(), "OK");
    let (session, spec) = (SessionId::random(), TurnSpec::least(MODEL, 1000));
    let new = NewTurn::of_text(spec, QUESTION.to_owned());
    let submitted = world.generations.submit(&alice(), session, new, &mut None).await;
    let generation = submitted.expect("accepted").generation.0;
    let owner = alice();
    let find = || world.generations.store.find_message(&owner, session, generation);
    assert!(eventually(LIMIT, async || matches!(find().await, Ok(Some(_)))).await, "no end");
    // The tokens are offered for 20 s.
    let kept = async || world.generations.redo.bytes() > 0;
    assert!(eventually(Duration::from_secs(5), kept).await, "the end is not kept");
}

#[tokio::test]
async fn a_turn_that_is_accepted_after_its_client_got_an_error_uses_its_permit_up() {
    let settings = LimitSettings { user_turns_per_minute: 1, ..LimitSettings::default() };
    let world = Replica::start_with(settings).await;
    let limits = &world.generations.limits;
    let subject = Subject { owner: alice(), key: None, source: Source::default() };
    let subject = Arc::new(subject);
    let admission = limits.admit(&subject, RequestKind::Turn, None).await;
    let mut permit = admission.map_err(|refusal| refusal.to_string()).expect("a turn").turn;
    assert!(permit.is_some());
    let used = async || {
        let standings = limits.usage(&subject).await;
        standings.iter().find(|it| it.kind == LimitKind::UserTurns).expect("the limit").used
    };
    assert_eq!(used().await, 1);
    let (session, spec) = (SessionId::random(), TurnSpec::least(MODEL, 1000));
    let key = Some(IdempotencyKey { key: "once".to_owned(), body: "digest".to_owned() });
    let new = NewTurn { key, ..NewTurn::of_text(spec, QUESTION.to_owned()) };
    world.redis.pause();
    let refused = world.generations.submit(&alice(), session, new.clone(), &mut permit).await;
    assert!(matches!(refused, Err(SubmitError::Store(StoreError::Redis(_)))), "{refused:?}");
    world.redis.resume();
    // The rest of the permit is given back, as for every turn that is refused.
    if let Some(permit) = permit {
        permit.give_back().await;
    }
    let found =
        async || world.generations.repeated(&alice(), session, &new).await.ok().flatten().is_some();
    assert!(eventually(LIMIT, found).await, "not accepted");
    let ended = eventually(LIMIT, async || world.generations.running().is_empty());
    assert!(ended.await, "the turn runs forever");
    assert_eq!(used().await, 1);
}

#[tokio::test]
async fn a_turn_that_panics_once_continues_without_a_lost_character_and_leaves_nothing_behind() {
    let replica = Replica::start().await;
    replica.generations.injected_panics.in_answer.store(1, Ordering::SeqCst);
    let answer = replica.answer_of_one_turn().await;
    assert_eq!((answer.status, answer.writers), (Some(Status::Complete), Some(2)));
    assert_eq!(answer.content, expected());
    replica.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_turn_that_panics_again_and_again_ends_with_internal_and_leaves_nothing_behind() {
    let replica = Replica::start().await;
    let panics = &replica.generations.injected_panics.in_answer;
    panics.store(u32::MAX, Ordering::SeqCst);
    let answer = replica.answer_of_one_turn().await;
    let code = answer.error.map(|error| error.code);
    assert_eq!((answer.status, code.as_deref()), (Some(Status::Failed), Some("internal")));
    // The stored text is kept.
    assert!(!answer.content.is_empty() && expected().starts_with(&answer.content));
    assert_eq!(u32::MAX - panics.load(Ordering::SeqCst), super::FAILED_AFTER);
    panics.store(0, Ordering::SeqCst);
    replica.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_turn_that_panics_while_its_failure_is_written_is_cancelled_and_leaves_nothing_behind() {
    let replica = Replica::start().await;
    let panics = &replica.generations.injected_panics.at_start;
    panics.store(super::FAILED_AFTER + 1, Ordering::SeqCst);
    let answer = replica.answer_of_one_turn().await;
    assert_eq!(answer.status, Some(Status::Cancelled));
    replica.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_turn_that_panics_while_it_waits_for_its_session_keeps_its_turn_and_is_answered() {
    let replica = Replica::start().await;
    let session = SessionId::random();
    let first = replica.submit(session).await;
    let feed = replica.generations.feeds.join(&OWNER, session).await.expect("a feed");
    assert!(eventually(LIMIT, async || feed.has_begun(first)).await, "no beginning");
    replica.generations.injected_panics.at_start.store(1, Ordering::SeqCst);
    let second = replica.submit(session).await;
    for generation in [first, second] {
        let answer = replica.answer(session, generation).await;
        assert_eq!((answer.status, answer.content), (Some(Status::Complete), expected()));
    }
    assert_eq!(replica.generations.injected_panics.at_start.load(Ordering::SeqCst), 0);
    replica.assert_nothing_is_left().await;
}
