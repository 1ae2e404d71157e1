//! The promises about images.
#![allow(missing_docs, reason = "tests")]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jarvis::digest::sha256_hex;
use serde_json::{Value, json};
use support::client::{Reply, Socket, get, history, http, narrow, post, send};
use support::eventually;
use support::process::{LIMIT, Process};
use support::redis::RedisServer;
use support::redis_time::{begin_timing, timed_calls};
use support::setup::{Pair, pair, setup_on};
use support::tokens::{SECRET, token};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

const CHAT: &str = "/api/v1/chat";
const MODEL: &str = "vision:latest";

async fn fleet(settings: &[(&str, &str)]) -> Pair {
    let settings = [&[("JARVIS_LEASE_MS", "2000")], settings].concat();
    pair(&["--rate", "2000", "--models", "tinyllama,vision"], &settings).await
}

/// Returns a PNG image of so many bytes, which differs by its seed.
fn image(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn base64(image: &[u8]) -> String {
    STANDARD.encode(image)
}

/// Returns what the simulated model says of these images.
fn named(images: &[&[u8]]) -> String {
    let digests: Vec<_> = images.iter().map(|image| sha256_hex(image)).collect();
    format!("{} images: {}", digests.len(), digests.join(" and then "))
}

fn asked(session: &str, message: &str, images: &[&[u8]]) -> Value {
    let images: Vec<_> = images.iter().map(|image| base64(image)).collect();
    json!({"message": message, "session_id": session, "model": MODEL, "images": images,
        "temperature": 0})
}

/// Returns the key of a session's images.
fn images_key(redis: &RedisServer, session: &str) -> Option<String> {
    let keys = redis.cli(&["KEYS", &format!("jarvis:*:s:{session}:images")]);
    keys.lines().next().filter(|line| !line.is_empty()).map(str::to_owned)
}

fn id() -> String {
    Uuid::new_v4().to_string()
}

#[tokio::test]
async fn an_image_reaches_the_model_and_is_stored_by_its_digest_and_a_part_of_later_context() {
    let Pair { replicas: [one, two], ollama: _ollama, redis } = fleet(&[]).await;
    let session = id();
    let (first, second) = (image(1, 700_000), image(2, 300));
    let reply = post(&one, CHAT, &asked(&session, "[[images]] what is it?", &[&first])).await;
    assert_eq!((reply.status, &reply.body["response"]), (200, &json!(named(&[&first]))));
    let messages = history(&two, &session).await;
    let stored =
        json!([{"digest": sha256_hex(&first), "bytes": 700_000, "media_type": "image/png"}]);
    assert_eq!(messages[0]["images"], stored);
    assert!(messages[1].get("images").is_none());
    // Another replica, and the first image once more beside another one.
    let images: [&[u8]; 2] = [&second, &first];
    let reply = post(&two, CHAT, &asked(&session, "[[images]] and now?", &images)).await;
    assert_eq!(reply.body["response"], named(&[&first, &second, &first]));
    let reply = post(&one, CHAT, &asked(&session, "[[images]] once more", &[])).await;
    assert_eq!(
        reply.body["response"],
        named(&[&first, &second, &first]),
        "a part of later context"
    );
    // Stored once, in parts, and nowhere else.
    let key = images_key(&redis, &session).expect("images");
    assert_eq!(
        redis.cli(&["HLEN", &key]).trim(),
        "9",
        "3 parts and 1, 2 entries with their counts, and the sum"
    );
    let bytes: usize = redis.cli(&["HGET", &key, "bytes"]).trim().parse().expect("a number");
    assert!((700_300..702_000).contains(&bytes), "{bytes}");
    let part = redis.cli(&["HSTRLEN", &key, &format!("{}:0", sha256_hex(&first))]);
    assert_eq!(part.trim(), (256 << 10).to_string());
    let events = redis.cli(&["LRANGE", &key.replace(":images", ":events"), "0", "-1"]);
    assert!(!events.contains(&base64(&second)[..60]) && !events.contains(&sha256_hex(&first)));
    // A model that takes no images still goes on with the words.
    let mut plain = asked(&session, "[[tokens=5]] and you?", &[]);
    plain["model"] = json!("tinyllama");
    assert_eq!(post(&two, CHAT, &plain).await.status, 200);
}

#[tokio::test]
async fn the_list_of_models_says_which_take_images_as_far_as_the_host_says_it() {
    let setup = setup_on(&["--models", "tinyllama,vision"], &[]).await;
    let fault = json!({"fault": "hang", "path": "/api/show", "times": 1});
    send(http().post(format!("{}/sim/faults", setup.ollama.url)).json(&fault)).await;
    let flags = async || {
        let list = get(&setup.replica, "/api/v1/chat/models").await.body;
        let models = list["models"].as_array().expect("models").iter();
        models
            .map(|model| (model["name"].clone(), model.get("images").cloned()))
            .collect::<Vec<_>>()
    };
    let (plain, seeing) = (json!("tinyllama:latest"), json!(MODEL));
    assert_eq!(flags().await, [(plain.clone(), None), (seeing.clone(), None)]);
    let described = [(plain, Some(json!(false))), (seeing, Some(json!(true)))];
    let is_described = eventually(LIMIT, async || flags().await == described).await;
    assert!(is_described, "{:?}", flags().await);
}

#[tokio::test]
async fn an_image_comes_back_by_its_digest_as_long_as_its_session_has_it() {
    let Pair { replicas: [one, two], ollama: _ollama, redis: _redis } = fleet(&[]).await;
    let (session, other) = (id(), id());
    let large = image(1, 700_000);
    assert_eq!(post(&one, CHAT, &asked(&session, "[[images]] what?", &[&large])).await.status, 200);
    assert_eq!(post(&one, CHAT, &asked(&other, "[[images]] what?", &[])).await.status, 200);
    let path =
        |session: &str, digest: &str| format!("/api/v1/chat/sessions/{session}/images/{digest}");
    let digest = sha256_hex(&large);
    let url = format!("{}{}", two.url, path(&session, &digest));
    let reply = http().get(&url).send().await.expect("a reply");
    assert_eq!(reply.status().as_u16(), 200);
    for (name, value) in [
        ("content-type", "image/png"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(reply.headers()[name], value, "{name}");
    }
    assert!(reply.bytes().await.expect("a body") == large, "other bytes");
    for (path, status, code) in [
        (path(&other, &digest), 404, "image_not_found"),
        (path(&session, &sha256_hex(b"another")), 404, "image_not_found"),
        (path(&id(), &digest), 404, "session_not_found"),
        (path(&session, &digest.to_uppercase()), 422, "validation_failed"),
        (path(&session, "x"), 422, "validation_failed"),
    ] {
        let reply = get(&two, &path).await;
        assert_eq!((reply.status, &reply.body["code"]), (status, &json!(code)), "{path}");
    }
    let whole = format!("{}/api/v1/chat/sessions/{session}", one.url);
    assert!(send(http().delete(whole)).await.status < 300);
    let reply = get(&two, &path(&session, &digest)).await;
    assert_eq!((reply.status, &reply.body["code"]), (404, &json!("session_not_found")));
}

#[tokio::test]
async fn an_image_is_read_only_where_there_is_room_for_the_largest() {
    // The smallest room: 8 MiB.
    let setting = ("JARVIS_UNREAD_MIB", "8");
    let Pair { replicas: [one, _two], ollama: _ollama, redis: _redis } = fleet(&[setting]).await;
    let (session, small) = (id(), image(1, 300));
    assert_eq!(post(&one, CHAT, &asked(&session, "[[images]] what?", &[&small])).await.status, 200);
    let path = format!("/api/v1/chat/sessions/{session}/images/{}", sha256_hex(&small));
    let reply_status = async || {
        http().get(format!("{}{path}", one.url)).send().await.expect("a reply").status().as_u16()
    };
    assert_eq!(reply_status().await, 200);
    // A body that does not come leaves room for a page, and not for an image.
    let mut unfinished = narrow(&one).await;
    let request = format!(
        "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{{",
        5 << 20
    );
    unfinished.write_all(request.as_bytes()).await.expect("sent");
    assert!(
        eventually(LIMIT, async || reply_status().await == 503).await,
        "it is read without room"
    );
    let of_session = format!("/api/v1/chat/sessions/{session}");
    assert_eq!(get(&one, &of_session).await.status, 200, "there is room for a page");
    drop(unfinished);
    assert!(
        eventually(LIMIT, async || reply_status().await == 200).await,
        "the room does not come back"
    );
}

async fn refused(replica: &Process, body: &Value) -> (u16, String, String) {
    let Reply { status, body, .. } = post(replica, CHAT, body).await;
    let loc =
        body["errors"][0]["loc"].as_array().map(|loc| loc.last().cloned()).unwrap_or_default();
    let loc = loc.and_then(|last| last.as_str().map(str::to_owned)).unwrap_or_default();
    (status, body["code"].as_str().unwrap_or_default().to_owned(), loc)
}

#[tokio::test]
async fn refused_images_say_what_is_wrong_and_leave_nothing_behind() {
    let Pair { replicas: [one, _two], ollama, redis } = fleet(&[]).await;
    let small = image(1, 100);
    let with = |images: Value| json!({"message": "hi", "session_id": id(), "model": MODEL, "images": images});
    let invalid = |loc: &str| (422, "validation_failed".to_owned(), loc.to_owned());
    let large = image(2, (4 << 20) + 1);
    for (body, expected) in [
        (with(json!(["not base64!"])), invalid("images[0]")),
        (with(json!([base64(&small), base64(b"<svg/>")])), invalid("images[1]")),
        (with(json!(vec![base64(&small); 5])), invalid("images[4]")),
        (with(json!([base64(&large)])), invalid("images[0]")),
        (with(json!([7])), invalid("images[0]")),
        (with(json!("x")), invalid("images")),
        (
            json!({"message": "hi", "model": "tinyllama", "images": [base64(&small)]}),
            (422, "model_unsupported".to_owned(), "model".to_owned()),
        ),
        (
            json!({"message": "hi", "model": "nope", "images": [base64(&small)]}),
            (404, "model_not_found".to_owned(), String::new()),
        ),
        (
            with(json!([base64(&image(3, 6 << 20))])),
            (413, "body_too_large".to_owned(), String::new()),
        ),
    ] {
        assert_eq!(refused(&one, &body).await, expected);
    }
    let (mut socket, _) = Socket::open(&one, "/ws").await;
    socket.say(&json!({"message": "hi", "model": MODEL, "images": [base64(&small)]})).await;
    let error = socket.event().await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("validation_failed")));
    assert!(error["message"].as_str().is_some_and(|text| text.contains("over REST")), "{error}");
    assert_eq!(redis.cli(&["KEYS", "jarvis:*:s:*"]).trim(), "", "nothing is left");
    let requests = get(&ollama, "/sim/requests").await.body;
    assert_eq!(requests["requests"], json!([]), "no host was asked");
    // A refusal after the images were put: the session has as many waiting turns as it may.
    let session = id();
    let slow =
        json!({"message": "[[tokens=400 rate=20]] slow", "stream": true, "session_id": session});
    let mut open = Vec::new();
    for _ in 0..9 {
        let request = http().post(format!("{}{CHAT}", one.url)).json(&slow).send().await;
        open.push(request.expect("a stream"));
    }
    let busy = post(&one, CHAT, &asked(&session, "hi", &[&small])).await;
    assert_eq!((busy.status, &busy.body["code"]), (409, &json!("session_busy")));
    assert_eq!(images_key(&redis, &session), None, "its image is dropped");
}

/// Reads a stream of the session from another replica, where the writer is killed meanwhile.
async fn killed_in_mid_answer(fleet: &Pair, body: &Value, path: &str) -> String {
    let [one, two] = &fleet.replicas;
    let key = id();
    let request = |replica: &Process| {
        http().post(format!("{}{path}", replica.url)).header("idempotency-key", &key).json(body)
    };
    let mut begun = request(one).send().await.expect("a response");
    assert_eq!(begun.status(), 200, "{:?}", begun.text().await);
    for _ in 0..4 {
        begun.chunk().await.expect("a chunk");
    }
    one.kill();
    let mut whole = body.clone();
    whole["stream"] = json!(false);
    let request = http().post(format!("{}{path}", two.url)).header("idempotency-key", &key);
    let reply = send(request.json(&whole)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let texts = [
        &reply.body["response"],
        &reply.body["message"]["content"],
        &reply.body["choices"][0]["message"]["content"],
    ];
    texts.iter().find_map(|text| text.as_str()).expect("a text").to_owned()
}

#[tokio::test]
async fn the_continuation_of_a_killed_replica_s_answer_gets_the_same_images() {
    let fleet = fleet(&[]).await;
    let (first, second) = (image(1, 600_000), image(2, 90_000));
    let session = id();
    let images: [&[u8]; 2] = [&first, &second];
    let mut body = asked(&session, "[[rate=25]] [[images]] what are they?", &images);
    body["stream"] = json!(true);
    assert_eq!(killed_in_mid_answer(&fleet, &body, CHAT).await, named(&images));
    let requests = get(&fleet.ollama, "/sim/requests").await.body;
    let requests = requests["requests"].as_array().expect("requests").clone();
    let last = requests.iter().rev().find(|it| it["path"] == "/api/generate").expect("one");
    assert_eq!(last["request"]["images"], json!([base64(&first), base64(&second)]));
    let messages = history(&fleet.replicas[1], &session).await;
    assert_eq!(messages[1]["continued"][0]["how"], "exact", "{}", messages[1]);
    assert_eq!(messages[1]["writers"], 2);
}

#[tokio::test]
async fn images_of_a_conversation_that_comes_with_a_request_survive_a_takeover_and_then_go() {
    let fleet = fleet(&[]).await;
    let (first, second) = (image(1, 300_000), image(2, 90_000));
    let url = |image: &[u8]| format!("data:image/png;base64,{}", base64(image));
    let part = |image: &[u8]| json!({"type": "image_url", "image_url": {"url": url(image)}});
    let text = "[[rate=25]] [[images]] what are they?";
    let body = json!({"model": MODEL, "temperature": 0, "stream": true, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "look"}, part(&first)]},
        {"role": "assistant", "content": "I see"},
        {"role": "user", "content": [part(&second), {"type": "text", "text": text}]},
    ]});
    let answer = killed_in_mid_answer(&fleet, &body, "/v1/chat/completions").await;
    assert_eq!(answer, named(&[&first, &second]));
    let gone = async || fleet.redis.cli(&["KEYS", "jarvis:*:images"]).trim().is_empty();
    assert!(eventually(LIMIT, gone).await, "a turn's images go with its end");
    let [_, two] = &fleet.replicas;
    let chat = json!({"model": MODEL, "stream": false, "messages": [
        {"role": "user", "content": "look", "images": [base64(&first)]},
        {"role": "assistant", "content": "I see"},
        {"role": "user", "content": "[[images]] what are they?", "images": [base64(&second)]},
    ]});
    let reply = post(two, "/api/chat", &chat).await;
    assert_eq!(reply.body["message"]["content"], named(&[&first, &second]), "{}", reply.body);
    let prompt = json!({"model": MODEL, "stream": false, "prompt": "[[images]] what?",
        "images": [base64(&second)]});
    let reply = post(two, "/api/generate", &prompt).await;
    assert_eq!(reply.body["response"], named(&[&second]), "{}", reply.body);
    assert!(eventually(LIMIT, gone).await);
}

#[tokio::test]
async fn the_fronts_of_other_apis_refuse_images_in_their_own_words() {
    let Pair { replicas: [one, _two], ollama: _ollama, redis } = fleet(&[]).await;
    let completion = |model: &str, url: &str| {
        json!({"model": model, "messages": [{"role": "user", "content":
            [{"type": "image_url", "image_url": {"url": url}}]}]})
    };
    let png = format!("data:image/png;base64,{}", base64(&image(1, 50)));
    for (body, param) in [
        (completion(MODEL, "https://example.org/x.png"), "messages[0].content[0].image_url.url"),
        (completion(MODEL, "data:image/png,xx"), "messages[0].content[0].image_url.url"),
        (completion(MODEL, "data:image/png;base64,????"), "messages[0].content[0].image_url.url"),
        (completion("tinyllama", &png), "model"),
    ] {
        let reply = post(&one, "/v1/chat/completions", &body).await;
        assert_eq!(
            (reply.status, &reply.body["error"]["param"]),
            (400, &json!(param)),
            "{}",
            reply.body
        );
    }
    let chat = |model: &str, image: &str| json!({"model": model, "messages": [{"role": "user", "content": "hi", "images": [image]}]});
    for (body, words) in [
        (chat(MODEL, "???"), "messages[0].images: must be base64"),
        (chat(MODEL, "aGFsbG8="), "messages[0].images: must be a PNG"),
        (chat("tinyllama", &base64(&image(1, 50))), "does not support images"),
    ] {
        let reply = post(&one, "/api/chat", &body).await;
        let error = reply.body["error"].as_str().unwrap_or_default();
        assert!(reply.status == 400 && error.contains(words), "{} {error}", reply.status);
    }
    assert_eq!(redis.cli(&["KEYS", "jarvis:*:s:*"]).trim(), "", "nothing is left");
}

#[tokio::test]
async fn images_count_on_their_owner_s_budget_expire_with_the_session_and_go_with_it() {
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_CALLER_MIB", "5")];
    let Pair { replicas: [one, two], ollama: _ollama, redis } = fleet(&settings).await;
    let [first, second, anonymous] = [(); 3].map(|()| id());
    let of_user = async |replica: &Process, body: &Value| {
        let request = http().post(format!("{}{CHAT}", replica.url)).bearer_auth(token("alice"));
        send(request.json(body)).await
    };
    let large = image(1, 4 << 20);
    let reply = of_user(&one, &asked(&first, "[[images]] what?", &[&large])).await;
    assert_eq!(reply.body["response"], named(&[&large]), "{}", reply.body);
    let reply = of_user(&two, &asked(&second, "hi", &[&image(2, 2 << 20)])).await;
    assert_eq!((reply.status, &reply.body["code"]), (429, &json!("quota_exceeded")));
    assert_eq!(images_key(&redis, &second), None);
    let key = images_key(&redis, &first).expect("images");
    assert_eq!(redis.cli(&["TTL", &key]).trim(), "-1", "a user's session does not expire");
    let path = format!("{}/api/v1/chat/sessions/{first}", two.url);
    let reply = send(http().delete(&path).bearer_auth(token("alice"))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(images_key(&redis, &first), None, "they go with the session");
    let reply = of_user(&two, &asked(&second, "hi", &[&image(2, 2 << 20)])).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let reply = post(&one, CHAT, &asked(&anonymous, "hi", &[&image(3, 300)])).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let key = images_key(&redis, &anonymous).expect("images");
    let ttl = |key: &str| redis.cli(&["TTL", key]).trim().parse::<i64>().expect("seconds");
    let of_session = ttl(key.trim_end_matches(":images"));
    assert!(of_session > 2_000_000 && (ttl(&key) - of_session).abs() < 5, "{of_session}");
}

#[tokio::test]
async fn a_failover_that_lost_a_turn_with_its_images_brings_both_back() {
    let fleet = fleet(&[]).await;
    let [one, two] = &fleet.replicas;
    let (session, shown) = (id(), image(1, 400_000));
    let begin = post(one, CHAT, &json!({"message": "before", "session_id": session})).await;
    assert_eq!(begin.status, 200);
    let (mut watching, _) = Socket::open(two, &format!("/ws?session_id={session}")).await;
    fleet.redis.remember();
    let mut body = asked(&session, "[[rate=25]] [[images]] what is it?", &[&shown]);
    body["stream"] = json!(true);
    let request = http().post(format!("{}{CHAT}", one.url)).json(&body).send();
    let _stream = request.await.expect("a stream");
    let mut events = watching.until("stream_chunk").await;
    fleet.redis.lose_what_came_since();
    events.extend(watching.until("stream_end").await);
    let end = events.last().expect("an end");
    assert_eq!(end["full_response"], named(&[&shown]));
    // The bytes are there again, and stay as long as the session; a repeat of the same image takes
    // nothing away.
    let named_once = async || {
        let Some(key) = images_key(&fleet.redis, &session) else { return false };
        let left: i64 = fleet.redis.cli(&["TTL", &key]).trim().parse().expect("seconds");
        let count = fleet.redis.cli(&["HGET", &key, &format!("{}#", sha256_hex(&shown))]);
        let is_whole = fleet.redis.cli(&["HEXISTS", &key, &sha256_hex(&shown)]);
        left > 3600 && count.trim() == "1" && is_whole.trim() == "1"
    };
    assert!(eventually(LIMIT, named_once).await);
    // For the next turn, too.
    let again = async || {
        let reply = post(two, CHAT, &asked(&session, "[[images]] again?", &[])).await;
        reply.body["response"] == named(&[&shown])
    };
    assert!(eventually(LIMIT, again).await);
}

#[tokio::test]
async fn a_response_sees_images_and_so_does_the_one_that_goes_on_with_it() {
    const RESPONSES: &str = "/v1/responses";
    let fleet = fleet(&[]).await;
    let [one, two] = &fleet.replicas;
    let (first, second) = (image(1, 300_000), image(2, 90_000));
    let part = |image: &[u8]| {
        let url = format!("data:image/png;base64,{}", base64(image));
        json!({"type": "input_image", "detail": "auto", "image_url": url})
    };
    let asked = |image: &[u8]| {
        let text = json!({"type": "input_text", "text": "[[images]] what is it?"});
        json!({"model": MODEL, "temperature": 0,
            "input": [{"role": "user", "content": [text, part(image)]}]})
    };
    let text = |reply: &Reply| reply.body["output"][0]["content"][0]["text"].clone();
    let begun = post(one, RESPONSES, &asked(&first)).await;
    assert_eq!(text(&begun), named(&[&first]), "{}", begun.body);
    let id = begun.body["id"].as_str().expect("an id");
    let mut next = asked(&second);
    next["previous_response_id"] = json!(id);
    let next = post(two, RESPONSES, &next).await;
    assert_eq!(text(&next), named(&[&first, &second]), "{}", next.body);
    let items = get(two, &format!("{RESPONSES}/{id}/input_items")).await.body;
    let content = &items["data"][0]["content"];
    assert_eq!(
        (&content[0]["type"], &content[1]["type"]),
        (&json!("input_text"), &json!("input_image"))
    );
    assert_eq!(content.as_array().map(Vec::len), Some(2), "{items}");
    // Deleted, a response takes its images along; what follows has its own.
    let images = || fleet.redis.cli(&["KEYS", "jarvis:*:images"]).lines().count();
    assert_eq!(images(), 2);
    let deleted = send(http().delete(format!("{}{RESPONSES}/{id}", one.url))).await;
    assert_eq!((deleted.status, images()), (200, 1), "{}", deleted.body);
    let mut third = asked(&image(3, 4 << 20));
    third["previous_response_id"] = next.body["id"].clone();
    let refused = post(one, RESPONSES, &third).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(refused.body["error"]["param"], "previous_response_id", "{}", refused.body);
    assert_eq!(images(), 1, "a refused request leaves nothing");
}

#[tokio::test]
async fn a_request_that_is_refused_reads_nothing_of_the_response_that_it_goes_on_with() {
    const RESPONSES: &str = "/v1/responses";
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_USER_TURNS_PER_MINUTE", "4")];
    let Pair { replicas: [one, _two], ollama: _ollama, redis } = fleet(&settings).await;
    let alice = token("alice");
    let ask = async |body: &Value, key: Option<&str>| {
        let mut request = http().post(format!("{}{RESPONSES}", one.url)).bearer_auth(&alice);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        begin_timing(&redis);
        let reply = send(request.json(body)).await;
        let calls: Vec<_> = timed_calls(&redis).into_iter().map(|(call, _)| call).collect();
        (reply, move |start: &str| calls.iter().any(|call| call.starts_with(start)))
    };
    let url = format!("data:image/png;base64,{}", base64(&image(1, 2 << 20)));
    let text = json!({"type": "input_text", "text": "[[images]] what is it?"});
    let content = json!([text, {"type": "input_image", "detail": "auto", "image_url": url}]);
    let first = json!({"model": MODEL, "input": [{"role": "user", "content": content}]});
    let (first, _) = ask(&first, None).await;
    assert_eq!(first.status, 200, "{}", first.body);
    let id = first.body["id"].as_str().expect("an id");
    let next = |model: &str, input: Value| json!({"model": model, "input": input, "previous_response_id": id});
    let (unknown, called) = ask(&next("nope", json!("and now?")), None).await;
    assert_eq!(unknown.status, 404, "{}", unknown.body);
    assert!(!called("jarvis_messages_") && !called("jarvis_image_"));
    // Whether its images can be used shows once its messages are known.
    let (blind, called) = ask(&next("tinyllama", json!("and now?")), None).await;
    assert_eq!(blind.status, 400, "{}", blind.body);
    assert!(called("jarvis_messages_") && !called("jarvis_image_"));
    let output = json!([{"type": "function_call_output", "call_id": "nope", "output": "x"}]);
    let (unasked, called) = ask(&next(MODEL, output), None).await;
    assert_eq!(unasked.body["error"]["param"], "input[0].call_id", "{}", unasked.body);
    assert!(!called("jarvis_image_"));
    let large = base64(&image(3, 3 << 20));
    let part =
        json!({"type": "input_image", "image_url": format!("data:image/png;base64,{large}")});
    let (too_large, called) =
        ask(&next(MODEL, json!([{"role": "user", "content": [part]}])), None).await;
    assert_eq!(too_large.body["error"]["param"], "previous_response_id", "{}", too_large.body);
    assert!(!called("jarvis_image_"));
    // One that is accepted reads them, and its repeat is found where another turn is refused.
    let key = Uuid::new_v4().to_string();
    let accepted = next(MODEL, json!("[[images]] and now?"));
    let (second, called) = ask(&accepted, Some(&key)).await;
    assert_eq!(second.status, 200, "{}", second.body);
    assert!(called("jarvis_messages_") && called("jarvis_image_"));
    let mut limited = None;
    for _ in 0..8 {
        let (reply, called) = ask(&next(MODEL, json!("[[tokens=1]] more")), None).await;
        if reply.status == 429 {
            limited = Some(called);
            break;
        }
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let called = limited.expect("no limit of turns");
    assert!(!called("jarvis_messages_") && !called("jarvis_image_"));
    let (repeated, _) = ask(&accepted, Some(&key)).await;
    assert_eq!((repeated.status, &repeated.body["id"]), (200, &second.body["id"]));
}
