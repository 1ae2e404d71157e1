//! Every order of writes, branches, lost replies, takeovers, cancels, clears, claims by a user and
//! failovers keeps the promises.
//!
//! Redis, its functions and the decisions of a writer are the real ones; only time and the network
//! are simulated. Each writer writes its own alphabet, so that mixed, doubled or lost text of two
//! writers is noticed.
//!
//! Two faults at once are not all covered by the promises (ARCHITECTURE.md, "Faults and
//! repairs"). [`World::check`] excludes these cases one by one, each with its reason, and checks
//! everything else.

mod checks;
mod client;
mod holder;
mod world;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use testkit::redis::RedisServer;

use crate::redis::{Redis, RedisOptions, migrations};
use crate::session::Store;
use crate::session::store::SessionLimits;
use world::World;

const REPLICAS: usize = 3;
/// Idempotency keys that clients use repeatedly.
const KEYS: u8 = 3;
/// Histories that are tried, where `PROPTEST_CASES` is not set: each is some hundred calls of
/// Redis.
const CASES: u32 = 100;

/// The fate of a call.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Done,
    ReplyLost,
    Twice,
}

#[derive(Clone, Debug)]
enum Action {
    /// A turn is submitted, perhaps with an idempotency key that was used before.
    Accept {
        by: usize,
        key: Option<u8>,
        fate: Fate,
    },
    /// A turn is submitted that answers the question of an earlier turn once more, or edits it.
    Beside {
        by: usize,
        turn: usize,
        edit: bool,
        fate: Fate,
    },
    /// A client selects the branch of the question or of the answer of a turn.
    Select {
        turn: usize,
        question: bool,
        fate: Fate,
    },
    /// A holder makes its next call.
    Write {
        holder: usize,
        fate: Fate,
    },
    /// The model generates characters.
    Generate {
        holder: usize,
        characters: usize,
    },
    /// The model diverges when it continues the answer: the holder keeps this share of the text.
    Rewind {
        holder: usize,
        share: f64,
    },
    Finish {
        holder: usize,
        fate: Fate,
    },
    /// A replica dies, but never the first: one has to be left.
    Die {
        replica: usize,
    },
    /// A replica claims the turns of dead replicas, and with `suspicion` those of living ones.
    TakeOver {
        by: usize,
        suspicion: bool,
    },
    /// A client cancels. With `heard`, the holder's replica receives the hint.
    Cancel {
        heard: bool,
        fate: Fate,
    },
    Clear {
        delete: bool,
        heard: bool,
        fate: Fate,
    },
    /// A user claims the session, which is anonymous until then.
    Transfer {
        fate: Fate,
    },
    /// The Redis replica has replicated everything.
    InSync,
    Failover,
    /// One cancel or clear from before the failover is applied again.
    Redo {
        which: usize,
    },
    Read,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![6 => Just(Fate::Done), 1 => Just(Fate::ReplyLost), 1 => Just(Fate::Twice)]
}

fn action() -> impl Strategy<Value = Action> {
    let (replica, holder) = (0..REPLICAS, 0..8usize);
    let key = prop_oneof![2 => Just(None), 1 => (0..KEYS).prop_map(Some)];
    prop_oneof![
        4 => (replica.clone(), key, fate())
            .prop_map(|(by, key, fate)| Action::Accept { by, key, fate }),
        2 => (replica.clone(), 0..8usize, any::<bool>(), fate())
            .prop_map(|(by, turn, edit, fate)| Action::Beside { by, turn, edit, fate }),
        1 => (0..8usize, any::<bool>(), fate())
            .prop_map(|(turn, question, fate)| Action::Select { turn, question, fate }),
        16 => (holder.clone(), fate()).prop_map(|(holder, fate)| Action::Write { holder, fate }),
        10 => (holder.clone(), 1..12usize)
            .prop_map(|(holder, characters)| Action::Generate { holder, characters }),
        1 => (holder.clone(), 0.0..1.0f64)
            .prop_map(|(holder, share)| Action::Rewind { holder, share }),
        4 => (holder, fate()).prop_map(|(holder, fate)| Action::Finish { holder, fate }),
        1 => (1..REPLICAS).prop_map(|replica| Action::Die { replica }),
        2 => (replica, any::<bool>())
            .prop_map(|(by, suspicion)| Action::TakeOver { by, suspicion }),
        1 => (any::<bool>(), fate()).prop_map(|(heard, fate)| Action::Cancel { heard, fate }),
        1 => (any::<bool>(), any::<bool>(), fate())
            .prop_map(|(delete, heard, fate)| Action::Clear { delete, heard, fate }),
        1 => fate().prop_map(|fate| Action::Transfer { fate }),
        3 => Just(Action::InSync),
        2 => Just(Action::Failover),
        2 => (0..8usize).prop_map(|which| Action::Redo { which }),
        5 => Just(Action::Read),
    ]
}

/// Creates the stores of all replicas.
async fn stores(redis: &RedisServer) -> Vec<Store> {
    let options = RedisOptions {
        url: redis.url(),
        command_timeout: Duration::from_secs(5),
        acknowledgements: 0,
        tls: crate::tls::TlsOptions::default(),
    };
    let mut stores = Vec::new();
    for replica in 0..REPLICAS {
        let redis = Redis::connect(&options).expect("a client");
        migrations::apply(&redis).await.expect("migrations");
        stores.push(Store::new(redis, format!("replica-{replica}"), SessionLimits::default()));
    }
    stores
}

async fn run_history(redis: &RedisServer, stores: &[Store], history: &[Action], shown: bool) {
    let mut world = World::new(redis, stores);
    for action in history {
        if shown {
            eprintln!("## {action:?}");
        }
        world.step(action).await;
        if shown {
            world.show();
        }
    }
    world.settle().await;
    if shown {
        eprintln!("## everything has ended");
        world.show();
    }
    world.check().await;
}

#[test]
fn every_interleaving_of_writes_takeovers_cancels_clears_and_failovers_keeps_the_promises() {
    let variable = |name| std::env::var(name).ok().and_then(|value: String| value.parse().ok());
    let seed = variable("PROPTEST_RNG_SEED").unwrap_or_else(rand::random::<u64>);
    let cases = variable("PROPTEST_CASES").and_then(|cases| u32::try_from(cases).ok());
    let cases = cases.unwrap_or(CASES);
    eprintln!("to repeat this run: PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases}");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let redis = RedisServer::start_with(&["--appendonly", "no"]);
    let stores = runtime.block_on(stores(&redis));
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    };
    let histories = proptest::collection::vec(action(), 1..90);
    let outcome = TestRunner::new(config).run(&histories, |history| {
        runtime.block_on(run_history(&redis, &stores, &history, false));
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, history)) => {
            eprintln!("the shortest history that fails, step by step:");
            runtime.block_on(run_history(&redis, &stores, &history, true));
            panic!("{reason} (the repeat did not fail): {history:?}");
        }
        Err(error) => panic!("{error}"),
    }
}
