//! Refused requests cost other clients nothing, behind an nginx that takes a replica out of use
//! after its first failure.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use support::client::{Reply, Socket, get, http, joined, kinds, send, until_ok};
use support::eventually;
use support::fleet::ready_replicas;
use support::host::stat;
use support::nginx::Nginx;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::raw::reads_head_and_events_apart;
use support::raw_http::{Framing, Raw};
use support::redis::RedisServer;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use uuid::Uuid;

const CHATS: usize = 50;
const POSTS: usize = 1_000;
const AT_ONCE: usize = 10;
const BYTES: usize = 100_000;
/// The requests that a replica refuses itself; a page of another site makes a browser send
/// "cross-site".
const REFUSED: [(&str, &str, &str, u16); 5] = [
    ("POST", "/nowhere", "", 404),
    ("POST", "/health", "", 405),
    ("POST", "/api/v1/chat/", "Sec-Fetch-Site: cross-site\r\n", 403),
    ("POST", "/api/v1/chat/", "Content-Encoding: gzip\r\n", 415),
    ("POST", "/api/v1/chat/sessions/mine/cancel", "", 422),
];

/// Returns the turns of OpenAI's and Ollama's APIs: the path, the request, and where the text of the answer
/// is.
fn other_apis(question: &str) -> [(&'static str, Value, &'static str); 4] {
    let messages = json!([{"role": "user", "content": question}]);
    let chat = json!({"model": "tinyllama", "stream": false, "messages": messages});
    let prompt = json!({"model": "tinyllama", "stream": false, "prompt": question});
    let input = json!({"model": "tinyllama", "input": question});
    [
        ("/v1/chat/completions", chat.clone(), "/choices/0/message/content"),
        ("/v1/responses", input, "/output/0/content/0/text"),
        ("/api/chat", chat, "/message/content"),
        ("/api/generate", prompt, "/response"),
    ]
}

async fn running(ollama: &Process) -> u64 {
    stat(ollama, "running").await
}

async fn fleet() -> (RedisServer, Process, Vec<Process>) {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "20", "--slots", "64"]);
    // nginx passes the name of its upstream on where it has no rules of ours.
    let slots = [("JARVIS_OLLAMA_SLOTS", "64"), ("JARVIS_ALLOWED_HOSTS", "*")];
    let replicas = ready_replicas(3, &redis.url(), &ollama.url, &slots).await;
    (redis, ollama, replicas)
}

/// Runs turns over one socket, until `over`; panics at the first difference from a socket that is
/// alone.
async fn chat(address: String, over: Arc<AtomicBool>) -> usize {
    let url = format!("ws://{address}/ws");
    let (mut socket, _) = Socket::open_at(&url).await;
    let mut turns = 0;
    loop {
        socket.say(&json!({"message": "[[tokens=20]] go on"})).await;
        let events = socket.until("stream_end").await;
        let turn_events: Vec<Value> =
            events.into_iter().filter(|event| event["type"] != "queued").collect();
        let order = ["message_received", "stream_start", "stream_chunk", "stream_end"];
        assert_eq!(kinds(&turn_events), order, "{turn_events:?}");
        let end = turn_events.last().expect("an end");
        assert_eq!(end["full_response"], json!(joined(&turn_events)));
        assert!(end.get("continued").is_none_or(Value::is_null), "{end}");
        turns += 1;
        if over.load(Ordering::Relaxed) {
            return turns;
        }
    }
}

/// Sends refused requests one after another, each over a connection of its own, as strangers do.
async fn refused(address: &str, first: usize, count: usize) {
    for number in first..first + count {
        let (method, path, headers, status) = REFUSED[number % REFUSED.len()];
        let framing = if number % 2 == 0 { Framing::ContentLength } else { Framing::Chunked };
        let mut raw = Raw::at(address).await;
        let sent = raw.request((method, path, headers), BYTES, framing).await;
        sent.unwrap_or_else(|error| panic!("{path} {framing:?}: {error}"));
        let response = raw.response().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(response.status, status, "{path} {framing:?}: {}", response.body);
    }
}

#[tokio::test]
async fn a_thousand_refused_posts_behind_nginx_disturb_none_of_fifty_chats() {
    let (_redis, _ollama, replicas) = &fleet().await;
    let nginx = Nginx::start(replicas).await;
    let over = Arc::new(AtomicBool::new(false));
    let chats: Vec<_> = (0..CHATS)
        .map(|number| {
            let address = if number % 2 == 0 { &nginx.ours } else { &nginx.plain };
            tokio::spawn(chat(address.clone(), Arc::clone(&over)))
        })
        .collect();
    let share = POSTS / AT_ONCE;
    join_all((0..AT_ONCE).map(|worker| {
        let address = if worker % 2 == 0 { &nginx.ours } else { &nginx.plain };
        refused(address, worker * share, share)
    }))
    .await;
    over.store(true, Ordering::Relaxed);
    for turns in join_all(chats).await {
        assert!(turns.expect("an undisturbed chat") > 0);
    }
    // Nor was any request tried at one replica after another had failed.
    let log = nginx.log();
    let failed: Vec<_> = log
        .lines()
        .filter(|line| line.contains("50") || line.contains(',') || line.contains(" -"))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(log.lines().count() >= POSTS, "{}", log.lines().count());
}

#[tokio::test]
async fn the_head_of_the_handshake_comes_alone_through_nginx_too() {
    /// The pause of a replica before the welcome.
    const WELCOME_DELAY: Duration = Duration::from_millis(50);
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    let settings = [("JARVIS_ALLOWED_HOSTS", "*")];
    let replicas = ready_replicas(1, &redis.url(), &ollama.url, &settings).await;
    let nginx = Nginx::start(&replicas).await;
    reads_head_and_events_apart(&nginx.ours, 12, WELCOME_DELAY).await;
}

#[tokio::test]
async fn behind_nginx_a_client_counts_by_the_address_that_connected_and_not_by_its_claim() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    let settings = [("JARVIS_ADDRESS_SOCKETS", "1"), ("JARVIS_TRUSTED_PROXIES", "127.0.0.1")];
    let replicas = [jarvis(&redis.url(), &ollama.url, &settings)];
    until_ok(&replicas[0], "/health/ready").await;
    let nginx = Nginx::start(&replicas).await;
    let open_at = async |server: &str, forwarded_for: &str| {
        let mut request = format!("ws://{server}/ws").into_client_request().expect("a URL");
        let value = forwarded_for.parse().expect("a value");
        request.headers_mut().insert("x-forwarded-for", value);
        tokio_tungstenite::connect_async(request).await
    };
    let is_refused = |opened: &Result<_, Error>| matches!(opened, Err(Error::Http(response)) if response.status() == 429);
    // Whatever it claims, it has the address that connected, which is the machine's own here: as a proxy
    // names it, it nevertheless has limits.
    let open = async |claim: &str| open_at(&nginx.ours, claim).await;
    let held = open("127.0.0.1").await;
    assert!(held.is_ok());
    for claim in ["127.0.0.1", "::1", "192.0.2.1", "192.0.2.2, 127.0.0.1", "unknown"] {
        assert!(is_refused(&open(claim).await), "{claim}");
    }
    // The test is a proxy in front of nginx, which names its client last.
    let open = async |claim: &str| open_at(&nginx.behind_a_proxy, claim).await;
    let held_behind = open("198.51.100.1, 192.0.2.1").await;
    assert!(held_behind.is_ok());
    assert!(is_refused(&open("198.51.100.2, 192.0.2.1:4711").await));
    assert!(open("198.51.100.1, 192.0.2.2").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_another_api_survives_its_replica_behind_nginx_and_ends_with_its_client() {
    const QUESTION: &str = "[[tokens=60]] go on";
    let (_redis, ollama, replicas) = &fleet().await;
    let nginx = Nginx::deployed(&replicas[..2]).await;
    let expected = ollama_sim::script_answer("tinyllama:latest", QUESTION, None, 64);
    for (number, (path, request, part)) in other_apis(QUESTION).into_iter().enumerate() {
        let url = format!("http://{}{path}", nginx.ours);
        let ask = || send(http().post(&url).json(&request));
        // Round robin: of three, each replica gets one at least, whichever worker of nginx they reach.
        let twice = || nginx.log().lines().filter(|line| line.contains(", 200")).count();
        let before = twice();
        let asked = tokio::spawn(join_all([ask(), ask(), ask()]));
        assert!(eventually(LIMIT, async || running(ollama).await == 3).await, "{path}");
        replicas[0].kill();
        for reply in asked.await.expect("three replies") {
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            assert_eq!(reply.body.pointer(part), Some(&json!(expected)), "{path}");
        }
        // nginx writes its log after the response.
        let was_sent_again = eventually(LIMIT, async || twice() > before).await;
        assert!(was_sent_again, "{path}: {}", nginx.log());
        replicas[0].restart().unwrap_or_else(|error| panic!("{error:#}"));
        until_ok(&replicas[0], "/health/ready").await;
        let (_, long, _) = &other_apis("[[tokens=1000]] go on")[number];
        let leaving = tokio::spawn(http().post(&url).json(long).send());
        assert!(eventually(LIMIT, async || running(ollama).await == 1).await, "{path}");
        leaving.abort();
        let ended = eventually(LIMIT, async || running(ollama).await == 0);
        assert!(ended.await, "{path}: the model goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_regenerated_answer_and_an_edited_question_survive_their_replica_behind_nginx() {
    const QUESTION: &str = "[[tokens=60]] go on";
    let (_redis, ollama, replicas) = &fleet().await;
    let nginx = Nginx::deployed(&replicas[..2]).await;
    let expected = ollama_sim::script_answer("tinyllama:latest", QUESTION, None, 64);
    let post = async |path: &str, body: Value| {
        send(http().post(format!("http://{}/api/v1/chat{path}", nginx.ours)).json(&body)).await
    };
    let post = &post;
    for name in ["regenerate", "edit"] {
        // Round robin: of three, each replica gets one at least, whichever worker of nginx they reach.
        let sessions: [Uuid; 3] = [(); 3].map(|()| Uuid::new_v4());
        let begin = |session: Uuid| post("", json!({"message": QUESTION, "session_id": session}));
        let first = join_all(sessions.map(begin)).await;
        let ask = |(session, first): (Uuid, Reply)| {
            let generation: Uuid =
                first.body["generation_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
            // The id of a question is that of its generation with the last bit flipped.
            let question = Uuid::from_u128(generation.as_u128() ^ 1);
            let beside = if name == "edit" { question } else { generation };
            let body = json!({"message_id": beside, "message": QUESTION});
            async move { post(&format!("/sessions/{session}/{name}"), body).await }
        };
        let twice = || nginx.log().lines().filter(|line| line.contains(", 200")).count();
        let before = twice();
        let kill = async {
            assert!(eventually(LIMIT, async || running(ollama).await == 3).await, "{name}");
            replicas[0].kill();
        };
        let asking = join_all(sessions.into_iter().zip(first).map(ask));
        let (replies, ()) = tokio::join!(asking, kill);
        for reply in replies {
            assert_eq!(reply.status, 200, "{name}: {}", reply.body);
            assert_eq!(reply.body["response"], expected.as_str(), "{name}");
        }
        assert!(eventually(LIMIT, async || twice() > before).await, "{name}: {}", nginx.log());
        replicas[0].restart().unwrap_or_else(|error| panic!("{error:#}"));
        until_ok(&replicas[0], "/health/ready").await;
        for session in sessions {
            let path = format!("http://{}/api/v1/chat/sessions/{session}", nginx.ours);
            let history = send(http().get(path)).await.body;
            let messages = history["messages"].as_array().expect("messages").clone();
            let at = usize::from(name == "regenerate");
            assert_eq!(
                (messages.len(), &messages[at]["siblings"]["count"]),
                (2, &json!(2)),
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn embeddings_that_fail_at_their_hosts_are_asked_of_one_replica_behind_nginx() {
    let (_redis, ollama, replicas) = &fleet().await;
    let nginx = Nginx::deployed(replicas).await;
    let fault = json!({"fault": "status", "status": 500, "times": 1_000, "path": "/api/embed"});
    let set = send(http().post(format!("{}/sim/faults", ollama.url)).json(&fault)).await;
    assert!(set.status < 300, "{}", set.body);
    let request = json!({"model": "tinyllama", "input": "one"});
    let url = format!("http://{}/api/embed", nginx.ours);
    let reply = send(http().post(url).json(&request)).await;
    assert_eq!(reply.status, 502, "{}", reply.body);
    assert!(reply.body["error"].is_string(), "{}", reply.body);
    let asked = get(ollama, "/sim/requests").await.body;
    let asked = asked["requests"].as_array().expect("requests");
    let asked = asked.iter().filter(|asked| asked["path"] == "/api/embed").count();
    assert!((1..=3).contains(&asked), "the attempts of one replica: {asked}");
    let was_logged = eventually(LIMIT, async || nginx.log().contains("502 502\n"));
    assert!(was_logged.await, "{}", nginx.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_embedding_fails_behind_nginx_while_a_replica_with_a_long_turn_drains() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "20", "--slots", "64"]));
    let settings = [
        ("JARVIS_OLLAMA_SLOTS", "64"),
        ("JARVIS_ALLOWED_HOSTS", "*"),
        ("JARVIS_DRAIN_TIMEOUT", "4"),
        // All clients are one address here.
        ("JARVIS_ADDRESS_TURNS_PER_MINUTE", "0"),
    ];
    let replicas = [(); 3].map(|()| jarvis(&redis.url(), &ollama.url, &settings));
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    let nginx = Nginx::deployed(&replicas).await;
    let (mut socket, _) = Socket::open(&replicas[0], "/ws").await;
    socket.say(&json!({"message": "[[tokens=400]] longer than the drain"})).await;
    socket.until("stream_chunk").await;
    let over = Arc::new(AtomicBool::new(false));
    let loops: Vec<_> = ["/v1/embeddings", "/api/embed", "/api/embeddings"]
        .into_iter()
        .map(|path| {
            let (url, over) = (format!("http://{}{path}", nginx.ours), Arc::clone(&over));
            tokio::spawn(async move {
                let text = if path == "/api/embeddings" { "prompt" } else { "input" };
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    let request = json!({"model": "tinyllama", text: format!("text {count}")});
                    let reply = send(http().post(&url).json(&request)).await;
                    assert_eq!(reply.status, 200, "{path} after {count}: {}", reply.body);
                    count += 1;
                }
                count
            })
        })
        .collect();
    replicas[0].terminate();
    let drained = replicas[0].wait();
    over.store(true, Ordering::Relaxed);
    let counts = join_all(loops).await;
    assert_eq!(drained, Some(0));
    for count in counts {
        assert!(count.expect("no error") > 10, "too few to show anything");
    }
}

#[tokio::test]
async fn a_replica_that_drains_accepts_embeddings_and_no_turns() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "20"]));
    let replica = jarvis(&redis.url(), &ollama.url, &[("JARVIS_DRAIN_TIMEOUT", "5")]);
    until_ok(&replica, "/health/ready").await;
    let (mut socket, _) = Socket::open(&replica, "/ws").await;
    socket.say(&json!({"message": "[[tokens=400]] longer than the drain"})).await;
    socket.until("stream_chunk").await;
    replica.terminate();
    let drains = async || get(&replica, "/health/ready").await.status != 200;
    assert!(eventually(LIMIT, drains).await, "it does not drain");
    let post = async |path: &str, body: Value| {
        send(http().post(format!("{}{path}", replica.url)).json(&body)).await
    };
    let embedded = post("/api/embed", json!({"model": "tinyllama", "input": "one"})).await;
    assert_eq!(embedded.status, 200, "{}", embedded.body);
    let turn = post("/api/v1/chat", json!({"message": "hi"})).await;
    assert_eq!((turn.status, &turn.body["code"]), (503, &json!("draining")));
}

/// Returns a configuration of the deployments as a program without their names and of an older version
/// can check it: the addresses of the upstream are asked by name at each request only there.
fn checkable(configuration: &str, folder: &std::path::Path) -> String {
    let rules = format!("{}/deploy/nginx", env!("CARGO_MANIFEST_DIR"));
    let (mut text, mut depth) = (String::new(), 0_i32);
    for line in configuration.lines() {
        let is_in_upstream = depth == 2;
        depth += if line.ends_with('{') { 1 } else { -i32::from(line.trim() == "}") };
        let bare = line.trim();
        // These and `resolve` are of nginx 1.27.3 and later.
        if is_in_upstream
            && (bare.starts_with("resolver ") || bare.starts_with("resolver_timeout "))
        {
            continue;
        }
        if is_in_upstream && bare.starts_with("server ") {
            assert!(bare.contains(" resolve") && bare.contains("max_fails=0"), "{bare}");
            text.push_str("        server 127.0.0.1:1 max_fails=0;\n");
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    let place = folder.display();
    text.replace("/tmp/", &format!("{place}/"))
        .replace("/etc/nginx/jarvis", &rules)
        .replace("/etc/nginx/rules", &rules)
        .replace("listen 10200", &format!("listen unix:{place}/listen.sock"))
}

#[test]
fn nginx_accepts_the_deployed_configurations_but_for_the_names_of_their_servers() {
    let nginx = testkit::programs::find("nginx").expect("nginx: `make test` unpacks Debian's");
    for path in ["deploy/nginx/nginx.conf", "k8s/components/nginx/nginx.conf"] {
        let folder = testkit::folder::Folder::temporary().expect("a folder");
        let written = std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")));
        let file = folder.path().join("nginx.conf");
        let text = checkable(&written.expect("a file"), folder.path());
        std::fs::write(&file, &text).expect("a copy");
        let check = std::process::Command::new(&nginx)
            .args(["-t", "-q", "-e", "stderr", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .output()
            .expect("nginx");
        let said = String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success() && said.trim().is_empty(), "{path}: {said}\n{text}");
    }
}

#[tokio::test]
async fn images_of_the_largest_size_pass_nginx_in_every_api() {
    let (_redis, _ollama, replicas) = &fleet().await;
    let nginx = Nginx::deployed(&replicas[..1]).await;
    let image = [&b"\x89PNG\r\n\x1a\n"[..], &vec![7; (4 << 20) - 8]].concat();
    let image = STANDARD.encode(image);
    let url = format!("data:image/png;base64,{image}");
    let chat = json!([{"type": "image_url", "image_url": {"url": url}}]);
    let input = json!([{"type": "input_image", "image_url": url}]);
    let message = |content: Value| json!([{"role": "user", "content": content}]);
    for (path, request, status) in [
        ("/api/v1/chat", json!({"message": "look", "images": [image]}), 422),
        ("/v1/chat/completions", json!({"model": "tinyllama", "messages": message(chat)}), 400),
        ("/v1/responses", json!({"model": "tinyllama", "input": message(input)}), 400),
        (
            "/api/chat",
            json!({"model": "tinyllama",
                "messages": [{"role": "user", "content": "look", "images": [image]}]}),
            400,
        ),
        ("/api/generate", json!({"model": "tinyllama", "prompt": "look", "images": [image]}), 400),
    ] {
        let address = format!("http://{}{path}", nginx.ours);
        let reply = send(http().post(address).json(&request)).await;
        // The replica has read it: its model takes no images.
        let text = reply.body.to_string();
        assert_eq!((reply.status, text.contains("image")), (status, true), "{path}: {text}");
    }
}

#[tokio::test]
async fn errors_of_nginx_itself_have_the_form_of_the_api_that_was_asked() {
    let (_redis, _ollama, replicas) = &fleet().await;
    let nginx = Nginx::deployed(&replicas[..1]).await;
    let of_replica = get(&replicas[0], "/v1/models").await.headers;
    let text = |reply: &Reply, path: &str| {
        assert_eq!(reply.headers["content-type"], "application/json", "{path}");
        for name in ["content-security-policy", "x-content-type-options", "cache-control"] {
            assert_eq!(reply.headers[name], of_replica[name], "{path} {name}");
        }
        let error = &reply.body["error"];
        let text = if path.starts_with("/v1/") { &error["message"] } else { error };
        (reply.status, text.as_str().expect("a text").to_owned())
    };
    let post = async |path: &str, body: Value| {
        send(http().post(format!("http://{}{path}", nginx.ours)).json(&body)).await
    };
    let others = ["/v1/embeddings", "/v1/models", "/api/embed", "/api/embeddings", "/api/show"];
    for path in other_apis("").map(|(path, ..)| path).into_iter().chain(others) {
        let large = post(path, json!({"model": "x".repeat(10 << 20)})).await;
        let (status, words) = text(&large, path);
        assert_eq!((status, words.starts_with("The body is too large")), (413, true), "{words}");
    }
    replicas[0].kill();
    for (path, request, _) in other_apis("hi") {
        let unreachable = post(path, request).await;
        let (status, words) = text(&unreachable, path);
        assert_eq!((status, words.starts_with("No replica")), (502, true), "{words}");
        assert_eq!(unreachable.headers["retry-after"], "1");
    }
    for (method, path) in [
        (Method::GET, "/v1/models"),
        (Method::GET, "/v1/models/tinyllama"),
        (Method::GET, "/api/tags"),
        (Method::GET, "/api/ps"),
        (Method::GET, "/api/version"),
        (Method::POST, "/api/show"),
        (Method::POST, "/api/embed"),
        (Method::POST, "/api/embeddings"),
        (Method::POST, "/v1/embeddings"),
    ] {
        let request = http().request(method, format!("http://{}{path}", nginx.ours));
        let unreachable = send(request.json(&json!({"model": "tinyllama"}))).await;
        let (status, words) = text(&unreachable, path);
        assert_eq!((status, words.starts_with("No replica")), (502, true), "{path}: {words}");
    }
    for path in ["/api/v1/models", "/api/v1", "/v1x", "/apix"] {
        let native = send(http().get(format!("http://{}{path}", nginx.ours))).await;
        assert_eq!(native.headers["content-type"], "application/problem+json", "{path}");
        assert_eq!(native.body["code"], "no_replica", "{path}");
    }
}
