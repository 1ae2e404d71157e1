//! The port of operators: what is there alone, and the filter of log lines, which they change there.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::path::PathBuf;

use serde_json::{Value, json};
use support::client::{get, http, post, send, until_ok};
use support::eventually;
use support::process::{LIMIT, Process, logged, ollama_sim};
use support::redis::RedisServer;
use support::setup::{Setup, setup};
use support::tokens::{SECRET, token};
use testkit::Port;

/// A replica with a port for operators.
struct Admin {
    replica: Process,
    /// The base address of the port of operators.
    url: String,
    log: PathBuf,
    _port: Port,
    _ollama: Process,
    _redis: RedisServer,
}

impl Admin {
    async fn start(extra: &[(&str, &str)]) -> Self {
        let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
        let port = Port::reserve().expect("a port");
        let address = format!("127.0.0.1:{}", port.number());
        let settings = [
            ("JARVIS_ADMIN_LISTEN", &*address),
            ("JARVIS_LOG", "info,fred=off"),
            ("JARVIS_LOG_FORMAT", "json"),
        ];
        let settings = [&settings[..], extra].concat();
        let (replica, log) = logged(&redis.url(), &ollama.url, &settings);
        until_ok(&replica, "/health/ready").await;
        let url = format!("http://{address}");
        Self { replica, url, log, _port: port, _ollama: ollama, _redis: redis }
    }

    async fn get(&self, path: &str) -> support::client::Reply {
        send(http().get(format!("{}{path}", self.url))).await
    }

    async fn put(&self, body: &Value) -> support::client::Reply {
        send(http().put(format!("{}/admin/log-level", self.url)).json(body)).await
    }

    /// Returns the events of the log so far.
    fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).expect("a log");
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    async fn until_logged(&self, what: &str, test: impl Fn(&Value) -> bool) {
        let is_there = async || self.events().iter().any(&test);
        assert!(eventually(LIMIT, is_there).await, "{what} is not in the log");
    }
}

#[tokio::test]
async fn with_a_port_for_operators_metrics_and_details_are_there_alone_and_docs_are_not() {
    let admin = Admin::start(&[]).await;
    for path in ["/metrics", "/health/detailed", "/health/detailed/", "/admin/log-level"] {
        let reply = get(&admin.replica, path).await;
        assert_eq!((reply.status, &reply.body["code"]), (404, &json!("not_found")), "{path}");
        assert_eq!(admin.get(path).await.status, 200, "{path}");
    }
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(get(&admin.replica, path).await.status, 200, "{path}");
        assert_eq!(admin.get(path).await.status, 200, "{path}");
    }
    for path in ["/docs", "/openapi.json", "/api/v1/models"] {
        assert_eq!(get(&admin.replica, path).await.status, 200, "{path}");
        assert_eq!(admin.get(path).await.status, 404, "{path}");
    }
    let described = get(&admin.replica, "/openapi.json").await.body;
    assert!(described["paths"]["/metrics"].is_null(), "a path that is not there is described");
    assert!(admin.get("/metrics").await.body.as_str().expect("text").contains("jarvis_ready 1"));
}

#[tokio::test]
async fn the_port_of_operators_takes_no_change_from_a_page_and_keeps_the_token_of_metrics() {
    let token = "a-token-of-the-metrics";
    let admin = Admin::start(&[("JARVIS_METRICS_TOKEN", token)]).await;
    assert_eq!(admin.get("/metrics").await.status, 401);
    let with = http().get(format!("{}/metrics", admin.url)).bearer_auth(token);
    assert_eq!(send(with).await.status, 200);
    let body = json!({"filter": "debug"});
    let of_page = http().put(format!("{}/admin/log-level", admin.url)).json(&body);
    let refused = send(of_page.header("origin", "https://evil.example")).await;
    assert_eq!((refused.status, &refused.body["code"]), (403, &json!("origin_not_allowed")));
    let of_name = http().put(format!("{}/admin/log-level", admin.url)).json(&body);
    let refused = send(of_name.header("host", "evil.example")).await;
    assert_eq!((refused.status, &refused.body["code"]), (403, &json!("host_not_allowed")));
    assert_eq!(admin.get("/admin/log-level").await.body["seconds_left"], Value::Null);
}

#[tokio::test]
async fn where_callers_have_to_sign_in_metrics_are_open_to_operators_alone() {
    const METRICS: &str = "a-token-of-the-metrics";
    let required = [("JARVIS_AUTH", "required"), ("JARVIS_JWT_SECRET", SECRET)];
    let Setup { replica, .. } = &setup("0", &required).await;
    let ask = async |replica: &Process, path: &str, bearer: &str| {
        let request = http().get(format!("{}{path}", replica.url));
        send(if bearer.is_empty() { request } else { request.bearer_auth(bearer) }).await
    };
    for path in ["/metrics", "/metrics/"] {
        for bearer in ["", "wrong", METRICS, &token("alice")] {
            let refused = ask(replica, path, bearer).await;
            let code = &refused.body["code"];
            assert_eq!((refused.status, code), (401, &json!("sign_in_required")), "{bearer}");
            let detail = refused.body["detail"].as_str().expect("a text");
            assert!(detail.contains("JARVIS_METRICS_TOKEN"), "{detail}");
            assert!(!refused.body.to_string().contains("jarvis_ready"));
        }
    }
    for probe in ["/health", "/health/live", "/health/ready", "/docs", "/openapi.json", "/"] {
        assert_eq!(ask(replica, probe, "").await.status, 200, "{probe}");
    }
    let with_token = [&required[..], &[("JARVIS_METRICS_TOKEN", METRICS)]].concat();
    let Setup { replica, .. } = &setup("0", &with_token).await;
    assert_eq!(ask(replica, "/metrics", METRICS).await.status, 200);
    assert_eq!(ask(replica, "/metrics", &token("alice")).await.status, 401);
    let admin = Admin::start(&required).await;
    assert_eq!(admin.get("/metrics").await.status, 200);
    assert_eq!(ask(&admin.replica, "/metrics", &token("alice")).await.status, 404);
}

#[tokio::test]
async fn the_level_of_a_module_is_changed_while_the_replica_runs_and_ends_by_itself() {
    const TARGET: &str = "jarvis::http::middleware::access_log";
    let admin = Admin::start(&[]).await;
    let is_debug = |event: &Value| event["level"] == "DEBUG" && event["target"] == TARGET;
    assert_eq!(admin.get("/health").await.status, 200);
    assert!(!admin.events().iter().any(is_debug), "debug lines at info");
    let filter = json!({"filter": format!("info,{TARGET}=debug"), "seconds": 1});
    let changed = admin.put(&filter).await;
    assert_eq!((changed.status, &changed.body["seconds_left"]), (200, &json!(1)));
    assert!(changed.body["filter"].as_str().expect("a filter").contains(TARGET));
    assert_eq!(admin.get("/health").await.status, 200);
    admin.until_logged("a probe", is_debug).await;
    let is_over = async || admin.get("/admin/log-level").await.body["seconds_left"].is_null();
    assert!(eventually(LIMIT, is_over).await, "the change does not end");
    admin
        .until_logged("the end of the change", |event| {
            event["message"] == "log filter changed" && event["seconds"].is_null()
        })
        .await;
    let before = admin.events().into_iter().filter(is_debug).count();
    assert_eq!(admin.get("/health").await.status, 200);
    assert_eq!(
        post(&admin.replica, "/api/v1/chat", &json!({"message": "[[tokens=1]] a"})).await.status,
        200
    );
    admin
        .until_logged("a later request", |event| {
            event["message"] == "request handled" && event["status"] == 200
        })
        .await;
    assert_eq!(admin.events().into_iter().filter(is_debug).count(), before, "it goes on");
}

#[tokio::test]
async fn a_filter_of_log_lines_that_means_nothing_or_lasts_too_long_is_refused() {
    let admin = Admin::start(&[]).await;
    for (body, field) in [
        (json!({}), "filter"),
        (json!({"filter": "louder"}), "filter"),
        (json!({"filter": "jarvis"}), "filter"),
        (json!({"filter": "debug", "seconds": 0}), "seconds"),
        (json!({"filter": "debug", "seconds": 3601}), "seconds"),
        (json!({"filter": "x".repeat(2000)}), "filter"),
    ] {
        let refused = admin.put(&body).await;
        assert_eq!(refused.status, 422, "{body}: {}", refused.body);
        assert_eq!(refused.body["errors"][0]["loc"][1], field, "{body}: {}", refused.body);
    }
    let changed = admin.put(&json!({"filter": "debug"})).await;
    assert_eq!(changed.body["seconds_left"], 600);
    let reset = send(http().delete(format!("{}/admin/log-level", admin.url))).await;
    assert_eq!((reset.status, &reset.body["seconds_left"]), (200, &Value::Null));
    assert_eq!(reset.body["filter"], reset.body["default"]);
}

#[tokio::test]
async fn probes_and_scrapes_are_not_logged_at_info_and_requests_are_with_all_their_names() {
    let admin = Admin::start(&[]).await;
    for path in ["/health", "/health/live", "/health/ready/"] {
        assert_eq!(get(&admin.replica, path).await.status, 200, "{path}");
    }
    assert_eq!(admin.get("/metrics").await.status, 200);
    assert_eq!(admin.get("/health/detailed").await.status, 200);
    let request = http().post(format!("{}/api/v1/chat", admin.replica.url));
    let request = request.header("x-request-id", "the-last-one");
    let reply = send(request.json(&json!({"message": "[[tokens=3]] hi"}))).await;
    let generation = reply.body["generation_id"].as_str().expect("a generation").to_owned();
    let is_last = |event: &Value| {
        let spans = event["spans"].as_array().cloned().unwrap_or_default();
        event["message"] == "request handled"
            && spans.iter().any(|span| span["request_id"] == "the-last-one")
    };
    admin.until_logged("the request", is_last).await;
    admin
        .until_logged("the turn", |event| {
            let spans = event["spans"].as_array().cloned().unwrap_or_default();
            event["message"] == "turn ended"
                && spans.iter().any(|span| span["generation"] == *generation)
        })
        .await;
    let events = admin.events();
    let last = events.iter().find(|event| is_last(event)).expect("the request");
    assert!(last["spans"][0]["session"].is_string() && last["spans"][0]["generation"].is_string());
    let probes = events.iter().filter(|event| {
        let text = event.to_string();
        text.contains("/health") || text.contains("/metrics")
    });
    assert_eq!(probes.count(), 0, "{events:?}");
}
