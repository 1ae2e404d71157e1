//! Where one Redis thread ends: what CPU turns, ticks and heartbeats cost it, with a few replicas and
//! hosts and with many. `docs/OPERATIONS.md` has the figures.
#![allow(missing_docs, reason = "tests")]

mod support;

use jarvis::membership::{MembershipStore, ReplicaFigures};
use jarvis::queue::{
    HostAccess, HostKey, HostReport, Overview, QueueLimits, QueueStore, Room, Ticket, TicketSource,
    TicketStatus,
};
use jarvis::redis::{Observer, Redis};
use jarvis::session::GenerationId;
use support::redis::RedisServer;
use support::store::{connect, options};

const MODEL: &str = "m:latest";
/// Turns that are measured in one world.
const TURNS: usize = 300;
/// Replicas that a heartbeat looks at in addition to its own.
const WATCHED: usize = 8;
/// Heartbeats of a replica a second.
const HEARTBEATS: f64 = 10.0;

/// A Redis with so many replicas that all see so many hosts.
struct World {
    server: RedisServer,
    stores: Vec<QueueStore>,
    members: Vec<MembershipStore>,
}

fn host(number: usize) -> HostReport {
    HostReport {
        name: HostKey(format!("http://10.0.{}.{}:11434", number / 250, number % 250)),
        slots: 4,
        via: HostAccess::Open,
        trials: 0,
        models: [(MODEL.to_owned(), true)].into(),
    }
}

fn ticket(number: usize) -> Ticket {
    let user = format!("user-{number}");
    Ticket {
        generation: GenerationId::random(),
        user: user.clone(),
        source: TicketSource { name: user.clone(), networks: Vec::new() },
        is_of_address: false,
        model: MODEL.to_owned(),
        session: user,
        prefixes: Vec::new(),
        has_text: false,
    }
}

impl World {
    async fn with(replicas: usize, hosts: usize) -> Self {
        let server = RedisServer::start();
        let redis: Redis = connect(&server.url()).await;
        let limits =
            QueueLimits { waiting: 10_000, waiting_of_source: 10_000, running_of_address: 10_000 };
        let reports: Vec<_> = (0..hosts).map(host).collect();
        let (mut stores, mut members) = (Vec::new(), Vec::new());
        for number in 0..replicas {
            let name = format!("replica-{number}");
            let store = QueueStore::new(redis.clone(), name.clone(), limits);
            store.report(&reports).await.expect("Redis");
            stores.push(store);
            members.push(MembershipStore::new(redis.clone(), name));
        }
        Self { server, stores, members }
    }

    /// Microseconds of CPU that the one thread of commands has taken, whatever else the machine does.
    fn busy(&self) -> f64 {
        self.server.cpu_time().expect("a time").as_secs_f64() * 1e6
    }

    /// Microseconds of Redis per repetition.
    async fn cost(&self, times: usize, mut act: impl AsyncFnMut(usize)) -> f64 {
        let before = self.busy();
        for number in 0..times {
            act(number).await;
        }
        (self.busy() - before) / times as f64
    }

    fn store(&self, number: usize) -> &QueueStore {
        &self.stores[number % self.stores.len()]
    }

    async fn turn(&self, number: usize) {
        let (store, ticket) = (self.store(number), ticket(number));
        assert_eq!(store.room(MODEL, &ticket.source).await.expect("Redis"), Room::Some);
        let reply = store.join(&ticket, None).await.expect("Redis");
        assert!(matches!(reply.status, TicketStatus::Granted(_)), "{reply:?}");
        store.release(ticket.generation).await.expect("Redis");
    }

    async fn heartbeat(&self, number: usize, all: bool) {
        let replicas = self.members.len();
        let watched = (1..=WATCHED.min(replicas - 1)).map(|next| (number + next) % replicas);
        let watched = watched.map(|at| format!("replica-{at}")).collect();
        let member = &self.members[number % replicas];
        // A replica publishes its figures as often as it reads all heartbeats.
        let figures = all.then(|| ReplicaFigures {
            version: "0.1.0".to_owned(),
            address: format!("jarvis-{number}:10200"),
            phase: "serving".to_owned(),
            ..ReplicaFigures::default()
        });
        member.heartbeat(all, watched, figures.as_ref()).await.expect("Redis");
    }
}

#[tokio::test]
#[ignore = "a measurement: cargo test --workspace --test ceilings -- --ignored --nocapture"]
async fn what_turns_ticks_and_heartbeats_cost_one_redis_thread() {
    println!(
        "replicas hosts | turn with free slots | turn, 1,000 wait | tick | heartbeat, of all | overview"
    );
    for (replicas, hosts) in [(3, 3), (3, 20), (20, 20), (200, 20), (3, 100), (200, 100), (3, 1000)]
    {
        let world = World::with(replicas, hosts).await;
        for number in 0..replicas {
            world.heartbeat(number, false).await;
        }
        let free = world.cost(TURNS, async |number| world.turn(number).await).await;
        // Every slot is taken, and 1,000 turns wait: one turn ends for each that joins.
        let mut running = Vec::new();
        for number in 0..4 * hosts + 1000 {
            let ticket = ticket(number);
            world.store(number).join(&ticket, None).await.expect("Redis");
            running.push((number, ticket.generation));
        }
        let mut running = running.into_iter();
        let full = world.cost(TURNS, async |number| {
            let (store, ticket) = (world.store(number), ticket(1_000_000 + number));
            store.room(MODEL, &ticket.source).await.expect("Redis");
            store.join(&ticket, None).await.expect("Redis");
            let (by, generation) = running.next().expect("a running turn");
            world.store(by).release(generation).await.expect("Redis");
        });
        let full = full.await;
        let tick = world.cost(replicas.max(50), async |number| {
            world.store(number).tick().await.expect("Redis");
        });
        let tick = tick.await;
        let beat = world.cost(400, async |number| world.heartbeat(number, false).await).await;
        let all = world.cost(200, async |number| world.heartbeat(number, true).await).await;
        let mut observer = Observer::connect(&options(&world.server.url())).expect("a client");
        let overview = world.cost(50, async |_| {
            Overview::read(&mut observer).await.expect("Redis");
        });
        let overview = overview.await;
        // Each replica ticks once a second, and reads all heartbeats with every tenth one.
        let beats = (HEARTBEATS - 1.0) * beat + all;
        let share = replicas as f64 * (tick + beats) / 1e6;
        println!(
            "{replicas:>8} {hosts:>5} | {free:>17.0} µs | {full:>13.0} µs | {tick:>4.0} µs | \
             {beat:.0} µs, {all:.0} µs | {overview:.0} µs | ticks and heartbeats: {:.1} % of the thread",
            share * 100.0
        );
    }
}
