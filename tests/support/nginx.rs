//! A real nginx in front of replicas, on a port of its own, killed with the test.

use std::path::Path;

use testkit::folder::Folder;
use testkit::{Port, Program, balancer, eventually, programs};

use super::process::{LIMIT, Process};

/// One nginx.
pub struct Nginx {
    _process: testkit::Process,
    _ports: [Port; 2],
    folder: Folder,
    /// The address with the rules of deploy/nginx.
    pub ours: String,
    /// The address with only the rules that a WebSocket needs: bodies are buffered.
    pub plain: String,
}

impl Nginx {
    /// Starts nginx in front of these replicas, each of which it takes out of use after one
    /// failure, as is its default.
    pub async fn start(replicas: &[Process]) -> Self {
        let folder = Folder::temporary().expect("a folder");
        let ports = [(); 2].map(|()| Port::reserve().expect("a port"));
        let [ours, plain] = ports.each_ref().map(|port| format!("127.0.0.1:{}", port.number()));
        let file = folder.path().join("nginx.conf");
        let config = config(folder.path(), replicas, &ours, &plain);
        std::fs::write(&file, config).expect("nginx.conf");
        let (prefix, file) = (folder.path().display().to_string(), file.display().to_string());
        let program = Program::new("nginx", "nginx", folder.path());
        let arguments = ["-p", &prefix, "-c", &file, "-e", "stderr", "-g", "daemon off;"];
        let mut program = program.args(arguments);
        // Its workers end with it.
        program.own_group = true;
        let process = testkit::Process::new(program);
        process.start().unwrap_or_else(|error| panic!("{error:#}"));
        let listens = async || tokio::net::TcpStream::connect(&plain).await.is_ok();
        assert!(eventually(LIMIT, listens).await, "nginx does not listen");
        Self { _process: process, _ports: ports, folder, ours, plain }
    }

    /// Returns its access log: a line a request, the status first.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }
}

fn config(folder: &Path, replicas: &[Process], ours: &str, plain: &str) -> String {
    let rules = programs::workspace().join("deploy/nginx");
    let (rules, log) = (rules.display(), folder.join("access.log"));
    let server =
        |replica: &Process| format!("server {};\n", replica.url.trim_start_matches("http://"));
    let servers: String = replicas.iter().map(server).collect();
    balancer::configuration(
        folder,
        &format!(
            "log_format statuses '$status $upstream_status';\naccess_log {} statuses;\n\
             include {rules}/http.conf;\nupstream replicas {{\n{servers}}}\n\
             map \"\" $jarvis {{ default replicas; }}\n\
             server {{ listen {ours}; include {rules}/jarvis.conf; }}\n\
             server {{ listen {plain}; location / {{\nproxy_pass http://replicas;\n\
             proxy_http_version 1.1;\nproxy_set_header Upgrade $http_upgrade;\n\
             proxy_set_header Connection $jarvis_connection;\n}} }}\n",
            log.display()
        ),
    )
}
