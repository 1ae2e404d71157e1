//! The cost of a stream over OpenAI's API, beside jarvis's own WebSocket and the model host alone.

use std::fmt::Write as _;

use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::time::sleep;

use super::cost::{Cost, Usage};
use super::streams::{self, APART, Half, Load, Way};
use super::{PACED_RATE, PACED_TOKENS, middle};
use crate::fleet::Fleet;

/// The streams at a time, and the turns of each in one round.
const LEVELS: [(usize, usize); 3] = [(1, 10), (10, 4), (50, 2)];
/// The ways of one round.
const WAYS: [Way; 3] = [Way::Direct, Way::ThroughJarvis, Way::OverOpenAi];

/// The figures of paced streams over both APIs. Times are in milliseconds, medians over the rounds;
/// of three the first is without jarvis, the second over its WebSocket, the third over OpenAI's API.
#[derive(Clone, Debug, Serialize)]
pub struct Fronts {
    /// The streams at a time.
    pub streams: usize,
    /// The time to the first token, p50.
    pub first_token_p50: [f64; 3],
    /// The same, p99.
    pub first_token_p99: [f64; 3],
    /// The CPU time of a token over the WebSocket, and over OpenAI's API.
    pub cost: [Cost; 2],
}

/// Measures each level. The ways of a round run beside each other, so that whatever else the machine does
/// meets all of them; then each that goes through jarvis runs alone, for its CPU time.
///
/// # Errors
/// Fails where a stream breaks off.
pub async fn measure(fleet: &Fleet, rounds: usize) -> anyhow::Result<Vec<Fronts>> {
    let mut all = Vec::new();
    for (streams, turns) in LEVELS {
        let load = Load { streams, turns, tokens: PACED_TOKENS, rate: PACED_RATE };
        let mut times: [Vec<Half>; 3] = Default::default();
        let mut costs: [Vec<Cost>; 3] = Default::default();
        for round in 0..rounds {
            eprintln!("{streams} streams over each API, round {} of {rounds}", round + 1);
            let order = order(round);
            let beside = (0..).zip(order).map(|(place, at)| {
                let load = &load;
                async move {
                    // Each stream of each way asks at a time of its own.
                    sleep(APART * place / WAYS.len() as u32).await;
                    streams::half(fleet, load, WAYS[at]).await
                }
            });
            for (at, half) in order.into_iter().zip(try_join_all(beside).await?) {
                times[at].push(half);
            }
            for at in order.into_iter().filter(|at| WAYS[*at] != Way::Direct) {
                let before = Usage::of(fleet);
                let tokens = streams::half(fleet, &load, WAYS[at]).await?.tokens;
                costs[at].push(Usage::of(fleet).since(&before).per_token(tokens));
            }
        }
        all.push(of_level(streams, &times, &costs));
    }
    Ok(all)
}

/// Returns the ways of a round in their order. Another one is first in each round, and every second time
/// they turn round: so none gains by its place, nor by the one that always runs before it.
fn order(round: usize) -> [usize; WAYS.len()] {
    let count = WAYS.len();
    let at =
        |step: usize| if round.is_multiple_of(2) { round + step } else { round + count - step };
    std::array::from_fn(|step| at(step) % count)
}

fn of_level(streams: usize, times: &[Vec<Half>; 3], costs: &[Vec<Cost>; 3]) -> Fronts {
    let first = |quantile: f64| {
        let of = |half: &Half| half.first.value_at_quantile(quantile) as f64 / 1000.0;
        times.each_ref().map(|halves| middle(halves.iter().map(of).collect()))
    };
    let [_, socket, openai] = costs;
    Fronts {
        streams,
        first_token_p50: first(0.5),
        first_token_p99: first(0.99),
        cost: [Cost::median(socket), Cost::median(openai)],
    }
}

/// Adds the figures to the table.
pub fn write(table: &mut String, all: &[Fronts]) {
    let _ = writeln!(
        table,
        "\n  Over OpenAI's API, {PACED_RATE} tokens/s a stream; ms: direct, WebSocket, /v1/chat/completions"
    );
    for Fronts { streams, first_token_p50, first_token_p99, cost } in all {
        let shown =
            |[direct, socket, openai]: &[f64; 3]| format!("{direct:.2}, {socket:.2}, {openai:.2}");
        let [socket, openai] = cost;
        let _ = writeln!(
            table,
            "  {streams:>4} streams   first token p50 {}   p99 {}   CPU µs a token: jarvis {:.0}, {:.0}; \
             Redis {:.0}, {:.0}",
            shown(first_token_p50),
            shown(first_token_p99),
            socket.jarvis_us,
            openai.jarvis_us,
            socket.redis_us,
            openai.redis_us
        );
        let _ = writeln!(
            table,
            "  {:>12} of the WebSocket's: first token p50 {:.2}   p99 {:.2}   CPU a token {:.2}",
            "",
            first_token_p50[2] / first_token_p50[1],
            first_token_p99[2] / first_token_p99[1],
            openai.whole() / socket.whole()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn over_six_rounds_each_way_has_each_place_and_each_way_before_it_equally_often() {
        let orders: Vec<_> = (0..6).map(order).collect();
        assert_eq!(orders.iter().collect::<BTreeSet<_>>().len(), 6, "{orders:?}");
        for first in orders.windows(2) {
            assert_ne!(first[0][0], first[1][0], "{orders:?}");
        }
        for order in &orders {
            assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), WAYS.len());
        }
    }
}
