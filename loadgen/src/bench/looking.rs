//! The cost of observation: one replica with its logs, its metrics, a scrape each second, and the spans of
//! every turn, beside one that records nothing, under the same load in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;
use serde::Serialize;
use testkit::redis::RedisKind;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, interval};

use super::cost::Usage;
use super::streams::{self, Load, Way};
use super::{Bench, PACED_RATE};
use crate::fleet::{Fleet, Plan};

/// Streams at a time, their turns, and the tokens of each: about what one replica carries.
const LOAD: Load = Load { streams: 100, turns: 2, tokens: 60, rate: PACED_RATE };

/// The CPU time of a token with everything on and with everything off.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Looking {
    /// Microseconds with logs at info, metrics, a scrape each second, and all spans; the median.
    pub on_us: f64,
    /// Microseconds without any of them; the median.
    pub off_us: f64,
    /// The median of the shares of the pairs by which the first is more.
    pub share: f64,
}

/// Measures both, in turn.
///
/// # Errors
/// Fails where a fleet does not start, or a stream breaks off.
pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Looking> {
    let spans = Spans::serve().await?;
    let on = [("JARVIS_LOG", "info,fred=error"), ("JARVIS_OTLP_URL", &*spans.url)];
    let on = fleet(bench, "on", &on).await?;
    let off = fleet(bench, "off", &[("JARVIS_LOG", "off"), ("JARVIS_UNOBSERVED", "true")]).await?;
    let (mut figures, mut shares) = ([Vec::new(), Vec::new()], Vec::new());
    for number in 0..bench.pairs {
        eprintln!("cost of looking, pair {} of {}", number + 1, bench.pairs);
        let mut pair = [0.0; 2];
        // The order alternates, so that neither gains by it.
        for turn in 0..2 {
            let which = (number + turn) % 2;
            let fleet = [&on, &off][which];
            let scraping = (which == 0).then(|| scrape(fleet));
            let before = Usage::of(fleet);
            let half = streams::half(fleet, &LOAD, Way::ThroughJarvis).await;
            let usage = Usage::of(fleet).since(&before);
            if let Some(scraping) = scraping {
                scraping.abort();
            }
            pair[which] = usage.per_token(half?.tokens).jarvis_us;
            figures[which].push(pair[which]);
        }
        shares.push(pair[0] / pair[1] - 1.0);
    }
    let received = spans.bytes.load(Ordering::Relaxed);
    ensure!(received > 0, "no spans were sent, so that their cost was not measured");
    let [on_us, off_us] = figures.map(super::middle);
    Ok(Looking { on_us, off_us, share: super::middle(shares) })
}

async fn fleet(bench: &Bench, name: &str, settings: &[(&str, &str)]) -> anyhow::Result<Fleet> {
    let slots = [("JARVIS_OLLAMA_SLOTS", "1024"), ("JARVIS_LOG_FORMAT", "json")];
    let settings = slots.iter().chain(settings);
    let dir = bench.dir.join(name);
    std::fs::create_dir_all(&dir)?;
    Fleet::start(&Plan {
        binaries: bench.binaries.clone(),
        dir,
        redis: RedisKind::Single,
        replicas: 1,
        sims: 1,
        settings: settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    })
    .await
}

/// A collector that reads spans and keeps none.
struct Spans {
    url: String,
    /// Bytes of the bodies that it has read.
    bytes: Arc<AtomicUsize>,
}

impl Spans {
    async fn serve() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let bytes = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&bytes);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                // A connection that breaks off is opened again.
                tokio::spawn(async move { receive(stream, &counted).await });
            }
        });
        Ok(Self { url, bytes })
    }
}

/// Answers the requests of one connection, whose bodies have a length.
async fn receive(stream: TcpStream, bytes: &AtomicUsize) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse()?;
                }
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        bytes.fetch_add(length, Ordering::Relaxed);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
    }
}

/// Reads the metrics each second, as often as a Prometheus may.
fn scrape(fleet: &Fleet) -> tokio::task::JoinHandle<()> {
    let (url, client) = (format!("{}/metrics", fleet.replicas[0].url), fleet.http.clone());
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            if let Ok(reply) = client.get(&url).send().await {
                let _ = reply.bytes().await;
            }
        }
    })
}
