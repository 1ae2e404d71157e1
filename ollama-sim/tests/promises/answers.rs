//! What a stream contains, and how it ends.

use std::time::{Duration, Instant};

use ollama_sim::{Config, count_tokens, script_answer, script_pieces};
use serde_json::json;

use crate::support::{ask, plain, with, world};

#[tokio::test]
async fn a_stream_is_exactly_the_script() {
    let world = plain().await;
    for tokens in [0, 1, 10, 700] {
        let message = format!("tell me [[tokens={tokens}]]");
        let streamed = world.chat(&ask(&message)).await;
        assert_eq!(streamed.pieces, script_pieces("tinyllama", &message, None, 64));
        assert_eq!(streamed.figure("eval_count"), tokens);
        assert_eq!(streamed.last["done_reason"], "stop");
    }
}

#[tokio::test]
async fn the_answer_depends_on_the_last_user_message_and_not_on_the_others() {
    let world = plain().await;
    let alone = world.chat(&ask("same?")).await.answer();
    let messages = json!({"messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": "indeed"},
        {"role": "user", "content": "same?"},
    ]});
    let among = world.chat(&with(ask(""), &messages)).await.answer();
    assert_eq!(alone, among);
    let prompted = world
        .generate(&json!({"model": "tinyllama:latest", "prompt": "same?", "system": "x"}))
        .await;
    assert_eq!(alone, prompted.answer());
    let seeded = world.chat(&with(ask("same?"), &json!({"options": {"seed": 7}}))).await;
    assert_eq!(seeded.answer(), script_answer("tinyllama", "same?", Some(7), 64));
    assert_ne!(alone, seeded.answer());
}

#[tokio::test]
async fn a_last_line_has_every_figure_in_nanoseconds() {
    let world = plain().await;
    let started = Instant::now();
    let streamed = world.chat(&ask("figures [[first_ms=30]]")).await;
    let most = u64::try_from(started.elapsed().as_nanos()).expect("fits");
    assert_eq!(streamed.last["message"], json!({"role": "assistant", "content": ""}));
    assert_eq!(streamed.last["model"], "tinyllama");
    let parts = ["load_duration", "prompt_eval_duration", "eval_duration"];
    let sum: u64 = parts.iter().map(|name| streamed.figure(name)).sum();
    assert!(streamed.figure("prompt_eval_duration") >= 29_000_000);
    assert!(sum <= streamed.figure("total_duration"));
    assert!(streamed.figure("total_duration") <= most);
    let prompt = world.rendered(&ask("figures [[first_ms=30]]")).await;
    assert_eq!(streamed.figure("prompt_eval_count"), count_tokens(&prompt) as u64);
}

#[tokio::test]
async fn without_a_stream_it_is_one_object() {
    let world = plain().await;
    let request = with(ask("one object"), &json!({"stream": false}));
    let response = world.post("/api/chat", &request).await;
    let content_type = response.headers()["content-type"].clone();
    assert_eq!(content_type, "application/json; charset=utf-8");
    let object: serde_json::Value = response.json().await.expect("JSON");
    let wanted = script_answer("tinyllama", "one object", None, 64);
    assert_eq!(object["message"]["content"], wanted);
    assert_eq!(object["done_reason"], "stop");
    assert_eq!(object["eval_count"], 64);
}

#[tokio::test]
async fn a_limit_counts_tokens_and_not_pieces() {
    let world = plain().await;
    let request = with(ask("limit"), &json!({"options": {"num_predict": 30}}));
    let streamed = world.chat(&request).await;
    assert_eq!(streamed.figure("eval_count"), 30);
    assert!(streamed.pieces.len() < 30);
    assert_eq!(streamed.last["done_reason"], "length");
    assert_eq!(count_tokens(&streamed.answer()), 30);
    assert!(script_answer("tinyllama", "limit", None, 64).starts_with(&streamed.answer()));
    for unlimited in [0, -1] {
        let options = json!({"options": {"num_predict": unlimited}});
        let streamed = world.chat(&with(ask("limit"), &options)).await;
        assert_eq!(streamed.figure("eval_count"), 64);
        assert_eq!(streamed.last["done_reason"], "stop");
    }
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_before_it() {
    let world = plain().await;
    let message = "[[say]]one two three four";
    let request = with(ask(message), &json!({"options": {"stop": ["zero", "ee"]}}));
    let streamed = world.chat(&request).await;
    assert_eq!(streamed.answer(), "one two thr");
    assert_eq!(streamed.last["done_reason"], "stop");
}

#[tokio::test]
async fn a_model_that_reasons_does_so_first_unless_the_request_forbids_it() {
    let config =
        Config { models: vec!["tinyllama".into(), "qwen-think".into()], ..Config::default() };
    let world = world(config).await;
    let request = with(ask("why"), &json!({"model": "qwen-think"}));
    let answer = script_answer("qwen-think", "why", None, 64);
    for think in [json!(null), json!(true), json!("high")] {
        let streamed = world.chat(&with(request.clone(), &json!({"think": think}))).await;
        assert!(!streamed.reasoning.is_empty());
        assert_eq!(streamed.answer(), answer);
    }
    let streamed = world.chat(&with(request, &json!({"think": false}))).await;
    assert!(streamed.reasoning.is_empty());
    assert_eq!(streamed.answer(), answer);
    let (status, error) =
        world.refused("/api/chat", &with(ask("why"), &json!({"think": true}))).await;
    assert_eq!(status, 400);
    assert_eq!(error, r#""tinyllama" does not support thinking"#);
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_an_error_only_where_it_may_not_be_cut() {
    let world = plain().await;
    let long = "word ".repeat(600);
    let options = json!({"options": {"num_ctx": 512}});
    let request = with(ask(&long), &options);
    let strict = with(request.clone(), &json!({"truncate": false}));
    let (status, error) = world.refused("/api/chat", &strict).await;
    assert_eq!(status, 400);
    for part in ["exceed_context_size_error", "n_prompt_tokens", "n_ctx"] {
        assert!(error.contains(part), "{error}");
    }
    let streamed = world.chat(&request).await;
    assert_eq!(streamed.figure("prompt_eval_count"), 258);
    assert_eq!(streamed.answer(), "");

    let messages = json!({"messages": [
        {"role": "user", "content": long},
        {"role": "user", "content": "short"},
    ]});
    let streamed = world.chat(&with(request, &messages)).await;
    assert_eq!(streamed.answer(), script_answer("tinyllama", "short", None, 64));
}

#[tokio::test]
async fn a_full_context_ends_the_answer_only_where_it_may_not_shift() {
    let world = plain().await;
    let options = json!({"options": {"num_ctx": 100}, "truncate": false});
    let request = with(ask("long [[tokens=300]]"), &options);
    let streamed = world.chat(&request).await;
    assert_eq!(streamed.figure("eval_count"), 300);
    let streamed = world.chat(&with(request, &json!({"shift": false}))).await;
    assert_eq!(streamed.last["done_reason"], "length");
    assert_eq!(streamed.figure("eval_count") + streamed.figure("prompt_eval_count"), 100);
}

#[tokio::test]
async fn a_rate_is_kept() {
    let world = plain().await;
    let started = Instant::now();
    world.chat(&ask("[[count tokens=41 rate=400 first_ms=50]]")).await;
    assert!(started.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn counting_counts() {
    let world = plain().await;
    let streamed = world.chat(&ask("[[count tokens=5]]")).await;
    assert_eq!(streamed.answer(), "1 2 3 4 5");
}

#[tokio::test]
async fn thirty_equal_pieces_end_a_stream_without_a_last_line() {
    let world = plain().await;
    let lines = world.lines("/api/chat", &ask("[[repeat]]")).await;
    assert_eq!(lines.len(), 30);
    for line in &lines {
        assert_eq!(line["message"]["content"], " again");
        assert_eq!(line["done"], false);
    }
    world.stats_when("ended", |stats| stats.completed == 1).await;
}

#[tokio::test]
async fn a_message_without_directives_gets_the_set_answer_and_one_with_them_its_own() {
    let world = world(Config { say: Some("A set text.".to_owned()), ..Config::default() }).await;
    assert_eq!(world.chat(&ask("anything")).await.answer(), "A set text.");
    assert_eq!(world.chat(&ask("[[say]]its own")).await.answer(), "its own");
    assert_eq!(world.chat(&ask("[[tokens=3 count]]")).await.answer().trim(), "1 2 3");
}
