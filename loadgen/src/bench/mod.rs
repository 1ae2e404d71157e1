//! The cost of jarvis, compared with the model host alone, in one run on one machine.

pub(crate) mod cost;
mod fronts;
mod looking;
mod streams;

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use testkit::redis::RedisKind;

use crate::fleet::{Fleet, Plan};
use cost::{Cost, Sockets, Usage};
use fronts::Fronts;
use looking::Looking;
use streams::{Half, Load, Way};

/// The streams at a time, and the turns of each in one half of a pair: fewer streams need more
/// turns for as good a figure.
const LEVELS: [(usize, usize); 4] = [(1, 5), (10, 2), (50, 1), (200, 1)];
const PACED_TOKENS: usize = 40;
const PACED_RATE: f64 = 20.0;
/// The tokens of an answer: as many as fit the context window, repeatedly.
const UNPACED_TOKENS: usize = 6000;
const UNPACED_TURNS: usize = 20;
const UNPACED_LEVELS: [usize; 2] = [1, 10];

/// A run of the benchmarks.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The folder of the `jarvis` and `ollama-sim` binaries.
    pub binaries: PathBuf,
    /// The folder of logs and data.
    pub dir: PathBuf,
    /// The pairs of halves, one through jarvis and one without it, in turn.
    pub pairs: usize,
    /// The sockets that are opened and left idle.
    pub sockets: usize,
}

/// The figures of paced streams, with and without jarvis. Times are in milliseconds, medians over
/// the pairs.
#[derive(Clone, Debug, Serialize)]
pub struct Paced {
    /// The streams at a time.
    pub streams: usize,
    /// The time to the first token: without jarvis, through it, and the difference; p50.
    pub first_token_p50: [f64; 3],
    /// The same, p99.
    pub first_token_p99: [f64; 3],
    /// The gap between two pieces without jarvis and through it; p50.
    pub gap_p50: [f64; 2],
    /// The same, p99.
    pub gap_p99: [f64; 2],
    /// The rate of tokens through jarvis, as a share of that without it.
    pub rate: f64,
    /// The CPU time of a token.
    pub cost: Cost,
}

/// The figures of streams as fast as they go.
#[derive(Clone, Debug, Serialize)]
pub struct Unpaced {
    /// The streams at a time.
    pub streams: usize,
    /// The tokens a second without jarvis and through it.
    pub tokens_a_second: [f64; 2],
    /// The CPU time of a token.
    pub cost: Cost,
}

/// All figures.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The processor, cores, memory and kernel.
    pub machine: String,
    /// The command line.
    pub command: String,
    /// The pairs that the medians are of.
    pub pairs: usize,
    /// The paced streams.
    pub paced: Vec<Paced>,
    /// The streams over OpenAI's API.
    pub fronts: Vec<Fronts>,
    /// The streams as fast as they go.
    pub unpaced: Vec<Unpaced>,
    /// The idle sockets and handshakes.
    pub sockets: Sockets,
    /// The cost of logs and metrics.
    pub looking: Looking,
}

/// Runs all benchmarks, one after another.
///
/// # Errors
/// Fails where the fleet does not start, or a stream breaks off.
pub async fn run(bench: Bench) -> anyhow::Result<BenchReport> {
    let settings = [("JARVIS_OLLAMA_SLOTS", "1024"), ("JARVIS_LOG", "warn,fred=error")];
    let fleet = Fleet::start(&Plan {
        binaries: bench.binaries.clone(),
        dir: bench.dir.clone(),
        redis: RedisKind::Single,
        replicas: 1,
        sims: 1,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
    })
    .await?;
    // Sockets come first, as memory that was used for streams would hide what they take.
    let sockets = cost::sockets(&fleet, bench.sockets).await?;
    let mut paced = Vec::new();
    for (streams, turns) in LEVELS {
        let load = Load { streams, turns, tokens: PACED_TOKENS, rate: PACED_RATE };
        let pairs = pairs(&fleet, &load, bench.pairs).await?;
        paced.push(paced_of(streams, &pairs));
    }
    let fronts = fronts::measure(&fleet, bench.pairs).await?;
    let mut unpaced = Vec::new();
    for streams in UNPACED_LEVELS {
        let load = Load { streams, turns: UNPACED_TURNS, tokens: UNPACED_TOKENS, rate: 0.0 };
        let pairs = pairs(&fleet, &load, bench.pairs).await?;
        let rate = |half: &Half| half.tokens as f64 / half.seconds;
        let tokens_a_second =
            [median(&pairs, |pair| rate(&pair.direct)), median(&pairs, |pair| rate(&pair.through))];
        unpaced.push(Unpaced { streams, tokens_a_second, cost: cost_of(&pairs) });
    }
    drop(fleet);
    let looking = looking::measure(&bench).await?;
    Ok(BenchReport {
        machine: cost::machine(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        pairs: bench.pairs,
        paced,
        fronts,
        unpaced,
        sockets,
        looking,
    })
}

struct Pair {
    direct: Half,
    through: Half,
    usage: Usage,
}

async fn pairs(fleet: &Fleet, load: &Load, count: usize) -> anyhow::Result<Vec<Pair>> {
    let mut pairs = Vec::with_capacity(count);
    for number in 0..count {
        eprintln!("{} streams, pair {} of {count}", load.streams, number + 1);
        // The order alternates, so that neither half gains by it.
        let early = if number % 2 == 0 {
            Some(streams::half(fleet, load, Way::Direct).await?)
        } else {
            None
        };
        let before = Usage::of(fleet);
        let through = streams::half(fleet, load, Way::ThroughJarvis).await?;
        let usage = Usage::of(fleet).since(&before);
        let direct = match early {
            Some(direct) => direct,
            None => streams::half(fleet, load, Way::Direct).await?,
        };
        pairs.push(Pair { direct, through, usage });
    }
    Ok(pairs)
}

fn paced_of(streams: usize, pairs: &[Pair]) -> Paced {
    let figures = |quantile: f64| {
        let first = |half: &Half| half.first.value_at_quantile(quantile) as f64 / 1000.0;
        [
            median(pairs, |pair| first(&pair.direct)),
            median(pairs, |pair| first(&pair.through)),
            median(pairs, |pair| first(&pair.through) - first(&pair.direct)),
        ]
    };
    let gaps = |quantile: f64| {
        let gap = |half: &Half| half.gap.value_at_quantile(quantile) as f64 / 1000.0;
        [median(pairs, |pair| gap(&pair.direct)), median(pairs, |pair| gap(&pair.through))]
    };
    Paced {
        streams,
        first_token_p50: figures(0.5),
        first_token_p99: figures(0.99),
        gap_p50: gaps(0.5),
        gap_p99: gaps(0.99),
        rate: median(pairs, |pair| pair.through.pace() / pair.direct.pace()),
        cost: cost_of(pairs),
    }
}

fn cost_of(pairs: &[Pair]) -> Cost {
    let costs: Vec<Cost> =
        pairs.iter().map(|pair| pair.usage.per_token(pair.through.tokens)).collect();
    Cost::median(&costs)
}

fn median(pairs: &[Pair], figure: impl Fn(&Pair) -> f64) -> f64 {
    middle(pairs.iter().map(figure).collect())
}

/// Returns the median.
fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

impl BenchReport {
    /// Formats the figures as a table.
    pub fn table(&self) -> String {
        let mut table = format!("  {}\n  {}\n\n", self.machine, self.command);
        let _ = writeln!(
            table,
            "  Paced, {PACED_RATE} tokens/s a stream; ms, medians of {} pairs: direct → through jarvis",
            self.pairs
        );
        for paced in &self.paced {
            let [direct, through, added] = paced.first_token_p50;
            let [direct99, through99, added99] = paced.first_token_p99;
            let _ = writeln!(
                table,
                "  {:>4} streams   first token p50 {direct:.2} → {through:.2} ({added:+.2})   \
                 p99 {direct99:.2} → {through99:.2} ({added99:+.2})",
                paced.streams
            );
            let _ = writeln!(
                table,
                "                 gap p50 {:.2} → {:.2}   p99 {:.2} → {:.2}   rate {:.2} %   \
                 CPU µs a token: jarvis {:.0}, Redis {:.0}",
                paced.gap_p50[0],
                paced.gap_p50[1],
                paced.gap_p99[0],
                paced.gap_p99[1],
                paced.rate * 100.0,
                paced.cost.jarvis_us,
                paced.cost.redis_us
            );
        }
        fronts::write(&mut table, &self.fronts);
        let _ = writeln!(table, "\n  As fast as it goes, tokens/s: direct → through jarvis");
        for unpaced in &self.unpaced {
            let [direct, through] = unpaced.tokens_a_second;
            let _ = writeln!(
                table,
                "  {:>4} streams   {direct:.0} → {through:.0} ({:.1} %)   CPU µs a token: jarvis {:.1}, Redis {:.1}",
                unpaced.streams,
                through / direct * 100.0,
                unpaced.cost.jarvis_us,
                unpaced.cost.redis_us
            );
        }
        let _ = writeln!(
            table,
            "\n  Idle sockets: {} KiB each ({} open).   Handshakes: {:.0}/s",
            self.sockets.kib_a_socket, self.sockets.open, self.sockets.handshakes_a_second
        );
        let _ = writeln!(
            table,
            "\n  Looking (logs at info, metrics, a scrape a second, all spans): {:+.1} % CPU   \
             µs a token: {:.1} → {:.1}",
            self.looking.share * 100.0,
            self.looking.off_us,
            self.looking.on_us
        );
        table
    }
}
