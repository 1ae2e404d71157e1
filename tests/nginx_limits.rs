//! What one address may have of the nginx that is deployed: its connections, and the bodies that nginx
//! keeps in files.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use futures_util::future::{join_all, select_all};
use serde_json::{Value, json};
use support::client::{Reply, http, send};
use support::eventually;
use support::fleet::ready_replicas;
use support::nginx::Nginx;
use support::process::{LIMIT, Process, ollama_sim};
use support::raw_http::{Raw, Response};
use support::redis::RedisServer;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// A body that fits into the memory of its connection, and one of each size that is kept in a file.
const SMALL: usize = 9_999;
const SIZES: [(&str, u64); 3] =
    [("jarvis_bodies_100k", 99_999), ("jarvis_bodies_1m", 999_999), ("jarvis_bodies_9m", 9 << 20)];
/// The bytes of the folder of the deployments in which nginx keeps bodies.
const FOLDER: u64 = 256 << 20;

async fn served() -> (RedisServer, Process, Vec<Process>, Nginx) {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let settings = [("JARVIS_ALLOWED_HOSTS", "*")];
    let replicas = ready_replicas(1, &redis.url(), &ollama.url, &settings).await;
    let nginx = Nginx::deployed(&replicas).await;
    (redis, ollama, replicas, nginx)
}

fn file(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns how many connections an address may have in this zone.
fn bound(zone: &str) -> usize {
    let rules = file("deploy/nginx/jarvis.conf");
    let line = rules.lines().find_map(|line| line.strip_prefix(&format!("limit_conn {zone} ")));
    let number = line.and_then(|rest| rest.strip_suffix(';')?.parse().ok());
    number.unwrap_or_else(|| panic!("no bound of {zone}"))
}

/// Opens a connection and sends the head of a request, and nothing of its body.
async fn hold(server: &str, client: &str, framing: &str) -> Raw {
    hold_at("/api/v1/chat", server, client, framing).await
}

async fn hold_at(path: &str, server: &str, client: &str, framing: &str) -> Raw {
    let mut raw = Raw::at(server).await;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {client}\r\n{framing}\r\n\r\n"
    );
    raw.write(head.as_bytes()).await.expect("a head");
    raw
}

/// Holds as many connections of a client as it may have, of as many addresses where it has a network
/// (`…::` one /64, `…*` the /64 of one site), and returns the response to one more.
async fn hold_all(server: &str, client: &str, framing: &str, count: usize) -> (Vec<Raw>, Response) {
    let address = |number| match (client.strip_suffix("::"), client.strip_suffix('*')) {
        (Some(network), _) => format!("{network}::{number:x}"),
        (_, Some(site)) => format!("{site}{number:x}::1"),
        (None, None) => client.to_owned(),
    };
    let addresses: Vec<String> = (0..=count).map(address).collect();
    let holds = addresses.iter().map(|address| hold(server, address, framing));
    let mut held = join_all(holds).await;
    // Whichever comes last to nginx: the bodies of the others are waited for.
    let responses = held.iter_mut().map(|raw| Box::pin(raw.response()));
    let (refused, _, _) = select_all(responses).await;
    (held, refused.expect("a response"))
}

/// Sends a request of a client that a proxy before nginx names.
async fn of(client: &str, server: &str, path: &str, body: Option<&Value>) -> Reply {
    let url = format!("http://{server}{path}");
    let request = match body {
        Some(body) => http().post(url).json(body),
        None => http().get(url),
    };
    send(request.header("x-forwarded-for", client)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_holds_all_its_connections_of_nginx_is_refused_and_others_are_served() {
    rlimit::increase_nofile_limit(u64::MAX).expect("open files");
    let (_redis, _ollama, _replicas, nginx) = served().await;
    let server = nginx.behind_a_proxy.as_str();
    let (client, other) = ("192.0.2.1", "192.0.2.2");
    let most = bound("jarvis_clients");
    // As many as a replica lets it have by itself.
    let settings = file("docs/SETTINGS.md");
    assert!(settings.contains(&format!("`JARVIS_ADDRESS_CONNECTIONS` | `{most}`")));
    let (held, refused) = hold_all(server, client, "Content-Length: 2", most).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    let problem = of(client, server, "/api/v1/models", None).await;
    assert_eq!(problem.headers["content-type"], "application/problem+json");
    assert_eq!(problem.headers["retry-after"], "5");
    assert_eq!((problem.status, &problem.body["status"]), (429, &json!(429)));
    assert_eq!(problem.body["code"], "rate_limited");
    let openai = of(client, server, "/v1/models", None).await;
    let error = &openai.body["error"];
    assert_eq!((openai.status, &error["code"]), (429, &json!("rate_limit_exceeded")), "{error}");
    let ollama = of(client, server, "/api/tags", None).await;
    assert!(ollama.status == 429 && ollama.body["error"].is_string(), "{}", ollama.body);
    let mut socket = format!("ws://{server}/ws").into_client_request().expect("a URL");
    socket.headers_mut().insert("x-forwarded-for", client.parse().expect("an address"));
    let socket = tokio_tungstenite::connect_async(socket).await;
    let Err(Error::Http(response)) = socket else { panic!("a socket is opened") };
    assert_eq!(response.status(), 429);
    // Others are served, and so is a client on this machine that no proxy names.
    assert_eq!(of(other, server, "/health/live", None).await.status, 200);
    assert_eq!(of(client, &nginx.ours, "/health/live", None).await.status, 200);
    drop(held);
    let is_served = async || of(client, server, "/health/live", None).await.status == 200;
    assert!(eventually(LIMIT, is_served).await, "closed connections are counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_networks_of_one_ipv6_48_hold_no_more_than_four_times_the_connections_of_one_at_nginx()
{
    rlimit::increase_nofile_limit(u64::MAX).expect("open files");
    let (_redis, _ollama, _replicas, nginx) = served().await;
    let server = nginx.behind_a_proxy.as_str();
    let most = bound("jarvis_sites");
    assert_eq!(most, 4 * bound("jarvis_clients"));
    let (_held, refused) = hold_all(server, "2001:db8:0:*", "Content-Length: 2", most).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(of("2001:db8:0:ffff::1", server, "/health/live", None).await.status, 429);
    assert_eq!(of("2001:db8:1::1", server, "/health/live", None).await.status, 200);
}

/// Returns whether a replica has read the request: it refuses so long a message.
fn is_of_the_replica(reply: &Reply) -> bool {
    reply.status == 422 && reply.body["code"] == "validation_failed"
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_of_one_address_leave_nginx_room_for_those_of_others() {
    rlimit::increase_nofile_limit(u64::MAX).expect("open files");
    let (_redis, _ollama, _replicas, nginx) = served().await;
    let server = nginx.behind_a_proxy.as_str();
    let [(of_100k, _), (of_1m, _), (of_9m, _)] = SIZES;
    for (client, framing, zone) in [
        ("192.0.2.1", "Content-Length: 10000", of_100k),
        ("192.0.2.2", "Content-Length: 100000", of_1m),
        ("2001:db8:0:*", "Content-Length: 1000000", of_9m),
        ("192.0.2.3", "Transfer-Encoding: chunked", of_9m),
    ] {
        let (_held, refused) = hold_all(server, client, framing, bound(zone)).await;
        assert_eq!(refused.status, 429, "{}", refused.body);
        assert!(refused.body.contains("\"rate_limited\""), "{}", refused.body);
        // A small request of the same client is served, and a large one of another.
        let small = json!({"message": "[[tokens=1]] hi"});
        let one = client.replace('*', "0::1");
        let reply = of(&one, server, "/api/v1/chat", Some(&small)).await;
        assert_eq!(reply.status, 200, "{client}: {}", reply.body);
        let large = json!({"message": "x".repeat(2_000_000)});
        let reply = of("2001:db8:1::1", server, "/api/v1/chat", Some(&large)).await;
        assert!(is_of_the_replica(&reply), "{}: {}", reply.status, reply.body);
    }
    // A client on this machine that no proxy names has no bound.
    let holds = (0..50).map(|_| hold(&nginx.ours, "-", "Content-Length: 1000000"));
    let _held = join_all(holds).await;
    let large = json!({"message": "x".repeat(2_000_000)});
    let reply = of("-", &nginx.ours, "/api/v1/chat", Some(&large)).await;
    assert!(is_of_the_replica(&reply), "{}: {}", reply.status, reply.body);
}

/// Sends all but the last byte of as many bodies of each size as one address may have. nginx waits for the
/// rest of them, and keeps what has come.
async fn hold_bodies(server: &str, client: &str) -> Vec<Raw> {
    let longest = SIZES.iter().map(|(_, bytes)| *bytes).max().expect("a size");
    let text = vec![b' '; usize::try_from(longest).expect("a size")];
    let sizes = SIZES.iter().flat_map(|(zone, bytes)| vec![*bytes; bound(zone)]);
    // At once: nginx gives back what is not gone on with for ten seconds. The path takes bodies of the largest
    // size.
    join_all(sizes.map(async |bytes| {
        let framing = format!("Content-Length: {bytes}");
        let mut raw = hold_at("/v1/chat/completions", server, client, &framing).await;
        let body = &text[..usize::try_from(bytes).expect("a size") - 1];
        raw.write(body).await.expect("room for a body");
        raw
    }))
    .await
}

/// Returns the bytes of files that one address may have nginx keep.
fn bytes_of_one_address() -> u64 {
    SIZES.iter().map(|(zone, bytes)| bytes * bound(zone) as u64).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_addresses_that_fill_nginx_with_all_they_may_leave_room_for_the_body_of_a_third() {
    rlimit::increase_nofile_limit(u64::MAX).expect("open files");
    let (_redis, _ollama, _replicas, nginx) = served().await;
    let server = nginx.behind_a_proxy.as_str();
    let clients = ["192.0.2.1", "192.0.2.2"];
    let held = join_all(clients.map(|client| hold_bodies(server, client))).await;
    // All but what is in the memory of each connection, of one buffer.
    let connections = held.iter().map(Vec::len).sum::<usize>() as u64;
    let least = 2 * bytes_of_one_address() - connections * (32 << 10);
    let are_kept = async || nginx.bytes_of_bodies() >= least;
    assert!(eventually(LIMIT, are_kept).await, "{} of {least}", nginx.bytes_of_bodies());
    assert!(nginx.bytes_of_bodies() <= FOLDER / 2, "{} bytes", nginx.bytes_of_bodies());
    for client in clients {
        let large = json!({"message": "x".repeat(20_000)});
        let reply = of(client, server, "/api/v1/chat", Some(&large)).await;
        assert_eq!(reply.status, 429, "{client}: {}", reply.body);
    }
    let large = json!({"message": "x".repeat(5_000_000)});
    let reply = of("192.0.2.3", server, "/api/v1/chat", Some(&large)).await;
    assert!(is_of_the_replica(&reply), "{}: {}", reply.status, reply.body);
    drop(held);
    let are_gone = async || nginx.bytes_of_bodies() == 0;
    assert!(eventually(LIMIT, are_gone).await, "{} bytes are left", nginx.bytes_of_bodies());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_is_ended_by_nginx_and_gives_its_room_back() {
    let (_redis, _ollama, _replicas, nginx) = served().await;
    let server = nginx.behind_a_proxy.as_str();
    let mut raw = hold(server, "192.0.2.1", "Content-Length: 100000").await;
    raw.write(&b" ".repeat(50_000)).await.expect("room for a body");
    assert!(eventually(LIMIT, async || nginx.bytes_of_bodies() > 0).await, "nothing is kept");
    // nginx ends it 10 s after the last byte; without a setting it would wait for 60 s.
    let end = tokio::time::timeout(Duration::from_secs(30), raw.byte()).await;
    assert!(end.expect("an end within 30 s").is_err(), "nginx answers");
    assert!(eventually(LIMIT, async || nginx.bytes_of_bodies() == 0).await, "it is still kept");
}

#[test]
fn the_bodies_of_four_addresses_and_one_more_fit_into_the_folder_of_nginx() {
    let rules = file("deploy/nginx/jarvis.conf");
    assert!(rules.contains("client_body_buffer_size 16k;"));
    // A body beyond the largest size is kept nowhere.
    let locations = rules.split("\nlocation ").filter(|text| text.contains("buffering on;"));
    let sizes: Vec<&str> = locations
        .filter_map(|text| text.split("client_max_body_size ").nth(1)?.split(';').next())
        .collect();
    assert!(sizes.len() >= 4 && sizes.iter().all(|size| ["7m", "9m"].contains(size)), "{sizes:?}");
    let (all, largest) = (4 * bytes_of_one_address(), 9 << 20);
    assert!(all + largest <= FOLDER, "{all} bytes of {FOLDER}");
    let (compose, pod) = (file("docker-compose.yml"), file("k8s/components/nginx/nginx.yaml"));
    let nginx = compose.split("\n  nginx:").nth(1).and_then(|rest| rest.split("\n  redis:").next());
    let nginx = nginx.expect("the service nginx");
    assert!(nginx.contains("size=256m") && nginx.contains("mem_limit: 512m"), "{nginx}");
    assert!(pod.contains("emptyDir: {medium: Memory, sizeLimit: 256Mi}"), "{pod}");
    assert!(pod.contains("limits: {memory: 512Mi}"), "{pod}");
}

#[tokio::test]
async fn a_body_for_which_nginx_has_no_room_is_503_in_the_form_of_its_api_and_a_small_one_passes() {
    let (_redis, _ollama, _replicas, nginx) = served().await;
    nginx.leave_no_room_for_bodies();
    let post = async |path: &str, body: &Value| {
        send(http().post(format!("http://{}{path}", nginx.ours)).json(body)).await
    };
    let large = json!({"model": "tinyllama", "message": "x".repeat(SMALL * 4)});
    let problem = post("/api/v1/chat", &large).await;
    assert_eq!(problem.headers["content-type"], "application/problem+json");
    assert_eq!((problem.status, &problem.body["code"]), (503, &json!("too_many_connections")));
    assert_eq!(problem.headers["retry-after"], "5");
    for path in ["/v1/chat/completions", "/v1/embeddings"] {
        let error = post(path, &large).await;
        let code = &error.body["error"]["code"];
        assert_eq!((error.status, code), (503, &json!("too_many_connections")), "{path}");
    }
    for path in ["/api/chat", "/api/embed", "/api/show"] {
        let error = post(path, &large).await;
        assert!(error.status == 503 && error.body["error"].is_string(), "{path}: {}", error.body);
    }
    let small = json!({"message": format!("[[tokens=1]] {}", "x".repeat(SMALL - 100))});
    let reply = post("/api/v1/chat", &small).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}
