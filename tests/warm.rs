//! Models that are loaded before the first request.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{chat, get, send, until_ok};
use support::eventually;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use uuid::Uuid;

async fn loads(ollama: &Process) -> Vec<Value> {
    let asked = get(ollama, "/sim/requests").await.body;
    let asked = asked["requests"].as_array().expect("requests").clone();
    asked.into_iter().filter(|asked| asked["outcome"] == "load").collect()
}

#[tokio::test]
async fn models_are_loaded_at_the_start_as_generations_want_them_and_no_turn_waits_for_it() {
    let redis = RedisServer::start();
    let slow = ollama_sim(&["--models", "tinyllama,other", "--load-ms", "3000"]);
    let hosts = format!("{},{}", slow.url, ollama_sim(&["--models", "third"]).url);
    let preload = [("JARVIS_PRELOAD", "tinyllama:latest, nowhere"), ("JARVIS_NUM_CTX", "2048")];
    let replica = jarvis(&redis.url(), &hosts, &preload);
    until_ok(&replica, "/health/ready").await;
    assert_eq!(loads(&slow).await, Vec::<Value>::new(), "ready before anything is loaded");
    let loaded = eventually(LIMIT, async || !loads(&slow).await.is_empty()).await;
    assert!(loaded, "not loaded in time");
    let loaded = get(&slow, "/api/ps").await.body;
    let names: Vec<_> = loaded["models"].as_array().expect("models").iter().collect();
    assert_eq!(names.len(), 1, "only what was asked for: {loaded}");
    assert_eq!(names[0]["name"], "tinyllama:latest");
    let reply = chat(&replica, &Uuid::new_v4().to_string(), "[[tokens=3]] hello").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let seconds = reply.body["response_time"].as_f64().expect("seconds");
    assert!(seconds < 2.5, "the first question waited {seconds} s for the model");
    assert_eq!(get(&slow, "/sim/stats").await.body["reloads"], 0);
}

#[tokio::test]
async fn a_host_that_answers_late_is_preloaded_when_it_does() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    let fault = json!({"fault": "status", "status": 500, "path": "/api/tags", "times": 2});
    let client = support::client::http();
    send(client.post(format!("{}/sim/faults", ollama.url)).json(&fault)).await;
    let replica = jarvis(&redis.url(), &ollama.url, &[("JARVIS_PRELOAD", "tinyllama")]);
    until_ok(&replica, "/health/ready").await;
    let loaded = eventually(LIMIT, async || !loads(&ollama).await.is_empty()).await;
    assert!(loaded, "not loaded in time");
}
