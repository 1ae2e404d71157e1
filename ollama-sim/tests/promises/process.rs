//! The binary: how it starts, and how it ends.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that is killed with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn signal_ends_it(signal: &str) {
    let child = Command::new(env!("CARGO_BIN_EXE_ollama-sim"))
        .args(["--listen", "127.0.0.1:0", "--models", "a,b:1", "--alias", "c=a"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut process = Process(child);
    let out = process.0.stdout.take().expect("piped");
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).expect("a line");
    let url = line.trim().strip_prefix("listening on http://").expect("an address");
    let mut stream = std::net::TcpStream::connect(url).expect("listens");
    let body = r#"{"model":"c","messages":[{"role":"user","content":"[[rate=1]]"}]}"#;
    let request = format!(
        "POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sends");
    let mut some = [0; 16];
    std::io::Read::read_exact(&mut stream, &mut some).expect("streams");

    let signalled = Instant::now();
    let pid = process.0.id().to_string();
    let kill = Command::new("kill").args([signal, &pid]).status();
    assert!(kill.expect("kill").success());
    let end = loop {
        if let Some(end) = process.0.try_wait().expect("waits") {
            break end;
        }
        assert!(signalled.elapsed() < Duration::from_secs(1), "{signal} ignored");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(end.success());
}

#[tokio::test]
async fn it_prints_its_address_and_sigterm_ends_it_within_a_second_while_it_streams() {
    signal_ends_it("-TERM").await;
}

#[tokio::test]
async fn sigint_ends_it_too() {
    signal_ends_it("-INT").await;
}

#[test]
fn an_alias_of_nothing_is_an_error() {
    let run = Command::new(env!("CARGO_BIN_EXE_ollama-sim"))
        .args(["--listen", "127.0.0.1:0", "--alias", "c=nothing"])
        .output()
        .expect("runs");
    assert!(!run.status.success());
    assert!(String::from_utf8_lossy(&run.stderr).contains("c=nothing"));
}
