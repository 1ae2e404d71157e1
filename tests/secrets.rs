//! Secrets: where they come from, and that no output of a replica holds one.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::client::{Socket, get, http, until_ok, with};
use support::eventually;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::{Connection, RedisServer, Reply, Users};
use testkit::folder::Folder;
use testkit::server::Plan;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CHAT: &str = "/api/v1/chat/";
const JWT: &str = "jwt-s3cret-jwt-s3cret-jwt-s3cret-";
const METRICS: &str = "metrics-s3cret-0123456789";
const OLLAMA: &str = "ollama-s3cret-0123456789";
const SOURCE: &str = "source-s3cret-0123456789";
const COLLECTOR: &str = "collector-s3cret";
const HOST: &str = "host-s3cret";
const REDIS: &str = "redis-s3cret";

fn binary(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jarvis"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("JARVIS_") {
            command.env_remove(name);
        }
    }
    let output = command.args(arguments).envs(environment.iter().copied()).output();
    let output = output.expect("jarvis");
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
}

/// Collects everything that is sent to a collector of spans.
async fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let received = Arc::<Mutex<Vec<u8>>>::default();
    let kept = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 << 10];
                // A batch comes in one request, which is answered when it pauses.
                loop {
                    let read =
                        tokio::time::timeout(Duration::from_millis(50), stream.read(&mut bytes));
                    match read.await {
                        Ok(Ok(read)) if read > 0 => {
                            kept.lock().expect("no panic").extend(&bytes[..read]);
                        }
                        Ok(_) => return,
                        Err(_) => {
                            let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                            if stream.write_all(reply).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    (address, received)
}

/// Sends a request, and returns everything of the response.
async fn whole(request: reqwest::RequestBuilder) -> String {
    let response = request.send().await.expect("a response");
    let head = format!("{:?}", response.headers());
    head + &response.text().await.unwrap_or_default()
}

/// Each setting that is a secret or may hold one, with the command that takes it, and a value that is
/// refused for its form. The test compares the names with the settings of the command.
const INVALID: [(&str, &str, &str); 10] = [
    ("serve", "jwks-url", "ftp://ann:s3cret-invalid@issuer"),
    ("serve", "jwt-secret", "s3cret-invalid"),
    ("serve", "metrics-token", "s3cret-invalid 0123456789"),
    ("serve", "ollama-token", "s3cret-invalid\n0123456789"),
    ("serve", "ollama-urls", "ftp://ann:s3cret-invalid@host"),
    ("serve", "otlp-url", "ftp://ann:s3cret-invalid@collector"),
    ("serve", "redis-url", "ftp://ann:s3cret-invalid@redis"),
    ("serve", "source-key", "s3cret-invalid"),
    ("chat", "token", "s3cret-invalid\n0123456789"),
    ("chat", "url", "ftp://ann:s3cret-invalid@server"),
];

#[test]
fn no_refusal_of_an_invalid_value_holds_the_secret_by_variable_or_by_argument() {
    let (_, table) = binary(&["settings"], &[]);
    for (command, name, invalid) in INVALID {
        let variable = match name {
            "url" => "JARVIS_HEALTH_URL".to_owned(),
            name => format!("JARVIS_{}", name.to_uppercase().replace('-', "_")),
        };
        // Each secret in the table of settings is tried here.
        assert!(command == "chat" || table.contains(&variable), "{variable}");
        let issuer = [("JARVIS_JWT_ISSUER", "i"), ("JARVIS_JWT_AUDIENCE", "a")];
        let by_variable = [&issuer[..], &[(&variable, invalid)]].concat();
        let by_file = {
            let folder = Folder::temporary().expect("a folder");
            let path = folder.path().join("secret");
            std::fs::write(&path, invalid).expect("a file");
            let of_file = format!("{variable}_FILE");
            binary(
                &[command],
                &[&issuer[..], &[(&of_file, path.to_str().expect("a path"))]].concat(),
            )
        };
        let flag = format!("--{name}");
        let joined = format!("{flag}={invalid}");
        for (way, (code, printed)) in [
            ("variable", binary(&[command], &by_variable)),
            ("argument", binary(&[command, &flag, invalid], &issuer)),
            ("joined argument", binary(&[command, &joined], &issuer)),
            ("file", by_file),
        ] {
            if way == "file" && name == "url" {
                continue;
            }
            assert_eq!(code, Some(64), "{name} by {way}: {printed}");
            assert!(!printed.contains("s3cret-invalid"), "{name} by {way}: {printed}");
            assert!(printed.contains(name) || printed.contains(&variable), "{way}: {printed}");
        }
    }
    // The list above is whole: every setting with a file in its place is in it.
    let files = table.lines().filter_map(|line| line.split('`').nth(1));
    let secrets = files.filter_map(|name| name.strip_suffix("_FILE"));
    let certificates =
        |name: &&str| !["_CA", "_CERT", "_REDIS_KEY"].iter().any(|end| name.ends_with(end));
    for variable in secrets.filter(certificates) {
        let name = variable.trim_start_matches("JARVIS_").to_lowercase().replace('_', "-");
        assert!(INVALID.iter().any(|(_, tried, _)| *tried == name), "{variable} is not tried");
    }
}

#[tokio::test]
async fn no_output_of_a_replica_holds_a_secret() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    // Every host gets the token; a URL with a password has a header of its own.
    let second = ollama_sim(&["--rate", "0"]);
    let password = format!(">{REDIS}");
    redis.cli(&["ACL", "SETUSER", "jarvis", "resetpass", &password]);
    let redis_url = redis.url_as(&format!("jarvis:{REDIS}"));
    let (code, key) =
        binary(&["key", "create", "--user", "alice"], &[("JARVIS_REDIS_URL", &redis_url)]);
    assert_eq!(code, Some(0), "{key}");
    let key = key.lines().find(|line| line.starts_with("sk-jarvis-")).expect("a key").to_owned();
    let (_, token) = binary(&["token", "--user", "bob"], &[("JARVIS_JWT_SECRET", JWT)]);
    let token = token.trim().to_owned();
    let (address, spans) = collector().await;
    let (otlp, host) = (
        format!("http://ann:{COLLECTOR}@{address}"),
        format!("{},{}", ollama.url.replacen("//", &format!("//ann:{HOST}@"), 1), second.url),
    );
    let secrets = [JWT, METRICS, OLLAMA, SOURCE, COLLECTOR, HOST, REDIS, &key, &token];
    let mut outputs = Vec::new();
    for format in ["text", "json"] {
        let settings = [
            ("JARVIS_LOG", "trace"),
            ("JARVIS_LOG_FORMAT", format),
            ("JARVIS_JWT_SECRET", JWT),
            ("JARVIS_METRICS_TOKEN", METRICS),
            ("JARVIS_SOURCE_KEY", SOURCE),
            ("JARVIS_OTLP_URL", &otlp),
            ("JARVIS_OLLAMA_URLS", &host),
            ("JARVIS_OLLAMA_TOKEN", OLLAMA),
            ("JARVIS_REDIS_URL", &redis_url),
            ("JARVIS_TRUSTED_PROXIES", "127.0.0.1"),
            ("JARVIS_READ_TIMEOUT", "2"),
        ];
        let plan = Plan {
            name: "replica".to_owned(),
            binary: env!("CARGO_BIN_EXE_jarvis").into(),
            address: None,
            arguments: vec!["serve".to_owned()],
            environment: Vec::new(),
            folder: Folder::temporary().expect("a folder"),
        };
        let replica = Process::start(plan.with(settings)).expect("a replica");
        until_ok(&replica, "/health/ready").await;
        let id = replica.id().expect("a process");
        outputs
            .push(("arguments", std::fs::read(format!("/proc/{id}/cmdline")).expect("arguments")));
        let mut answers = String::new();
        let url = |path: &str| format!("{}{path}", replica.url);
        for bearer in [&*key, &token, "wrong", &token[..token.len() - 3], JWT, METRICS] {
            for path in ["/metrics", "/api/v1/chat/sessions/x", "/api/v1/models", "/nothing", "/ws"]
            {
                answers += &whole(http().get(url(path)).bearer_auth(bearer)).await;
                answers += &whole(http().get(url(path)).basic_auth("a", Some(bearer))).await;
            }
            let body = json!({"message": "[[tokens=2]] hi"});
            let chat = http().post(url(CHAT)).bearer_auth(bearer).json(&body);
            answers += &whole(chat.header("x-forwarded-for", "192.0.2.1")).await;
        }
        for bearer in [&*key, &token] {
            let protocols = format!("jarvis.v1, bearer.{bearer}");
            let offered = [("sec-websocket-protocol", protocols.as_str())];
            let socket = Socket::open_with(&replica, "/ws", &offered).await;
            let (mut socket, welcome, _) = socket.expect("a socket");
            socket.say(&json!({"type": "auth", "token": bearer})).await;
            socket.say(&json!({"message": "[[tokens=2]] hi"})).await;
            answers += &welcome.to_string();
            answers += &json!(socket.until("stream_end").await).to_string();
        }
        // Errors of Redis and of the host are made, too.
        redis.restart();
        redis.cli(&["ACL", "SETUSER", "jarvis", "resetpass", &password]);
        ollama.pause();
        answers += &whole(http().get(url("/health/detailed"))).await;
        ollama.resume();
        let served = async || get(&replica, "/health/ready").await.status == 200;
        assert!(eventually(LIMIT, served).await);
        outputs.push(("answers", answers.into_bytes()));
        let metrics = whole(http().get(url("/metrics")).bearer_auth(METRICS)).await;
        assert!(metrics.contains("jarvis_turns_total"), "{metrics}");
        outputs.push(("metrics", metrics.into_bytes()));
        let exported =
            || spans.lock().expect("no panic").windows(7).any(|bytes| bytes == b"request");
        assert!(eventually(LIMIT, async || exported()).await, "no span was exported");
        outputs.push(("log", std::fs::read(replica.log()).expect("a log")));
    }
    outputs.push(("spans", spans.lock().expect("no panic").clone()));
    let lines = outputs.iter().filter(|(what, _)| *what == "log").map(|(_, log)| log.len());
    let shortest = lines.min();
    assert!(shortest > Some(5_000), "the logs are short: {shortest:?} bytes");
    for (what, output) in &outputs {
        for secret in &secrets {
            let at = output.windows(secret.len()).position(|bytes| bytes == secret.as_bytes());
            if let Some(at) = at {
                let around = &output[at.saturating_sub(200)..(at + 60).min(output.len())];
                panic!("{what} has {secret}: {}", String::from_utf8_lossy(around));
            }
        }
    }
}

/// Returns every setting that is a secret or may hold one, and a value with a secret.
fn secret_settings() -> [(&'static str, String); 8] {
    let url = |scheme: &str| format!("{scheme}://ann:{HOST}@127.0.0.1:9");
    [
        ("redis-url", url("redis")),
        ("ollama-urls", format!("http://127.0.0.1:8,{}", url("http"))),
        ("otlp-url", url("http")),
        ("jwks-url", url("https")),
        ("jwt-secret", JWT.to_owned()),
        ("metrics-token", METRICS.to_owned()),
        ("ollama-token", OLLAMA.to_owned()),
        ("source-key", SOURCE.to_owned()),
    ]
}

#[test]
fn a_secret_among_the_arguments_is_refused_with_a_hint_and_not_shown() {
    for (name, value) in secret_settings() {
        let variable = format!("JARVIS_{}", name.replace('-', "_").to_uppercase());
        let issuer = [("JARVIS_JWT_ISSUER", "i"), ("JARVIS_JWT_AUDIENCE", "a")];
        let issuer = if name == "jwks-url" { &issuer[..] } else { &[] };
        for arguments in
            [vec![format!("--{name}"), value.clone()], vec![format!("--{name}={value}")]]
        {
            let mut all = vec!["serve"];
            all.extend(arguments.iter().map(String::as_str));
            let (code, printed) = binary(&all, issuer);
            assert_eq!(code, Some(64), "{name}: {printed}");
            assert!(printed.contains(&variable), "{name}: {printed}");
            assert!(printed.contains(&format!("--{name}-file")), "{name}: {printed}");
            assert!(!printed.contains("s3cret"), "{name}: {printed}");
        }
    }
    for command in
        [&["migrate"][..], &["key", "list"], &["key", "create", "--user", "a"], &["top", "--once"]]
    {
        let url = format!("--redis-url=redis://:{REDIS}@127.0.0.1:9");
        let (code, printed) = binary(&[command, &[&url]].concat(), &[]);
        assert_eq!(code, Some(64), "{command:?}: {printed}");
        assert!(printed.contains("JARVIS_REDIS_URL") && !printed.contains("s3cret"), "{printed}");
    }
    for arguments in [
        ["chat", "--token=sk-jarvis-s3cret"],
        ["token", "--jwt-secret=s3cret"],
        ["health", "--url=http://ann:s3cret@127.0.0.1:9"],
        ["chat", "--url=http://ann:s3cret@127.0.0.1:9"],
    ] {
        let (code, printed) = binary(&arguments, &[]);
        assert_eq!(code, Some(64), "{printed}");
        assert!(!printed.contains("s3cret"), "{printed}");
    }
}

#[test]
fn every_secret_may_come_from_a_file_instead_and_from_one_place_only() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let folder = Folder::temporary().expect("a folder");
    for (name, value) in secret_settings() {
        let variable = format!("JARVIS_{}", name.replace('-', "_").to_uppercase());
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{value}\n")).expect("a file");
        let file = (format!("{variable}_FILE"), path.to_str().expect("a path"));
        let mut environment = vec![(file.0.as_str(), file.1), ("JARVIS_LISTEN", &address)];
        if name == "jwks-url" {
            environment.extend([("JARVIS_JWT_ISSUER", "i"), ("JARVIS_JWT_AUDIENCE", "a")]);
        }
        // The address is taken, so that a command ends after it has read its settings.
        let (code, printed) = binary(&["serve"], &environment);
        assert_eq!(code, Some(1), "{name}: {printed}");
        assert!(printed.contains("cannot listen on"), "{name}: {printed}");
        environment.push((&variable, &value));
        let (code, printed) = binary(&["serve"], &environment);
        assert_eq!(code, Some(64), "{name}: {printed}");
        assert!(printed.contains("both set") && !printed.contains("s3cret"), "{name}: {printed}");
        for (wrong, part) in [("/nothing", "cannot read"), ("/dev/null", "")] {
            let (code, printed) =
                binary(&["serve"], &[(&file.0, wrong), ("JARVIS_LISTEN", &address)]);
            // A list of hosts may be empty as such, and then names no host.
            assert_eq!(code, Some(64), "{name} {wrong}: {printed}");
            assert!(printed.contains(part), "{name} {wrong}: {printed}");
        }
    }
    let help = secret_settings()
        .map(|(name, value)| (format!("JARVIS_{}", name.replace('-', "_").to_uppercase()), value));
    let help: Vec<_> = help.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let (_, printed) = binary(&["serve", "--help"], &help);
    assert!(printed.contains("JARVIS_SOURCE_KEY") && !printed.contains("s3cret"), "{printed}");
}

#[tokio::test]
async fn a_replica_serves_with_all_secrets_from_files_and_warns_of_those_that_all_may_read() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let folder = Folder::temporary().expect("a folder");
    let file = |name: &str, text: &str, mode: u32| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        path.to_str().expect("a path").to_owned()
    };
    let hosts = file("hosts", &format!("{}\n", ollama.url), 0o600);
    let metrics = file("metrics", METRICS, 0o644);
    let url = file("redis", &redis.url(), 0o440);
    let jwt = file("jwt", JWT, 0o604);
    let listen = "127.0.0.1:0";
    let mut program = testkit::Program::new("replica", env!("CARGO_BIN_EXE_jarvis"), folder.path());
    program.hidden = vec!["JARVIS_"];
    let program = program
        .args(["serve", "--listen", listen])
        .env("JARVIS_REDIS_URL_FILE", &url)
        .env("JARVIS_OLLAMA_URLS_FILE", &hosts)
        .env("JARVIS_METRICS_TOKEN_FILE", &metrics)
        .env("JARVIS_JWT_SECRET_FILE", &jwt);
    let process = testkit::Process::new(program);
    process.start().expect("a start");
    let replica = process.announced_address(LIMIT).expect("an address");
    let turn = async || {
        let body = json!({"message": "[[tokens=2]] hi"});
        let chat = http().post(format!("{replica}{CHAT}")).json(&body).send().await;
        chat.is_ok_and(|response| response.status().is_success())
    };
    assert!(eventually(LIMIT, turn).await, "no turn");
    let status = async |token: &str| {
        let request = http().get(format!("{replica}/metrics")).bearer_auth(token);
        request.send().await.expect("a response").status().as_u16()
    };
    assert_eq!((status(METRICS).await, status("x").await), (200, 401));
    let log = std::fs::read_to_string(process.log()).expect("a log");
    let warned: Vec<&str> =
        log.lines().filter(|line| line.contains("every user can read")).collect();
    assert_eq!(warned.len(), 2, "{log}");
    assert!(warned.iter().all(|line| line.contains(&metrics) || line.contains(&jwt)), "{log}");
}

/// Has a turn from this address, and returns the sources in the budget once it has so many sessions.
async fn sources_of(
    redis: &RedisServer,
    replica: &Process,
    address: &str,
    sessions: usize,
) -> Vec<String> {
    let body = json!({"message": "[[tokens=1]] hi"});
    let chat = http().post(format!("{}{CHAT}", replica.url)).header("x-forwarded-for", address);
    assert_eq!(chat.json(&body).send().await.expect("a response").status(), 200);
    let recorded =
        async || redis.cli(&["HLEN", "jarvis:{budget}:sessions"]).trim() == sessions.to_string();
    assert!(eventually(LIMIT, recorded).await, "not {sessions} sessions in the budget");
    let is_source = |part: &&str| part.len() == 16 && part.bytes().all(|it| it.is_ascii_hexdigit());
    let keys = redis.cli(&["KEYS", "jarvis:{budget}:payer:*"]);
    let mut sources: Vec<String> =
        keys.split([':', '\n']).filter(is_source).map(str::to_owned).collect();
    sources.dedup();
    sources
}

#[tokio::test]
async fn all_replicas_digest_an_address_by_one_key_which_a_setting_keeps_out_of_redis() {
    const ADDRESS: &str = "192.0.2.1";
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let proxies = ("JARVIS_TRUSTED_PROXIES", "127.0.0.1");
    let [one, two] = [(); 2].map(|()| jarvis(&redis.url(), &ollama.url, &[proxies]));
    for replica in [&one, &two] {
        until_ok(replica, "/health/ready").await;
    }
    let key = async || redis.cli(&["GET", "jarvis:{source}:key"]).trim().len() == 64;
    assert!(eventually(LIMIT, key).await, "no key in Redis");
    let first = sources_of(&redis, &one, ADDRESS, 1).await;
    assert_eq!(sources_of(&redis, &two, ADDRESS, 2).await, first, "one address has two sources");
    assert_eq!(first.len(), 1);
    let plain = jarvis::digest::sha256_hex(ADDRESS.as_bytes());
    assert!(!plain.starts_with(&first[0]), "anybody can make the digest");
    // A key that is set is not stored.
    let (other, set) = (RedisServer::start(), ("JARVIS_SOURCE_KEY", SOURCE));
    let replica = jarvis(&other.url(), &ollama.url, &[proxies, set]);
    until_ok(&replica, "/health/ready").await;
    assert_ne!(sources_of(&other, &replica, ADDRESS, 1).await, first);
    assert_eq!(other.cli(&["EXISTS", "jarvis:{source}:key"]).trim(), "0");
}

#[tokio::test]
async fn no_log_line_holds_the_address_of_a_client_or_its_digest() {
    const ADDRESS: &str = "192.0.2.1";
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let settings = [("JARVIS_TRUSTED_PROXIES", "127.0.0.1"), ("JARVIS_LOG", "debug,fred=off")];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let sources = sources_of(&redis, &replica, ADDRESS, 1).await;
    assert_eq!(sources.len(), 1);
    let nothing = http().get(format!("{}/nothing", replica.url)).header("x-forwarded-for", ADDRESS);
    assert_eq!(nothing.bearer_auth("a.b.c").send().await.expect("a response").status(), 401);
    let mut log = String::new();
    let logged = async || {
        log = std::fs::read_to_string(replica.log()).expect("a log");
        log.contains("turn ended") && log.contains("sign-in refused")
    };
    assert!(eventually(LIMIT, logged).await, "{log}");
    assert!(!log.contains(ADDRESS) && !log.contains(&sources[0]), "{log}");
}

#[tokio::test]
async fn the_file_of_redis_users_lets_a_replica_serve_and_others_only_ping() {
    let redis = RedisServer::start_as(Users::Installed);
    let ollama = ollama_sim(&["--rate", "0"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let body = json!({"message": "[[tokens=2]] hi"});
    let chat = http().post(format!("{}{CHAT}", replica.url)).json(&body).send().await;
    assert_eq!(chat.expect("a response").status(), 200);
    let url = redis.url();
    let password = url.split([':', '@']).nth(2).expect("a password");
    let of_admin = format!("{password}-OF-ADMIN");
    // The commands that operators need, and neither the data nor the users.
    let mut connection = Connection::open(redis.port()).expect("a connection");
    let replies = connection.ask(&[
        &["AUTH", "admin", &of_admin][..],
        &["CONFIG", "GET", "maxmemory"],
        &["CONFIG", "SET", "maxmemory", "0"],
        &["INFO", "memory"],
        &["SLOWLOG", "GET", "1"],
        &["GET", "jarvis:{source}:key"],
        &["KEYS", "*"],
        &["FLUSHALL"],
        &["ACL", "LIST"],
        &["EVAL", "return 1", "0"],
        &["SHUTDOWN"],
    ]);
    let replies: Vec<_> = replies.expect("replies").iter().map(Reply::text).collect();
    let refused: Vec<_> = replies.iter().map(|reply| reply.starts_with("NOPERM")).collect();
    let expected = [[false; 5].as_slice(), &[true; 6]].concat();
    assert_eq!(refused, expected, "{replies:?}");
    for (user, password, allowed) in [("probe", "-", "PING"), ("jarvis", password, "PING")] {
        for command in [
            &[allowed][..],
            &["GET", "other"],
            &["KEYS", "*"],
            &["CONFIG", "GET", "*"],
            &["FLUSHALL"],
            &["SPUBLISH", "other", "x"],
            &["ACL", "LIST"],
            &["FUNCTION", "FLUSH"],
            &["SHUTDOWN"],
        ] {
            let mut connection = Connection::open(redis.port()).expect("a connection");
            let replies = connection.ask(&[&["AUTH", user, password][..], command]);
            let replies = replies.expect("replies");
            assert_eq!(replies[0].text(), "OK");
            let expected = if command == [allowed] { "PONG" } else { "NOPERM" };
            assert!(replies[1].text().starts_with(expected), "{user} {command:?}: {}", replies[1]);
        }
    }
    let mut connection = Connection::open(redis.port()).expect("a connection");
    let probed = connection.ask(&[
        &["AUTH", "probe", "-"][..],
        &["GET", "jarvis:{source}:key"],
        &["EVAL", "return 1", "0"],
        &["AUTH", "default", ""],
    ]);
    let probed: Vec<_> = probed.expect("replies")[1..].iter().map(Reply::text).collect();
    assert!(probed[0].starts_with("NOPERM") && probed[1].starts_with("NOPERM"), "{probed:?}");
    assert!(probed[2].starts_with("WRONGPASS"), "{probed:?}");
    // Nobody is the default user.
    let mut stranger = TcpStream::connect(("127.0.0.1", redis.port())).await.expect("a connection");
    stranger.write_all(b"PING\r\n").await.expect("sent");
    let mut reply = [0; 7];
    stranger.read_exact(&mut reply).await.expect("a reply");
    assert_eq!(&reply, b"-NOAUTH");
}

/// Returns a request of every kind that needs a model host: its path and its body.
fn asked_of_hosts(session: &str) -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let texts = json!({"model": "tinyllama", "input": "hi"});
    let mut requests = vec![("/v1/embeddings", texts.clone()), ("/api/embed", texts)];
    for stream in [true, false] {
        let model = json!({"model": "tinyllama", "stream": stream});
        let of_model = |name: &str, value: &Value| with(model.clone(), name, value.clone());
        requests.extend([
            (CHAT, json!({"message": "hi", "session_id": session, "stream": stream})),
            ("/v1/chat/completions", of_model("messages", &messages)),
            ("/v1/responses", of_model("input", &json!("hi"))),
            ("/api/chat", of_model("messages", &messages)),
            ("/api/generate", of_model("prompt", &json!("hi"))),
        ]);
    }
    requests
}

#[tokio::test]
async fn no_reply_and_no_event_names_the_address_of_a_host_or_of_redis_when_they_fail() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "20"]));
    let settings = [("JARVIS_HOST_WAIT_TIMEOUT", "1"), ("JARVIS_REDIS_PATIENCE", "1")];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let host = ollama.url.trim_start_matches("http://").to_owned();
    let port = |address: &str| address.rsplit(':').next().unwrap_or_default().to_owned();
    let ports = [port(&host), redis.port().to_string()];
    let mut seen = Vec::new();
    let (mut socket, first) = Socket::open(&replica, "/ws").await;
    seen.push(first.to_string());
    let session = uuid::Uuid::new_v4();
    let requests = asked_of_hosts(&session.to_string());
    let paths = [
        "/health".to_owned(),
        "/health/ready".to_owned(),
        "/health/detailed".to_owned(),
        "/api/v1/chat/health".to_owned(),
        "/api/v1/models".to_owned(),
        "/api/v1/chat/models".to_owned(),
        "/api/v1/usage".to_owned(),
        "/api/v1/chat/sessions".to_owned(),
        format!("/api/v1/chat/sessions/{session}"),
        format!("/api/v1/chat/sessions/{session}/events"),
        "/api/v1/chat/export".to_owned(),
        "/v1/models".to_owned(),
        "/v1/models/tinyllama".to_owned(),
        format!("/v1/responses/resp_{}", session.simple()),
        format!("/v1/conversations/conv_{}", session.simple()),
        "/api/tags".to_owned(),
        "/api/ps".to_owned(),
    ];
    let ask_all = async |seen: &mut Vec<String>| {
        for path in &paths {
            let request = http().get(format!("{}{path}", replica.url));
            seen.push(whole(request.timeout(Duration::from_secs(10))).await);
        }
        let asked = requests.iter().map(async |(path, body)| {
            let request = http().post(format!("{}{path}", replica.url)).json(body);
            let reply = whole(request.timeout(Duration::from_secs(30))).await;
            assert!(reply.contains("error") || reply.contains("code"), "{path}: {reply}");
            reply
        });
        seen.extend(join_all(asked).await);
    };
    // The host fails in the middle of an answer, and before one.
    socket.say(&json!({"message": "[[tokens=400]] go on"})).await;
    seen.extend(socket.until("stream_chunk").await.iter().map(ToString::to_string));
    ollama.kill();
    let failed = async {
        loop {
            let event = socket.event().await;
            seen.push(event.to_string());
            if event["type"] == "error" || event["type"] == "stream_end" {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), failed).await.expect("an end of the turn");
    ask_all(&mut seen).await;
    redis.kill();
    ask_all(&mut seen).await;
    socket.say(&json!({"message": "hi"})).await;
    seen.extend(socket.until("error").await.iter().map(ToString::to_string));
    assert!(seen.iter().any(|text| text.contains("store_unavailable")), "Redis did not fail");
    assert!(seen.iter().any(|text| text.contains("host")), "no host failed");
    let ports = ports.map(|port| format!(":{port}"));
    let of_systems =
        ["127.0.0.1", "localhost", "http://", "redis://", "os error"].map(str::to_owned);
    for text in &seen {
        for part in ports.iter().chain(&of_systems) {
            assert!(!text.contains(part), "{part}: {text}");
        }
    }
}

/// Returns the folder of stand-ins for these programs, each of which notes its arguments in a file and
/// becomes the program, or nothing where there is none.
fn noting(folder: &std::path::Path, programs: &[&str]) -> std::path::PathBuf {
    let (bin, noted) = (folder.join("bin"), folder.join("arguments"));
    std::fs::create_dir(&bin).expect("a folder");
    for program in programs {
        let real = std::env::var("PATH").expect("a path").split(':').find_map(|place| {
            let real = std::path::Path::new(place).join(program);
            real.exists().then(|| real.display().to_string())
        });
        let becomes = match real.filter(|_| *program != "redis-server") {
            Some(real) => format!("exec {real} \"$@\""),
            None => "exit 0".to_owned(),
        };
        let noted = noted.display();
        let text = format!("#!/bin/sh\nprintf '%s\\n' \"$0 $*\" >>'{noted}'\n{becomes}\n");
        let file = bin.join(program);
        std::fs::write(&file, text).expect("a program");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    bin
}

/// The users of compose's Redis, with the variable of the password of each, and one that is nowhere else.
const USERS: [(&str, &str, &str); 4] = [
    ("jarvis", "JARVIS_REDIS_PASSWORD", REDIS),
    ("replica", "JARVIS_REDIS_REPLICA_PASSWORD", "repl1ca-of-redis"),
    ("sentinel", "JARVIS_REDIS_SENTINEL_PASSWORD", "sent1nel-of-redis"),
    ("admin", "JARVIS_REDIS_ADMIN_PASSWORD", "adm1n-of-redis"),
];

#[test]
fn no_program_of_the_deployments_gets_a_password_among_its_arguments() {
    const PROGRAMS: [&str; 11] =
        ["sed", "awk", "perl", "grep", "od", "tr", "cat", "mv", "mkdir", "dirname", "redis-server"];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Folder::temporary().expect("a folder");
    let bin = noting(folder.path(), &PROGRAMS);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a path"));
    let copy = folder.path().join("root");
    std::fs::create_dir_all(copy.join("deploy")).expect("a folder");
    std::fs::copy(root.join("deploy/redis.acl"), copy.join("deploy/redis.acl")).expect("a copy");
    let script = root.join("deploy/secrets.sh");
    let ran = Command::new("sh").arg(script).arg(&copy).env("PATH", &path).output().expect("sh");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let of_k8s = copy.join("k8s/components/redis/written-by-deploy-secrets.sh");
    let [env, acl, url] = [copy.join(".env"), of_k8s.join("users.acl"), of_k8s.join("jarvis.env")]
        .map(|file| std::fs::read_to_string(file).expect("a file of secrets"));
    assert!(!acl.contains("CHANGE-THIS") && acl.contains("user sentinel on >"), "{acl}");
    assert_eq!(
        acl.lines().count(),
        std::fs::read_to_string(root.join("deploy/redis.acl")).expect("a file").lines().count()
    );
    let is_password =
        |word: &&str| word.len() == 64 && word.bytes().all(|it| it.is_ascii_hexdigit());
    for (_, variable, _) in USERS {
        assert!(env.lines().any(|line| line.starts_with(&format!("{variable}="))), "{variable}");
    }
    let texts = [env, acl, url].join("\n");
    let words = texts.split(|letter: char| !letter.is_ascii_alphanumeric());
    let passwords: std::collections::BTreeSet<&str> = words.filter(is_password).collect();
    assert_eq!(passwords.len(), 8, "four users of compose, and four of Kubernetes");

    // The script by which compose's Redis gets its users.
    let compose = std::fs::read_to_string(root.join("docker-compose.yml")).expect("a file");
    let entry = compose.lines().find(|line| line.contains("entrypoint:") && line.contains(".acl"));
    let entry = entry.and_then(|line| line.split_once(": ")).expect("the entry point of Redis").1;
    let entry: Vec<String> = serde_json::from_str(entry).expect("a list");
    let users = folder.path().join("users.acl");
    let script = entry[2]
        .replace("$$", "$")
        .replace(
            "/usr/local/etc/redis/redis.acl",
            &root.join("deploy/redis.acl").display().to_string(),
        )
        .replace("/tmp/users.acl", &users.display().to_string());
    let mut started = Command::new("sh");
    started.args(["-c", &script, "redis"]).env("PATH", &path);
    started.envs(USERS.map(|(_, variable, password)| (variable, password)));
    let started = started.output().expect("sh");
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let users = std::fs::read_to_string(users).expect("users");
    for (user, variable, password) in USERS {
        assert!(users.contains(&format!("user {user} on >{password} resetkeys")), "{users}");
        // Without it compose does not start, and names the script.
        let needed = format!("{variable}: ${{{variable}:?There is no password for ");
        let line = compose.lines().find(|line| line.trim_start().starts_with(&needed));
        assert!(line.is_some_and(|line| line.ends_with("run deploy/secrets.sh}")), "{variable}");
    }

    let noted = std::fs::read_to_string(folder.path().join("arguments")).expect("arguments");
    assert!(noted.contains("/od ") && noted.contains("/redis-server --aclfile"), "{noted}");
    for password in passwords.into_iter().chain(USERS.map(|(_, _, password)| password)) {
        assert!(!noted.contains(password), "{noted}");
    }
}
