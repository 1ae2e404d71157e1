//! The pace of one run on a host: its first token, the gaps after it, its mean, and its tokens.

use std::time::Duration;

use tokio::time::Instant;

use crate::session::Usage;
use crate::telemetry::{GenAi, LIVE, metric};

/// The times of one run's pieces. A piece is at least one token.
pub(super) struct Pace {
    host: String,
    gen_ai: GenAi,
    /// When the host was asked.
    asked: Instant,
    first: Option<Instant>,
    last: Instant,
    longest_gap: Duration,
}

impl Pace {
    /// Begins when a host is asked for an answer of this model.
    pub(super) fn begin(host: String, model: String) -> Self {
        let (now, gen_ai) = (Instant::now(), GenAi::of_model(model));
        Self { host, gen_ai, asked: now, first: None, last: now, longest_gap: Duration::ZERO }
    }

    /// Notes a piece. Returns whether it is the first one. This reads the clock and counts, and nothing
    /// more, as it happens at each token.
    pub(super) fn note(&mut self) -> bool {
        LIVE.pieces.rise();
        let now = Instant::now();
        let is_first = self.first.is_none();
        if is_first {
            self.first = Some(now);
        } else {
            self.longest_gap = self.longest_gap.max(now - self.last);
        }
        self.last = now;
        is_first
    }

    /// Records the first token of the host, and that of the answer where it is its first one, after
    /// so much time.
    pub(super) fn record_first(&self, of_answer: Option<Duration>) {
        metrics::histogram!(metric::HOST_FIRST_TOKEN_SECONDS, "host" => self.host.clone())
            .record(self.asked.elapsed());
        if let Some(took) = of_answer {
            self.gen_ai.first_token(took);
        }
    }

    /// Records a run that has completed an answer with this usage, and generated so many tokens of
    /// it.
    pub(super) fn record_end(&self, usage: Usage, generated: u64) {
        let prompt = usage.prompt_tokens;
        metrics::counter!(metric::TOKENS_TOTAL, "kind" => "prompt").increment(prompt);
        metrics::counter!(metric::TOKENS_TOTAL, "kind" => "completion").increment(generated);
        self.gen_ai.tokens(prompt, usage.completion_tokens);
        let Some(first) = self.first.filter(|_| generated > 1) else { return };
        metrics::histogram!(metric::LONGEST_TOKEN_GAP_SECONDS, "host" => self.host.clone())
            .record(self.longest_gap);
        self.gen_ai.output_token((self.last - first).div_f64((generated - 1) as f64));
    }
}
