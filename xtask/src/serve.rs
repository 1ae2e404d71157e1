//! `run` and `cluster`: one replica, or several behind nginx, with all that they need, until a signal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use testkit::port::is_free;
use testkit::{Port, balancer, http};

use crate::address::Address;
use crate::command::run;
use crate::console::{self, LABEL, bold, dim, say, step};
use crate::models::{self, Models};
use crate::services::{Service, Services};
use crate::signals::{self, Interrupted};
use crate::state::Lock;
use crate::{install, paths, redis, replicas};

/// The deaths within [`DEATHS_WITHIN`] after which a replica is given up.
const DEATHS: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(30);
/// The time between two checks whether a service has ended.
const CHECK: Duration = Duration::from_millis(300);
const NGINX_LIMIT: Duration = Duration::from_secs(15);

/// Runs one replica, or `count` of them behind nginx, until a signal.
///
/// # Errors
/// Fails where a program that is needed is missing, or a service ends that must not.
pub fn serve(count: Option<usize>) -> anyhow::Result<()> {
    let listen = Address::from_environment()?;
    let _lock = Lock::take(&listen)?;
    check_port(&listen)?;
    console::title(&match count {
        None => "jarvis".to_owned(),
        Some(count) => format!("jarvis, {count} replicas behind nginx"),
    });
    let services = Services::default();
    let outcome = start(&services, &listen, count).and_then(|()| watch(&services));
    stop(&services);
    match outcome {
        Err(error) if !error.is::<Interrupted>() => Err(error),
        _ => Ok(()),
    }
}

fn start(services: &Services, listen: &Address, count: Option<usize>) -> anyhow::Result<()> {
    let (redis, models) = prepare(services, count.is_some())?;
    let mut settings = replicas::settings(&redis, &models);
    match count {
        None => step("jarvis", || {
            let service = replicas::start(services, "jarvis", listen, &settings)?;
            let missing = replicas::wait_until_ready(&service, listen)?;
            Ok(missing.unwrap_or_else(|| format!("ready at {listen}")))
        })?,
        Some(count) => {
            // nginx passes on the client's address. On loopback every client is on this machine, and has no
            // limits as long as no proxy is trusted: a loopback address that is forwarded has.
            if !listen.is_loopback() {
                settings.push(("JARVIS_TRUSTED_PROXIES", "127.0.0.0/8".to_owned()));
            }
            several(services, listen, &settings, count)?;
        }
    }
    invite(listen, &models.default);
    Ok(())
}

/// Builds, and has Redis and the model ready meanwhile: no step waits for another.
fn prepare(services: &Services, with_nginx: bool) -> anyhow::Result<(String, Models)> {
    // The first failure makes the others end.
    fn or_give_up<T>(outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        outcome.inspect_err(|_| signals::give_up())
    }
    let (redis, found, built) = std::thread::scope(|scope| {
        let redis = scope.spawn(|| or_give_up(redis::start(services)));
        let found = scope.spawn(|| {
            let nginx = if with_nginx { install::nginx().map(drop) } else { Ok(()) };
            or_give_up(nginx.and_then(|()| models::find(services)))
        });
        let built = or_give_up(replicas::build(&["jarvis", "ollama-sim"]));
        (redis.join(), found.join(), built)
    });
    let panicked = |_| anyhow::anyhow!("a step panicked");
    let redis = redis.unwrap_or_else(|panic| Err(panicked(panic)));
    let found = found.unwrap_or_else(|panic| Err(panicked(panic)));
    let outcomes = [redis.as_ref().err(), found.as_ref().err(), built.as_ref().err()];
    let is_cause = |error: &&anyhow::Error| !error.is::<Interrupted>();
    if let Some(cause) = outcomes.into_iter().flatten().find(is_cause) {
        bail!("{cause:#}");
    }
    built?;
    Ok((redis?, found?.ready(services)?))
}

fn several(
    services: &Services,
    listen: &Address,
    settings: &[(&'static str, String)],
    count: usize,
) -> anyhow::Result<()> {
    let ports: Vec<Port> = (0..count).map(|_| Port::reserve()).collect::<Result<_, _>>()?;
    let addresses: Vec<Address> = ports
        .iter()
        .map(|port| Address { host: "127.0.0.1".to_owned(), port: port.number() })
        .collect();
    step("jarvis", || {
        let mut lines = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            // The replicas start one after another: the first one loads the functions.
            let name = format!("jarvis-{}", number + 1);
            let service = replicas::start(services, &name, address, settings)?;
            let missing = replicas::wait_until_ready(&service, address)?;
            let missing = missing.unwrap_or_else(|| "ready".to_owned());
            let process = dim(&format!("(process {})", service.process.id().unwrap_or_default()));
            lines.push(format!("replica {} {missing} at {address} {process}", number + 1));
        }
        Ok(lines.join("\n"))
    })?;
    step("nginx", || {
        let addresses: Vec<String> = addresses.iter().map(Address::to_string).collect();
        let folder = paths::run().join("nginx");
        let mut program = balancer::program(&folder, &listen.to_string(), &addresses)?;
        program.log = paths::logs().join("nginx.log");
        let check = run(&program.path, &program.arguments).arg("-t");
        ensure!(check.succeeds()?, "nginx refuses its configuration: see {}", folder.display());
        let service = services.start(Service::new(program, 3))?;
        let url = format!("{}/health/live", listen.url());
        let answers = || http::is_ok(&url, Duration::from_secs(2));
        service.wait_until(NGINX_LIMIT, "does not answer", answers)?;
        Ok(format!("in front of them at {listen}, round robin, no sticky sessions"))
    })
}

fn invite(listen: &Address, model: &str) {
    let url = listen.url();
    let question = r#"{"message": "Hello, how are you?"}"#;
    let streamed = r#"{"message": "Tell me a story", "stream": true}"#;
    let row =
        |label: &str, text: &str| say(&format!("  {}{text}", bold(&format!("{label:LABEL$}"))));
    say("");
    row("Browser", &format!("{url}/"));
    row("API", &format!("{url}/docs"));
    row("curl", &format!("curl --json '{question}' {url}/api/v1/chat/"));
    row("", &format!("curl -N --json '{streamed}' {url}/api/v1/chat/"));
    let socket = url.replacen("http", "ws", 1);
    row("WebSocket", &format!("{socket}/ws {}", dim("(try it: make chat)")));
    row("OpenAI", &format!("{url}/v1 {}", dim("(the base URL of its SDKs: docs/CLIENTS.md)")));
    row("Ollama", &format!("{url} {}", dim("(OLLAMA_HOST)")));
    let logs = paths::shown(&paths::logs());
    say(&dim(&format!(
        "\n  The model is {model}. Logs are in {logs}. Ctrl-C stops all of it; the history stays.\n"
    )));
}

/// Runs until a signal, or until a service ends that must not.
fn watch(services: &Services) -> anyhow::Result<()> {
    let mut deaths: HashMap<String, Vec<Instant>> = HashMap::new();
    loop {
        signals::pause(CHECK)?;
        for service in services.ended() {
            let name = service.process.name();
            if !name.starts_with("jarvis-") {
                bail!("{}", service.process.epitaph());
            }
            revive(&service, deaths.entry(name.to_owned()).or_default())?;
        }
    }
}

fn revive(service: &Arc<Service>, deaths: &mut Vec<Instant>) -> anyhow::Result<()> {
    deaths.retain(|death| death.elapsed() < DEATHS_WITHIN);
    deaths.push(Instant::now());
    ensure!(deaths.len() <= DEATHS, "{}", service.process.epitaph());
    let how = service.process.how_it_ended();
    signals::pause(Duration::from_secs(1))?;
    service.process.start()?;
    let (name, id) = (service.process.name(), service.process.id().unwrap_or_default());
    say(&dim(&format!("  {name} {how}; started again as process {id}")));
    Ok(())
}

fn stop(services: &Services) {
    if services.is_empty() {
        return;
    }
    if signals::count() > 0 {
        say("\n  Stopping. Running answers may end, for at most 20 s; Ctrl-C again ends it now.");
    }
    let (start, kept) = (Instant::now(), services.has("redis"));
    services.stop();
    let data = paths::shown(&paths::redis_data());
    let kept = if kept { format!(" The history is kept in {data}.") } else { String::new() };
    say(&format!("  Stopped after {:.1} s.{kept}", start.elapsed().as_secs_f64()));
}

fn check_port(listen: &Address) -> anyhow::Result<()> {
    if listen.port == 0 || is_free(&listen.host, listen.port) {
        return Ok(());
    }
    let health =
        http::send("GET", &format!("{}/health", listen.url()), None, Duration::from_secs(2));
    let health = health.and_then(http::Response::text).unwrap_or_default();
    let who = if health.contains("\"app\"") { "another jarvis" } else { "another program" };
    let mut others = listen.port.saturating_add(1)..u16::MAX;
    let other = others.find(|port| is_free(&listen.host, *port)).unwrap_or(0);
    bail!(
        "port {} of {} is taken by {who}.\nStop that one, or choose another: JARVIS_LISTEN={} make run",
        listen.port,
        listen.host,
        listen.with_port(other)
    )
}
