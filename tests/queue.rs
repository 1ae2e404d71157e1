//! The promises of the queue, on a real Redis.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use jarvis::queue::{
    Freed, Grant, HostAccess, HostKey, HostReport, Lease, Queue, QueueLimits, QueueStore, Returned,
    Room, Ticket, TicketReply, TicketSource, TicketStatus, Waiting,
};
use jarvis::redis::Redis;
use jarvis::session::GenerationId;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::eventually;
use support::process::LIMIT;
use support::redis::{RedisCluster, RedisServer};
use support::redis_time::{Machine, takes_moments};
use support::store::connect;

const MODEL: &str = "m:latest";
const LIMITS: QueueLimits =
    QueueLimits { waiting: 1000, waiting_of_source: 1000, running_of_address: 1000 };

fn replica(redis: &Redis, name: &str) -> QueueStore {
    QueueStore::new(redis.clone(), name.to_owned(), LIMITS)
}

fn host(name: &str, slots: usize, models: &[&str]) -> HostReport {
    HostReport {
        name: HostKey(name.to_owned()),
        slots,
        via: HostAccess::Open,
        trials: 0,
        models: models.iter().map(|model| ((*model).to_owned(), false)).collect(),
    }
}

fn ticket(user: &str, model: &str) -> Ticket {
    Ticket {
        generation: GenerationId::random(),
        user: user.to_owned(),
        source: TicketSource { name: user.to_owned(), networks: Vec::new() },
        is_of_address: false,
        model: model.to_owned(),
        session: user.to_owned(),
        prefixes: Vec::new(),
        has_text: false,
    }
}

/// A ticket of an address, with the wider networks around it.
fn ticket_of_address(address: &str, networks: &[&str]) -> Ticket {
    let networks = networks.iter().map(|network| (*network).to_owned()).collect();
    let source = TicketSource { name: address.to_owned(), networks };
    Ticket { source, is_of_address: true, ..ticket(address, MODEL) }
}

/// A ticket of this /64 of a site, which has 16 of them in each /56.
fn ticket_of_site(site: &str, number: usize) -> Ticket {
    let wider = format!("{site}.{}", number / 16);
    ticket_of_address(&format!("{wider}.{number}"), &[&wider, site])
}

async fn join(store: &QueueStore, ticket: &Ticket) -> TicketStatus {
    store.join(ticket, None).await.expect("Redis").status
}

async fn status(store: &QueueStore, ticket: &Ticket) -> TicketStatus {
    store.statuses(&[ticket.generation]).await.expect("Redis").remove(0).status
}

async fn granted(store: &QueueStore, ticket: &Ticket) -> Grant {
    match status(store, ticket).await {
        TicketStatus::Granted(grant) => grant,
        other => panic!("no slot: {other:?}"),
    }
}

async fn position(store: &QueueStore, ticket: &Ticket) -> Option<u64> {
    match status(store, ticket).await {
        TicketStatus::Waiting(Waiting { position, .. }) => Some(position),
        _ => None,
    }
}

async fn release(store: &QueueStore, ticket: &Ticket) {
    store.release(ticket.generation).await.expect("Redis");
}

/// A queue with one replica and these hosts.
struct World {
    server: RedisServer,
    redis: Redis,
    store: QueueStore,
}

impl World {
    async fn with(hosts: &[HostReport]) -> Self {
        let server = RedisServer::start();
        let redis = connect(&server.url()).await;
        let store = replica(&redis, "r1");
        store.report(hosts).await.expect("Redis");
        Self { server, redis, store }
    }

    async fn other(&self, name: &str, hosts: &[HostReport]) -> QueueStore {
        let store = replica(&self.redis, name);
        store.report(hosts).await.expect("Redis");
        store
    }

    /// A store with other limits.
    fn limited(&self, waiting: usize, waiting_of_source: usize) -> QueueStore {
        let limits = QueueLimits { waiting, waiting_of_source, running_of_address: 1000 };
        QueueStore::new(self.redis.clone(), "r1".to_owned(), limits)
    }

    /// Records this as the mean time of host a's turns, as releases measure it.
    fn set_turn_time(&self, mean: Duration) {
        let mean_ms = mean.as_millis().to_string();
        self.server.cli(&["HSET", "jarvis:{queue}:host:a", "turn_ms", &mean_ms]);
    }
}

#[tokio::test]
async fn a_free_slot_is_granted_at_once_and_a_repeat_gets_the_same() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let (first, second) = (ticket("u", MODEL), ticket("v", MODEL));
    let got = join(&world.store, &first).await;
    assert_eq!(got, TicketStatus::Granted(Grant { host: HostKey("a".into()), number: 1 }));
    assert_eq!(join(&world.store, &first).await, got);
    assert!(
        matches!(join(&world.store, &second).await, TicketStatus::Waiting(w) if w.position == 1)
    );
    release(&world.store, &first).await;
    release(&world.store, &first).await;
    granted(&world.store, &second).await;
    release(&world.store, &second).await;
    assert_eq!(world.store.holdings().await.unwrap(), HashSet::new());
    let left = world.server.cli(&["KEYS", "jarvis:{queue}:ticket:*"]);
    assert_eq!(left.trim(), "", "tickets that are over leave nothing");
}

#[tokio::test]
async fn the_queue_works_in_a_cluster() {
    let cluster = RedisCluster::start();
    let store = replica(&connect(&cluster.url()).await, "r1");
    store.report(&[host("a", 1, &[MODEL])]).await.expect("Redis");
    let (first, second) = (ticket("u", MODEL), ticket("v", MODEL));
    assert!(matches!(join(&store, &first).await, TicketStatus::Granted(_)));
    assert!(matches!(join(&store, &second).await, TicketStatus::Waiting(_)));
    release(&store, &first).await;
    granted(&store, &second).await;
}

#[tokio::test]
async fn a_model_whose_hosts_are_full_blocks_no_other() {
    let hosts = [host("a", 1, &["one:latest"]), host("b", 1, &["one:latest", "two:latest"])];
    let world = World::with(&hosts).await;
    let ones: Vec<_> = (0..5).map(|n| ticket(&format!("u{n}"), "one:latest")).collect();
    for one in &ones {
        join(&world.store, one).await;
    }
    let two = ticket("v", "two:latest");
    let status = join(&world.store, &two).await;
    assert!(matches!(status, TicketStatus::Waiting(w) if w.position == 4), "{status:?}");
    // Host a does not have the second model, however long that waits.
    let on_a = ones.iter().take(2);
    for one in on_a {
        let grant = granted(&world.store, one).await;
        if grant.host.0 == "a" {
            release(&world.store, one).await;
        }
    }
    granted(&world.store, &ones[2]).await;
    assert_eq!(position(&world.store, &two).await, Some(3));
    let third = ticket("w", "three:latest");
    let status = join(&world.store, &third).await;
    assert!(
        matches!(status, TicketStatus::Waiting(w) if w.hosts == 0 && w.eta.is_none()),
        "{status:?}"
    );
    release(&world.store, &third).await;
}

#[tokio::test]
async fn among_free_hosts_the_loaded_one_then_the_one_that_ran_the_session_then_the_least_used() {
    let mut hosts = [host("a", 4, &[MODEL]), host("b", 2, &[MODEL]), host("c", 2, &[MODEL])];
    let world = World::with(&hosts).await;
    let mut chosen = Vec::new();
    for n in 0..6 {
        let ticket = ticket(&format!("u{n}"), MODEL);
        join(&world.store, &ticket).await;
        chosen.push(granted(&world.store, &ticket).await.host.0);
    }
    assert_eq!(chosen, ["a", "b", "c", "a", "a", "b"], "the smallest share in use");
    let world = World::with(&hosts).await;
    let (busy, again) = (ticket("u", MODEL), ticket("u", MODEL));
    join(&world.store, &busy).await;
    assert_eq!(granted(&world.store, &busy).await.host.0, "a");
    join(&world.store, &again).await;
    assert_eq!(granted(&world.store, &again).await.host.0, "a", "the session's prompt is there");
    hosts[2].models.insert(MODEL.to_owned(), true);
    world.store.report(&hosts).await.unwrap();
    let loaded = ticket("u", MODEL);
    join(&world.store, &loaded).await;
    assert_eq!(granted(&world.store, &loaded).await.host.0, "c", "the model is loaded there");
}

#[tokio::test]
async fn a_conversation_goes_to_the_free_host_of_its_longest_beginning_and_waits_for_none() {
    let hosts = [host("a", 1, &[MODEL]), host("b", 1, &[MODEL]), host("c", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let conversation = |prefixes: &[&str]| Ticket {
        prefixes: prefixes.iter().map(|digest| (*digest).to_owned()).collect(),
        session: GenerationId::random().to_string(),
        ..ticket("u", MODEL)
    };
    let run = async |prefixes: &[&str]| {
        let ticket = conversation(prefixes);
        join(&world.store, &ticket).await;
        (granted(&world.store, &ticket).await.host.0, ticket)
    };
    let [first, second, third] = [run(&["1"]).await, run(&["21", "2"]).await, run(&["31"]).await];
    assert_eq!((&*first.0, &*second.0, &*third.0), ("a", "b", "c"));
    // A ticket that waits, too, is granted the host of its conversation.
    let waiting = conversation(&["312", "31", "3"]);
    assert!(matches!(join(&world.store, &waiting).await, TicketStatus::Waiting(_)));
    for (_, ticket) in [&third, &second, &first] {
        release(&world.store, ticket).await;
    }
    assert_eq!(granted(&world.store, &waiting).await.host.0, "c");
    release(&world.store, &waiting).await;
    let longer = run(&["212", "21", "1"]).await;
    assert_eq!(longer.0, "b", "the longest beginning counts most");
    // Its host is busy: the host of a shorter beginning is next, and then any.
    let again = run(&["2122", "212", "21", "1"]).await;
    assert_eq!(again.0, "a");
    let elsewhere = run(&["2123", "212", "21", "1"]).await;
    assert_eq!(elsewhere.0, "c", "it does not wait");
    for ticket in [longer.1, again.1, elsewhere.1] {
        release(&world.store, &ticket).await;
    }
    assert_eq!(run(&["4", "21x"]).await.0, "a", "a digest that nobody noted counts for nothing");
}

#[tokio::test]
async fn fifty_turns_of_one_user_delay_anothers_first_by_one_turn() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let greedy: Vec<_> = (0..50).map(|_| ticket("greedy", MODEL)).collect();
    for turn in &greedy {
        join(&world.store, turn).await;
    }
    for turn in &greedy[..10] {
        release(&world.store, turn).await;
    }
    let other = ticket("other", MODEL);
    assert!(
        matches!(join(&world.store, &other).await, TicketStatus::Waiting(w) if w.position == 1)
    );
    release(&world.store, &greedy[10]).await;
    granted(&world.store, &other).await;
}

#[tokio::test]
async fn networks_of_one_56_and_of_one_48_cannot_fill_the_queue() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let store = world.limited(1000, 10);
    join(&store, &ticket("running", MODEL)).await;
    let mut waiting = 0;
    // 16 networks /64 in each of 16 networks /56 of one /48.
    for number in 0..256 {
        let (wide, wider) = (format!("p56-{}", number / 16), "p48");
        for _ in 0..12 {
            let ticket = ticket_of_address(&format!("p64-{number}"), &[&wide, wider]);
            match join(&store, &ticket).await {
                TicketStatus::Waiting(_) => waiting += 1,
                status => assert!(matches!(status, TicketStatus::Crowded(_)), "{status:?}"),
            }
        }
        match number {
            0 => assert_eq!(waiting, 10, "one /64"),
            15 => assert_eq!(waiting, 20, "one /56"),
            _ => {}
        }
    }
    assert_eq!(waiting, 40, "one /48");
    let other = ticket_of_address("other", &["other-56", "other-48"]);
    assert!(matches!(join(&store, &other).await, TicketStatus::Waiting(_)));
}

#[tokio::test]
async fn an_address_runs_a_bounded_number_of_turns_in_order_and_blocks_no_other() {
    let hosts = [host("a", 4, &[MODEL])];
    let world = World::with(&hosts).await;
    let limits = QueueLimits { running_of_address: 2, ..LIMITS };
    let store = QueueStore::new(world.redis.clone(), "r1".to_owned(), limits);
    let heir = QueueStore::new(world.redis.clone(), "r2".to_owned(), limits);
    heir.report(&hosts).await.expect("Redis");
    let greedy: Vec<_> = (0..100).map(|_| ticket_of_address("greedy", &[])).collect();
    for ticket in &greedy {
        join(&store, ticket).await;
    }
    let running = async |store: &QueueStore| {
        let ids: Vec<_> = greedy.iter().map(|ticket| ticket.generation).collect();
        let replies = store.statuses(&ids).await.expect("Redis");
        let granted = |at: &usize| matches!(replies[*at].status, TicketStatus::Granted(_));
        (0..replies.len()).filter(granted).collect::<Vec<_>>()
    };
    assert_eq!(running(&store).await, [0, 1]);
    // More tickets stand before the other's than one line is searched for.
    let others = [ticket("other", MODEL), ticket("another", MODEL)];
    for other in &others {
        join(&store, other).await;
        granted(&store, other).await;
    }
    release(&store, &others[0]).await;
    assert_eq!(running(&store).await, [0, 1], "a slot is free, and the bound holds");
    release(&store, &greedy[1]).await;
    release(&store, &greedy[50]).await;
    assert_eq!(running(&store).await, [0, 2]);
    let grant = granted(&store, &greedy[2]).await;
    let why = Returned { excluded: Duration::ZERO, full: Duration::ZERO, has_text: false };
    store.give_back(greedy[2].generation, &grant, why).await.expect("Redis");
    assert_eq!(running(&store).await, [0, 2], "a returned slot comes back to its ticket");
    heir.free("r1", None).await.expect("Redis");
    for at in [0, 2] {
        join(&heir, &Ticket { has_text: true, ..greedy[at].clone() }).await;
    }
    for ticket in greedy[3..].iter().filter(|ticket| ticket.generation != greedy[50].generation) {
        join(&heir, ticket).await;
    }
    assert_eq!(running(&heir).await, [0, 2], "a takeover changes nothing");
    for (at, ticket) in greedy.iter().enumerate() {
        if ![1, 50].contains(&at) {
            granted(&heir, ticket).await;
            release(&heir, ticket).await;
        }
    }
    for kind in ["active", "held_back", "source"] {
        let left = world.server.cli(&["KEYS", &format!("jarvis:{{queue}}:{kind}:greedy")]);
        assert_eq!(left.trim(), "", "tickets that are over leave nothing");
    }
}

/// Returns the tickets that hold a slot.
async fn running<'a>(store: &QueueStore, tickets: &'a [Ticket]) -> Vec<&'a Ticket> {
    let ids: Vec<_> = tickets.iter().map(|ticket| ticket.generation).collect();
    let replies = store.statuses(&ids).await.expect("Redis");
    let is_running =
        |(_, reply): &(_, TicketReply)| matches!(reply.status, TicketStatus::Granted(_));
    tickets.iter().zip(replies).filter(is_running).map(|(ticket, _)| ticket).collect()
}

#[tokio::test]
async fn ninety_networks_of_one_site_delay_another_address_by_a_few_turns_only() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let site: Vec<_> = (0..90).map(|number| ticket_of_site("site", number)).collect();
    for ticket in &site {
        join(&world.store, ticket).await;
    }
    for begun in 0..3 {
        // Turns of the site run before each newcomer, and others take their places in the queue.
        for number in 0..10 {
            let [first, ..] = running(&world.store, &site).await[..] else {
                panic!("an idle slot")
            };
            release(&world.store, first).await;
            join(&world.store, &ticket_of_site("site", 100 + 10 * begun + number)).await;
        }
        let other = ticket_of_address(&format!("other-{begun}"), &["other-56", "other-48"]);
        let status = join(&world.store, &other).await;
        let is_soon = matches!(status, TicketStatus::Waiting(w) if w.position <= 5);
        assert!(is_soon, "{begun}: {status:?}");
        release(&world.store, &other).await;
    }
}

#[tokio::test]
async fn four_busy_networks_of_a_site_delay_their_neighbours_little() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    for _ in 0..50 {
        for number in [0, 1, 16, 17] {
            join(&world.store, &ticket_of_site("site", number)).await;
        }
    }
    for number in 2..6 {
        let ticket = ticket_of_site("site", number);
        let status = join(&world.store, &ticket).await;
        let is_soon = matches!(status, TicketStatus::Waiting(w) if w.position <= 10);
        assert!(is_soon, "{number}: {status:?}");
        release(&world.store, &ticket).await;
    }
    // A turn that left does not count against the next one of its source.
    let (again, elsewhere) = (ticket_of_site("site", 2), ticket_of_address("other", &[]));
    let status = join(&world.store, &again).await;
    assert!(matches!(status, TicketStatus::Waiting(w) if w.position <= 10), "{status:?}");
    let status = join(&world.store, &elsewhere).await;
    assert!(matches!(status, TicketStatus::Waiting(w) if w.position <= 5), "{status:?}");
}

#[tokio::test]
async fn a_turn_that_left_a_full_site_does_not_count_against_its_source() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let site: Vec<_> = (0..40).map(|number| ticket_of_site("site", number)).collect();
    for ticket in &site {
        join(&world.store, ticket).await;
    }
    let late = ticket_of_site("site", 41);
    join(&world.store, &late).await;
    let at = position(&world.store, &late).await.expect("it waits");
    assert!(at > 20, "{at}: the rounds of the site are full");
    for ticket in site[1..].iter().chain([&late]) {
        release(&world.store, ticket).await;
    }
    for turn in 0..10 {
        join(&world.store, &ticket(&format!("u{}", turn % 5), MODEL)).await;
    }
    let again = ticket_of_site("site", 41);
    join(&world.store, &again).await;
    assert_eq!(position(&world.store, &again).await, Some(6), "after one turn of each other user");
}

#[tokio::test]
async fn after_redis_lost_everything_the_networks_of_a_site_wait_in_their_rounds() {
    let hosts = [host("a", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let site: Vec<_> = (0..40).map(|number| ticket_of_site("site", number)).collect();
    let mut starts = Vec::new();
    for ticket in &site {
        let reply = world.store.join(ticket, None).await.expect("Redis");
        starts.push(reply.start.expect("a start"));
    }
    let mut left: Vec<_> = site.iter().zip(&starts).collect();
    let mut now = left[0];
    for _ in 0..20 {
        release(&world.store, now.0).await;
        left.retain(|(ticket, _)| !is_same(ticket, now.0));
        let [next, ..] = running(&world.store, &site).await[..] else { panic!("an idle slot") };
        now = *left.iter().find(|(ticket, _)| is_same(ticket, next)).expect("one of them");
    }
    left.retain(|(ticket, _)| !is_same(ticket, now.0));
    world.server.cli(&["FLUSHALL"]);
    world.store.restore(now.0, &HostKey("a".into()), now.1).await.expect("Redis");
    world.store.report(&hosts).await.expect("Redis");
    for (ticket, start) in left {
        world.store.join(ticket, Some(start)).await.expect("Redis");
    }
    let late = ticket_of_site("site", 41);
    join(&world.store, &late).await;
    let at = position(&world.store, &late).await.expect("it waits");
    let other = ticket_of_address("other", &[]);
    let status = join(&world.store, &other).await;
    assert!(matches!(status, TicketStatus::Waiting(w) if w.position <= 5), "{status:?}");
    assert!(at > 5, "{at}: the rounds of the site are full");
}

#[tokio::test]
async fn a_user_with_two_hundred_turns_delays_the_others_little() {
    let hosts = [host("a", 4, &[MODEL]), host("b", 2, &[MODEL]), host("c", 1, &[MODEL])];
    let (with, all_busy) = median_wait_of_others(&hosts, 200).await;
    let (without, _) = median_wait_of_others(&hosts, 0).await;
    println!(
        "median wait of the others: {with} beside the greedy one, {without} without, in turns"
    );
    assert!(all_busy, "a slot was free while a turn waited");
    assert!(with <= without * 1.3, "{with} against {without}");
}

#[tokio::test]
async fn one_site_runs_at_most_four_times_the_turns_of_an_address() {
    let hosts = [host("a", 60, &[MODEL])];
    let world = World::with(&hosts).await;
    let limits = QueueLimits { running_of_address: 3, ..LIMITS };
    let store = QueueStore::new(world.redis.clone(), "r1".to_owned(), limits);
    // Five /64 in each of four /56, with ten turns each.
    let numbers = (0..4).flat_map(|wider| (0..5).map(move |number| 16 * wider + number));
    let numbers: Vec<_> = numbers.collect();
    let mut site: Vec<_> = numbers
        .iter()
        .flat_map(|number| std::iter::repeat_with(|| ticket_of_site("site", *number)).take(10))
        .collect();
    for ticket in &site {
        join(&store, ticket).await;
    }
    let mut released = 0;
    while !site.is_empty() {
        let running: Vec<Ticket> = running(&store, &site).await.into_iter().cloned().collect();
        let mut of_each: HashMap<&str, usize> = HashMap::new();
        for ticket in &running {
            for network in std::iter::once(&ticket.source.name).chain(&ticket.source.networks) {
                *of_each.entry(network).or_default() += 1;
            }
        }
        for (network, turns) in &of_each {
            let most = 12 >> network.matches('.').count();
            assert!(*turns <= most, "{turns} turns of {network} after {released}");
        }
        let mut waits_for_itself = site.len() > running.len();
        if released == 0 {
            assert_eq!(of_each["site"], 12, "the slots are free");
            let other = ticket_of_address("other", &[]);
            assert!(matches!(join(&store, &other).await, TicketStatus::Granted(_)));
            release(&store, &other).await;
            // Of those that are held back one leaves, too.
            let waiting =
                site.iter().rev().find(|ticket| !running.iter().any(|r| is_same(r, ticket)));
            let waiting = waiting.expect("tickets that are held back").clone();
            release(&store, &waiting).await;
            site.retain(|ticket| !is_same(ticket, &waiting));
            waits_for_itself = true;
        }
        assert!(!running.is_empty() || !waits_for_itself, "no turn runs, and {} wait", site.len());
        let over = &running[released % running.len()];
        release(&store, over).await;
        site.retain(|ticket| !is_same(ticket, over));
        released += 1;
    }
    assert_eq!(released, numbers.len() * 10 - 1);
    for kind in ["active", "held_back", "source"] {
        let left = world.server.cli(&["KEYS", &format!("jarvis:{{queue}}:{kind}:*")]);
        assert_eq!(left.trim(), "", "tickets that are over leave nothing");
    }
}

fn is_same(one: &Ticket, other: &Ticket) -> bool {
    one.generation == other.generation
}

/// 29 users send 100 turns and one sends `greedy`, all at once; every turn takes one step. Returns
/// the median number of steps that a turn of the 29 waits, and whether all slots were busy
/// meanwhile.
async fn median_wait_of_others(hosts: &[HostReport], greedy: usize) -> (f64, bool) {
    let world = World::with(hosts).await;
    let stores = [
        world.other("r1", hosts).await,
        world.other("r2", hosts).await,
        world.other("r3", hosts).await,
    ];
    let slots: usize = hosts.iter().map(|host| host.slots).sum();
    let users = (0..greedy).map(|_| "greedy".to_owned());
    let users = users.chain((0..100).map(|n| format!("u{}", n % 29)));
    let mut live: Vec<(Ticket, usize)> =
        users.enumerate().map(|(n, user)| (ticket(&user, MODEL), n % 3)).collect();
    for (ticket, replica) in &live {
        join(&stores[*replica], ticket).await;
    }
    let (mut step, mut waits, mut all_busy) = (0, Vec::new(), true);
    while !live.is_empty() {
        let mut running = Vec::new();
        for (replica, store) in stores.iter().enumerate() {
            let tickets: Vec<_> = live.iter().filter(|(_, at)| *at == replica).collect();
            let ids: Vec<_> = tickets.iter().map(|(ticket, _)| ticket.generation).collect();
            let replies = store.statuses(&ids).await.expect("Redis");
            for ((ticket, _), reply) in tickets.iter().zip(replies) {
                if matches!(reply.status, TicketStatus::Granted(_)) {
                    running.push((ticket.clone(), replica));
                }
            }
        }
        all_busy &= running.len() == slots.min(live.len());
        waits.extend(
            running.iter().filter(|(ticket, _)| ticket.user != "greedy").map(|_| f64::from(step)),
        );
        for (ticket, replica) in &running {
            live.retain(|(other, _)| other.generation != ticket.generation);
            release(&stores[*replica], ticket).await;
        }
        step += 1;
    }
    waits.sort_by(f64::total_cmp);
    (waits[waits.len() / 2], all_busy)
}

#[tokio::test]
async fn a_replica_that_is_gone_leaves_its_slots_to_its_turns_and_they_keep_their_positions() {
    let hosts = [host("a", 2, &[MODEL])];
    let world = World::with(&hosts).await;
    let heir = world.other("r2", &hosts).await;
    let running = [ticket("u1", MODEL), ticket("u2", MODEL)];
    for turn in &running {
        join(&world.store, turn).await;
    }
    let (early, late) = (ticket("u3", MODEL), ticket("u4", MODEL));
    join(&world.store, &early).await;
    join(&heir, &late).await;
    world.server.cli(&["HSET", "jarvis:{queue}:heartbeats", "r1", "8"]);
    assert_eq!(heir.free("r1", Some(7)).await.unwrap(), Freed::Alive);
    assert_eq!(position(&heir, &late).await, Some(2));
    assert_eq!(heir.free("r1", Some(8)).await.unwrap(), Freed::All);
    assert_eq!(position(&heir, &late).await, Some(1), "the slots are reserved");
    assert_eq!(status(&world.store, &running[0]).await, TicketStatus::Gone);
    // A turn that is taken over has its slot at once; one that nobody takes over loses it soon.
    let continued = Ticket { has_text: true, ..running[0].clone() };
    let TicketStatus::Granted(grant) = join(&heir, &continued).await else { panic!("no slot") };
    assert_eq!((grant.host, grant.number), (HostKey("a".to_owned()), 2));
    let freed = async || {
        heir.tick().await.expect("Redis");
        position(&heir, &late).await.is_none()
    };
    assert!(testkit::eventually(LIMIT, freed).await, "the slot stays reserved");
    granted(&heir, &continued).await;
    assert_eq!(heir.tick().await.unwrap().hosts[0].used, 2);
    // A late call of the dead replica changes nothing.
    release(&world.store, &early).await;
    let newcomer = ticket("u5", MODEL);
    join(&heir, &newcomer).await;
    let continued = Ticket { has_text: true, ..running[1].clone() };
    join(&heir, &early).await;
    join(&heir, &continued).await;
    assert_eq!(position(&heir, &continued).await, Some(1), "text goes first");
    assert_eq!(position(&heir, &early).await, Some(2), "its old position");
    assert_eq!(position(&heir, &newcomer).await, Some(3));
}

#[tokio::test]
async fn a_turn_that_is_taken_over_keeps_its_host_though_others_wait_and_others_are_free() {
    let hosts = [host("a", 1, &[MODEL]), host("b", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let heir = world.other("r2", &hosts).await;
    let turns = [ticket("u1", MODEL), ticket("u2", MODEL)];
    let mut before = Vec::new();
    for turn in &turns {
        join(&world.store, turn).await;
        before.push(granted(&world.store, turn).await.host);
    }
    let waiting = ticket("u3", MODEL);
    join(&heir, &waiting).await;
    heir.free("r1", None).await.unwrap();
    // In the other order, so that the first to come might take any host.
    for (turn, host) in turns.iter().zip(&before).rev() {
        let continued = Ticket { has_text: true, ..turn.clone() };
        join(&heir, &continued).await;
        assert_eq!(granted(&heir, &continued).await.host, *host);
    }
    assert_eq!(position(&heir, &waiting).await, Some(1));
    // A reservation that was used does not free the slot later.
    let reserved = ["ZCARD", "jarvis:{queue}:reserved"];
    assert_eq!(world.server.cli(&reserved).trim(), "0");
    // An heir that cannot reach the host gets another one.
    release(&heir, &turns[0]).await;
    release(&heir, &waiting).await;
    let third = world.other("r3", &hosts).await;
    let mut seen = hosts.to_vec();
    for host in seen.iter_mut().filter(|host| host.name == before[1]) {
        host.via = HostAccess::Shut;
    }
    third.report(&seen).await.unwrap();
    heir.free("r2", None).await.unwrap();
    let continued = Ticket { has_text: true, ..turns[1].clone() };
    join(&third, &continued).await;
    assert_eq!(granted(&third, &continued).await.host, before[0]);
}

#[tokio::test]
async fn a_turn_that_is_taken_over_before_its_replica_is_freed_holds_one_slot() {
    let hosts = [host("a", 2, &[MODEL])];
    let world = World::with(&hosts).await;
    let heir = world.other("r2", &hosts).await;
    let turn = ticket("u", MODEL);
    join(&world.store, &turn).await;
    let continued = Ticket { has_text: true, ..turn.clone() };
    let TicketStatus::Granted(grant) = join(&heir, &continued).await else { panic!("no slot") };
    assert_eq!(grant.number, 2);
    assert_eq!(heir.tick().await.unwrap().hosts[0].used, 1);
    heir.free("r1", None).await.unwrap();
    assert_eq!(heir.tick().await.unwrap().hosts[0].used, 1);
    granted(&heir, &continued).await;
}

#[tokio::test]
async fn a_turn_that_returns_its_slot_keeps_its_position_and_gets_another_host() {
    let hosts = [host("a", 1, &[MODEL]), host("b", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let other = world.other("r2", &hosts).await;
    let (first, second) = (ticket("u1", MODEL), ticket("u2", MODEL));
    join(&world.store, &first).await;
    join(&world.store, &second).await;
    let third = ticket("u3", MODEL);
    join(&other, &third).await;
    let grant = granted(&world.store, &first).await;
    let why = Returned { excluded: Duration::from_mins(1), full: Duration::ZERO, has_text: false };
    let reply = world.store.give_back(first.generation, &grant, why).await.unwrap();
    assert!(matches!(reply.status, TicketStatus::Waiting(w) if w.position == 1), "{reply:?}");
    assert_eq!(granted(&other, &third).await.host, grant.host, "the next one gets the host");
    release(&world.store, &second).await;
    let again = granted(&world.store, &first).await;
    assert_ne!(again.host, grant.host);
    // The same call a second time, late, changes nothing.
    let reply = world.store.give_back(first.generation, &grant, why).await.unwrap();
    assert_eq!(reply.status, TicketStatus::Granted(again));
}

#[tokio::test]
async fn a_host_that_reports_itself_full_gets_no_grant_for_a_while() {
    let world = World::with(&[host("a", 4, &[MODEL])]).await;
    let (first, second) = (ticket("u1", MODEL), ticket("u2", MODEL));
    join(&world.store, &first).await;
    let grant = granted(&world.store, &first).await;
    let full = Duration::from_millis(300);
    let why = Returned { excluded: Duration::ZERO, full, has_text: false };
    let began = Instant::now();
    world.store.give_back(first.generation, &grant, why).await.unwrap();
    assert!(
        matches!(join(&world.store, &second).await, TicketStatus::Waiting(w) if w.position == 2)
    );
    let granted_again = eventually(LIMIT, async || {
        world.store.tick().await.unwrap();
        position(&world.store, &first).await.is_none()
    });
    assert!(granted_again.await, "the host stays full");
    assert!(began.elapsed() + Duration::from_millis(5) >= full, "{:?}", began.elapsed());
    granted(&world.store, &second).await;
}

#[tokio::test]
async fn a_host_that_one_replica_cannot_reach_serves_the_others_and_then_gets_one_trial() {
    let mut hosts = [host("a", 3, &[MODEL])];
    let world = World::with(&hosts).await;
    let other = world.other("r2", &hosts).await;
    hosts[0].via = HostAccess::Shut;
    world.store.report(&hosts).await.unwrap();
    let mine: Vec<_> = (0..3).map(|n| ticket(&format!("u{n}"), MODEL)).collect();
    for turn in &mine {
        join(&world.store, turn).await;
    }
    let theirs = ticket("v", MODEL);
    assert!(matches!(join(&other, &theirs).await, TicketStatus::Granted(_)));
    hosts[0].via = HostAccess::Trial;
    world.store.report(&hosts).await.unwrap();
    granted(&world.store, &mine[0]).await;
    assert_eq!(position(&world.store, &mine[1]).await, Some(1), "one trial");
    hosts[0].via = HostAccess::Open;
    world.store.report(&hosts).await.unwrap();
    granted(&world.store, &mine[1]).await;
}

#[tokio::test]
async fn a_turn_beyond_a_bound_gets_a_retry_time_at_which_there_is_room() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let store = world.limited(2, 1);
    let turn_time = Duration::from_millis(400);
    world.set_turn_time(turn_time);
    let running = ticket("u", MODEL);
    join(&store, &running).await;
    let began = Instant::now();
    assert!(matches!(join(&store, &ticket("u", MODEL)).await, TicketStatus::Waiting(_)));
    assert!(matches!(join(&store, &ticket("u", MODEL)).await, TicketStatus::Crowded(Some(_))));
    assert!(matches!(join(&store, &ticket("v", MODEL)).await, TicketStatus::Waiting(_)));
    let late = ticket("w", MODEL);
    let status = join(&store, &late).await;
    let TicketStatus::Full(Some(wait)) = status else { panic!("{status:?}") };
    assert!(wait <= turn_time * 2, "{wait:?}");
    // The turn takes as long as the mean says, and the refused one comes again at its retry time.
    tokio::time::sleep_until((began + turn_time).into()).await;
    release(&store, &running).await;
    tokio::time::sleep_until((began + wait).into()).await;
    assert!(matches!(join(&store, &late).await, TicketStatus::Waiting(_)));
}

#[tokio::test]
async fn each_refused_turn_gets_a_retry_time_for_room_of_its_own() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let store = world.limited(5, 100);
    let turn_time = Duration::from_millis(400);
    world.set_turn_time(turn_time);
    for _ in 0..6 {
        join(&store, &ticket("u", MODEL)).await;
    }
    for refused in 1..=10 {
        let room = if refused % 2 == 0 {
            store.room(MODEL, &TicketSource::default()).await.expect("Redis")
        } else {
            match join(&store, &ticket("v", MODEL)).await {
                TicketStatus::Full(after) => Room::NoneFor(after),
                other => panic!("{other:?}"),
            }
        };
        let Room::NoneFor(Some(after)) = room else { panic!("{room:?}") };
        // After the time of five turns all have left.
        let true_wait = turn_time * refused.min(5);
        assert!(after > true_wait.mul_f64(0.7) && after < true_wait.mul_f64(1.3), "{after:?}");
    }
}

#[tokio::test]
async fn a_turn_that_never_ran_is_not_charged() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let running = ticket("x", MODEL);
    join(&world.store, &running).await;
    for _ in 0..5 {
        let cancelled = ticket("u", MODEL);
        join(&world.store, &cancelled).await;
        release(&world.store, &cancelled).await;
    }
    let (second_of_x, of_u) = (ticket("x", MODEL), ticket("u", MODEL));
    join(&world.store, &second_of_x).await;
    join(&world.store, &of_u).await;
    assert_eq!(position(&world.store, &of_u).await, Some(1));
}

#[tokio::test]
async fn tickets_that_redis_lost_are_restored() {
    let hosts = [host("a", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let (running, waiting) = (ticket("u", MODEL), ticket("v", MODEL));
    let start = world.store.join(&running, None).await.unwrap().start.expect("a start");
    let start_of_waiting = world.store.join(&waiting, None).await.unwrap().start;
    world.server.cli(&["FLUSHALL"]);
    assert_eq!(status(&world.store, &running).await, TicketStatus::Gone);
    let grant = world.store.restore(&running, &HostKey("a".into()), &start).await.unwrap();
    assert_eq!(grant, Some(1));
    world.store.report(&hosts).await.unwrap();
    let reply = world.store.join(&waiting, start_of_waiting.as_deref()).await.unwrap();
    assert!(matches!(reply.status, TicketStatus::Waiting(w) if w.position == 1), "{reply:?}");
    assert_eq!(reply.start, start_of_waiting);
    release(&world.store, &running).await;
    granted(&world.store, &waiting).await;
}

#[tokio::test]
async fn the_estimated_wait_is_the_time_that_a_turn_waits() {
    let hosts = [host("a", 2, &[MODEL]), host("b", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let turn_time = Duration::from_secs(1);
    // Each turn of this test lasts so long, and the releases measure the mean of it.
    let run = |ticket: Ticket| {
        let store = world.store.clone();
        async move {
            let mut estimate: Option<(Instant, Duration)> = None;
            let mut status = join(&store, &ticket).await;
            while let TicketStatus::Waiting(Waiting { eta, .. }) = status {
                estimate = estimate.or(eta.map(|eta| (Instant::now(), eta)));
                // A turn that waits looks for its slot so often.
                tokio::time::sleep(Duration::from_millis(20)).await;
                status = self::status(&store, &ticket).await;
            }
            let waited = estimate.map(|(at, eta)| (at.elapsed(), eta));
            tokio::time::sleep(turn_time).await;
            release(&store, &ticket).await;
            waited
        }
    };
    world.set_turn_time(turn_time);
    let turns = (0..15).map(|n| run(ticket(&format!("u{n}"), MODEL)));
    let turns = futures_util::future::join_all(turns).await;
    let waits: Vec<_> = turns.into_iter().flatten().collect();
    assert_eq!(waits.len(), 12);
    for (took, eta) in waits {
        let (took, eta) = (took.as_secs_f64(), eta.as_secs_f64());
        assert!((eta - took).abs() <= 0.3 * took, "estimated {eta:.2} s, took {took:.2} s");
    }
}

#[tokio::test]
async fn a_release_records_how_long_its_turn_held_the_slot() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let turn = ticket("u", MODEL);
    let joining = Instant::now();
    join(&world.store, &turn).await;
    let joined = Instant::now();
    // However long this takes, it is the time of the turn.
    world.store.report(&[host("a", 1, &[MODEL])]).await.unwrap();
    let looked = eventually(LIMIT, async || joined.elapsed() > Duration::from_millis(50));
    assert!(looked.await);
    let held = joined.elapsed();
    release(&world.store, &turn).await;
    let most = joining.elapsed();
    let recorded = world.server.cli(&["HGET", "jarvis:{queue}:host:a", "turn_ms"]);
    let recorded = Duration::from_millis(recorded.trim().parse().expect("a mean"));
    // Redis counts whole milliseconds.
    let rounding = Duration::from_millis(2);
    assert!(recorded + rounding >= held && recorded <= most + rounding, "{recorded:?}: {held:?}");
}

#[tokio::test]
async fn unreachable_slots_do_not_shorten_the_estimated_wait() {
    let mut hosts = [host("a", 1, &[MODEL]), host("b", 4, &[MODEL])];
    let world = World::with(&hosts).await;
    hosts[1].via = HostAccess::Shut;
    world.store.report(&hosts).await.unwrap();
    let turn_time = Duration::from_millis(500);
    world.set_turn_time(turn_time);
    join(&world.store, &ticket("u", MODEL)).await;
    for n in 1..4 {
        let status = join(&world.store, &ticket("v", MODEL)).await;
        let TicketStatus::Waiting(Waiting { eta: Some(eta), hosts: 1, .. }) = status else {
            panic!("{status:?}")
        };
        let true_wait = turn_time * n;
        assert!(eta > true_wait.mul_f64(0.7) && eta < true_wait.mul_f64(1.3), "{n}: {eta:?}");
    }
}

#[tokio::test]
async fn a_host_that_reports_itself_full_does_not_shorten_the_estimated_wait() {
    let world = World::with(&[host("a", 1, &[MODEL]), host("b", 4, &["other:latest"])]).await;
    let turn_time = Duration::from_millis(500);
    world.set_turn_time(turn_time);
    join(&world.store, &ticket("u", MODEL)).await;
    world.store.report(&[host("a", 1, &[MODEL]), host("b", 4, &[MODEL])]).await.unwrap();
    let bounced = ticket("v", MODEL);
    join(&world.store, &bounced).await;
    let grant = granted(&world.store, &bounced).await;
    assert_eq!(grant.host.0, "b");
    let full = Duration::from_mins(1);
    let why = Returned { excluded: Duration::ZERO, full, has_text: false };
    world.store.give_back(bounced.generation, &grant, why).await.unwrap();
    let status = join(&world.store, &ticket("w", MODEL)).await;
    let TicketStatus::Waiting(Waiting { position: 2, eta: Some(eta), .. }) = status else {
        panic!("{status:?}")
    };
    assert!(eta > turn_time.mul_f64(1.4) && eta < turn_time.mul_f64(2.6), "{eta:?}");
}

#[tokio::test]
async fn a_host_that_few_replicas_can_reach_does_not_idle_behind_tickets_of_the_others() {
    let hosts = [host("a", 1, &[MODEL]), host("b", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let other = world.other("r2", &hosts).await;
    let mut partly = hosts.clone();
    partly[1].via = HostAccess::Shut;
    world.store.report(&partly).await.unwrap();
    let cut_off: Vec<_> = (0..150).map(|n| ticket(&format!("u{n}"), MODEL)).collect();
    for turn in &cut_off {
        join(&world.store, turn).await;
    }
    let behind = ticket("v", MODEL);
    join(&other, &behind).await;
    assert_eq!(granted(&other, &behind).await.host.0, "b");
}

#[tokio::test]
async fn after_redis_lost_everything_a_new_turn_waits_behind_those_that_waited() {
    let hosts = [host("a", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    for _ in 0..20 {
        let past = ticket("u", MODEL);
        join(&world.store, &past).await;
        release(&world.store, &past).await;
    }
    let (running, waiting) = (ticket("u", MODEL), ticket("u", MODEL));
    let start_of_running = world.store.join(&running, None).await.unwrap().start.expect("a start");
    let start_of_waiting = world.store.join(&waiting, None).await.unwrap().start.expect("a start");
    world.server.cli(&["FLUSHALL"]);
    let host_of_running = HostKey("a".into());
    world.store.restore(&running, &host_of_running, &start_of_running).await.unwrap();
    world.store.report(&hosts).await.unwrap();
    world.store.join(&waiting, Some(&start_of_waiting)).await.unwrap();
    // A user with two turns there gets no third before another's first.
    let (third, first_of_v) = (ticket("u", MODEL), ticket("v", MODEL));
    join(&world.store, &third).await;
    join(&world.store, &first_of_v).await;
    let second_of_v = ticket("v", MODEL);
    join(&world.store, &second_of_v).await;
    let mut order = Vec::new();
    for turn in [&first_of_v, &waiting, &second_of_v, &third] {
        order.push(position(&world.store, turn).await);
    }
    assert_eq!(order, [Some(1), Some(2), Some(3), Some(4)]);
}

#[tokio::test]
async fn a_source_beyond_its_share_gets_the_time_at_which_its_first_turn_leaves() {
    let world = World::with(&[host("a", 1, &[MODEL])]).await;
    let store = world.limited(100, 1);
    let turn_time = Duration::from_millis(300);
    world.set_turn_time(turn_time);
    for n in 0..5 {
        join(&store, &ticket(&format!("v{n}"), MODEL)).await;
    }
    // One of the five runs.
    let fifth = join(&store, &ticket("u", MODEL)).await;
    assert!(matches!(fifth, TicketStatus::Waiting(w) if w.position == 5), "{fifth:?}");
    let status = join(&store, &ticket("u", MODEL)).await;
    let TicketStatus::Crowded(Some(after)) = status else { panic!("{status:?}") };
    assert!(
        after > turn_time.mul_f64(0.7 * 5.0) && after < turn_time.mul_f64(1.3 * 5.0),
        "{after:?}"
    );
}

fn queue(redis: &Redis, name: &str, hosts: Vec<HostReport>) -> Queue {
    Queue::start(redis, replica(redis, name), move || hosts.clone()).expect("a queue")
}

async fn until_granted(lease: &mut Lease) -> Grant {
    let granted = async {
        loop {
            if let TicketStatus::Granted(grant) = lease.status() {
                return grant;
            }
            lease.changed().await;
        }
    };
    tokio::time::timeout(LIMIT, granted).await.expect("a grant in time")
}

#[tokio::test]
async fn a_slot_that_one_replica_frees_is_granted_on_another_at_once() {
    let hosts = vec![host("a", 1, &[MODEL])];
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let here = queue(&redis, "r1", hosts.clone());
    let there = queue(&redis, "r2", hosts);
    let mut waits = Vec::new();
    for _ in 0..5 {
        let mut first = here.lease(ticket("u", MODEL));
        first.join(false).await.expect("Redis");
        until_granted(&mut first).await;
        let mut second = there.lease(ticket("v", MODEL));
        assert!(matches!(second.join(false).await.expect("Redis"), TicketStatus::Waiting(_)));
        let released = Instant::now();
        drop(first);
        until_granted(&mut second).await;
        waits.push(released.elapsed());
    }
    waits.sort();
    println!("a free slot is known elsewhere after {:?} (median)", waits[2]);
    assert!(waits[2] < Duration::from_millis(200), "{waits:?}");
}

#[tokio::test]
async fn slots_that_a_replica_and_redis_count_differently_are_reconciled() {
    let hosts = vec![host("a", 2, &[MODEL])];
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let queue = queue(&redis, "r1", hosts);
    let mut running = queue.lease(ticket("u", MODEL));
    running.join(false).await.expect("Redis");
    // The release of this ticket seems to be lost.
    let lost = ticket("v", MODEL);
    assert!(matches!(join(&replica(&redis, "r1"), &lost).await, TicketStatus::Granted(_)));
    let mut waiting = queue.lease(ticket("w", MODEL));
    assert!(matches!(waiting.join(false).await.expect("Redis"), TicketStatus::Waiting(_)));
    until_granted(&mut waiting).await;
    drop(waiting);
    // A failover seems to lose everything.
    let mut waiting = queue.lease(ticket("w", MODEL));
    let other = queue.lease(ticket("x", MODEL));
    let (mut other, mut third) = (other, queue.lease(ticket("y", MODEL)));
    waiting.join(false).await.expect("Redis");
    until_granted(&mut waiting).await;
    assert!(matches!(other.join(false).await.expect("Redis"), TicketStatus::Waiting(_)));
    assert!(matches!(third.join(false).await.expect("Redis"), TicketStatus::Waiting(_)));
    server.cli(&["FLUSHALL"]);
    let restored = async || {
        let waiting = format!("jarvis:{{queue}}:model:{MODEL}");
        server.cli(&["HLEN", "jarvis:{queue}:held:a"]).trim() == "2"
            && server.cli(&["ZCARD", &waiting]).trim() == "2"
    };
    assert!(eventually(LIMIT, restored).await, "the tickets are not restored in time");
    drop((running, waiting));
    until_granted(&mut other).await;
    until_granted(&mut third).await;
}

#[tokio::test]
async fn a_replica_that_wakes_does_not_take_back_a_turn_that_was_taken_over() {
    let hosts = [host("a", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let heir = world.other("r2", &hosts).await;
    join(&world.store, &ticket("u", MODEL)).await;
    let turn = ticket("v", MODEL);
    let start = world.store.join(&turn, None).await.expect("Redis").start;
    join(&heir, &turn).await;
    let reply = world.store.join(&turn, start.as_deref()).await.expect("Redis");
    assert_eq!(reply.status, TicketStatus::Gone);
    assert_eq!(position(&heir, &turn).await, Some(1));
}

/// A step of the property test.
#[derive(Clone, Debug)]
enum Op {
    Join { user: u8, model: u8, replica: u8 },
    Release(prop::sample::Index),
    GiveBack { which: prop::sample::Index, excluded: bool },
    TakeOver { which: prop::sample::Index, replica: u8 },
    Free(u8),
    Shut { replica: u8, host: u8, shut: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0u8..9, 0u8..3, 0u8..3)
            .prop_map(|(user, model, replica)| Op::Join { user, model, replica }),
        4 => index().prop_map(Op::Release),
        2 => (index(), any::<bool>()).prop_map(|(which, excluded)| Op::GiveBack { which, excluded }),
        2 => (index(), 0u8..3).prop_map(|(which, replica)| Op::TakeOver { which, replica }),
        1 => (0u8..3).prop_map(Op::Free),
        1 => (0u8..3, 0u8..3, any::<bool>())
            .prop_map(|(replica, host, shut)| Op::Shut { replica, host, shut }),
    ]
}

/// Turns of an address that may run.
const RUNNING_OF_ADDRESS: usize = 1;

/// A ticket of three users, of an IPv4 address, or of five /64 of one site: more of the site, and of one
/// /56, than may run together.
fn ticket_of(user: u8, model: &str) -> Ticket {
    let name = format!("u{user}");
    let ticket = match user {
        0 => ticket_of_address(&name, &[]),
        4..7 => ticket_of_address(&name, &["p56-0", "p48"]),
        7.. => ticket_of_address(&name, &["p56-1", "p48"]),
        1..4 => ticket(&name, model),
    };
    Ticket { model: model.to_owned(), ..ticket }
}

/// The networks of a ticket whose running turns are bounded, with the bound of each.
fn bounds(ticket: &Ticket) -> Vec<(&str, usize)> {
    if !ticket.is_of_address {
        return Vec::new();
    }
    let networks = std::iter::once(&ticket.source.name).chain(&ticket.source.networks);
    networks.enumerate().map(|(at, name)| (name.as_str(), RUNNING_OF_ADDRESS << at)).collect()
}

/// A ticket as the test knows it.
struct Known {
    ticket: Ticket,
    replica: usize,
    parked: bool,
    /// The host whose slot may be reserved for the ticket while it is parked.
    reserved: Option<String>,
    excluded: Vec<String>,
}

#[test]
fn no_sequence_of_calls_overruns_a_host_idles_a_slot_or_loses_a_ticket() {
    for_each_case(60, &prop::collection::vec(op(), 1..60), &check);
}

/// Runs this many cases, each on an empty queue.
fn for_each_case<T: std::fmt::Debug>(
    cases: u32,
    strategy: &impl Strategy<Value = T>,
    check: &impl AsyncFn(&Redis, T) -> Result<(), TestCaseError>,
) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = RedisServer::start();
    let redis = runtime.block_on(connect(&server.url()));
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let run = runner.run(strategy, |case| {
        server.cli(&["FLUSHALL"]);
        runtime.block_on(check(&redis, case))
    });
    run.unwrap_or_else(|broken| panic!("{broken}"));
}

async fn check(redis: &Redis, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let models = ["m0:latest", "m1:latest", "m2:latest"];
    let table =
        [host("a", 3, &models[..1]), host("b", 2, &models[..2]), host("c", 2, &models[1..])];
    let limits = QueueLimits { running_of_address: RUNNING_OF_ADDRESS, ..LIMITS };
    let store = |name: &str| QueueStore::new(redis.clone(), name.to_owned(), limits);
    let stores: Vec<_> = ["r0", "r1", "r2"].map(store).into();
    let mut seen = vec![table.to_vec(); 3];
    for store in &stores {
        store.report(&table).await.expect("Redis");
    }
    let mut known: Vec<Known> = Vec::new();
    for op in ops {
        match op {
            Op::Join { user, model, replica } => {
                let (replica, model) = (usize::from(replica), models[usize::from(model)]);
                let ticket = ticket_of(user, model);
                join(&stores[replica], &ticket).await;
                let excluded = Vec::new();
                known.push(Known { ticket, replica, parked: false, reserved: None, excluded });
            }
            Op::Release(which) if !known.is_empty() => {
                let over = known.swap_remove(which.index(known.len()));
                if over.parked {
                    join(&stores[over.replica], &over.ticket).await;
                }
                release(&stores[over.replica], &over.ticket).await;
            }
            Op::GiveBack { which, excluded } if !known.is_empty() => {
                let at = which.index(known.len());
                let one = &mut known[at];
                let TicketStatus::Granted(grant) = status(&stores[one.replica], &one.ticket).await
                else {
                    continue;
                };
                let excluded_for = Duration::from_secs(if excluded { 600 } else { 0 });
                let why =
                    Returned { excluded: excluded_for, full: Duration::ZERO, has_text: excluded };
                let store = &stores[one.replica];
                store.give_back(one.ticket.generation, &grant, why).await.expect("Redis");
                if excluded {
                    one.excluded.push(grant.host.0);
                }
            }
            Op::TakeOver { which, replica } if !known.is_empty() => {
                let at = which.index(known.len());
                let one = &mut known[at];
                (one.replica, one.parked, one.reserved) = (usize::from(replica), false, None);
                join(&stores[one.replica], &one.ticket).await;
            }
            Op::Free(replica) => {
                let replica = usize::from(replica);
                for one in known.iter_mut().filter(|one| one.replica == replica) {
                    if let TicketStatus::Granted(grant) =
                        status(&stores[replica], &one.ticket).await
                    {
                        one.reserved = Some(grant.host.0);
                    }
                }
                stores[0].free(&format!("r{replica}"), None).await.expect("Redis");
                stores[replica].report(&seen[replica]).await.expect("Redis");
                for one in known.iter_mut().filter(|one| one.replica == replica) {
                    one.parked = true;
                }
            }
            Op::Shut { replica, host, shut } => {
                let replica = usize::from(replica);
                seen[replica][usize::from(host)].via =
                    if shut { HostAccess::Shut } else { HostAccess::Open };
                stores[replica].report(&seen[replica]).await.expect("Redis");
            }
            _ => continue,
        }
        check_invariants(&stores, &seen, &known).await?;
    }
    Ok(())
}

async fn check_invariants(
    stores: &[QueueStore],
    seen: &[Vec<HostReport>],
    known: &[Known],
) -> Result<(), TestCaseError> {
    let mut used: HashMap<String, usize> = HashMap::new();
    let mut waiting = Vec::new();
    let mut of_network: HashMap<&str, usize> = HashMap::new();
    for (network, _) in known.iter().flat_map(|one| bounds(&one.ticket)) {
        *of_network.entry(network).or_default() += 1;
    }
    let mut running: HashMap<&str, usize> = HashMap::new();
    for one in known {
        match status(&stores[one.replica], &one.ticket).await {
            TicketStatus::Granted(grant) => {
                *used.entry(grant.host.0).or_default() += 1;
                // An answer with text, which excluded a host here, is not held back.
                for (network, bound) in bounds(&one.ticket) {
                    let running = running.entry(network).or_default();
                    *running += usize::from(one.excluded.is_empty());
                    prop_assert!(*running <= bound, "{network} runs {running} turns");
                }
            }
            TicketStatus::Waiting(_) => waiting.push(one),
            TicketStatus::Gone => prop_assert!(one.parked, "a ticket was lost"),
            other => prop_assert!(false, "{other:?}"),
        }
    }
    for host in &stores[0].tick().await.expect("Redis").hosts {
        let mine = used.get(&host.name.0).copied().unwrap_or(0);
        let reserved = known.iter().filter(|one| one.reserved.as_ref() == Some(&host.name.0));
        let most = (mine + reserved.count()) as u64;
        prop_assert!((mine as u64..=most).contains(&host.used), "slots without a ticket");
        prop_assert!(host.used <= host.slots, "a host is overrun");
        let idle = host.used < host.slots;
        let usable = |one: &Known| {
            let view = seen[one.replica].iter().find(|view| view.name == host.name);
            let has_room = |(network, bound): (&str, usize)| of_network[network] <= bound;
            let may_run = bounds(&one.ticket).into_iter().all(has_room);
            view.is_some_and(|view| {
                view.via == HostAccess::Open && view.models.contains_key(&one.ticket.model)
            }) && !one.excluded.contains(&host.name.0)
                && may_run
        };
        prop_assert!(!idle || !waiting.iter().copied().any(usable), "a slot idles");
    }
    Ok(())
}

#[test]
fn a_new_user_waits_for_at_most_one_turn_of_each_other_user_and_a_few_of_each_site() {
    let joins = (0u8..21, 1usize..8).prop_map(|(user, turns)| (Some(user), turns));
    let ends = (1usize..6).prop_map(|turns| (None, turns));
    let steps = prop::collection::vec(prop_oneof![joins, ends], 1..30);
    for_each_case(40, &steps, &check_fairness);
}

async fn check_fairness(
    redis: &Redis,
    steps: Vec<(Option<u8>, usize)>,
) -> Result<(), TestCaseError> {
    let store = replica(redis, "r1");
    store.report(&[host("a", 1, &[MODEL]), host("b", 1, &[MODEL])]).await.expect("Redis");
    let (mut waiting, mut running): (Vec<Ticket>, Vec<Ticket>) = (Vec::new(), Vec::new());
    // For each new user: the others' turns that were granted before the first of the user's own, those
    // of the networks around them, too, and the rounds in which they may be: one more where the user
    // had turns of this round before.
    let mut passed_by: HashMap<String, (BTreeMap<String, usize>, usize)> = HashMap::new();
    let mut known = HashSet::new();
    for (user, turns) in steps {
        for _ in 0..turns {
            if let Some(user) = user {
                let ticket = match user {
                    0..5 => ticket(&format!("u{user}"), MODEL),
                    // Two sites of eight /64 in two /56: more of each than have room in a round.
                    user => ticket_of_site(["s1", "s2"][usize::from(user % 2)], usize::from(user)),
                };
                let is_new = !waiting.iter().chain(&running).any(|other| other.user == ticket.user);
                if is_new && user < 5 {
                    let most = if known.insert(ticket.user.clone()) { 1 } else { 2 };
                    passed_by.insert(ticket.user.clone(), (BTreeMap::new(), most));
                }
                join(&store, &ticket).await;
                waiting.push(ticket);
            } else if !running.is_empty() {
                release(&store, &running.remove(0)).await;
            }
            let mut still = Vec::new();
            for ticket in waiting.drain(..) {
                if position(&store, &ticket).await.is_some() {
                    still.push(ticket);
                    continue;
                }
                passed_by.remove(&ticket.user);
                for (others, _) in passed_by.values_mut() {
                    for network in std::iter::once(&ticket.user).chain(&ticket.source.networks) {
                        *others.entry(network.clone()).or_default() += 1;
                    }
                }
                running.push(ticket);
            }
            waiting = still;
            for (user, (others, most)) in &passed_by {
                // A /56 has two turns in a round and a /48 four, and each one more that is the only
                // one of its source.
                let in_round = |name: &str| match name.matches('.').count() {
                    0 if name.starts_with('s') => 5,
                    1 => 3,
                    _ => 1,
                };
                let kept = others.iter().all(|(name, turns)| *turns <= most * in_round(name));
                prop_assert!(kept, "{user} was passed by: {others:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn among_twenty_thousand_tickets_every_step_takes_less_than_a_millisecond() {
    let hosts = [host("a", 4, &[MODEL]), host("b", 2, &[MODEL]), host("c", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let store = world.limited(30_000, 30_000);
    let tickets: Vec<_> = (0..20_000).map(|n| ticket(&format!("u{}", n % 1000), MODEL)).collect();
    for chunk in tickets.chunks(500) {
        futures_util::future::join_all(chunk.iter().map(|ticket| join(&store, ticket))).await;
    }
    // Every command from here on is counted.
    world.server.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    world.server.cli(&["CONFIG", "SET", "slowlog-max-len", "1000000"]);
    world.server.cli(&["SLOWLOG", "RESET"]);
    let machine = Machine::start();
    let before = machine.slowness();
    let mut costs = Costs { server: &world.server, of: BTreeMap::new() };
    for n in 0..1000 {
        let ticket = ticket(&format!("v{n}"), MODEL);
        costs.of("join", join(&store, &ticket)).await;
    }
    // The oldest tickets hold the slots, so that each release grants one. The newest leave the
    // queue.
    let (front, back) = (&tickets[..1000], &tickets[19_000..]);
    for ticket in front.iter().chain(back) {
        costs.of("release", release(&store, ticket)).await;
    }
    let ids: Vec<_> = tickets[5000..15_000].iter().map(|ticket| ticket.generation).collect();
    costs.of("statuses", store.statuses(&ids)).await.expect("Redis");
    for _ in 0..20 {
        costs.of("tick", store.tick()).await.expect("Redis");
        costs.of("holdings", store.holdings()).await.expect("Redis");
    }
    // This replica cannot use the host any more, and many of its tickets stand before those of the
    // others.
    let other = world.other("r2", &hosts).await;
    let mut shut = hosts.clone();
    shut[0].via = HostAccess::Shut;
    costs.of("report", store.report(&shut)).await.expect("Redis");
    for n in 0..200 {
        let ticket = ticket(&format!("w{n}"), MODEL);
        costs.of("join", join(&store, &ticket)).await;
    }
    let freed = costs.of("free", other.free("r1", None)).await;
    assert_eq!(freed.expect("Redis"), Freed::All);
    world.server.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "-1"]);
    let log = world.server.cli(&["SLOWLOG", "GET", "-1"]);
    // At the speed of the machine, as in `takes_moments`.
    let slowness = f64::midpoint(before, machine.slowness());
    for function in ["join", "release"] {
        let each = &mut costs.of.remove(function).expect("costs");
        each.sort_unstable();
        let at = |share: f64| each[((each.len() - 1) as f64 * share) as usize];
        let (median, p99, most) = (at(0.5), at(0.99), at(1.0));
        println!("{function}: {} calls, {median:?} at p50, {p99:?} at p99, {most:?}", each.len());
        assert!(p99 < Duration::from_millis(1).mul_f64(slowness), "{function}: {p99:?} at p99");
    }
    // Calls that read many tickets may take longer, but may not hold up the others.
    for (function, all) in costs.of {
        let name = format!("jarvis_queue_{function}_1");
        let calls = log.lines().filter(|line| *line == name).count();
        let each = all.iter().sum::<Duration>() / u32::try_from(calls).expect("a count");
        println!("{function}: {calls} calls, {each:?} each");
        assert!(each < Duration::from_millis(5).mul_f64(slowness), "{function}: {each:?} each");
    }
}

#[tokio::test]
async fn no_call_takes_redis_longer_than_five_milliseconds_with_the_queue_full_of_networks() {
    takes_moments("a queue full of networks", async || {
        let costs = costs_of_a_queue_full_of_networks().await;
        let of_function = costs.into_iter().map(|(function, each)| {
            let most = each.into_iter().max().expect("a call");
            (function.to_owned(), most.as_secs_f64() * 1000.0)
        });
        of_function.collect()
    })
    .await;
}

/// Fills a queue with tickets of many networks, empties it, and returns what each call of each function cost.
async fn costs_of_a_queue_full_of_networks() -> BTreeMap<&'static str, Vec<Duration>> {
    let hosts = [host("a", 100, &[MODEL]), host("b", 100, &[MODEL]), host("c", 1, &[MODEL])];
    let world = World::with(&hosts).await;
    let limits = QueueLimits { waiting: 1000, waiting_of_source: 100, running_of_address: 8 };
    let store = QueueStore::new(world.redis.clone(), "r1".to_owned(), limits);
    let mut costs = Costs { server: &world.server, of: BTreeMap::new() };
    // Of three sites: all /64 with one turn each, a few with many, and both.
    let number = |turn: usize| match turn % 3 {
        0 => turn,
        1 => [0, 1, 16, 17, 32][turn % 5],
        _ => turn % 20 * 8,
    };
    let ticket = |turn: usize| ticket_of_site(["s0", "s1", "s2"][turn % 3], number(turn));
    let mut tickets = Vec::new();
    for turn in 0..1400 {
        let ticket = ticket(turn);
        let status = costs.of("join", join(&store, &ticket)).await;
        if matches!(status, TicketStatus::Waiting(_) | TicketStatus::Granted(_)) {
            tickets.push(ticket);
        }
    }
    let waiting = costs.of("tick", store.tick()).await.expect("Redis").waiting;
    assert!((900..=1000).contains(&waiting), "{waiting}");
    for turn in 0..300 {
        let at = turn * 37 % tickets.len();
        costs.of("release", release(&store, &tickets.swap_remove(at))).await;
        let ticket = ticket(turn);
        costs.of("room", store.room(MODEL, &ticket.source)).await.expect("Redis");
        costs.of("join", join(&store, &ticket)).await;
        tickets.push(ticket);
    }
    for ticket in running(&store, &tickets).await {
        let grant = granted(&store, ticket).await;
        let why = Returned { excluded: Duration::ZERO, full: Duration::ZERO, has_text: false };
        let given_back = store.give_back(ticket.generation, &grant, why);
        costs.of("give_back", given_back).await.expect("Redis");
    }
    for ticket in &tickets {
        costs.of("release", release(&store, ticket)).await;
    }
    costs.of
}

/// The cost of calls for Redis: its CPU time, whatever else the machine does meanwhile.
struct Costs<'a> {
    server: &'a RedisServer,
    of: BTreeMap<&'static str, Vec<Duration>>,
}

impl Costs<'_> {
    fn of<T>(
        &mut self,
        function: &'static str,
        call: impl Future<Output = T>,
    ) -> impl Future<Output = T> {
        // The call is boxed before it is awaited: an async function would keep room for it twice.
        let call = Box::pin(call);
        async move {
            let before = self.server.cpu_time().expect("a time");
            let reply = call.await;
            let cost = self.server.cpu_time().expect("a time").saturating_sub(before);
            self.of.entry(function).or_default().push(cost);
            reply
        }
    }
}
