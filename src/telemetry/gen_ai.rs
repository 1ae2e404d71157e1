//! The metrics of answers, by the names of OpenTelemetry's conventions for generative AI, in the
//! spelling of Prometheus.
//!
//! To its clients jarvis is the server of a model (`gen_ai_server_*`), and to the hosts a client
//! (`gen_ai_client_*`). The label of the model is the name by which the queue knows it, and only a
//! model that a host has gets a first token.

use std::time::Duration;

use metrics::Label;

use super::metric;

/// The recorder of one turn's metrics.
#[derive(Clone, Debug)]
pub struct GenAi {
    labels: [Label; 3],
}

impl GenAi {
    /// Creates the recorder of the answers of a model, by its full name.
    pub fn of_model(model: String) -> Self {
        Self {
            labels: [
                Label::from_static_parts("gen_ai_operation_name", "chat"),
                Label::from_static_parts("gen_ai_provider_name", "ollama"),
                Label::new("gen_ai_request_model", model),
            ],
        }
    }

    fn with(&self, name: &'static str, value: String) -> Vec<Label> {
        self.labels.iter().cloned().chain([Label::new(name, value)]).collect()
    }

    /// Records the time from the acceptance of a turn to its first token.
    pub fn first_token(&self, took: Duration) {
        metrics::histogram!(
            metric::GEN_AI_SERVER_TIME_TO_FIRST_TOKEN_SECONDS,
            self.labels.to_vec()
        )
        .record(took);
    }

    /// Records the mean time of the tokens after the first one.
    pub fn output_token(&self, mean: Duration) {
        metrics::histogram!(
            metric::GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN_SECONDS,
            self.labels.to_vec()
        )
        .record(mean);
    }

    /// Records a turn that was completed.
    pub fn completed(&self, took: Duration) {
        metrics::histogram!(metric::GEN_AI_SERVER_REQUEST_DURATION_SECONDS, self.labels.to_vec())
            .record(took);
    }

    /// Records a turn that failed with a stable code. Its model may be one that no host has, so its
    /// label is left out.
    pub fn failed(&self, took: Duration, code: &str) {
        let labels = [&self.labels[..2], &[Label::new("error_type", code.to_owned())]].concat();
        metrics::histogram!(metric::GEN_AI_SERVER_REQUEST_DURATION_SECONDS, labels).record(took);
    }

    /// Records the tokens of one answer.
    pub fn tokens(&self, input: u64, output: u64) {
        for (kind, tokens) in [("input", input), ("output", output)] {
            let labels = self.with("gen_ai_token_type", kind.to_owned());
            metrics::histogram!(metric::GEN_AI_CLIENT_TOKEN_USAGE, labels).record(tokens as f64);
        }
    }
}
