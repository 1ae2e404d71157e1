//! A simulator in this process, and a client of it.

use std::time::{Duration, Instant};

use ollama_sim::{Config, Sim, Stats};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The time limit of every wait.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub sim: Sim,
    pub client: Client,
}

/// The content of a stream.
#[derive(Debug)]
pub struct Streamed {
    pub pieces: Vec<String>,
    pub reasoning: Vec<String>,
    pub last: Value,
}

impl Streamed {
    pub fn answer(&self) -> String {
        self.pieces.concat()
    }

    pub fn figure(&self, name: &str) -> u64 {
        self.last[name].as_u64().unwrap_or_else(|| panic!("{name} in {}", self.last))
    }
}

pub async fn world(config: Config) -> World {
    let _ = rustls::crypto::ring::default_provider().install_default();
    World {
        sim: Sim::start(config).await.expect("starts"),
        client: Client::builder().timeout(PATIENCE).build().expect("a client"),
    }
}

/// Starts a simulator with the default settings.
pub async fn plain() -> World {
    world(Config::default()).await
}

pub fn ask(message: &str) -> Value {
    json!({"model": "tinyllama", "messages": [{"role": "user", "content": message}]})
}

/// Returns a request with more fields.
pub fn with(mut request: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().expect("an object") {
        request[key] = value.clone();
    }
    request
}

impl World {
    pub async fn post(&self, path: &str, body: &Value) -> Response {
        let url = format!("{}{path}", self.sim.url());
        let send = self.client.post(url).body(body.to_string()).send();
        send.await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Value {
        let url = format!("{}{path}", self.sim.url());
        let response = self.client.get(url).send().await.expect("an answer");
        response.json().await.expect("JSON")
    }

    /// Returns the status and the error's text.
    pub async fn refused(&self, path: &str, body: &Value) -> (u16, String) {
        let response = self.post(path, body).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.expect("JSON");
        let error = body["error"].as_str().expect("an error").to_owned();
        (status, error)
    }

    pub async fn chat(&self, request: &Value) -> Streamed {
        streamed(self.lines("/api/chat", request).await)
    }

    pub async fn generate(&self, request: &Value) -> Streamed {
        streamed(self.lines("/api/generate", request).await)
    }

    pub async fn lines(&self, path: &str, request: &Value) -> Vec<Value> {
        let response = self.post(path, request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        let text = response.text().await.expect("a whole body");
        lines(&text)
    }

    pub async fn rendered(&self, request: &Value) -> String {
        let request = with(request.clone(), &json!({"_debug_render_only": true}));
        let response = self.post("/api/chat", &request).await;
        let shown: Value = response.json().await.expect("JSON");
        assert_eq!(shown["done"], false);
        assert_eq!(shown["message"], json!({"role": "", "content": ""}));
        let prompt = &shown["_debug_info"]["rendered_template"];
        prompt.as_str().expect("a prompt").to_owned()
    }

    pub async fn stats_when(&self, what: &str, condition: impl Fn(&Stats) -> bool) -> Stats {
        let end = Instant::now() + PATIENCE;
        loop {
            let stats = self.sim.stats();
            if condition(&stats) {
                return stats;
            }
            assert!(Instant::now() < end, "not {what}: {stats:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn outcomes(&self) -> Vec<String> {
        let journal = self.get("/sim/requests").await;
        let requests = journal["requests"].as_array().expect("a list");
        let outcome = |request: &Value| request["outcome"].as_str().map(str::to_owned);
        requests.iter().filter_map(outcome).collect()
    }

    /// Sends a request and leaves the reading to the caller.
    pub async fn socket(&self, path: &str, body: &Value) -> TcpStream {
        let mut socket = TcpStream::connect(self.sim.address()).await.expect("connects");
        let body = body.to_string();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: sim\r\nContent-Length: {}\r\n\r\n", body.len());
        socket.write_all((head + &body).as_bytes()).await.expect("sends");
        socket
    }

    /// Reads all bytes of the socket until it is closed.
    pub async fn raw(&self, path: &str, body: &Value) -> String {
        let mut socket = self.socket(path, body).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut bytes)).await;
        // A reset is a close as well.
        let _ = read.expect("closed in time");
        String::from_utf8(bytes).expect("UTF-8")
    }
}

pub fn lines(text: &str) -> Vec<Value> {
    let line = |line: &str| serde_json::from_str(line).expect("a line of JSON");
    text.lines().map(line).collect()
}

pub fn streamed(mut lines: Vec<Value>) -> Streamed {
    let last = lines.pop().expect("a last line");
    assert_eq!(last["done"], true, "{last}");
    let texts = |key: &str| {
        let of = |line: &Value| {
            let fields = line.get("message").unwrap_or(line);
            let key = if key == "answer" && line.get("message").is_some() {
                "content"
            } else if key == "answer" {
                "response"
            } else {
                key
            };
            fields[key].as_str().unwrap_or_default().to_owned()
        };
        lines.iter().map(of).filter(|text| !text.is_empty()).collect()
    };
    Streamed { pieces: texts("answer"), reasoning: texts("thinking"), last }
}
