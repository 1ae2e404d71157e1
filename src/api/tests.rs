//! Tests of requests, sockets and bodies whose handling panics.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use axum::middleware::from_fn;
use axum::routing::get;
use futures_util::{SinkExt, StreamExt, stream};
use metrics_exporter_prometheus::PrometheusBuilder;
use testkit::eventually;
use testkit::redis::RedisServer;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message as Packet;
use tower::ServiceExt;

use crate::Server;
use crate::config::{Cli, Command};
use crate::http::connections::AddressConnections;
use crate::http::extract::caller::ClientSources;
use crate::http::listener;
use crate::http::middleware::panics::catch;
use crate::http::room::ByteRoom;
use crate::lifecycle::{Lifecycle, Phase};
use crate::telemetry::LogFilter;

const LIMIT: Duration = Duration::from_secs(30);
/// The message that makes the handling of its socket panic, in unit tests only.
const POISON: &str = "panic on purpose";

/// Panics where a test has sent the poison message.
pub(in crate::api) fn panic_on_poison(packet: &Packet) {
    assert!(!matches!(packet, Packet::Text(text) if text.as_str() == POISON), "on purpose");
}

#[tokio::test]
async fn a_request_that_panics_gets_an_internal_error_and_leaves_nothing_behind() {
    let held = Arc::new(());
    let kept = Arc::clone(&held);
    let handler = async move || -> StatusCode {
        let _used = Arc::clone(&kept);
        tokio::time::sleep(Duration::from_millis(1)).await;
        panic!("on purpose");
    };
    let router = Router::new().route("/", get(handler)).layer(from_fn(catch));
    let before = Arc::strong_count(&held);
    for _ in 0..2 {
        let request = Request::get("/").body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("a response");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
        let problem: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(problem["code"], "internal");
    }
    assert_eq!(Arc::strong_count(&held), before);
}

#[tokio::test]
async fn a_body_that_panics_ends_its_connection_and_no_other() {
    let held = Arc::new(());
    let kept = Arc::clone(&held);
    let broken = async move || {
        let used = Arc::clone(&kept);
        Body::from_stream(stream::iter(0..2).map(move |at| {
            assert!(at == 0 && Arc::strong_count(&used) > 1, "on purpose");
            Ok::<_, std::io::Error>(Bytes::from_static(b"first"))
        }))
    };
    let router = Router::new()
        .route("/broken", get(broken))
        .route("/whole", get(async || "whole"))
        .layer(from_fn(catch));
    let before = Arc::strong_count(&held);
    let socket = listener::bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = socket.local_addr().expect("an address");
    let lifecycle = Lifecycle::default();
    let limits = listener::ClientLimits {
        read: LIMIT,
        heartbeat: LIMIT,
        connections: 100,
        probes: 1,
        http_2: false,
    };
    let (room, of_addresses) =
        (ByteRoom::new(1, ClientSources::default()), AddressConnections::default());
    let serving = listener::serve(socket, router, room, limits, of_addresses, lifecycle.clone());
    let serving = lifecycle.spawn("http listener", serving);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for _ in 0..2 {
        let get = async |path| client.get(format!("http://{address}{path}")).send().await;
        // The panic may happen before the head is sent.
        let text = async { get("/broken").await?.text().await }.await;
        assert!(text.is_err(), "the body has no end: {text:?}");
        let whole = get("/whole").await.expect("a head").text().await;
        assert_eq!(whole.expect("a body"), "whole");
    }
    assert_eq!((lifecycle.failure(), Arc::strong_count(&held)), (None, before));
    drop(client);
    lifecycle.advance(Phase::Stopped);
    serving.await.expect("an end");
}

#[tokio::test]
async fn a_socket_that_panics_is_closed_and_leaves_nothing_behind() {
    let redis = tokio::task::spawn_blocking(RedisServer::start).await.expect("redis");
    let (listen, url) = (["--listen", "127.0.0.1:0"], redis.url_file());
    // The test requests no turn, so it needs no host.
    let (redis_url, hosts) = (["--redis-url-file", &*url], ["--ollama-urls", "http://127.0.0.1:9"]);
    let arguments = [["jarvis", "serve"], listen, redis_url, hosts];
    let arguments: Vec<_> = arguments.as_flattened().iter().map(Into::into).collect();
    let cli = Cli::from_arguments(&arguments).expect("arguments");
    let Command::Serve(settings) = cli.command else { panic!("another command") };
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let server = Server::bind(&settings, metrics, LogFilter::of_silence()).expect("a server");
    let (address, lifecycle) = (server.address(), server.lifecycle().clone());
    let sockets = server.state.sockets.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.serve(async { drop(stopped.await) }));
    lifecycle.reached(Phase::Serving).await;
    for _ in 0..2 {
        let (mut other, _) = connect_async(format!("ws://{address}/ws")).await.expect("a socket");
        let (mut socket, _) = connect_async(format!("ws://{address}/ws")).await.expect("a socket");
        assert!(matches!(socket.next().await, Some(Ok(Packet::Text(_)))), "no welcome");
        assert_eq!(sockets.len(), 2);
        socket.send(Packet::text(POISON)).await.expect("sent");
        assert!(!matches!(socket.next().await, Some(Ok(_))), "it is not closed");
        assert!(eventually(LIMIT, async || sockets.len() == 1).await, "a socket is left");
        // The other socket continues.
        assert!(matches!(other.next().await, Some(Ok(Packet::Text(_)))), "no welcome");
        other.send(Packet::text(r#"{"type":"ping"}"#)).await.expect("sent");
        assert!(matches!(other.next().await, Some(Ok(Packet::Text(_)))), "no pong");
        drop(other);
        assert!(eventually(LIMIT, async || sockets.is_empty()).await, "a socket is left");
    }
    assert_eq!((lifecycle.phase(), lifecycle.failure()), (Phase::Serving, None));
    stop.send(()).expect("it serves");
    running.await.expect("no panic").expect("a clean end");
}
