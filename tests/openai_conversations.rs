//! OpenAI's conversations, and the responses that are their turns, on real replicas.
#![allow(missing_docs, reason = "tests")]

mod support;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use support::client::{Reply, get, history, http, post, send, until_ok, with};
use support::eventually;
use support::fleet::{Fleet, ready_replicas};
use support::host::{requests, stat};
use support::lossy::ReplyLoser;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::responses::{
    MODEL, RESPONSES, asked, created, ended, events_of, expected, id_of,
    is_resumed_after_every_event, joined, output_text, refused, resumed, retrieved, until_pieces,
    whole,
};
use support::tokens::{SECRET, token};
use uuid::Uuid;

const CONVERSATIONS: &str = "/v1/conversations";

fn of_conversation(id: &str, rest: &str) -> String {
    format!("{CONVERSATIONS}/{id}{rest}")
}

/// Creates a conversation, and returns its id.
async fn new_conversation(replica: &Process, request: &Value) -> String {
    let reply = post(replica, CONVERSATIONS, request).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    id_of(&reply.body)
}

fn in_conversation(id: &str, question: &str) -> Value {
    with(asked(question), "conversation", json!(id))
}

/// Returns the id of the session that a conversation is.
fn session_of(id: &str) -> String {
    let digits = id.strip_prefix("conv_").expect("an id");
    digits.parse::<Uuid>().expect("a UUID").to_string()
}

async fn items(replica: &Process, id: &str, query: &str) -> Value {
    let reply = get(replica, &of_conversation(id, &format!("/items?{query}"))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.body
}

/// Returns type, role and text of each item.
fn texts(items: &Value) -> Vec<(String, String)> {
    let text = |item: &Value| {
        let text = item["content"][0]["text"].as_str().or(item["output"].as_str());
        text.or(item["arguments"].as_str()).unwrap_or_default().to_owned()
    };
    let kind = |item: &Value| {
        let kind = item["role"].as_str().or(item["type"].as_str());
        kind.unwrap_or_default().to_owned()
    };
    let items = items["data"].as_array().expect("items").iter();
    items.map(|item| (kind(item), text(item))).collect()
}

/// Returns role and text of each message that the model host got last.
async fn sent(ollama: &Process) -> Vec<(String, String)> {
    let sent = requests(ollama, "/api/chat").await.pop().expect("a request");
    let part = |message: &Value, name: &str| message[name].as_str().unwrap_or_default().to_owned();
    let messages = sent["messages"].as_array().expect("messages").iter();
    messages.map(|message| (part(message, "role"), part(message, "content"))).collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(role, text)| ((*role).to_owned(), (*text).to_owned())).collect()
}

#[tokio::test]
async fn a_conversation_is_created_described_changed_and_deleted() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let metadata = json!({"topic": "cats", "empty": ""});
    let created = post(one, CONVERSATIONS, &json!({"metadata": metadata})).await.body;
    let id = id_of(&created);
    assert_eq!(created["object"], "conversation");
    assert_eq!(created["metadata"], metadata);
    assert!(created["created_at"].is_i64());
    let path = of_conversation(&id, "");
    assert_eq!(get(two, &path).await.body, created);
    assert_eq!(items(two, &id, "").await["data"], json!([]));
    let changed = post(two, &path, &json!({"metadata": {"topic": "dogs"}})).await;
    assert_eq!((changed.status, &changed.body["metadata"]), (200, &json!({"topic": "dogs"})));
    assert_eq!(get(one, &path).await.body, changed.body);
    let emptied = post(two, &path, &json!({"metadata": null})).await;
    assert_eq!((emptied.status, &emptied.body["metadata"]), (200, &json!({})));
    let response = post(one, RESPONSES, &in_conversation(&id, "[[tokens=3]] hi")).await.body;
    let running =
        with(in_conversation(&id, "[[tokens=500 rate=20]] on"), "background", json!(true));
    let running = post(one, RESPONSES, &running).await.body;
    let deleted = send(http().delete(format!("{}{path}", two.url))).await;
    assert_eq!(deleted.body, json!({"id": id, "object": "conversation.deleted", "deleted": true}));
    let stopped = async || stat(&fleet.ollama, "running").await == 0;
    assert!(eventually(LIMIT, stopped).await, "its model runs");
    for reply in [
        get(one, &path).await,
        get(one, &of_conversation(&id, "/items")).await,
        post(one, &path, &json!({"metadata": {}})).await,
        send(http().delete(format!("{}{path}", one.url))).await,
        post(one, RESPONSES, &in_conversation(&id, "[[tokens=3]] hi")).await,
    ] {
        assert_eq!(refused(&reply), (404, None, "conversation_not_found"));
    }
    for response in [response, running] {
        let reply = retrieved(one, &id_of(&response)).await;
        assert_eq!(refused(&reply), (404, None, "response_not_found"));
    }
}

#[tokio::test]
async fn what_a_conversation_cannot_be_created_with_is_refused_by_its_path() {
    let fleet = Fleet::start(1, &["--rate", "2000"], &[]).await;
    let replica = &fleet.replicas[0];
    let many: serde_json::Map<String, Value> =
        (0..17).map(|at| (at.to_string(), json!("x"))).collect();
    let message = json!({"role": "user", "content": "x"});
    let id = new_conversation(replica, &json!({})).await;
    let (path, of_items) = (of_conversation(&id, ""), of_conversation(&id, "/items"));
    for (path, request, param, code) in [
        (CONVERSATIONS, json!({"metadata": many}), "metadata", "invalid_value"),
        (CONVERSATIONS, json!({"metadata": {"x".repeat(65): ""}}), "metadata", "invalid_value"),
        (CONVERSATIONS, json!({"metadata": {"x": "x".repeat(513)}}), "metadata", "invalid_value"),
        (CONVERSATIONS, json!({"metadata": {"x": 1}}), "metadata.x", "invalid_type"),
        (CONVERSATIONS, json!({"title": "x"}), "title", "unknown_parameter"),
        (CONVERSATIONS, json!({"items": vec![&message; 21]}), "items", "invalid_value"),
        (
            CONVERSATIONS,
            json!({"items": [{"type": "item_reference", "id": "x"}]}),
            "items[0].type",
            "unsupported_value",
        ),
        (
            CONVERSATIONS,
            json!({"items": [{"role": "user", "content": "x".repeat(600 << 10)}]}),
            "items",
            "invalid_value",
        ),
        (&*path, json!({}), "metadata", "missing_required_parameter"),
        (&*path, json!({"metadata": {}, "items": []}), "items", "unknown_parameter"),
        (&*of_items, json!({}), "items", "missing_required_parameter"),
        (&*of_items, json!({"items": []}), "items", "invalid_value"),
        (
            &*of_items,
            json!({"items": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}),
            "items[0].call_id",
            "invalid_value",
        ),
    ] {
        let reply = post(replica, path, &request).await;
        assert_eq!(refused(&reply), (400, Some(param), code), "{path}");
    }
    let both = with(
        in_conversation(&id, "hi"),
        "previous_response_id",
        json!(format!("resp_{}", "1".repeat(32))),
    );
    let reply = post(replica, RESPONSES, &both).await;
    assert_eq!(refused(&reply), (400, Some("conversation"), "invalid_value"));
    for (input, param) in [
        (json!("x".repeat(600 << 10)), "input"),
        (json!([{"role": "system", "content": "\u{1}".repeat(90 << 10)}, message]), "input"),
        (json!([message, {"role": "assistant", "content": "x"}]), "input"),
    ] {
        let request = json!({"model": MODEL, "input": input, "conversation": id});
        let reply = post(replica, RESPONSES, &request).await;
        assert_eq!(refused(&reply), (400, Some(param), "invalid_value"), "{}", reply.body);
    }
    assert_eq!(items(replica, &id, "").await["data"], json!([]), "nothing was added");
}

#[tokio::test]
async fn responses_are_turns_of_a_conversation_and_stay_readable() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let id = new_conversation(one, &json!({})).await;
    let first = with(in_conversation(&id, "[[tokens=20]] one"), "instructions", json!("be brief"));
    let first = with(first, "metadata", json!({"a": "b"}));
    let first_events = created(one, &first).await;
    let first = whole(&first_events);
    assert_eq!(first["conversation"], json!({"id": id}));
    assert_eq!(
        sent(&fleet.ollama).await,
        pairs(&[("system", "be brief"), ("user", "[[tokens=20]] one")])
    );
    let second = with(asked("[[tokens=4]] two"), "conversation", json!({"id": id}));
    let second = post(two, RESPONSES, &second).await.body;
    assert_eq!(second["status"], "completed", "{second}");
    let answer = output_text(&first);
    assert_eq!(
        sent(&fleet.ollama).await,
        pairs(&[
            ("user", "[[tokens=20]] one"),
            ("assistant", &answer),
            ("user", "[[tokens=4]] two")
        ]),
        "all but the instructions of before"
    );
    let input = json!([{"role": "developer", "content": "now long"},
        {"role": "user", "content": "[[tokens=4]] three"}]);
    let third = json!({"model": MODEL, "input": input, "conversation": id, "text": {"format": {
        "type": "json_object"}}, "background": true});
    let third = ended(two, &id_of(&post(one, RESPONSES, &third).await.body)).await;
    assert_eq!(third["status"], "completed", "{third}");
    let all = sent(&fleet.ollama).await;
    assert_eq!(all[4..], pairs(&[("system", "now long"), ("user", "[[tokens=4]] three")]));
    // Each is what it was, after the later ones, and is streamed again after every event.
    for (response, name, value) in [
        (&first, "instructions", json!("be brief")),
        (&first, "metadata", json!({"a": "b"})),
        (&second, "instructions", Value::Null),
        (&third, "text", json!({"format": {"type": "json_object"}, "verbosity": "medium"})),
    ] {
        let again = retrieved(two, &id_of(response)).await;
        assert_eq!((again.status, &again.body), (200, response));
        assert_eq!(response[name], value);
    }
    is_resumed_after_every_event(two, &id_of(&first), &first_events).await;
    let of_third = get(one, &format!("{RESPONSES}/{}/input_items?order=asc", id_of(&third))).await;
    assert_eq!(
        texts(&of_third.body),
        pairs(&[("system", "now long"), ("user", "[[tokens=4]] three")])
    );
    let listed = items(two, &id, "order=asc").await;
    let (two, three) = (output_text(&second), output_text(&third));
    assert_eq!(
        texts(&listed),
        pairs(&[
            ("user", "[[tokens=20]] one"),
            ("assistant", &answer),
            ("user", "[[tokens=4]] two"),
            ("assistant", &two),
            ("system", "now long"),
            ("user", "[[tokens=4]] three"),
            ("assistant", &three),
        ])
    );
    assert_eq!(listed["data"][1], first["output"][0], "the item of the response");
    // The native API has the same session.
    let messages = history(one, &session_of(&id)).await;
    assert_eq!(messages.len(), 6);
    assert_eq!(messages[4]["before"][0]["content"], "now long");
    let title = get(one, &format!("/api/v1/chat/sessions/{}", session_of(&id))).await.body;
    assert_eq!(title["title"], "[[tokens=20]] one");
    let next = with(asked("next"), "previous_response_id", first["id"].clone());
    let reply = post(one, RESPONSES, &next).await;
    assert_eq!(refused(&reply), (400, Some("previous_response_id"), "invalid_value"));
}

#[tokio::test]
async fn a_response_of_a_conversation_is_resumed_at_a_third_replica_after_its_writer_was_killed() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "40"]);
    let settings = [("JARVIS_LEASE_MS", "1000")];
    let replicas = ready_replicas(3, &redis.url(), &ollama.url, &settings).await;
    let id = new_conversation(&replicas[0], &json!({})).await;
    let first = post(&replicas[1], RESPONSES, &in_conversation(&id, "[[tokens=5]] one")).await;
    assert_eq!(first.body["status"], "completed", "{}", first.body);
    let question = "[[tokens=120]] hold on";
    let request = with(in_conversation(&id, question), "background", json!(true));
    let response = id_of(&post(&replicas[0], RESPONSES, &request).await.body);
    let text = ollama_sim::script_answer(MODEL, question, None, 64);
    let (watched, ()) = tokio::join!(resumed(&replicas[1], &response, Some(0)), async {
        let url = format!("{}{RESPONSES}/{response}?stream=true", replicas[1].url);
        until_pieces(http().get(url), 20).await;
        replicas[0].kill();
    });
    let all = resumed(&replicas[2], &response, None).await;
    assert_eq!(watched, all[1..]);
    assert_eq!(joined(&all), text);
    assert_eq!(whole(&all)["status"], "completed");
    is_resumed_after_every_event(&replicas[2], &response, &all).await;
    let listed = items(&replicas[2], &id, "order=asc").await;
    assert_eq!(texts(&listed)[3], ("assistant".to_owned(), text));
    assert_eq!(retrieved(&replicas[2], &id_of(&first.body)).await.body, first.body);
}

#[tokio::test]
async fn responses_of_one_conversation_run_one_after_another_and_few_may_wait() {
    let fleet = Fleet::start(2, &["--rate", "40"], &[("JARVIS_OLLAMA_SLOTS", "4")]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let id = new_conversation(one, &json!({})).await;
    let mut responses = Vec::new();
    for at in 0..9 {
        let replica = if at % 2 == 0 { one } else { two };
        let tokens = if at == 0 { 240 } else { 3 };
        let request = in_conversation(&id, &format!("[[tokens={tokens}]] {at}"));
        let reply = post(replica, RESPONSES, &with(request, "background", json!(true))).await;
        assert_eq!((reply.status, &reply.body["status"]), (200, &json!("queued")));
        responses.push(id_of(&reply.body));
    }
    let reply = post(two, RESPONSES, &in_conversation(&id, "one more")).await;
    assert_eq!(refused(&reply), (409, None, "session_busy"));
    assert_eq!(retrieved(two, &responses[8]).await.body["status"], "queued");
    // One that waits is read, cancelled and gone.
    let path = format!("{RESPONSES}/{}/cancel", responses[7]);
    let cancelled = post(one, &path, &json!({})).await;
    assert_eq!((cancelled.status, &cancelled.body["status"]), (200, &json!("cancelled")));
    let reply = retrieved(one, &responses[7]).await;
    assert_eq!(refused(&reply), (404, None, "response_not_found"));
    let last = resumed(two, &responses[8], None).await;
    assert_eq!(whole(&last)["status"], "completed");
    assert_eq!(stat(&fleet.ollama, "peak_running").await, 1, "one after another");
    let asked: Vec<_> = texts(&items(one, &id, "order=asc&limit=100").await)
        .into_iter()
        .filter(|(role, _)| role == "user")
        .filter_map(|(_, text)| text.chars().last())
        .collect();
    assert_eq!(asked, ['0', '1', '2', '3', '4', '5', '6', '8']);
    let added = json!({"items": [{"role": "user", "content": "x"}]});
    assert_eq!(post(one, &of_conversation(&id, "/items"), &added).await.status, 200);
    let running = with(in_conversation(&id, "[[tokens=400]] on"), "background", json!(true));
    post(one, RESPONSES, &running).await;
    let reply = post(two, &of_conversation(&id, "/items"), &added).await;
    assert_eq!(refused(&reply), (409, None, "turn_running"));
}

#[tokio::test]
async fn a_function_is_called_and_answered_within_a_conversation() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let tool = json!({"type": "function", "name": "weather", "strict": false,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}});
    let id = new_conversation(one, &json!({})).await;
    let question = "[[call=weather]] and [[call=weather]]";
    let request = with(in_conversation(&id, question), "tools", json!([tool]));
    let called = post(one, RESPONSES, &request).await.body;
    let calls = called["output"].as_array().expect("items");
    assert_eq!(calls.len(), 2, "{called}");
    let output = |call: &Value, output: &str| json!({"type": "function_call_output", "call_id": call["call_id"], "output": output});
    let answer =
        |input: Value| json!({"model": MODEL, "tools": [tool], "input": input, "conversation": id});
    for (input, param) in [
        (json!([output(&calls[0], "sunny")]), "input"),
        (json!([{"type": "function_call_output", "call_id": "no", "output": "x"}]), "input"),
    ] {
        let reply = post(two, RESPONSES, &answer(input)).await;
        assert_eq!(refused(&reply), (400, Some(param), "invalid_value"), "{}", reply.body);
    }
    let both = json!([output(&calls[0], "sunny"), output(&calls[1], "cloudy")]);
    let events = created(two, &answer(both)).await;
    let answered = whole(&events);
    assert!(!output_text(&answered).is_empty(), "{answered}");
    assert_eq!(
        sent(&fleet.ollama).await,
        pairs(&[("user", question), ("assistant", ""), ("tool", "sunny"), ("tool", "cloudy")])
    );
    is_resumed_after_every_event(one, &id_of(&answered), &events).await;
    let listed = items(one, &id, "order=asc").await;
    let kinds: Vec<_> =
        listed["data"].as_array().expect("items").iter().map(|it| &it["type"]).collect();
    assert_eq!(
        kinds,
        [
            "message",
            "function_call",
            "function_call",
            "function_call_output",
            "function_call_output",
            "message"
        ]
    );
    assert_eq!(listed["data"][1], calls[0]);
    // The turn goes on with a plain question, which has all of them before it.
    let next = post(one, RESPONSES, &in_conversation(&id, "[[tokens=3]] thanks")).await;
    assert_eq!(next.status, 200, "{}", next.body);
    let all = sent(&fleet.ollama).await;
    assert_eq!(all[2..4], pairs(&[("tool", "sunny"), ("tool", "cloudy")]));
    assert_eq!(all.len(), 6);
}

#[tokio::test]
async fn a_turn_whose_question_is_no_users_message_stays_in_later_prompts() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let call = json!({"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"});
    let output = json!({"type": "function_call_output", "call_id": "c1", "output": "sunny"});
    let asks = json!({"role": "user", "content": "how is it?"});
    let rule = json!({"role": "developer", "content": "[[tokens=3]] briefly"});
    let spoken = [("user", "how is it?"), ("system", "[[tokens=3]] briefly")];
    let called = [("user", "how is it?"), ("assistant", ""), ("tool", "sunny")];
    for (added, input, got) in [
        (vec![], json!([asks, rule]), &spoken[..]),
        (vec![], json!([asks, call, output]), &called[..]),
        (vec![asks.clone(), call.clone()], json!([output]), &called[..]),
    ] {
        let id = new_conversation(one, &json!({"items": added})).await;
        let request = json!({"model": MODEL, "input": input, "conversation": id});
        let first = post(one, RESPONSES, &request).await;
        assert_eq!(first.body["status"], "completed", "{}", first.body);
        assert_eq!(sent(&fleet.ollama).await, pairs(got), "{input}");
        let answer = output_text(&first.body);
        let second = post(two, RESPONSES, &in_conversation(&id, "[[tokens=3]] two")).await;
        assert_eq!(second.body["status"], "completed", "{}", second.body);
        let wanted = [got, &[("assistant", &*answer), ("user", "[[tokens=3]] two")]].concat();
        assert_eq!(sent(&fleet.ollama).await, pairs(&wanted), "{input}");
    }
}

#[tokio::test]
async fn items_are_added_outside_of_responses_and_the_model_gets_them_with_the_next_one() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let begun = json!({"items": [
        {"type": "message", "role": "system", "content": "rules"},
        {"role": "user", "content": [{"type": "input_text", "text": "example"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "shown"}]},
    ]});
    let id = new_conversation(one, &begun).await;
    let of_items = of_conversation(&id, "/items");
    let more = json!({"items": [{"role": "user", "content": "by the way"}]});
    let added = post(two, &of_items, &more).await;
    assert_eq!(added.status, 200, "{}", added.body);
    assert_eq!(texts(&added.body), pairs(&[("user", "by the way")]));
    let one_item = added.body["data"][0].clone();
    let path = format!("{of_items}/{}", one_item["id"].as_str().expect("an id"));
    assert_eq!(get(one, &path).await.body, one_item);
    let before =
        [("system", "rules"), ("user", "example"), ("assistant", "shown"), ("user", "by the way")];
    assert_eq!(texts(&items(one, &id, "order=asc").await), pairs(&before));
    let response = post(one, RESPONSES, &in_conversation(&id, "[[tokens=3]] one")).await.body;
    let answer = output_text(&response);
    let asked = [&before[..], &[("user", "[[tokens=3]] one")]].concat();
    assert_eq!(sent(&fleet.ollama).await, pairs(&asked));
    // An item that was added later goes with the next one.
    assert_eq!(post(one, &of_items, &more).await.status, 200);
    post(two, RESPONSES, &in_conversation(&id, "[[tokens=3]] two")).await;
    let rest = [("assistant", &*answer), ("user", "by the way"), ("user", "[[tokens=3]] two")];
    assert_eq!(sent(&fleet.ollama).await, pairs(&[&asked[..], &rest].concat()));
    let title = get(one, &format!("/api/v1/chat/sessions/{}", session_of(&id))).await.body;
    assert_eq!(title["title"], "example");
}

#[tokio::test]
async fn items_that_may_have_been_added_are_not_added_again_by_an_sdk() {
    let fleet = Fleet::start(1, &["--rate", "2000"], &[]).await;
    let id = new_conversation(&fleet.replicas[0], &json!({})).await;
    // The Redis client repeats a call once where the reply is lost.
    let lossy = ReplyLoser::start(&fleet.redis.url(), "jarvis_add_messages_1", 2).await;
    let replica = jarvis(&lossy.url, &fleet.ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let url = format!("{}{}", replica.url, of_conversation(&id, "/items"));
    let body = json!({"items": [{"role": "user", "content": "once"}]});
    let add = async || http().post(&url).json(&body).send().await.expect("a response");
    let reply = add().await;
    assert!(lossy.has_lost());
    assert_eq!(reply.status(), 503);
    assert_eq!(reply.headers()["x-should-retry"], "false");
    let error: Value = reply.json().await.expect("JSON");
    assert_eq!(error["error"]["code"], "store_unavailable");
    let once = pairs(&[("user", "once")]);
    assert_eq!(texts(&items(&fleet.replicas[0], &id, "").await), once, "they were added");
    assert!(eventually(LIMIT, async || add().await.status() == 200).await, "it does not recover");
    // What is known not to have been done may be repeated.
    fleet.redis.pause();
    let reply = add().await;
    fleet.redis.resume();
    assert_eq!((reply.status().as_u16(), reply.headers().get("x-should-retry")), (503, None));
}

#[tokio::test]
async fn a_response_of_a_conversation_stays_deleted_after_a_failover_that_lost_its_deletion() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let id = new_conversation(one, &json!({})).await;
    let first = post(one, RESPONSES, &in_conversation(&id, "[[tokens=5]] one")).await;
    assert_eq!(first.body["status"], "completed", "{}", first.body);
    let response = id_of(&first.body);
    fleet.redis.remember();
    let path = format!("{RESPONSES}/{response}");
    let deleted = send(http().delete(format!("{}{path}", one.url))).await;
    assert_eq!(deleted.status, 200, "{}", deleted.body);
    fleet.redis.lose_what_came_since();
    let gone = async || retrieved(two, &response).await.status == 404;
    assert!(eventually(LIMIT, gone).await, "it is there again");
    assert_eq!(texts(&items(one, &id, "order=asc").await).len(), 2, "its items stay");
}

#[tokio::test]
async fn the_items_of_a_conversation_are_paged_from_both_ends() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let begun: Vec<_> =
        (0..5).map(|at| json!({"role": "user", "content": format!("item {at}")})).collect();
    let id = new_conversation(one, &json!({"items": begun})).await;
    let input =
        json!([{"role": "system", "content": "item 5"}, {"role": "user", "content": "item 6"}]);
    let request = json!({"model": MODEL, "input": input, "conversation": id});
    assert_eq!(post(one, RESPONSES, &request).await.status, 200);
    let all = items(two, &id, "order=asc&limit=100").await;
    assert_eq!((all["data"].as_array().map(Vec::len), &all["has_more"]), (Some(8), &json!(false)));
    assert_eq!(all["first_id"], all["data"][0]["id"]);
    assert_eq!(all["last_id"], all["data"][7]["id"]);
    for order in ["asc", "desc"] {
        for limit in [1, 3, 7, 8] {
            let (mut paged, mut after) = (Vec::new(), String::new());
            loop {
                let query = format!("order={order}&limit={limit}{after}");
                let page = items(two, &id, &query).await;
                let data = page["data"].as_array().expect("items").clone();
                assert!(data.len() <= limit && !data.is_empty(), "{query}: {page}");
                paged.extend(data);
                if page["has_more"] == false {
                    break;
                }
                after = format!("&after={}", page["last_id"].as_str().expect("an id"));
            }
            if order == "desc" {
                paged.reverse();
            }
            assert_eq!(json!(paged), all["data"], "{order} {limit}");
        }
    }
    for item in all["data"].as_array().expect("items") {
        let path = of_conversation(&id, &format!("/items/{}", item["id"].as_str().expect("an id")));
        assert_eq!(&get(one, &path).await.body, item);
    }
    for (query, param) in [
        ("after=nope", "after"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("order=up", "order"),
        ("include=x", "include"),
        ("colour=1", "colour"),
    ] {
        let reply = get(two, &of_conversation(&id, &format!("/items?{query}"))).await;
        assert_eq!((reply.status, refused(&reply).1), (400, Some(param)), "{query}");
    }
    for item in ["nope", &format!("msg_{}", "1".repeat(32))] {
        let reply = get(two, &of_conversation(&id, &format!("/items/{item}"))).await;
        assert_eq!(refused(&reply), (404, None, "message_not_found"));
    }
    let path = of_conversation(&id, &format!("/items/{}", all["last_id"].as_str().expect("an id")));
    assert_eq!(send(http().delete(format!("{}{path}", one.url))).await.status, 405);
}

#[tokio::test]
async fn a_deleted_response_leaves_its_items_in_the_conversation() {
    let fleet = Fleet::start(2, &["--rate", "40"], &[]).await;
    let [one, two] = &*fleet.replicas else { panic!("two replicas") };
    let id = new_conversation(one, &json!({})).await;
    let kept = post(one, RESPONSES, &in_conversation(&id, "[[tokens=3]] kept")).await.body;
    let ended = post(one, RESPONSES, &in_conversation(&id, "[[tokens=3]] ended")).await.body;
    let running = with(in_conversation(&id, "[[tokens=500]] runs"), "background", json!(true));
    let running = id_of(&post(two, RESPONSES, &running).await.body);
    let begun = async || retrieved(one, &running).await.body["status"] == "in_progress";
    assert!(eventually(LIMIT, begun).await, "it does not begin");
    for response in [&id_of(&ended), &running] {
        let path = format!("{RESPONSES}/{response}");
        let deleted = send(http().delete(format!("{}{path}", one.url))).await;
        assert_eq!(deleted.body, json!({"id": response, "object": "response", "deleted": true}));
        for reply in [
            retrieved(two, response).await,
            get(two, &format!("{path}?stream=true")).await,
            get(two, &format!("{path}/input_items")).await,
            send(http().delete(format!("{}{path}", two.url))).await,
        ] {
            assert_eq!(refused(&reply), (404, None, "response_not_found"));
        }
    }
    let stopped = async || stat(&fleet.ollama, "running").await == 0;
    assert!(eventually(LIMIT, stopped).await, "its model runs");
    let listed = texts(&items(two, &id, "order=asc").await);
    assert_eq!(listed[2].1, "[[tokens=3]] ended");
    assert_eq!(listed[4].1, "[[tokens=500]] runs");
    assert_eq!(retrieved(two, &id_of(&kept)).await.body, kept);
}

#[tokio::test]
async fn another_callers_conversation_is_like_one_that_never_existed() {
    let fleet = Fleet::start(2, &["--rate", "2000"], &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let url = |path: &str| format!("{}{path}", fleet.replicas[0].url);
    let of = |request: RequestBuilder, user: &str| {
        if user.is_empty() { request } else { request.bearer_auth(token(user)) }
    };
    let create = async |user: &str| {
        id_of(&send(of(http().post(url(CONVERSATIONS)).json(&json!({})), user)).await.body)
    };
    let (alices, nobodys) = (create("alice").await, create("").await);
    let turn =
        |id: &str| http().post(url(RESPONSES)).json(&in_conversation(id, "[[tokens=3]] mine"));
    let response = id_of(&send(of(turn(&alices), "alice")).await.body);
    // The session of a response of its own is no conversation.
    let alone =
        send(of(http().post(url(RESPONSES)).json(&asked("[[tokens=3]] alone")), "alice")).await;
    let alone = id_of(&alone.body).replace("resp_", "conv_");
    let never = format!("conv_{}", Uuid::new_v4().simple());
    let nil = format!("conv_{}", Uuid::nil().simple());
    for (id, user) in [
        (&*alices, "bob"),
        (&*alices, ""),
        (&*nobodys, "alice"),
        (&*alone, "alice"),
        (&*never, "alice"),
        (&*never, ""),
        (&*nil, ""),
        ("nope", ""),
    ] {
        let items = json!({"items": [{"role": "user", "content": "x"}]});
        for (method, rest, body) in [
            (Method::GET, "", Value::Null),
            (Method::POST, "", json!({"metadata": {}})),
            (Method::DELETE, "", Value::Null),
            (Method::GET, "/items", Value::Null),
            (Method::POST, "/items", items),
            (Method::GET, "/items/msg_11111111111111111111111111111111", Value::Null),
        ] {
            let request =
                http().request(method.clone(), url(&of_conversation(id, rest))).json(&body);
            let reply = send(of(request, user)).await;
            let what = format!("{method} {rest} {id} of {user}");
            assert_eq!(refused(&reply), (404, None, "conversation_not_found"), "{what}");
        }
        if id != nil && id != "nope" {
            let reply = send(of(turn(id), user)).await;
            assert_eq!(refused(&reply), (404, None, "conversation_not_found"), "{id} of {user}");
        }
    }
    let path = format!("{RESPONSES}/{response}");
    let seen = async |user: &str| send(of(http().get(url(&path)), user)).await.status;
    assert_eq!([seen("alice").await, seen("bob").await, seen("").await], [200, 404, 404]);
    // A user's conversation is in the list of the user's sessions.
    let list = send(of(http().get(url("/api/v1/chat/sessions")), "alice")).await;
    let listed: Vec<_> = list.body["sessions"].as_array().expect("sessions").iter().collect();
    assert_eq!(listed.len(), 1, "{}", list.body);
    assert_eq!(listed[0]["session_id"], session_of(&alices));
    // Everybody who knows the id of an anonymous one may go on with it, also over the native API.
    let body = json!({"message": "[[tokens=3]] hi", "session_id": session_of(&nobodys)});
    let native = post(&fleet.replicas[1], "/api/v1/chat", &body).await;
    assert_eq!(native.status, 200, "{}", native.body);
    let reply = send(turn(&nobodys)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(texts(&items_of(&fleet.replicas[0], &nobodys).await).len(), 4);
}

async fn items_of(replica: &Process, id: &str) -> Value {
    items(replica, id, "order=asc").await
}

#[tokio::test]
async fn a_repeat_with_its_key_is_the_same_turn_of_a_conversation() {
    let fleet = Fleet::start(2, &["--rate", "60"], &[]).await;
    let id = new_conversation(&fleet.replicas[0], &json!({})).await;
    let key = Uuid::new_v4().to_string();
    let question = "[[tokens=30]] once";
    let request = with(in_conversation(&id, question), "background", json!(true));
    let ask = |replica: &Process, request: &Value| {
        let url = format!("{}{RESPONSES}", replica.url);
        http().post(url).header("idempotency-key", &key).json(request)
    };
    let first = send(ask(&fleet.replicas[0], &request)).await.body;
    let again = send(ask(&fleet.replicas[1], &request)).await.body;
    assert_eq!((&again["id"], &again["created_at"]), (&first["id"], &first["created_at"]));
    let streamed = with(request.clone(), "stream", json!(true));
    let reply: Reply = send(ask(&fleet.replicas[1], &streamed)).await;
    let events = events_of(reply.body.as_str().expect("a stream"));
    assert_eq!(joined(&events), expected(question));
    assert_eq!(texts(&items_of(&fleet.replicas[0], &id).await).len(), 2);
    let other = send(ask(&fleet.replicas[0], &in_conversation(&id, "another"))).await;
    assert_eq!(refused(&other).2, "idempotency_key_reused");
}

#[tokio::test]
async fn a_conversation_without_a_turn_goes_after_a_day_and_a_users_stays() {
    let fleet = Fleet::start(1, &["--rate", "2000"], &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let replica = &fleet.replicas[0];
    let url = format!("{}{CONVERSATIONS}", replica.url);
    let keys = |id: &str| {
        let keys = fleet.redis.cli(&["KEYS", &format!("jarvis:*:s:{}*", session_of(id))]);
        let keys = keys.lines().map(|key| key.trim().to_owned());
        // The end of a turn is remembered for minutes.
        keys.filter(|key| !key.contains(":ended:")).collect::<Vec<_>>()
    };
    let expiries = |id: &str| {
        let ttl =
            |key: &String| fleet.redis.cli(&["TTL", key]).trim().parse::<i64>().expect("seconds");
        keys(id).iter().map(ttl).collect::<Vec<_>>()
    };
    let body = json!({"items": [{"role": "user", "content": "x"}]});
    let add = async |id: &str| {
        let added = post(replica, &of_conversation(id, "/items"), &body).await;
        assert_eq!(added.status, 200, "{}", added.body);
    };
    let nobodys = id_of(&send(http().post(&url).json(&body)).await.body);
    let alices = id_of(&send(http().post(&url).bearer_auth(token("alice")).json(&body)).await.body);
    let day = |left: &i64| (86_300..=86_400).contains(left);
    assert!(expiries(&nobodys).iter().all(day), "{:?}", expiries(&nobodys));
    assert!(expiries(&alices).iter().all(|left| *left == -1), "{:?}", expiries(&alices));
    assert!(keys(&alices).len() >= 4, "{:?}", keys(&alices));
    add(&nobodys).await;
    assert!(expiries(&nobodys).iter().all(day), "{:?}", expiries(&nobodys));
    let reply = post(replica, RESPONSES, &in_conversation(&nobodys, "[[tokens=3]] hi")).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let month = |left: &i64| *left > 29 * 86_400;
    assert!(expiries(&nobodys).iter().all(month), "{:?}", expiries(&nobodys));
    add(&nobodys).await;
    assert!(expiries(&nobodys).iter().all(month), "{:?}", expiries(&nobodys));
}
