//! Well-behaved clients: after a failure they pause, connect to another replica, and resume.

mod responses;
mod rest;
mod sse;
mod websocket;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::checker::{Beside, Flaw, Progress, Sent, Turn, check_history};
use crate::event::{Event, Stored};
use crate::script::{Script, random_uuid};
use crate::tally::{Pause, Recovery, Tally, count, record};

/// The longest pause before the first attempt to reconnect; it doubles from one attempt to the
/// next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The time limit of the first attempt to resume.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
/// The longest pause, unless the service names a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// The longest pause that the service may name.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The time that a conversation's history may take to be readable.
const HISTORY_LIMIT: Duration = Duration::from_mins(1);
/// The time limit of one request that is answered at once.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// The header in which a proxy names the address of its client.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// The messages of one page of a history.
const PAGE: usize = 500;

/// The properties of the load.
#[derive(Clone, Debug)]
pub struct Options {
    /// The replicas.
    pub replicas: Arc<Replicas>,
    /// The sessions at a time.
    pub sessions: usize,
    /// The time in which new turns begin.
    pub duration: Duration,
    /// The time that a turn may take to end.
    pub turn_limit: Duration,
    /// The longest pause between two turns.
    pub think: Duration,
    /// The turns of one conversation, after which its history is compared and another begins.
    pub turns: usize,
    /// The percentage of sessions that use server-sent events.
    pub sse_percent: usize,
    /// The percentage of sessions that use plain requests.
    pub rest_percent: usize,
    /// The percentage of sessions that use OpenAI's responses in the background.
    pub responses_percent: usize,
    /// How often a response that has ended is streamed again, each time after a random event of it, and
    /// compared with what was streamed before; one in ten is after every event. With 0 none is.
    pub resumes: usize,
    /// The percentage of turns that regenerate the answer of the turn before or edit its question, in
    /// sessions of their own.
    pub branch_percent: usize,
    /// Whether each session names an address of its own in X-Forwarded-For.
    pub own_addresses: bool,
    /// The prompts.
    pub script: Script,
    /// The seed, which decides prompts, pauses and replicas.
    pub seed: u64,
}

/// The replicas that a new connection may go to, as the load balancer knows them.
#[derive(Debug)]
pub struct Replicas(Vec<(String, AtomicBool)>);

impl Replicas {
    /// Creates a list of replicas in service, by their base addresses.
    pub fn new(urls: Vec<String>) -> Arc<Self> {
        Arc::new(Self(urls.into_iter().map(|url| (url, AtomicBool::new(true))).collect()))
    }

    /// Takes a replica out of service, or puts it back.
    pub fn set(&self, number: usize, in_service: bool) {
        self.0[number].1.store(in_service, Ordering::Relaxed);
    }

    /// Returns the next replica in service after `number` and `step` more.
    fn after(&self, number: usize, step: usize) -> usize {
        let places = (0..self.0.len()).map(|more| (number + step + more) % self.0.len());
        places
            .clone()
            .find(|place| *place != number && self.0[*place].1.load(Ordering::Relaxed))
            .or_else(|| places.clone().next())
            .unwrap_or(number)
    }
}

/// Returns the address of the session of this number.
fn address(number: usize) -> String {
    format!("10.{}.{}.{}", number / 62_500 % 32, number / 250 % 250, number % 250 + 1)
}

/// The state that all clients share.
#[derive(Clone)]
pub struct Shared {
    options: Arc<Options>,
    tally: Arc<Tally>,
    http: reqwest::Client,
}

impl Shared {
    /// Creates the shared state.
    ///
    /// # Errors
    /// Fails where no HTTP client can be made.
    pub fn new(options: Options, tally: Arc<Tally>) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(REQUEST_LIMIT)
            .tcp_nodelay(true)
            .build()?;
        Ok(Self { options: Arc::new(options), tally, http })
    }

    /// Returns the number of sessions.
    pub fn sessions(&self) -> usize {
        self.options.sessions
    }
}

/// The outcome of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Complete,
    Failed(String),
    Unfinished,
}

/// The client of one conversation.
struct Client {
    shared: Shared,
    random: StdRng,
    name: &'static str,
    session: String,
    /// The address that the client names; none where it has that of its connection.
    address: Option<String>,
    /// The replica of the last request.
    replica: usize,
    attempts: u32,
    connected_before: bool,
}

/// The times at which the characters of one turn came.
struct Watch {
    asked: Instant,
    last: Option<Instant>,
    lost: Option<Lost>,
    limit: Instant,
}

/// A lost connection whose client has not got a new character yet.
struct Lost {
    at: Instant,
    /// Whether the replica had announced the end with a retry time.
    announced: bool,
    /// The time of the last connection, and the attempts until then.
    connected: Option<Instant>,
    attempts: u32,
}

impl Watch {
    fn new(limit: Duration) -> Self {
        let now = Instant::now();
        Self { asked: now, last: None, lost: None, limit: now + limit }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.limit
    }

    /// Records a lost connection; `announced` where the replica had announced it with a retry time.
    fn lost(&mut self, announced: bool) {
        let at = Instant::now();
        self.lost.get_or_insert(Lost { at, announced, connected: None, attempts: 0 });
    }

    /// Records an attempt to connect again, and whether it succeeded.
    fn attempted(&mut self, connected: bool) {
        if let Some(lost) = &mut self.lost {
            lost.attempts += 1;
            lost.connected = connected.then(Instant::now);
        }
    }
}

impl Client {
    /// Returns the base address of a replica that is not the last one, where there is another.
    fn another_replica(&mut self) -> String {
        let replicas = &self.shared.options.replicas;
        if replicas.0.len() > 1 {
            let step = self.random.random_range(1..replicas.0.len());
            self.replica = replicas.after(self.replica, step);
        }
        replicas.0[self.replica].0.clone()
    }

    /// Adds the client's address to a request.
    fn named(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.address {
            Some(address) => request.header(FORWARDED_FOR, address),
            None => request,
        }
    }

    fn counted_connection(&mut self) {
        if self.connected_before {
            count(&self.shared.tally.counters.reconnects);
        }
        self.connected_before = true;
    }

    /// Returns the address of a turn's request, and its body.
    fn chat(&self, base: &str, turn: &Turn) -> (String, Value) {
        let model = &self.shared.options.script.model;
        match turn.target() {
            None => (
                format!("{base}/api/v1/chat/"),
                json!({"message": turn.prompt(), "session_id": self.session, "model": model}),
            ),
            Some(beside) => (
                format!("{base}/api/v1/chat/sessions/{}/{}", self.session, beside.name()),
                json!({"message": turn.prompt(), "message_id": beside.id(), "model": model}),
            ),
        }
    }

    /// Returns the time limit of an attempt to resume: a second, so that a replica that is paused
    /// costs no more, and twice as long each time, so that a loaded service gets no storm.
    fn patience(&self, longest: Duration) -> Duration {
        FIRST_PATIENCE.saturating_mul(1 << self.attempts.min(6)).min(longest)
    }

    /// Waits before the next attempt: as long as the service requested, else longer each time, and
    /// with jitter, so that clients do not reconnect at once.
    async fn pause(&mut self, asked: Option<f64>) {
        let most =
            FIRST_PAUSE.saturating_mul(1 << self.attempts.min(6)).min(LONGEST_PAUSE).as_secs_f64();
        self.attempts += 1;
        let jitter = self.random.random_range(0.0..most);
        let asked = asked.map_or(Duration::ZERO, |seconds| {
            Duration::try_from_secs_f64(seconds).unwrap_or_default().min(LONGEST_WAIT)
        });
        sleep(asked + Duration::from_secs_f64(jitter)).await;
    }

    /// Counts the effect of an event.
    fn note(&self, watch: &mut Watch, turn: &mut Turn, progress: &Progress) {
        match progress {
            Progress::Text => self.text(watch, turn),
            Progress::Restart(_) => count(&self.shared.tally.counters.restarts),
            Progress::Complete | Progress::Failed(_) => {
                self.recovered(watch, turn);
            }
            Progress::None | Progress::Accepted => {}
        }
        self.flaws(turn);
    }

    fn text(&self, watch: &mut Watch, turn: &Turn) {
        let tally = &self.shared.tally;
        let now = Instant::now();
        tally.heard();
        let mut measured = tally.measured();
        match watch.last {
            None => record(&mut measured.first_token, now - watch.asked),
            Some(last) => {
                measured.gap(now - last);
                if watch.lost.is_none()
                    && let Some(generation) = turn.generation()
                {
                    let generation = generation.to_owned();
                    measured.paused(Pause { generation, from: last, until: now });
                }
            }
        }
        drop(measured);
        watch.last = Some(now);
        self.recovered(watch, turn);
    }

    /// Records how long the client of a lost connection waited. A plain request gets no character
    /// before its whole answer.
    fn recovered(&self, watch: &mut Watch, turn: &Turn) {
        let Some(lost) = watch.lost.take() else { return };
        let tally = &self.shared.tally;
        let now = Instant::now();
        let mut measured = tally.measured();
        if lost.announced {
            record(&mut measured.announced_recovery, now - lost.at);
        } else if self.name == "rest" {
            record(&mut measured.whole_answer, now - lost.at);
        } else {
            let connected = lost.connected.unwrap_or(now);
            measured.recovered(Recovery {
                at: tally.began.elapsed().saturating_sub(now - lost.at).as_secs_f64(),
                client: self.name,
                session: self.session.clone(),
                generation: turn.generation().map(str::to_owned),
                attempts: lost.attempts,
                connected: (connected - lost.at).as_secs_f64(),
                character: (now - connected).as_secs_f64(),
            });
        }
    }

    fn flaws(&self, turn: &mut Turn) {
        for flaw in turn.take_flaws() {
            self.shared.tally.flaw(self.name, &self.session, turn.generation(), &flaw);
        }
    }

    fn error(&self, code: &str) {
        self.shared.tally.error(code);
    }
}

/// The body of a refused request.
struct Refusal {
    status: u16,
    code: String,
    retry_after: Option<f64>,
}

impl Refusal {
    async fn read(response: reqwest::Response) -> Self {
        #[derive(Deserialize)]
        struct Problem {
            code: Option<String>,
            /// OpenAI's envelope.
            error: Option<Box<Problem>>,
        }
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        let body = timeout(REQUEST_LIMIT, response.bytes()).await;
        let problem: Option<Problem> =
            body.ok().and_then(Result::ok).and_then(|body| serde_json::from_slice(&body).ok());
        let code = problem.and_then(|it| it.code.or_else(|| it.error?.code));
        let code = code.unwrap_or_else(|| format!("http_{status}"));
        Self { status, code, retry_after }
    }

    /// Returns whether the same request may succeed later.
    fn is_temporary(&self) -> bool {
        matches!(self.status, 408 | 409 | 429 | 500 | 503) || self.code == "timeout"
    }
}

/// Runs one session after another until the time is over.
pub async fn hold(shared: Shared, number: usize, start: Duration) {
    let options = Arc::clone(&shared.options);
    let stop = Instant::now() + options.duration;
    sleep(start).await;
    let mut random = StdRng::seed_from_u64(options.seed.wrapping_add(number as u64));
    let place = number * 100 / options.sessions.max(1);
    while Instant::now() < stop {
        let session = random_uuid(&mut random).to_string();
        count(&shared.tally.counters.conversations);
        let replica = random.random_range(0..options.replicas.0.len());
        let mut client = Client {
            shared: shared.clone(),
            random: StdRng::seed_from_u64(random.random()),
            name: "",
            session,
            address: options.own_addresses.then(|| address(number)),
            replica,
            attempts: 0,
            connected_before: false,
        };
        if place < options.sse_percent {
            client.name = "sse";
            converse(client, Speaks::Events, stop).await;
        } else if place < options.sse_percent + options.rest_percent {
            client.name = "rest";
            converse(client, Speaks::Requests, stop).await;
        } else if place < options.sse_percent + options.rest_percent + options.responses_percent {
            client.name = "responses";
            converse(client, Speaks::Responses, stop).await;
        } else {
            client.name = "websocket";
            converse(client, Speaks::Socket(Box::default()), stop).await;
        }
    }
}

enum Speaks {
    Socket(Box<websocket::Line>),
    Events,
    Requests,
    Responses,
}

async fn converse(mut client: Client, mut speaks: Speaks, stop: Instant) {
    let shared = client.shared.clone();
    let counters = &shared.tally.counters;
    let mut sent: Vec<Sent> = Vec::new();
    let mut given_up = false;
    let mut last: Option<Last> = None;
    for _ in 0..shared.options.turns {
        if Instant::now() >= stop {
            break;
        }
        let (mut prompt, mut answer) = shared.options.script.ask(&mut client.random);
        let beside = beside(&mut client, last.as_ref(), !matches!(speaks, Speaks::Responses));
        if let Some(before) = beside.as_ref().and_then(|_| sent.pop()) {
            count(&counters.branched);
            if let (Some(Beside::Answer(_)), Some(known)) = (&beside, before.answer) {
                (prompt, answer) = (before.prompt, known);
            }
        }
        let has_target = beside.is_some();
        let mut turn = Turn::new(prompt.clone(), answer.clone()).beside(beside);
        count(&counters.turns);
        count(&counters.running);
        let mut watch = Watch::new(shared.options.turn_limit);
        let outcome = match &mut speaks {
            Speaks::Socket(line) => websocket::turn(&mut client, line, &mut turn, &mut watch).await,
            Speaks::Events => sse::turn(&mut client, &mut turn, &mut watch).await,
            Speaks::Requests => rest::turn(&mut client, &mut turn, &mut watch).await,
            Speaks::Responses => responses::turn(&mut client, &mut turn, &mut watch).await,
        };
        client.flaws(&mut turn);
        counters.running.fetch_sub(1, Ordering::Relaxed);
        match outcome {
            Outcome::Complete => {
                count(&counters.complete);
                sent.push(Sent { prompt, answer: Some(answer) });
                last = Last::of(&turn, last);
            }
            Outcome::Failed(code) => {
                count(&counters.failed);
                client.error(&format!("turn:{code}"));
                last = None;
                // Whether it was refused or failed decides what the history has.
                given_up |= has_target;
                sent.push(Sent { prompt, answer: None });
            }
            Outcome::Unfinished => {
                turn.give_up();
                client.flaws(&mut turn);
                given_up = true;
                break;
            }
        }
        if let Speaks::Socket(line) = &mut speaks {
            line.keep(turn);
        }
        let think = client.random.random_range(0.0..=shared.options.think.as_secs_f64());
        let until = Instant::now() + Duration::from_secs_f64(think);
        match &mut speaks {
            Speaks::Socket(line) => websocket::idle(&mut client, line, until).await,
            Speaks::Events | Speaks::Requests | Speaks::Responses => sleep_until(until).await,
        }
    }
    // The events of an unfinished turn were checked already, and each response was retrieved.
    let has_history = !given_up && !matches!(speaks, Speaks::Responses);
    if has_history && sent.iter().any(|turn| turn.answer.is_some()) {
        compare_history(&mut client, &sent).await;
    }
}

/// The question and the answer of the last turn.
struct Last {
    question: String,
    answer: String,
}

impl Last {
    /// Returns those of a turn that is complete, behind the one before it.
    fn of(turn: &Turn, before: Option<Self>) -> Option<Self> {
        let answer = turn.generation()?.to_owned();
        if let Some(Beside::Answer(_)) = turn.target() {
            // The question is still that of the first answer.
            return Some(Self { answer, ..before? });
        }
        // The id of a question is that of its first generation with the last bit flipped.
        let (rest, last) = answer.split_at_checked(answer.len().checked_sub(1)?)?;
        let last = u8::from_str_radix(last, 16).ok()? ^ 1;
        Some(Self { question: format!("{rest}{last:x}"), answer })
    }
}

/// Returns the message of the last turn beside which the next one goes, where it does.
fn beside(client: &mut Client, last: Option<&Last>, can_branch: bool) -> Option<Beside> {
    let last = last.filter(|_| can_branch)?;
    if client.random.random_range(0..100) >= client.shared.options.branch_percent {
        return None;
    }
    Some(if client.random.random() {
        Beside::Answer(last.answer.clone())
    } else {
        Beside::Question(last.question.clone())
    })
}

async fn compare_history(client: &mut Client, sent: &[Sent]) {
    #[derive(Deserialize)]
    struct Page {
        messages: Vec<Stored>,
    }
    let limit = Instant::now() + HISTORY_LIMIT;
    client.attempts = 0;
    loop {
        let base = client.another_replica();
        let url = format!("{base}/api/v1/chat/sessions/{}?limit={PAGE}", client.session);
        let mut asked = None;
        let request = client.named(client.shared.http.get(url));
        match request.timeout(REQUEST_LIMIT).send().await {
            Ok(response) if response.status().is_success() => {
                if let Ok(page) = response.json::<Page>().await {
                    for flaw in check_history(sent, &page.messages) {
                        client.shared.tally.flaw(client.name, &client.session, None, &flaw);
                    }
                    count(&client.shared.tally.counters.histories);
                    return;
                }
            }
            Ok(response) => {
                let refusal = Refusal::read(response).await;
                client.error(&format!("history:{}", refusal.code));
                if !refusal.is_temporary() {
                    let flaw = Flaw::Forgotten(format!("the session: {}", refusal.code));
                    client.shared.tally.flaw(client.name, &client.session, None, &flaw);
                    return;
                }
                asked = refusal.retry_after;
            }
            Err(_) => client.error("history:unreachable"),
        }
        if Instant::now() >= limit {
            let flaw = Flaw::Unfinished("the history could not be read".to_owned());
            client.shared.tally.flaw(client.name, &client.session, None, &flaw);
            return;
        }
        client.pause(asked).await;
    }
}

/// Parses the event of one line of a stream.
fn parse(text: &str) -> Option<Event> {
    serde_json::from_str(text).ok()
}
