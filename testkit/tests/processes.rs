//! What the harness promises about the processes that it starts.
#![allow(missing_docs, reason = "tests")]

use std::time::{Duration, Instant};

use tempfile::TempDir;
use testkit::redis::{Redis, RedisKind, RedisServer};
use testkit::{Process, Program, eventually_blocking};

const LIMIT: Duration = Duration::from_secs(20);

fn shell(dir: &TempDir, script: &str) -> Process {
    Process::new(Program::new("shell", "sh", dir.path()).args(["-c", script]))
}

fn runs(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Returns the number that the script prints.
fn printed_number(process: &Process) -> u32 {
    let mut number = None;
    let _ = eventually_blocking(LIMIT, || {
        number = process.printed().trim().parse().ok();
        number.is_some()
    });
    number.expect("a number")
}

#[test]
fn a_process_with_its_own_group_leaves_no_child_behind() {
    let dir = TempDir::new().expect("a folder");
    let mut program = Program::new("parent", "sh", dir.path());
    program.own_group = true;
    let process = Process::new(program.args(["-c", "sleep 600 & echo $!; exit"]));
    process.start().expect("a start");
    let child = printed_number(&process);
    assert!(eventually_blocking(LIMIT, || process.has_ended()));
    assert!(runs(child));
    drop(process);
    assert!(eventually_blocking(LIMIT, || !runs(child)));
}

#[test]
fn a_process_that_ignores_sigterm_is_killed_after_its_time() {
    let dir = TempDir::new().expect("a folder");
    let process = shell(&dir, "trap '' TERM; echo 1; while :; do sleep 0.05; done");
    process.start().expect("a start");
    printed_number(&process);
    let start = Instant::now();
    assert!(!process.end(Duration::from_millis(300)));
    assert!(start.elapsed() < LIMIT && process.has_ended());
    assert_eq!(process.how_it_ended(), "was killed by SIGKILL");
}

#[test]
fn a_process_ends_when_the_test_panics() {
    let id = std::thread::spawn(|| {
        let dir = TempDir::new().expect("a folder");
        let process = shell(&dir, "echo the last words; exec sleep 600");
        process.start().expect("a start");
        let id = process.id().expect("an id");
        assert!(eventually_blocking(LIMIT, || !process.printed().is_empty()));
        std::panic::panic_any(id);
    });
    let id = *id.join().expect_err("a panic").downcast::<u32>().expect("an id");
    assert!(!runs(id));
}

/// The test runs itself as the owner, in a process of its own.
#[test]
fn a_process_ends_when_its_owner_is_killed_outright() {
    const ROLE: &str = "TESTKIT_OWNER";
    let dir = TempDir::new().expect("a folder");
    if std::env::var_os(ROLE).is_some() {
        let process = shell(&dir, "echo up; exec sleep 600");
        process.start().expect("a start");
        // From then on the kernel knows the signal that it is to send.
        assert!(eventually_blocking(LIMIT, || !process.printed().is_empty()));
        println!("child {}", process.id().expect("an id"));
        let _ = eventually_blocking(Duration::from_mins(1), || false);
        return;
    }
    let test = std::env::current_exe().expect("this test");
    let mut owner = Program::new("owner", test, dir.path()).env(ROLE, "1");
    owner =
        owner.args(["--exact", "a_process_ends_when_its_owner_is_killed_outright", "--nocapture"]);
    let owner = Process::new(owner);
    owner.start().expect("a start");
    let mut child = None;
    assert!(eventually_blocking(LIMIT, || {
        let printed = owner.printed();
        child = printed.lines().find_map(|line| line.split_once("child ")?.1.trim().parse().ok());
        child.is_some()
    }));
    let child = child.expect("a child");
    assert!(runs(child));
    owner.kill();
    assert!(eventually_blocking(LIMIT, || !runs(child)));
}

#[test]
fn a_process_that_died_is_reported_with_the_end_of_its_log() {
    let dir = TempDir::new().expect("a folder");
    let process = shell(&dir, "echo no such thing; exit 3");
    process.start().expect("a start");
    let error = process.wait_until(LIMIT, "does not start", || false).expect_err("an end");
    let error = error.to_string();
    assert!(
        error.contains("shell ended with code 3") && error.contains("no such thing"),
        "{error}"
    );
}

#[test]
fn a_paused_process_does_nothing_until_it_is_resumed() {
    let dir = TempDir::new().expect("a folder");
    let process = shell(&dir, "while :; do echo; sleep 0.01; done");
    process.start().expect("a start");
    assert!(eventually_blocking(LIMIT, || !process.printed().is_empty()));
    process.pause();
    let state = |state: char| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id().expect("an id")));
        stat.expect("a process").contains(&format!(") {state} "))
    };
    assert!(eventually_blocking(LIMIT, || state('T')));
    let before = process.printed().len();
    process.resume();
    assert!(eventually_blocking(LIMIT, || process.printed().len() > before));
}

#[test]
fn a_redis_keeps_its_port_and_its_data_over_a_restart() {
    let redis = RedisServer::start();
    let port = redis.port();
    assert_eq!(redis.cli(&["SET", "a", "b"]), "OK\n");
    redis.restart();
    assert_eq!((redis.port(), redis.cli(&["GET", "a"])), (port, "b\n".to_owned()));
}

#[test]
fn a_slot_moves_with_its_keys_and_a_replica_takes_over_in_good_order() {
    let dir = TempDir::new().expect("a folder");
    let redis = Redis::start(RedisKind::Cluster, dir.path()).expect("a cluster");
    let slot = redis.slot("key").expect("a slot");
    let from = redis.owner(slot).expect("an owner");
    assert_eq!(redis.node(from).expect("a node").cli(&["SET", "key", "value"]), "OK\n");
    redis.move_slot(slot, 1).expect("a move");
    let to = redis.owner(slot).expect("an owner");
    assert_ne!(from, to);
    assert_eq!(redis.node(to).expect("a node").cli(&["GET", "key"]), "value\n");
    assert!(eventually_blocking(LIMIT, || redis.is_in_sync()));
    redis.hand_over(to).expect("a replica that takes over");
    assert!(eventually_blocking(LIMIT, || redis.owner(slot).is_ok_and(|owner| owner != to)));
}
