//! Models, and the errors of Ollama.

use ollama_sim::Config;
use serde_json::{Value, json};

use crate::support::{ask, plain, with, world};

#[tokio::test]
async fn the_root_page_reports_that_it_is_running() {
    let world = plain().await;
    let url = world.sim.url();
    let text = world.client.get(&url).send().await.expect("an answer");
    assert_eq!(text.text().await.expect("text"), "Ollama is running");
    assert_eq!(world.client.head(&url).send().await.expect("an answer").status(), 200);
    assert!(world.get("/api/version").await["version"].is_string());
}

#[tokio::test]
async fn a_name_without_a_tag_means_latest_and_a_copy_has_the_same_digest() {
    let world = plain().await;
    let copy = json!({"source": "tinyllama", "destination": "mine:v1"});
    assert_eq!(world.post("/api/copy", &copy).await.status(), 200);
    let tags = world.get("/api/tags").await;
    let models = tags["models"].as_array().expect("a list");
    let names: Vec<_> = models.iter().map(|m| m["name"].as_str()).collect();
    assert_eq!(names, [Some("mine:v1"), Some("tinyllama:latest")]);
    assert_eq!(models[0]["digest"], models[1]["digest"]);
    for model in models {
        for key in ["model", "modified_at", "size", "digest", "details"] {
            assert!(!model[key].is_null(), "{key}");
        }
    }
    let mine = with(ask("x"), &json!({"model": "mine:v1"}));
    assert_eq!(world.chat(&mine).await.answer(), world.chat(&ask("x")).await.answer());
    let url = format!("{}/api/delete", world.sim.url());
    let body = json!({"model": "mine:v1"}).to_string();
    for status in [200, 404] {
        let delete = world.client.delete(&url).body(body.clone()).send().await;
        assert_eq!(delete.expect("an answer").status(), status);
    }
    assert_eq!(world.refused("/api/chat", &mine).await.0, 404);
}

#[tokio::test]
async fn show_has_the_context_length_and_the_capabilities() {
    let config =
        Config { models: vec!["a".into(), "b-think".into()], model_ctx: 2048, ..Config::default() };
    let world = world(config).await;
    for (name, wanted) in
        [("a", json!(["completion"])), ("b-think", json!(["completion", "thinking"]))]
    {
        let response = world.post("/api/show", &json!({"model": name})).await;
        let show: Value = response.json().await.expect("JSON");
        let family = show["model_info"]["general.architecture"].as_str().expect("a name");
        assert_eq!(show["model_info"][format!("{family}.context_length")], 2048);
        assert_eq!(show["capabilities"], wanted);
        assert!(show["template"].as_str().is_some_and(|t| t.contains("<|im_start|>")));
    }
}

#[tokio::test]
async fn ps_lists_what_is_loaded_until_it_is_unloaded() {
    let world = plain().await;
    assert_eq!(world.get("/api/ps").await, json!({"models": []}));
    let load = json!({"model": "tinyllama", "options": {"num_ctx": 1024}});
    let loaded: Value = world.post("/api/chat", &load).await.json().await.expect("JSON");
    assert_eq!(loaded["done_reason"], "load");
    assert_eq!(loaded["done"], true);
    let ps = world.get("/api/ps").await;
    assert_eq!(ps["models"][0]["name"], "tinyllama:latest");
    assert_eq!(ps["models"][0]["context_length"], 1024);
    assert!(ps["models"][0]["expires_at"].is_string());
    let unload = json!({"model": "tinyllama", "keep_alive": 0});
    for path in ["/api/chat", "/api/generate"] {
        let unloaded: Value = world.post(path, &unload).await.json().await.expect("JSON");
        assert_eq!(unloaded["done_reason"], "unload");
    }
    assert_eq!(world.get("/api/ps").await, json!({"models": []}));
    world.chat(&with(ask("x"), &json!({"keep_alive": 0}))).await;
    assert_eq!(world.get("/api/ps").await, json!({"models": []}));
}

#[tokio::test]
async fn errors_have_the_statuses_and_texts_of_the_real_one() {
    let world = plain().await;
    let unknown = with(ask("x"), &json!({"model": "nope"}));
    for path in ["/api/chat", "/api/generate", "/api/show"] {
        let refused = world.refused(path, &unknown).await;
        assert_eq!(refused, (404, "model 'nope' not found".to_owned()));
    }
    let wrong = with(ask("x"), &json!({"options": {"temperature": "hot"}}));
    assert_eq!(world.refused("/api/chat", &wrong).await.0, 500);
    let wrong = with(ask("x"), &json!({"messages": "x"}));
    assert_eq!(world.refused("/api/chat", &wrong).await.0, 400);

    let chat = format!("{}/api/chat", world.sim.url());
    let empty = world.client.post(&chat).send().await.expect("an answer");
    assert_eq!(empty.status(), 400);
    let error: Value = empty.json().await.expect("JSON");
    assert_eq!(error["error"], "missing request body");
    let bad = world.client.post(&chat).body("{").send().await.expect("an answer");
    assert_eq!(bad.status(), 400);
    let huge = vec![b' '; (8 << 20) + 1];
    let huge = world.client.post(&chat).body(huge).send().await.expect("an answer");
    assert_eq!(huge.status(), 413);
    let wrong_method = world.client.get(&chat).send().await.expect("an answer");
    assert_eq!(wrong_method.status(), 405);
    let nowhere = format!("{}/api/nowhere", world.sim.url());
    let nowhere = world.client.get(nowhere).send().await.expect("an answer");
    assert_eq!(nowhere.status(), 404);
}

#[tokio::test]
async fn a_known_model_can_be_pulled() {
    let world = plain().await;
    let lines = world.lines("/api/pull", &json!({"model": "tinyllama"})).await;
    assert_eq!(lines.last(), Some(&json!({"status": "success"})));
    let lines = world.lines("/api/pull", &json!({"model": "nope"})).await;
    assert!(lines.last().is_some_and(|line| line["error"].is_string()));
}

#[tokio::test]
async fn a_model_answers_to_every_spelling_of_its_name() {
    let models = vec!["TinyLlama".into(), "hf.co/Org/Model:Q4_K_M".into()];
    let world = world(Config { models, ..Config::default() }).await;
    for name in [
        "tinyllama",
        "TINYLLAMA:latest",
        "library/tinyllama",
        "registry.ollama.ai/library/tinyllama:latest",
        "hf.co/org/model:q4_k_m",
    ] {
        let streamed = world.chat(&with(ask("x"), &json!({"model": name}))).await;
        assert_eq!(streamed.last["model"], name, "the reply spells it as the request");
    }
    let tags = world.get("/api/tags").await;
    let names: Vec<_> =
        tags["models"].as_array().expect("a list").iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["hf.co/Org/Model:Q4_K_M", "TinyLlama:latest"], "listed as they were made");
}

#[tokio::test]
async fn a_model_that_cannot_answer_is_refused_with_ollamas_text() {
    let models = vec!["big".into(), "nomic-embed-text".into(), "alien".into()];
    let config = Config { models, too_large: vec!["Big:latest".into()], ..Config::default() };
    let world = world(config).await;
    for (model, status, words) in [
        ("big", 500, "model requires more system memory"),
        ("nomic-embed-text", 400, "\"nomic-embed-text\" does not support chat"),
        ("alien", 500, "unknown model architecture"),
    ] {
        let request = with(ask("x"), &json!({"model": model}));
        let (refused, error) = world.refused("/api/chat", &request).await;
        assert_eq!(refused, status, "{error}");
        assert!(error.contains(words), "{error}");
    }
}
