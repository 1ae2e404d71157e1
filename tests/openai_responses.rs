//! OpenAI's responses, event by event, on real replicas.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use support::client::{get, http, post, send, with};
use support::ended_streams::revoked_and_drained;
use support::eventually;
use support::fleet::{Fleet, ready_replicas};
use support::fronts::{a_client_that_leaves_stops_its_model, ada_was_asked};
use support::host::{requests, stat};
use support::metrics::until_metric_line;
use support::process::{LIMIT, Process, ollama_sim};
use support::redis::{RedisSentinels, RedisServer};
use support::responses::{
    MODEL, RESPONSES, asked, created, ended, events_of, expected, id_of,
    is_resumed_after_every_event, joined, kinds, output_text, refused, resumed, retrieved,
    streamed, until_pieces, whole,
};
use support::samples::RESPONSE_EVENTS;
use support::tokens::{SECRET, token};
use uuid::Uuid;

/// The pieces of its text that the client of a background response has when it leaves.
const PIECES_BEFORE_LEAVING: usize = 20;

/// Begins a response in the background, whose client leaves in the middle of its stream. Returns its
/// identifier.
async fn begun_and_left(replica: &Process, request: &Value) -> String {
    let request = with(with(request.clone(), "background", json!(true)), "stream", json!(true));
    let request = http().post(format!("{}{RESPONSES}", replica.url)).json(&request);
    until_pieces(request, PIECES_BEFORE_LEAVING).await
}

/// Opens a stream of a running response after each number below `count`, at these replicas in turn.
async fn opened_after_every_number(
    replicas: [&Process; 2],
    id: &str,
    count: usize,
) -> Vec<reqwest::Response> {
    let client = http();
    let open = |after: usize| {
        let url = &replicas[after % 2].url;
        client.get(format!("{url}{RESPONSES}/{id}?stream=true&starting_after={after}")).send()
    };
    let opened = join_all((0..count).map(open)).await;
    // All of them were there before the end, most of them before their first event.
    assert_eq!(retrieved(replicas[0], id).await.body["status"], "in_progress");
    opened.into_iter().map(|response| response.expect("a response")).collect()
}

/// Reads each of these streams to its end.
async fn read_to_their_ends(opened: Vec<reqwest::Response>) -> Vec<Vec<Value>> {
    let read = opened.into_iter().map(async |response| {
        assert_eq!(response.status(), 200);
        events_of(&response.text().await.expect("a body"))
    });
    join_all(read).await
}

/// Checks that the streams after each number had exactly the rest of these events, and that none of the
/// numbers is missing.
fn are_the_rests_after_every_number(rests: Vec<Vec<Value>>, all: &[Value]) {
    assert!((30..rests.len()).contains(&all.len()), "{} of {}", all.len(), rests.len());
    for (after, rest) in rests.into_iter().enumerate() {
        assert_eq!(rest, all.get(after + 1..).unwrap_or_default(), "after {after}");
    }
}

/// A background response, and the replicas that it is read from; the first one writes it.
struct Background {
    replicas: Vec<Process>,
    ollama: Process,
    id: String,
}

impl Background {
    /// Begins it at the first of so many replicas over this Redis, whose host has these arguments. Its
    /// client leaves.
    async fn begin(count: usize, redis_url: &str, host: &[&str], request: &Value) -> Self {
        let ollama = ollama_sim(host);
        let settings = [("JARVIS_LEASE_MS", "1000")];
        let replicas = ready_replicas(count, redis_url, &ollama.url, &settings).await;
        let id = begun_and_left(&replicas[0], request).await;
        Self { replicas, ollama, id }
    }

    /// Has a client read it after its first event at the second replica, which is connected when `fault`
    /// begins. Returns the events that the client gets.
    async fn watched_during(&self, fault: impl Future<Output = ()>) -> Vec<Value> {
        let path = format!("{RESPONSES}/{}?stream=true&starting_after=0", self.id);
        let request = http().get(format!("{}{path}", self.replicas[1].url));
        let stream = request.send().await.expect("a response");
        let (mut watched, ()) = tokio::join!(read_to_their_ends(vec![stream]), fault);
        watched.remove(0)
    }

    /// Has it read to its end at the second replica while `fault` happens, and then from its beginning
    /// and after each event at the third one. Returns the response, which has this text.
    async fn is_whole_after(&self, text: &str, fault: impl Future<Output = ()>) -> Value {
        let watched = self.watched_during(fault).await;
        let all = resumed(&self.replicas[2], &self.id, None).await;
        assert_eq!(watched, all[1..]);
        assert_eq!(joined(&all), text);
        is_resumed_after_every_event(&self.replicas[2], &self.id, &all).await;
        whole(&all)
    }
}

#[tokio::test]
async fn a_response_is_the_models_answer_with_its_usage_and_is_kept() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let request = json!({"model": "TinyLlama", "instructions": "be brief", "temperature": 0,
        "input": [{"role": "user", "content": "my name is Ada"},
            {"role": "assistant", "content": "hello Ada"},
            {"role": "user", "content": [{"type": "input_text", "text": "[[tokens=20]] who am I?"}]}],
        "metadata": {"a": "b"}, "user": "me", "max_output_tokens": 1000, "top_p": 0.5});
    let reply = post(&fleet.replicas[0], RESPONSES, &request).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.body["object"], "response");
    assert_eq!(
        (&reply.body["status"], &reply.body["model"]),
        (&json!("completed"), &json!("TinyLlama"))
    );
    for name in ["instructions", "metadata", "user", "max_output_tokens", "top_p", "temperature"] {
        assert_eq!(
            reply.body[name].as_f64().map_or_else(|| reply.body[name].clone(), Into::into),
            request[name].as_f64().map_or_else(|| request[name].clone(), Into::into),
            "{name}"
        );
    }
    assert!(!output_text(&reply.body).is_empty());
    let (usage, names) = (&reply.body["usage"], ["input_tokens", "output_tokens"]);
    let sent = ada_was_asked(&fleet.ollama, "[[tokens=20]] who am I?", usage, names).await;
    assert_eq!(sent["options"]["top_p"].as_f64(), Some(0.5));
    let again = retrieved(&fleet.replicas[1], &id_of(&reply.body)).await;
    assert_eq!((again.status, again.body), (200, reply.body));
}

#[tokio::test]
async fn a_streamed_response_has_openais_events_and_is_resumed_after_each_at_another_replica() {
    let fleet = Fleet::start(2, &["--rate", "200"], &[]).await;
    let events = created(&fleet.replicas[0], &asked("[[tokens=40]] tell me")).await;
    assert_eq!(kinds(&events), RESPONSE_EVENTS);
    let response = whole(&events);
    assert!(events.len() > 20, "piece by piece");
    assert_eq!(joined(&events), expected("[[tokens=40]] tell me"));
    assert_eq!(output_text(&response), joined(&events));
    let id = id_of(&response);
    assert_eq!(retrieved(&fleet.replicas[1], &id).await.body, response);
    is_resumed_after_every_event(&fleet.replicas[1], &id, &events).await;
}

#[tokio::test]
async fn a_response_without_a_stream_is_streamed_later_and_a_running_one_is_joined() {
    let fleet = Fleet::start(2, &["--rate", "60"], &[]).await;
    let request = with(asked("[[tokens=60]] go on"), "background", json!(true));
    let reply = post(&fleet.replicas[0], RESPONSES, &request).await;
    assert_eq!((reply.status, &reply.body["status"]), (200, &json!("queued")));
    let id = id_of(&reply.body);
    let begun = async || retrieved(&fleet.replicas[1], &id).await.body["status"] == "in_progress";
    assert!(eventually(LIMIT, begun).await, "it does not begin");
    // Joined at several places while it runs: each client gets exactly what follows.
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let (all, created, begun, tenth, late) = tokio::join!(
        resumed(one, &id, None),
        resumed(two, &id, Some(0)),
        resumed(two, &id, Some(1)),
        resumed(one, &id, Some(10)),
        resumed(two, &id, Some(100_000)),
    );
    let response = whole(&all);
    assert_eq!(all[0]["response"]["status"], "queued");
    assert_eq!((&created[..], &begun[..]), (&all[1..], &all[2..]));
    assert_eq!((&tenth[..], late.len()), (&all[11..], 0));
    assert_eq!(joined(&all), expected("[[tokens=60]] go on"));
    assert_eq!(response["status"], "completed");
    is_resumed_after_every_event(two, &id, &all).await;
}

#[tokio::test]
async fn a_running_response_is_resumed_after_every_number_at_each_replica() {
    let fleet = Fleet::start(2, &["--rate", "20"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let request = with(asked("[[tokens=60]] go on"), "background", json!(true));
    let id = id_of(&post(one, RESPONSES, &request).await.body);
    let begun = async || retrieved(two, &id).await.body["status"] == "in_progress";
    assert!(eventually(LIMIT, begun).await, "it does not begin");
    let opened = opened_after_every_number([one, two], &id, 100).await;
    let (all, rests) = tokio::join!(resumed(two, &id, None), read_to_their_ends(opened));
    assert_eq!(whole(&all)["status"], "completed");
    are_the_rests_after_every_number(rests, &all);
}

#[tokio::test]
async fn streams_after_every_number_get_exactly_the_rest_although_their_writer_is_killed() {
    let redis = RedisServer::start();
    let question = "[[tokens=100]] hold on";
    let it = Background::begin(3, &redis.url(), &["--rate", "20"], &asked(question)).await;
    let [writing, one, two] = &*it.replicas else { panic!("three replicas") };
    let opened = opened_after_every_number([one, two], &it.id, 200).await;
    writing.kill();
    let rests = read_to_their_ends(opened).await;
    let all = resumed(two, &it.id, None).await;
    assert_eq!(
        (whole(&all)["status"].as_str(), joined(&all)),
        (Some("completed"), expected(question))
    );
    are_the_rests_after_every_number(rests, &all);
}

#[tokio::test]
async fn a_background_response_goes_on_without_a_client_while_others_are_cancelled() {
    let fleet = Fleet::start(2, &["--rate", "40"], &[]).await;
    let url = format!("{}{RESPONSES}", fleet.replicas[0].url);
    let mut ids = Vec::new();
    for background in [true, false] {
        let request = with(asked("[[tokens=80]] go on"), "stream", json!(true));
        let request = with(request, "background", json!(background));
        ids.push(until_pieces(http().post(&url).json(&request), 1).await);
    }
    let (kept, left) =
        tokio::join!(ended(&fleet.replicas[1], &ids[0]), ended(&fleet.replicas[1], &ids[1]));
    assert_eq!(kept["status"], "completed", "{kept}");
    assert_eq!(output_text(&kept), expected("[[tokens=80]] go on"));
    assert_eq!(left["status"], "cancelled", "{left}");
    assert!(output_text(&left).len() < output_text(&kept).len());
    let events = resumed(&fleet.replicas[1], &ids[1], None).await;
    assert_eq!(events.last().expect("an end")["type"], "response.incomplete");
    assert_eq!(whole(&events)["status"], "cancelled");
}

#[tokio::test]
async fn a_response_whose_client_goes_away_stops_its_model_streamed_or_not() {
    a_client_that_leaves_stops_its_model(RESPONSES, &asked("[[tokens=1000]] go on")).await;
}

#[tokio::test]
async fn a_background_response_is_resumed_at_a_third_replica_after_its_writer_was_killed() {
    let redis = RedisServer::start();
    let question = "[[tokens=120]] hold on";
    let it = Background::begin(3, &redis.url(), &["--rate", "40"], &asked(question)).await;
    let text = expected(question);
    let response = it.is_whole_after(&text, async { it.replicas[0].kill() }).await;
    assert_eq!(
        (&response["status"], &response["usage"]["output_tokens"]),
        (&json!("completed"), &json!(120))
    );
    let unbroken = post(&it.replicas[1], RESPONSES, &asked(question)).await.body;
    assert_eq!(response["usage"], unbroken["usage"], "as one that nothing broke");
}

#[tokio::test]
async fn an_anonymous_response_in_the_background_waits_while_it_is_retrieved_at_any_replica() {
    let settings = [
        ("JARVIS_ABANDON_AFTER", "2"),
        ("JARVIS_QUEUE_LIMIT", "5"),
        ("JARVIS_OLLAMA_SLOTS", "1"),
        ("JARVIS_JWT_SECRET", SECRET),
    ];
    let fleet = Fleet::start(2, &["--rate", "20"], &settings).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let background = async |question: &str, user: Option<&str>| {
        let body = with(asked(question), "background", json!(true));
        let request = http().post(format!("{}{RESPONSES}", one.url)).json(&body);
        let request = match user {
            Some(user) => request.bearer_auth(token(user)),
            None => request,
        };
        let reply = send(request).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        id_of(&reply.body)
    };
    let abandoned =
        |count: u32| format!("jarvis_turn_failures_total{{code=\"abandoned\"}} {count}");
    let running = background("[[tokens=4000]] on", None).await;
    let runs = async || retrieved(two, &running).await.body["status"] == "in_progress";
    assert!(eventually(LIMIT, runs).await, "it does not begin");
    // Turns of users wait for ever: with them, the queue stays over half full.
    for user in ["alice", "bob", "carol"] {
        background("[[tokens=1]] hi", Some(user)).await;
    }
    let polled = background("[[tokens=1]] hi", None).await;
    background("[[tokens=1]] hi", None).await;
    // More than twice the time after which a turn that is alone ends.
    for _ in 0..20 {
        let reply = retrieved(two, &polled).await;
        assert_eq!(reply.body["status"], "queued", "{}", reply.body);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    until_metric_line(one, &abandoned(1)).await;
    // Its client is gone, too.
    until_metric_line(one, &abandoned(2)).await;
    let failed = retrieved(two, &polled).await.body;
    assert_eq!(
        (&failed["status"], &failed["error"]["type"]),
        (&json!("failed"), &json!("abandoned"))
    );
}

#[tokio::test]
async fn a_background_response_survives_a_failover_of_redis_with_its_writer() {
    let redis = RedisSentinels::start();
    let question = "[[tokens=200]] hold on";
    let it = Background::begin(3, &redis.url(), &["--rate", "30"], &asked(question)).await;
    let text = expected(question);
    // Nobody asks for this one before its end.
    let left_alone = "[[tokens=200]] alone";
    let alone = begun_and_left(&it.replicas[0], &asked(left_alone)).await;
    let response = it.is_whole_after(&text, async {
        redis.primary.kill();
        // The writer has more of both than Redis has when it dies, before there is a new primary.
        let at_failover = stat(&it.ollama, "tokens").await;
        let goes_on = async || stat(&it.ollama, "tokens").await >= at_failover + 80;
        assert!(eventually(LIMIT, goes_on).await, "the model stops");
        it.replicas[0].kill();
    });
    assert_eq!(response.await["status"], "completed");
    let written = async || stat(&it.ollama, "completed").await >= 2;
    assert!(eventually(LIMIT, written).await, "without a client it does not go on");
    let all = resumed(&it.replicas[2], &alone, None).await;
    assert_eq!(whole(&all)["status"], "completed");
    assert_eq!(joined(&all), expected(left_alone));
    for after in [0, 1, PIECES_BEFORE_LEAVING] {
        let rest = resumed(&it.replicas[1], &alone, Some(after as u64)).await;
        assert_eq!(rest, all[after + 1..], "after {after}");
    }
}

/// Kills the writer of a response whose answer starts again, and checks that no client gets a splice of two.
/// Returns the events of the answer, and the response.
async fn started_again(host: &[&str], request: &Value) -> (Vec<Value>, Value) {
    let redis = RedisServer::start();
    let it = Background::begin(2, &redis.url(), host, request).await;
    let Background { replicas, id, .. } = &it;
    let watched = it.watched_during(async { replicas[0].kill() }).await;
    let error = watched.last().expect("an end");
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("upstream_interrupted")));
    let last = &watched[watched.len() - 2]["sequence_number"];
    assert_eq!(&error["sequence_number"], last);
    let response = ended(&replicas[1], id).await;
    assert_eq!(response["status"], "completed", "{response}");
    let all = resumed(&replicas[1], id, Some(1)).await;
    assert_eq!(all[0]["sequence_number"], 1_000_002);
    assert_eq!(joined(&all), output_text(&response));
    let path = format!("{RESPONSES}/{id}?stream=true&starting_after={last}");
    let reply = get(&replicas[1], &path).await;
    assert_eq!(refused(&reply), (409, None, "answer_restarted"));
    (all, response)
}

#[tokio::test]
async fn an_answer_that_started_again_has_other_numbers_and_is_never_spliced() {
    let question = "[[tokens=100 think=10]] hold on";
    let request = json!({"model": "thinker", "input": question, "temperature": 0,
        "reasoning": {"effort": "low"}});
    started_again(&["--models", "thinker", "--rate", "40"], &request).await;
}

#[tokio::test]
async fn an_answer_with_a_call_that_started_again_has_its_call_once() {
    let question = "[[tokens=100]] [[call=weather]] hold on";
    let tool = json!({"type": "function", "name": "weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}}});
    let request = with(asked(question), "tools", json!([tool]));
    let (events, response) = started_again(&["--rate", "40"], &request).await;
    assert_eq!(output_text(&response), expected(question));
    let output = response["output"].as_array().expect("items");
    let types: Vec<_> = output.iter().map(|item| &item["type"]).collect();
    assert_eq!(types, ["message", "function_call"]);
    assert_eq!(output[1]["arguments"], r#"{"city":"word"}"#);
    let done = |event: &&Value| event["type"] == "response.function_call_arguments.done";
    assert_eq!(events.iter().filter(done).count(), 1);
}

#[tokio::test]
async fn a_response_is_cancelled_once_and_deleted_for_good() {
    let fleet = Fleet::start(2, &["--rate", "20"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let request = with(asked("[[tokens=400]] go on"), "background", json!(true));
    let id = id_of(&post(one, RESPONSES, &request).await.body);
    let begun = async || retrieved(two, &id).await.body["status"] == "in_progress";
    assert!(eventually(LIMIT, begun).await, "it does not begin");
    let path = format!("{RESPONSES}/{id}");
    let cancelled = post(two, &format!("{path}/cancel"), &json!({})).await;
    assert_eq!((cancelled.status, &cancelled.body["status"]), (200, &json!("cancelled")));
    let stopped = async || stat(&fleet.ollama, "running").await == 0;
    assert!(eventually(LIMIT, stopped).await, "its model runs");
    let again = post(one, &format!("{path}/cancel"), &json!({})).await;
    assert_eq!((again.status, again.body), (200, cancelled.body));
    let deleted = send(http().delete(format!("{}{path}", one.url))).await;
    assert_eq!(deleted.body, json!({"id": id, "object": "response", "deleted": true}));
    for reply in [
        retrieved(two, &id).await,
        get(two, &format!("{path}?stream=true")).await,
        get(two, &format!("{path}/input_items")).await,
        post(two, &format!("{path}/cancel"), &json!({})).await,
        send(http().delete(format!("{}{path}", two.url))).await,
    ] {
        assert_eq!(refused(&reply), (404, None, "response_not_found"));
    }
    let synchronous = post(one, RESPONSES, &asked("[[tokens=2]] hi")).await.body;
    let path = format!("{RESPONSES}/{}/cancel", id_of(&synchronous));
    let reply = post(two, &path, &json!({})).await;
    assert_eq!(refused(&reply), (400, Some("response_id"), "invalid_value"));
}

#[tokio::test]
async fn another_callers_response_is_like_one_that_never_existed() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let url = |path: &str| format!("{}{path}", fleet.replicas[0].url);
    let of = |request: RequestBuilder, user: &str| {
        if user.is_empty() { request } else { request.bearer_auth(token(user)) }
    };
    let create = |user: &'static str| {
        send(of(http().post(url(RESPONSES)).json(&asked("[[tokens=3]] mine")), user))
    };
    let (alices, nobodys) = (id_of(&create("alice").await.body), id_of(&create("").await.body));
    let never = format!("resp_{}", Uuid::new_v4().simple());
    let nil = format!("resp_{}", Uuid::nil().simple());
    for (id, user) in [
        (&alices, "bob"),
        (&alices, ""),
        (&nobodys, "alice"),
        (&never, "alice"),
        (&never, ""),
        (&nil, ""),
        (&"nope".to_owned(), ""),
    ] {
        let path = format!("{RESPONSES}/{id}");
        for request in [
            http().get(url(&path)),
            http().get(url(&format!("{path}?stream=true&starting_after=1"))),
            http().get(url(&format!("{path}/input_items"))),
            http().post(url(&format!("{path}/cancel"))),
            http().delete(url(&path)),
        ] {
            let reply = send(of(request, user)).await;
            assert_eq!(refused(&reply), (404, None, "response_not_found"), "{id} of {user}");
        }
        let next = with(asked("[[tokens=3]] next"), "previous_response_id", json!(id));
        let reply = send(of(http().post(url(RESPONSES)).json(&next), user)).await;
        let wanted = (400, Some("previous_response_id"), "previous_response_not_found");
        assert_eq!(refused(&reply), wanted, "{id} of {user}");
    }
    for (id, user) in [(&alices, "alice"), (&nobodys, "")] {
        let reply = send(of(http().get(url(&format!("{RESPONSES}/{id}"))), user)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    // A chat completion is no response, although it is such a session, too.
    let key = Uuid::new_v4().to_string();
    let completion = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    let request = http().post(url("/v1/chat/completions")).header("idempotency-key", &key);
    assert_eq!(send(request.json(&completion)).await.status, 200);
    let sessions = fleet.redis.cli(&["KEYS", "jarvis:*:s:????????-????-????-????-????????????"]);
    let mut found = 0;
    for session in sessions.lines().filter_map(|key| key.trim().rsplit(':').next()) {
        let id = format!("resp_{}", session.replace('-', ""));
        found += usize::from(retrieved(&fleet.replicas[0], &id).await.status == 200);
    }
    assert_eq!(found, 1, "{sessions}");
    // A user's responses are on the user's budget, and are no sessions of the list.
    let list = send(of(http().get(url("/api/v1/chat/sessions")), "alice")).await;
    assert_eq!(list.body["sessions"], json!([]));
}

#[tokio::test]
async fn a_response_goes_on_with_the_conversation_of_an_earlier_one() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let first = with(asked("[[tokens=4]] one"), "instructions", json!("be brief"));
    let first = post(one, RESPONSES, &first).await.body;
    let second = with(asked("[[tokens=4]] two"), "previous_response_id", first["id"].clone());
    let second = post(two, RESPONSES, &second).await.body;
    assert_eq!(second["previous_response_id"], first["id"]);
    let input = json!([{"role": "developer", "content": "now long"},
        {"role": "user", "content": "[[tokens=4]] three"}]);
    let third = json!({"model": MODEL, "input": input, "previous_response_id": second["id"]});
    let third = post(one, RESPONSES, &third).await.body;
    assert_eq!(third["status"], "completed", "{third}");
    let sent = requests(&fleet.ollama, "/api/chat").await.pop().expect("a request");
    let texts: Vec<_> = sent["messages"]
        .as_array()
        .expect("messages")
        .iter()
        .map(|message| message["content"].as_str().expect("text").to_owned())
        .collect();
    assert_eq!(
        texts,
        [
            "[[tokens=4]] one".to_owned(),
            output_text(&first),
            "[[tokens=4]] two".to_owned(),
            output_text(&second),
            "now long".to_owned(),
            "[[tokens=4]] three".to_owned()
        ],
        "all but the instructions of before"
    );
    // The items are those of its own input.
    let path = format!("{RESPONSES}/{}/input_items", id_of(&third));
    let all = get(two, &format!("{path}?order=asc")).await.body;
    let items = all["data"].as_array().expect("items");
    let given: Vec<_> =
        items.iter().map(|item| (&item["role"], &item["content"][0]["text"])).collect();
    assert_eq!(
        given,
        [(&json!("system"), &json!("now long")), (&json!("user"), &json!("[[tokens=4]] three"))]
    );
    assert_eq!((&all["first_id"], &all["has_more"]), (&items[0]["id"], &json!(false)));
    let newest = get(two, &format!("{path}?limit=1")).await.body;
    assert_eq!((&newest["data"][0], &newest["has_more"]), (&items[1], &json!(true)));
    let after = newest["last_id"].as_str().expect("an id");
    let rest = get(two, &format!("{path}?limit=1&after={after}")).await.body;
    assert_eq!((&rest["data"], &rest["has_more"]), (&json!([items[0]]), &json!(false)));
    for (query, param) in [
        ("after=nope", "after"),
        ("limit=0", "limit"),
        ("order=up", "order"),
        ("include=x", "include"),
        ("colour=1", "colour"),
    ] {
        let reply = get(two, &format!("{path}?{query}")).await;
        assert_eq!((reply.status, refused(&reply).1), (400, Some(param)), "{query}");
    }
    // The first one may be deleted: what follows has its own copy.
    let deleted = send(http().delete(format!("{}{RESPONSES}/{}", one.url, id_of(&first)))).await;
    assert_eq!(deleted.status, 200);
    let fourth = with(asked("[[tokens=4]] four"), "previous_response_id", third["id"].clone());
    assert_eq!(post(one, RESPONSES, &fourth).await.status, 200);
    // One that runs has no answer to go on with.
    let running = with(asked("[[tokens=400 rate=20]] long"), "background", json!(true));
    let running = post(one, RESPONSES, &running).await.body;
    let next = with(asked("next"), "previous_response_id", running["id"].clone());
    let reply = post(two, RESPONSES, &next).await;
    assert_eq!(refused(&reply), (400, Some("previous_response_id"), "invalid_value"));
}

#[tokio::test]
async fn a_query_for_a_response_that_is_not_supported_is_refused_by_its_field() {
    let fleet = Fleet::start(1, &["--rate", "2000"], &[]).await;
    let replica = &fleet.replicas[0];
    let id = id_of(&post(replica, RESPONSES, &asked("[[tokens=3]] hi")).await.body);
    let path = format!("{RESPONSES}/{id}");
    for (query, param, code) in [
        ("include=x", "include", "unsupported_value"),
        ("stream=true&include[]=x", "include", "unsupported_value"),
        ("stream=true&include_obfuscation=true", "include_obfuscation", "unsupported_value"),
        ("stream=up", "stream", "invalid_type"),
        ("starting_after=1", "starting_after", "invalid_value"),
        ("stream=true&starting_after=-1", "starting_after", "invalid_value"),
        ("colour=1", "colour", "unknown_parameter"),
    ] {
        let reply = get(replica, &format!("{path}?{query}")).await;
        assert_eq!(refused(&reply), (400, Some(param), code), "{query}");
    }
    for query in ["include_obfuscation=false", "stream=true&include_obfuscation=false"] {
        assert_eq!(get(replica, &format!("{path}?{query}")).await.status, 200, "{query}");
    }
}

#[tokio::test]
async fn a_tool_is_called_and_its_output_is_answered() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let tool = json!({"type": "function", "name": "weather", "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": false});
    let request = with(asked("[[call=weather]] how is it?"), "tools", json!([tool]));
    let events = created(one, &request).await;
    let response = whole(&events);
    assert_eq!(
        kinds(&events)[2..],
        [
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ],
        "{events:?}"
    );
    assert_eq!(response["tools"], json!([tool]));
    let call = &response["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("weather")));
    let id = id_of(&response);
    is_resumed_after_every_event(two, &id, &events).await;
    let output = json!({"type": "function_call_output", "call_id": call["call_id"],
        "output": "sunny"});
    let next = json!({"model": MODEL, "input": [output], "previous_response_id": id,
        "tools": [tool]});
    let reply = post(two, RESPONSES, &next).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(!output_text(&reply.body).is_empty(), "{}", reply.body);
    let none = json!({"model": MODEL, "input": [{"type": "function_call_output",
        "call_id": "nope", "output": "x"}], "previous_response_id": id});
    let reply = post(two, RESPONSES, &none).await;
    assert_eq!(refused(&reply), (400, Some("input[0].call_id"), "invalid_value"));
}

#[tokio::test]
async fn a_repeat_with_its_key_is_the_same_response() {
    let fleet = Fleet::start(2, &["--rate", "60"], &[]).await;
    let key = Uuid::new_v4().to_string();
    let request = with(asked("[[tokens=30]] once"), "background", json!(true));
    let ask = |replica: &Process, request: &Value| {
        let url = format!("{}{RESPONSES}", replica.url);
        http().post(url).header("idempotency-key", &key).json(request)
    };
    let first = send(ask(&fleet.replicas[0], &request)).await.body;
    let again = send(ask(&fleet.replicas[1], &request)).await.body;
    assert_eq!((&again["id"], &again["created_at"]), (&first["id"], &first["created_at"]));
    let events =
        streamed(ask(&fleet.replicas[1], &with(request.clone(), "stream", json!(true)))).await;
    let response = whole(&events);
    assert_eq!(response["id"], first["id"]);
    assert_eq!(joined(&events), expected("[[tokens=30]] once"));
    assert_eq!(send(ask(&fleet.replicas[0], &request)).await.body, response);
    let other = send(ask(&fleet.replicas[0], &asked("another"))).await;
    assert_eq!(refused(&other).2, "idempotency_key_reused");
}

#[tokio::test]
async fn a_response_is_kept_a_day_after_its_end_and_a_users_until_it_is_deleted() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let url = format!("{}{RESPONSES}", fleet.replicas[0].url);
    let tool = json!({"type": "function", "name": "weather"});
    let ttl = |id: &str| {
        let id: Uuid = id.trim_start_matches("resp_").parse().expect("a UUID");
        let key = fleet.redis.cli(&["KEYS", &format!("jarvis:*:s:{id}")]);
        fleet.redis.cli(&["TTL", key.trim()]).trim().parse::<i64>().expect("seconds")
    };
    for (request, user, seconds) in [
        (asked("[[tokens=3]] hi"), "", 86_400),
        // An answer without text is one, too.
        (with(asked("[[call=weather]] hi"), "tools", json!([tool])), "", 86_400),
        (with(asked("[[tokens=3]] hi"), "store", json!(false)), "", 3_600),
        (asked("[[tokens=3]] hi"), "alice", -1),
        // The client comes back for the reason of the failure.
        (with(asked("[[fault=error@0!]] hi"), "background", json!(true)), "", 86_400),
    ] {
        let ask = http().post(&url).json(&request);
        let ask = if user.is_empty() { ask } else { ask.bearer_auth(token(user)) };
        let reply = send(ask).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        if request["background"] == true {
            assert_eq!(ended(&fleet.replicas[1], &id_of(&reply.body)).await["status"], "failed");
        }
        let left = ttl(&id_of(&reply.body));
        assert!((seconds - 60..=seconds).contains(&left), "{request}: {left}");
        if request["store"] == false {
            let reply = retrieved(&fleet.replicas[0], &id_of(&reply.body)).await;
            assert_eq!(refused(&reply), (404, None, "response_not_found"));
        }
    }
}

#[tokio::test]
async fn a_response_that_fails_says_why() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let replica = &fleet.replicas[0];
    let unknown = json!({"model": "nope", "input": "hi"});
    assert_eq!(
        refused(&post(replica, RESPONSES, &unknown).await),
        (404, Some("model"), "model_not_found")
    );
    let question = "[[tokens=10 fault=error@0!]] fail";
    let reply = post(replica, RESPONSES, &asked(question)).await;
    assert!(reply.status >= 500, "{} {}", reply.status, reply.body);
    let request = with(asked(question), "background", json!(true));
    let id = id_of(&post(replica, RESPONSES, &request).await.body);
    let response = ended(&fleet.replicas[1], &id).await;
    assert_eq!(response["status"], "failed", "{response}");
    assert_eq!(response["error"]["code"], "server_error");
    let events = resumed(&fleet.replicas[1], &id, None).await;
    assert_eq!(events.last().expect("an end")["type"], "response.failed");
    assert_eq!(whole(&events)["error"], response["error"]);
}

#[tokio::test]
async fn a_stream_that_its_replica_or_its_revoked_key_ends_has_an_error_as_last_event() {
    let fleet = Fleet::start(2, &["--rate", "20"], &[]).await;
    let request = with(asked("[[tokens=1000]] go on"), "stream", json!(true));
    let replica = &fleet.replicas[0];
    let ended = revoked_and_drained(replica, &fleet.redis, RESPONSES, &request).await;
    let last = ended.map(|text| {
        let last = events_of(&text).pop().expect("an event");
        assert!(last["message"].is_string() && last["sequence_number"].is_u64(), "{last}");
        ["type", "code"].map(|name| last[name].as_str().expect("a text").to_owned())
    });
    assert_eq!(last, [["error", "invalid_api_key"], ["error", "draining"]]);
}

#[tokio::test]
async fn a_model_that_reasons_has_an_item_for_it() {
    let Fleet { replicas, ollama: _ollama, redis: _redis } =
        Fleet::start(2, &["--models", "thinker", "--rate", "200"], &[]).await;
    let request = json!({"model": "thinker", "input": "[[tokens=10 think=6]] why",
        "temperature": 0, "reasoning": {"effort": "low"}});
    let events = created(&replicas[0], &request).await;
    let response = whole(&events);
    assert!(kinds(&events).contains(&"response.reasoning_text.delta"), "{events:?}");
    assert_eq!(response["output"][0]["type"], "reasoning");
    assert_eq!(response["output"][1]["type"], "message");
    is_resumed_after_every_event(&replicas[1], &id_of(&response), &events).await;
    // Clients send the items back as they came.
    let mut input = vec![json!({"role": "user", "content": "why"})];
    input.extend(response["output"].as_array().expect("items").iter().cloned());
    input.push(json!({"role": "user", "content": "[[tokens=3]] and"}));
    let reply = post(&replicas[0], RESPONSES, &json!({"model": "thinker", "input": input})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn a_waiting_response_has_its_first_byte_soon_and_heartbeats_without_a_blank_line() {
    let settings = [("JARVIS_OLLAMA_SLOTS", "1"), ("JARVIS_HEARTBEAT", "1")];
    let fleet = Fleet::start(2, &["--rate", "20"], &settings).await;
    let busy = with(asked("[[tokens=60]] busy"), "background", json!(true));
    post(&fleet.replicas[0], RESPONSES, &busy).await;
    let running = async || stat(&fleet.ollama, "running").await == 1;
    assert!(eventually(LIMIT, running).await, "it does not begin");
    let request = with(asked("[[tokens=3]] next"), "stream", json!(true));
    let begun = std::time::Instant::now();
    let mut stream = http()
        .post(format!("{}{RESPONSES}", fleet.replicas[1].url))
        .json(&request)
        .send()
        .await
        .expect("a response");
    let mut raw = String::new();
    while let Some(chunk) = stream.chunk().await.expect("a chunk") {
        if raw.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        }
        raw.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(raw.contains("\n:\n"), "{raw}");
    assert_eq!(whole(&events_of(&raw))["status"], "completed");
}
