//! `verify`: checks that take longer than `test`, or need more than a checkout and Redis. A part is
//! a function that takes a folder for its files and returns an outcome. Every part runs, also after
//! one has failed; a new part belongs in [`everything`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde_json::Value;
use testkit::programs::search_path;
use testkit::{Port, Program, balancer, http};

use crate::address::Address;
use crate::check::{table, timed};
use crate::command::run;
use crate::console::{self, green, line, red, say, step};
use crate::models::Models;
use crate::outcome::Outcome;
use crate::replicas::{self, HEALTH_LIMIT};
use crate::services::{Service, Services};
use crate::{check, deployment, fuzz, install, paths, redis, versions};

const PYTHON: [&str; 3] = ["aiohttp", "websocket-client", "websockets"];
/// Their versions of the tokens that a backend or an outside issuer signs.
const PYTHON_OF_TOKENS: [&str; 2] = ["pyjwt", "cryptography"];
/// A secret of tokens that is used nowhere else.
const SECRET: &str = "the secret of make verify, known to all";
const NODE: [&str; 2] = ["ws", "wscat"];
/// How long each fuzz target runs, in seconds.
const FUZZ_SECONDS: u64 = 60;
/// The close code of a client that sends none.
const NORMAL: u64 = 1000;
/// Tests of the visibility of the service that take minutes, with their files.
const LONG_TESTS: [(&str, &str); 2] = [
    ("monitoring", "each_alert_but_that_of_panics_fires_at_a_real_fault_and_resolves_after_it"),
    ("metrics", "ten_thousand_sessions_add_no_series"),
];

/// Runs every part whose name has the filter in it. Returns whether all of them have passed.
///
/// # Errors
/// Fails where jarvis does not build, and where it is time to stop.
pub fn everything(filter: &str) -> anyhow::Result<bool> {
    console::title("make verify");
    replicas::build(&["jarvis", "ollama-sim", "loadgen"])?;
    let folder = paths::run().join("verify");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let mut rows = Vec::new();
    let parts: [(&'static str, &dyn Fn() -> anyhow::Result<Outcome>); 7] = [
        ("clients", &|| clients(&folder)),
        ("clients of other APIs", &api_clients),
        ("tokens", &|| tokens(&folder)),
        ("versions", &|| versions::check(&folder)),
        ("visibility", &visibility),
        ("page", &page),
        ("deployment", &deployment::check),
    ];
    for (name, part) in parts.into_iter().filter(|(name, _)| name.contains(filter)) {
        rows.push(timed(name, part)?);
    }
    if "fuzz".contains(filter) {
        rows.extend(fuzz::rows(FUZZ_SECONDS)?);
    }
    ensure!(!rows.is_empty(), "there is no part {filter}");
    table(&rows);
    say("");
    Ok(rows.iter().all(|row| row.outcome.ok))
}

/// Causes a real fault for each alert, and lets a real Prometheus see it; then begins 10,000 sessions
/// and counts the series. It takes minutes.
fn visibility() -> anyhow::Result<Outcome> {
    install::prometheus()?;
    let mut ok = true;
    for (file, test) in LONG_TESTS {
        ok &= pass(file, &["--exact", test, "--nocapture"])?;
    }
    Ok(Outcome { ok, text: "alerts at real faults, and the series of 10,000 sessions".to_owned() })
}

/// Runs the tests of a file that `make test` leaves out. Returns whether some ran, and all of them passed.
fn pass(file: &str, options: &[&str]) -> anyhow::Result<bool> {
    let cargo = ["test", "--workspace", "--locked", "--test", file, "--", "--ignored"];
    let tests = run("cargo", cargo).args(options).env("PATH", search_path());
    let (code, output) = tests.shown_and_read()?;
    Ok(code == 0 && check::passed(&output) > 0)
}

/// Runs other people's clients of OpenAI's and Ollama's APIs against two replicas.
fn api_clients() -> anyhow::Result<Outcome> {
    let mut names = String::new();
    step("packages", || {
        names = install::client_packages()?;
        Ok(names.clone())
    })?;
    Ok(Outcome { ok: pass("clients", &[])?, text: names })
}

/// Kills and pauses writers, and fails Redis over, while a browser shows answers. It takes minutes.
fn page() -> anyhow::Result<Outcome> {
    install::nginx()?;
    install::chromium()?;
    install::page_modules()?;
    Ok(Outcome {
        // One after another: some measure how long the browser takes.
        ok: pass("page", &["--nocapture", "--test-threads=1"])?,
        text: "writers that are killed and hang under a browser, and failovers of Redis".to_owned(),
    })
}

/// Runs other people's WebSocket clients against a replica, direct and through nginx. Each has to
/// see its own close code in every try.
fn clients(folder: &Path) -> anyhow::Result<Outcome> {
    let services = Services::default();
    let (mut python, mut modules) = (PathBuf::new(), PathBuf::new());
    step("packages", || {
        python = install::python_with(&PYTHON)?;
        modules = install::modules_with(&NODE)?;
        Ok([&PYTHON[..], &NODE].concat().join(", "))
    })?;
    let (direct, balanced) = start(&services, folder, Vec::new())?;
    let programs = paths::root().join("scripts/clients");
    let node = install::node()?;
    let commands: [(&Path, &str, Option<PathBuf>); 2] =
        [(&python, "closes.py", None), (&node, "closes.mjs", Some(modules.clone()))];
    let (mut tries, mut passed) = (0, 0);
    for (way, address) in [("direct", &direct), ("nginx", &balanced)] {
        for (program, script, more) in &commands {
            let url = format!("{}/ws", address.url().replacen("http", "ws", 1));
            let mut arguments = vec![programs.join(script).into_os_string(), OsString::from(url)];
            arguments.extend(more.clone().map(OsString::from));
            for result in results(program, &arguments)? {
                let good = good(&result);
                tries += number(&result, "tries");
                passed += good;
                show(way, &result, good);
            }
        }
    }
    Ok(Outcome { ok: passed == tries, text: format!("{passed} of {tries} tries") })
}

/// Sends tokens of a library that is not ours, signed by the service's own secret and by the keys of
/// an outside issuer. Each has to be accepted or refused as it should, direct and through nginx.
fn tokens(folder: &Path) -> anyhow::Result<Outcome> {
    let services = Services::default();
    let python = install::python_with(&PYTHON_OF_TOKENS)?;
    let issuer = Port::reserve()?;
    let address = format!("http://127.0.0.1:{}", issuer.number());
    let settings = vec![
        ("JARVIS_AUTH", "required".to_owned()),
        ("JARVIS_JWT_SECRET", SECRET.to_owned()),
        ("JARVIS_JWKS_URL", format!("{address}/keys")),
        ("JARVIS_JWT_ISSUER", address),
        ("JARVIS_JWT_AUDIENCE", "verify".to_owned()),
    ];
    let (direct, balanced) = start(&services, folder, settings)?;
    let script = paths::root().join("scripts/clients/tokens.py").into_os_string();
    let (mut tries, mut passed) = (0, 0);
    for (way, address) in [("direct", &direct), ("nginx", &balanced)] {
        let arguments = [address.url(), SECRET.to_owned(), issuer.number().to_string()];
        let arguments: Vec<OsString> =
            [script.clone()].into_iter().chain(arguments.map(OsString::from)).collect();
        for result in results(&python, &arguments)? {
            let good = good(&result);
            tries += number(&result, "tries");
            passed += good;
            show(way, &result, good);
        }
    }
    Ok(Outcome { ok: passed == tries, text: format!("{passed} of {tries} tokens") })
}

/// Starts a replica with scripted answers and these settings, and nginx in front of it; returns their
/// addresses.
fn start(
    services: &Services,
    folder: &Path,
    more: Vec<(&'static str, String)>,
) -> anyhow::Result<(Address, Address)> {
    install::nginx()?;
    let ports = [Port::reserve()?, Port::reserve()?];
    let [direct, balanced] =
        ports.each_ref().map(|port| Address { host: "127.0.0.1".to_owned(), port: port.number() });
    let host = Program::new("ollama-sim", paths::release("ollama-sim"), &paths::logs()).args([
        "--listen",
        "127.0.0.1:0",
        "--engine",
        "scripted",
        "--rate",
        "200",
    ]);
    let urls = services.start(Service::new(host, 2))?.address(replicas::LIVE_LIMIT)?;
    let models = Models { urls, default: "tinyllama:latest".to_owned() };
    let redis = redis::private(services, &redis::socket_path("verify")?, folder)?;
    let settings = [replicas::settings(&redis, &models), more].concat();
    let replica = replicas::start(services, "verify", &direct, &settings)?;
    replicas::wait_until_ready(&replica, &direct)?;
    let nginx = balancer::program(folder, &balanced.to_string(), &[direct.to_string()])?;
    let nginx = services.start(Service::new(nginx, 3))?;
    let live = format!("{}/health/live", balanced.url());
    nginx
        .wait_until(replicas::LIVE_LIMIT, "does not answer", || http::is_ok(&live, HEALTH_LIMIT))?;
    Ok((direct, balanced))
}

/// Parses the lines of JSON that a program prints.
fn results(program: &Path, arguments: &[OsString]) -> anyhow::Result<Vec<Value>> {
    let (code, printed) = run(program, arguments).read()?;
    let results: Vec<Value> = printed
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(
        code == 0 && !results.is_empty(),
        "{} {arguments:?} ended with code {code}:\n{printed}",
        program.display()
    );
    Ok(results)
}

fn number(result: &Value, field: &str) -> u64 {
    result[field].as_u64().unwrap_or_default()
}

/// Counts the tries that saw the right code: their own, and 1000 where a client closed without one.
fn good(result: &Value) -> u64 {
    if result["passed"].is_u64() {
        return number(result, "passed");
    }
    let own = result["close"].as_u64().filter(|code| *code > 0).unwrap_or(NORMAL);
    number(&result["seen"], &own.to_string())
}

fn show(way: &str, result: &Value, good: u64) {
    let closing = match (&result["passed"], result["close"].as_u64()) {
        (Value::Number(_), _) => String::new(),
        (_, Some(code)) => format!(", closes with {code}"),
        (_, None) => ", closes without a code".to_owned(),
    };
    let (client, tries) = (result["client"].as_str().unwrap_or_default(), number(result, "tries"));
    let seen = if result["seen"].is_null() { &result["failures"] } else { &result["seen"] };
    let mark = if good == tries { green("ok") } else { red(&seen.to_string()) };
    line(way, &format!("{client}{closing}: {good} of {tries}  {mark}"), None);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_try_is_good_when_the_client_saw_its_own_close_code() {
        let seen = json!({"1000": 20, "4999": 3, "1006": 1});
        let result =
            |close: Value| json!({"client": "x", "tries": 24, "close": close, "seen": seen});
        assert_eq!(good(&result(json!(4999))), 3);
        assert_eq!(good(&result(Value::Null)), 20);
        assert_eq!(good(&result(json!(4000))), 0);
        assert_eq!(good(&json!({"tries": 12, "passed": 11})), 11);
    }
}
