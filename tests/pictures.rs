//! Makes the pictures of the documents from what really runs:
//! `cargo test --workspace --test pictures -- --ignored`.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use support::client::Socket;
use support::drawing::{Film, moving, still};
use support::eventually;
use support::fleet::ready_replicas;
use support::nginx::Nginx;
use support::process::{LIMIT, Process, ollama_sim};
use support::redis::RedisServer;
use support::terminal::{Terminal, TerminalScreen};
use support::tokens::{SECRET, token};
use tokio::time::{Instant, sleep};

const MODELS: &str = "qwen3:8b,llama3.2:3b";
/// A turn that outlasts the picture.
const LONG: &str = "[[tokens=6000]] at length";
/// Time between two pictures of a moving one.
const SHUTTER: Duration = Duration::from_millis(70);
const COLUMNS: usize = 92;
/// Wide enough for the first line of `jarvis chat`.
const WIDE: usize = 102;
const QUESTION: &str = "Why does every lighthouse blink in its own way?";
const ANSWER: &str = "\
So that a sailor can tell them apart in the dark.

- The pause between two flashes names the tower, as a key names a door.
- A chart lists it: \"Fl W 10s\" is one white flash every ten seconds.
- Where two towers are close, one shows groups of two or three flashes.
- The lamp burns all the time; a lens turns around it.
- In fog nobody sees the light, so a horn repeats the same rhythm.";

const FORMATTED_ANSWER: &str = "\
Give every *user* a share, not every session. Each ticket gets a **virtual start time**: the moment when its \
user's previous ticket would end.

1. A new ticket starts where the user's last one ends, or now.
2. The smallest start time goes first, whoever it belongs to.

```rust
/// Returns the ticket that begins next.
fn next(&self) -> Option<&Ticket> {
    self.waiting.iter().min_by_key(|ticket| ticket.start)
}
```

Forty sessions of one user then queue behind each other, and a second user waits for one turn at most.";

struct Scene {
    replicas: Vec<Process>,
    hosts: Vec<Process>,
    redis: RedisServer,
}

impl Scene {
    async fn set(rate: &str, slots: [&str; 2], answer: &str, settings: &[(&str, &str)]) -> Self {
        let memory = ["--maxmemory", "256mb", "--maxmemory-policy", "noeviction"];
        let redis = RedisServer::start_with(&memory);
        let host = |slots| {
            ollama_sim(&["--rate", rate, "--slots", slots, "--models", MODELS, "--say", answer])
        };
        let hosts = Vec::from(slots.map(host));
        let of_host = |(host, slots): (&Process, &str)| format!("{};slots={slots}", host.url);
        let urls: Vec<_> = hosts.iter().zip(slots).map(of_host).collect();
        let settings = [settings, &[("JARVIS_DEFAULT_MODEL", "qwen3:8b")]].concat();
        let replicas = ready_replicas(3, &redis.url(), &urls.join(","), &settings).await;
        Self { replicas, hosts, redis }
    }

    fn top(&self, columns: usize, rows: usize) -> Terminal {
        let line = format!("{} top", env!("CARGO_BIN_EXE_jarvis"));
        Terminal::run(columns, rows, &line, &[("JARVIS_REDIS_URL", &self.redis.url())])
    }
}

async fn idle_sockets(replica: &Process, count: usize) -> Vec<Socket> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        sockets.push(Socket::open(replica, "/ws").await.0);
    }
    sockets
}

async fn begin(replica: &Process, model: &str) -> Socket {
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    socket.say(&json!({"message": LONG, "max_tokens": 6_000, "model": model})).await;
    socket.until("message_received").await;
    socket
}

fn picture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "draws a picture for the documents"]
async fn the_picture_of_jarvis_top_is_drawn_from_a_real_terminal() {
    let scene = Scene::set("24", ["4", "6"], ANSWER, &[]).await;
    let top = scene.top(COLUMNS, 24);
    let mut sockets = Vec::new();
    for (at, count) in [(0, 31), (1, 47), (2, 44)] {
        sockets.extend(idle_sockets(&scene.replicas[at], count).await);
    }
    let mut short = Vec::new();
    for replica in scene.replicas.iter().chain(&scene.replicas) {
        let (mut socket, _) = Socket::open(replica, "/ws").await;
        socket.say(&json!({"message": "[[tokens=90]] shortly"})).await;
        short.push(socket);
    }
    for socket in &mut short {
        socket.until("stream_end").await;
    }
    for at in 0..13 {
        let model = if at % 5 == 4 { "llama3.2:3b" } else { "qwen3:8b" };
        sockets.push(begin(&scene.replicas[at % 3], model).await);
    }
    sleep(Duration::from_secs(14)).await;
    scene.replicas[1].kill();
    sleep(Duration::from_secs(6)).await;
    top.until("the killed replica and the queue", |lines| {
        let page = lines.join("\n");
        page.contains("GONE") && page.contains("waiting turns") && page.contains("10 of 10")
    })
    .await;
    let description =
        "jarvis top: two of three replicas are left, all slots are in use, and turns wait";
    let drawn = still("jarvis top", &top.screen().rows, description);
    assert!(drawn.len() < 100_000, "{} bytes", drawn.len());
    std::fs::write(picture("top.svg"), drawn).expect("a file");
}

/// Returns the replica that runs one turn more than these.
async fn writer(scene: &Scene, known: [usize; 3]) -> usize {
    let mut found = None;
    let is_found = eventually(LIMIT, async || {
        for (at, replica) in scene.replicas.iter().enumerate() {
            let url = format!("{}/metrics", replica.url);
            let text = support::client::http().get(url).send().await.expect("metrics");
            let text = text.text().await.expect("metrics");
            let open = text.lines().find_map(|line| line.strip_prefix("jarvis_turns_open "));
            let open: f64 = open.and_then(|open| open.parse().ok()).unwrap_or_default();
            if open > known[at] as f64 {
                found = Some(at);
            }
        }
        found.is_some()
    });
    assert!(is_found.await, "no replica runs the turn");
    found.expect("a replica")
}

/// Asserts that the whole answer is there, with what is noted of the lost connection in the middle.
fn assert_answered(lines: &[String]) {
    let text = lines.join("\n");
    let (before, after) = text.split_once(" [").expect("a note");
    let (_, after) = after.split_once("] ").expect("the end of the note");
    let plain = |text: &str| text.split_whitespace().collect::<String>();
    assert!(plain(&format!("{before}{after}")).contains(&plain(ANSWER)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "draws a picture for the documents"]
async fn the_moving_picture_of_an_answer_that_survives_is_drawn_from_real_terminals() {
    let scene = Scene::set("9", ["4", "4"], ANSWER, &[]).await;
    let nginx = Nginx::deployed(&scene.replicas).await;
    let mut sockets = Vec::new();
    for (at, count) in [(0, 11), (1, 14), (2, 12)] {
        sockets.extend(idle_sockets(&scene.replicas[at], count).await);
        sockets.push(begin(&scene.replicas[at], "llama3.2:3b").await);
    }
    let top = scene.top(WIDE, 22);
    let line = format!("{} chat --url http://{}", env!("CARGO_BIN_EXE_jarvis"), nginx.ours);
    let mut chat = Terminal::run(WIDE, 12, &line, &[]);
    let mut shell = Terminal::run(WIDE, 2, "sh -i", &[("PS1", "$ ")]);
    top.until("three replicas", |lines| lines[0].contains("3 replicas, 3 of 8")).await;
    chat.until("a prompt", |lines| lines.iter().any(|line| line.starts_with('>'))).await;
    // A few seconds of tokens for its columns.
    sleep(Duration::from_secs(8)).await;

    let began = Instant::now();
    let film = |title: &str, lines| Film {
        title: title.to_owned(),
        columns: WIDE,
        lines,
        pictures: Vec::new(),
    };
    let mut films =
        [film("jarvis chat", 12), film("a shell on the same machine", 2), film("jarvis top", 22)];
    let mut typed = QUESTION.chars();
    let mut kill = None::<std::vec::IntoIter<char>>;
    let mut killed = None::<Instant>;
    let mut asked = None::<Instant>;
    let mut ended = None::<Instant>;
    loop {
        let screens: [TerminalScreen; 3] = [chat.screen(), shell.screen(), top.screen()];
        for (film, screen) in films.iter_mut().zip(&screens) {
            film.pictures.push((began.elapsed(), screen.rows.clone()));
        }
        let now = Instant::now();
        match (typed.next(), asked) {
            (Some(next), _) => chat.type_text(&next.to_string()),
            (None, None) => {
                chat.type_text("\n");
                asked = Some(now);
            }
            _ => {}
        }
        let has_text = screens[0].lines().join("\n").contains("names the tower");
        if has_text && kill.is_none() {
            let at = writer(&scene, [1, 1, 1]).await;
            let id = scene.replicas[at].id().expect("a process");
            kill = Some(format!("kill -9 {id}\n").chars().collect::<Vec<_>>().into_iter());
        }
        if let (Some(command), None) = (&mut kill, killed) {
            match command.next() {
                Some(next) => shell.type_text(&next.to_string()),
                None => killed = Some(now),
            }
        }
        let prompts = screens[0].lines().iter().filter(|line| line.starts_with('>')).count();
        let whole = screens[0].lines().join("\n").contains("the same rhythm.");
        if (prompts > 1 || whole) && ended.is_none() {
            ended = Some(now);
        }
        if ended.is_some_and(|ended| ended.elapsed() > Duration::from_millis(2_500)) {
            break;
        }
        assert!(began.elapsed() < Duration::from_mins(1), "{:?}", screens[0].lines());
        sleep(SHUTTER).await;
    }
    assert!(killed.is_some_and(|killed| ended.is_some_and(|ended| killed < ended)));
    assert_answered(&chat.screen().lines());
    let description = "jarvis chat, while the replica that writes the answer is killed: another one \
                       goes on with it, as jarvis top shows below";
    let drawn = moving(&films, description);
    assert!(drawn.len() < 400_000, "{} bytes", drawn.len());
    std::fs::write(picture("survives.svg"), drawn).expect("a file");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes pictures for the documents in Chromium"]
async fn the_pictures_of_the_page_are_taken_in_a_real_browser() {
    let settings = [("JARVIS_JWT_SECRET", SECRET)];
    let scene = Scene::set("30", ["4", "4"], FORMATTED_ANSWER, &settings).await;
    let nginx = Nginx::deployed(&scene.replicas).await;
    let (url, token) = (format!("http://{}/", nginx.ours), token("ada"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/pictures.mjs");
    let mut node = tokio::process::Command::new("node");
    node.arg(script).args([&url, &token]).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_mins(2), node.output());
    let killed = async {
        let at = writer(&scene, [0, 0, 0]).await;
        // A third of the answer.
        sleep(Duration::from_secs(2)).await;
        scene.replicas[at].kill();
    };
    let (output, ()) = tokio::join!(output, killed);
    let output = output.expect("its end in time").expect("node");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(scene.hosts.len(), 2);
}
