//! The effect of arguments and environment on the binary, and the secrets that it shows nowhere.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use support::client::{http, send, until_ok};
use support::eventually;
use support::process::{LIMIT, jarvis, jarvis_at, logged, ollama_sim};
use support::redis::RedisServer;

fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jarvis"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().expect("jarvis");
    let printed = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&printed).into_owned())
}

/// Returns the environment variables of all subcommands.
fn variables() -> Vec<String> {
    let table = jarvis::config::settings_table();
    let cells = table.lines().filter_map(|line| line.split('`').nth(3));
    let mut names: Vec<String> = cells.map(str::to_owned).collect();
    names.push("JARVIS_HEALTH_URL".to_owned());
    assert!(names.iter().all(|name| name.starts_with("JARVIS_")) && names.len() > 20, "{names:?}");
    names
}

/// The listener's address is taken, so that each of these commands ends after it has read its
/// settings.
#[test]
fn an_environment_variable_that_is_set_to_nothing_is_as_if_it_were_not_set() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for name in variables() {
        for blank in ["", " "] {
            let mut command = binary(&["serve"]);
            command.env("JARVIS_LISTEN", &address).env(&name, blank);
            if name == "JARVIS_LISTEN" {
                command.args(["--listen", &address]);
            }
            let (code, printed) = run(&mut command);
            assert_eq!(code, Some(1), "{name}={blank:?}: {printed}");
            assert!(printed.contains("cannot listen on"), "{name}={blank:?}: {printed}");
        }
    }
    // Compose passes all variables, empty ones too; the address is the default.
    let default = TcpListener::bind("127.0.0.1:10200");
    let mut command = binary(&["serve"]);
    command.envs(variables().into_iter().map(|name| (name, "")));
    let (code, printed) = run(&mut command);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("cannot listen on 127.0.0.1:10200"), "{printed}");
    drop(default);
}

/// The settings that docker-compose.yml has values of its own for, and the one that is not of `serve`.
const OF_COMPOSE: [&str; 6] = [
    "JARVIS_HEALTH_URL",
    "JARVIS_LISTEN",
    "JARVIS_ADMIN_LISTEN",
    "JARVIS_TRUSTED_PROXIES",
    "JARVIS_REDIS_URL",
    "JARVIS_DRAIN_TIMEOUT",
];

#[test]
fn every_setting_of_the_file_env_reaches_the_replicas_of_compose() {
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |name: &str| std::fs::read_to_string(format!("{root}/{name}")).expect("a file");
    let compose = read("docker-compose.yml");
    let replica = compose.split("\n  jarvis:").nth(1).and_then(|rest| rest.split("\n\n").next());
    let replica = replica.expect("the service jarvis");
    let settings = compose.split("\nx-settings: &settings\n").nth(1);
    let settings = settings.and_then(|rest| rest.split("\n\n").next()).expect("the settings");
    assert!(replica.contains("    environment:\n      <<: *settings\n"), "{replica}");
    let is_file = |name: &String| name.ends_with("_FILE");
    let is_own = |name: &String| OF_COMPOSE.contains(&name.as_str());
    let mut passed = 0;
    for name in variables().into_iter().filter(|name| !is_file(name) && !is_own(name)) {
        let line = format!("  {name}: ${{{name}:-");
        let places =
            settings.lines().chain(replica.lines().map(|line| line.trim_start_matches("    ")));
        assert_eq!(places.filter(|place| place.starts_with(&line)).count(), 1, "{name}");
        passed += 1;
    }
    assert!(passed > 50, "{passed}");
    // A line that the pages write into that file has an effect, as a setting or in compose itself.
    for page in
        ["README.md", "SECURITY.md", "docs/HARDENING.md", "docs/OPERATIONS.md", "docs/SIGN_IN.md"]
    {
        let page = read(page);
        let lines = page.lines().filter(|line| line.contains("`.env`"));
        for quote in lines.flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let name = quote.split('=').next().filter(|name| *name != quote).unwrap_or_default();
            let is_read = compose.contains(&format!("${{{name}:"));
            assert!(!name.starts_with("JARVIS_") || is_read, "compose does not read {name}");
        }
    }
}

#[test]
fn the_help_names_every_variable_even_one_that_is_set_to_nothing() {
    let mut command = binary(&["serve", "--help"]);
    command.envs(variables().into_iter().map(|name| (name, "")));
    let (code, printed) = run(&mut command);
    assert_eq!(code, Some(0));
    for name in variables().iter().filter(|name| *name != "JARVIS_HEALTH_URL") {
        assert!(printed.contains(name.as_str()), "{name}");
    }
}

#[test]
fn a_wrong_url_is_refused_without_showing_its_password() {
    for arguments in [
        &["serve", "--redis-url", "redis://:57#Secret@host"][..],
        &["serve", "--redis-url", "redis://:Secret@host:port"],
        &["serve", "--ollama-urls", "http://a,http://ann:57#Secret@host"],
        &["serve", "--ollama-urls", "http://ann:Secret@host;slots=0"],
        &["serve", "--otlp-url", "http://ann:Secret@host:port"],
        &["migrate", "--redis-url", "redis://:57/Secret@host"],
        &["health", "--url", "http://ann:Secret@host:port"],
        &["serve", "redis://:57#Sec ret@Secret@host"],
        &["serve", "--redis-uri=redis://:57#Secret@host"],
    ] {
        let (code, printed) = run(&mut binary(arguments));
        assert_eq!(code, Some(64), "{arguments:?}: {printed}");
        assert_eq!(printed.trim_end().lines().count(), 1, "{printed}");
        assert!(!printed.contains("Sec") && !printed.contains("57"), "{printed}");
    }
    let mut command = binary(&["serve"]);
    let (code, printed) = run(command.env("JARVIS_REDIS_URL", "redis://:57#Secret@host"));
    assert_eq!(code, Some(64));
    assert!(printed.contains("%23") && !printed.contains("Secret"), "{printed}");
}

/// A setting that is accepted makes the command end at the listener.
#[test]
fn a_setting_that_cannot_work_is_refused_with_64_and_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for (flag, value, part) in [
        ("--allowed-origins", "garbage", "https://app.example"),
        ("--allowed-origins", "https://a.example,https://a.example/x", "ends after its host"),
        ("--allowed-origins", "null", "write * to allow every origin"),
        ("--allowed-hosts", "https://chat.example", "chat.example"),
        ("--max-sockets", "0", "--max-sockets"),
        ("--queue-limit", "0", "--queue-limit"),
        ("--keep-alive", "banana", "5m"),
        ("--ollama-urls", "http://127.0.0.1:9,http://127.0.0.1:9/", "name each host once"),
        ("--ollama-urls", "HTTP://127.0.0.1:9,http://127.0.0.1:9/", "name each host once"),
        ("--ollama-urls", "http://127.0.0.1:9#Secret", "leave out what follows"),
        ("--redis-url", "redis+unix:///x?y=Secret", "no parameters"),
        (
            "--redis-url",
            "redis-sentinel://h?sentinelServiceName=m&sentinelPassword=5#Secret",
            "%23",
        ),
        ("--log", "in fo", "as in info,fred=error"),
        ("--log", "infoo", "as in info,fred=error"),
        ("--ollama-urls", "http://ann:Secret@127.0.0.1:9/?x=1", "leave out"),
    ] {
        let variable = flag.trim_start_matches("--").replace('-', "_").to_uppercase();
        let (code, printed) = run(&mut binary(&["serve", "--listen", &address, flag, value]));
        assert_eq!(code, Some(64), "{flag} {value}: {printed}");
        assert!(printed.contains(part) && !printed.contains("Secret"), "{flag} {value}: {printed}");
        assert_eq!(printed.trim_end().lines().count(), 1, "{printed}");
        let mut command = binary(&["serve", "--listen", &address]);
        let (code, printed) = run(command.env(format!("JARVIS_{variable}"), value));
        assert_eq!(code, Some(64), "JARVIS_{variable}={value}: {printed}");
    }
}

/// The listener's address is taken, so that each of these commands ends after it has read its
/// settings.
#[test]
fn blanks_around_a_value_and_every_time_that_ollama_takes_are_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!(" {} ", taken.local_addr().expect("an address"));
    for (flag, value) in [
        ("--queue-limit", " 5 "),
        ("--drain-timeout", "\t0\n"),
        ("--log-format", " json "),
        ("--log", " info "),
        ("--log", "info, fred=error"),
        ("--redis-url", " REDIS://h:1 "),
        ("--ollama-urls", "HTTP://127.0.0.1:9"),
        ("--max-sockets", " 1 "),
        ("--ollama-urls", " http://127.0.0.1:9 ; slots = 2 , http://127.0.0.1:10 "),
        ("--allowed-origins", " https://h:443 , http://h:80/ , * "),
        ("--keep-alive", " 5m "),
        ("--keep-alive", "-1"),
        ("--keep-alive", "0"),
        ("--keep-alive", "300"),
        ("--keep-alive", "1h30m"),
    ] {
        let (code, printed) = run(&mut binary(&["serve", "--listen", &address, flag, value]));
        assert_eq!(code, Some(1), "{flag} {value:?}: {printed}");
        assert!(printed.contains("cannot listen on"), "{flag} {value:?}: {printed}");
    }
}

#[tokio::test]
async fn an_origin_is_allowed_with_and_without_its_default_port() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let listed = [("JARVIS_ALLOWED_ORIGINS", "https://h:443, http://h:80, HTTPS://App.Example/")];
    let replica = jarvis(&redis.url(), &ollama.url, &listed);
    until_ok(&replica, "/health/ready").await;
    let status = async |origin: &str| {
        let chat = http().post(format!("{}/api/v1/chat", replica.url)).header("Origin", origin);
        let reply = send(chat.json(&serde_json::json!({"message": "[[tokens=2]] hi"}))).await;
        let allowed = reply.headers.get("access-control-allow-origin");
        (reply.status, allowed.and_then(|origin| origin.to_str().ok()).map(str::to_owned))
    };
    for origin in ["https://h", "https://h:443", "http://h", "http://h:80", "https://app.example"] {
        assert_eq!(status(origin).await, (200, Some(origin.to_owned())), "{origin}");
    }
    for origin in ["https://h:80", "http://h:443", "https://evil.example", "null"] {
        assert_eq!(status(origin).await, (403, None), "{origin}");
    }
}

#[tokio::test]
async fn every_user_name_and_password_reaches_redis_percent_encoded() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    let passwords = [
        ("a b", "a%20b"),
        ("a+b", "a+b"),
        ("57#Secret", "57%23Secret"),
        ("p@ss/w?rd", "p%40ss%2Fw%3Frd"),
        ("50%off", "50%25off"),
        ("\"quoted\" 'twice'", "%22quoted%22%20%27twice%27"),
        ("back\\slash", "back%5Cslash"),
        ("päss wörd", "p%C3%A4ss%20w%C3%B6rd"),
    ];
    for (number, (password, encoded)) in passwords.iter().enumerate() {
        let user = format!("user{number} {password}").replace(' ', "_");
        let rule = format!(">{password}");
        let set = redis.cli(&["ACL", "SETUSER", &user, "on", &rule, "~*", "&*", "+@all"]);
        assert_eq!(set.trim(), "OK", "{password}");
        let name = user.bytes().fold(String::new(), |name, byte| name + &format!("%{byte:02X}"));
        let url = redis.url_as(&format!("{name}:{encoded}"));
        let replica = jarvis(&url, &ollama.url, &[]);
        until_ok(&replica, "/health/ready").await;
    }
    // The URL has a password without a name: the default user.
    redis.cli(&["CONFIG", "SET", "requirepass", "a b"]);
    let replica = jarvis(&redis.url_as(":a%20b"), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
}

#[tokio::test]
async fn no_log_line_and_no_error_holds_the_password_and_a_wrong_one_is_reported() {
    // Without HELLO, Redis repeats the arguments of the unknown command in its error.
    let without_hello = RedisServer::start_with(&["--rename-command", "HELLO", ""]);
    let with_password = RedisServer::start();
    with_password.cli(&["CONFIG", "SET", "requirepass", "another one"]);
    for (redis, part) in [(&without_hello, "HELLO"), (&with_password, "refuses the user name or")] {
        let url = redis.url_as("ann:Sec%20ret%231");
        for format in ["text", "json"] {
            let extra = [("JARVIS_LOG", "trace"), ("JARVIS_LOG_FORMAT", format)];
            let (replica, log) = logged(&url, "http://127.0.0.1:9", &extra);
            let read = || std::fs::read_to_string(&log).expect("the log");
            let logged = eventually(LIMIT, async || read().contains(part)).await;
            assert!(logged, "{part} is not in the log");
            let lines = read();
            drop(replica);
            assert!(!lines.contains("Sec ret#1") && !lines.contains("Sec%20ret"), "{part}");
            assert!(!lines.contains('\u{1b}'), "a log that is no terminal is coloured");
        }
        let (code, printed) = run(binary(&["migrate"]).env("JARVIS_REDIS_URL", &url));
        assert_eq!(code, Some(1));
        assert!(!printed.contains("Sec ret#1") && !printed.contains("Sec%20ret"), "{printed}");
    }
    let url = with_password.url_as(":wrong");
    let (code, printed) = run(binary(&["migrate"]).env("JARVIS_REDIS_URL", &url));
    assert_eq!(code, Some(1));
    assert!(printed.contains("refuses the user name or password"), "{printed}");
}

#[tokio::test]
async fn health_asks_the_server_where_it_listens() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    for listen in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
        let replica = jarvis_at(listen, &redis.url(), &ollama.url, &[("JARVIS_LOG", "off")]);
        let port = replica.url.rsplit(':').next().expect("a port");
        let listen = format!("{}:{port}", listen.trim_end_matches(":0"));
        let ready = eventually(LIMIT, async || {
            let (code, printed) = run(binary(&["health"]).env("JARVIS_LISTEN", &listen));
            let wanted = if code == Some(0) { "ready" } else { "not ready" };
            assert!(printed.contains(wanted), "{listen}: {printed}");
            code == Some(0)
        });
        assert!(ready.await, "{listen}");
        let (code, printed) = run(binary(&["health"]).env("JARVIS_LISTEN", &listen));
        assert_eq!((code, printed.trim()), (Some(0), "ready"), "{listen}");
        let (code, _) =
            run(binary(&["health", "--listen", "127.0.0.1:1"]).env("JARVIS_LISTEN", &listen));
        assert_eq!(code, Some(1), "an address where nobody listens");
    }
}

#[test]
fn nothing_is_coloured_that_is_no_terminal() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["serve", "--queue-limit", "x"]] {
        let (_, printed) = run(&mut binary(arguments));
        assert!(!printed.is_empty() && !printed.contains('\u{1b}'), "{printed}");
    }
}

#[tokio::test]
async fn a_replica_with_a_collector_that_is_away_starts_and_help_shows_no_secret() {
    let redis = RedisServer::start();
    let collector = [("JARVIS_OTLP_URL", "http://127.0.0.1:1")];
    let replica = jarvis(&redis.url(), "http://127.0.0.1:1", &collector);
    until_ok(&replica, "/health/live").await;
    for arguments in [["serve", "--help"], ["migrate", "--help"], ["serve", "-h"]] {
        let help = Command::new(env!("CARGO_BIN_EXE_jarvis"))
            .args(arguments)
            .env("JARVIS_REDIS_URL", "redis://:sEcretZ@h:1")
            .env("JARVIS_OLLAMA_URLS", "http://u:sEcretZ@h:1")
            .env("JARVIS_OTLP_URL", "http://u:sEcretZ@h:1")
            .output()
            .expect("help");
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(text.contains("JARVIS_REDIS_URL") && !text.contains("sEcretZ"), "{text}");
    }
}
