//! A real collector of spans, and a server that it passes them on to.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use testkit::folder::Folder;
use testkit::programs::find;
use testkit::{Port, Process, Program, eventually};

use super::process::LIMIT;

/// The library's number of a kind.
pub const INTERNAL: i32 = 1;
pub const SERVER: i32 = 2;
pub const CLIENT: i32 = 3;

/// A span as a collector got it.
#[derive(Clone, Debug)]
pub struct Received {
    pub span: Span,
    /// The attributes of the process that sent it.
    pub resource: BTreeMap<String, String>,
}

impl Received {
    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    pub fn name(&self) -> &str {
        &self.span.name
    }

    /// Returns an attribute as text; empty where there is none.
    pub fn text(&self, key: &str) -> String {
        attributes(&self.span.attributes).remove(key).unwrap_or_default()
    }

    /// Returns the spans that this one is linked to.
    pub fn links(&self) -> Vec<(String, String)> {
        let links = self.span.links.iter();
        links.map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect()
    }

    pub fn events(&self) -> Vec<&str> {
        self.span.events.iter().map(|event| event.name.as_str()).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(digit).collect()
}

fn digit(value: u8) -> Option<char> {
    char::from_digit(value.into(), 16)
}

fn attributes(of: &[KeyValue]) -> BTreeMap<String, String> {
    of.iter().map(|each| (each.key.clone(), text(each.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(is)) => is.to_string(),
        Some(any_value::Value::ArrayValue(list)) => {
            list.values.iter().map(|value| text(Some(value))).collect::<Vec<_>>().join(",")
        }
        _ => String::new(),
    }
}

/// A server that takes spans as protobuf over HTTP.
#[derive(Clone, Default)]
pub struct Spans {
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
    /// The headers of the requests, as text.
    pub headers: Arc<Mutex<String>>,
}

impl Spans {
    pub async fn serve() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let this = Self { url, ..Self::default() };
        let routes = Router::new().route("/v1/traces", post(receive)).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        this
    }

    fn received(&self) -> MutexGuard<'_, Vec<Received>> {
        self.received.lock().expect("no panic")
    }

    pub fn all(&self) -> Vec<Received> {
        self.received().clone()
    }

    /// Waits until the spans meet the condition, and returns them.
    pub async fn until(&self, what: &str, wanted: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let found = eventually(LIMIT, async || wanted(&self.received())).await;
        let all = self.all();
        let names: Vec<_> =
            all.iter().map(|each| (each.name(), each.id(), each.parent())).collect();
        assert!(found, "{what}: {names:#?}");
        all
    }

    /// Waits for a span of this name, and returns it.
    pub async fn named(&self, name: &str) -> Received {
        let all = self.until(name, |all| all.iter().any(|each| each.name() == name)).await;
        all.into_iter().find(|each| each.name() == name).expect("the span")
    }
}

async fn receive(
    State(spans): State<Spans>,
    headers: axum::http::HeaderMap,
    body: Bytes,
) -> Vec<u8> {
    let shown = format!("{headers:?}");
    spans.headers.lock().expect("no panic").push_str(&shown);
    // The collector compresses what it passes on.
    let body = match headers.get("content-encoding") {
        Some(encoding) if encoding == "gzip" => {
            let mut plain = Vec::new();
            GzDecoder::new(&*body).read_to_end(&mut plain).expect("a body in gzip");
            Bytes::from(plain)
        }
        _ => body,
    };
    let request = ExportTraceServiceRequest::decode(body).expect("spans");
    for of_process in request.resource_spans {
        let resource = of_process.resource.unwrap_or_default();
        let resource = attributes(&resource.attributes);
        for span in of_process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.received().push(Received { span, resource: resource.clone() });
        }
    }
    Vec::new()
}

/// A collector, which is killed with the test. It takes spans over gRPC and over HTTP.
pub struct Collector {
    pub grpc: String,
    pub http: String,
    pub spans: Spans,
    _process: Process,
    _ports: [Port; 2],
    _folder: Folder,
}

impl Collector {
    pub async fn start() -> Self {
        let spans = Spans::serve().await;
        let folder = Folder::temporary().expect("a folder");
        let ports = [Port::reserve().expect("a port"), Port::reserve().expect("a port")];
        let [grpc, http] =
            [&ports[0], &ports[1]].map(|port| format!("127.0.0.1:{}", port.number()));
        let program = find("rotel").expect("rotel: `make test` installs it from PyPI");
        let file = |name: &str| folder.path().join(name).display().to_string();
        let program = Program::new("rotel", program, folder.path()).args([
            "start",
            "--otlp-grpc-endpoint",
            &grpc,
            "--otlp-http-endpoint",
            &http,
            "--exporter",
            "otlp",
            "--otlp-exporter-endpoint",
            &spans.url,
            "--otlp-exporter-protocol",
            "http",
            "--batch-timeout",
            "20ms",
            "--pid-file",
            &file("pid"),
            "--log-file",
            &file("log"),
        ]);
        let process = Process::new(program);
        process.start().unwrap_or_else(|error| panic!("{error:#}"));
        let listens = async || {
            tokio::net::TcpStream::connect(&grpc).await.is_ok()
                && tokio::net::TcpStream::connect(&http).await.is_ok()
        };
        assert!(eventually(LIMIT, listens).await, "{}", process.epitaph());
        let [grpc, http] = [grpc, http].map(|address| format!("http://{address}"));
        Self { grpc, http, spans, _process: process, _ports: ports, _folder: folder }
    }
}
