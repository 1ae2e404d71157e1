//! Every order of writes, lost replies, takeovers, cancels, clears and failovers keeps what is
//! promised.
//!
//! The functions in a real Redis and the decisions of a writer are the real ones; only time and the
//! network are made up. Each writer writes its own alphabet, so that text of two writers that is
//! mixed, doubled or lost cannot look right.
//!
//! Two faults at once are not all covered by the promises (ARCHITECTURE.md, "What dies, and who
//! repairs it"). [`World::check`] excludes these cases one by one, each with its reason, and checks
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
/// Idempotency keys that clients use again and again.
const KEYS: u8 = 3;
/// Histories that are tried, where `PROPTEST_CASES` does not say how many: each is some hundred
/// calls of Redis.
const CASES: u32 = 100;

/// What becomes of a call.
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
    /// A holder makes the next call that it wants to make.
    Write {
        who: usize,
        fate: Fate,
    },
    /// The model generates so many characters.
    Generate {
        who: usize,
        characters: usize,
    },
    /// The model, asked to go on, goes another way from this share of the text.
    TakeBack {
        who: usize,
        share: f64,
    },
    Finish {
        who: usize,
        fate: Fate,
    },
    /// Never the first replica: one has to be left.
    Die {
        replica: usize,
    },
    /// Claims what dead replicas hold, and with `suspicion` what living ones hold.
    TakeOver {
        by: usize,
        suspicion: bool,
    },
    /// With `heard`, the holder's replica receives the hint.
    Cancel {
        heard: bool,
        fate: Fate,
    },
    Clear {
        delete: bool,
        heard: bool,
        fate: Fate,
    },
    /// The replica of Redis has everything up to here.
    InSync,
    Failover,
    /// One cancel or clear from before the failover is done again.
    Redo {
        which: usize,
    },
    Read,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![6 => Just(Fate::Done), 1 => Just(Fate::ReplyLost), 1 => Just(Fate::Twice)]
}

fn action() -> impl Strategy<Value = Action> {
    let (replica, who) = (0..REPLICAS, 0..8usize);
    let key = prop_oneof![2 => Just(None), 1 => (0..KEYS).prop_map(Some)];
    prop_oneof![
        4 => (replica.clone(), key, fate())
            .prop_map(|(by, key, fate)| Action::Accept { by, key, fate }),
        16 => (who.clone(), fate()).prop_map(|(who, fate)| Action::Write { who, fate }),
        10 => (who.clone(), 1..12usize)
            .prop_map(|(who, characters)| Action::Generate { who, characters }),
        1 => (who.clone(), 0.0..1.0f64).prop_map(|(who, share)| Action::TakeBack { who, share }),
        4 => (who, fate()).prop_map(|(who, fate)| Action::Finish { who, fate }),
        1 => (1..REPLICAS).prop_map(|replica| Action::Die { replica }),
        2 => (replica, any::<bool>())
            .prop_map(|(by, suspicion)| Action::TakeOver { by, suspicion }),
        1 => (any::<bool>(), fate()).prop_map(|(heard, fate)| Action::Cancel { heard, fate }),
        1 => (any::<bool>(), any::<bool>(), fate())
            .prop_map(|(delete, heard, fate)| Action::Clear { delete, heard, fate }),
        3 => Just(Action::InSync),
        2 => Just(Action::Failover),
        2 => (0..8usize).prop_map(|which| Action::Redo { which }),
        5 => Just(Action::Read),
    ]
}

/// The stores of all replicas.
async fn stores(redis: &RedisServer) -> Vec<Store> {
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
}

async fn try_out(redis: &RedisServer, stores: &[Store], history: &[Action], shown: bool) {
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
    eprintln!("to try the same again: PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases}");
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
        runtime.block_on(try_out(&redis, &stores, &history, false));
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, history)) => {
            eprintln!("the shortest history that fails, step by step:");
            runtime.block_on(try_out(&redis, &stores, &history, true));
            panic!("{reason} (it did not fail again): {history:?}");
        }
        Err(error) => panic!("{error}"),
    }
}
