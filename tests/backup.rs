//! What Redis has after a restart, and from a backup that is made and restored as docs/OPERATIONS.md
//! says.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::fs::write;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::json;
use support::client::{Socket, chat, get, history, history_until, joined, until_ok};
use support::eventually;
use support::process::{LIMIT, jarvis, ollama_sim};
use support::redis::{Connection, RedisServer, Users};
use testkit::folder::Folder;
use uuid::Uuid;

const MODEL: &str = "tinyllama:latest";

/// Makes a backup as `redis-cli --rdb` does, as the user by which Redis replicas reach a server.
fn backup(redis: &RedisServer) -> Vec<u8> {
    let mut server = TcpStream::connect(("127.0.0.1", redis.port())).expect("a connection");
    server.set_read_timeout(Some(LIMIT)).expect("a time limit");
    let sign_in = b"AUTH replica Pa55-of-the-tests-OF-REPLICAS\r\nREPLCONF rdb-only 1\r\n";
    server.write_all(sign_in).expect("commands");
    let mut reader = BufReader::new(server.try_clone().expect("another handle"));
    let mut line = || {
        let mut line = String::new();
        // While Redis writes the file it sends empty lines.
        while line.trim().is_empty() {
            line.clear();
            reader.read_line(&mut line).expect("a line");
        }
        line.trim().to_owned()
    };
    assert_eq!([line(), line()], ["+OK", "+OK"]);
    server.write_all(b"SYNC\r\n").expect("a command");
    let length = line();
    let number = length.strip_prefix('$').and_then(|number| number.parse().ok());
    let mut file = vec![0; number.unwrap_or_else(|| panic!("no length but {length}"))];
    reader.read_exact(&mut file).expect("the file");
    assert!(file.starts_with(b"REDIS"));
    file
}

/// Returns the commands of Redis that a section of docs/OPERATIONS.md has operators run, with the user
/// of each.
fn commands_of(section: &str) -> Vec<(String, Vec<String>)> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md");
    let page = std::fs::read_to_string(page).expect("a page");
    let (_, section) = page.split_once(section).unwrap_or_else(|| panic!("no {section}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let section = section.split("\n### ").next().unwrap_or_default();
    let found = section.split("redis-cli --user ").skip(1).filter_map(|rest| {
        let mut words = rest.split(['\'', '\n', '`']).next()?.split_whitespace();
        let user = words.next()?.to_owned();
        Some((user, words.map(str::to_owned).collect()))
    });
    found.collect()
}

/// Runs a command as a user of the deployments.
fn run_as(redis: &RedisServer, user: &str, command: &[String]) -> String {
    let password = format!("Pa55-of-the-tests-OF-{}", user.to_uppercase());
    let mut connection = Connection::open(redis.port()).expect("a connection");
    let sign_in = ["AUTH", user, &password].map(str::to_owned);
    let replies = connection.ask(&[&sign_in[..], command]).expect("replies");
    assert_eq!(replies[0].text(), "OK", "{user}");
    replies[1].to_string().trim().to_owned()
}

/// Restores a backup as the section says: beside the data that is there, by a server that reads no
/// append-only file and is then configured to write one.
async fn restore(redis: &RedisServer, backup: &[u8]) {
    write(redis.folder().join("redis/backup.rdb"), backup).expect("the backup");
    assert!(redis.end(LIMIT));
    let arguments = ["--appendonly", "no", "--dbfilename", "backup.rdb"];
    let folder = Folder::at(redis.folder()).expect("a folder");
    let reading = RedisServer::start_in(folder, "redis", &arguments).expect("a server");
    let commands = commands_of("\n### Restore\n");
    let [config, info] = &commands[..2] else { panic!("{commands:?}") };
    assert_eq!(run_as(&reading, &config.0, &config.1), "OK", "{config:?}");
    let is_written = eventually(LIMIT, async || {
        let info = run_as(&reading, &info.0, &info.1);
        info.contains("aof_rewrite_in_progress:0")
            && info.contains("aof_rewrite_scheduled:0")
            && info.contains("aof_last_bgrewrite_status:ok")
    });
    assert!(is_written.await, "{}", run_as(&reading, &info.0, &info.1));
    assert!(reading.end(LIMIT));
    redis.restart();
}

#[test]
fn every_command_of_redis_in_the_runbook_is_one_that_its_user_may_run() {
    let redis = RedisServer::start_as(Users::Installed);
    let sections = ["\n### JarvisRedisFull\n", "\n### Restore\n", "\n### Make a backup\n"];
    let commands: Vec<_> = sections.iter().flat_map(|section| commands_of(section)).collect();
    assert!(commands.len() >= 7, "{commands:?}");
    for (user, command) in commands {
        // The backup of the other test is made as `--rdb` does it.
        if command[0] == "--rdb" {
            assert_eq!(user, "replica");
            assert!(backup(&redis).starts_with(b"REDIS"));
            continue;
        }
        let reply = run_as(&redis, &user, &command);
        assert!(!reply.starts_with("NOPERM") && !reply.starts_with("ERR"), "{command:?}: {reply}");
    }
}

#[tokio::test]
async fn a_backup_brings_every_session_back_and_the_turn_that_ran_is_finished() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "20"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let (ended, running, later) =
        (Uuid::new_v4().to_string(), Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    assert_eq!(chat(&replica, &ended, "[[tokens=3]] before").await.status, 200);
    let before = history(&replica, &ended).await;
    let mut socket = Socket::open(&replica, &format!("/ws?session_id={running}")).await.0;
    let message = "[[tokens=60]] during";
    socket.say(&json!({"type": "chat", "message": message})).await;
    socket.until("stream_chunk").await;

    let backup = backup(&redis);

    assert_eq!(chat(&replica, &later, "[[tokens=3]] after").await.status, 200);
    replica.kill();
    restore(&redis, &backup).await;
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    assert_eq!(history(&replica, &ended).await, before);
    let messages = history_until(&replica, &running, |messages| messages.len() == 2).await;
    let answer = ollama_sim::script_answer(MODEL, message, None, 64);
    assert_eq!(messages[1]["content"], answer.as_str());
    assert_eq!(messages[1]["writers"], 2);
    // Data from after the backup is gone, and nothing of it is half there.
    let path = format!("/api/v1/chat/sessions/{later}");
    assert_eq!(get(&replica, &path).await.status, 404);
    // The session takes its next turn, and all of it survives a restart.
    let mut socket = Socket::open(&replica, &format!("/ws?session_id={running}")).await.0;
    let message = "[[tokens=3]] and on";
    socket.say(&json!({"type": "chat", "message": message})).await;
    let answer = ollama_sim::script_answer(MODEL, message, None, 64);
    assert_eq!(joined(&socket.until("stream_end").await), answer);
}

#[tokio::test]
async fn a_restart_of_redis_with_the_users_of_the_deployments_loses_nothing() {
    let redis = RedisServer::start_as(Users::Installed);
    let ollama = ollama_sim(&[]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let sessions: Vec<_> = (0..3).map(|_| Uuid::new_v4().to_string()).collect();
    let mut before = Vec::new();
    for session in &sessions {
        for message in ["[[tokens=3]] one", "[[tokens=3]] two"] {
            assert_eq!(chat(&replica, session, message).await.status, 200);
        }
        before.push(history(&replica, session).await);
    }
    replica.kill();
    assert!(redis.end(LIMIT));
    redis.restart();
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    for (session, before) in sessions.iter().zip(before) {
        assert_eq!((before.len(), history(&replica, session).await), (4, before));
    }
}
