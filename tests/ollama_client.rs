//! The promises of the fleet of model hosts: against a real `ollama-sim` for everything that Ollama
//! does, and against a socket that sends any bytes for everything that it never should.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jarvis::lifecycle::Lifecycle;
use jarvis::model_name::ModelName;
use jarvis::ollama::{
    BreakerState, ChatMessage, ChatRole, Done, DoneReason, Fleet, FleetConfig, ModelRequest,
    OllamaError, Options, Slot, Think, TokenStream,
};
use serde_json::{Value, json};
use support::client::http;
use support::eventually;
use support::process::{LIMIT, Process, ollama_sim};
use support::samples::hosts;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A short time limit that the test waits for.
const SHORT: Duration = Duration::from_millis(300);
const MODEL: &str = "tinyllama:latest";

fn config(urls: &[&str]) -> FleetConfig {
    hosts(urls, 2, LIMIT)
}

fn fleet(urls: &[&str]) -> Fleet {
    Fleet::new(config(urls)).expect("a fleet")
}

fn request(text: &str) -> ModelRequest {
    ModelRequest {
        messages: vec![ChatMessage::text(ChatRole::User, text.to_owned())],
        options: Options {
            temperature: Some(0.0),
            num_predict: 1000,
            num_ctx: Some(4096),
            seed: Some(1),
            ..Options::default()
        },
        think: Think::No,
        format: None,
        tools: None,
    }
}

/// The content of a stream, and how it ended.
#[derive(Debug)]
struct Heard {
    content: String,
    thinking: String,
    pieces: usize,
    end: Result<Done, OllamaError>,
}

async fn hear(stream: &mut TokenStream) -> Heard {
    let mut heard = Heard {
        content: String::new(),
        thinking: String::new(),
        pieces: 0,
        end: Err(OllamaError::NoHost),
    };
    loop {
        match stream.next().await {
            Ok(Some(token)) => {
                heard.content += &token.content;
                heard.thinking += &token.thinking;
                heard.pieces += usize::from(token.done.is_none());
                if let Some(done) = token.done {
                    heard.end = Ok(done);
                    break;
                }
            }
            Ok(None) => panic!("an end without a word: {heard:?}"),
            Err(error) => {
                heard.end = Err(error);
                break;
            }
        }
    }
    // After an end, of whatever kind, there is nothing.
    assert_eq!(stream.next().await, Ok(None));
    heard
}

/// Takes a slot of the first host that has the model.
async fn acquire(fleet: &Fleet, model: &str) -> Result<Slot, OllamaError> {
    fleet.check(model).await?;
    let name = ModelName::parse(model).expect("a name");
    let mut none = OllamaError::NoHost;
    for host in fleet.hosts().iter().filter(|host| host.models.contains_key(&name)) {
        match fleet.slot(&host.id, model).await {
            Ok(slot) => return Ok(slot),
            Err(error) => none = error,
        }
    }
    Err(none)
}

/// Gets one answer, from the choice of a host to the end.
async fn ask(fleet: &Fleet, request: &ModelRequest) -> Result<Heard, OllamaError> {
    ask_of(fleet, MODEL, request).await
}

async fn ask_of(fleet: &Fleet, model: &str, request: &ModelRequest) -> Result<Heard, OllamaError> {
    let slot = acquire(fleet, model).await?;
    Ok(hear(&mut slot.chat(request).await?).await)
}

async fn sim_json(sim: &Process, path: &str) -> Value {
    let response = http().get(format!("{}{path}", sim.url)).send().await.expect("a response");
    serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON")
}

async fn until_stats(sim: &Process, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut stats = Value::Null;
    let reached = eventually(LIMIT, async || {
        stats = sim_json(sim, "/sim/stats").await;
        wanted(&stats)
    });
    assert!(reached.await, "not in time: {stats}");
    stats
}

// The behaviour of Ollama

#[tokio::test]
async fn an_answer_comes_whole_with_its_usage() {
    let sim = ollama_sim(&[]);
    let heard = ask(&fleet(&[&sim.url]), &request("[[count tokens=50]]")).await.expect("an answer");
    let counted: Vec<_> = (1..=50).map(|number: u32| number.to_string()).collect();
    assert_eq!(heard.content, counted.join(" "));
    assert_eq!(heard.thinking, "");
    let done = heard.end.expect("an end");
    assert_eq!((done.reason, done.eval_count), (DoneReason::Stop, 50));
    assert!(done.prompt_eval_count > 0);
}

#[tokio::test]
async fn every_request_sets_each_option_that_ollama_would_choose_silently() {
    let sim = ollama_sim(&[]);
    ask(&fleet(&[&sim.url]), &request("[[tokens=1]]")).await.expect("an answer");
    let asked = &sim_json(&sim, "/sim/requests").await["requests"][0]["request"];
    for (field, value) in [
        ("stream", json!(true)),
        ("think", json!(false)),
        ("truncate", json!(false)),
        ("shift", json!(false)),
        ("keep_alive", json!("5m")),
    ] {
        assert_eq!(asked[field], value, "{field}");
    }
    assert_eq!(asked["options"]["num_ctx"], 4096);
}

#[tokio::test]
async fn an_answer_that_reaches_its_limit_ends_with_length() {
    let sim = ollama_sim(&[]);
    let mut request = request("[[tokens=500]]");
    request.options.num_predict = 7;
    let done = ask(&fleet(&[&sim.url]), &request).await.expect("an answer").end.expect("an end");
    assert_eq!((done.reason, done.eval_count), (DoneReason::Length, 7));
}

#[tokio::test]
async fn every_fault_in_mid_stream_is_one_clean_error_after_a_true_beginning() {
    let sim = ollama_sim(&[]);
    let patient = fleet(&[&sim.url]);
    let short_gap = FleetConfig { token_gap_timeout: SHORT, ..config(&[&sim.url]) };
    let short_gap = Fleet::new(short_gap).expect("a fleet");
    for (fault, fleet, code) in [
        ("cut@5", &patient, "upstream_interrupted"),
        ("cut@0", &patient, "upstream_interrupted"),
        ("error@5", &patient, "upstream_interrupted"),
        ("end@5", &patient, "upstream_interrupted"),
        ("end@0", &patient, "upstream_interrupted"),
        ("garbage@5", &patient, "upstream_error"),
        ("stall@5", &short_gap, "upstream_timeout"),
    ] {
        let request = request(&format!("[[tokens=200 rate=2000 fault={fault}]] tell me"));
        let broken = match ask(fleet, &request).await {
            Ok(heard) => heard,
            // The same holds before the first piece.
            Err(error) => Heard {
                content: String::new(),
                thinking: String::new(),
                pieces: 0,
                end: Err(error),
            },
        };
        let error = broken.end.expect_err(fault);
        assert_eq!(error.code(), code, "{fault}");
        assert!(error.is_retryable(), "{fault}");
        let pieces = if fault.ends_with("@5") { 5 } else { 0 };
        assert_eq!(broken.pieces, pieces, "{fault}");
        // The simulator has each fault once for a message.
        let whole = ask(&patient, &request).await.expect("an answer");
        assert!(whole.end.is_ok(), "{fault}");
        assert!(whole.content.starts_with(&broken.content), "{fault}");
        assert!(whole.content.len() > broken.content.len(), "{fault}");
    }
}

#[tokio::test]
async fn lines_split_anywhere_give_the_same_answer() {
    let sim = ollama_sim(&[]);
    let fleet = fleet(&[&sim.url]);
    let request = request("[[tokens=300 fault=split]] with every kind of character");
    let split = ask(&fleet, &request).await.expect("an answer");
    let whole = ask(&fleet, &request).await.expect("an answer");
    assert_eq!(split.content, whole.content);
    assert_eq!(split.pieces, whole.pieces);
    assert!(split.end.is_ok() && !split.content.is_ascii());
}

#[tokio::test]
async fn a_failure_before_the_first_token_differs_from_a_later_one() {
    let sim = ollama_sim(&[]);
    let patient = fleet(&[&sim.url]);
    let hasty = FleetConfig { first_token_timeout: SHORT, ..config(&[&sim.url]) };
    let hasty = Fleet::new(hasty).expect("a fleet");
    for (fault, fleet, code, retryable) in [
        ("refuse", &patient, "upstream_interrupted", true),
        ("busy", &patient, "upstream_busy", true),
        ("status@500", &patient, "upstream_error", true),
        ("status@400", &patient, "upstream_error", false),
        ("hang", &hasty, "upstream_timeout", true),
        ("slow@60000", &hasty, "upstream_timeout", true),
    ] {
        let request = request(&format!("[[tokens=3 fault={fault}]]"));
        let slot = acquire(fleet, MODEL).await.expect("a slot");
        let error = slot.chat(&request).await.expect_err(fault);
        assert_eq!((error.code(), error.is_retryable()), (code, retryable), "{fault}");
        drop(slot);
        // A host that failed once is tried again.
        let heard = ask(fleet, &request).await.expect("an answer");
        assert!(heard.end.is_ok(), "{fault}");
    }
}

#[tokio::test]
async fn a_model_that_repeats_itself_ends_and_is_no_fault() {
    let sim = ollama_sim(&[]);
    let heard = ask(&fleet(&[&sim.url]), &request("[[repeat]]")).await.expect("an answer");
    assert_eq!(heard.pieces, 30);
    let error = heard.end.expect_err("no last line");
    assert_eq!(error, OllamaError::Repetition);
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_conversation_that_is_too_long_is_refused_with_both_figures() {
    let sim = ollama_sim(&[]);
    let mut request = request(&"many words ".repeat(500));
    request.options.num_ctx = Some(256);
    let error = ask(&fleet(&[&sim.url]), &request).await.expect_err("too long");
    let OllamaError::ContextTooLong { prompt_tokens, num_ctx } = error else {
        panic!("{error:?}");
    };
    assert!(prompt_tokens > 900, "{prompt_tokens}");
    assert_eq!(num_ctx, 256);
}

#[tokio::test]
async fn a_dropped_stream_stops_the_host_at_once() {
    let sim = ollama_sim(&[]);
    let fleet = fleet(&[&sim.url]);
    let slot = acquire(&fleet, MODEL).await.expect("a slot");
    let mut stream = slot.chat(&request("[[tokens=100000 rate=50]]")).await.expect("a stream");
    assert!(stream.next().await.expect("a piece").is_some());
    drop(stream);
    let dropped = Instant::now();
    until_stats(&sim, |stats| stats["running"] == 0 && stats["client_gone"] == 1).await;
    assert!(dropped.elapsed() < Duration::from_millis(500), "{:?}", dropped.elapsed());
}

#[tokio::test]
async fn a_request_dropped_before_its_first_token_stops_the_host_too() {
    let sim = ollama_sim(&[]);
    let fleet = fleet(&[&sim.url]);
    let slot = acquire(&fleet, MODEL).await.expect("a slot");
    let request = request("[[fault=hang]]");
    tokio::select! {
        answer = slot.chat(&request) => panic!("{answer:?}"),
        _ = until_stats(&sim, |stats| stats["running"] == 1) => {}
    }
    until_stats(&sim, |stats| stats["running"] == 0 && stats["client_gone"] == 1).await;
}

#[tokio::test]
async fn waiting_in_small_steps_loses_nothing_and_extends_no_limit() {
    let sim = ollama_sim(&[]);
    let config = FleetConfig { token_gap_timeout: 2 * SHORT, ..config(&[&sim.url]) };
    let fleet = Fleet::new(config).expect("a fleet");
    let request = request("[[tokens=60 rate=200 fault=stall@40]]");
    let slot = acquire(&fleet, MODEL).await.expect("a slot");
    let mut stream = slot.chat(&request).await.expect("a stream");
    let mut content = String::new();
    let mut dropped = 0;
    let error = loop {
        match tokio::time::timeout(Duration::from_millis(1), stream.next()).await {
            Err(_) => dropped += 1,
            Ok(Ok(Some(token))) => content += &token.content,
            Ok(Ok(None)) => panic!("an end without a word"),
            Ok(Err(error)) => break error,
        }
    };
    assert_eq!(error, OllamaError::TokenGapTimeout);
    assert!(dropped > 40, "{dropped}");
    drop((stream, slot));
    let whole = ask(&fleet, &request).await.expect("an answer");
    assert!(content.len() < whole.content.len() && whole.content.starts_with(&content));
}

#[tokio::test]
async fn a_reader_that_is_late_itself_is_no_gap_of_the_host() {
    let sim = ollama_sim(&[]);
    let config = FleetConfig { token_gap_timeout: SHORT, ..config(&[&sim.url]) };
    let fleet = Fleet::new(config).expect("a fleet");
    let slot = acquire(&fleet, MODEL).await.expect("a slot");
    let mut stream = slot.chat(&request("[[tokens=400 rate=1000]]")).await.expect("a stream");
    assert!(stream.next().await.expect("a piece").is_some());
    // Longer than the limit of a gap.
    tokio::time::sleep(2 * SHORT).await;
    let heard = hear(&mut stream).await;
    assert!(heard.end.is_ok(), "{:?}", heard.end);
}

#[tokio::test]
async fn reasoning_comes_apart_where_requested_and_only_from_a_model_that_reasons() {
    let sim = ollama_sim(&["--models", "thinker,tinyllama"]);
    let fleet = fleet(&[&sim.url]);
    let mut asked = request("[[tokens=20 think=10]]");
    let plain =
        ask(&fleet, &ModelRequest { think: Think::Yes, ..asked.clone() }).await.expect("an answer");
    assert!(plain.end.is_ok() && plain.thinking.is_empty());
    let silent = ask_of(&fleet, "thinker", &asked).await.expect("an answer");
    assert!(silent.end.is_ok() && silent.thinking.is_empty());
    asked.think = Think::Yes;
    let thinking = ask_of(&fleet, "thinker", &asked).await.expect("an answer");
    assert!(thinking.end.is_ok() && !thinking.thinking.is_empty());
    assert_eq!(thinking.content, silent.content);
}

#[tokio::test]
async fn a_broken_answer_continues_exactly_where_it_broke_off() {
    let sim = ollama_sim(&[]);
    let fleet = fleet(&[&sim.url]);
    let request = request("[[tokens=120 fault=cut@40]] a long story");
    let slot = acquire(&fleet, MODEL).await.expect("a slot");
    let broken = hear(&mut slot.chat(&request).await.expect("a stream")).await;
    assert_eq!(broken.end.expect_err("cut").code(), "upstream_interrupted");
    let prompt = slot.render(&request).await.expect("a reply").expect("a prompt");
    assert!(prompt.contains("a long story"));
    let prompt = prompt + &broken.content;
    let rest = hear(&mut slot.continue_raw(&request, &prompt).await.expect("a stream")).await;
    assert_eq!(rest.end.expect("an end").reason, DoneReason::Stop);
    let whole = hear(&mut slot.chat(&request).await.expect("a stream")).await;
    assert_eq!(broken.content + &rest.content, whole.content);
}

// Many hosts

#[tokio::test]
async fn models_are_merged_over_the_hosts_and_found_with_or_without_a_tag() {
    let first = ollama_sim(&["--models", "b,a:7b", "--model-ctx", "2048"]);
    let second = ollama_sim(&["--models", "b,c", "--model-ctx", "2048"]);
    let fleet = fleet(&[&first.url, &second.url]);
    let models = fleet.models().await.expect("models");
    let names: Vec<_> = models.iter().map(|model| &*model.name).collect();
    assert_eq!(names, ["a:7b", "b:latest", "c:latest"]);
    assert!(models.iter().all(|model| model.size > 0 && !model.digest.is_empty()));
    for model in ["a:7b", "b", "b:latest", "c"] {
        assert_eq!(fleet.check(model).await, Ok(()), "{model}");
        let slot = acquire(&fleet, model).await.expect("a slot");
        assert_eq!(slot.num_ctx().await, Ok(Some(2048)), "{model}");
    }
    assert_eq!(acquire(&fleet, "c").await.expect("a slot").model().name, "c:latest");
    let OllamaError::ModelNotFound { model, available } =
        fleet.check("a").await.expect_err("no such model")
    else {
        panic!("another error");
    };
    assert_eq!(
        (&*model, available),
        ("a", vec!["a:7b".into(), "b:latest".into(), "c:latest".into()])
    );
}

#[tokio::test]
async fn a_model_pulled_since_is_found_and_one_deleted_since_is_missed() {
    let sim = ollama_sim(&[]);
    let fleet = fleet(&[&sim.url]);
    assert_eq!(fleet.check(MODEL).await, Ok(()));
    assert_eq!(fleet.check("new").await.expect_err("not yet").code(), "model_not_found");
    let body = json!({"source": MODEL, "destination": "new"});
    let copied = http().post(format!("{}/api/copy", sim.url)).json(&body).send().await;
    assert!(copied.is_ok_and(|reply| reply.status().is_success()));
    assert_eq!(fleet.check("new").await, Ok(()));
    let slot = acquire(&fleet, "new").await.expect("a slot");
    let body = json!({"model": "new"});
    let deleted = http().delete(format!("{}/api/delete", sim.url)).json(&body).send().await;
    assert!(deleted.is_ok_and(|reply| reply.status().is_success()));
    assert_eq!(slot.chat(&request("hi")).await.expect_err("deleted").code(), "model_not_found");
    assert_eq!(fleet.check("new").await.expect_err("deleted").code(), "model_not_found");
}

#[tokio::test]
async fn a_host_has_no_more_clients_than_slots() {
    let sim = ollama_sim(&[]);
    let fleet = fleet(&[&sim.url]);
    let mut held = vec![acquire(&fleet, MODEL).await.expect("a slot")];
    held.push(acquire(&fleet, MODEL).await.expect("a slot"));
    let busy = acquire(&fleet, MODEL).await.expect_err("all are in use");
    assert_eq!(busy.code(), "upstream_busy");
    let (next, ()) = tokio::join!(acquire(&fleet, MODEL), async { drop(held.pop()) });
    assert!(next.is_ok(), "a stream that is just closed is waited for");
}

#[tokio::test]
async fn a_host_is_known_by_its_address_and_asked_by_its_name() {
    let sim = ollama_sim(&[]);
    let named = sim.url.replace("127.0.0.1", "localhost");
    let fleet = fleet(&[&named]);
    fleet.follow_names(&Lifecycle::default());
    let found = eventually(LIMIT, async || !fleet.hosts().is_empty()).await;
    assert!(found, "the name was not looked up");
    let heard = ask(&fleet, &request("[[tokens=3]]")).await.expect("an answer");
    assert!(heard.end.is_ok());
    let hosts = fleet.hosts();
    let ids: Vec<_> = hosts.iter().map(|host| host.id.as_str()).collect();
    assert_eq!(ids, [&*sim.url]);
}

#[tokio::test]
async fn a_dead_host_is_passed_over_and_without_a_live_one_there_is_an_error() {
    let (first, second) = (ollama_sim(&[]), ollama_sim(&[]));
    let fleet = fleet(&[&first.url, &second.url]);
    assert_eq!(fleet.healthy().await, 2);
    let slot = acquire(&fleet, MODEL).await.expect("a slot");
    first.kill();
    // A host that dies under a request is reported; later requests avoid it.
    let error = slot.chat(&request("hi")).await.expect_err("dead");
    assert!(error.is_retryable(), "{error:?}");
    drop(slot);
    for _ in 0..5 {
        let heard = ask(&fleet, &request("[[tokens=3]]")).await.expect("the other answers");
        assert!(heard.end.is_ok());
    }
    assert_eq!(fleet.healthy().await, 1);
    second.kill();
    // The first request may still meet the old list, or a connection that just broke.
    let error = ask(&fleet, &request("hi")).await.expect_err("dead");
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(fleet.models().await, Err(OllamaError::NoHost));
    assert_eq!(fleet.check(MODEL).await, Err(OllamaError::NoHost));
    assert_eq!(acquire(&fleet, MODEL).await.map(drop), Err(OllamaError::NoHost));
    assert_eq!(fleet.healthy().await, 0);
}

#[tokio::test]
async fn a_host_that_hangs_delays_no_request_that_has_another() {
    let sim = ollama_sim(&[]);
    let hung = Host::start(|_| None).await;
    let fleet = fleet(&[&hung.url, &sim.url]);
    let begun = Instant::now();
    for _ in 0..5 {
        fleet.check(MODEL).await.expect("the other has it");
        assert!(ask(&fleet, &request("[[tokens=3]]")).await.expect("an answer").end.is_ok());
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(fleet.healthy().await, 1);
}

#[tokio::test]
async fn a_host_that_comes_back_is_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let fleet = fleet(&[&format!("http://{address}")]);
    assert_eq!(fleet.check("m").await, Err(OllamaError::NoHost));
    let listener = TcpListener::bind(address).await.expect("the same port");
    let _host = Host::on(listener, |path| Some(odd_reply(path, b"")));
    let found = eventually(LIMIT, async || fleet.check("m").await.is_ok()).await;
    assert!(found, "the host is not found again");
    assert!(acquire(&fleet, "m").await.is_ok());
}

// Behaviour that no Ollama should have

#[tokio::test]
async fn anything_that_a_host_sends_instead_of_a_stream_is_one_clean_error() {
    let long_line = [&b"{\"response\":\""[..], &vec![b'x'; 2 << 20]].concat();
    let random: Vec<u8> =
        (0..10_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    for (name, body, code) in [
        ("nothing", &b""[..], "upstream_interrupted"),
        ("a page", b"<html>http://secret.internal</html>", "upstream_error"),
        ("a page with lines", b"<html>\n<body>\n", "upstream_error"),
        ("an array", b"[]\n", "upstream_error"),
        ("half a character and no end", b"{\"response\":\"\xe4\xb8\"}\n", "upstream_interrupted"),
        ("a number for a text", b"{\"response\":5}\n", "upstream_error"),
        ("an error at once", b"{\"error\":\"secret.internal died\"}\n", "upstream_interrupted"),
        ("an endless line", &long_line, "upstream_error"),
        ("random bytes", &random, "upstream_error"),
    ] {
        let body = body.to_vec();
        let host = Host::start(move |path| Some(odd_reply(path, &body))).await;
        let request = request("hi");
        let error = match ask_of(&fleet(&[&host.url]), "m", &request).await {
            Ok(heard) => heard.end.expect_err(name),
            Err(error) => error,
        };
        assert_eq!(error.code(), code, "{name}");
        for secret in ["secret", "http", "127.0.0.1"] {
            assert!(!error.to_string().contains(secret), "{name}: {error}");
        }
    }
}

#[tokio::test]
async fn a_last_line_without_a_line_break_is_an_end() {
    let host = Host::start(|path| {
        Some(odd_reply(path, b"{\"response\":\"a\"}\n{\"done\":true,\"done_reason\":\"stop\"}"))
    })
    .await;
    let request = request("hi");
    let heard = ask_of(&fleet(&[&host.url]), "m", &request).await.expect("an answer");
    assert_eq!(heard.content, "a");
    assert_eq!(heard.end.expect("an end").reason, DoneReason::Stop);
}

#[tokio::test]
async fn no_conversation_follows_a_redirect() {
    let elsewhere = Host::start(|path| Some(odd_reply(path, b""))).await;
    let location = format!("Location: {}/api/chat\r\n", elsewhere.url);
    let host = Host::start(move |path| {
        Some(if path == "/api/chat" {
            format!("HTTP/1.1 307 Temporary Redirect\r\n{location}Content-Length: 0\r\n\r\n").into()
        } else {
            odd_reply(path, b"")
        })
    })
    .await;
    let request = request("hi");
    let error = ask_of(&fleet(&[&host.url]), "m", &request).await.expect_err("a redirect");
    assert_eq!(error, OllamaError::Rejected { status: 307 });
    assert_eq!(elsewhere.accepted(), 0);
}

#[tokio::test]
async fn a_host_that_does_not_list_its_loaded_models_is_used_all_the_same() {
    let host = Host::start(|path| match path {
        "/api/ps" => Some(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>".to_vec()),
        _ => Some(odd_reply(path, b"{\"done\":true}\n")),
    })
    .await;
    let request = request("hi");
    let heard = ask_of(&fleet(&[&host.url]), "m", &request).await.expect("an answer");
    assert!(heard.end.is_ok());
}

#[tokio::test]
async fn a_server_that_is_no_ollama_counts_as_no_host() {
    let page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>";
    let host = Host::start(|_| Some(page.to_vec())).await;
    let fleet = fleet(&[&host.url]);
    for _ in 0..2 {
        assert_eq!(fleet.healthy().await, 0);
        assert_eq!(fleet.models().await, Err(OllamaError::NoHost));
    }
}

#[tokio::test]
async fn a_list_without_end_is_not_read() {
    let host = Host::start(|_| {
        let mut reply = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n".to_vec();
        reply.resize(9 << 20, b' ');
        Some(reply)
    })
    .await;
    let begun = Instant::now();
    assert_eq!(fleet(&[&host.url]).models().await, Err(OllamaError::NoHost));
    // The list is refused for its size, not for its time.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_host_that_cannot_render_is_an_error_before_any_text() {
    let host = Host::start(|path| {
        Some(odd_reply(path, b"{\"message\":{\"content\":\"one\"},\"done\":true}"))
    })
    .await;
    let fleet = fleet(&[&host.url]);
    let slot = acquire(&fleet, "m").await.expect("a slot");
    let request = request("hi");
    assert_eq!(slot.render(&request).await, Ok(None));
}

#[tokio::test]
async fn generations_one_after_another_share_a_connection() {
    let host = Host::start(|path| Some(odd_reply(path, b"{\"done\":true}\n"))).await;
    let fleet = fleet(&[&host.url]);
    let request = request("hi");
    ask_of(&fleet, "m", &request).await.expect("an answer").end.expect("an end");
    let before = host.accepted();
    for _ in 0..20 {
        ask_of(&fleet, "m", &request).await.expect("an answer").end.expect("an end");
    }
    assert_eq!(host.accepted(), before);
}

// Servers that are not quite Ollama

async fn arm(sim: &Process, fault: &Value) {
    let armed = http().post(format!("{}/sim/faults", sim.url)).json(fault).send().await;
    assert!(armed.is_ok_and(|reply| reply.status().is_success()), "{fault}");
}

/// Returns the breaker of the only host, and those of its models.
fn breakers(fleet: &Fleet) -> (BreakerState, Vec<(String, BreakerState)>) {
    let host = fleet.hosts().remove(0);
    let failed = host.failed.into_iter().map(|(model, state)| (model.to_string(), state));
    (host.breaker, failed.collect())
}

#[tokio::test]
async fn every_spelling_of_a_model_finds_it_and_the_host_is_asked_by_its_own() {
    let sim = ollama_sim(&["--models", "TinyLlama,hf.co/Org/Model:Q4_K_M"]);
    let fleet = fleet(&[&sim.url]);
    for (spelling, name) in [
        ("tinyllama", "TinyLlama:latest"),
        ("TINYLLAMA", "TinyLlama:latest"),
        ("tinyllama:LATEST", "TinyLlama:latest"),
        ("library/tinyllama", "TinyLlama:latest"),
        ("registry.ollama.ai/library/tinyllama:latest", "TinyLlama:latest"),
        (" TinyLlama\n", "TinyLlama:latest"),
        ("hf.co/org/model:q4_k_m", "hf.co/Org/Model:Q4_K_M"),
    ] {
        let heard = ask_of(&fleet, spelling, &request("[[tokens=3]]")).await.expect(spelling);
        assert!(heard.end.is_ok(), "{spelling}");
        let requests = sim_json(&sim, "/sim/requests").await;
        let asked = requests["requests"].as_array().expect("a list").last().expect("a request");
        assert_eq!(asked["request"]["model"], name, "{spelling}");
    }
    assert_eq!(fleet.check("tiny llama").await.expect_err("no name").code(), "model_not_found");
}

#[tokio::test]
async fn an_answer_that_is_written_oddly_arrives_whole_and_is_no_fault() {
    let sim = ollama_sim(&[]);
    let fleet = fleet(&[&sim.url]);
    for (dialect, eval_count) in
        [("null", 0), ("loose", 300), ("bom", 300), ("halves", 300), ("lone", 300), ("undone", 300)]
    {
        let message = format!("[[tokens=300 fault={dialect}!]] with every kind of character");
        let mut wanted = ollama_sim::script_answer(MODEL, &message, Some(1), 64);
        assert!(wanted.chars().any(|character| character > '\u{ffff}'), "some are two halves");
        if dialect == "lone" {
            wanted = format!("\u{fffd}{wanted}\u{fffd}");
        }
        for _ in 0..5 {
            let heard = ask(&fleet, &request(&message)).await.expect(dialect);
            assert_eq!(heard.content, wanted, "{dialect}");
            let done = heard.end.expect(dialect);
            assert_eq!((done.reason, done.eval_count), (DoneReason::Stop, eval_count), "{dialect}");
        }
    }
    assert_eq!(breakers(&fleet), (BreakerState::Closed, vec![]));
}

#[tokio::test]
async fn a_load_or_unload_instead_of_an_answer_is_no_answer() {
    let sim = ollama_sim(&[]);
    let fleet = fleet(&[&sim.url]);
    for reason in ["load", "unload"] {
        let once = request(&format!("[[tokens=5 fault={reason}]]"));
        let error = ask(&fleet, &once).await.expect("a stream").end.expect_err(reason);
        assert_eq!(error, OllamaError::NotAnswered, "{reason}");
        assert!(error.is_retryable());
        assert!(ask(&fleet, &once).await.expect("an answer").end.is_ok(), "{reason}");
        let always = request(&format!("[[tokens=5 fault={reason}!]]"));
        for _ in 0..5 {
            let error = ask(&fleet, &always).await.expect("a stream").end.expect_err(reason);
            assert_eq!(error, OllamaError::NotAnswered, "{reason}");
        }
    }
    assert_eq!(breakers(&fleet), (BreakerState::Closed, vec![]));
}

#[tokio::test]
async fn odd_entries_of_a_list_cost_themselves_and_the_other_models_stay() {
    let sim = ollama_sim(&["--models", "tinyllama,other"]);
    arm(&sim, &json!({"fault": "odd", "path": "/api/tags", "times": 1_000_000})).await;
    let fleet = fleet(&[&sim.url]);
    let models = fleet.models().await.expect("models");
    let listed: Vec<_> = models.iter().map(|model| (&*model.name, model.size)).collect();
    assert_eq!(listed, [("other:latest", 0), (MODEL, 0)]);
    assert!(ask(&fleet, &request("[[tokens=3]]")).await.expect("an answer").end.is_ok());
}

#[tokio::test]
async fn a_host_of_an_old_release_that_describes_no_model_answers() {
    let sim = ollama_sim(&[]);
    for path in ["/api/ps", "/api/show"] {
        arm(&sim, &json!({"fault": "status@404", "path": path, "times": 1_000_000})).await;
    }
    let fleet = fleet(&[&sim.url]);
    for think in [Think::No, Think::Yes] {
        let request = ModelRequest { think, ..request("[[tokens=3]]") };
        let slot = acquire(&fleet, MODEL).await.expect("a slot");
        assert_eq!(slot.num_ctx().await, Ok(None));
        let heard = hear(&mut slot.chat(&request).await.expect("a stream")).await;
        assert!(heard.end.is_ok(), "{heard:?}");
    }
    assert_eq!(breakers(&fleet), (BreakerState::Closed, vec![]));
}

#[tokio::test]
async fn a_model_that_its_host_cannot_run_is_refused_and_opens_no_breaker() {
    let models = "tinyllama,big,nomic-embed-text,alien";
    let sim = ollama_sim(&["--models", models, "--too-large", "big"]);
    let fleet = fleet(&[&sim.url]);
    for (model, code, elsewhere) in [
        ("big", "model_too_large", true),
        ("nomic-embed-text", "model_unsupported", false),
        ("alien", "model_unsupported", true),
    ] {
        for _ in 0..5 {
            let error = ask_of(&fleet, model, &request("hi")).await.expect_err(model);
            assert_eq!((error.code(), error.is_retryable()), (code, false), "{model}");
            assert_eq!(error.may_differ_elsewhere(), elsewhere, "{model}");
            assert!(error.to_string().contains(model), "{error}");
        }
    }
    assert_eq!(breakers(&fleet), (BreakerState::Closed, vec![]));
    assert!(ask(&fleet, &request("[[tokens=3]]")).await.expect("an answer").end.is_ok());
}

#[tokio::test]
async fn a_model_that_keeps_failing_opens_its_own_breaker_and_not_that_of_its_host() {
    for fault in ["status@500", "garbage@0", "end@0"] {
        let sim = ollama_sim(&["--models", "tinyllama,broken"]);
        let armed = json!({"fault": fault, "model": "broken:latest", "times": 1_000_000});
        arm(&sim, &armed).await;
        let fleet = fleet(&[&sim.url]);
        let request = request("[[tokens=3]]");
        let fails = async || match ask_of(&fleet, "broken", &request).await {
            Ok(heard) => heard.end.expect_err(fault),
            Err(error) => error,
        };
        for _ in 0..3 {
            assert!(fails().await.code().starts_with("upstream_"), "{fault}");
        }
        let error = fails().await;
        assert_eq!(error.code(), "model_unavailable", "{fault}");
        assert!(error.is_retryable() && error.retry_after().is_some());
        let left_alone = vec![("broken:latest".to_owned(), BreakerState::Open)];
        assert_eq!(breakers(&fleet), (BreakerState::Closed, left_alone), "{fault}");
        assert!(ask(&fleet, &request).await.expect(fault).end.is_ok(), "{fault}");
        // Once the model works again, one trial closes its breaker.
        let cleared = http().delete(format!("{}/sim/faults", sim.url)).send().await;
        assert!(cleared.is_ok_and(|reply| reply.status().is_success()));
        let works = async || {
            matches!(ask_of(&fleet, "broken", &request).await, Ok(Heard { end: Ok(_), .. }))
        };
        assert!(eventually(LIMIT, works).await, "{fault}: never tried again");
        let well = vec![("broken:latest".to_owned(), BreakerState::Closed)];
        assert_eq!(breakers(&fleet), (BreakerState::Closed, well), "{fault}");
    }
}

#[tokio::test]
async fn a_host_that_fails_several_models_opens_its_breaker() {
    let sim = ollama_sim(&["--models", "tinyllama,one,two"]);
    arm(&sim, &json!({"fault": "status@500", "times": 1_000_000})).await;
    let fleet = fleet(&[&sim.url]);
    for model in ["one", "two"] {
        fleet.check(model).await.expect("it is there");
        assert_eq!(breakers(&fleet).0, BreakerState::Closed);
        for _ in 0..3 {
            ask_of(&fleet, model, &request("hi")).await.expect_err("a failure");
        }
    }
    assert_eq!(breakers(&fleet).0, BreakerState::Open);
}

/// Returns a reply for every path that a fleet requests before it chats, and `body` for the chat.
fn odd_reply(path: &str, body: &[u8]) -> Vec<u8> {
    let body = match path {
        "/api/tags" => b"{\"models\":[{\"name\":\"m:latest\"}]}",
        "/api/ps" => &b"{\"models\":null}"[..],
        "/api/version" => b"{\"version\":\"0\"}",
        _ => body,
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A host that answers a path with any bytes, or never.
struct Host {
    url: String,
    accepted: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Host {
    async fn start(reply: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.expect("a port"), reply)
    }

    fn on(
        listener: TcpListener,
        reply: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (counter, reply) = (Arc::clone(&accepted), Arc::new(reply));
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("a connection");
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(socket, Arc::clone(&reply)));
            }
        });
        Self { url, accepted, accepting }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers the requests of one connection until the client closes it.
async fn answer(mut socket: TcpStream, reply: Arc<impl Fn(&str) -> Option<Vec<u8>>>) {
    let mut received = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            match socket.read_buf(&mut received).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let text = String::from_utf8_lossy(&received[..head]).to_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(0, |length| length.trim().parse().expect("a length"));
        let path = text.split(' ').nth(1).expect("a path").to_owned();
        while received.len() < head + length {
            match socket.read_buf(&mut received).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        received.drain(..head + length);
        match reply(&path) {
            None => std::future::pending().await,
            Some(bytes) => {
                if socket.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}
