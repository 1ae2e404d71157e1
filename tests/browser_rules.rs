//! The bounds that replies set for browsers, and the requests of browsers that are refused.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{Reply, Socket, get, http, send};
use support::process::{Process, jarvis_at};
use support::raw_http::Raw;
use support::setup::{Setup, setup};
use uuid::Uuid;

const CHAT: &str = "/api/v1/chat/";

/// Sends a request of this method with these headers.
async fn ask(replica: &Process, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let method = method.parse().expect("a method");
    let mut request = http().request(method, format!("{}{path}", replica.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request).await
}

/// Returns the status and the code of the answer to a handshake with these headers.
async fn handshake(replica: &Process, headers: &str) -> (u16, Value) {
    let mut raw = Raw::connect(replica).await;
    let host = if headers.contains("Host:") { "" } else { "Host: 127.0.0.1\r\n" };
    let key = if headers.contains("Sec-WebSocket-Key") {
        ""
    } else {
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    };
    let head = format!(
        "GET /ws HTTP/1.1\r\n{host}Connection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\n{key}{headers}\r\n"
    );
    raw.write(head.as_bytes()).await.expect("sent");
    let response = raw.response().await.expect("a response");
    let body: Value = serde_json::from_str(&response.body).unwrap_or_default();
    (response.status, body["code"].clone())
}

#[tokio::test]
async fn a_name_that_was_rebound_to_loopback_is_refused_on_every_path_and_by_websockets() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let port = replica.url.rsplit(':').next().expect("a port");
    let rebound = format!("rebound.example:{port}");
    let origin = format!("http://{rebound}");
    // Such a page is of the same origin as this service, for its browser.
    let page = [("host", &*rebound), ("origin", &*origin), ("sec-fetch-site", "same-origin")];
    for path in ["/", "/docs", "/openapi.json", "/metrics", "/health/live", "/api/v1/models"] {
        let refused = ask(replica, "GET", path, &page).await;
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (403, &json!("host_not_allowed")),
            "{path}"
        );
    }
    for method in ["POST", "PATCH", "DELETE"] {
        let refused = ask(replica, method, CHAT, &page).await;
        assert_eq!(refused.body["code"], "host_not_allowed", "{method}");
    }
    let headers = format!("Host: {rebound}\r\nOrigin: {origin}\r\n");
    assert_eq!(handshake(replica, &headers).await, (403, json!("host_not_allowed")));
    for two in
        ["Host: localhost\r\nHost: rebound.example\r\n", "Host: rebound.example\r\nHost: ::1\r\n"]
    {
        assert_eq!(handshake(replica, two).await, (403, json!("host_not_allowed")), "{two}");
    }
    for host in ["localhost", &format!("localhost:{port}"), "127.0.0.1", &format!("[::1]:{port}")] {
        assert_eq!(
            ask(replica, "GET", "/health/live", &[("host", host)]).await.status,
            200,
            "{host}"
        );
        assert_eq!(handshake(replica, &format!("Host: {host}\r\n")).await.0, 101, "{host}");
    }
}

#[tokio::test]
async fn a_list_of_hosts_or_another_listener_admits_names() {
    let listed = setup("0", &[("JARVIS_ALLOWED_HOSTS", "chat.example")]).await;
    let of = async |replica: &Process, host: &str| {
        ask(replica, "GET", "/api/v1/models", &[("host", host)]).await.status
    };
    assert_eq!(of(&listed.replica, "chat.example").await, 200);
    assert_eq!(of(&listed.replica, "rebound.example").await, 403);
    assert_eq!(of(&listed.replica, "localhost").await, 403);
    let (redis, ollama) = (listed.redis.url(), &listed.ollama.url);
    let any = jarvis_at("127.0.0.1:0", &redis, ollama, &[("JARVIS_ALLOWED_HOSTS", "*")]);
    assert_eq!(of(&any, "rebound.example").await, 200);
    let open = jarvis_at("0.0.0.0:0", &redis, ollama, &[]);
    let url = open.url.replace("0.0.0.0", "127.0.0.1");
    let request = http().get(format!("{url}/api/v1/models")).header("host", "chat.example");
    assert_eq!(send(request).await.status, 200);
}

#[tokio::test]
async fn a_foreign_page_can_change_nothing_and_open_no_websocket() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let own = &replica.url;
    let session = format!("/api/v1/chat/sessions/{}", Uuid::new_v4());
    let cancel = format!("{session}/cancel");
    let pages: [&[(&str, &str)]; 8] = [
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", "")],
        &[("origin", "http://localhost")],
        &[("origin", "http://127.0.0.1:1")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "cross-site"), ("origin", own)],
        &[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "no-cors"),
            ("content-type", "text/plain"),
        ],
    ];
    for page in pages {
        for (method, path) in [
            ("POST", CHAT),
            ("POST", "/api/v1/chat/message"),
            ("POST", "/api/v1/chat/send/"),
            ("POST", &*cancel),
            ("PATCH", &*session),
            ("DELETE", &*session),
            ("PUT", &*session),
        ] {
            let refused = ask(replica, method, path, page).await;
            let got = (refused.status, refused.body["code"].as_str());
            assert_eq!(got, (403, Some("origin_not_allowed")), "{method} {path} {page:?}");
            assert!(!refused.headers.contains_key("access-control-allow-origin"));
        }
        let lines: Vec<String> =
            page.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let headers = lines.concat();
        assert_eq!(
            handshake(replica, &headers).await,
            (403, json!("origin_not_allowed")),
            "{page:?}"
        );
    }
    // Its own page, and a program, are served.
    let body = json!({"message": "[[tokens=1]] hi"});
    for page in [&[("origin", own.as_str()), ("sec-fetch-site", "same-origin")][..], &[]] {
        let mut request = http().post(format!("{own}{CHAT}")).json(&body);
        for (name, value) in page {
            request = request.header(*name, *value);
        }
        assert_eq!(send(request).await.status, 200, "{page:?}");
        assert!(Socket::open_with(replica, "/ws", page).await.is_ok(), "{page:?}");
    }
}

#[tokio::test]
async fn every_answer_has_the_headers_that_keep_browsers_in_bounds() {
    let limits = [("JARVIS_ALLOWED_ORIGINS", "https://app.example"), ("JARVIS_HTTP2", "true")];
    let Setup { replica, .. } = &setup("0", &limits).await;
    let session = Uuid::new_v4();
    let known = format!("/api/v1/chat/sessions/{session}");
    let body = json!({"message": "[[tokens=1]] hi", "session_id": session});
    let chat = send(http().post(format!("{}{CHAT}", replica.url)).json(&body)).await;
    assert_eq!(chat.status, 200);
    let mut answers = vec![("POST chat".to_owned(), chat)];
    let foreign = [("origin", "https://evil.example")];
    let listed = [("origin", "https://app.example")];
    let preflight = [listed[0], ("access-control-request-method", "POST")];
    let two_tokens = [("authorization", "Bearer a"), ("authorization", "Bearer b")];
    for (method, path, headers, status) in [
        ("GET", "/", &[][..], 200),
        ("GET", "/app/nothing.js", &[], 404),
        ("GET", "/docs", &[], 200),
        ("GET", "/docs/", &[], 200),
        ("GET", "/docs/swagger-ui.css", &[], 200),
        ("GET", "/docs/nothing.js", &[], 404),
        ("GET", "/docs/%ff", &[], 404),
        ("GET", "/openapi.json", &[], 200),
        ("GET", "/metrics", &[], 200),
        ("GET", "/health/ready", &[], 200),
        ("GET", "/api/v1/models", &listed, 200),
        ("GET", &*known, &[], 200),
        ("GET", "/api/v1/chat/sessions/x", &[], 422),
        ("GET", "/nothing", &[], 404),
        ("GET", "/ws", &[], 426),
        ("PUT", CHAT, &[], 405),
        ("OPTIONS", CHAT, &preflight, 204),
        ("POST", CHAT, &foreign, 403),
        ("POST", CHAT, &[("content-encoding", "gzip")], 415),
        ("POST", CHAT, &two_tokens, 401),
        ("GET", "/api/v1/models", &[("host", "rebound.example")], 403),
    ] {
        let answer = ask(replica, method, path, headers).await;
        assert_eq!(answer.status, status, "{method} {path} {headers:?}");
        answers.push((format!("{method} {path} {status}"), answer));
    }
    for (what, answer) in answers {
        let header = |name: &str| {
            let values = answer.headers.get_all(name).iter();
            let texts: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
            texts.join(" | ")
        };
        assert_eq!(header("x-content-type-options"), "nosniff", "{what}");
        assert_eq!(header("x-frame-options"), "DENY", "{what}");
        assert_eq!(header("referrer-policy"), "no-referrer", "{what}");
        // The page and its JSON differ by what the client accepts, too.
        let varies = if what == "GET / 200" { "accept | origin" } else { "origin" };
        assert_eq!(header("vary"), varies, "{what}");
        let policy = header("content-security-policy");
        let is_closed = policy.starts_with("default-src 'none'; base-uri 'none'");
        let is_docs = what.starts_with("GET /docs");
        assert_eq!(is_closed, !is_docs, "{what}: {policy}");
        assert!(
            policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe-eval"),
            "{what}"
        );
        let cached = header("cache-control");
        let is_public = (is_docs || what.contains("openapi")) && what.ends_with("200");
        assert_eq!(cached == "no-store", !is_public, "{what}: {cached}");
    }
    let events = http().get(format!("{}{known}/events", replica.url)).send().await.expect("a head");
    assert_eq!(events.headers()["cache-control"], "no-cache, no-transform");
    assert_eq!(events.headers()["x-content-type-options"], "nosniff");
    assert_eq!(events.headers()["vary"], "origin");
}

#[tokio::test]
async fn pages_of_listed_origins_alone_may_read_and_one_setting_lists_them() {
    let Setup { replica, .. } =
        &setup("0", &[("JARVIS_ALLOWED_ORIGINS", "https://app.example")]).await;
    for (origin, allowed) in
        [("https://app.example", true), ("https://app.example.evil.example", false)]
    {
        let asked = [("origin", origin), ("access-control-request-method", "DELETE")];
        for (method, headers) in [("GET", &asked[..1]), ("OPTIONS", &asked[..])] {
            let answer = ask(replica, method, "/api/v1/models", headers).await;
            let given = answer.headers.get("access-control-allow-origin");
            assert_eq!(given.map(|it| it.to_str().expect("a text")), allowed.then_some(origin));
            assert!(!answer.headers.contains_key("access-control-allow-credentials"));
        }
        let header = format!("Origin: {origin}\r\n");
        assert_eq!(
            handshake(replica, &header).await.0,
            if allowed { 101 } else { 403 },
            "{origin}"
        );
    }
}

#[tokio::test]
async fn metrics_need_their_token_where_one_is_set_and_probes_need_none() {
    let secret = "metrics-token-0123456789";
    let Setup { replica, .. } = &setup("0", &[("JARVIS_METRICS_TOKEN", secret)]).await;
    let right = format!("Bearer {secret}");
    assert_eq!(ask(replica, "GET", "/metrics", &[("authorization", &right)]).await.status, 200);
    let shorter = &right[..right.len() - 1];
    for (given, code) in [
        (&[][..], "sign_in_required"),
        (&[("authorization", "Bearer x")], "token_invalid"),
        (&[("authorization", shorter)], "token_invalid"),
        (&[("authorization", secret)], "token_invalid"),
        (&[("authorization", &*right), ("authorization", &*right)], "token_ambiguous"),
    ] {
        for path in ["/metrics", "/metrics/"] {
            let refused = ask(replica, "GET", path, given).await;
            assert_eq!(
                (refused.status, refused.body["code"].as_str()),
                (401, Some(code)),
                "{given:?}"
            );
            assert!(refused.headers.contains_key("www-authenticate"));
            assert!(!refused.body.to_string().contains("jarvis_"));
        }
    }
    assert_eq!(get(replica, &format!("/metrics?token={secret}")).await.status, 401);
    assert_eq!(get(replica, "/health/ready").await.status, 200);
}

#[tokio::test]
async fn a_handshake_whose_key_is_not_sixteen_bytes_is_refused_before_the_upgrade() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    for keys in [
        "Sec-WebSocket-Key: \r\n",
        "Sec-WebSocket-Key: x\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTEyMw==\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j!!==\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "No-Sec-WebSocket-Key: none\r\n",
    ] {
        assert_eq!(handshake(replica, keys).await, (400, json!("handshake_key_invalid")), "{keys}");
    }
    assert_eq!(handshake(replica, "").await.0, 101);
}
