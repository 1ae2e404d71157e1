//! The page, in a real browser, over two replicas. The scripts are in tests/page; each prints a line of
//! JSON for each thing that it found to hold.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, ETAG, HeaderMap, IF_NONE_MATCH};
use serde_json::{Value, json};
use support::client::{get, http, until_ok};
use support::eventually;
use support::fleet::ready_replicas;
use support::metrics::metrics;
use support::nginx::Nginx;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::{RedisSentinels, RedisServer};
use support::sdks::Driver;
use support::store::user_key;
use support::tokens::{SECRET, token};
use testkit::programs::find;
use tokio::process::Command;
use tokio::time::sleep;

/// The types that a browser accepts.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
/// The milliseconds within which the page notices that its connection is silent.
const NOTICED: u64 = 3000;
/// The longest pause between two frames while an answer streams, in milliseconds. On a quiet machine
/// it is a tenth of this; other tests run beside this one.
const LONGEST_FRAME: u64 = 1000;
/// The time between two faults.
const BETWEEN_FAULTS: Duration = Duration::from_secs(6);

struct Fleet {
    replicas: Vec<Process>,
    nginx: Nginx,
    ollama: Process,
    redis: RedisServer,
}

/// Starts two replicas behind nginx, as it is deployed.
async fn fleet(settings: &[(&str, &str)]) -> Fleet {
    let redis = RedisServer::start();
    let models = ["--models", "tinyllama,thinker,vision"];
    let ollama = ollama_sim(&[&models[..], &["--rate", "200", "--slots", "8"]].concat());
    let settings =
        [&[("JARVIS_LEASE_MS", "2000"), ("JARVIS_OLLAMA_SLOTS", "8")], settings].concat();
    let replicas = ready_replicas(2, &redis.url(), &ollama.url, &settings).await;
    let nginx = Nginx::deployed(&replicas).await;
    Fleet { replicas, nginx, ollama, redis }
}

impl Fleet {
    /// Runs a script against nginx.
    fn run(&self, script: &str, arguments: &[&str]) -> Driver {
        run(script, &format!("http://{}/", self.nginx.ours), arguments)
    }

    /// Returns the replica that the page is connected to: its turns are there, too.
    async fn connected(&self) -> &Process {
        for replica in &self.replicas {
            if metrics(replica).await.lines().any(|line| line == "jarvis_websockets 1") {
                return replica;
            }
        }
        panic!("the page is connected to no replica");
    }
}

/// Runs a script of tests/page against an address.
fn run(script: &str, base: &str, arguments: &[&str]) -> Driver {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page");
    let mut command = Command::new(find("node").expect("Node.js: `make test` installs it"));
    let chromium = find("chromium").expect("Chromium: `make test` installs it");
    command.arg(scripts.join(script)).arg(base).args(arguments).env("CHROMIUM", chromium);
    Driver::start(command)
}

async fn passes(fleet: &Fleet, script: &str, arguments: &[&str], checks: &[&str]) {
    assert_eq!(fleet.run(script, arguments).checks().await, checks);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_streams_is_stored_and_is_the_same_in_two_tabs_and_after_a_reload() {
    let fleet = fleet(&[]).await;
    passes(&fleet, "chat.mjs", &[], &["streams", "markdown", "reload", "scroll"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_stops_drafts_renames_and_deletes_and_markdown_runs_no_script() {
    let fleet = fleet(&[]).await;
    let checks = ["stop", "drafts", "badge", "list", "error", "dismissed", "inert"];
    passes(&fleet, "use.mjs", &[], &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_generated_again_a_question_edited_and_the_branch_before_selected() {
    let checks = ["regenerated", "selected", "edited", "back", "edited again", "failed"];
    passes(&fleet(&[]).await, "branches.mjs", &[], &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_pinned_archived_and_saved_from_the_list() {
    let checks = ["flags", "undisturbed", "link", "back", "keyboard", "saved"];
    passes(&fleet(&[]).await, "list.mjs", &[], &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_in_the_queue_and_what_the_model_was_not_given_are_shown() {
    let settings = [("JARVIS_OLLAMA_SLOTS", "1"), ("JARVIS_NUM_CTX", "1024")];
    passes(&fleet(&settings).await, "waiting.mjs", &[], &["queue", "moves", "time", "left out"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_chosen_pasted_sent_and_a_part_of_what_follows() {
    let fleet = fleet(&[]).await;
    let models = ["vision:latest", "tinyllama:latest"];
    passes(&fleet, "images.mjs", &models, &["sent", "later", "refused", "bounded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_and_lost_with_a_connection_is_asked_for_again() {
    let checks = [
        "first history",
        "branch",
        "slow",
        "refused",
        "late",
        "earlier",
        "stop",
        "silent",
        "at once",
        "close codes",
    ];
    passes(&fleet(&[]).await, "lost.mjs", &[], &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_is_asked_once_in_its_order_and_kept_until_the_service_has_it() {
    let checks = [
        "in doubt",
        "one after the other",
        "lost reply",
        "order",
        "elsewhere",
        "reload",
        "deleted",
        "refused",
        "other conversation",
        "bounds",
        "remedies",
    ];
    passes(&fleet(&[]).await, "outbox.mjs", &["vision:latest"], &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_and_not_sent_survives_reloads_and_is_the_same_in_two_tabs() {
    let checks = ["not begun", "two tabs", "edit", "list", "taken back", "missed", "images"];
    passes(&fleet(&[]).await, "drafts.mjs", &[], &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_chooses_reaches_the_model_and_the_focus_is_never_lost() {
    let fleet = fleet(&[]).await;
    let checks = ["model", "settings", "two tabs", "copy", "drop", "calm", "focus"];
    passes(&fleet, "settings.mjs", &[&fleet.ollama.url], &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_starts_again_and_a_sign_out_leaves_nothing_of_the_user() {
    let fleet = fleet(&[("JARVIS_JWT_SECRET", SECRET)]).await;
    let checks = ["declined", "renewed", "signed out"];
    passes(&fleet, "sign_out.mjs", &[&token("alice")], &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn formulas_are_drawn_and_loaded_only_where_there_are_some() {
    let fleet = fleet(&[]).await;
    passes(&fleet, "formulas.mjs", &[], &["drawn", "late", "reload"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn axe_finds_nothing_in_either_theme_wide_or_at_320_pixels() {
    let fleet = fleet(&[("JARVIS_JWT_SECRET", SECRET)]).await;
    let mut driver = fleet.run("access.mjs", &[&token("alice")]);
    let (mut looked, mut themes, mut rules) = (0, false, 0);
    let mut undecided = BTreeMap::<String, u64>::new();
    while let Some(line) = driver.line().await {
        if let Some(findings) = line["findings"].as_array() {
            assert!(findings.is_empty(), "{line}");
            looked += 1;
            rules = rules.max(line["rules"].as_u64().expect("a number"));
            for (rule, elements) in line["undecided"].as_object().expect("rules") {
                *undecided.entry(rule.clone()).or_default() += elements.as_u64().expect("a number");
            }
        }
        themes |= line["check"] == "themes";
    }
    println!(
        "axe: {rules} rules in {looked} views, no finding; elements not decided: {undecided:?}"
    );
    assert_eq!((looked, themes), (38, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_costs_the_page_no_character_and_no_reload() {
    let fleet = fleet(&[]).await;
    let mut driver = fleet.run("killed.mjs", &[]);
    assert!(driver.line().await.expect("a beginning")["begun"].is_string());
    fleet.connected().await.kill();
    let seen = driver.line().await.expect("the whole answer");
    println!("killed: {seen}");
    assert_eq!(driver.line().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_replica_costs_the_page_no_character_and_no_reload() {
    let fleet = fleet(&[]).await;
    let mut driver = fleet.run("killed.mjs", &["drained"]);
    assert!(driver.line().await.expect("a beginning")["begun"].is_string());
    fleet.connected().await.terminate();
    let seen = driver.line().await.expect("the whole answer");
    println!("drained: {seen}");
    assert_eq!(driver.line().await, None);
}

/// Kills and pauses writers in turn, and prints the slowest.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it takes minutes; `make verify FILTER=page` runs it"]
async fn twenty_killed_and_hanging_writers_cost_the_page_no_character() {
    let fleet = fleet(&[]).await;
    let (mut noticed, mut back) = (0, 0);
    for round in 0..20 {
        let mut driver = fleet.run("killed.mjs", &[]);
        assert!(driver.line().await.expect("a beginning")["begun"].is_string());
        let writer = fleet.connected().await;
        if round % 2 == 0 {
            writer.kill();
        } else {
            writer.pause();
        }
        let seen = driver.line().await.expect("the whole answer");
        assert_eq!(driver.line().await, None);
        noticed = noticed.max(seen["noticed"].as_u64().unwrap_or(u64::MAX));
        back = back.max(seen["back"].as_u64().unwrap_or(u64::MAX));
        if round % 2 == 0 {
            writer.restart().unwrap_or_else(|error| panic!("{error:#}"));
        } else {
            writer.resume();
        }
        until_ok(writer, "/health/ready").await;
    }
    println!("of 20 writers, noticed after {noticed} ms at most, connected again after {back} ms");
    assert!(noticed < NOTICED + 500, "{noticed}");
}

/// Kills the replicas in turn, and every third time the primary of Redis, until `is_over`. Returns how
/// many replicas, and how many primaries, were killed.
async fn break_things(
    replicas: &[Process],
    redis: &RedisSentinels,
    is_over: impl Fn() -> bool,
) -> (u32, u32) {
    let (mut killed, mut failovers) = (0, 0);
    for round in 1.. {
        sleep(BETWEEN_FAULTS).await;
        if is_over() {
            break;
        }
        if round % 3 == 0 {
            let is_primary = |server: &RedisServer| server.cli(&["ROLE"]).starts_with("master");
            let servers = [&redis.primary, &redis.replica];
            let [primary, other] =
                if is_primary(servers[0]) { servers } else { [servers[1], servers[0]] };
            primary.kill();
            let promoted = eventually(LIMIT, async || is_primary(other)).await;
            assert!(promoted, "no failover");
            primary.restart();
            failovers += 1;
        } else {
            let replica = &replicas[killed as usize % replicas.len()];
            replica.kill();
            sleep(Duration::from_secs(1)).await;
            replica.restart().unwrap_or_else(|error| panic!("{error:#}"));
            until_ok(replica, "/health/ready").await;
            killed += 1;
        }
    }
    (killed, failovers)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it takes minutes; `make verify FILTER=page` runs it"]
async fn five_pages_show_what_is_stored_while_replicas_are_killed_and_redis_fails_over() {
    let redis = RedisSentinels::start();
    let ollama = ollama_sim(&["--slots", "8"]);
    let settings = [("JARVIS_OLLAMA_SLOTS", "8")];
    let replicas = ready_replicas(3, &redis.url(), &ollama.url, &settings).await;
    let nginx = Nginx::deployed(&replicas).await;
    let mut driver = run("five.mjs", &format!("http://{}/", nginx.ours), &["120"]);
    assert_eq!(driver.line().await, Some(json!({"begun": 5})));
    let is_over = AtomicBool::new(false);
    let pages = async {
        let turns = driver.line_within(Duration::from_mins(5)).await.expect("the turns");
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(driver.line().await, None);
        turns
    };
    let faults = break_things(&replicas, &redis, || is_over.load(Ordering::SeqCst));
    let (turns, (killed, failovers)) = tokio::join!(pages, faults);
    println!("{turns} beside {killed} killed replicas and {failovers} failovers of Redis");
    assert!(killed >= 6 && failovers >= 3, "{killed} {failovers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_hangs_is_noticed_within_three_seconds_and_costs_no_character() {
    let fleet = fleet(&[]).await;
    let mut driver = fleet.run("killed.mjs", &[]);
    assert!(driver.line().await.expect("a beginning")["begun"].is_string());
    let writer = fleet.connected().await;
    writer.pause();
    let seen = driver.line().await.expect("the whole answer");
    println!("hangs: {seen}");
    assert_eq!(driver.line().await, None);
    // The time that the browser itself needs on a busy machine is left out.
    assert!(seen["noticed"].as_u64().is_some_and(|time| time < NOTICED + 500), "{seen}");
    writer.resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_starts_again_and_a_history_instead_of_a_cursor_are_shown_as_they_are_stored()
 {
    let fleet = fleet(&[]).await;
    let [one, two] = &fleet.replicas[..] else { panic!("two replicas") };
    // Not behind nginx: the page is to be away while the other replica serves.
    let mut driver = run("restarted.mjs", &one.url, &[&two.url]);
    assert_eq!(driver.line().await, Some(json!({"check": "restarted"})));
    assert!(driver.line().await.expect("a session")["leave"].is_string());
    one.kill();
    assert!(driver.line().await.expect("a session")["back"].is_string());
    one.restart().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(driver.line().await, Some(json!({"check": "history"})));
    assert_eq!(driver.line().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_sent_while_no_replica_answers_is_asked_once() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "200"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let mut driver = run("unreachable.mjs", &replica.url, &[]);
    assert_eq!(driver.line().await, Some(json!({"open": true})));
    replica.kill();
    assert_eq!(driver.line().await, Some(json!({"asked": true})));
    replica.restart().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(driver.line().await, Some(json!({"check": "once"})));
    assert_eq!(driver.line().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_signs_in_lists_finds_saves_and_takes_back_what_was_said() {
    // So few tokens that a question shows in what is left of them.
    let tokens = ("JARVIS_USER_TOKENS_PER_DAY", "5000");
    let settings = [("JARVIS_AUTH", "required"), ("JARVIS_JWT_SECRET", SECRET), tokens];
    let fleet = fleet(&settings).await;
    passes(
        &fleet,
        "signed_in.mjs",
        &[&token("alice")],
        &["signed in", "usage", "search", "files", "elsewhere", "list"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_from_before_the_sign_in_moves_to_the_account() {
    let fleet = fleet(&[("JARVIS_JWT_SECRET", SECRET)]).await;
    passes(&fleet, "claim.mjs", &[&token("alice")], &["claimed"]).await;
}

/// Streams 10,000 tokens of words, and some 3,000 of code and tables, and returns the figures of each.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_signs_in_and_takes_the_conversation_from_before_along() {
    let fleet = fleet(&[("JARVIS_JWT_SECRET", SECRET)]).await;
    let (_, key, _) = user_key(&fleet.redis, "alice").await;
    passes(&fleet, "claim.mjs", &[&key], &["claimed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_alone_leads_to_models_images_and_an_account() {
    let fleet = fleet(&[("JARVIS_JWT_SECRET", SECRET)]).await;
    passes(&fleet, "keyboard.mjs", &[&token("alice")], &["skip", "image", "claimed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_title_of_the_model_is_shown_soon_after_the_first_answer() {
    passes(&fleet(&[("JARVIS_TITLES", "model")]).await, "title.mjs", &[], &["title"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_tokens_stream_without_a_stall() {
    let fleet = fleet(&[("JARVIS_NUM_CTX", "32768")]).await;
    let mut driver = fleet.run("frames.mjs", &["10000"]);
    println!("from the navigation on: {}", driver.line().await.expect("times"));
    let answers = [driver.line().await, driver.line().await].map(|line| line.expect("figures"));
    assert_eq!(driver.line().await, None);
    for (answer, least) in answers.iter().zip([40_000, 5000]) {
        println!("frames: {answer}");
        assert!(answer["length"].as_u64().is_some_and(|length| length > least), "{answer}");
        assert!(answer["longest"].as_u64().is_some_and(|time| time < LONGEST_FRAME), "{answer}");
        assert!(answer["shift"].as_f64().is_some_and(|shift| shift < 0.02), "{answer}");
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[tokio::test]
async fn a_browser_gets_the_page_with_a_strict_policy_and_parts_that_are_kept_forever() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/live").await;
    let client = http();
    let ask = |path: &str| client.get(format!("{}{path}", replica.url));

    let json = get(&replica, "/").await;
    assert_eq!((json.status, &json.body["app"]), (200, &json!("jarvis")));
    let page = ask("/").header(ACCEPT, BROWSER).send().await.expect("the page");
    for headers in [&json.headers, page.headers()] {
        let varies = headers.get_all("vary").iter().any(|value| value == "accept");
        assert!(varies, "{headers:?}");
    }
    let policy = header(page.headers(), "content-security-policy").to_owned();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"),
        "{policy}"
    );
    for word in ["unsafe", "data:", "http", "*"] {
        assert!(!policy.contains(word), "{policy}");
    }
    assert!(policy.contains("require-trusted-types-for 'script'"), "{policy}");
    let tag = header(page.headers(), ETAG.as_str()).to_owned();
    let html = page.text().await.expect("a text");
    assert!(
        !html.contains("<style") && !html.contains("style=") && !html.contains(" on"),
        "{html}"
    );
    assert_eq!(
        html.matches("<script").count(),
        html.matches("<script src=\"/app/").count()
            + html.matches("<script type=\"module\" src=\"/app/").count()
    );

    let again = ask("/").header(ACCEPT, BROWSER).header(IF_NONE_MATCH, tag).send().await;
    let again = again.expect("a response");
    assert_eq!(again.status(), 304);
    // A browser takes the policy of this response over for the page that it has.
    assert_eq!(header(again.headers(), "content-security-policy"), policy);

    let names: Vec<_> =
        html.split("\"/app/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    for name in &names {
        for encoding in ["br", "gzip", ""] {
            let part = ask(&format!("/app/{name}")).header(ACCEPT_ENCODING, encoding).send().await;
            let part = part.expect("a part");
            assert_eq!(part.status(), 200, "{name}");
            assert_eq!(header(part.headers(), "content-encoding"), encoding, "{name}");
            assert!(header(part.headers(), "cache-control").contains("immutable"), "{name}");
            assert_eq!(header(part.headers(), "x-content-type-options"), "nosniff");
        }
    }
    // A replica of another release is asked for this one's part, while that is rolled out.
    let script = names.iter().find(|name| name.starts_with("main-")).expect("a script");
    let other = ask("/app/main-000000000000.js").send().await.expect("a part");
    assert_eq!(
        (other.status(), header(other.headers(), "cache-control")),
        (200.try_into().expect("a status"), "no-cache")
    );
    let own = ask(&format!("/app/{script}")).send().await.expect("a part");
    assert_eq!(other.bytes().await.expect("bytes"), own.bytes().await.expect("bytes"));
    for path in ["/app", "/app/", "/app/none.js", "/app/index.html", "/app/..%2fCargo.toml"] {
        let none: Value = ask(path).send().await.expect("a response").json().await.expect("JSON");
        assert_eq!(none["code"], "not_found", "{path}");
    }
}
