//! Streams of one half of a pair.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::event_stream::Lines;
use crate::fleet::Fleet;
use crate::tally::{record, times};

/// The time between the beginnings of two streams: users do not all come at once.
pub const APART: Duration = Duration::from_millis(5);
/// The time limit of a turn; a longer one fails the run.
const LIMIT: Duration = Duration::from_mins(1);
const MODEL: &str = "tinyllama:latest";

/// The server that the tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From ollama-sim.
    Direct,
    /// From jarvis, over its WebSocket.
    ThroughJarvis,
    /// From jarvis, over OpenAI's API.
    OverOpenAi,
}

/// The load of one half.
#[derive(Clone, Debug)]
pub struct Load {
    /// The streams at a time.
    pub streams: usize,
    /// The turns of each, one after another.
    pub turns: usize,
    /// The tokens of an answer.
    pub tokens: usize,
    /// The tokens a second; 0 is as fast as possible.
    pub rate: f64,
}

impl Load {
    /// Returns the prompt: one token a piece, so that the first comes as early in each answer as in any
    /// other.
    fn prompt(&self) -> String {
        let Self { tokens, rate, .. } = self;
        format!("[[count tokens={tokens} rate={rate}]] {}", Uuid::new_v4().simple())
    }

    /// Returns the limit of tokens, one more than the answer has: an answer that uses up its limit counts as
    /// cut off.
    fn limit(&self) -> usize {
        self.tokens + 1
    }
}

/// The measurements of one half. Times are in microseconds.
#[derive(Debug)]
pub struct Half {
    /// The times from the question to the first token.
    pub first: Histogram<u64>,
    /// The times between two pieces.
    pub gap: Histogram<u64>,
    /// The tokens in all.
    pub tokens: usize,
    /// The seconds from the first question to the last end.
    pub seconds: f64,
    streaming: Duration,
}

impl Half {
    /// Returns the tokens a second of one stream, from its first piece to its last.
    pub fn pace(&self) -> f64 {
        self.tokens as f64 / self.streaming.as_secs_f64()
    }
}

/// The pieces of one turn, as they came.
struct Times {
    asked: Instant,
    pieces: Vec<Instant>,
}

/// Runs one half.
///
/// # Errors
/// Fails where a stream breaks off.
pub async fn half(fleet: &Fleet, load: &Load, way: Way) -> anyhow::Result<Half> {
    let mut streams = JoinSet::new();
    let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
    let began = Instant::now();
    for number in 0..load.streams {
        let load = load.clone();
        let start = APART.saturating_mul(u32::try_from(number)?);
        match way {
            Way::Direct => {
                let (http, url) = (http.clone(), fleet.sims[0].url.clone());
                streams.spawn(async move {
                    sleep(start).await;
                    direct(&http, &url, &load).await
                });
            }
            Way::OverOpenAi => {
                let (http, url) = (http.clone(), fleet.replicas[0].url.clone());
                streams.spawn(async move {
                    sleep(start).await;
                    over_openai(&http, &url, &load).await
                });
            }
            Way::ThroughJarvis => {
                let url = fleet.replicas[0].url.replacen("http", "ws", 1);
                streams.spawn(async move {
                    sleep(start).await;
                    through(&url, &load).await
                });
            }
        }
    }
    let mut half = Half {
        first: times(),
        gap: times(),
        tokens: load.streams * load.turns * load.tokens,
        seconds: 0.0,
        streaming: Duration::ZERO,
    };
    while let Some(turns) = streams.join_next().await {
        for Times { asked, pieces } in turns?? {
            let (first, last) = pieces.first().zip(pieces.last()).context("an empty answer")?;
            record(&mut half.first, *first - asked);
            half.streaming += *last - *first;
            for pair in pieces.windows(2) {
                record(&mut half.gap, pair[1] - pair[0]);
            }
        }
    }
    half.seconds = began.elapsed().as_secs_f64();
    Ok(half)
}

async fn direct(http: &reqwest::Client, url: &str, load: &Load) -> anyhow::Result<Vec<Times>> {
    // The connection is open before the question, as a WebSocket is.
    http.get(format!("{url}/api/version")).send().await?.bytes().await?;
    let mut turns = Vec::new();
    for _ in 0..load.turns {
        let body = json!({"model": MODEL, "stream": true,
            "options": {"num_ctx": 8192, "num_predict": load.limit()},
            "messages": [{"role": "user", "content": load.prompt()}]});
        turns.push(timeout(LIMIT, direct_turn(http, url, &body)).await??);
    }
    Ok(turns)
}

async fn direct_turn(http: &reqwest::Client, url: &str, body: &Value) -> anyhow::Result<Times> {
    let mut times = Times { asked: Instant::now(), pieces: Vec::new() };
    let response = http.post(format!("{url}/api/chat")).json(body).send().await?;
    let mut stream = response.error_for_status()?.bytes_stream();
    let mut buffer = Vec::new();
    while let Some(bytes) = stream.next().await {
        buffer.extend_from_slice(&bytes?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let line: Value = serde_json::from_slice(&line)?;
            if line["done"] == true {
                ensure!(line["done_reason"] == "stop", "cut off: {line}");
                return Ok(times);
            }
            times.pieces.push(Instant::now());
        }
    }
    bail!("the stream ended without its last line")
}

async fn through(url: &str, load: &Load) -> anyhow::Result<Vec<Times>> {
    let url = format!("{url}/ws?session_id={}", Uuid::new_v4());
    let connecting = tokio_tungstenite::connect_async_with_config(url, None, true);
    let (mut socket, _) = timeout(LIMIT, connecting).await??;
    let mut turns = Vec::new();
    for turn in 0..=load.turns {
        if turn == 0 {
            // After the greeting the session is followed.
            timeout(LIMIT, socket.next()).await?.context("no greeting")??;
            continue;
        }
        let ask = json!({"type": "chat", "message": load.prompt(), "model": MODEL,
            "max_tokens": load.limit()});
        let mut times = Times { asked: Instant::now(), pieces: Vec::new() };
        socket.send(Message::text(ask.to_string())).await?;
        loop {
            let frame = timeout(LIMIT, socket.next()).await?.context("closed")??;
            let Message::Text(text) = frame else { continue };
            let event: Value = serde_json::from_str(&text)?;
            match event["type"].as_str() {
                Some("stream_chunk") if event["done"] == false => times.pieces.push(Instant::now()),
                Some("stream_end") => {
                    ensure!(event["finish_reason"] == "stop", "cut off: {}", event["usage"]);
                    break;
                }
                Some("error" | "cancelled") => bail!("{event}"),
                _ => {}
            }
        }
        turns.push(times);
    }
    Ok(turns)
}

async fn over_openai(http: &reqwest::Client, url: &str, load: &Load) -> anyhow::Result<Vec<Times>> {
    // The connection is open before the question, as a WebSocket is.
    http.get(format!("{url}/v1/models")).send().await?.bytes().await?;
    let mut turns = Vec::new();
    for _ in 0..load.turns {
        let body = json!({"model": MODEL, "stream": true, "max_tokens": load.limit(),
            "messages": [{"role": "user", "content": load.prompt()}]});
        turns.push(timeout(LIMIT, openai_turn(http, url, &body)).await??);
    }
    Ok(turns)
}

async fn openai_turn(http: &reqwest::Client, url: &str, body: &Value) -> anyhow::Result<Times> {
    let mut times = Times { asked: Instant::now(), pieces: Vec::new() };
    let response = http.post(format!("{url}/v1/chat/completions")).json(body).send().await?;
    let mut stream = response.error_for_status()?.bytes_stream();
    let mut lines = Lines::default();
    while let Some(bytes) = stream.next().await {
        lines.push(&bytes?);
        while let Some((_, data)) = lines.next_data() {
            if data == "[DONE]" {
                return Ok(times);
            }
            let chunk: Value = serde_json::from_str(&data)?;
            ensure!(chunk["error"].is_null(), "{chunk}");
            let choice = &chunk["choices"][0];
            if let Some(reason) = choice["finish_reason"].as_str() {
                ensure!(reason == "stop", "cut off: {chunk}");
            } else if choice["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
                times.pieces.push(Instant::now());
            }
        }
    }
    bail!("the stream ended without its last line")
}
