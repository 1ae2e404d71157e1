//! Every order of writes, lost replies, takeovers, cancels and failovers keeps what is promised.
//!
//! What is driven here are the real functions in a real Redis and the real decisions of a writer;
//! only time and the network are made up. Each writer speaks a dialect of its own, so that text of
//! two writers that is mixed, doubled or lost cannot look right.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use testkit::redis::RedisServer;
use tokio::time::Instant;

use super::writer::make;
use super::writer_state::{Reply, WriterCall, WriterState};
use crate::redis::{Redis, RedisOptions, migrations};
use crate::session::model::{ContextReport, Reasoning, rfc3339};
use crate::session::reasoning::Shape;
use crate::session::store::{
    Acceptance, CancelReply, Cancellation, Claim, NewTurn, OpenTurn, Proposal, ReadFrom,
    ReadOutcome, SessionLimits, Turn, Written, message,
};
use crate::session::window::Step as Seen;
use crate::session::{
    Control, Cursor, FinishReason, GenerationId, Message, Owner, Role, SessionId, Status, Store,
    Tag, TurnSpec, Usage,
};

const REPLICAS: usize = 3;
/// Characters of an answer.
const ANSWER: usize = 40;
/// Characters of them that are thoughts, in every other turn.
const THOUGHTS: usize = 15;
/// Rounds after which everything must have ended.
const ROUNDS: usize = 400;

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Done,
    ReplyLost,
    Twice,
}

#[derive(Clone, Debug)]
enum Happens {
    Accept {
        by: usize,
    },
    /// The writer does what it wants to do next.
    Write {
        who: usize,
        fate: Fate,
    },
    /// The model says so many characters.
    Speak {
        who: usize,
        characters: usize,
    },
    /// The model, asked to go on, says something else from this share of the text.
    TakeBack {
        who: usize,
        share: f64,
    },
    Finish {
        who: usize,
        fate: Fate,
    },
    /// Never the first: somebody has to be left.
    Die {
        replica: usize,
    },
    /// Claims what the dead hold, and with `suspicion` what the living hold.
    TakeOver {
        by: usize,
        suspicion: bool,
    },
    Cancel {
        fate: Fate,
    },
    /// The replica of Redis has all of this.
    InSync,
    Failover,
    Read,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![6 => Just(Fate::Done), 1 => Just(Fate::ReplyLost), 1 => Just(Fate::Twice)]
}

fn happens() -> impl Strategy<Value = Happens> {
    let (replica, who) = (0..REPLICAS, 0..8usize);
    prop_oneof![
        3 => replica.clone().prop_map(|by| Happens::Accept { by }),
        16 => (who.clone(), fate()).prop_map(|(who, fate)| Happens::Write { who, fate }),
        10 => (who.clone(), 1..12usize)
            .prop_map(|(who, characters)| Happens::Speak { who, characters }),
        1 => (who.clone(), 0.0..1.0f64).prop_map(|(who, share)| Happens::TakeBack { who, share }),
        4 => (who, fate()).prop_map(|(who, fate)| Happens::Finish { who, fate }),
        1 => (1..REPLICAS).prop_map(|replica| Happens::Die { replica }),
        2 => (replica, any::<bool>())
            .prop_map(|(by, suspicion)| Happens::TakeOver { by, suspicion }),
        1 => fate().prop_map(|fate| Happens::Cancel { fate }),
        3 => Just(Happens::InSync),
        2 => Just(Happens::Failover),
        5 => Just(Happens::Read),
    ]
}

/// A turn in the hands of a replica.
struct Hand {
    replica: usize,
    turn: Arc<Turn>,
    state: WriterState,
    dialect: char,
    end: (Message, Vec<(Tag, Control)>),
    stopped: bool,
    /// It has tried to end: it says no more, and does not look in between.
    ending: bool,
    finished: bool,
}

impl Hand {
    fn new(replica: usize, turn: Arc<Turn>, state: WriterState, dialect: char) -> Self {
        let now = Utc::now();
        let header = Message {
            generation_id: Some(turn.generation),
            model: Some(turn.spec.model.clone()),
            status: Some(Status::Complete),
            ..message(Role::Assistant, now)
        };
        let ended = Control::Ended {
            timestamp: rfc3339(&now),
            model: turn.spec.model.clone(),
            finish_reason: FinishReason::Stop,
            usage: Usage::default(),
            context: ContextReport::default(),
            continued: Vec::new(),
        };
        let events = vec![(Tag::random(), Control::Done {}), (Tag::random(), ended)];
        let end = (header, events);
        Self { replica, turn, state, dialect, end, stopped: false, ending: false, finished: false }
    }

    fn speak(&mut self, characters: usize) {
        // The same in every hand.
        let thinks = self.turn.generation.0.as_u128().is_multiple_of(2);
        for _ in 0..characters {
            let place = characters_of(self.state.text());
            if !self.state.is_running() || self.ending || place >= ANSWER {
                return;
            }
            // Digits tell the place, so that a piece at a wrong one shows.
            let digit = char::from_digit((place % 10) as u32, 10).unwrap_or('?');
            let said = if place.is_multiple_of(3) { self.dialect } else { digit }.to_string();
            if thinks && place < THOUGHTS {
                self.state.push_reasoning(&said);
            } else {
                self.state.push(&said);
            }
        }
    }
}

/// Of thoughts and answer, without what stands around them.
fn characters_of(text: &str) -> usize {
    let [thoughts, answer] = parts(text);
    thoughts.chars().count() + answer.chars().count()
}

fn parts(text: &str) -> [String; 2] {
    let shape = Shape::of(text);
    [shape.thoughts(text).unwrap_or_default().to_owned(), shape.answer(text).to_owned()]
}

/// A client that follows the session.
struct Client {
    cursor: Cursor,
    thoughts: String,
    text: String,
    /// Thoughts and answer as they were told.
    ended: HashMap<GenerationId, [String; 2]>,
    snapshots: usize,
}

impl Client {
    fn take_back(&mut self, from: usize) {
        self.text.truncate(from);
        if from == 0 {
            self.thoughts.clear();
        }
    }
}

fn stored(message: &Message) -> [String; 2] {
    [message.thinking.clone().unwrap_or_default(), message.content.clone()]
}

struct World<'a> {
    redis: &'a RedisServer,
    stores: &'a [Store],
    session: SessionId,
    alive: [bool; REPLICAS],
    hands: Vec<Hand>,
    accepted: HashSet<GenerationId>,
    cancels: Vec<Cancellation>,
    cancelled: HashSet<GenerationId>,
    client: Client,
    /// Whether a replica of Redis was in sync since the last failover.
    in_sync: bool,
    failovers: usize,
    deaths: usize,
    taken_back: bool,
    writers: u32,
}

impl<'a> World<'a> {
    fn new(redis: &'a RedisServer, stores: &'a [Store]) -> Self {
        redis.cli(&["FLUSHALL"]);
        Self {
            redis,
            stores,
            session: SessionId::random(),
            alive: [true; REPLICAS],
            hands: Vec::new(),
            accepted: HashSet::new(),
            cancels: Vec::new(),
            cancelled: HashSet::new(),
            client: Client {
                cursor: Cursor::START,
                thoughts: String::new(),
                text: String::new(),
                ended: HashMap::new(),
                snapshots: 0,
            },
            in_sync: true,
            failovers: 0,
            deaths: 0,
            taken_back: false,
            writers: 0,
        }
    }

    fn dialect(&mut self) -> char {
        self.writers += 1;
        // Two bytes each, so that no offset is a count of characters by chance.
        char::from_u32(0x430 + self.writers % 32).unwrap_or('x')
    }

    fn writing(&mut self, who: usize) -> Option<&mut Hand> {
        let alive = self.alive;
        let mut hands: Vec<_> = self
            .hands
            .iter_mut()
            .filter(|hand| alive[hand.replica] && !hand.stopped && !hand.finished)
            .collect();
        let count = hands.len();
        (count > 0).then(|| hands.swap_remove(who % count))
    }

    async fn step(&mut self, what: &Happens) {
        match *what {
            Happens::Accept { by } if self.alive[by] => self.accept(by).await,
            Happens::Write { who, fate } => {
                let stores = self.stores;
                if let Some(hand) = self.writing(who) {
                    write(&stores[hand.replica], hand, fate).await;
                }
            }
            Happens::Speak { who, characters } => {
                if let Some(hand) = self.writing(who) {
                    hand.speak(characters);
                }
            }
            Happens::TakeBack { who, share } => {
                if let Some(hand) = self.writing(who).filter(|hand| !hand.ending) {
                    let length = (hand.state.text().len() as f64 * share) as usize;
                    hand.state.take_back(length);
                    hand.dialect = hand.dialect.to_uppercase().next().unwrap_or(hand.dialect);
                    self.taken_back = true;
                }
            }
            Happens::Finish { who, fate } => {
                let stores = self.stores;
                if let Some(hand) = self.writing(who)
                    && hand.state.is_running()
                    && hand.state.next_call().is_none()
                {
                    finish(&stores[hand.replica], hand, fate).await;
                }
            }
            Happens::Die { replica } if self.alive[replica] => {
                self.alive[replica] = false;
                self.deaths += 1;
            }
            Happens::TakeOver { by, suspicion } if self.alive[by] => {
                self.take_over(by, suspicion).await;
            }
            Happens::Cancel { fate } => self.cancel(fate).await,
            Happens::InSync => {
                self.redis.remember();
                self.in_sync = true;
            }
            // Two failovers without a replica in sync in between are not promised to be made good.
            Happens::Failover if self.in_sync => self.fail_over().await,
            Happens::Read => self.read(false).await,
            _ => {}
        }
    }

    async fn accept(&mut self, by: usize) {
        let spec = TurnSpec {
            model: "m".to_owned(),
            temperature: 0.0,
            max_tokens: 1,
            system: None,
            seed: None,
            stop: Vec::new(),
            think: Reasoning::Off,
            message_id: None,
            source: String::new(),
        };
        let new = NewTurn { spec, content: "q".to_owned(), conversation: None, key: None };
        let accepted =
            self.stores[by].accept(&Proposal::new(&Owner::Anonymous, self.session, &new)).await;
        if let Ok(Acceptance::New { turn, began, .. }) = accepted {
            self.accepted.insert(turn.generation);
            let state =
                if began { WriterState::after(String::new()) } else { WriterState::waiting() };
            let dialect = self.dialect();
            self.hands.push(Hand::new(by, turn, state, dialect));
        }
    }

    async fn take_over(&mut self, by: usize, suspicion: bool) {
        let bucket = crate::session::store::bucket(self.session);
        let open = self.stores[by].open_turns(bucket).await.expect("the open turns");
        for turn in open {
            let holder = self.stores.iter().position(|store| store.replica() == turn.replica);
            let dead = holder.is_none_or(|holder| !self.alive[holder]);
            // A replica takes its own turn over, too, where it holds it and does not know it.
            let forgotten = holder == Some(by)
                && !self.hands.iter().any(|hand| {
                    hand.turn.generation == turn.generation
                        && hand.replica == by
                        && !hand.stopped
                        && !hand.finished
                });
            if dead || forgotten || (suspicion && holder != Some(by)) {
                self.claim(by, &turn).await;
            }
        }
    }

    async fn claim(&mut self, by: usize, open: &OpenTurn) {
        let store = &self.stores[by];
        let (turn, state) = match store.claim(open).await.expect("a claim") {
            Claim::Running(turn, _) => {
                let stored = store.answer_so_far(&turn).await.expect("the answer so far");
                (turn, WriterState::after(stored))
            }
            Claim::Waiting(turn) => (turn, WriterState::waiting()),
            Claim::Other => return,
        };
        let ended = |hand: &Hand| hand.ending && hand.turn.generation == turn.generation;
        if self.hands.iter().any(ended) {
            // Who ended it, and was robbed before it could end it again, is as good as dead.
            self.deaths += 1;
        }
        let dialect = self.dialect();
        self.hands.push(Hand::new(by, turn, state, dialect));
    }

    async fn cancel(&mut self, fate: Fate) {
        let wish = Cancellation::new(&Owner::Anonymous, self.session, None);
        let store = &self.stores[0];
        let first = store.cancel(&wish).await;
        let again = if matches!(fate, Fate::Done) { None } else { Some(store.cancel(&wish).await) };
        let met = |told: &Result<CancelReply, _>| match told {
            Ok(CancelReply::Running(id) | CancelReply::Waiting(id)) => Some(*id),
            _ => None,
        };
        let Some(generation) = met(&first) else { return };
        if let Some(again) = again {
            assert_eq!(met(&again), Some(generation), "a repeat cancels what the first did");
        }
        self.cancels.push(wish.again(generation));
        self.cancelled.insert(generation);
    }

    /// What was written since Redis was in sync is gone, and who lives does again what it did.
    async fn fail_over(&mut self) {
        self.redis.cli(&["SWAPDB", "0", "1"]);
        self.redis.remember();
        self.in_sync = false;
        self.failovers += 1;
        for wish in &self.cancels {
            let _ = self.stores[0].cancel(wish).await;
        }
        for hand in self.hands.iter_mut().filter(|hand| hand.finished) {
            if self.alive[hand.replica] {
                hand.finished = false;
            }
        }
    }

    async fn read(&mut self, must_know: bool) {
        let store = &self.stores[0];
        let from = ReadFrom::Cursor(self.client.cursor, 0);
        match store.read(&Owner::Anonymous, self.session, from).await.expect("a read") {
            ReadOutcome::Window { window, .. } => {
                let client = &mut self.client;
                loop {
                    let after = match window.next(&client.cursor, 5) {
                        Seen::Piece { thought, offset, text, after, .. } => {
                            let seen =
                                if thought { &mut client.thoughts } else { &mut client.text };
                            assert_eq!(offset, seen.len() as u64, "a hole or a double");
                            seen.push_str(text);
                            after
                        }
                        Seen::Event { event, answer, after, .. } => {
                            match (&event.control, event.generation) {
                                (Control::Started { .. }, _) => client.take_back(0),
                                (control, Some(generation)) if control.is_terminal() => {
                                    if client.cursor.generation == Some(generation) {
                                        assert_eq!(client.text, answer, "not what was told");
                                    }
                                    // A turn that waited, or of before a snapshot, has none.
                                    let thoughts = match client.cursor.generation {
                                        Some(seen) if seen == generation => client.thoughts.clone(),
                                        _ => String::new(),
                                    };
                                    let told = [thoughts, answer.to_owned()];
                                    let twice = client.ended.insert(generation, told);
                                    assert!(twice.is_none() || self.failovers > 0, "ended twice");
                                }
                                _ => {}
                            }
                            after
                        }
                        Seen::Restart { from, after, .. } => {
                            client.take_back(from as usize);
                            after
                        }
                        Seen::Silent { after } => after,
                        Seen::UpToDate => return,
                        Seen::Behind | Seen::Unknown => break,
                    };
                    client.cursor = after;
                }
            }
            ReadOutcome::Absent if self.client.cursor == Cursor::START => return,
            ReadOutcome::Absent | ReadOutcome::Behind | ReadOutcome::Unknown => {}
        }
        assert!(self.failovers > 0, "a place was lost without a failover");
        if must_know {
            self.client.snapshots += 1;
            let from = ReadFrom::RunningTurn;
            let read = store.read(&Owner::Anonymous, self.session, from).await.expect("a read");
            if let ReadOutcome::Window { window, .. } = read {
                self.client.cursor = window.start();
                self.client.take_back(0);
            }
        }
    }

    /// No more faults: everything has to end.
    async fn settle(&mut self) {
        for _ in 0..ROUNDS {
            for replica in 0..REPLICAS {
                if self.alive[replica] {
                    self.take_over(replica, false).await;
                }
            }
            let (alive, stores) = (self.alive, self.stores);
            let mut busy = false;
            for hand in &mut self.hands {
                if !alive[hand.replica] || hand.stopped || hand.finished {
                    continue;
                }
                busy = true;
                hand.speak(ANSWER);
                write(&stores[hand.replica], hand, Fate::Done).await;
                if !hand.stopped && hand.state.is_running() && hand.state.next_call().is_none() {
                    finish(&stores[hand.replica], hand, Fate::Done).await;
                }
            }
            self.read(true).await;
            let session = self.stores[0].describe(&Owner::Anonymous, self.session).await;
            // Where a failover took the only turn, and that was cancelled, there is no session.
            if !busy && session.map_or(true, |session| session.running.is_none()) {
                return;
            }
        }
        panic!("something never ends");
    }

    async fn check(&self) {
        let page = self.stores[0].newest(&Owner::Anonymous, self.session, 500, 1 << 20).await;
        let Ok(page) = page else {
            assert!(self.accepted.is_empty() || self.failovers > 0, "the session is gone");
            return;
        };
        assert_eq!(page.running, None, "nothing runs at the end");
        let mut answers: HashMap<GenerationId, &Message> = HashMap::new();
        for message in page.messages.iter().filter(|message| message.role == Role::Assistant) {
            let generation = message.generation_id.expect("a generation");
            assert!(answers.insert(generation, message).is_none(), "two answers of one turn");
        }
        let questions = page.messages.len() - answers.len();
        assert_eq!(questions, answers.len(), "a question without an answer, or the other way");
        if self.failovers == 0 || self.deaths == 0 {
            for generation in self.accepted.difference(&self.cancelled) {
                assert!(answers.contains_key(generation), "an accepted turn has no answer");
            }
            for (generation, told) in &self.client.ended {
                match answers.get(generation) {
                    // Who cancels does not have the text: what a failover took of it stays away, and
                    // what it brought back of what was taken back stays.
                    Some(_) if self.cancelled.contains(generation) && self.taken_back => {}
                    Some(message) if self.cancelled.contains(generation) => {
                        assert!(told[1].starts_with(&message.content), "not what was told");
                        let thoughts = message.thinking.as_deref().unwrap_or_default();
                        assert!(told[0].starts_with(thoughts), "not the thoughts that were told");
                    }
                    Some(message) => assert_eq!(&stored(message), told, "not what was told"),
                    None => {}
                }
            }
        }
        for hand in self.hands.iter().filter(|hand| hand.finished) {
            let Some(message) = answers.get(&hand.turn.generation) else { continue };
            let whole = stored(message) == parts(hand.state.text());
            assert!(whole || self.failovers > 0, "stored is what its last writer wrote");
        }
    }
}

async fn write(store: &Store, hand: &mut Hand, fate: Fate) {
    let call = match hand.state.next_call() {
        Some(call) => call,
        None if hand.ending => return,
        None => hand.state.look(),
    };
    let ask = async |call: WriterCall| -> Reply {
        make(store.clone(), Arc::clone(&hand.turn), call, hand.state.text()).await.expect("a reply")
    };
    let mut reply = ask(call).await;
    match fate {
        Fate::Done => {}
        Fate::ReplyLost => return,
        Fate::Twice => reply = ask(call).await,
    }
    hand.stopped = hand.state.take_in(call, Instant::now(), reply).is_err();
}

async fn finish(store: &Store, hand: &mut Hand, fate: Fate) {
    hand.ending = true;
    let (header, events) = &hand.end;
    let (length, revision) = (hand.state.text().len() as u64, hand.state.revision());
    let ask =
        async || store.finish(&hand.turn, revision, length, header, events).await.expect("a reply");
    let mut reply = ask().await;
    match fate {
        Fate::Done => {}
        Fate::ReplyLost => return,
        Fate::Twice => reply = ask().await,
    }
    let look = hand.state.look();
    hand.stopped = hand.state.take_in(look, Instant::now(), Reply::Written(reply)).is_err();
    hand.finished = !hand.stopped && reply == Written::Ok;
}

#[test]
fn every_interleaving_of_writes_takeovers_cancels_and_failovers_keeps_the_promises() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let redis = RedisServer::start_with(&["--appendonly", "no"]);
    let stores: Vec<Store> = runtime.block_on(async {
        let options = RedisOptions {
            url: redis.url(),
            command_timeout: Duration::from_secs(5),
            acknowledgements: 0,
        };
        let mut stores = Vec::new();
        for replica in 0..REPLICAS {
            let redis = Redis::connect(&options).expect("a client");
            migrations::apply(&redis).await.expect("migrations");
            stores.push(Store::new(redis, format!("replica-{replica}"), SessionLimits::default()));
        }
        stores
    });
    // Few, as each is some hundred calls of Redis; PROPTEST_CASES tries more.
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config =
        Config { cases: cases.unwrap_or(80), failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let histories = proptest::collection::vec(happens(), 1..90);
    let outcome = runner.run(&histories, |history| {
        runtime.block_on(async {
            let mut world = World::new(&redis, &stores);
            for what in &history {
                world.step(what).await;
            }
            world.settle().await;
            world.check().await;
        });
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
