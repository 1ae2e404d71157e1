//! The branches of a session: answers that are regenerated, questions that are edited, and the selection
//! of what is shown and continued.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{
    Reply, Socket, chat, get, history, history_until, http, joined, kinds, post, send, server_sent,
};
use support::fleet::Fleet;
use support::process::Process;
use uuid::Uuid;

/// Starts so many replicas, whose host generates at `rate` tokens a second.
async fn fleet(replicas: usize, rate: &str) -> Fleet {
    Fleet::start(replicas, &["--rate", rate], &[]).await
}

fn id() -> String {
    Uuid::new_v4().to_string()
}

/// Returns the path of a route of this session.
fn route(session: &str, name: &str) -> String {
    format!("/api/v1/chat/sessions/{session}/{name}")
}

async fn regenerate(server: &Process, session: &str, answer: &Value) -> Reply {
    post(server, &route(session, "regenerate"), &json!({"message_id": answer})).await
}

async fn edit(server: &Process, session: &str, question: &Value, message: &str) -> Reply {
    let body = json!({"message_id": question, "message": message});
    post(server, &route(session, "edit"), &body).await
}

async fn select(server: &Process, session: &str, message: &Value) -> Reply {
    post(server, &route(session, "branch"), &json!({"message_id": message})).await
}

/// Sends a message, and returns the identifiers of the question and of its answer.
async fn turn(server: &Process, session: &str, message: &str) -> [Value; 2] {
    let reply = chat(server, session, message).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let messages = history(server, session).await;
    [&messages[messages.len() - 2], &messages[messages.len() - 1]].map(|it| it["id"].clone())
}

fn field(messages: &[Value], name: &str) -> Vec<Value> {
    messages.iter().map(|message| message[name].clone()).collect()
}

/// Returns the contents of the messages of the user.
async fn questions(server: &Process, session: &str) -> Vec<Value> {
    let messages = history(server, session).await;
    let messages: Vec<Value> =
        messages.into_iter().filter(|message| message["role"] == "user").collect();
    field(&messages, "content")
}

/// Returns the messages of the last request that the host got.
async fn last_prompt(ollama: &Process) -> Vec<Value> {
    let asked = get(ollama, "/sim/requests").await.body;
    let asked = asked["requests"].as_array().expect("requests");
    let last = asked.iter().rfind(|asked| asked["path"] == "/api/chat").expect("a request");
    last["messages"].as_array().expect("messages").clone()
}

#[tokio::test]
async fn another_answer_stands_beside_the_first_and_is_streamed_as_a_chat_is() {
    let fleet = fleet(2, "2000").await;
    let [here, there] = [&fleet.replicas[0], &fleet.replicas[1]];
    let session = id();
    let [question, first] = turn(here, &session, "[[tokens=5]] tell me").await;
    let plain = history(there, &session).await;
    for message in &plain {
        let has = |field| message.get(field).is_some();
        assert!(!has("siblings") && !has("parent_id"), "a plain list stays one: {message}");
    }
    let second = regenerate(there, &session, &first).await;
    assert_eq!(second.status, 200, "{}", second.body);
    assert_eq!(second.body["session_id"], session.as_str());
    let second = second.body["generation_id"].clone();
    // As an event stream.
    let body = json!({"message_id": first, "stream": true, "temperature": 0});
    let url = format!("{}{}", here.url, route(&session, "regenerate"));
    let stream = http().post(url).json(&body).send().await.expect("a stream");
    let (events, _) = server_sent(&stream.text().await.expect("events"));
    let order = ["connection", "message_received", "stream_start", "stream_chunk", "stream_end"];
    assert_eq!(kinds(&events), order);
    assert_eq!((&events[1]["regenerated"], &events[1]["message"]), (&first, &json!("")));
    assert_eq!(events.last().expect("an end")["full_response"], joined(&events).as_str());
    let third = events[1]["generation_id"].clone();
    // Over a WebSocket; another device of the session sees the same.
    let path = format!("/ws?session_id={session}");
    let (mut asking, _) = Socket::open(here, &path).await;
    let (mut watching, _) = Socket::open(there, &path).await;
    asking.say(&json!({"type": "regenerate", "message_id": first, "idempotency_key": "k1"})).await;
    for socket in [&mut asking, &mut watching] {
        let events = socket.until("stream_end").await;
        assert_eq!(kinds(&events), order[1..]);
        assert_eq!((&events[0]["regenerated"], &events[0]["message_id"]), (&first, &json!("k1")));
        assert_eq!(events.last().expect("an end")["full_response"], joined(&events).as_str());
    }
    let messages = history(there, &session).await;
    assert_eq!(messages.len(), 2, "the selected path only: {messages:?}");
    assert_eq!((&messages[0]["id"], messages[0].get("siblings")), (&question, None));
    let fourth = &messages[1]["id"];
    let ids = json!([first, second, third, fourth]);
    assert_eq!(messages[1]["siblings"], json!({"index": 3, "count": 4, "ids": ids}));
    assert_eq!(messages[1]["parent_id"], question);
    // The model of the answer is used again, and the same question was asked each time.
    assert_eq!(messages[1]["model"], "tinyllama:latest");
    let prompt = last_prompt(&fleet.ollama).await;
    assert_eq!(prompt, [json!({"role": "user", "content": "[[tokens=5]] tell me"})]);
}

#[tokio::test]
async fn an_edited_question_is_answered_with_nothing_of_the_branch_that_it_leaves() {
    let fleet = fleet(1, "100000").await;
    let replica = &fleet.replicas[0];
    let session = id();
    let [first, answer] = turn(replica, &session, "[[tokens=3]] one").await;
    let [second, _] = turn(replica, &session, "[[tokens=3]] two").await;
    turn(replica, &session, "[[tokens=3]] three").await;
    let reply = edit(replica, &session, &second, "[[tokens=3]] other").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(questions(replica, &session).await, ["[[tokens=3]] one", "[[tokens=3]] other"]);
    let prompt = last_prompt(&fleet.ollama).await;
    let contents = field(&prompt, "content");
    assert_eq!(prompt.len(), 3, "{prompt:?}");
    assert_eq!(
        (&contents[0], &contents[2]),
        (&json!("[[tokens=3]] one"), &json!("[[tokens=3]] other"))
    );
    let messages = history(replica, &session).await;
    let ids = json!([second, messages[2]["id"]]);
    assert_eq!(messages[2]["siblings"], json!({"index": 1, "count": 2, "ids": ids}));
    assert_eq!(messages[2]["parent_id"], answer);
    // The first question of the session is edited, too; and the branch goes on from there.
    let reply = edit(replica, &session, &first, "[[tokens=3]] begin").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    turn(replica, &session, "[[tokens=3]] on").await;
    assert_eq!(questions(replica, &session).await, ["[[tokens=3]] begin", "[[tokens=3]] on"]);
    let prompt = field(&last_prompt(&fleet.ollama).await, "content");
    assert_eq!((prompt.len(), &prompt[0]), (3, &json!("[[tokens=3]] begin")));
    let path = format!("/api/v1/chat/sessions/{session}");
    assert_eq!(get(replica, &path).await.body["message_count"], 4);
    let deleted = send(http().delete(format!("{}{path}", replica.url))).await;
    assert_eq!(deleted.body["messages_deleted"], 12, "those of every branch");
    let left = fleet.redis.cli(&["KEYS", "jarvis:*branches"]);
    assert_eq!(left.trim(), "", "a deletion leaves no branch");
}

#[tokio::test]
async fn a_selected_branch_is_listed_and_continued_as_it_was_left() {
    let fleet = fleet(2, "100000").await;
    let [here, there] = [&fleet.replicas[0], &fleet.replicas[1]];
    let session = id();
    let [first, _] = turn(here, &session, "[[tokens=2]] one").await;
    let [second, old] = turn(here, &session, "[[tokens=2]] two").await;
    regenerate(here, &session, &old).await;
    let [_, deep] = turn(here, &session, "[[tokens=2]] deep").await;
    let first_branch = field(&history(here, &session).await, "id");
    assert_eq!(edit(here, &session, &first, "[[tokens=2]] new").await.status, 200);
    let [_, new] = turn(here, &session, "[[tokens=2]] and on").await;
    let path = format!("/ws?session_id={session}");
    let (mut watching, _) = Socket::open(there, &path).await;
    // The sibling of what is shown: the branch is as it was, with its own selection below.
    let reply = select(there, &session, &first).await;
    assert_eq!((reply.status, &reply.body["status"]), (200, &json!("selected")), "{}", reply.body);
    assert_eq!(field(&history(here, &session).await, "id"), first_branch);
    let event = watching.until("branch_selected").await.pop().expect("an event");
    assert_eq!((&event["message_id"], event["cursor"].is_string()), (&first, true), "{event}");
    // A message of a branch in a branch that is not shown.
    assert_eq!(select(there, &session, &new).await.status, 200);
    assert_eq!(questions(here, &session).await, ["[[tokens=2]] new", "[[tokens=2]] and on"]);
    assert_eq!(select(there, &session, &old).await.status, 200);
    let messages = history(here, &session).await;
    assert_eq!(
        field(&messages, "id")[1..],
        [messages[1]["id"].clone(), second.clone(), old.clone()]
    );
    assert_eq!(messages.last().expect("an answer")["siblings"]["index"], 0);
    // Over a WebSocket; what is selected already is confirmed to the one that asked.
    watching.say(&json!({"type": "branch", "message_id": deep})).await;
    watching.until("branch_selected").await;
    let mut selected = Value::Null;
    while selected != deep {
        watching.say(&json!({"type": "branch", "message_id": deep})).await;
        selected =
            watching.until("branch_selected").await.pop().expect("one")["message_id"].clone();
    }
    assert_eq!(field(&history(here, &session).await, "id"), first_branch);
    turn(there, &session, "[[tokens=2]] continued").await;
    let asked = questions(here, &session).await;
    let expected = ["one", "two", "deep", "continued"].map(|it| format!("[[tokens=2]] {it}"));
    assert_eq!(asked, expected);
    assert_eq!(field(&last_prompt(&fleet.ollama).await, "content").len(), 7);
    let all = [("regenerate", &old), ("edit", &second)];
    for (name, message) in all {
        // Also of a message that is on no selected path.
        assert_eq!(select(here, &session, &new).await.status, 200);
        let body = json!({"message_id": message, "message": "[[tokens=2]] edited"});
        let reply = post(here, &route(&session, name), &body).await;
        assert_eq!(reply.status, 200, "{name}: {}", reply.body);
        let prompt = field(&last_prompt(&fleet.ollama).await, "content");
        assert_eq!((prompt.len(), &prompt[0]), (3, &json!("[[tokens=2]] one")), "{name}");
    }
}

#[tokio::test]
async fn what_cannot_be_regenerated_edited_or_selected_is_refused_and_changes_nothing() {
    let fleet = fleet(1, "2000").await;
    let replica = &fleet.replicas[0];
    let session = id();
    let [question, answer] = turn(replica, &session, "[[tokens=2]] one").await;
    let before = history(replica, &session).await;
    let stranger = json!(id());
    let text = json!("[[tokens=2]] x");
    for (name, body, status, code) in [
        ("regenerate", json!({"message_id": question}), 422, "validation_failed"),
        ("edit", json!({"message_id": answer, "message": text}), 422, "validation_failed"),
        ("edit", json!({"message_id": question}), 422, "validation_failed"),
        ("edit", json!({"message_id": question, "message": " "}), 422, "validation_failed"),
        ("regenerate", json!({}), 422, "validation_failed"),
        ("branch", json!({}), 422, "validation_failed"),
        ("branch", json!({"message_id": "x"}), 422, "validation_failed"),
        ("regenerate", json!({"message_id": stranger}), 404, "message_not_found"),
        ("edit", json!({"message_id": stranger, "message": text}), 404, "message_not_found"),
        ("branch", json!({"message_id": stranger}), 404, "message_not_found"),
        ("regenerate", json!({"message_id": answer, "model": "nope"}), 404, "model_not_found"),
    ] {
        let reply = post(replica, &route(&session, name), &body).await;
        let got = (reply.status, reply.body["code"].as_str().unwrap_or_default());
        assert_eq!(got, (status, code), "{name} {body}: {}", reply.body);
    }
    for name in ["regenerate", "edit", "branch"] {
        let body = json!({"message_id": answer, "message": text});
        let reply = post(replica, &route(&id(), name), &body).await;
        assert_eq!(
            (reply.status, &reply.body["code"]),
            (404, &json!("session_not_found")),
            "{name}"
        );
    }
    assert_eq!(history(replica, &session).await, before);
    // While an answer is written.
    let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    socket.say(&json!({"message": "[[tokens=4000]] long"})).await;
    let started = socket.until("stream_start").await.pop().expect("a start");
    let running = &started["generation_id"];
    let reply = select(replica, &session, &answer).await;
    assert_eq!((reply.status, &reply.body["code"]), (409, &json!("turn_running")));
    let reply = regenerate(replica, &session, running).await;
    assert_eq!((reply.status, &reply.body["code"]), (409, &json!("turn_running")));
    socket.say(&json!({"type": "cancel"})).await;
    socket.until("cancelled").await;
    // A cancelled answer is an answer as any other, and so is the one beside it.
    let reply = regenerate(replica, &session, running).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn a_message_has_fifty_alternatives_and_no_more() {
    let fleet = fleet(1, "1000").await;
    let replica = &fleet.replicas[0];
    let session = id();
    let [question, answer] = turn(replica, &session, "[[tokens=1]] one").await;
    for number in 1..50 {
        let reply = regenerate(replica, &session, &answer).await;
        assert_eq!(reply.status, 200, "{number}: {}", reply.body);
    }
    let reply = regenerate(replica, &session, &answer).await;
    assert_eq!((reply.status, &reply.body["code"]), (409, &json!("too_many_siblings")));
    let messages = history(replica, &session).await;
    let siblings = &messages[1]["siblings"];
    assert_eq!((&siblings["count"], &siblings["index"]), (&json!(50), &json!(49)));
    assert_eq!(siblings["ids"][0], answer);
    // Those that wait count, too.
    for number in 1..49 {
        let reply = edit(replica, &session, &question, &format!("[[tokens=1]] {number}")).await;
        assert_eq!(reply.status, 200, "{number}: {}", reply.body);
    }
    let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    let say = |text: &str| json!({"type": "edit", "message_id": question, "message": text});
    let long = "[[tokens=8000]] long";
    socket.say(&json!({"message": long, "max_tokens": -1})).await;
    socket.until("stream_start").await;
    socket.say_at_once(&[&say("[[tokens=1]] last"), &say("[[tokens=1]] beyond")]).await;
    let refused = socket.until("error").await.pop().expect("an error");
    assert_eq!(refused["code"], "too_many_siblings", "{refused}");
    socket.say(&json!({"type": "cancel"})).await;
    let messages = history_until(replica, &session, |messages| {
        messages.len() == 2 && messages[0]["content"] == "[[tokens=1]] last"
    });
    assert_eq!(messages.await[0]["siblings"]["count"], 50);
}

#[tokio::test]
async fn a_request_that_is_repeated_with_its_key_is_answered_once() {
    let fleet = fleet(2, "2000").await;
    let session = id();
    let [question, answer] = turn(&fleet.replicas[0], &session, "[[tokens=5]] one").await;
    let key = id();
    let ask = async |replica: usize, name: &str, body: &Value| {
        let url = format!("{}{}", fleet.replicas[replica].url, route(&session, name));
        send(http().post(url).header("Idempotency-Key", &key).json(body)).await
    };
    let body = json!({"message_id": answer});
    let first = ask(0, "regenerate", &body).await;
    let again = ask(1, "regenerate", &body).await;
    assert_eq!((first.status, again.status), (200, 200), "{} {}", first.body, again.body);
    assert_eq!(first.body["generation_id"], again.body["generation_id"]);
    assert_eq!(first.body["response"], again.body["response"]);
    let edited = json!({"message_id": question, "message": "[[tokens=5]] two"});
    let other = ask(1, "edit", &edited).await;
    assert_eq!((other.status, &other.body["code"]), (422, &json!("idempotency_key_reused")));
    // Also where another branch is selected by now, and where the alternatives are at their most.
    edit(&fleet.replicas[0], &session, &question, "[[tokens=5]] three").await;
    let again = ask(1, "regenerate", &body).await;
    assert_eq!(again.body["generation_id"], first.body["generation_id"], "{}", again.body);
    let socket = async |replica: usize| {
        let (mut socket, _) =
            Socket::open(&fleet.replicas[replica], &format!("/ws?session_id={session}")).await;
        let own = json!({"type": "edit", "idempotency_key": "mine", "message_id": question,
            "message": "[[tokens=5]] four"});
        socket.say(&own).await;
        let events = socket.until("stream_end").await;
        assert_eq!(events[0]["message_id"], "mine", "{events:?}");
        events[0]["generation_id"].clone()
    };
    assert_eq!(socket(0).await, socket(1).await);
    let messages = history(&fleet.replicas[0], &session).await;
    assert_eq!(messages[0]["siblings"]["count"], 3);
}

#[tokio::test]
async fn turns_that_wait_begin_in_their_order_on_the_branch_that_each_names() {
    let fleet = fleet(1, "1000").await;
    let replica = &fleet.replicas[0];
    let session = id();
    let [first, old] = turn(replica, &session, "[[tokens=2]] one").await;
    let [_, answer] = turn(replica, &session, "[[tokens=2]] two").await;
    let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    let text = |it: &str| format!("[[tokens=2]] {it}");
    socket.say(&json!({"message": "[[tokens=300]] runs"})).await;
    socket.until("stream_start").await;
    // The edit leaves the branch of the answer that is regenerated after it.
    socket
        .say_at_once(&[
            &json!({"type": "edit", "message_id": first, "message": text("edited")}),
            &json!({"type": "regenerate", "message_id": answer}),
            &json!({"message": text("behind")}),
            &json!({"type": "regenerate", "message_id": old}),
        ])
        .await;
    let mut received = Vec::new();
    while received.len() < 4 {
        received.extend(socket.until("message_received").await.pop());
    }
    let values = |field: &str| received.iter().map(|it| it[field].clone()).collect::<Vec<_>>();
    assert_eq!(values("edited"), [first.clone(), Value::Null, Value::Null, Value::Null]);
    assert_eq!(values("regenerated"), [Value::Null, answer.clone(), Value::Null, old.clone()]);
    for _ in 0..5 {
        socket.until("stream_end").await;
    }
    assert_eq!(questions(replica, &session).await, [text("one")], "the last one was regenerated");
    let asked = get(&fleet.ollama, "/sim/requests").await.body;
    let asked = asked["requests"].as_array().expect("requests");
    let prompts: Vec<Vec<Value>> = asked
        .iter()
        .filter(|asked| asked["path"] == "/api/chat")
        .map(|asked| field(asked["messages"].as_array().expect("messages"), "content"))
        .collect();
    let users = |prompt: &Vec<Value>| prompt.iter().step_by(2).cloned().collect::<Vec<_>>();
    let sent: Vec<_> = prompts[prompts.len() - 4..].iter().map(users).collect();
    let [one, two, edited, behind] = ["one", "two", "edited", "behind"].map(|it| json!(text(it)));
    let expected =
        [vec![edited], vec![one.clone(), two.clone()], vec![one.clone(), two, behind], vec![one]];
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn a_killed_writer_of_a_regenerated_answer_costs_no_character() {
    let fleet = fleet(3, "60").await;
    let session = id();
    let message = "[[tokens=120]] survive";
    let [question, answer] = turn(&fleet.replicas[1], &session, message).await;
    let expected = history(&fleet.replicas[1], &session).await[1]["content"].clone();
    for (name, beside) in [("regenerate", &answer), ("edit", &question)] {
        let path = format!("/ws?session_id={session}");
        let killed = usize::from(name == "edit") * 2;
        let (mut asking, _) = Socket::open(&fleet.replicas[killed], &path).await;
        let (mut watching, _) = Socket::open(&fleet.replicas[1], &path).await;
        asking.say(&json!({"type": name, "message_id": beside, "message": message})).await;
        let mut events = watching.until("stream_start").await;
        for _ in 0..30 {
            events.push(watching.event().await);
        }
        fleet.replicas[killed].kill();
        events.extend(watching.until("stream_end").await);
        assert_eq!(joined(&events), expected.as_str().expect("a text"), "{name}");
        let messages = history(&fleet.replicas[1], &session).await;
        let last = messages.last().expect("an answer");
        assert_eq!((&last["content"], &last["writers"]), (&expected, &json!(2)), "{name}");
        assert_eq!(messages.len(), 2, "{name}");
        let at = usize::from(name == "regenerate");
        assert_eq!(messages[at]["siblings"]["count"], 2, "{name}");
    }
}
