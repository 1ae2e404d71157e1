//! Model hosts as clients meet them: names, refusals, models that fail, and servers that are not
//! quite Ollama.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::client::{Reply, http, post, send, until_ok};
use support::metrics::{metrics, until_metric};
use support::process::{Process, jarvis, ollama_sim};
use support::redis::RedisServer;

/// The time limit of a reply that comes at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

struct Service {
    replica: Process,
    _redis: RedisServer,
}

impl Service {
    async fn start(hosts: &[&Process], extra: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start();
        let urls: Vec<_> = hosts.iter().map(|host| format!("{};slots=4", host.url)).collect();
        let replica = jarvis(&redis.url(), &urls.join(","), extra);
        until_ok(&replica, "/health/ready").await;
        Self { replica, _redis: redis }
    }

    async fn ask(&self, model: &str, message: &str) -> Reply {
        post(&self.replica, "/api/v1/chat/", &json!({"message": message, "model": model})).await
    }

    async fn metrics(&self) -> String {
        metrics(&self.replica).await
    }

    /// Waits for a line of the metrics, or where no value is given, for one of any value.
    async fn until_metric(&self, line: &str) {
        let is_it = |found: &str| found == line || line.ends_with('}') && found.starts_with(line);
        until_metric(&self.replica, line, is_it).await;
    }
}

async fn arm(host: &Process, fault: &Value) {
    assert_eq!(send(http().post(format!("{}/sim/faults", host.url)).json(fault)).await.status, 204);
}

/// Returns the outcomes of the requests for a model.
async fn outcomes(host: &Process, model: &str) -> Vec<String> {
    let requests = send(http().get(format!("{}/sim/requests", host.url))).await.body;
    let requests = requests["requests"].as_array().expect("a list").iter();
    let of_model = requests.filter(|request| request["request"]["model"] == model);
    of_model.map(|request| request["outcome"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn every_spelling_of_a_model_is_answered_and_comes_back_as_it_was_sent() {
    let sim = ollama_sim(&["--models", "tinyllama,hf.co/Org/Model:Q4_K_M"]);
    let service = Service::start(&[&sim], &[("JARVIS_DEFAULT_MODEL", " TinyLlama ")]).await;
    for spelling in [
        "TinyLlama",
        "TINYLLAMA",
        "tinyllama:LATEST",
        "library/tinyllama",
        "registry.ollama.ai/library/tinyllama:latest",
        " tinyllama\t",
        "hf.co/org/model:q4_k_m",
    ] {
        let reply = service.ask(spelling, "[[tokens=3]] hi").await;
        assert_eq!(reply.status, 200, "{spelling:?}: {}", reply.body);
        assert_eq!(reply.body["model"], spelling.trim());
    }
    let by_default = json!({"message": "[[tokens=3]] hi"});
    let reply = post(&service.replica, "/api/v1/chat/", &by_default).await;
    assert_eq!((reply.status, &reply.body["model"]), (200, &json!("TinyLlama")));
}

#[tokio::test]
async fn an_invalid_model_name_is_422_and_becomes_no_label() {
    let sim = ollama_sim(&[]);
    let service = Service::start(&[&sim], &[]).await;
    let long = "x".repeat(300);
    for wrong in ["tiny llama", "größe", ":latest", "tinyllama:", "a/b/c/d", " ", "", &*long] {
        let reply = service.ask(wrong, "hi").await;
        assert_eq!(reply.status, 422, "{wrong:?}: {}", reply.body);
        assert_eq!(reply.body["errors"][0]["loc"], json!(["body", "model"]), "{wrong:?}");
    }
    let reply = service.ask("SoUnknown", "hi").await;
    assert_eq!((reply.status, &reply.body["code"]), (404, &json!("model_not_found")));
    assert_eq!(reply.body["detail"], "there is no model SoUnknown; there are: tinyllama:latest");
    assert!(!service.metrics().await.to_lowercase().contains("sounknown"));
}

#[tokio::test]
async fn a_fleet_without_models_is_an_error_and_no_empty_list() {
    let sim = ollama_sim(&["--models", ""]);
    let service = Service::start(&[&sim], &[]).await;
    let reply = service.ask("tinyllama", "hi").await;
    assert_eq!(reply.status, 404, "{}", reply.body);
    let wanted = "there is no model tinyllama; the model hosts have none yet: pull one first";
    assert_eq!(reply.body["detail"], wanted);
}

#[tokio::test]
async fn a_model_that_its_host_cannot_run_is_one_clear_error_at_once_and_costs_no_other_turn() {
    let models = "tinyllama,big,nomic-embed-text,alien";
    let sim = ollama_sim(&["--models", models, "--too-large", "big"]);
    let service = Service::start(&[&sim], &[]).await;
    for (model, code) in [
        ("big", "model_too_large"),
        ("nomic-embed-text", "model_unsupported"),
        ("alien", "model_unsupported"),
    ] {
        for turn in 1..=4 {
            let began = Instant::now();
            let reply = service.ask(model, "hi").await;
            assert_eq!((reply.status, &reply.body["code"]), (422, &json!(code)), "{}", reply.body);
            assert!(began.elapsed() < AT_ONCE, "{model}: {:?}", began.elapsed());
            let detail = reply.body["detail"].as_str().expect("text");
            assert!(detail.ends_with("; choose another model"), "{detail}");
            assert_eq!(reply.body["errors"][0]["loc"], json!(["body", "model"]));
            assert!(!reply.headers.contains_key("retry-after"));
            let asked = outcomes(&sim, &format!("{model}:latest")).await;
            assert_eq!(asked.len(), turn, "one request a turn: {asked:?}");
        }
        let began = Instant::now();
        let reply = service.ask("tinyllama", "[[tokens=3]] hi").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
    service.until_metric(&format!("jarvis_breaker_open{{host=\"{}\"}} 0", sim.url)).await;
    assert!(!service.metrics().await.contains("jarvis_model_breaker_open{"));
}

#[tokio::test]
async fn a_model_that_one_host_has_no_memory_for_is_answered_by_another() {
    let (small, large) = (ollama_sim(&["--too-large", "tinyllama"]), ollama_sim(&[]));
    let service = Service::start(&[&small, &large], &[]).await;
    // The requests come together, so that both hosts get some.
    let turns = (0..6).map(|_| service.ask("tinyllama", "[[tokens=3]] hi"));
    for reply in join_all(turns).await {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    assert!(!outcomes(&small, "tinyllama:latest").await.is_empty(), "the first was asked, too");
    let smaller = ollama_sim(&["--too-large", "tinyllama"]);
    let service = Service::start(&[&small, &smaller], &[]).await;
    let before = outcomes(&small, "tinyllama:latest").await.len();
    let reply = service.ask("tinyllama", "hi").await;
    assert_eq!((reply.status, &reply.body["code"]), (422, &json!("model_too_large")));
    let asked = outcomes(&small, "tinyllama:latest").await.len() - before;
    assert_eq!((asked, outcomes(&smaller, "tinyllama:latest").await.len()), (1, 1), "each once");
}

#[tokio::test]
async fn a_host_that_fails_one_model_answers_the_others() {
    for fault in ["status@500", "garbage@1"] {
        let sim = ollama_sim(&["--models", "tinyllama,broken"]);
        let service = Service::start(&[&sim], &[]).await;
        let armed = json!({"fault": fault, "model": "broken:latest", "times": 1_000_000});
        arm(&sim, &armed).await;
        let fails = async {
            // Long enough that single pieces do not complete it.
            let reply = service.ask("broken", "[[tokens=900]] hi").await;
            assert!(matches!(reply.status, 502 | 503), "{fault}: {}", reply.body);
        };
        let others = async {
            for _ in 0..20 {
                let began = Instant::now();
                let reply = service.ask("tinyllama", "[[tokens=3]] hi").await;
                assert_eq!(reply.status, 200, "{fault}: {}", reply.body);
                assert!(began.elapsed() < AT_ONCE, "{fault}: {:?}", began.elapsed());
                // Others ask over the second in which the broken model fails.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::join!(fails, others);
        let reply = service.ask("tinyllama", "[[tokens=3]] hi").await;
        assert_eq!(reply.status, 200, "{fault}: {}", reply.body);
        let host = format!("host=\"{}\"", sim.url);
        service.until_metric(&format!("jarvis_breaker_open{{{host}}} 0")).await;
        let failed = format!("jarvis_model_breaker_open{{{host},model=\"broken:latest\"}}");
        service.until_metric(&failed).await;
    }
}

#[tokio::test]
async fn a_model_that_fails_for_long_is_reported_soon_with_a_retry_time() {
    let sim = ollama_sim(&["--models", "tinyllama,broken"]);
    let service = Service::start(&[&sim], &[]).await;
    let armed = json!({"fault": "status@500", "model": "broken:latest", "times": 1_000_000});
    arm(&sim, &armed).await;
    let mut codes = Vec::new();
    while codes.last() != Some(&"model_unavailable".to_owned()) {
        assert!(codes.len() < 6, "{codes:?}");
        let began = Instant::now();
        let reply = service.ask("broken", "hi").await;
        // The wait covers the failures before: three tries, and two pauses between them.
        assert!(began.elapsed() < 3 * AT_ONCE, "{codes:?}: {:?}", began.elapsed());
        codes.push(reply.body["code"].as_str().expect("a code").to_owned());
        let is_last = codes.last().is_some_and(|code| code == "model_unavailable");
        assert_eq!(reply.status, if is_last { 503 } else { 502 }, "{}", reply.body);
        assert!(reply.headers.contains_key("retry-after"), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_host_that_loads_or_unloads_instead_of_answering_is_retried_a_bounded_number_of_times() {
    let sim = ollama_sim(&[]);
    let service = Service::start(&[&sim], &[]).await;
    for reason in ["load", "unload"] {
        let message = format!("[[tokens=20 fault={reason}]] once");
        let reply = service.ask("tinyllama", &message).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let wanted = ollama_sim::script_answer("tinyllama", &message, None, 64);
        assert_eq!(reply.body["response"], wanted);
        let reply = service.ask("tinyllama", &format!("[[fault={reason}!]] always")).await;
        assert_eq!((reply.status, &reply.body["code"]), (502, &json!("upstream_error")));
    }
    service.until_metric(&format!("jarvis_breaker_open{{host=\"{}\"}} 0", sim.url)).await;
    assert!(!service.metrics().await.contains("jarvis_model_breaker_open{"));
}

#[tokio::test]
async fn an_answer_of_a_server_that_is_not_quite_ollama_is_stored_whole() {
    let sim = ollama_sim(&[]);
    for (fault, path) in
        [("odd", "/api/tags"), ("status@404", "/api/ps"), ("status@404", "/api/show")]
    {
        arm(&sim, &json!({"fault": fault, "path": path, "times": 1_000_000})).await;
    }
    let service = Service::start(&[&sim], &[]).await;
    for dialect in ["null", "loose", "bom", "halves", "lone", "undone"] {
        let message = format!("[[tokens=200 fault={dialect}!]] hi");
        let mut wanted = ollama_sim::script_answer("tinyllama", &message, None, 64);
        if dialect == "lone" {
            wanted = format!("\u{fffd}{wanted}\u{fffd}");
        }
        for _ in 0..3 {
            let reply = service.ask("tinyllama", &message).await;
            assert_eq!(reply.status, 200, "{dialect}: {}", reply.body);
            assert_eq!(reply.body["response"], wanted, "{dialect}");
        }
        assert_eq!(outcomes(&sim, "tinyllama:latest").await.len(), 3, "{dialect}: asked once each");
        assert_eq!(send(http().delete(format!("{}/sim/requests", sim.url))).await.status, 204);
    }
    assert!(!service.metrics().await.contains("jarvis_model_breaker_open{"));
}
