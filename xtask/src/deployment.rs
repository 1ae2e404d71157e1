//! The part of `verify` that needs a container engine: the image and compose, under load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::spawn;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Port, Program, http, pause};

use crate::command::{Run, run};
use crate::console::{line, step};
use crate::outcome::Outcome;
use crate::services::{Service, Services};
use crate::{paths, proof, replicas};

/// The name of the containers, networks and volumes, which are removed at the end.
const PROJECT: &str = "jarvis-verify";
/// A network other than the one of a compose that runs already.
const SUBNET: &str = "172.31.214";
/// The load beside every step.
const SESSIONS: &str = "20";
/// How many clients send POSTs without an Idempotency-Key, one after another.
const KEYLESS: usize = 8;
/// The answers of those POSTs.
const TOKENS: u64 = 60;
/// Answers that are being written when everything stops.
const LAST_POSTS: usize = 20;
const TURN_LIMIT: Duration = Duration::from_mins(1);
/// The time between two steps.
const PAUSE: Duration = Duration::from_secs(8);
/// Bytes of the image, at most.
const IMAGE_BYTES: f64 = 35e6;
/// The log line of Redis once its append-only file is written.
const WRITTEN: [&str; 3] =
    ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_last_bgrewrite_status:ok"];
/// How long a changed line may take to be built by the profile `release`.
const REBUILD_LIMIT: Duration = Duration::from_mins(1);
/// The load ends this long after the last step.
const LOAD_SECONDS: &str = "110";

/// Builds the image, starts docker-compose.yml with three replicas, and stops, kills, scales, upgrades
/// and restarts parts of it under load. Nobody may get an error.
///
/// # Errors
/// Fails where a step cannot be taken, and where it is time to stop.
pub fn check() -> anyhow::Result<Outcome> {
    if !run("docker", ["version"]).succeeds()?
        || !run("docker", ["compose", "version"]).succeeds()?
    {
        // It is not the fault of the project: say so, and do not claim that it was tried.
        let text = "NOT TRIED: there is no Docker engine with compose here".to_owned();
        return Ok(Outcome { ok: true, text });
    }
    let compose = Compose::new()?;
    step("image", || {
        ensure!(compose.run(&["build", "jarvis"]).shown()? == 0, "the image is not built");
        let size = inspect("{{.Size}}")?.parse::<f64>().context("no size of the image")?;
        ensure!(size <= IMAGE_BYTES, "the image has {:.1} MB", size / 1e6);
        let revision = inspect("{{index .Config.Labels \"org.opencontainers.image.revision\"}}")?;
        ensure!(revision == self::revision()?, "the label of the image names {revision}");
        Ok(format!("{:.1} MB of {revision:.8}", size / 1e6))
    })?;
    step("rebuild", || {
        let took = rebuild()?;
        ensure!(took <= REBUILD_LIMIT, "a changed line took {} s to build", took.as_secs());
        Ok(format!("a changed line is built in {} s", took.as_secs()))
    })?;
    let services = Services::default();
    let host = Program::new("ollama-sim", paths::release("ollama-sim"), &paths::logs()).args([
        "--listen",
        &compose.host(),
        "--slots",
        "64",
    ]);
    let result = tried(&compose, &services, host);
    if result.is_err() {
        let _ = compose.run(&["logs", "--tail", "30"]).shown();
    }
    let down = compose.run(&["down", "--volumes", "--timeout", "30"]).read();
    let text = result?;
    ensure!(down?.0 == 0, "what was started cannot be stopped");
    Ok(text)
}

fn tried(compose: &Compose, services: &Services, host: Program) -> anyhow::Result<Outcome> {
    step("start", || {
        // The networks first: the model host listens on one of them only.
        compose.must(&[
            "up",
            "--no-start",
            "--no-build",
            "--no-deps",
            "redis",
            "jarvis",
            "nginx",
        ])?;
        services.start(Service::new(host, 2))?;
        compose.must(&["up", "--detach", "--no-build", "--no-deps", "redis", "jarvis", "nginx"])?;
        let ready = format!("{}/health/ready", compose.url());
        let until = Instant::now() + replicas::LIVE_LIMIT;
        while !http::is_ok(&ready, replicas::HEALTH_LIMIT) {
            ensure!(Instant::now() < until, "no replica gets ready");
            pause(Duration::from_millis(200));
        }
        compose.check_build_info()?;
        Ok("three replicas behind nginx".to_owned())
    })?;
    let ends = Arc::new(AtomicBool::new(false));
    let posts: Vec<_> = (0..KEYLESS)
        .map(|client| {
            let (url, ends) = (format!("{}/api/v1/chat/", compose.url()), Arc::clone(&ends));
            spawn(move || keyless(&url, client, &ends))
        })
        .chain(std::iter::once({
            let (url, ends) = (format!("{}/api/embed", compose.url()), Arc::clone(&ends));
            spawn(move || embeddings(&url, &ends))
        }))
        .collect();
    let report = paths::run().join("verify/deployment.json");
    let arguments = ["run", "--replicas", &compose.url(), "--seconds", LOAD_SECONDS];
    let load = run(paths::release("loadgen"), arguments)
        .args(["--sessions", SESSIONS, "--rate", "30", "--think", "1", "--max-tokens", "120"])
        .args(["--seed", &proof::random_seed().to_string(), "--json"])
        .arg(&report);
    let load = spawn(move || load.read());
    let steps = steps(compose);
    let load = load.join().unwrap_or_else(|_| Ok((1, "the load panicked".to_owned())));
    ends.store(true, Ordering::Relaxed);
    let mut keyless = Keyless::default();
    for post in posts {
        keyless.add(post.join().unwrap_or_default());
    }
    steps?;
    step("backup", || backup(compose))?;
    let (code, printed) = load?;
    keyless.add(down(compose)?);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report)?)?;
    let ok = code == 0 && keyless.errors() == 0 && keyless.answers() > 0;
    line("sessions", &format!("{} turns, {} failed", report["turns"], report["failed"]), None);
    keyless.show();
    if code != 0 {
        line("sessions", &printed, None);
    }
    let errors = keyless.errors();
    let text = format!("{} turns, {errors} errors", keyless.answers() + number(&report["turns"]));
    Ok(Outcome { ok, text })
}

/// The events that happen to the deployment, one after another.
fn steps(compose: &Compose) -> anyhow::Result<()> {
    let up = |count: &str| {
        let scale = format!("jarvis={count}");
        compose.must(&[
            "up",
            "--detach",
            "--no-build",
            "--no-deps",
            "--no-recreate",
            "--scale",
            &scale,
            "jarvis",
        ])
    };
    let a_replica = || compose.a_container("jarvis");
    let timed = |name: &'static str, act: &dyn Fn() -> anyhow::Result<()>| {
        // The effects of a step show within the pause after it.
        pause(PAUSE);
        set_step(name);
        step(name, || act().map(|()| String::new()))
    };
    timed("stop", &|| {
        let replica = a_replica()?;
        must(&run("docker", ["stop", "--time", "30", &replica]))?;
        must(&run("docker", ["start", &replica]))
    })?;
    timed("kill", &|| {
        let replica = a_replica()?;
        must(&run("docker", ["kill", "--signal", "KILL", &replica]))?;
        must(&run("docker", ["start", &replica]))
    })?;
    timed("5 replicas", &|| up("5"))?;
    timed("2 replicas", &|| up("2"))?;
    timed("3 replicas", &|| up("3"))?;
    timed("upgrade", &|| {
        must(&compose.environment(run(paths::root().join("deploy/upgrade.sh"), ["--no-build"])))
    })?;
    timed("Redis", &|| {
        must(&run("docker", ["restart", "--time", "30", &compose.a_container("redis")?]))
    })
}

/// Stops everything while answers are written, which their clients get whole.
fn down(compose: &Compose) -> anyhow::Result<Keyless> {
    set_step("down");
    let posts: Vec<_> = (0..LAST_POSTS)
        .map(|client| {
            let url = format!("{}/api/v1/chat/", compose.url());
            spawn(move || {
                let mut seen = Keyless::default();
                seen.ask(&url, &format!("[[tokens={TOKENS}]] last {client}"));
                seen
            })
        })
        .collect();
    let stats = format!("http://{}/sim/stats", compose.host());
    let until = Instant::now() + TURN_LIMIT;
    step("down", || {
        loop {
            let stats = http::send("GET", &stats, None, replicas::HEALTH_LIMIT)?.text()?;
            let stats: Value = serde_json::from_str(&stats)?;
            if stats["running"] == LAST_POSTS {
                break;
            }
            ensure!(Instant::now() < until, "the last answers do not begin: {stats}");
            pause(Duration::from_millis(20));
        }
        compose.must(&["down", "--timeout", "30"])?;
        Ok(format!("beside {LAST_POSTS} answers"))
    })?;
    let mut all = Keyless::default();
    for post in posts {
        all.add(post.join().unwrap_or_default());
    }
    Ok(all)
}

/// Makes a backup, and restores it over what came after it, by the commands of docs/OPERATIONS.md as
/// they stand there.
fn backup(compose: &Compose) -> anyhow::Result<String> {
    let folder = paths::run().join("verify/backup");
    std::fs::create_dir_all(&folder)?;
    let url = format!("{}/api/v1/chat/", compose.url());
    let begin = || -> anyhow::Result<String> {
        let body = json!({"message": "[[tokens=3]] one of the backup"}).to_string();
        let reply = http::send("POST", &url, Some(&body), TURN_LIMIT)?.text()?;
        let reply: Value = serde_json::from_str(&reply)?;
        Ok(reply["session_id"].as_str().context("a turn has no session")?.to_owned())
    };
    let status = |session: &str| -> anyhow::Result<u16> {
        let url = format!("{}/api/v1/chat/sessions/{session}", compose.url());
        Ok(http::send("GET", &url, None, replicas::HEALTH_LIMIT)?.status)
    };
    let shell = |line: &str| compose.environment(run("sh", ["-c", line])).read();
    let inside = |line: &str| shell(&format!("cd '{}' && {line}", folder.display()));
    let before = begin()?;
    for line in commands("### Make a backup")? {
        let (code, printed) = inside(&line)?;
        ensure!(code == 0, "{line}: {printed}");
    }
    let after = begin()?;
    for line in commands("### Restore")? {
        // Ollama is no part of this deployment.
        let line =
            line.replace("up --detach", "up --detach --no-build --no-deps redis jarvis nginx");
        let until = Instant::now() + TURN_LIMIT;
        loop {
            let (code, printed) = inside(&line)?;
            let is_written = WRITTEN.iter().all(|word| printed.contains(word));
            // Redis may still read the file.
            if code == 0 && (is_written || !line.contains("INFO persistence")) {
                break;
            }
            ensure!(Instant::now() < until, "{line}: {printed}");
            pause(Duration::from_millis(500));
        }
    }
    let ready = format!("{}/health/ready", compose.url());
    let until = Instant::now() + replicas::LIVE_LIMIT;
    while !http::is_ok(&ready, replicas::HEALTH_LIMIT) {
        ensure!(Instant::now() < until, "no replica gets ready after the restore");
        pause(Duration::from_millis(200));
    }
    let found = [status(&before)?, status(&after)?];
    ensure!(found == [200, 404], "before and after the backup: {found:?}");
    Ok("restored over a later conversation".to_owned())
}

/// Returns the commands of compose below a heading of docs/OPERATIONS.md.
fn commands(heading: &str) -> anyhow::Result<Vec<String>> {
    let page = std::fs::read_to_string(paths::root().join("docs/OPERATIONS.md"))?;
    let (_, section) = page.split_once(heading).with_context(|| format!("no {heading}"))?;
    let block = section.split("```bash\n").nth(1).and_then(|rest| rest.split("```").next());
    let lines = block.with_context(|| format!("{heading} has no commands"))?.lines();
    Ok(lines.filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
}

/// docker-compose.yml, as a project of its own.
struct Compose {
    port: Port,
    host: Port,
}

impl Compose {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { port: Port::reserve()?, host: Port::reserve()? })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// Returns the address on this machine that the replicas reach.
    fn host(&self) -> String {
        format!("{SUBNET}.1:{}", self.host.number())
    }

    fn environment(&self, command: Run) -> Run {
        let files =
            format!("{0}/docker-compose.yml:{0}/xtask/src/deployment.yml", paths::root().display());
        command
            .env("COMPOSE_PROJECT_NAME", PROJECT)
            .env("COMPOSE_FILE", files)
            .env("JARVIS_SUBNET", SUBNET)
            .env("JARVIS_PORT", self.port.number().to_string())
            .env("JARVIS_OLLAMA_URLS", format!("http://{}", self.host()))
            .env("JARVIS_OLLAMA_SLOTS", "64")
            .env("JARVIS_REVISION", revision().unwrap_or_default())
            .env("JARVIS_REDIS_PASSWORD", "of-make-verify")
            .env("JARVIS_REDIS_REPLICA_PASSWORD", "of-replicas-of-make-verify")
            .env("JARVIS_REDIS_SENTINEL_PASSWORD", "of-sentinels-of-make-verify")
            .env("JARVIS_REDIS_ADMIN_PASSWORD", "of-operators-of-make-verify")
    }

    fn run(&self, arguments: &[&str]) -> Run {
        self.environment(run("docker", ["compose"]).args(arguments))
    }

    fn must(&self, arguments: &[&str]) -> anyhow::Result<()> {
        must(&self.run(arguments))
    }

    /// Checks that the metrics of a replica name what it was built from. They are on the port of
    /// operators, which is published nowhere: the machine reaches it at the container's address.
    fn check_build_info(&self) -> anyhow::Result<()> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let replica = self.a_container("jarvis")?;
        let found = run("docker", ["inspect", "--format", format, &replica]).output();
        let inside = found.split_whitespace().find(|it| it.starts_with(SUBNET));
        let address = inside.context("a replica has no address in the network of its clients")?;
        let url = format!("http://{address}:10201/metrics");
        let metrics = http::send("GET", &url, None, replicas::HEALTH_LIMIT)?.text()?;
        let line = metrics.lines().find(|line| line.starts_with("jarvis_build_info{"));
        let line = line.context("a replica has no jarvis_build_info")?;
        ensure!(line.contains(&revision()?), "the metrics of a replica name {line}");
        Ok(())
    }

    fn a_container(&self, service: &str) -> anyhow::Result<String> {
        let found = self.run(&["ps", "--quiet", service]).output();
        found.lines().next().map(str::to_owned).with_context(|| format!("no {service} runs"))
    }
}

/// Runs a command that has to succeed.
fn must(command: &Run) -> anyhow::Result<()> {
    let (code, printed) = command.read()?;
    ensure!(code == 0, "{printed}");
    Ok(())
}

/// Returns the revision of this folder.
fn revision() -> anyhow::Result<String> {
    let (code, printed) = run("git", ["rev-parse", "HEAD"]).read()?;
    ensure!(code == 0, "git names no revision:\n{printed}");
    Ok(printed.trim().to_owned())
}

/// Returns a part of what the engine knows of the image.
fn inspect(format: &str) -> anyhow::Result<String> {
    Ok(run("docker", ["image", "inspect", "--format", format, &image()?])
        .output()
        .trim()
        .to_owned())
}

/// Builds a copy of this folder by the profile `release`, changes a line, and returns how long the
/// second build takes.
fn rebuild() -> anyhow::Result<Duration> {
    let copy = paths::run().join("verify/image");
    let _ = std::fs::remove_dir_all(&copy);
    let (code, files) = run("git", ["ls-files"]).read()?;
    ensure!(code == 0, "git lists no files:\n{files}");
    for file in files.lines().filter(|file| paths::root().join(file).is_file()) {
        let to = copy.join(file);
        std::fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        std::fs::copy(paths::root().join(file), to)?;
    }
    let build = || -> anyhow::Result<Duration> {
        let began = Instant::now();
        let tag = format!("{PROJECT}:rebuilt");
        let build = run("docker", ["build", "--build-arg", "PROFILE=release", "--tag", &tag]);
        ensure!(build.arg(&copy).shown()? == 0, "the copy is not built");
        Ok(began.elapsed())
    };
    build()?;
    let library = copy.join("src/lib.rs");
    let text = std::fs::read_to_string(&library)?;
    std::fs::write(&library, format!("{text}\n// Another line.\n"))?;
    let took = build()?;
    let _ = run("docker", ["image", "rm", &format!("{PROJECT}:rebuilt")]).read();
    Ok(took)
}

/// Returns the name of the image in docker-compose.yml.
fn image() -> anyhow::Result<String> {
    let file = std::fs::read_to_string(paths::root().join("docker-compose.yml"))?;
    let name = file.lines().find_map(|line| line.trim().strip_prefix("image: jarvis:"));
    Ok(format!("jarvis:{}", name.context("docker-compose.yml names no image of jarvis")?))
}

/// The step that is being taken, by which the outcomes of clients are distinguished.
static STEP: Mutex<&str> = Mutex::new(QUIET);
/// The time before the first step.
const QUIET: &str = "before";

fn set_step(name: &'static str) {
    *STEP.lock().unwrap_or_else(PoisonError::into_inner) = name;
}

/// The outcomes of clients without a key, by the step in which each request was sent.
#[derive(Default)]
struct Keyless(BTreeMap<&'static str, StepOutcomes>);

#[derive(Default)]
struct StepOutcomes {
    answers: u64,
    longest: Duration,
    errors: Vec<String>,
}

impl Keyless {
    fn add(&mut self, other: Self) {
        for (step, outcomes) in other.0 {
            let all = self.0.entry(step).or_default();
            all.answers += outcomes.answers;
            all.longest = all.longest.max(outcomes.longest);
            all.errors.extend(outcomes.errors);
        }
    }

    fn answers(&self) -> u64 {
        self.0.values().map(|outcomes| outcomes.answers).sum()
    }

    fn errors(&self) -> usize {
        self.0.values().map(|outcomes| outcomes.errors.len()).sum()
    }

    /// Prints a line for each step, with its errors below.
    fn show(&self) {
        for (step, StepOutcomes { answers, longest, errors }) in &self.0 {
            let longest = longest.as_secs_f64();
            let text =
                format!("{answers} answers, the longest {longest:.1} s, {} errors", errors.len());
            line(step, &text, None);
            for error in errors {
                line(step, error, None);
            }
        }
    }

    /// Sends a request, and notes whether its reply is what it has to be.
    fn send(&mut self, url: &str, body: &Value, is_right: impl Fn(&str) -> bool) {
        let step = *STEP.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let reply = http::send("POST", url, Some(&body.to_string()), TURN_LIMIT)
            .and_then(|reply| Ok((reply.status, reply.text()?)));
        let outcomes = self.0.entry(step).or_default();
        outcomes.longest = outcomes.longest.max(began.elapsed());
        match reply {
            Ok((200, text)) if is_right(&text) => outcomes.answers += 1,
            Ok((status, text)) => outcomes.errors.push(format!("{url}: {status} {text}")),
            Err(error) => outcomes.errors.push(format!("{url}: {error:#}")),
        }
    }

    /// Asks for one vector.
    fn embed(&mut self, url: &str, text: &str) {
        let body = json!({"model": "tinyllama", "input": text});
        self.send(url, &body, |text| text.contains("\"embeddings\""));
    }

    /// Asks for one whole answer.
    fn ask(&mut self, url: &str, message: &str) {
        self.send(url, &json!({"message": message}), is_whole);
    }
}

/// Asks for one whole answer after another until it `ends`.
fn keyless(url: &str, client: usize, ends: &AtomicBool) -> Keyless {
    let mut seen = Keyless::default();
    for turn in 0.. {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        seen.ask(url, &format!("[[tokens={TOKENS}]] {client} {turn}"));
    }
    seen
}

/// Asks for one vector after another until it `ends`.
fn embeddings(url: &str, ends: &AtomicBool) -> Keyless {
    let mut seen = Keyless::default();
    for number in 0.. {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        seen.embed(url, &format!("text {number}"));
        pause(Duration::from_millis(50));
    }
    seen
}

fn is_whole(text: &str) -> bool {
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    answer["status"] == "success" && answer["usage"]["completion_tokens"] == TOKENS
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}
