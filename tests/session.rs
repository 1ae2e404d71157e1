//! The promises of the session store and the feed, on a single server, a cluster of six and a trio
//! of sentinels.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use futures_util::FutureExt as _;
use jarvis::budget::{Budget, StorageLimits};
use jarvis::redis::functions::LIBRARIES;
use jarvis::session::Image;
use jarvis::session::image::{RequestImages, to_base64};
use jarvis::session::store::{
    Acceptance, Attached, BROUGHT_BYTES, Begin, CancelReply, Cancellation, Claim, ClaimAttempt,
    Clearing, Evicted, Found, IdempotencyKey, NewConversation, NewTurn, Proposal, ReadFrom,
    ReadOutcome, Restored, Selection, SessionChange, SessionLimits, TakenBack, Transfer, Turn,
    Update, Written, bucket, channel, message, open_turns,
};
use jarvis::session::{
    Anchor, Change, Control, Cursor, Delivered, Delta, Feeds, Message, Owner, Reader, Role,
    SessionId, Status, Store, StoreError, Tag, TurnSpec, User,
};
use support::eventually;
use support::redis::{RedisCluster, RedisSentinels, RedisServer};
use support::redis_time::{begin_timing, begin_timing_from, longest, takes_moments, timed_calls};
use support::store::{connect, new_turn, retried, turn_spec, whole_answer};

/// The time after which a promise counts as broken.
const LIMIT: Duration = Duration::from_secs(20);

/// A model whose name has to be escaped.
const MODEL: &str = "m \"quoted\"";

/// The revision of these writers.
const REVISION: Tag = Tag(7);

fn cancellation(session: SessionId) -> Cancellation {
    Cancellation::new(&Owner::Anonymous, session, None)
}

/// The parts of a replica that use the store.
struct Replica {
    store: Store,
    feeds: Feeds,
}

impl Replica {
    async fn on(url: &str) -> Self {
        let redis = connect(url).await;
        let name = uuid::Uuid::new_v4().to_string();
        let store = Store::new(redis.clone(), name, SessionLimits::default());
        let feeds = Feeds::start(&redis, store.clone()).expect("feeds");
        Self { store, feeds }
    }

    async fn accept(&self, session: SessionId, text: &str) -> (Turn, bool) {
        match self
            .store
            .accept(&Proposal::new(&Owner::Anonymous, session, &new_turn(MODEL, text)))
            .await
        {
            Ok(Acceptance::New { turn, began, .. }) => (Arc::unwrap_or_clone(turn), began),
            other => panic!("not accepted: {other:?}"),
        }
    }

    async fn reader(&self, session: SessionId, cursor: Option<Cursor>) -> Reader {
        self.feeds.reader(&Owner::Anonymous, session, cursor).await.expect("a reader")
    }

    async fn answer(&self, turn: &Turn, pieces: &[&str]) {
        assert_eq!(self.store.start(turn, REVISION, None).await.unwrap(), Written::Ok);
        let mut offset = 0;
        for piece in pieces {
            assert_eq!(
                self.store.append(turn, REVISION, offset, false, piece).await.unwrap().written,
                Written::Ok
            );
            offset += piece.len() as u64;
        }
    }

    async fn finish(&self, turn: &Turn, length: usize) -> Written {
        let (answer, events) = whole_answer(turn);
        self.store.finish(turn, REVISION, length as u64, &answer, &events).await.unwrap()
    }

    async fn whole_turn(&self, session: SessionId, question: &str, answer: &[&str]) -> Turn {
        let (turn, began) = self.accept(session, question).await;
        assert!(began);
        self.answer(&turn, answer).await;
        let length = answer.iter().map(|piece| piece.len()).sum();
        assert_eq!(self.finish(&turn, length).await, Written::Ok);
        turn
    }
}

fn titled(owner: &Owner, session: SessionId, title: &str) -> Update {
    let change = SessionChange { title: Some(title.to_owned()), ..SessionChange::default() };
    Update::new(owner, session, change)
}

/// Formats a delta in a few characters, so that a test reads easily.
fn short_form(delta: &Delta) -> String {
    match &delta.change {
        Change::Text { offset, text } => format!("{offset}:{text}"),
        Change::Event { event, answer, .. } if event.control.is_terminal() => {
            format!("{}({answer})", event.control.kind())
        }
        Change::Event { event, .. } => event.control.kind().to_owned(),
        Change::Restart { from } => format!("restart({from})"),
        Change::Reasoning { .. } | Change::QueuePosition(_) => String::new(),
    }
}

async fn delta(reader: &mut Reader) -> Arc<Delta> {
    match tokio::time::timeout(LIMIT, reader.next()).await.expect("a delta in time") {
        Delivered::Delta(delta) => delta,
        Delivered::Lost => panic!("the reader lost its cursor"),
        Delivered::Transferred => panic!("the session became a user's"),
    }
}

/// Reads all deltas up to an event of this kind, pieces joined.
async fn read_until(reader: &mut Reader, until: &str) -> String {
    let mut deltas = String::new();
    let mut pieces = String::new();
    loop {
        let delta = delta(reader).await;
        if let Change::Text { offset, text } = &delta.change {
            assert_eq!(*offset, pieces.len() as u64, "a hole or a double in {deltas}");
            pieces.push_str(text);
            continue;
        }
        if !pieces.is_empty() {
            write!(deltas, " [{pieces}]").unwrap();
            pieces.clear();
        }
        let word = short_form(&delta);
        write!(deltas, " {word}").unwrap();
        if word.starts_with(until) {
            return deltas.trim().to_owned();
        }
    }
}

async fn two_replicas_deliver_the_same_events(url: &str) {
    let (here, there) = (Replica::on(url).await, Replica::on(url).await);
    for _ in 0..8 {
        let session = SessionId::random();
        let mut far = there.reader(session, None).await;
        here.whole_turn(session, "hello", &["one ", "zwei ", "三 ", "🏳️‍🌈"]).await;
        let deltas = read_until(&mut far, "ended").await;
        assert_eq!(deltas, "accepted started [one zwei 三 🏳️‍🌈] done ended(one zwei 三 🏳️‍🌈)");
        let page = there.store.page(&Owner::Anonymous, session, 0, 50).await.unwrap();
        let contents: Vec<_> = page.messages.iter().map(|m| m.content.as_str()).collect();
        assert_eq!(contents, ["hello", "one zwei 三 🏳️‍🌈"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_on_two_replicas_get_the_same_deltas_on_a_single_server() {
    let redis = RedisServer::start();
    two_replicas_deliver_the_same_events(&redis.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_on_two_replicas_get_the_same_deltas_on_a_cluster_of_six() {
    let redis = RedisCluster::start();
    two_replicas_deliver_the_same_events(&redis.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_on_two_replicas_get_the_same_deltas_behind_sentinels() {
    let redis = RedisSentinels::start();
    two_replicas_deliver_the_same_events(&redis.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_resumes_from_any_cursor_without_a_hole_or_a_double() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let mut live = replica.reader(session, None).await;
    replica.whole_turn(session, "first", &["alpha ", "beta"]).await;
    let (turn, _) = replica.accept(session, "second").await;
    replica.answer(&turn, &["gamma ", "delta ", "epsilon"]).await;
    let mut seen: Vec<Arc<Delta>> = Vec::new();
    while seen.last().is_none_or(|last| !short_form(last).ends_with("epsilon")) {
        seen.push(delta(&mut live).await);
    }
    let text_or_word = |delta: &Delta| match &delta.change {
        Change::Text { text, .. } => text.clone(),
        _ => short_form(delta),
    };
    let other = Replica::on(&redis.url()).await;
    replica.finish(&turn, "gamma delta epsilon".len()).await;
    for (place, from) in seen.iter().enumerate() {
        let mut resumed = other.reader(session, Some(from.after)).await;
        assert!(resumed.is_recovered());
        let mut rest = String::new();
        loop {
            let next = text_or_word(&*delta(&mut resumed).await);
            rest.push_str(&next);
            if next == "ended(gamma delta epsilon)" {
                break;
            }
        }
        let expected: String = seen[place + 1..].iter().map(|delta| text_or_word(delta)).collect();
        assert_eq!(rest, format!("{expected}doneended(gamma delta epsilon)"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_history_is_not_recovered() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    replica.whole_turn(session, "q", &["a"]).await;
    let strange = Cursor { events: 1, tag: Tag(77), generation: None, offset: 0 };
    assert!(!replica.reader(session, Some(strange)).await.is_recovered());
    let beyond = Cursor { events: 1000, tag: Tag(77), generation: None, offset: 0 };
    assert!(!replica.reader(session, Some(beyond)).await.is_recovered());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_is_recovered_only_where_the_events_before_it_are_those_that_were_seen() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    redis.remember();
    let (first, _) = replica.accept(session, "first").await;
    let (second, _) = replica.accept(session, "second").await;
    let read = async |from| replica.store.read(&Owner::Anonymous, session, from).await.unwrap();
    let from_start = ReadFrom::Cursor(Cursor::START, 0);
    let ReadOutcome::Window { window, .. } = read(from_start).await else { panic!("no window") };
    let cursor = ReadFrom::Cursor(window.end(), 0);
    // A failover loses both turns; each comes back, in an order of their own.
    redis.cli(&["SWAPDB", "0", "1"]);
    redis.remember();
    for turn in [&second, &first] {
        assert!(matches!(read(cursor).await, ReadOutcome::Absent | ReadOutcome::Unknown));
        assert_eq!(replica.store.restore(turn).await.unwrap(), Restored::Waiting);
    }
    assert!(matches!(read(cursor).await, ReadOutcome::Window { .. }), "the same events again");
    // After another failover the second turn comes back at its number, behind another turn.
    redis.cli(&["SWAPDB", "0", "1"]);
    replica.accept(session, "other").await;
    assert_eq!(replica.store.restore(&second).await.unwrap(), Restored::Waiting);
    let ReadOutcome::Window { window, .. } = read(from_start).await else { panic!("no window") };
    assert_eq!(window.end().events, 2, "the second turn's event has its number again");
    assert!(matches!(read(cursor).await, ReadOutcome::Unknown), "what is before it was not seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_a_failover_lost_stops_no_turn_that_was_claimed_since() {
    let redis = RedisServer::start();
    let (dead, other) = (Replica::on(&redis.url()).await, Replica::on(&redis.url()).await);
    let session = SessionId::random();
    let (turn, _) = dead.accept(session, "q").await;
    dead.answer(&turn, &["a"]).await;
    let feed = other.feeds.join(&Owner::Anonymous, session).await.expect("a feed");
    redis.remember();
    assert_eq!(dead.finish(&turn, 1).await, Written::Ok);
    let has_ended = async || feed.has_ended(turn.generation);
    assert!(eventually(LIMIT, has_ended).await, "no end");
    redis.cli(&["SWAPDB", "0", "1"]);
    let open = other.store.open_turns(bucket(session)).await.unwrap().remove(0);
    let claim = other.store.claim(&ClaimAttempt::new(open)).await.unwrap();
    let Claim::Running(claimed, 2) = claim else { panic!("{claim:?}") };
    assert!(claimed.is_claimed());
    feed.note_unended(turn.generation);
    // Also while the feed finds out that its history is another one, and reads it again.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        assert!(!has_ended().await, "the lost end counts after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_is_repeated_after_a_lost_reply_stops_no_other_turn() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let (running, _) = replica.accept(session, "running").await;
    let (waiting, _) = replica.accept(session, "waiting").await;
    let any = cancellation(session);
    let met = CancelReply::Running(running.generation);
    assert_eq!(replica.store.cancel(&any).await.unwrap(), met);
    // Meanwhile another event happens in the session.
    replica.accept(session, "another").await;
    assert_eq!(replica.store.cancel(&any).await.unwrap(), met, "the repeat meets the same turn");
    assert_eq!(replica.store.begin(&waiting).await.unwrap(), Begin::Began, "the other turn runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_a_clear_and_the_turn_after_it_brings_back_only_the_turn() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let store = &replica.store;
    for delete in [false, true] {
        let session = SessionId::random();
        replica.whole_turn(session, "secret", &["a"]).await;
        redis.remember();
        let mut clearings =
            [false, delete].map(|delete| Clearing::new(&Owner::Anonymous, session, delete));
        for clearing in &mut clearings {
            replica.accept(session, "in between").await;
            store.clear(clearing).await.unwrap();
        }
        let (after, _) = replica.accept(session, "after").await;
        redis.cli(&["SWAPDB", "0", "1"]);
        // The holder repeats its call before the clears are applied again, in either order.
        assert_eq!(store.restore(&after).await.unwrap(), Restored::Waiting);
        assert_eq!(store.begin(&after).await.unwrap(), Begin::Gone);
        for clearing in clearings.iter_mut().rev() {
            let _ = store.clear(clearing).await;
        }
        assert_eq!(store.restore(&after).await.unwrap(), Restored::Waiting);
        assert_eq!(store.begin(&after).await.unwrap(), Begin::Began);
        let page = store.page(&Owner::Anonymous, session, 0, 50).await.unwrap();
        let contents: Vec<_> = page.messages.iter().map(|message| &message.content).collect();
        assert_eq!(contents, ["after"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_a_turn_after_a_delete_brings_it_back() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    replica.whole_turn(session, "secret", &["a"]).await;
    let mut delete = Clearing::new(&Owner::Anonymous, session, true);
    replica.store.clear(&mut delete).await.unwrap();
    redis.remember();
    let (after, _) = replica.accept(session, "after").await;
    redis.cli(&["SWAPDB", "0", "1"]);
    assert_eq!(replica.store.restore(&after).await.unwrap(), Restored::Waiting);
    assert_eq!(replica.store.begin(&after).await.unwrap(), Begin::Began);
    let _ = replica.store.clear(&mut delete).await;
    replica.answer(&after, &["done again, the delete leaves the turn alone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cleared_and_deleted_turns_stay_away_although_a_failover_lost_the_whole_session() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    for delete in [false, true] {
        let session = SessionId::random();
        redis.remember();
        let ended = replica.whole_turn(session, "secret", &["a"]).await;
        let (running, _) = replica.accept(session, "secret, too").await;
        let mut clearing = Clearing::new(&Owner::Anonymous, session, delete);
        assert_eq!(replica.store.clear(&mut clearing).await.unwrap(), 3);
        let (after, _) = replica.accept(session, "after").await;
        redis.cli(&["SWAPDB", "0", "1"]);
        assert!(replica.store.clear(&mut clearing).await.is_err(), "there is no session");
        for turn in [&ended, &running] {
            assert_eq!(replica.store.restore(turn).await.unwrap(), Restored::Gone);
        }
        replica.reader(session, None).await;
        assert_eq!(replica.store.restore(&after).await.unwrap(), Restored::Waiting);
        assert_eq!(replica.store.begin(&after).await.unwrap(), Begin::Began);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_clears_that_a_failover_lost_the_last_counts_and_a_deleted_text_is_gone() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let clear = async |clearing: &mut Clearing| replica.store.clear(clearing).await;
    for is_created_before in [false, true] {
        let session = SessionId::random();
        if !is_created_before {
            redis.remember();
        }
        replica.whole_turn(session, "first secret", &["a"]).await;
        if is_created_before {
            redis.remember();
        }
        let mut delete = Clearing::new(&Owner::Anonymous, session, true);
        clear(&mut delete).await.unwrap();
        let ended = replica.whole_turn(session, "second secret", &["a"]).await;
        let mut cleared = Clearing::new(&Owner::Anonymous, session, false);
        clear(&mut cleared).await.unwrap();
        redis.cli(&["SWAPDB", "0", "1"]);
        // The replicas that did them apply them again in an order of their own.
        let order = if is_created_before {
            [&mut cleared, &mut delete]
        } else {
            [&mut delete, &mut cleared]
        };
        for clearing in order {
            let _ = clear(clearing).await;
        }
        assert_eq!(replica.store.restore(&ended).await.unwrap(), Restored::Gone);
        let events = redis.cli(&["LRANGE", &format!("{}:events", channel(session)), "0", "-1"]);
        assert!(!events.contains("secret"), "{events}");
        replica.whole_turn(session, "and on", &["a"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_of_the_fence_writes_and_a_repeat_changes_nothing() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let (turn, _) = replica.accept(session, "q").await;
    replica.answer(&turn, &["hello"]).await;
    let mut stranger = turn.clone();
    stranger.fence = jarvis::session::store::Fence(uuid::Uuid::new_v4());
    assert_eq!(
        replica.store.append(&stranger, REVISION, 5, false, "!").await.unwrap().written,
        Written::Fenced
    );
    assert_eq!(replica.finish(&stranger, 5).await, Written::Fenced);
    assert_eq!(
        replica.store.append(&turn, REVISION, 0, false, "hello").await.unwrap().written,
        Written::Ok
    );
    assert_eq!(
        replica.store.append(&turn, REVISION, 3, false, "lo").await.unwrap().written,
        Written::Ok
    );
    assert_eq!(
        replica.store.append(&turn, REVISION, 9, false, "x").await.unwrap().written,
        Written::Hole(5)
    );
    assert_eq!(replica.finish(&turn, 6).await, Written::Hole(5));
    assert_eq!(replica.finish(&turn, 5).await, Written::Ok);
    assert_eq!(replica.finish(&turn, 5).await, Written::Ok, "a repeat after a lost reply");
    let page = replica.store.page(&Owner::Anonymous, session, 0, 50).await.unwrap();
    assert_eq!(page.messages.len(), 2);
    assert_eq!(page.messages[1].content, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_run_in_the_order_of_acceptance_and_the_ninth_that_waits_is_refused() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let (first, began) = replica.accept(session, "0").await;
    assert!(began);
    let mut waiting = Vec::new();
    for number in 1..=8 {
        let (turn, began) = replica.accept(session, &number.to_string()).await;
        assert!(!began);
        waiting.push(turn);
    }
    let ninth = replica
        .store
        .accept(&Proposal::new(&Owner::Anonymous, session, &new_turn(MODEL, "9")))
        .await;
    assert!(matches!(ninth, Err(StoreError::Busy)));
    assert_eq!(replica.store.begin(&waiting[0]).await.unwrap(), Begin::Waiting);
    replica.answer(&first, &[]).await;
    assert_eq!(replica.finish(&first, 0).await, Written::Ok);
    assert_eq!(replica.store.begin(&waiting[1]).await.unwrap(), Begin::Waiting);
    assert_eq!(replica.store.begin(&waiting[0]).await.unwrap(), Begin::Began);
    assert_eq!(replica.store.begin(&waiting[0]).await.unwrap(), Begin::Began, "a repeat");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_cancel_and_finish_wins_and_the_text_so_far_is_kept() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let mut reader = replica.reader(session, None).await;
    let (turn, _) = replica.accept(session, "q").await;
    replica.answer(&turn, &["so far"]).await;
    let (waiting, _) = replica.accept(session, "waits").await;
    let cancelled = replica.store.cancel(&cancellation(session)).await.unwrap();
    assert_eq!(cancelled, CancelReply::Running(turn.generation));
    assert_eq!(
        replica.store.append(&turn, REVISION, 6, false, "!").await.unwrap().written,
        Written::Fenced
    );
    assert_eq!(replica.finish(&turn, 6).await, Written::Fenced);
    let deltas = read_until(&mut reader, "cancelled").await;
    assert_eq!(deltas, "accepted started [so far] accepted cancelled(so far)");
    let page = replica.store.page(&Owner::Anonymous, session, 0, 50).await.unwrap();
    assert_eq!(page.messages[1].content, "so far");
    assert_eq!(page.messages[1].status, Some(Status::Cancelled));
    assert_eq!(page.messages[1].generation_id, Some(turn.generation));
    assert_eq!(page.messages[1].id, turn.generation.0);
    assert_eq!(page.messages[1].model.as_deref(), Some("m \"quoted\""));
    let cancelled = replica.store.cancel(&cancellation(session)).await.unwrap();
    assert_eq!(cancelled, CancelReply::Waiting(waiting.generation));
    assert_eq!(replica.store.begin(&waiting).await.unwrap(), Begin::Gone);
    let nothing = replica.store.cancel(&cancellation(session)).await.unwrap();
    assert_eq!(nothing, CancelReply::Nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_gives_the_same_generation_and_never_another_body() {
    let redis = RedisServer::start();
    let (here, there) = (Replica::on(&redis.url()).await, Replica::on(&redis.url()).await);
    let session = SessionId::random();
    let keyed = |body: &str| NewTurn {
        key: Some(IdempotencyKey { key: "k".into(), body: body.into() }),
        ..new_turn(MODEL, "q")
    };
    let owner = Owner::Anonymous;
    let Ok(Acceptance::New { turn, before: began_after, .. }) =
        here.store.accept(&Proposal::new(&owner, session, &keyed("b"))).await
    else {
        panic!("not accepted")
    };
    for ended in [false, true] {
        if ended {
            here.answer(&turn, &["a"]).await;
            here.finish(&turn, 1).await;
        }
        match there.store.accept(&Proposal::new(&owner, session, &keyed("b"))).await.unwrap() {
            Acceptance::Same { generation, before } => {
                assert_eq!(generation, turn.generation);
                assert_eq!(before, Some(began_after));
            }
            Acceptance::New { .. } => panic!("a second turn for the same key"),
        }
    }
    let other = there.store.accept(&Proposal::new(&owner, session, &keyed("other"))).await;
    assert!(matches!(other, Err(StoreError::KeyReused)));
    // The turn is found, too, where no new one would be accepted.
    let found = there.store.find(&owner, session, &keyed("b")).await.unwrap();
    assert_eq!(found, Some((turn.generation, Some(began_after))));
    let unknown = NewTurn {
        key: Some(IdempotencyKey { key: "new".into(), body: "b".into() }),
        ..new_turn(MODEL, "q")
    };
    assert_eq!(there.store.find(&owner, session, &unknown).await.unwrap(), None);
    assert_eq!(there.store.describe(&owner, session).await.unwrap().info.message_count, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_a_failover_lost_is_the_same_when_another_replica_gets_its_repeat() {
    let redis = RedisServer::start();
    let (here, there) = (Replica::on(&redis.url()).await, Replica::on(&redis.url()).await);
    let (owner, session) = (Owner::Anonymous, SessionId::random());
    let keyed = NewTurn {
        key: Some(IdempotencyKey { key: "k".into(), body: "b".into() }),
        ..new_turn(MODEL, "q")
    };
    redis.remember();
    let first = here.store.accept(&Proposal::new(&owner, session, &keyed)).await.unwrap();
    let Acceptance::New { turn: first, .. } = first else { panic!("not accepted") };
    let outcome =
        here.store.read(&owner, session, ReadFrom::Cursor(Cursor::START, 0)).await.unwrap();
    let ReadOutcome::Window { window, .. } = outcome else { panic!("no window") };
    redis.lose_what_came_since();
    let proposal = Proposal::new(&owner, session, &keyed);
    let again = retried(async || there.store.accept(&proposal).await).await;
    let Acceptance::New { turn: again, .. } = again else { panic!("{again:?}") };
    assert_eq!(again.generation, first.generation);
    // A reader that got the first event continues from it; the first holder leaves the turn.
    let read = there.store.read(&owner, session, ReadFrom::Cursor(window.end(), 0)).await.unwrap();
    assert!(matches!(read, ReadOutcome::Window { .. }), "{read:?}");
    assert_eq!(here.store.restore(&first).await.unwrap(), Restored::Gone);
    let repeated = here.store.accept(&Proposal::new(&owner, session, &keyed)).await.unwrap();
    assert!(matches!(repeated, Acceptance::Same { .. }), "{repeated:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_another_owner_looks_like_none() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let turn = replica.whole_turn(session, "mine", &["a secret"]).await;
    let thief = Owner::User(User::local("thief").expect("a user"));
    let store = &replica.store;
    assert!(matches!(store.page(&thief, session, 0, 50).await, Err(StoreError::Absent)));
    assert!(matches!(store.describe(&thief, session).await, Err(StoreError::Absent)));
    assert!(matches!(
        store.cancel(&Cancellation::new(&thief, session, None)).await,
        Err(StoreError::Absent)
    ));
    assert!(matches!(
        store.clear(&mut Clearing::new(&thief, session, true)).await,
        Err(StoreError::Absent)
    ));
    assert!(matches!(
        store.update(&mut titled(&thief, session, "x")).await,
        Err(StoreError::Absent)
    ));
    let chat = store.accept(&Proposal::new(&thief, session, &new_turn(MODEL, "q"))).await;
    assert!(matches!(chat, Err(StoreError::Absent)));
    let mut stolen = turn;
    stolen.owner = thief.clone();
    assert_eq!(
        store.append(&stolen, REVISION, 0, false, "x").await.unwrap().written,
        Written::Fenced
    );
    let mut listening = replica.feeds.reader(&thief, session, None).await.unwrap();
    let mut mine = replica.reader(session, None).await;
    replica.whole_turn(session, "again", &["another secret"]).await;
    read_until(&mut mine, "ended").await;
    let heard = tokio::time::timeout(Duration::from_millis(300), listening.next()).await;
    assert!(heard.is_err(), "a stranger got {heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_stops_the_running_turn_and_delete_leaves_cursors_that_never_come_again() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let mut reader = replica.reader(session, None).await;
    replica.whole_turn(session, "q", &["a"]).await;
    read_until(&mut reader, "ended").await;
    let (running, _) = replica.accept(session, "r").await;
    replica.answer(&running, &["part"]).await;
    let (waiting, _) = replica.accept(session, "w").await;
    let before =
        [read_until(&mut reader, "accepted").await, read_until(&mut reader, "accepted").await];
    assert_eq!(
        replica.store.clear(&mut Clearing::new(&Owner::Anonymous, session, false)).await.unwrap(),
        3
    );
    assert_eq!(
        replica.store.append(&running, REVISION, 4, false, "x").await.unwrap().written,
        Written::Fenced
    );
    assert_eq!(replica.store.begin(&waiting).await.unwrap(), Begin::Gone);
    assert_eq!(before.join(" "), "accepted started [part] accepted");
    let after = read_until(&mut reader, "cleared").await;
    // Where its feed reads Redis meanwhile, a reader gets what the clear has left, as a late one does.
    let left = "restart(0) cancelled() cancelled() cleared";
    assert!(["cancelled(part) cancelled() cleared", left].contains(&&*after), "{after}");
    let before = reader.cursor();
    replica.store.clear(&mut Clearing::new(&Owner::Anonymous, session, true)).await.unwrap();
    let gone = replica.store.describe(&Owner::Anonymous, session).await;
    assert!(matches!(gone, Err(StoreError::Absent)));
    replica.whole_turn(session, "new life", &["b"]).await;
    read_until(&mut reader, "ended").await;
    assert!(reader.cursor().events > before.events + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_reader_gets_the_end_of_a_cleared_turn_and_no_text_of_a_deleted_session() {
    let redis = RedisServer::start();
    let (here, there) = (Replica::on(&redis.url()).await, Replica::on(&redis.url()).await);
    for delete in [false, true] {
        let session = SessionId::random();
        let (running, _) = here.accept(session, "a secret").await;
        here.answer(&running, &["part"]).await;
        let mut halfway = here.reader(session, Some(Cursor::START)).await;
        while !matches!(delta(&mut halfway).await.change, Change::Text { .. }) {}
        let halfway = halfway.cursor();
        here.store.clear(&mut Clearing::new(&Owner::Anonymous, session, delete)).await.unwrap();
        let mut late = there.reader(session, Some(Cursor::START)).await;
        let deltas = read_until(&mut late, "cleared").await;
        assert_eq!(deltas, "accepted started cancelled() cleared");
        // The text of the answer is gone with it.
        let mut late = there.reader(session, Some(halfway)).await;
        assert_eq!(read_until(&mut late, "cleared").await, "restart(0) cancelled() cleared");
        let events = redis.cli(&["KEYS", &format!("*{session}:events")]);
        let kept = redis.cli(&["LRANGE", events.trim(), "0", "-1"]);
        assert!(kept.contains("cleared"), "{kept}");
        assert!(!kept.contains("a secret"), "{kept}");
    }
    // The end of a whole answer is not delivered without its text.
    let session = SessionId::random();
    here.whole_turn(session, "q", &["a"]).await;
    here.store.clear(&mut Clearing::new(&Owner::Anonymous, session, false)).await.unwrap();
    let mut late = there.reader(session, Some(Cursor::START)).await;
    let delivered = tokio::time::timeout(LIMIT, late.next()).await.expect("an end in time");
    assert!(matches!(delivered, Delivered::Lost), "its text is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_read_from_its_beginning_when_that_event_is_no_longer_kept() {
    let redis = RedisServer::start();
    let (here, there) = (Replica::on(&redis.url()).await, Replica::on(&redis.url()).await);
    let session = SessionId::random();
    let (turn, _) = here.accept(session, "q").await;
    here.answer(&turn, &["one "]).await;
    for _ in 0..70 {
        let (waiting, _) = here.accept(session, "never mind").await;
        let wish = Cancellation::new(&Owner::Anonymous, session, Some(waiting.generation));
        here.store.cancel(&wish).await.unwrap();
    }
    assert_eq!(there.store.answer_so_far(&turn).await.unwrap(), "one ");
    let mut reader = there.reader(session, None).await;
    assert!(reader.is_recovered());
    assert_eq!(short_form(&*delta(&mut reader).await), "0:one ");
    assert_eq!(
        here.store.append(&turn, REVISION, 4, false, "two").await.unwrap().written,
        Written::Ok
    );
    assert_eq!(short_form(&*delta(&mut reader).await), "4:two");
    assert_eq!(here.finish(&turn, 7).await, Written::Ok);
    assert_eq!(read_until(&mut reader, "ended").await, "done ended(one two)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_came_back_empty_gets_its_functions_again() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    redis.cli(&["FUNCTION", "FLUSH"]);
    replica.whole_turn(SessionId::random(), "q", &["a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_position_that_is_published_before_the_session_is_known_is_not_lost() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    // A proposal has the same generation in every Redis.
    let elsewhere = RedisServer::start();
    let new = new_turn(MODEL, "q");
    let proposal = Proposal::new(&Owner::Anonymous, session, &new);
    let accepted = Replica::on(&elsewhere.url()).await.store.accept(&proposal).await;
    let Ok(Acceptance::New { turn, .. }) = accepted else { panic!("{accepted:?}") };
    let mut reader = replica.reader(session, None).await;
    let channel = redis.cli(&["PUBSUB", "SHARDCHANNELS"]);
    redis.cli(&["SPUBLISH", channel.trim(), &format!("q{} 3 -", turn.generation)]);
    replica.store.accept(&proposal).await.expect("accepted");
    assert_eq!(short_form(&*delta(&mut reader).await), "accepted");
    assert!(matches!(delta(&mut reader).await.change, Change::QueuePosition(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_position_that_a_paused_replica_publishes_after_the_end_is_not_delivered() {
    let redis = RedisServer::start();
    let (here, there) = (Replica::on(&redis.url()).await, Replica::on(&redis.url()).await);
    let session = SessionId::random();
    let ended = here.whole_turn(session, "q", &["a"]).await.generation;
    // The feed of the other replica begins behind the turn.
    let mut reader = there.reader(session, None).await;
    let feed = there.feeds.join(&Owner::Anonymous, session).await.expect("a feed");
    let channel = redis.cli(&["PUBSUB", "SHARDCHANNELS"]);
    for hint in [format!("q{ended} 1 -"), format!("x{ended}")] {
        redis.cli(&["SPUBLISH", channel.trim(), &hint]);
    }
    // Hints arrive in order.
    assert!(eventually(LIMIT, async || feed.upstream_is_closed(ended)).await);
    let next = reader.next().now_or_never();
    assert!(next.is_none(), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_hint_is_made_up_for_after_a_second_without_hints() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let mut reader = replica.reader(session, None).await;
    let (turn, _) = replica.accept(session, "q").await;
    replica.answer(&turn, &["one "]).await;
    assert_eq!(short_form(&*delta(&mut reader).await), "accepted");
    assert_eq!(short_form(&*delta(&mut reader).await), "started");
    assert_eq!(short_form(&*delta(&mut reader).await), "0:one ");
    // The answer grows without a hint on the channel.
    let keys = redis.cli(&["KEYS", "*:answer"]);
    redis.cli(&["APPEND", keys.trim(), "two"]);
    let silent_since = Instant::now();
    assert_eq!(short_form(&*delta(&mut reader).await), "4:two");
    assert!(silent_since.elapsed() < Duration::from_secs(3), "{:?}", silent_since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_turns_survive_a_crash_of_redis_and_readers_continue() {
    let redis = RedisServer::start_with(&["--appendfsync", "always"]);
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let mut reader = replica.reader(session, None).await;
    replica.whole_turn(session, "before", &["a"]).await;
    read_until(&mut reader, "ended").await;
    redis.restart();
    let new = new_turn(MODEL, "after");
    let proposal = Proposal::new(&Owner::Anonymous, session, &new);
    let accepted = retried(async || replica.store.accept(&proposal).await).await;
    let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
    replica.answer(&turn, &["b"]).await;
    replica.finish(&turn, 1).await;
    assert_eq!(read_until(&mut reader, "ended").await, "accepted started [b] done ended(b)");
    let page = replica.store.page(&Owner::Anonymous, session, 0, 50).await.unwrap();
    assert_eq!(page.messages.len(), 4);
}

/// Returns a turn beside a message: another answer to the question, or another question.
fn beside(anchor: Anchor, question: &Message, text: &str) -> NewTurn {
    let spec = TurnSpec { anchor: Some(anchor), ..turn_spec("m") };
    let attached = match anchor {
        Anchor::BesideAnswer(_) => {
            Attached { question: Some(Box::new(question.clone())), ..Attached::default() }
        }
        _ => Attached::default(),
    };
    NewTurn { spec, attached, ..new_turn(MODEL, text) }
}

impl Replica {
    async fn accept_beside(
        &self,
        session: SessionId,
        anchor: Anchor,
        text: &str,
    ) -> Result<(Turn, bool), StoreError> {
        let mut question = message(Role::User, Utc::now());
        if let Anchor::BesideAnswer(answer) = anchor {
            let found = self.found(session, answer).await;
            question = self.found(session, found.message.parent_id.unwrap()).await.message;
        }
        let text = if question.content.is_empty() { text } else { &question.content };
        let new = beside(anchor, &question, text);
        match self.store.accept(&Proposal::new(&Owner::Anonymous, session, &new)).await? {
            Acceptance::New { turn, began, .. } => Ok((Arc::unwrap_or_clone(turn), began)),
            same @ Acceptance::Same { .. } => panic!("not accepted: {same:?}"),
        }
    }

    async fn found(&self, session: SessionId, id: uuid::Uuid) -> Found {
        self.store.find_message(&Owner::Anonymous, session, id).await.unwrap().expect("a message")
    }

    async fn whole_turn_beside(
        &self,
        session: SessionId,
        anchor: Anchor,
        texts: [&str; 2],
    ) -> Turn {
        let (turn, began) = self.accept_beside(session, anchor, texts[0]).await.unwrap();
        if !began {
            assert_eq!(self.store.begin(&turn).await.unwrap(), Begin::Began);
        }
        self.answer(&turn, &[texts[1]]).await;
        assert_eq!(self.finish(&turn, texts[1].len()).await, Written::Ok);
        turn
    }

    async fn select(&self, session: SessionId, message: uuid::Uuid) -> Result<bool, StoreError> {
        self.store.select(&mut Selection::new(&Owner::Anonymous, session, message)).await
    }

    /// Returns the texts of the selected branch.
    async fn texts(&self, session: SessionId) -> Vec<String> {
        let page = self.store.page(&Owner::Anonymous, session, 0, 500).await.unwrap();
        page.messages.into_iter().map(|message| message.content).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_turns_beside_messages_brings_them_back_to_their_places() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let (store, session) = (&replica.store, SessionId::random());
    let first = replica.whole_turn(session, "q1", &["a1"]).await;
    replica.whole_turn(session, "q2", &["a2"]).await;
    let question = first.question().id;
    redis.remember();
    let (beside_question, beside_answer) =
        (Anchor::BesideQuestion(question), Anchor::BesideAnswer(first.generation.0));
    let edited = replica.whole_turn_beside(session, beside_question, ["e1", "b1"]).await;
    let after = replica.whole_turn(session, "e2", &["b2"]).await;
    let again = replica.whole_turn_beside(session, beside_answer, ["", "c1"]).await;
    let (running, _) = replica.accept(session, "q3").await;
    assert_eq!(replica.texts(session).await, ["q1", "c1", "q3"]);
    redis.cli(&["SWAPDB", "0", "1"]);
    assert_eq!(replica.texts(session).await, ["q1", "a1", "q2", "a2"]);
    // In any order: each waits for those that were accepted before.
    for turn in [&running, &again, &after, &edited] {
        assert_eq!(store.restore(turn).await.unwrap(), Restored::Waiting);
    }
    for (turn, text) in [(&edited, "b1"), (&after, "b2"), (&again, "c1")] {
        assert_eq!(store.begin(turn).await.unwrap(), Begin::Began);
        replica.answer(turn, &[text]).await;
        assert_eq!(replica.finish(turn, text.len()).await, Written::Ok);
    }
    assert_eq!(store.begin(&running).await.unwrap(), Begin::Began);
    assert_eq!(replica.texts(session).await, ["q1", "c1", "q3"]);
    replica.answer(&running, &["d3"]).await;
    replica.finish(&running, 2).await;
    replica.select(session, after.generation.0).await.unwrap();
    assert_eq!(replica.texts(session).await, ["e1", "b1", "e2", "b2"]);
    let siblings = replica.found(session, first.generation.0).await.message.siblings;
    assert_eq!(siblings.unwrap().ids, [first.generation.0, again.generation.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_beside_a_message_that_never_comes_back_goes_to_the_end() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let (store, session) = (&replica.store, SessionId::random());
    replica.whole_turn(session, "q1", &["a1"]).await;
    redis.remember();
    let lost = replica.whole_turn(session, "q2", &["a2"]).await;
    let anchors =
        [Anchor::BesideAnswer(lost.generation.0), Anchor::BesideQuestion(lost.question().id)];
    let mut turns = Vec::new();
    for anchor in anchors {
        turns.push(replica.whole_turn_beside(session, anchor, ["edited", "a3"]).await);
    }
    redis.cli(&["SWAPDB", "0", "1"]);
    for turn in &turns {
        assert_eq!(store.restore(turn).await.unwrap(), Restored::Waiting);
        let mut tries = 1;
        while store.begin(turn).await.unwrap() == Begin::Waiting {
            tries += 1;
        }
        assert_eq!(tries, 10);
        let page = store.newest(&Owner::Anonymous, session, 1, 1 << 20).await.unwrap();
        assert!(turn.answers(&page.messages[0]), "the question is the last message");
        replica.answer(turn, &["a3"]).await;
        assert_eq!(replica.finish(turn, 2).await, Written::Ok);
    }
    assert_eq!(replica.texts(session).await, ["q1", "a1", "q2", "a3", "edited", "a3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_session_that_is_applied_again_leaves_what_was_changed_later() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let (store, owner, session) = (&replica.store, Owner::Anonymous, SessionId::random());
    replica.whole_turn(session, "q", &["a"]).await;
    let of_session = async || store.describe(&owner, session).await.expect("a session").info;
    let mut first = titled(&owner, session, "first");
    let pinned = SessionChange { pinned: Some(true), ..SessionChange::default() };
    let mut pinned = Update::new(&owner, session, pinned);
    redis.remember();
    for change in [&mut pinned, &mut first] {
        store.update(change).await.expect("a change");
    }
    redis.cli(&["SWAPDB", "0", "1"]);
    assert_ne!(of_session().await.title, "first");
    for change in [&mut first, &mut pinned] {
        store.update(change).await.expect("a change");
    }
    let info = of_session().await;
    assert_eq!((info.title.as_str(), info.pinned), ("first", true));
    store.update(&mut titled(&owner, session, "second")).await.expect("a change");
    store.update(&mut first).await.expect("nothing to change");
    assert_eq!(of_session().await.title, "second");
    let mut archived = SessionChange { archived: Some(true), ..SessionChange::default() };
    archived.pinned = Some(false);
    let mut archived = Update::new(&owner, session, archived);
    store.update(&mut archived).await.expect("a change");
    // Another conversation of the session is not changed by what was before it.
    let mut clearing = Clearing::new(&owner, session, false);
    store.clear(&mut clearing).await.expect("a clear");
    replica.whole_turn(session, "another", &["a"]).await;
    let before = of_session().await;
    store.update(&mut first).await.expect("nothing to change");
    assert_eq!(of_session().await.title, before.title);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_changes_have_times_of_an_older_release_is_changed_as_any_other() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let (store, owner, session) = (&replica.store, Owner::Anonymous, SessionId::random());
    replica.whole_turn(session, "q", &["a"]).await;
    let mut change = titled(&owner, session, "first");
    store.update(&mut change).await.expect("a change");
    let keys = redis.cli(&["KEYS", &format!("*{session}*")]);
    let key = keys.lines().find(|key| redis.cli(&["HEXISTS", key, "title_at"]).trim() == "1");
    let key = key.expect("the hash of the session");
    redis.cli(&["HSET", key, "title_at", "2026-11-27T10:00:00.000000Z"]);
    store.update(&mut change).await.expect("a repeat");
    store.update(&mut titled(&owner, session, "second")).await.expect("a change");
    store.update(&mut change).await.expect("nothing to change");
    let info = store.describe(&owner, session).await.expect("a session").info;
    assert_eq!(info.title, "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_title_of_the_model_that_a_failover_lost_is_given_again_unless_the_user_gave_one() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let (store, owner) = (&replica.store, Owner::Anonymous);
    for of_user in [None, Some("mine")] {
        let session = SessionId::random();
        replica.whole_turn(session, "q", &["a"]).await;
        let title = async || store.describe(&owner, session).await.expect("a session").info.title;
        redis.remember();
        let mut of_model = Update::title_of_model(&owner, session, "of the model".to_owned());
        store.update(&mut of_model).await.expect("a title");
        assert_eq!(title().await, "of the model");
        redis.cli(&["SWAPDB", "0", "1"]);
        assert_eq!(title().await, "q");
        if let Some(of_user) = of_user {
            store.update(&mut titled(&owner, session, of_user)).await.expect("a change");
        }
        store.update(&mut of_model).await.expect("the same again");
        assert_eq!(title().await, of_user.unwrap_or("of the model"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selection_that_a_failover_lost_is_applied_again_unless_the_session_has_gone_on() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    for goes_on in [false, true] {
        let session = SessionId::random();
        let first = replica.whole_turn(session, "q1", &["a1"]).await;
        let beside = Anchor::BesideQuestion(first.question().id);
        replica.whole_turn_beside(session, beside, ["e1", "b1"]).await;
        redis.remember();
        let mut selection = Selection::new(&Owner::Anonymous, session, first.generation.0);
        assert!(replica.store.select(&mut selection).await.unwrap());
        assert_eq!(replica.texts(session).await, ["q1", "a1"]);
        let (turn, _) = replica.accept(session, "q2").await;
        redis.cli(&["SWAPDB", "0", "1"]);
        assert_eq!(replica.texts(session).await, ["e1", "b1"]);
        if goes_on {
            replica.whole_turn(session, "e2", &["b2"]).await;
        }
        replica.store.select(&mut selection).await.unwrap();
        let shown: &[&str] = if goes_on { &["e1", "b1", "e2", "b2"] } else { &["q1", "a1"] };
        assert_eq!(replica.texts(session).await, shown);
        // A turn that followed the lost selection nevertheless goes to its branch.
        assert_eq!(replica.store.restore(&turn).await.unwrap(), Restored::Waiting);
        assert_eq!(replica.store.begin(&turn).await.unwrap(), Begin::Began);
        assert_eq!(replica.texts(session).await, ["q1", "a1", "q2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_message_is_selected_from_any_branch_in_bounded_calls() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let first = replica.whole_turn(session, "q0", &["a0"]).await;
    fill(&redis, session, 1_000);
    let deep = replica.whole_turn(session, "deep", &["end"]).await;
    let whole = replica.texts(session).await;
    // Each branch leaves the one before it.
    let mut ends = Vec::new();
    let mut beside = first.question().id;
    for depth in 0..30 {
        let anchor = Anchor::BesideQuestion(beside);
        let edited = format!("e{depth}");
        replica.whole_turn_beside(session, anchor, [edited.as_str(), "b"]).await;
        let on = replica.whole_turn(session, &format!("on{depth}"), &["c"]).await;
        ends.push(on.generation.0);
        beside = on.question().id;
    }
    let last = replica.texts(session).await;
    assert_eq!(replica.found(session, deep.generation.0).await.position, None);
    // It is a thousand messages behind the place where its branch leaves the selected one.
    assert!(replica.select(session, deep.generation.0).await.unwrap());
    assert_eq!(replica.found(session, deep.generation.0).await.position, Some(1001));
    assert_eq!(replica.texts(session).await, whole);
    assert!(replica.select(session, ends[29]).await.unwrap());
    assert_eq!(replica.texts(session).await, last);
    assert!(!replica.select(session, ends[29]).await.unwrap(), "it is selected already");
    for (depth, end) in ends.iter().enumerate().rev() {
        replica.select(session, *end).await.unwrap();
        let texts = replica.texts(session).await;
        assert_eq!(texts.last().map(String::as_str), Some("c"), "{depth}");
        assert_eq!(texts[texts.len() - 2], format!("on{depth}"));
    }
    let unknown = replica.select(session, uuid::Uuid::new_v4()).await;
    assert!(matches!(unknown, Err(StoreError::MessageAbsent)), "{unknown:?}");
    let thief = Owner::User(User::local("thief").expect("a user"));
    let stolen = replica.store.select(&mut Selection::new(&thief, session, ends[0])).await;
    assert!(matches!(stolen, Err(StoreError::Absent)), "{stolen:?}");
    let (running, _) = replica.accept(session, "runs").await;
    let busy = replica.select(session, deep.generation.0).await;
    assert!(matches!(busy, Err(StoreError::TurnRuns(_))), "{busy:?}");
    replica.answer(&running, &["x"]).await;
}

/// Returns the number of calls of functions since the statistics of Redis were reset.
fn function_calls(redis: &RedisServer) -> u64 {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let calls = stats.lines().filter(|line| line.starts_with("cmdstat_fcall"));
    calls
        .filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selection_takes_redis_a_bounded_number_of_calls_however_long_the_branch() {
    let redis = RedisServer::start_with(&["--appendonly", "no"]);
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let first = replica.whole_turn(session, "q", &["a"]).await;
    fill(&redis, session, 100_000);
    let last = replica.whole_turn(session, "end", &["z"]).await;
    let edited = replica
        .whole_turn_beside(session, Anchor::BesideQuestion(first.question().id), ["e", "b"])
        .await;
    let counted = async |message| {
        redis.cli(&["CONFIG", "RESETSTAT"]);
        let selected = replica.select(session, message).await;
        (selected, function_calls(&redis))
    };
    let (running, _) = replica.accept(session, "runs").await;
    let (busy, calls) = counted(last.generation.0).await;
    assert!(matches!(busy, Err(StoreError::TurnRuns(_))), "{busy:?}");
    assert_eq!(calls, 1, "a selection that is refused");
    replica.answer(&running, &[]).await;
    assert_eq!(replica.finish(&running, 0).await, Written::Ok);
    for message in [last.generation.0, edited.generation.0] {
        let (selected, calls) = counted(message).await;
        assert!(selected.unwrap());
        assert_eq!(calls, 1, "a strand of 100,000 messages or of two");
    }
    // Each edit is in the branch that the one before it began, so that the path is in hundreds of chains.
    let mut question = replica.whole_turn(session, "q0", &["a"]).await.question().id;
    let mut deepest = None;
    for _ in 0..700 {
        let beside = Anchor::BesideQuestion(question);
        replica.whole_turn_beside(session, beside, ["e", "b"]).await;
        let on = replica.whole_turn(session, "on", &["b"]).await;
        question = on.question().id;
        deepest = Some(on.generation.0);
    }
    assert!(replica.select(session, last.generation.0).await.unwrap());
    begin_timing(&redis);
    let (selected, calls) = counted(deepest.expect("an answer")).await;
    assert!(selected.unwrap());
    println!("{calls} calls through 700 chains: {:?}", timed_calls(&redis));
    assert!(calls <= 6, "{calls} calls through 700 chains");
    assert_eq!(replica.texts(session).await[..2], ["e", "b"]);
    let (selected, calls) = counted(deepest.expect("an answer")).await;
    assert_eq!((selected.unwrap(), calls), (false, 1), "it is selected already");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_takes_redis_longer_than_five_milliseconds_while_turns_wait_beside_a_large_answer()
{
    let redis = RedisServer::start_with(&["--appendonly", "no"]);
    let replica = Replica::on(&redis.url()).await;
    let mut least = f64::MAX;
    for _ in 0..8 {
        let session = SessionId::random();
        let large = replica.whole_turn(session, "q", &[&"a".repeat(500 << 10)]).await;
        let beside = Anchor::BesideAnswer(large.generation.0);
        begin_timing(&redis);
        let (running, _) = replica.accept(session, "runs").await;
        let mut waiting = Vec::new();
        for _ in 0..8 {
            waiting.push(replica.accept_beside(session, beside, "").await.unwrap().0);
        }
        let busy = replica.accept_beside(session, beside, "").await;
        assert!(matches!(busy, Err(StoreError::Busy)), "{busy:?}");
        replica.answer(&running, &[]).await;
        assert_eq!(replica.finish(&running, 0).await, Written::Ok);
        assert_eq!(replica.store.begin(&waiting[0]).await.unwrap(), Begin::Began);
        let calls = timed_calls(&redis);
        let longest = calls.iter().map(|(_, time)| *time).fold(0.0, f64::max);
        println!("milliseconds: {calls:.1?}");
        // Other work of the machine counts, too: the least of a few tries is the cost of a call.
        least = f64::min(least, longest);
        if least < 5.0 {
            break;
        }
    }
    assert!(least < 5.0, "milliseconds: {least:.2}");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_turns_of_one_bucket_are_read_in_parts() {
    let redis = RedisServer::start_with(&["--appendonly", "no"]);
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    let (turn, _) = replica.accept(session, "q").await;
    // A client chooses the identifier of its session, and so the bucket.
    let others = "for number = 1, tonumber(ARGV[1]) do \
                  local id = string.format('%08x-0000-4000-8000-000000000000', number) \
                  redis.call('HSET', KEYS[1], id .. ' ' .. id, 'another-replica ' .. id) end";
    redis.cli(&["EVAL", others, "1", &open_turns(bucket(session)), "9000"]);
    let mut least = f64::MAX;
    for _ in 0..8 {
        begin_timing(&redis);
        let open = replica.store.open_turns(bucket(session)).await.unwrap();
        assert_eq!(open.len(), 9_001);
        assert!(open.iter().any(|open| open.generation == turn.generation));
        let calls = timed_calls(&redis);
        assert!(calls.len() > 10, "{} calls", calls.len());
        least = f64::min(least, calls.iter().map(|(_, time)| *time).fold(0.0, f64::max));
        begin_timing(&redis);
        let open = replica.store.open_turn(&turn).await.unwrap();
        assert_eq!(open.map(|open| open.fence), Some(turn.fence));
        assert_eq!(timed_calls(&redis).len(), 1, "one turn is one look-up");
    }
    println!("milliseconds: {least:.2}");
    assert!(least < 5.0, "milliseconds: {least:.2}");
    let ended = replica.whole_turn(SessionId::random(), "q", &["a"]).await;
    assert_eq!(replica.store.open_turn(&ended).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_too_large_to_be_published_is_read_at_once() {
    let redis = RedisServer::start();
    let (here, there) = (Replica::on(&redis.url()).await, Replica::on(&redis.url()).await);
    let session = SessionId::random();
    here.whole_turn(session, "q", &["a"]).await;
    let mut reader = there.reader(session, None).await;
    let text = "x".repeat(1 << 20);
    let (turn, _) = here.accept(session, &text).await;
    let Change::Event { event, .. } = &delta(&mut reader).await.change else { panic!("no event") };
    assert_eq!(event.generation, Some(turn.generation));
    let Control::Accepted { message, .. } = &event.control else {
        panic!("{}", event.control.kind())
    };
    assert_eq!(message.len(), text.len());
    here.answer(&turn, &["b"]).await;
    assert_eq!(here.finish(&turn, 1).await, Written::Ok);
    assert_eq!(read_until(&mut reader, "ended").await, "started [b] done ended(b)");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_deleted_session_goes_within_minutes_and_cursors_go_on_behind_it() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let (session, owner) = (SessionId::random(), Owner::Anonymous);
    let mut reader = replica.reader(session, None).await;
    replica.whole_turn(session, "q", &["a"]).await;
    read_until(&mut reader, "ended").await;
    replica.store.clear(&mut Clearing::new(&owner, session, true)).await.unwrap();
    read_until(&mut reader, "cleared").await;
    let events = format!("{}:events", channel(session));
    let left: u64 = redis.cli(&["TTL", &events]).trim().parse().expect("it expires");
    assert!(left <= 300, "{left} s");
    redis.cli(&["DEL", &events]);
    // A reader that has all of it goes on, and a reader that has not gets notice of it.
    let end = reader.cursor();
    let read = async |from| replica.store.read(&owner, session, ReadFrom::Cursor(from, 0)).await;
    assert!(matches!(read(end).await.unwrap(), ReadOutcome::Window { .. }));
    assert!(matches!(read(Cursor::START).await.unwrap(), ReadOutcome::Behind));
    replica.whole_turn(session, "new life", &["b"]).await;
    let ReadOutcome::Window { window, .. } = read(end).await.unwrap() else { panic!("no window") };
    assert_eq!(window.end().events, end.events + 4);
    let bytes = redis.cli(&["HGET", &channel(session), "event_bytes"]);
    let stored: usize = redis.cli(&["LRANGE", &events, "0", "-1"]).lines().map(str::len).sum();
    let counted: usize = bytes.trim().parse().expect("bytes");
    assert!(counted < stored + 100, "{counted} counted, {stored} stored");
}

/// Makes this session's history this many messages long, by repeating its last message.
fn fill(redis: &RedisServer, session: SessionId, messages: usize) {
    let channel = channel(session);
    let key = |name: &str| format!("{channel}:{name}");
    let fill = "local count = redis.call('STRLEN', KEYS[2]) / 8 \
                local _, header = string.match(redis.call('HGET', KEYS[1], count), '^(%d+) (.*)$') \
                for number = count + 1, tonumber(ARGV[1]) do \
                local id = string.format('%08x-0000-4000-8000-000000000000', number) \
                local entry = (number - 1) .. ' ' .. string.gsub(header, '[%x-]+', id, 1) \
                redis.call('HSET', KEYS[1], number, entry) \
                redis.call('SETRANGE', KEYS[2], (number - 1) * 8, struct.pack('>I4I4', number, #entry)) \
                redis.call('HSET', KEYS[3], id, number) \
                redis.call('HSET', KEYS[4], 'last_message', number) end";
    let (messages_key, path, index) = (key("messages"), key("path"), key("index"));
    redis.cli(&["EVAL", fill, "4", &messages_key, &path, &index, &channel, &messages.to_string()]);
}

/// Returns the microseconds that Redis spends on one turn of a session with this many messages.
async fn cost_of_a_turn(
    redis: &RedisServer,
    replica: &Replica,
    messages: usize,
    has_branches: bool,
) -> f64 {
    const TURNS: u32 = 40;
    let session = SessionId::random();
    replica.whole_turn(session, "q", &["a"]).await;
    fill(redis, session, messages);
    if has_branches {
        let last = replica.whole_turn(session, "q", &["a"]).await;
        let anchor = Anchor::BesideAnswer(last.generation.0);
        for _ in 0..49 {
            replica.whole_turn_beside(session, anchor, ["", "another"]).await;
        }
    }
    redis.cli(&["CONFIG", "RESETSTAT"]);
    for _ in 0..TURNS {
        replica.store.newest(&Owner::Anonymous, session, 50, 64 << 10).await.unwrap();
        replica.whole_turn(session, "another question", &["an ", "answer"]).await;
    }
    let stats = redis.cli(&["INFO", "commandstats"]);
    let spent: f64 = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_fcall"))
        .filter_map(|line| line.split("usec=").nth(1)?.split(',').next()?.parse::<f64>().ok())
        .sum();
    spent / f64::from(TURNS)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cost_of_a_turn_does_not_grow_with_the_history() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    cost_of_a_turn(&redis, &replica, 100, false).await;
    let base = cost_of_a_turn(&redis, &replica, 100, false).await;
    let mut line = format!("100 messages: {base:.0} us of Redis a turn");
    let with_branches = [(10, true), (100_000, true)];
    let sizes = [10, 1_000, 100_000].map(|messages| (messages, false)).into_iter();
    for (messages, has_branches) in sizes.chain(with_branches) {
        let cost = cost_of_a_turn(&redis, &replica, messages, has_branches).await;
        let what = if has_branches { " and 50 siblings" } else { "" };
        write!(line, "; {messages}{what}: {cost:.0} us, {:.2} times", cost / base).unwrap();
        // A linear cost would be a thousand times as high; the rest is noise of the machine.
        assert!(cost < base * 5.0, "{line}");
    }
    println!("{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_110_000_messages_takes_no_other_turn() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    replica.whole_turn(session, "q", &["a"]).await;
    fill(&redis, session, 109_998);
    replica.whole_turn(session, "q", &["a"]).await;
    let another = Proposal::new(&Owner::Anonymous, session, &new_turn(MODEL, "q"));
    assert!(matches!(replica.store.accept(&another).await, Err(StoreError::Full)));
}

/// Calls the functions of conversations that clients create, with as much as each takes.
async fn conversation_calls(replica: &Replica, session: SessionId) {
    let (owner, store, now) = (Owner::Anonymous, &replica.store, Utc::now());
    let added = || {
        let content = "x".repeat(24 << 10);
        Message { content, is_added: true, ..message(Role::User, now) }
    };
    let new = NewConversation {
        session: SessionId::random(),
        model: MODEL.to_owned(),
        metadata: format!("{{\"x\":\"{}\"}}", "x".repeat(55 << 10)),
        created_at: now,
        messages: (0..20).map(|_| added()).collect(),
    };
    store.create_conversation(&owner, &new).await.unwrap();
    let more: Vec<Message> = (0..20).map(|_| added()).collect();
    store.add_messages(&owner, session, &more).await.unwrap();
    // A repeat adds nothing.
    store.add_messages(&owner, session, &more).await.unwrap();
    let newest = store.newest(&owner, session, 1, 1).await.unwrap().messages;
    assert_eq!(newest[0].id, more[19].id);
    let metadata = Some(new.metadata.clone());
    let change = SessionChange { metadata, ..SessionChange::default() };
    store.update(&mut Update::new(&owner, session, change)).await.unwrap();
    assert_eq!(store.conversation(&owner, session).await.unwrap().metadata, new.metadata);
    let request = Some("x".repeat(400 << 10));
    let question = Box::new(Message { request, ..message(Role::User, now) });
    let attached = Attached { question: Some(question), images: Vec::new() };
    let turn = NewTurn { attached, ..new_turn(MODEL, &"x".repeat(238 << 10)) };
    let size = turn.stored_size().question;
    assert!((BROUGHT_BYTES - 4096..=BROUGHT_BYTES).contains(&size), "{size}");
    let proposal = Proposal::new(&owner, session, &turn);
    let Acceptance::New { turn, .. } = store.accept(&proposal).await.unwrap() else {
        panic!("not accepted")
    };
    let question = store.question(&owner, session, turn.generation).await.unwrap();
    assert!(question.is_some_and(|question| question.request.is_some()));
    let busy = store.add_messages(&owner, session, &[added()]).await;
    assert!(matches!(busy, Err(StoreError::TurnRuns(_))), "{busy:?}");
    replica.answer(&turn, &["a"]).await;
    assert_eq!(replica.finish(&turn, 1).await, Written::Ok);
    assert!(store.hide_request(&owner, session, turn.generation).await.unwrap());
    assert_eq!(store.question(&owner, session, turn.generation).await.unwrap(), None);
}

/// Calls the functions that reads and whole turns do not: those of a turn that another replica takes
/// over, of the budgets, of titles, and of a user that claims the session. Returns the user.
async fn other_calls(replica: &Replica, other: &Replica, session: SessionId) -> Owner {
    let (owner, store) = (Owner::Anonymous, &replica.store);
    store.describe(&owner, session).await.unwrap();
    store.update(&mut titled(&owner, session, "title")).await.unwrap();
    let (turn, _) = replica.accept(session, "q").await;
    store.begin(&turn).await.unwrap();
    let text = "x".repeat(30 << 10);
    replica.answer(&turn, &[text.as_str(); 12]).await;
    store.restore(&turn).await.unwrap();
    assert_eq!(store.answer_so_far(&turn).await.unwrap().len(), 12 * text.len());
    store.note_continued(&turn, &[], None).await.unwrap();
    let length = text.len() as u64;
    store
        .rewind(&turn, REVISION, Tag::random(), TakenBack { length, restarts: 0 }, true)
        .await
        .unwrap();
    let open = store.open_turn(&turn).await.unwrap().expect("an open turn");
    assert_eq!(store.open_turns(bucket(session)).await.unwrap(), std::slice::from_ref(&open));
    let Claim::Running(claimed, _) = other.store.claim(&ClaimAttempt::new(open)).await.unwrap()
    else {
        panic!("not claimed")
    };
    store.cancel(&cancellation(session)).await.unwrap();
    other.store.upstream_closed(&claimed).await.unwrap();
    store.listeners(session).await.unwrap();
    let budget = Budget::new(store.clone(), StorageLimits::default());
    budget.record("n", session).await;
    assert_eq!(budget.room(&owner, "n", session).await.map(drop), Ok(()));
    let user = Owner::User(User::local("alice").expect("a user"));
    store.transfer(&mut Transfer::new(&user, session)).await.unwrap();
    budget.record("", session).await;
    store.describe_listed(&user, session).await.unwrap();
    assert!(!store.page(&user, session, 0, 500).await.unwrap().messages.is_empty());
    user
}

/// Branches a session near its beginning and at its end, gives a message 50 siblings, selects branches
/// from end to end, and one that lies in ten others, each longer than the one in it.
async fn branch_calls(replica: &Replica, session: SessionId, first: uuid::Uuid) {
    let page = replica.store.newest(&Owner::Anonymous, session, 2, 1 << 20).await.unwrap();
    let [last_question, last_answer] = [0, 1].map(|at: usize| page.messages[at].id);
    for _ in 0..49 {
        replica.whole_turn_beside(session, Anchor::BesideAnswer(last_answer), ["", "b"]).await;
    }
    let full = replica.accept_beside(session, Anchor::BesideAnswer(last_answer), "").await;
    assert!(matches!(full, Err(StoreError::TooManySiblings)), "{full:?}");
    let edited =
        replica.whole_turn_beside(session, Anchor::BesideQuestion(first), ["e", "b"]).await;
    assert!(replica.select(session, last_answer).await.unwrap());
    assert!(replica.select(session, edited.generation.0).await.unwrap());
    // The turn waits until its branch is selected.
    let beside = Anchor::BesideQuestion(last_question);
    replica.whole_turn_beside(session, beside, ["far away", "b"]).await;
    let page = replica.store.newest(&Owner::Anonymous, session, 500, 512 << 10).await.unwrap();
    assert!(page.messages.len() > 2);
    let mut questions = Vec::new();
    for _ in 0..10 {
        questions.push(replica.whole_turn(session, "n", &["b"]).await.question().id);
    }
    for (at, question) in questions.iter().rev().enumerate() {
        let beside = Anchor::BesideQuestion(*question);
        replica.whole_turn_beside(session, beside, ["m", "b"]).await;
        for _ in 0..2 * at {
            replica.whole_turn(session, "m", &["b"]).await;
        }
    }
    assert!(replica.select(session, questions[9]).await.unwrap());
}

/// The functions of sessions that another test times: imports come in batches of 512 KiB.
const TIMED_ELSEWHERE: [&str; 2] = ["jarvis_import_messages_1", "jarvis_import_commit_1"];

/// Returns an image of 4 MiB.
fn large_image() -> Image {
    let mut bytes = b"GIF89a".to_vec();
    bytes.resize(4 << 20, 7);
    let mut images = RequestImages::default();
    images.add(&to_base64(&bytes), &mut Vec::new()).expect("an image");
    images.into_images().remove(0)
}

#[tokio::test]
async fn after_a_claim_the_user_and_the_holder_of_its_turn_read_an_image_and_no_anonymous_caller() {
    let redis = RedisServer::start();
    let (replica, session) = (Replica::on(&redis.url()).await, SessionId::random());
    let (store, images) = (&replica.store, [large_image()]);
    let image = &images[0].reference;
    store.put_images(&Owner::Anonymous, session, None, &images).await.unwrap();
    let (turn, began) = replica.accept(session, "what is it?").await;
    assert!(began);
    let alice = Owner::User(User::local("alice").expect("a user"));
    let found = |read: Result<Option<bytes::Bytes>, StoreError>| match read {
        Ok(data) => Ok(data.is_some()),
        Err(error) => Err(error.to_string()),
    };
    let absent = || Err(StoreError::Absent.to_string());
    assert_eq!(found(store.image(&Owner::Anonymous, session, image).await), Ok(true));
    assert_eq!(found(store.image(&alice, session, image).await), absent());
    store.transfer(&mut Transfer::new(&alice, session)).await.unwrap();
    assert_eq!(found(store.image(&alice, session, image).await), Ok(true));
    assert_eq!(found(store.image(&Owner::Anonymous, session, image).await), absent());
    // The holder names the anonymous caller until it has read the transfer.
    assert_eq!(turn.owner, Owner::Anonymous);
    assert_eq!(found(store.image_of_turn(&turn, image).await), Ok(true));
    let mut other = turn.clone();
    other.fence.0 = uuid::Uuid::nil();
    assert_eq!(found(store.image_of_turn(&other, image).await), absent());
    replica.answer(&turn, &["a cat"]).await;
    assert_eq!(replica.finish(&turn, 5).await, Written::Ok);
    assert_eq!(
        found(store.image_of_turn(&turn, image).await),
        absent(),
        "it holds no turn any more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_takes_redis_longer_than_five_milliseconds_in_a_session_of_64_mib() {
    // Filling makes an append-only file so long that a child rewrites it meanwhile, and shares the
    // memory that is measured.
    let redis = RedisServer::start_with(&["--appendonly", "no"]);
    let (replica, other) = (Replica::on(&redis.url()).await, Replica::on(&redis.url()).await);
    let (owner, store) = (Owner::Anonymous, &replica.store);
    let measure = async |large: bool| {
        let [session, evicted] = [0; 2].map(|_| SessionId::random());
        let length = if large { 250 << 10 } else { 10 };
        for session in [session, evicted] {
            replica.whole_turn(session, "q", &[&"a".repeat(length)]).await;
            // Nearly as many as a session may have.
            fill(&redis, session, if large { 256 } else { 109_000 });
        }
        begin_timing_from(&redis, 3);
        store.newest(&owner, session, 400, 512 << 10).await.unwrap();
        let page = store.page(&owner, session, 0, 500).await.unwrap();
        assert!(!page.messages.is_empty());
        store.page_before(&owner, session, 200, 500).await.unwrap();
        let unknown = uuid::Uuid::new_v4();
        assert!(store.find_message(&owner, session, unknown).await.unwrap().is_none());
        let first = page.messages[0].id;
        let found = store.find_message(&owner, session, first).await.unwrap().unwrap();
        assert_eq!(found.position, Some(0));
        let text = "x".repeat(30 << 10);
        for _ in 0..20 {
            replica.whole_turn(session, &text, &[&text, &text]).await;
        }
        branch_calls(&replica, session, first).await;
        let mut from = ReadFrom::Cursor(Cursor::START, 0);
        while let ReadOutcome::Window { window, more: true } =
            store.read(&owner, session, from).await.unwrap()
        {
            from = ReadFrom::Cursor(window.end(), window.end().offset);
        }
        let images = [large_image()];
        store.put_images(&owner, session, None, &images).await.unwrap();
        let data = store.image(&owner, session, &images[0].reference).await.unwrap();
        assert_eq!(data.map(|data| data.len()), Some(4 << 20));
        store.drop_images(&owner, session, &images).await.unwrap();
        conversation_calls(&replica, session).await;
        let user = other_calls(&replica, &other, session).await;
        store.clear(&mut Clearing::new(&user, session, true)).await.unwrap();
        assert_eq!(store.evict(&owner, evicted).await.unwrap(), Evicted::Removed);
        timed_calls(&redis)
    };
    let of_sessions = LIBRARIES.iter().find(|library| library.name.contains("session"));
    let of_sessions = of_sessions.expect("the functions of sessions").commands.len();
    for large in [true, false] {
        let what = format!("large messages {large}");
        let longest = longest(takes_moments(&what, async || measure(large).await).await);
        let longest: BTreeMap<&str, f64> =
            longest.iter().map(|(function, time)| (function.as_str(), *time)).collect();
        let timed = longest.keys().filter(|function| !function.starts_with("jarvis_budget_"));
        assert_eq!(timed.count() + TIMED_ELSEWHERE.len(), of_sessions, "{longest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_takes_redis_no_longer_for_a_log_of_cleared_turns() {
    let redis = RedisServer::start_with(&["--appendonly", "no"]);
    let replica = Replica::on(&redis.url()).await;
    let (session, store, owner) = (SessionId::random(), &replica.store, Owner::Anonymous);
    let text = "x".repeat(30 << 10);
    // As many events, and nearly as many bytes, as a log holds: of each turn that it was accepted,
    // started, cancelled and cleared.
    for _ in 0..31 {
        let (turn, _) = replica.accept(session, &text).await;
        replica.answer(&turn, &["a"]).await;
        store.clear(&mut Clearing::new(&owner, session, false)).await.unwrap();
    }
    takes_moments("a log of cleared turns", async || {
        begin_timing(&redis);
        let mut from = ReadFrom::Cursor(Cursor::START, 0);
        let events = loop {
            let read = store.read(&owner, session, from).await.unwrap();
            let ReadOutcome::Window { window, more } = read else { panic!("{read:?}") };
            if !more {
                break window.end().events;
            }
            from = ReadFrom::Cursor(window.end(), window.end().offset);
        };
        assert_eq!(events, 4 * 31);
        timed_calls(&redis)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_found_by_its_generation_and_a_message_by_its_id_however_old_they_are() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let (session, store, owner) = (SessionId::random(), &replica.store, Owner::Anonymous);
    let old = replica.whole_turn(session, "the question", &["the answer"]).await;
    fill(&redis, session, 600);
    replica.whole_turn(session, "q", &["a"]).await;
    let found = store.find_message(&owner, session, old.generation.0).await.unwrap();
    let Found { position, message: answer } = found.expect("an answer");
    assert_eq!((position, answer.content.as_str()), (Some(1), "the answer"));
    assert_eq!((answer.id, answer.generation_id), (old.generation.0, Some(old.generation)));
    let page = store.page(&owner, session, 0, 1).await.unwrap();
    let found = store.find_message(&owner, session, page.messages[0].id).await.unwrap();
    assert_eq!(
        found.map(|found| (found.position, found.message.content)).unwrap(),
        (Some(0), "the question".to_owned())
    );
    assert_eq!(store.find_message(&owner, session, uuid::Uuid::new_v4()).await.unwrap(), None);
    // A reader that was there before gets the rest of that answer, although 600 messages follow.
    let mut reader = replica.reader(session, Some(Cursor::START)).await;
    assert_eq!(
        read_until(&mut reader, "ended").await,
        "accepted started [the answer] done ended(the answer)"
    );
    store.clear(&mut Clearing::new(&owner, session, false)).await.unwrap();
    assert_eq!(store.find_message(&owner, session, old.generation.0).await.unwrap(), None);
    let thief = Owner::User(User::local("thief").expect("a user"));
    let stolen = store.find_message(&thief, session, old.generation.0).await;
    assert!(matches!(stolen, Err(StoreError::Absent)));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_is_stored_with_the_number_of_the_one_before_it() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let session = SessionId::random();
    replica.whole_turn(session, "first", &["a"]).await;
    let (turn, _) = replica.accept(session, "second").await;
    replica.answer(&turn, &["b"]).await;
    replica.store.cancel(&cancellation(session)).await.unwrap();
    let key = |name: &str| format!("{}:{name}", channel(session));
    let path = || -> Vec<String> {
        let numbers = "local path, numbers = redis.call('GET', KEYS[1]), {} \
            for at = 1, #path, 8 do numbers[#numbers + 1] = struct.unpack('>I4', path, at) end \
            return numbers";
        redis.cli(&["EVAL", numbers, "1", &key("path")]).lines().map(str::to_owned).collect()
    };
    assert_eq!(path(), ["1", "2", "3", "4"]);
    for (number, parent) in [("1", "0 {"), ("2", "1 {"), ("3", "2 {"), ("4", "3 {")] {
        let stored = redis.cli(&["HGET", &key("messages"), number]);
        assert!(stored.starts_with(parent), "{number}: {stored}");
    }
    // Once it has ended, an answer is stored once.
    assert_eq!(redis.cli(&["EXISTS", &key("answer")]).trim(), "0");
    // Numbers are not reused: a later message never gets the number of a cleared one.
    replica.store.clear(&mut Clearing::new(&Owner::Anonymous, session, false)).await.unwrap();
    replica.whole_turn(session, "third", &["c"]).await;
    assert_eq!(path(), ["5", "6"]);
    assert!(redis.cli(&["HGET", &key("messages"), "5"]).starts_with("0 {"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_needs_several_steps_equals_one_read_at_once() {
    let redis = RedisServer::start();
    let replica = Replica::on(&redis.url()).await;
    let (session, store, owner) = (SessionId::random(), &replica.store, Owner::Anonymous);
    for turn in 0..6 {
        let question = format!("{turn} {}", "q".repeat(30 << 10));
        replica.whole_turn(session, &question, &[&"a".repeat(170 << 10)]).await;
    }
    // The history has 1.2 MiB; a step reads half of one.
    let lengths = |messages: &[Message]| -> Vec<usize> {
        messages.iter().map(|message| message.content.len()).collect()
    };
    let all = store.newest(&owner, session, 50, 8 << 20).await.unwrap();
    assert_eq!((all.first, all.messages.len()), (0, 12));
    let begins =
        |message: &Message| message.content.split(' ').next().unwrap().parse::<usize>().ok();
    let questions: Vec<_> = all.messages.iter().filter_map(begins).collect();
    assert_eq!(questions, [0, 1, 2, 3, 4, 5]);
    let page = store.page(&owner, session, 1, 500).await.unwrap();
    assert_eq!(page.first, 1);
    assert_eq!(lengths(&page.messages), lengths(&all.messages)[1..=page.messages.len()]);
    let bytes = |messages: &[Message]| -> usize { lengths(messages).iter().sum() };
    assert!(bytes(&page.messages) <= 1 << 20 && bytes(&page.messages) > 800 << 10);
    let newest = store.newest(&owner, session, 50, 700 << 10).await.unwrap();
    let first = newest.first as usize;
    assert_eq!(lengths(&newest.messages), lengths(&all.messages)[first..]);
    assert!(bytes(&newest.messages) <= 700 << 10 && bytes(&newest.messages) > 500 << 10);
    let before = store.page_before(&owner, session, 11, 10).await.unwrap();
    assert_eq!(before.first + before.messages.len() as u64, 11);
    assert!(bytes(&before.messages) > 800 << 10);
    // A message that is larger than a step is nevertheless returned.
    let one = store.newest(&owner, session, 50, 10).await.unwrap();
    assert_eq!((one.first, one.messages.len()), (11, 1));
}
