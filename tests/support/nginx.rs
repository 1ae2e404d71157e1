//! A real nginx in front of replicas, on a port of its own, gone with the test.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::process::{LIMIT, Process};
use super::redis::free_port;

/// One nginx.
pub struct Nginx {
    process: Child,
    dir: TempDir,
    /// The rules of deploy/nginx.
    pub ours: String,
    /// Nothing but what a WebSocket needs: bodies are buffered.
    pub plain: String,
}

impl Nginx {
    /// Before these replicas, which nginx takes out of use after one failure, as is its default.
    pub async fn start(replicas: &[Process]) -> Self {
        for _ in 0..5 {
            if let Some(nginx) = Self::try_start(replicas).await {
                return nginx;
            }
        }
        panic!("nginx did not start");
    }

    async fn try_start(replicas: &[Process]) -> Option<Self> {
        let dir = TempDir::new().expect("a folder");
        let [ours, plain] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let config = config(&dir, replicas, &ours, &plain);
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config).expect("nginx.conf");
        let process = Command::new("nginx")
            .env("PATH", search_path())
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&file)
            .args(["-e", "stderr", "-g", "daemon off;"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("nginx: {error}; apt-get install nginx"));
        let mut nginx = Self { process, dir, ours, plain };
        let deadline = Instant::now() + LIMIT;
        while tokio::net::TcpStream::connect(&nginx.plain).await.is_err() {
            // Somebody else got one of its ports.
            if nginx.process.try_wait().is_ok_and(|ended| ended.is_some()) {
                return None;
            }
            assert!(Instant::now() < deadline, "nginx does not listen");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Some(nginx)
    }

    /// What it counted: a line a request, its status first.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM, so that its workers end with it.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// Debian keeps it where an ordinary user does not look.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

fn config(dir: &TempDir, replicas: &[Process], ours: &str, plain: &str) -> String {
    let dir = dir.path().display();
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/nginx");
    let server =
        |replica: &Process| format!("server {};\n", replica.url.trim_start_matches("http://"));
    let servers: String = replicas.iter().map(server).collect();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
        .concat();
    // As root its workers would become "nobody", who may not enter the folder.
    let user = if std::fs::metadata("/proc/self").is_ok_and(|own| is_root(&own)) {
        "user root;\n"
    } else {
        ""
    };
    format!(
        "{user}worker_processes 1;\npid {dir}/nginx.pid;\nevents {{ worker_connections 4096; }}\n\
         http {{\nlog_format statuses '$status $upstream_status';\n\
         access_log {dir}/access.log statuses;\n{temporary}include {rules}/http.conf;\n\
         upstream replicas {{\n{servers}}}\nmap \"\" $jarvis {{ default replicas; }}\n\
         server {{ listen {ours}; include {rules}/jarvis.conf; }}\n\
         server {{ listen {plain}; location / {{\nproxy_pass http://replicas;\n\
         proxy_http_version 1.1;\nproxy_set_header Upgrade $http_upgrade;\n\
         proxy_set_header Connection $jarvis_connection;\n}} }}\n}}\n"
    )
}

fn is_root(own: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    own.uid() == 0
}
