//! Capacity as clients see it: many replicas, many hosts, one queue.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::client::{Reply, Socket, chat, get, http, joined, kinds, post, send, until_ok};
use support::eventually;
use support::fleet::ready_replicas;
use support::metrics::{metrics, until_takeovers};
use support::process::{LIMIT, Process, ollama_sim, ollama_sim_at};
use support::redis::RedisServer;
use uuid::Uuid;

fn id() -> String {
    Uuid::new_v4().to_string()
}

/// Joins the hosts as `http://…;slots=N`.
fn urls(hosts: &[(&Process, usize)]) -> String {
    let hosts: Vec<_> =
        hosts.iter().map(|(host, slots)| format!("{};slots={slots}", host.url)).collect();
    hosts.join(",")
}

async fn stats(host: &Process) -> Value {
    http().get(format!("{}/sim/stats", host.url)).send().await.unwrap().json().await.unwrap()
}

async fn running(host: &Process) -> u64 {
    stats(host).await["running"].as_u64().expect("a number")
}

async fn until(what: &str, limit: Duration, holds: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    assert!(eventually(limit, holds).await, "not in time: {what}");
    began.elapsed()
}

/// The wait of one client: each position and estimate that it got, and when its turn began.
struct Waited {
    asked: Instant,
    updates: Vec<(Instant, u64, Option<f64>)>,
    began: Instant,
}

impl Waited {
    /// Sends a turn over a WebSocket and reads it to its end.
    async fn through(replica: &Process, message: &str) -> Self {
        let (mut socket, _) = Socket::open(replica, "/ws").await;
        let asked = Instant::now();
        socket.say(&json!({"type": "chat", "message": message})).await;
        let mut updates = Vec::new();
        loop {
            let event = socket.event().await;
            match event["type"].as_str() {
                Some("queued") => {
                    let position = event["position"].as_u64().expect("a position");
                    updates.push((Instant::now(), position, event["eta_seconds"].as_f64()));
                }
                Some("stream_start") => break,
                Some("message_received") => {}
                _ => panic!("{event}"),
            }
        }
        let began = Instant::now();
        socket.until("stream_end").await;
        Self { asked, updates, began }
    }

    /// Checks that a position came at once, then at most one a second, and none that rose.
    fn check(&self) {
        let waited = self.began - self.asked;
        if let Some((first, ..)) = self.updates.first() {
            assert!(*first - self.asked < Duration::from_millis(1500), "notified late");
        }
        assert!(waited < Duration::from_secs(2) || !self.updates.is_empty(), "never notified");
        assert!(self.updates.len() as f64 <= 1.0 + waited.as_secs_f64(), "{:?}", self.updates);
        let worth_it = self.updates.windows(2).all(|pair| differ(&pair[0], &pair[1]));
        assert!(worth_it, "notified again without news: {:?}", self.updates);
        let positions = self.updates.iter().map(|(_, position, _)| *position);
        assert!(positions.is_sorted_by(|before, after| before >= after), "{:?}", self.updates);
    }

    /// Returns the first estimate of the wait, and the true wait.
    fn etas(&self) -> impl Iterator<Item = (f64, f64)> {
        let estimates = self.updates.iter().filter_map(|(at, _, eta)| Some((at, (*eta)?)));
        estimates.map(|(at, eta)| (eta, (self.began - *at).as_secs_f64()))
    }
}

/// Returns whether the position differs, or the time differs by more than a tenth.
fn differ(before: &(Instant, u64, Option<f64>), after: &(Instant, u64, Option<f64>)) -> bool {
    let ((_, position, eta), (_, next_position, next_eta)) = (before, after);
    position != next_position
        || match (eta, next_eta) {
            (Some(eta), Some(next)) => (next - eta).abs() > eta * 0.1,
            (eta, next) => eta.is_some() != next.is_some(),
        }
}

#[tokio::test]
async fn no_host_is_overrun_none_idles_while_turns_wait_and_the_estimated_wait_is_true() {
    let redis = RedisServer::start();
    let args = ["--slots", "8", "--rate", "200"];
    let (a, b, c) = (ollama_sim(&args), ollama_sim(&args), ollama_sim(&args));
    let hosts = [(&a, 4), (&b, 2), (&c, 1)];
    let replicas =
        ready_replicas(3, &redis.url(), &urls(&hosts), &[("JARVIS_QUEUE_SHARE", "1000")]).await;
    let turns = (0..300).map(|n| Waited::through(&replicas[n % 3], "[[tokens=60]] tell me"));
    let look = "return { redis.call('ZCARD', KEYS[1]), redis.call('HLEN', KEYS[2]), \
                redis.call('HLEN', KEYS[3]), redis.call('HLEN', KEYS[4]) }";
    let held = hosts.map(|(host, _)| format!("jarvis:{{queue}}:held:{}", host.url));
    let waiting = "jarvis:{queue}:model:tinyllama:latest";
    let watched = async {
        let (mut looks, mut busy, mut begun) = (0_u32, 0_u32, false);
        loop {
            // Samples of a run of some seconds.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let seen = redis.cli(&["EVAL", look, "4", waiting, &held[0], &held[1], &held[2]]);
            let seen: Vec<u32> = seen.lines().filter_map(|line| line.parse().ok()).collect();
            match seen.as_slice() {
                [0, ..] if begun => return (looks, busy),
                [0, ..] => {}
                seen => {
                    begun = true;
                    looks += 1;
                    busy += u32::from(seen[1..] == [4, 2, 1]);
                }
            }
        }
    };
    let (waits, (looks, busy)) = tokio::join!(join_all(turns), watched);
    println!("all slots held at {busy} of {looks} looks");
    assert!(looks > 100 && f64::from(busy) >= 0.95 * f64::from(looks), "{busy} of {looks}");
    for (host, slots) in hosts {
        assert_eq!(stats(host).await["peak_running"], slots, "the peak of a host");
    }
    waits.iter().for_each(Waited::check);
    let mut errors: Vec<f64> = waits
        .iter()
        .flat_map(Waited::etas)
        // The estimate is in tenths of a second, and a turn takes three.
        .map(|(eta, took)| ((eta - took).abs() - 0.1).max(0.0) / took.max(0.3))
        .collect();
    errors.sort_by(f64::total_cmp);
    let at = |share: f64| errors[((errors.len() - 1) as f64 * share) as usize];
    println!(
        "{} estimates; wrong by {:.0} % at p50, {:.0} % at p90, {:.0} % at most",
        errors.len(),
        at(0.5) * 100.0,
        at(0.9) * 100.0,
        at(1.0) * 100.0
    );
    // The rest of the difference comes from a busy machine, on which equal turns take unequal
    // times.
    assert!(errors.len() > 300 && at(0.75) <= 0.3);
    let left = redis.cli(&["KEYS", "jarvis:{queue}:held:*"]);
    assert_eq!(left.trim(), "", "slots that nobody holds");
}

#[tokio::test]
async fn a_waiting_turn_gets_its_position_still_when_its_replica_is_gone() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "50"]);
    let extra = [("JARVIS_LEASE_MS", "1000")];
    let replicas = ready_replicas(2, &redis.url(), &urls(&[(&sim, 1)]), &extra).await;
    assert_eq!(chat(&replicas[0], &id(), "[[tokens=125]] warm").await.status, 200);
    let (mut first, _) = Socket::open(&replicas[0], "/ws").await;
    first.say(&json!({"type": "chat", "message": "[[tokens=200]] first"})).await;
    first.until("stream_start").await;
    let session = id();
    let path = format!("/ws?session_id={session}");
    let (mut there, _) = Socket::open(&replicas[0], &path).await;
    let (mut second, _) = Socket::open(&replicas[1], &path).await;
    second.say(&json!({"type": "chat", "message": "[[tokens=5]] second"})).await;
    there.until("queued").await;
    replicas[1].kill();
    until_takeovers(&replicas[0], 1).await;
    there.say(&json!({"type": "ping"})).await;
    there.until("pong").await;
    let events = there.until("stream_start").await;
    let queued = events.iter().filter(|event| event["type"] == "queued").count();
    assert!(queued > 0, "nothing of its place: {events:?}");
}

#[tokio::test]
async fn a_host_that_describes_no_model_costs_its_own_turns_only() {
    let redis = RedisServer::start();
    let (mute, well) = (ollama_sim(&[]), ollama_sim(&[]));
    let fault = json!({"fault": "hang", "path": "/api/show", "times": 1_000_000});
    send(http().post(format!("{}/sim/faults", mute.url)).json(&fault)).await;
    // The model is loaded there, so that this host is preferred.
    let load = json!({"model": "tinyllama", "messages": []});
    assert_eq!(post(&well, "/api/chat", &load).await.status, 200);
    let replicas = ready_replicas(1, &redis.url(), &urls(&[(&mute, 1), (&well, 1)]), &[]).await;
    for _ in 0..3 {
        let began = Instant::now();
        let reply = chat(&replicas[0], &id(), "[[tokens=3]] quick").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    // A turn that gets this host continues elsewhere.
    let turns = [id(), id()];
    let turns = turns.iter().map(|session| chat(&replicas[0], session, "[[tokens=30]] both"));
    for reply in join_all(turns).await {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

#[tokio::test]
async fn a_turn_whose_model_is_deleted_while_it_waits_gets_an_error_that_says_so() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "20", "--models", "tinyllama,other"]);
    let replicas = ready_replicas(1, &redis.url(), &urls(&[(&sim, 1)]), &[]).await;
    let (mut first, _) = Socket::open(&replicas[0], "/ws").await;
    first.say(&json!({"type": "chat", "message": "[[tokens=400]] first"})).await;
    first.until("stream_start").await;
    let (mut second, _) = Socket::open(&replicas[0], "/ws").await;
    second.say(&json!({"type": "chat", "message": "second", "model": "other"})).await;
    second.until("queued").await;
    let body = json!({"model": "other"});
    let deleted = http().delete(format!("{}/api/delete", sim.url)).json(&body);
    assert_eq!(send(deleted).await.status, 200);
    let events = second.until("error").await;
    let error = events.last().expect("an error");
    assert_eq!((&error["code"], &error["retryable"]), (&json!("model_not_found"), &json!(false)));
}

#[tokio::test]
async fn a_waiting_turn_gets_its_position_at_once_and_as_it_changes() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "50"]);
    let replicas = ready_replicas(2, &redis.url(), &urls(&[(&sim, 1)]), &[]).await;
    let warm = chat(&replicas[0], &id(), "[[tokens=20]] warm").await;
    assert_eq!(warm.status, 200, "{}", warm.body);
    let (mut first, _) = Socket::open(&replicas[0], "/ws").await;
    first.say(&json!({"type": "chat", "message": "[[tokens=300]] first"})).await;
    let events = first.until("stream_start").await;
    assert_eq!(kinds(&events), ["message_received", "stream_start"], "nothing of a queue");
    let (mut second, _) = Socket::open(&replicas[1], "/ws").await;
    second.say(&json!({"type": "chat", "message": "[[tokens=100]] second"})).await;
    let received = second.until("queued").await;
    assert_eq!(kinds(&received), ["message_received", "queued"]);
    assert_eq!(received[1]["position"], 1, "{}", received[1]);
    assert!(received[1]["eta_seconds"].is_number(), "{}", received[1]);
    assert!(received[1]["generation_id"].is_string() && received[1].get("cursor").is_none());
    // One more socket of the session is on another replica, and one wants the answer in one piece.
    let session = id();
    let path = format!("/ws?session_id={session}");
    let (mut there, _) = Socket::open(&replicas[0], &path).await;
    let (mut third, _) = Socket::open(&replicas[1], &path).await;
    third.say(&json!({"type": "chat", "message": "[[tokens=5]] third", "stream": false})).await;
    let seen = there.until("queued").await;
    assert_eq!(seen.last().expect("queued")["position"], 2);
    let events = third.until("response").await;
    let positions: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "queued")
        .map(|event| event["position"].as_u64().expect("a number"))
        .collect();
    assert_eq!((positions.first(), positions.last()), (Some(&2), Some(&1)), "{positions:?}");
    assert!(positions.is_sorted_by(|before, after| before >= after), "{positions:?}");
    let seen = there.until("stream_end").await;
    assert_eq!(joined(&seen), events.last().expect("an answer")["content"].as_str().unwrap());
    second.until("stream_end").await;
    first.until("stream_end").await;
}

#[tokio::test]
async fn a_position_that_stays_costs_no_publish_a_second_and_a_late_reader_gets_it() {
    const WAITING: usize = 60;
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "20"]);
    let replicas = ready_replicas(2, &redis.url(), &urls(&[(&sim, 1)]), &[]).await;
    let (mut first, _) = Socket::open(&replicas[0], "/ws").await;
    first
        .say(&json!({"type": "chat", "message": "[[tokens=20000]] first", "max_tokens": 20000}))
        .await;
    first.until("stream_start").await;
    // Turns seem to take ten minutes: the estimates fall each second, and by little.
    redis.cli(&["HSET", &format!("jarvis:{{queue}}:host:{}", sim.url), "turn_ms", "600000"]);
    let sessions: Vec<_> = (0..WAITING).map(|_| id()).collect();
    let mut sockets = Vec::new();
    for session in &sessions {
        let (mut socket, _) =
            Socket::open(&replicas[1], &format!("/ws?session_id={session}")).await;
        socket.say(&json!({"type": "chat", "message": "never"})).await;
        socket.until("queued").await;
        sockets.push(socket);
    }
    let published = || {
        let stats = redis.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_spublish:"));
        let calls = line.and_then(|line| line.split(&['=', ','][..]).nth(1));
        calls.and_then(|calls| calls.parse::<usize>().ok()).expect("a count")
    };
    let before = published();
    // The queue renews its estimates once a second: four times.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let calls = published() - before;
    // Each piece of the running answer is a publish.
    let pieces = 4 * 20 + 40;
    println!("{calls} publishes in 4 s, {WAITING} turns waiting");
    assert!(calls < pieces + WAITING / 2, "{calls}");
    // This replica has got no hint of this turn's position.
    let path = format!("/ws?session_id={}", sessions[WAITING - 1]);
    let joined = Instant::now();
    let (mut late, _) = Socket::open(&replicas[0], &path).await;
    let queued = late.until("queued").await.pop().expect("queued");
    assert_eq!(queued["position"], WAITING, "{queued}");
    assert!(joined.elapsed() < Duration::from_millis(1500), "{:?}", joined.elapsed());
    // A reader that had the position already does not get it twice.
    let mut reader = sockets.pop().expect("a socket");
    reader.say(&json!({"type": "ping"})).await;
    let events = reader.until("pong").await;
    assert_eq!(kinds(&events), ["pong"], "{events:?}");
}

/// Two replicas and one host that the test kills.
struct Outage {
    redis: RedisServer,
    sim: Process,
    replicas: Vec<Process>,
}

impl Outage {
    const HOST: [&str; 2] = ["--rate", "50"];

    async fn of(limit: &str) -> Self {
        let redis = RedisServer::start();
        let sim = ollama_sim(&Self::HOST);
        let extra = [("JARVIS_HOST_WAIT_TIMEOUT", limit)];
        let replicas = ready_replicas(2, &redis.url(), &urls(&[(&sim, 1)]), &extra).await;
        Self { redis, sim, replicas }
    }

    /// Kills the host, and waits until every replica knows that no host answers.
    async fn is_known_to_all(&self) {
        self.sim.kill();
        for replica in &self.replicas {
            let known = async || get(replica, "/api/v1/chat/models").await.status == 503;
            until("the outage is known", LIMIT, known).await;
        }
    }

    /// Starts another host at the address of the one that was killed.
    fn ends(&mut self) {
        let address = self.sim.url.trim_start_matches("http://").to_owned();
        self.sim = ollama_sim_at(&address, &Self::HOST);
    }
}

#[tokio::test]
async fn turns_outlive_an_outage_of_their_only_host_and_report_that_they_wait() {
    // Without the wait for a host, answers failed after 13 s.
    let outage = Duration::from_secs(15);
    let mut fleet = Outage::of("60").await;
    let message = "[[tokens=150]] tell me";
    let whole = chat(&fleet.replicas[0], &id(), message).await;
    let whole = whole.body["response"].as_str().expect("an answer").to_owned();
    let (running, waiting) = (id(), id());
    let path = format!("/ws?session_id={running}");
    let (mut socket, _) = Socket::open(&fleet.replicas[0], &path).await;
    socket.say(&json!({"type": "chat", "message": message})).await;
    let mut events = socket.until("stream_chunk").await;
    for _ in 0..20 {
        events.push(socket.event().await);
    }
    // The turn is accepted before the outage, and gets no text before its end.
    let next_path = format!("/ws?session_id={waiting}");
    let (mut next, _) = Socket::open(&fleet.replicas[1], &next_path).await;
    next.say(&json!({"type": "chat", "message": message})).await;
    next.until("queued").await;
    fleet.sim.kill();
    let gone = Instant::now();
    events.extend(socket.until("queued").await);
    assert!(gone.elapsed() < Duration::from_secs(5), "notified late: {:?}", gone.elapsed());
    let unknown = async |socket: &mut Socket| loop {
        let event = socket.event().await;
        if event["type"] == "queued" && event["eta_seconds"].is_null() {
            return event;
        }
        // The turn may have got the slot of the first, and then found the host gone.
        assert!(matches!(event["type"].as_str(), Some("queued" | "stream_start")), "{event}");
    };
    let queued = match events.last().expect("queued") {
        event if event["eta_seconds"].is_null() => event.clone(),
        _ => unknown(&mut socket).await,
    };
    assert_eq!(queued["position"], 1, "{queued}");
    assert!(queued.get("cursor").is_none() && queued["generation_id"].is_string());
    unknown(&mut next).await;
    // A reader that joins in the middle of the answer, on another replica, gets it too.
    let (mut late, _) = Socket::open(&fleet.replicas[1], &path).await;
    let seen = late.until("queued").await;
    assert_eq!(seen.last().expect("queued")["eta_seconds"], json!(null), "{seen:?}");
    tokio::time::sleep_until((gone + outage).into()).await;
    fleet.ends();
    events.extend(socket.until("stream_end").await);
    assert_eq!(joined(&events), whole, "byte for byte");
    assert_eq!(events.last().expect("an end")["full_response"], whole.as_str());
    assert!(!events.iter().any(|event| event["type"] == "stream_restart"));
    let mut seen = seen;
    seen.extend(late.until("stream_end").await);
    assert_eq!(joined(&seen), whole);
    let events = next.until("stream_end").await;
    assert_eq!(joined(&events), whole);
    let released = async || fleet.redis.cli(&["KEYS", "jarvis:{queue}:ticket:*"]).trim().is_empty();
    until("nothing is left in the queue", LIMIT, released).await;
}

#[tokio::test]
async fn a_turn_that_comes_in_an_outage_of_all_hosts_waits_and_is_answered_after_it() {
    let mut fleet = Outage::of("60").await;
    let message = "[[tokens=20]] tell me";
    let whole = chat(&fleet.replicas[0], &id(), message).await;
    let whole = whole.body["response"].as_str().expect("an answer").to_owned();
    fleet.is_known_to_all().await;
    let sessions = [id(), id()];
    let mut sockets = Vec::new();
    for (replica, session) in fleet.replicas.iter().zip(&sessions) {
        let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
        let asked = Instant::now();
        socket.say(&json!({"type": "chat", "message": message})).await;
        loop {
            let event = socket.event().await;
            if event["type"] == "queued" && event["eta_seconds"].is_null() {
                break;
            }
            // The turn may have got the slot before its replica had reported the outage.
            let kind = event["type"].as_str();
            assert!(
                matches!(kind, Some("message_received" | "queued" | "stream_start")),
                "{event}"
            );
        }
        assert!(asked.elapsed() < Duration::from_secs(5), "notified late: {:?}", asked.elapsed());
        sockets.push(socket);
    }
    // A model that no host ever had is refused as before.
    let unknown = json!({"message": "hi", "model": "unknown"});
    let refused = post(&fleet.replicas[0], "/api/v1/chat", &unknown).await;
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("no_model_host")));
    let rest_session = id();
    let rest = chat(&fleet.replicas[1], &rest_session, message);
    let back = async {
        let open = || fleet.redis.cli(&["ZCARD", "jarvis:{queue}:model:tinyllama:latest"]);
        until("three wait", LIMIT, async || open().trim() == "3").await;
        let address = fleet.sim.url.trim_start_matches("http://").to_owned();
        ollama_sim_at(&address, &Outage::HOST)
    };
    let (reply, sim) = tokio::join!(rest, back);
    fleet.sim = sim;
    assert_eq!((reply.status, &reply.body["response"]), (200, &json!(whole)));
    for socket in &mut sockets {
        let end = socket.until("stream_end").await.pop().expect("an end");
        assert_eq!(end["full_response"], whole.as_str());
    }
}

#[tokio::test]
async fn an_answer_whose_host_stays_away_for_too_long_ends_with_one_error_and_is_kept() {
    let limit = Duration::from_secs(4);
    let fleet = Outage::of("4").await;
    let session = id();
    let path = format!("/ws?session_id={session}");
    let (mut socket, _) = Socket::open(&fleet.replicas[0], &path).await;
    socket.say(&json!({"type": "chat", "message": "[[tokens=500]] tell me"})).await;
    let mut events = socket.until("stream_chunk").await;
    for _ in 0..20 {
        events.push(socket.event().await);
    }
    let other = id();
    let waits = chat(&fleet.replicas[1], &other, "[[tokens=5]] waits");
    let lost = async {
        let waiting = async || fleet.redis.cli(&["ZCARD", "jarvis:{queue}:model:tinyllama:latest"]);
        until("one waits", LIMIT, async || waiting().await.trim() == "1").await;
        fleet.sim.kill();
        let gone = Instant::now();
        events.extend(socket.until("error").await);
        gone.elapsed()
    };
    let (refused, took) = tokio::join!(waits, lost);
    assert!(took >= limit && took < limit + Duration::from_secs(8), "{took:?}");
    assert!(events.iter().any(|event| event["type"] == "queued"), "{events:?}");
    let error = events.last().expect("an error");
    assert_eq!((&error["code"], &error["retryable"]), (&json!("no_model_host"), &json!(true)));
    assert!(error["retry_after"].is_number(), "{error}");
    let errors = events.iter().filter(|event| event["type"] == "error").count();
    assert_eq!(errors, 1);
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("no_model_host")));
    let path = format!("/api/v1/chat/sessions/{session}");
    let history = get(&fleet.replicas[1], &path).await.body;
    let kept = &history["messages"][1];
    assert_eq!(kept["status"], "failed");
    assert_eq!(kept["content"], joined(&events).as_str(), "what was generated is kept");
    assert!(!joined(&events).is_empty());
}

#[tokio::test]
async fn a_waiting_turn_gets_its_position_over_an_event_stream_and_can_be_cancelled() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "50"]);
    let replicas = ready_replicas(2, &redis.url(), &urls(&[(&sim, 1)]), &[]).await;
    let (mut first, _) = Socket::open(&replicas[0], "/ws").await;
    first.say(&json!({"type": "chat", "message": "[[tokens=60]] first"})).await;
    first.until("stream_start").await;
    let session = id();
    let body = json!({"message": "never", "session_id": session, "stream": true});
    let request = http().post(format!("{}/api/v1/chat/", replicas[1].url)).json(&body);
    let mut events = request.send().await.expect("a response");
    let mut text = String::new();
    while !text.contains(r#""type":"queued""#) {
        let chunk = events.chunk().await.expect("a chunk").expect("no end yet");
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    let cancel = format!("/api/v1/chat/sessions/{session}/cancel");
    let cancelled = post(&replicas[0], &cancel, &json!({})).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.body);
    while let Some(chunk) = events.chunk().await.expect("a chunk") {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains(r#""type":"cancelled""#), "{text}");
    assert!(!text.contains("stream_start"), "{text}");
    first.until("stream_end").await;
    let waiting = async || redis.cli(&["KEYS", "jarvis:{queue}:ticket:*"]).trim().is_empty();
    until("nothing is left in the queue", LIMIT, waiting).await;
    assert_eq!(stats(&sim).await["started"], 1, "a cancelled turn never runs");
}

#[tokio::test]
async fn a_full_queue_is_503_with_a_retry_time() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "50"]);
    let extra = [("JARVIS_QUEUE_LIMIT", "1")];
    let replicas = ready_replicas(1, &redis.url(), &urls(&[(&sim, 1)]), &extra).await;
    let replica = &replicas[0];
    assert_eq!(chat(replica, &id(), "[[tokens=100]] warm").await.status, 200);
    let (one, two) = (id(), id());
    let running = chat(replica, &one, "[[tokens=100]] one");
    let waiting = async {
        until("one runs", LIMIT, async || running_is(&sim, 1).await).await;
        chat(replica, &two, "[[tokens=5]] two").await
    };
    let refused = async {
        let depth =
            async || redis.cli(&["ZCARD", "jarvis:{queue}:model:tinyllama:latest"]).trim() == "1";
        until("one waits", LIMIT, depth).await;
        let refused = chat(replica, &id(), "three").await;
        assert_eq!((refused.status, &refused.body["code"]), (503, &json!("queue_full")));
        let after: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
        tokio::time::sleep(Duration::from_secs(after)).await;
        chat(replica, &id(), "[[tokens=5]] three again").await
    };
    let (one, two, again) = tokio::join!(running, waiting, refused);
    for reply in [one, two, again] {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

#[tokio::test]
async fn one_address_may_not_fill_the_queue_with_sessions() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "50"]);
    let extra = [("JARVIS_QUEUE_SHARE", "1"), ("JARVIS_TRUSTED_PROXIES", "127.0.0.0/8")];
    let replicas = ready_replicas(1, &redis.url(), &urls(&[(&sim, 1)]), &extra).await;
    let from = async |address: &str, message: &str| {
        let request = http().post(format!("{}/api/v1/chat/", replicas[0].url));
        // An address that a client claims by itself comes before the one that the proxy saw.
        let request = request.header("x-forwarded-for", format!("{}, {address}", id()));
        send(request.json(&json!({"message": message}))).await
    };
    let waiting = async |n: &str| {
        until("so many wait", LIMIT, async || {
            redis.cli(&["ZCARD", "jarvis:{queue}:model:tinyllama:latest"]).trim() == n
        })
        .await;
    };
    let running = from("192.0.2.1", "[[tokens=100]] runs");
    let others = async {
        until("one runs", LIMIT, async || running_is(&sim, 1).await).await;
        let more = async {
            waiting("1").await;
            let refused = from("192.0.2.1", "third").await;
            assert_eq!((refused.status, &refused.body["code"]), (503, &json!("queue_full")));
            from("192.0.2.2", "[[tokens=5]] another").await
        };
        tokio::join!(from("192.0.2.1", "[[tokens=5]] waits"), more)
    };
    let (running, (second, another)) = tokio::join!(running, others);
    for reply in [running, second, another] {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

#[tokio::test]
async fn twenty_sessions_of_one_address_delay_another_address_by_one_turn() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "50"]);
    let extra = [("JARVIS_TRUSTED_PROXIES", "127.0.0.1")];
    let replicas = ready_replicas(1, &redis.url(), &urls(&[(&sim, 1)]), &extra).await;
    let from = async |address: &str| {
        let request = http().post(format!("{}/api/v1/chat/", replicas[0].url));
        let request = request.header("x-forwarded-for", address);
        send(request.json(&json!({"message": "[[tokens=25]] a turn"}))).await;
        Instant::now()
    };
    let waiting = async |n: &str| {
        until("so many wait", LIMIT, async || {
            redis.cli(&["ZCARD", "jarvis:{queue}:model:tinyllama:latest"]).trim() == n
        })
        .await;
    };
    // Each of them is a session of its own.
    let crowd = join_all((0..20).map(|_| from("192.0.2.1")));
    let other = async {
        waiting("19").await;
        from("192.0.2.2").await
    };
    let (crowd, other) = tokio::join!(crowd, other);
    let earlier = crowd.iter().filter(|ended| **ended < other).count();
    assert!(earlier <= 3, "{earlier} turns of the crowd came first");
}

#[tokio::test]
async fn a_waiting_turn_without_a_listener_is_abandoned_only_while_the_queue_is_over_half_full() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "20"]);
    let extra = [("JARVIS_ABANDON_AFTER", "1"), ("JARVIS_QUEUE_LIMIT", "5")];
    let replicas = ready_replicas(2, &redis.url(), &urls(&[(&sim, 1)]), &extra).await;
    let depth = || redis.cli(&["ZCARD", "jarvis:{queue}:model:tinyllama:latest"]);
    let submit = async |message: &str| {
        let (mut socket, welcome) = Socket::open(&replicas[0], "/ws").await;
        socket.say(&json!({"message": format!("{message} go")})).await;
        socket.until("message_received").await;
        (socket, welcome["session_id"].as_str().expect("a session").to_owned())
    };
    // One of five waits, for three seconds.
    let (mut runs, _) = submit("[[tokens=60]]").await;
    runs.until("stream_start").await;
    let (left, patient) = submit("[[tokens=1]]").await;
    drop(left);
    let path = format!("/api/v1/chat/sessions/{patient}");
    let answered =
        async || get(&replicas[0], &path).await.body["messages"][1]["status"] == "complete";
    until("the turn is answered", LIMIT, answered).await;
    // Three of five wait.
    let (mut runs, _) = submit("[[tokens=200]]").await;
    runs.until("stream_start").await;
    let (mut listens, _) = submit("[[tokens=1]]").await;
    // The listener of this one is at the other replica.
    let (here, elsewhere) = submit("[[tokens=1]]").await;
    let (mut there, _) = Socket::open(&replicas[1], &format!("/ws?session_id={elsewhere}")).await;
    drop(here);
    let (left, alone) = submit("[[tokens=1]]").await;
    drop(left);
    let path = format!("/api/v1/chat/sessions/{alone}");
    let ended = async || get(&replicas[1], &path).await.body["messages"][1]["status"] == "failed";
    until("the turn ends", LIMIT, ended).await;
    let stored = get(&replicas[1], &path).await.body;
    assert_eq!(stored["messages"][1]["error"]["code"], "abandoned", "{stored}");
    assert_eq!(depth().trim(), "2", "the others wait");
    runs.say(&json!({"type": "cancel"})).await;
    listens.until("stream_end").await;
    there.until("stream_end").await;
}

async fn running_is(host: &Process, n: u64) -> bool {
    running(host).await == n
}

#[tokio::test]
async fn the_slots_of_a_killed_replica_are_in_full_use_within_the_lease_and_a_second() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--slots", "8", "--rate", "20"]);
    let lease = Duration::from_secs(1);
    let extra = [("JARVIS_LEASE_MS", "1000")];
    let mut replicas = ready_replicas(3, &redis.url(), &urls(&[(&sim, 4)]), &extra).await;
    let doomed = replicas.remove(0);
    let mut held = Vec::new();
    for _ in 0..4 {
        let (mut socket, _) = Socket::open(&doomed, "/ws").await;
        socket.say(&json!({"type": "chat", "message": "[[tokens=100]] held"})).await;
        socket.until("stream_start").await;
        held.push(socket);
    }
    let sessions: Vec<_> = (0..4).map(|_| id()).collect();
    let turns: Vec<_> = sessions
        .iter()
        .enumerate()
        .map(|(n, session)| chat(&replicas[n % 2], session, "[[tokens=10]] next"))
        .collect();
    let killed = async {
        let waiting =
            async || redis.cli(&["ZCARD", "jarvis:{queue}:model:tinyllama:latest"]).trim() == "4";
        until("four wait", LIMIT, waiting).await;
        doomed.kill();
        until("the host stops", LIMIT, async || running_is(&sim, 0).await).await;
        until("full use again", LIMIT, async || running_is(&sim, 4).await).await
    };
    let (replies, took) = tokio::join!(join_all(turns), killed);
    println!("full use again {:.2} s after the kill, with a lease of 1 s", took.as_secs_f64());
    assert!(took <= lease + Duration::from_secs(1), "{took:?}");
    assert!(replies.iter().all(|reply: &Reply| reply.status == 200));
    let idle = async || redis.cli(&["KEYS", "jarvis:{queue}:held:*"]).trim().is_empty();
    until("the continued turns end", LIMIT, idle).await;
    assert_eq!(stats(&sim).await["peak_running"], 4, "never more than its slots");
}

#[tokio::test]
async fn what_a_paused_replica_had_running_beyond_its_lease_is_counted() {
    let redis = RedisServer::start();
    // Neither stream can end by itself while the test waits: 1,000 tokens take 100 s.
    let sim = ollama_sim(&["--slots", "8", "--rate", "10"]);
    let extra = [("JARVIS_LEASE_MS", "1000")];
    let replicas = ready_replicas(2, &redis.url(), &urls(&[(&sim, 1)]), &extra).await;
    let counted =
        async || metrics(&replicas[0]).await.contains("jarvis_streams_beyond_lease_total 1");
    let (mut socket, _) = Socket::open(&replicas[0], "/ws").await;
    socket.say(&json!({"type": "chat", "message": "[[tokens=1000]] held"})).await;
    socket.until("stream_chunk").await;
    assert!(!counted().await);
    replicas[0].pause();
    // The old stream still runs, and its slot belongs to another turn.
    until("the host is overrun", LIMIT, async || running_is(&sim, 2).await).await;
    replicas[0].resume();
    until("the first stream is closed", LIMIT, async || running_is(&sim, 1).await).await;
    until("it is counted", LIMIT, counted).await;
}

#[tokio::test]
async fn a_host_that_hangs_delays_no_other_turn_and_its_turns_continue_elsewhere() {
    let redis = RedisServer::start();
    let args = ["--slots", "8", "--rate", "100"];
    let (a, b, c) = (ollama_sim(&args), ollama_sim(&args), ollama_sim(&args));
    let extra = [("JARVIS_TOKEN_GAP_TIMEOUT", "1"), ("JARVIS_FIRST_TOKEN_TIMEOUT", "2")];
    let hosts = urls(&[(&a, 2), (&b, 2), (&c, 2)]);
    let replicas = ready_replicas(2, &redis.url(), &hosts, &extra).await;
    let stuck: Vec<_> = (0..6).map(|_| id()).collect();
    let turns = stuck
        .iter()
        .enumerate()
        .map(|(n, session)| chat(&replicas[n % 2], session, "[[tokens=300]] a long one"));
    let hang = async {
        until("all slots run", LIMIT, async || {
            running(&a).await + running(&b).await + running(&c).await == 6
        })
        .await;
        a.pause();
        let began = Instant::now();
        let quick = join_all(
            (0..4).map(async |n: usize| chat(&replicas[n % 2], &id(), "[[tokens=5]] quick").await),
        );
        let quick = quick.await;
        (quick, began.elapsed())
    };
    let (replies, (quick, took)) = tokio::join!(join_all(turns), hang);
    for reply in replies.iter().chain(&quick) {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let whole = replies[0].body["response"].as_str().expect("an answer");
    for reply in &replies {
        assert_eq!(reply.body["response"], whole, "the same question, the same answer");
    }
    println!("four quick turns beside a hung host took {:.2} s", took.as_secs_f64());
    // The long turns of the other hosts take 3 s.
    assert!(took < Duration::from_millis(4500), "{took:?}");
    a.resume();
}

#[tokio::test]
async fn where_a_slot_is_free_a_turn_costs_one_call_to_join_and_one_to_give_it_up() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&[]);
    let replicas = ready_replicas(1, &redis.url(), &urls(&[(&sim, 2)]), &[]).await;
    assert_eq!(chat(&replicas[0], &id(), "[[tokens=3]] warm").await.status, 200);
    let released = async || redis.cli(&["KEYS", "jarvis:{queue}:ticket:*"]).trim().is_empty();
    until("the first turn's slot is released", LIMIT, released).await;
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    redis.cli(&["CONFIG", "SET", "slowlog-max-len", "100000"]);
    for _ in 0..5 {
        assert_eq!(chat(&replicas[0], &id(), "[[tokens=3]] go").await.status, 200);
    }
    until("every slot is released", LIMIT, released).await;
    let log = redis.cli(&["SLOWLOG", "GET", "-1"]);
    let calls = |name: &str| log.lines().filter(|line| *line == name).count();
    let kinds = ["join", "release", "give_back", "restore", "report", "room"];
    let counts = kinds.map(|kind| calls(&format!("jarvis_queue_{kind}_1")));
    assert_eq!(counts, [5, 5, 0, 0, 0, 0], "{kinds:?}");
}

#[tokio::test]
async fn a_host_that_reports_itself_full_is_waited_for() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&[]);
    let replicas = ready_replicas(1, &redis.url(), &urls(&[(&sim, 2)]), &[]).await;
    let reply = chat(&replicas[0], &id(), "[[tokens=5 fault=busy]] patient").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(stats(&sim).await["started"], 1);
}

#[tokio::test]
async fn metrics_for_autoscaling_have_the_true_values() {
    let redis = RedisServer::start();
    let sim = ollama_sim(&["--rate", "50"]);
    let replicas = ready_replicas(1, &redis.url(), &urls(&[(&sim, 1)]), &[]).await;
    let sessions = [id(), id(), id()];
    let turns = sessions.iter().map(|session| chat(&replicas[0], session, "[[tokens=60]] go"));
    let figures = async {
        let (depth, wanted, used, total) = (
            "jarvis_queue_depth 2".to_owned(),
            "jarvis_turns_per_slot 3".to_owned(),
            format!("jarvis_slots_used{{host=\"{}\"}} 1", sim.url),
            format!("jarvis_slots{{host=\"{}\"}} 1", sim.url),
        );
        until("the figures", LIMIT, async || {
            let metrics = metrics(&replicas[0]).await;
            [&depth, &wanted, &used, &total].iter().all(|line| metrics.contains(line.as_str()))
        })
        .await;
    };
    let (replies, ()) = tokio::join!(join_all(turns), figures);
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert!(metrics(&replicas[0]).await.contains("jarvis_queue_wait_seconds"));
}

#[tokio::test]
async fn a_host_that_runs_fewer_at_a_time_than_its_slots_is_reported_and_one_that_runs_all_is_not()
{
    for (parallel, unused) in [("1", 3), ("4", 0)] {
        let redis = RedisServer::start();
        let sim = ollama_sim(&["--rate", "100", "--slots", parallel]);
        let (replica, log) =
            support::process::logged(&redis.url(), &format!("{};slots=4", sim.url), &[]);
        until_ok(&replica, "/health/ready").await;
        let turns = (0..16).map(|_| async {
            let reply = chat(&replica, &id(), "[[tokens=30]] go").await;
            assert_eq!(reply.status, 200, "{}", reply.body);
        });
        join_all(turns).await;
        let line = format!("jarvis_host_slots_unused{{host=\"{}\"}} {unused}", sim.url);
        let is_set = async || metrics(&replica).await.contains(&line);
        until(&line, LIMIT, is_set).await;
        let log = std::fs::read_to_string(log).expect("a log");
        let warnings = log.matches("model host runs fewer requests than its slots").count();
        assert_eq!(warnings, usize::from(unused > 0), "{parallel}: {log}");
    }
}
