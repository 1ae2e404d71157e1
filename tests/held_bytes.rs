//! What clients that do not read, or do not finish, hold of a replica's memory and connections is
//! bounded over all connections together.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use support::client::{Socket, chat, get, http, narrow, until_ok};
use support::eventually;
use support::metrics::{metrics, until_metric};
use support::process::{LIMIT, Process, limited_jarvis, ollama_sim};
use support::raw_http::{Framing, Raw};
use support::redis::RedisServer;
use support::setup::{Setup, setup, setup_with_large_window};
use support::tokens::{SECRET, token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

/// As many connections as would hold more than a container of 512 MiB has, at 1 MiB each.
const CONNECTIONS: usize = 600;
/// The room of the tests.
const ROOM: (&str, &str) = ("JARVIS_UNREAD_MIB", "16");
/// The bytes of one body that an address does not finish.
const HELD_BODY: usize = 500 << 10;
/// Bytes that may be held in addition to the room: buffers of connections, and what the allocator keeps.
const BESIDE_KIB: f64 = 200.0 * 1024.0;

/// Returns how many KiB more than at `before` the replica held at most in some seconds.
async fn most_held(replica: &Process, before: f64) -> f64 {
    let mut most = 0.0f64;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(replica.resident_kib().expect("a figure"));
    }
    most - before
}

/// Returns how many of these connections got a whole head of a refusal with a time to retry and the headers
/// for browsers, of those that can be read without waiting long.
async fn refused(held: &mut [TcpStream]) -> usize {
    let heads = held.iter_mut().map(async |stream| {
        let mut bytes = [0; 2048];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut bytes)).await;
        let read = read.map_or(0, Result::unwrap_or_default);
        let reply = String::from_utf8_lossy(&bytes[..read]).to_lowercase();
        reply.starts_with("http/1.1 503")
            && reply.contains("\r\nretry-after: 5\r\n")
            && reply.contains("\r\ncontent-security-policy: default-src 'none'")
    });
    join_all(heads).await.into_iter().filter(|is_refused| *is_refused).count()
}

async fn assert_the_others_go_on(replica: &Process) {
    assert_eq!(get(replica, "/health/live").await.status, 200);
    assert_eq!(get(replica, "/health/ready").await.status, 200);
    let session = Uuid::new_v4().to_string();
    assert_eq!(chat(replica, &session, "[[tokens=1]] small").await.status, 200);
}

#[tokio::test]
async fn pages_that_are_not_read_are_held_within_one_room_of_all_connections() {
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("0", &[ROOM]).await;
    let session = Uuid::new_v4().to_string();
    let message = format!("{} [[tokens=1]]", "x".repeat(30_000));
    for _ in 0..34 {
        assert_eq!(chat(replica, &session, &message).await.status, 200);
    }
    let path = format!("/api/v1/chat/sessions/{session}?limit=500");
    let before = replica.resident_kib().expect("a figure");
    let open = (0..CONNECTIONS).map(async |_| {
        let mut stream = narrow(replica).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream
    });
    let mut held = join_all(open).await;
    let most = most_held(replica, before).await;
    println!("{CONNECTIONS} unread pages: {most:.0} KiB");
    assert!(most < BESIDE_KIB, "{most:.0} KiB");
    assert_the_others_go_on(replica).await;
    let refused = refused(&mut held).await;
    assert!(refused > CONNECTIONS / 2, "only {refused} were refused");
    drop(held);
    let served = async || get(replica, &path).await.status == 200;
    assert!(eventually(LIMIT, served).await, "the room does not come back");
}

#[tokio::test]
async fn pages_of_escaped_text_are_held_within_the_room_too() {
    const QUESTIONS: usize = 32;
    /// The room of 128 MiB, what is read and not written yet of as many pages, and what else is held.
    const MOST_KIB: f64 = 320.0 * 1024.0;
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup_with_large_window(&[]).await;
    let session = Uuid::new_v4().to_string();
    // Six bytes as JSON for each that is stored.
    let end = "[[tokens=1]]";
    let message = format!("{}{end}", "\u{1}".repeat(32_768 - end.len()));
    for _ in 0..QUESTIONS {
        assert_eq!(chat(replica, &session, &message).await.status, 200);
    }
    let path = format!("/api/v1/chat/sessions/{session}?limit=500");
    let mut found = 0;
    loop {
        let page = get(replica, &format!("{path}&skip={found}")).await;
        let messages = page.body["messages"].as_array().expect("a list").len();
        assert!(page.body.to_string().len() <= 1 << 20 && messages > 0);
        found += messages;
        if page.body["has_more"] == false {
            break;
        }
    }
    assert_eq!(found, 2 * QUESTIONS);
    let before = replica.resident_kib().expect("a figure");
    let open = (0..200).map(async |_| {
        let mut stream = narrow(replica).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream
    });
    let held = join_all(open).await;
    let most = most_held(replica, before).await;
    println!("200 unread pages of escaped text: {most:.0} KiB");
    assert!(most < MOST_KIB, "{most:.0} KiB");
    assert_the_others_go_on(replica).await;
    drop(held);
}

#[tokio::test]
async fn bodies_that_do_not_end_are_held_within_one_room_of_all_connections() {
    const BYTES: usize = 500 << 10;
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("0", &[ROOM]).await;
    let before = replica.resident_kib().expect("a figure");
    let open = (0..CONNECTIONS).map(async |_| {
        let mut stream = narrow(replica).await;
        let head = format!(
            "POST /api/v1/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            BYTES + 1
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream
    });
    let mut held = join_all(open).await;
    let body = vec![b' '; BYTES];
    // A replica that has no room does not read, and closes at last.
    let write = held.iter_mut().map(async |stream| {
        let _ = tokio::time::timeout(Duration::from_secs(3), stream.write_all(&body)).await;
    });
    let (_, most) = tokio::join!(join_all(write), most_held(replica, before));
    println!("{CONNECTIONS} unfinished bodies: {most:.0} KiB");
    assert!(most < BESIDE_KIB, "{most:.0} KiB");
    assert_the_others_go_on(replica).await;
    let refused = refused(&mut held).await;
    assert!(refused > CONNECTIONS / 2, "only {refused} were refused");
    drop(held);
    let session = Uuid::new_v4().to_string();
    let message = format!("{} [[tokens=1]]", "x".repeat(30_000));
    let served = async || chat(replica, &session, &message).await.status == 200;
    assert!(eventually(LIMIT, served).await, "the room does not come back");
}

/// Forgets the most that a process has had in memory until now.
fn reset_peak(replica: &Process) {
    let id = replica.id().expect("a process");
    std::fs::write(format!("/proc/{id}/clear_refs"), "5").expect("a process of this user");
}

/// Returns the most that a process has had in memory since then, in KiB.
fn peak_kib(replica: &Process) -> f64 {
    let id = replica.id().expect("a process");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a figure");
    peak.trim_end_matches("kB").trim().parse().expect("a number")
}

#[tokio::test]
async fn bodies_of_many_values_cost_little_more_than_their_text() {
    /// As large as a body may be: of the native front, and of the others.
    const NATIVE: usize = (6 << 20) + (512 << 10) - 100;
    const OTHERS: usize = (8 << 20) - 100;
    const MOST_KIB: f64 = 60.0 * 1024.0;
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("0", &[]).await;
    let session = Uuid::new_v4().to_string();
    assert_eq!(chat(replica, &session, "[[tokens=1]] small").await.status, 200);
    let send = async |path: &str, unit: &str, (begin, end): (&str, &str)| {
        let bytes = if path == "/api/v1/chat" { NATIVE } else { OTHERS };
        let count = bytes / (unit.len() + 1);
        let body = format!("{begin}{}{end}", vec![unit; count].join(","));
        let request = http().post(format!("{}{path}", replica.url)).body(body);
        let reply = request.header("content-type", "application/json").send().await;
        let reply = reply.expect("a reply");
        (reply.status().as_u16(), reply.text().await.expect("a text"))
    };
    let native = r#"{"message": "hi", "stop": "#;
    let openai = r#"{"model": "m", "messages": "#;
    for (unit, field, read_by_native) in [
        (r#"{"":0}"#, ("{\"x\":[", "]}"), false),
        (r#"{"":{"":{"":{"":{"":{"":0}}}}}}"#, ("{\"x\":[", "]}"), false),
        ("[]", ("{\"x\":[", "]}"), false),
        (r#""":0"#, ("{", "}"), true),
    ] {
        reset_peak(replica);
        let before = peak_kib(replica);
        let (native, chat, responses, ollama) = tokio::join!(
            send("/api/v1/chat", unit, field),
            send("/v1/chat/completions", unit, field),
            send("/v1/responses", unit, field),
            send("/api/chat", unit, field),
        );
        let more = peak_kib(replica) - before;
        println!("4 bodies of {unit}: {more:.0} KiB");
        assert!(more < MOST_KIB, "{unit}: {more:.0} KiB");
        let code = |reply: &str| reply.contains(r#""code":"too_many_values""#);
        assert_eq!((native.0, code(&native.1)), (422, read_by_native), "{}", native.1);
        for reply in [&chat, &responses] {
            assert_eq!((reply.0, code(&reply.1)), (400, true), "{}", reply.1);
        }
        let words = if read_by_native { "more than 1024 fields" } else { "model is required" };
        assert!(ollama.0 == 400 && ollama.1.contains(words), "{}", ollama.1);
    }
    // Where a field is read, its values are bounded.
    for unit in [r#"{"":0}"#, "{}", "\"\"", r#"{"role":"user","content":""}"#] {
        reset_peak(replica);
        let before = peak_kib(replica);
        let openai = (format!("{openai}["), "]}");
        let openai = (openai.0.as_str(), openai.1);
        let native = (format!("{native}["), "]}");
        let (native, chat, again, ollama) = tokio::join!(
            send("/api/v1/chat", unit, (&native.0, native.1)),
            send("/v1/chat/completions", unit, openai),
            send("/v1/chat/completions", unit, openai),
            send("/api/chat", unit, openai),
        );
        let more = peak_kib(replica) - before;
        println!("4 bodies of {unit} in fields that are read: {more:.0} KiB");
        assert!(more < MOST_KIB, "{unit}: {more:.0} KiB");
        for (status, reply) in [(422, native), (400, chat), (400, again), (400, ollama)] {
            assert_eq!(reply.0, status, "{}", reply.1);
            let is_refused = reply.1.contains("too_many_values");
            let words = "more than 131072 values";
            assert!(is_refused || reply.1.contains(words), "{}", reply.1);
        }
    }
    assert_the_others_go_on(replica).await;
}

#[tokio::test]
async fn the_room_of_a_large_body_is_held_until_its_request_was_accepted() {
    const LARGE: usize = (8 << 20) - 1000;
    let Setup { replica, redis, ollama: _ollama } = &setup("0", &[ROOM]).await;
    // The unread part of a body counts, too.
    let send = async |bytes: usize| {
        let message = json!({"role": "user", "content": "[[tokens=1]] hello"});
        let body = json!({
            "model": "tinyllama", "stream": false, "messages": [message], "rest": "x".repeat(bytes),
        });
        let reply = http().post(format!("{}/api/chat", replica.url)).json(&body).send().await;
        let reply = reply.expect("a reply");
        (reply.status().as_u16(), reply.text().await.expect("a text"))
    };
    assert_eq!(send(LARGE).await.0, 200);
    redis.pause();
    // Two at a time wait for Redis, for some seconds, and leave no room to those that wait for them.
    let replies = join_all((0..8).map(|_| send(LARGE))).await;
    redis.resume();
    let is_refused = |reply: &&(u16, String)| reply.1.contains("as many bytes");
    let refused = replies.iter().filter(is_refused).count();
    assert!(replies.iter().all(|reply| reply.0 == 503), "{replies:?}");
    assert!((2..=6).contains(&refused), "{refused}: {replies:?}");
    let served = async || send(LARGE).await.0 == 200;
    assert!(eventually(LIMIT, served).await, "the room does not come back");
}

#[tokio::test]
async fn what_is_read_of_an_earlier_response_is_held_within_the_room() {
    let proxy = ("JARVIS_TRUSTED_PROXIES", "127.0.0.1");
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("0", &[ROOM, proxy]).await;
    let send_from = async |address: &str, previous: Option<&str>| {
        let mut body = json!({"model": "tinyllama", "input": "[[tokens=1]] hello"});
        if let Some(id) = previous {
            body["previous_response_id"] = json!(id);
        }
        let request = http().post(format!("{}/v1/responses", replica.url)).json(&body);
        let reply = request.header("x-forwarded-for", address).send().await.expect("a reply");
        (reply.status().as_u16(), reply.text().await.expect("a text"))
    };
    let (status, first) = send_from("192.0.2.1", None).await;
    assert_eq!(status, 200, "{first}");
    let first: serde_json::Value = serde_json::from_str(&first).expect("JSON");
    let id = first["id"].as_str();
    assert_eq!(send_from("192.0.2.1", id).await.0, 200);
    let held = unfinished_bodies(replica, "192.0.2.1").await;
    let is_refused = async || {
        let (status, text) = send_from("192.0.2.1", id).await;
        status == 503 && text.contains("too_many_connections")
    };
    assert!(eventually(LIMIT, is_refused).await, "it takes no room");
    // A request of a few bytes that goes on with nothing needs none, and neither does another address wait.
    let (status, text) = send_from("192.0.2.1", None).await;
    assert_eq!(status, 200, "{text}");
    let began = Instant::now();
    let (status, text) = send_from("192.0.2.2", id).await;
    assert_eq!(status, 200, "{text}");
    assert!(began.elapsed() < Duration::from_secs(4), "it waited for {:?}", began.elapsed());
    assert!(is_refused().await, "its share is held");
    drop(held);
    let served = async || send_from("192.0.2.1", id).await.0 == 200;
    assert!(eventually(LIMIT, served).await, "the share does not come back");
}

/// Opens connections of an address whose bodies do not end, and which hold all of its share.
async fn unfinished_bodies(replica: &Process, address: &str) -> Vec<TcpStream> {
    let open = (0..40).map(async |_| {
        let mut stream = narrow(replica).await;
        let head = format!(
            "POST /api/v1/chat HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {address}\r\n\
             Content-Length: {HELD_BODY}\r\n\r\n "
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream
    });
    join_all(open).await
}

#[tokio::test]
async fn an_address_that_holds_its_share_of_the_room_keeps_no_other_address_waiting() {
    let proxy = ("JARVIS_TRUSTED_PROXIES", "127.0.0.1");
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("0", &[ROOM, proxy]).await;
    let url = format!("{}/api/v1/chat", replica.url);
    // The body has no message, so it is 422 once it was read whole.
    let send_from = async |address: &str| {
        let request = http().post(&url).header("x-forwarded-for", address);
        let request = request.header("content-type", "application/json");
        request.body(vec![b' '; HELD_BODY]).send().await.map(|reply| reply.status().as_u16()).ok()
    };
    assert_eq!(send_from("192.0.2.1").await, Some(422));
    let held = unfinished_bodies(replica, "192.0.2.1").await;
    let is_spent = async || send_from("192.0.2.1").await != Some(422);
    assert!(eventually(LIMIT, is_spent).await, "the address has no share");
    let began = Instant::now();
    assert_eq!(send_from("192.0.2.2").await, Some(422));
    assert!(began.elapsed() < Duration::from_secs(4), "it waited for {:?}", began.elapsed());
    assert_ne!(send_from("192.0.2.1").await, Some(422), "its share is held");
    drop(held);
    let served = async || send_from("192.0.2.1").await == Some(422);
    assert!(eventually(LIMIT, served).await, "the share does not come back");
}

#[tokio::test]
async fn connections_that_linger_after_a_refused_upgrade_count_as_connections() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    // 400 descriptors leave 300 to connections of clients.
    let replica = limited_jarvis(&redis.url(), &ollama.url, "ulimit -n 400");
    until_ok(&replica, "/health/ready").await;
    let open = (0..300).map(async |_| {
        let mut raw = Raw::connect(&replica).await;
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        let head = format!(
            "POST /nowhere HTTP/1.1\r\nHost: localhost\r\n{upgrade}Content-Length: 2000000\r\n\r\nx"
        );
        raw.write(head.as_bytes()).await.expect("sent");
        raw
    });
    let mut held = join_all(open).await;
    for raw in &mut held {
        // Behind all other connections a refusal may be that of a full replica.
        let status = raw.response().await.expect("a response").status;
        assert!(status == 404 || status == 503, "{status}");
    }
    let beyond = get(&replica, "/api/v1/models").await;
    assert_eq!((beyond.status, &beyond.body["code"]), (503, &json!("too_many_connections")));
    drop(held);
    let served = async || get(&replica, "/api/v1/models").await.status == 200;
    assert!(eventually(LIMIT, served).await, "the connections do not come back");
}

#[tokio::test]
async fn a_large_body_and_a_large_reply_pass_where_nobody_holds_the_room() {
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("0", &[ROOM]).await;
    for framing in [Framing::ContentLength, Framing::Chunked] {
        let mut raw = Raw::connect(replica).await;
        for _ in 0..3 {
            // It has no message, so it is 422 once it was read whole.
            raw.request(("POST", "/api/v1/chat", ""), 500_000, framing).await.expect("sent");
            assert_eq!(raw.response().await.expect("a response").status, 422);
        }
    }
}

/// Returns the bytes of texts that a replica holds of turns and embeddings, as it reports them.
async fn held_text_bytes(replica: &Process) -> f64 {
    let text = metrics(replica).await;
    let held = text.lines().find_map(|line| line.strip_prefix("jarvis_held_text_bytes "));
    held.expect("a figure").parse().expect("a number")
}

/// Begins a turn that has the only slot of the host of a test for minutes.
async fn take_the_slot(replica: &Process) -> TcpStream {
    let mut stream = narrow(replica).await;
    let body = json!({"message": "[[tokens=600 rate=1]] go on", "stream": true}).to_string();
    let head = format!(
        "POST /api/v1/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    until_metric(replica, "a slot in use", |line| {
        line.starts_with("jarvis_slots_used{") && line.ends_with(" 1")
    })
    .await;
    stream
}

/// Sends requests at the same time. Returns the codes of those that are refused within some seconds; the
/// others wait until the result is dropped.
async fn refused_at_once(requests: Vec<reqwest::RequestBuilder>) -> (Vec<String>, JoinSet<String>) {
    let mut waiting = JoinSet::new();
    for request in requests {
        waiting.spawn(async move {
            let reply = request.send().await.expect("a reply");
            let status = reply.status().as_u16();
            let text = reply.text().await.expect("a text");
            assert_eq!(status, 503, "{text}");
            // Ollama's API has a text of its own for it.
            let texts = ["take as much memory as they may", "maximum pending requests exceeded"];
            if texts.iter().any(|known| text.contains(known)) { "texts".to_owned() } else { text }
        });
    }
    let mut codes = Vec::new();
    while let Ok(Some(code)) = timeout(Duration::from_secs(8), waiting.join_next()).await {
        codes.push(code.expect("a refusal"));
    }
    (codes, waiting)
}

#[tokio::test]
async fn texts_of_embeddings_that_wait_for_a_slot_are_held_within_the_room() {
    const REQUESTS: usize = 40;
    /// A quarter of the room of strangers, and what parsers and connections take in addition to it.
    const MOST_KIB: f64 = (12.0 + 48.0) * 1024.0;
    // As the image sets the allocator: what was freed is no part of the figure.
    let settings = [
        ("JARVIS_TRUSTED_PROXIES", "127.0.0.1"),
        ("JARVIS_OLLAMA_SLOTS", "1"),
        ("MIMALLOC_PURGE_DELAY", "0"),
    ];
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("1", &settings).await;
    let slot = take_the_slot(replica).await;
    let before = replica.resident_kib().expect("a figure");
    let embed = |address: &str, bytes: usize| {
        let body = json!({"model": "tinyllama", "input": vec!["x".repeat(1_000); bytes / 1_000]});
        let request = http().post(format!("{}/api/embed", replica.url)).json(&body);
        request.header("x-forwarded-for", address)
    };
    let large = (0..REQUESTS).map(|_| embed("192.0.2.1", 1_900_000)).collect();
    let (refused, waiting) = refused_at_once(large).await;
    let more = replica.resident_kib().expect("a figure") - before;
    let held = held_text_bytes(replica).await;
    println!("{} wait of {REQUESTS}: {more:.0} KiB, {held} bytes of texts", waiting.len());
    assert_eq!((refused.len(), waiting.len()), (REQUESTS - 6, 6), "{refused:?}");
    assert!(refused.iter().all(|code| code == "texts"), "{refused:?}");
    assert!(held <= f64::from(12 << 20), "{held} bytes");
    assert!(more < MOST_KIB, "{more:.0} KiB");
    // Texts that are small, and those of another address, wait with them.
    let others = vec![embed("192.0.2.1", 40_000), embed("192.0.2.2", 1_900_000)];
    let (refused, others) = refused_at_once(others).await;
    assert!(refused.is_empty() && others.len() == 2, "{refused:?}");
    drop((waiting, others, slot));
    let is_free = async || held_text_bytes(replica).await == 0.0;
    assert!(eventually(LIMIT, is_free).await, "the room does not come back");
    let too_large = embed("192.0.2.3", 2_200_000).send().await.expect("a reply");
    assert_eq!(too_large.status().as_u16(), 413);
}

#[tokio::test]
async fn large_turns_that_wait_hold_no_more_than_a_bounded_room() {
    const REQUESTS: usize = 100;
    /// The room of 64 MiB, and what parsers leave to the allocator in addition to it.
    const MOST_KIB: f64 = 128.0 * 1024.0;
    let settings = [("JARVIS_OLLAMA_SLOTS", "1")];
    let Setup { replica, redis: _redis, ollama: _ollama } =
        &setup_with_large_window(&settings).await;
    let slot = take_the_slot(replica).await;
    let completion = || {
        let long = json!({"role": "user", "content": "x".repeat(1_000_000)});
        let question = json!({"role": "user", "content": "[[tokens=1]] hello"});
        let body = json!({"model": "tinyllama", "messages": [long, question]});
        http().post(format!("{}/v1/chat/completions", replica.url)).json(&body)
    };
    let response = || {
        let body = json!({"model": "tinyllama", "input": "[[tokens=1]] hello",
            "instructions": "x".repeat(250_000)});
        http().post(format!("{}/v1/responses", replica.url)).json(&body)
    };
    let before = replica.resident_kib().expect("a figure");
    let (refused, waiting) = refused_at_once((0..REQUESTS).map(|_| completion()).collect()).await;
    let more = replica.resident_kib().expect("a figure") - before;
    let held = held_text_bytes(replica).await;
    println!("{} wait of {REQUESTS}: {more:.0} KiB, {held} bytes of texts", waiting.len());
    assert!(refused.iter().all(|code| code == "texts"), "{refused:?}");
    assert!((50..=67).contains(&waiting.len()), "{} wait", waiting.len());
    assert!(held <= f64::from(64 << 20), "{held} bytes");
    assert!(more < MOST_KIB, "{more:.0} KiB");
    // A turn that is small waits with them, and history is read.
    let small = json!({"message": "[[tokens=1]] small"});
    let small = http().post(format!("{}/api/v1/chat", replica.url)).json(&small);
    let (refused, small) = refused_at_once(vec![small]).await;
    assert!(refused.is_empty() && small.len() == 1, "{refused:?}");
    drop((waiting, small));
    let is_free = async || held_text_bytes(replica).await == 0.0;
    assert!(eventually(LIMIT, is_free).await, "turns without a client are cancelled");
    // The instructions of a response are in memory several times, and count so.
    let before = replica.resident_kib().expect("a figure");
    let (refused, waiting) = refused_at_once((0..REQUESTS).map(|_| response()).collect()).await;
    let more = replica.resident_kib().expect("a figure") - before;
    println!("{} responses wait of {REQUESTS}: {more:.0} KiB", waiting.len());
    assert!(refused.iter().all(|code| code == "texts"), "{refused:?}");
    assert!((50..=67).contains(&waiting.len()), "{} wait", waiting.len());
    assert!(more < MOST_KIB, "{more:.0} KiB");
    drop((waiting, slot));
}

#[tokio::test]
async fn turns_whose_acceptance_is_retried_hold_the_room_of_their_bodies() {
    const TURNS: usize = 4;
    let Setup { replica, redis, ollama: _ollama } = &setup("0", &[]).await;
    let send = async |key: Uuid| {
        let long = json!({"role": "user", "content": "x".repeat(1_000_000)});
        let question = json!({"role": "user", "content": "[[tokens=1]] hello"});
        let body = json!({"model": "tinyllama", "messages": [long, question]});
        let request = http().post(format!("{}/v1/chat/completions", replica.url)).json(&body);
        let reply = request.header("idempotency-key", key.to_string()).send().await;
        let reply = reply.expect("a reply");
        (reply.status().as_u16(), reply.text().await.expect("a text"))
    };
    // The model is known from then on.
    let _known = send(Uuid::new_v4()).await;
    let is_free = async || held_text_bytes(replica).await == 0.0;
    assert!(eventually(LIMIT, is_free).await, "a turn that has ended holds room");
    redis.pause();
    let replies = join_all((0..TURNS).map(|_| send(Uuid::new_v4()))).await;
    assert!(replies.iter().all(|reply| reply.0 == 503), "{replies:?}");
    let held = held_text_bytes(replica).await;
    println!("{TURNS} turns that are retried: {held} bytes of texts");
    assert!(held >= 1e6 * TURNS as f64, "{held} bytes: the turns are tried for 20 s");
    redis.resume();
    assert!(eventually(LIMIT, is_free).await, "the room does not come back");
}

#[tokio::test]
async fn requests_that_wait_on_sockets_share_one_room() {
    const SOCKETS: usize = 8;
    let proxy = ("JARVIS_TRUSTED_PROXIES", "127.0.0.1");
    let Setup { replica, redis, ollama: _ollama } = &setup("0", &[proxy]).await;
    let open = async |address: &str| {
        let opened = Socket::open_with(replica, "/ws", &[("x-forwarded-for", address)]).await;
        opened.expect("a socket").0
    };
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        sockets.push(open("192.0.2.1").await);
    }
    let mut other = open("192.0.2.2").await;
    redis.pause();
    let message = "[[tokens=1]] hello";
    let request = json!({"type": "chat", "message": message, "rest": "x".repeat(400_000)});
    let is_refused = async |socket: &mut Socket| {
        socket.say(&request).await;
        let event = timeout(Duration::from_millis(500), socket.event()).await;
        event.is_ok_and(|event| event["code"] == "too_many_requests")
    };
    let mut refused = 0;
    for socket in &mut sockets {
        refused += usize::from(is_refused(socket).await);
    }
    assert_eq!(refused, SOCKETS - 5, "2 MiB wait");
    assert!(!is_refused(&mut other).await, "another address has its share");
    redis.resume();
    // The room comes back once the requests were carried out.
    let last = sockets.last_mut().expect("a socket");
    let is_taken = async || !is_refused(last).await;
    assert!(eventually(LIMIT, is_taken).await, "the room does not come back");
}

#[tokio::test]
async fn an_import_of_many_small_messages_costs_little_more_than_its_text() {
    const MESSAGES: usize = 100_000;
    /// As stored, a message of these has about 140 bytes.
    const MOST_KIB: f64 = 32.0 * 1024.0;
    let settings = [("JARVIS_JWT_SECRET", SECRET)];
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("0", &settings).await;
    let import = async |messages: usize| {
        let line = r#"{"type":"message","role":"user","content":"x"}"#;
        let body = format!(
            "{{\"type\":\"export\",\"version\":1}}\n{{\"type\":\"session\"}}\n{}\n\
             {{\"type\":\"session_end\",\"messages\":{messages}}}\n{{\"type\":\"end\"}}\n",
            vec![line; messages].join("\n")
        );
        let bytes = body.len();
        let request = http().post(format!("{}/api/v1/chat/import", replica.url));
        let reply = request.bearer_auth(token("alice")).body(body).send().await.expect("a reply");
        let status = reply.status().as_u16();
        assert_eq!(status, 200, "{}", reply.text().await.expect("a text"));
        bytes
    };
    import(10).await;
    reset_peak(replica);
    let before = peak_kib(replica);
    let bytes = import(MESSAGES).await;
    let more = peak_kib(replica) - before;
    println!("an import of {MESSAGES} messages and {bytes} bytes: {more:.0} KiB");
    assert!(more < MOST_KIB, "{more:.0} KiB");
}
