//! Starts one or several replicas of jarvis.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use testkit::{Program, http};

use crate::address::Address;
use crate::command::run;
use crate::console::{bold, step};
use crate::models::Models;
use crate::paths;
use crate::services::{Service, Services};

/// The time that jarvis may take to drain, and a little more.
const GRACE: Duration = Duration::from_secs(27);
/// The time that a server may take to answer.
pub const LIVE_LIMIT: Duration = Duration::from_secs(30);
const READY_LIMIT: Duration = Duration::from_secs(10);
/// The time limit of a health check.
pub const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// Builds these binaries with the profile `release`.
///
/// # Errors
/// Fails where they do not build.
pub fn build(names: &[&str]) -> anyhow::Result<()> {
    build_with(paths::RELEASE, names)
}

/// Builds these binaries with a profile.
///
/// # Errors
/// Fails where they do not build.
pub fn build_with(profile: &str, names: &[&str]) -> anyhow::Result<()> {
    step("Build", || {
        // The features are those of the whole workspace, whichever binaries are built: otherwise
        // `make run` and `make chaos` would each compile the dependencies.
        let mut cargo = run("cargo", ["build", "--profile", profile, "--locked", "--workspace"]);
        for name in names {
            cargo = cargo.args(["--bin", name]);
        }
        ensure!(cargo.shown()? == 0, "it does not build; see what cargo says above");
        let names: Vec<String> = names.iter().map(|name| bold(name)).collect();
        Ok(format!("{}, {profile}", names.join(", ")))
    })
}

/// Returns the settings of a replica that hold addresses.
pub fn settings(redis: &str, models: &Models) -> Vec<(&'static str, String)> {
    vec![
        ("JARVIS_REDIS_URL", redis.to_owned()),
        ("JARVIS_OLLAMA_URLS", models.urls.clone()),
        ("JARVIS_DEFAULT_MODEL", models.default.clone()),
    ]
}

/// Starts a replica.
///
/// # Errors
/// Fails where the binary is missing.
pub fn start(
    services: &Services,
    name: &str,
    listen: &Address,
    settings: &[(&'static str, String)],
) -> anyhow::Result<Arc<Service>> {
    let mut program = Program::new(name, paths::release("jarvis"), &paths::logs()).args(["serve"]);
    for (name, value) in settings {
        program = program.env(name, value);
    }
    program = program.env("JARVIS_LISTEN", &listen.to_string());
    services.start(Service::new(program, 4).with_grace(GRACE))
}

/// Waits until a replica is ready; returns the reason of a live replica that is not.
///
/// # Errors
/// Fails where it ends or does not get live in time.
pub fn wait_until_ready(service: &Service, listen: &Address) -> anyhow::Result<Option<String>> {
    let ok = |path: &str| http::is_ok(&format!("{}{path}", listen.url()), HEALTH_LIMIT);
    service.wait_until(LIVE_LIMIT, "does not answer", || ok("/health/live"))?;
    let ready = service.wait_until(READY_LIMIT, "is not ready", || ok("/health/ready"));
    match ready {
        Ok(()) => Ok(None),
        Err(error) if service.process.has_ended() || error.is::<crate::signals::Interrupted>() => {
            Err(error)
        }
        Err(_) => {
            let reply =
                http::send("GET", &format!("{}/health/ready", listen.url()), None, HEALTH_LIMIT);
            let reply = reply.and_then(http::Response::text).unwrap_or_default();
            Ok(Some(format!("up, but not ready yet: {}", why_not_ready(&reply))))
        }
    }
}

/// Returns the reason in the reply of a replica that is not ready.
fn why_not_ready(reply: &str) -> String {
    let problem: Value = serde_json::from_str(reply).unwrap_or_default();
    problem["detail"].as_str().unwrap_or("it does not say why").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_is_not_ready_reports_the_reason() {
        assert_eq!(why_not_ready(r#"{"detail": "Redis refuses"}"#), "Redis refuses");
        assert_eq!(why_not_ready("<html>"), "it does not say why");
    }
}
