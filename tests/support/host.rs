//! What a scripted Ollama says of itself.

use serde_json::Value;

use super::client::get;
use super::process::Process;

/// Returns a figure of the host.
pub async fn stat(host: &Process, name: &str) -> u64 {
    get(host, "/sim/stats").await.body[name].as_u64().expect("a number")
}

/// Returns the requests that the host got at this path, oldest first.
pub async fn requests(host: &Process, path: &str) -> Vec<Value> {
    let asked = get(host, "/sim/requests").await.body;
    let asked = asked["requests"].as_array().cloned().unwrap_or_default();
    asked.into_iter().filter(|asked| asked["path"] == path).collect()
}
