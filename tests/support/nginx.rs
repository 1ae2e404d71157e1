//! A real nginx in front of replicas, on a port of its own, killed with the test.

use std::path::{Path, PathBuf};

use testkit::folder::Folder;
use testkit::{Port, Program, balancer, eventually, programs};

use super::process::{LIMIT, Process};

/// One nginx.
pub struct Nginx {
    process: testkit::Process,
    _ports: [Port; 3],
    folder: Folder,
    /// The address with the rules of deploy/nginx.
    pub ours: String,
    /// The address with only the rules that a WebSocket needs: bodies are buffered.
    pub plain: String,
    /// The address with the rules of deploy/nginx, for clients that another proxy on this machine names.
    pub behind_a_proxy: String,
}

/// The treatment of a replica by nginx after a failure.
#[derive(Clone, Copy)]
enum Failures {
    /// One failure takes it out of use, as is the default of nginx.
    TakeOut,
    /// None does, as it is deployed.
    Forget,
}

impl Nginx {
    /// Starts nginx in front of these replicas, each of which it takes out of use after one
    /// failure, as is its default.
    pub async fn start(replicas: &[Process]) -> Self {
        Self::with(replicas, Failures::TakeOut).await
    }

    /// Starts nginx in front of these replicas with an upstream as it is deployed.
    pub async fn deployed(replicas: &[Process]) -> Self {
        Self::with(replicas, Failures::Forget).await
    }

    async fn with(replicas: &[Process], failures: Failures) -> Self {
        let folder = Folder::temporary().expect("a folder");
        let ports = [(); 3].map(|()| Port::reserve().expect("a port"));
        let [ours, plain, behind_a_proxy] =
            ports.each_ref().map(|port| format!("127.0.0.1:{}", port.number()));
        let file = folder.path().join("nginx.conf");
        let config = config(folder.path(), replicas, failures, [&ours, &plain, &behind_a_proxy]);
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
        Self { process, _ports: ports, folder, ours, plain, behind_a_proxy }
    }

    /// Returns its access log: a line a request, the status first.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }

    /// Takes away the folder in which it keeps bodies.
    pub fn leave_no_room_for_bodies(&self) {
        let place = self.folder.path().join("client_body");
        std::fs::remove_dir_all(&place).expect("the folder of bodies");
        std::fs::write(&place, "").expect("a file in its place");
    }

    /// Returns the bytes of all bodies that it keeps in files. They have no name, only descriptors.
    pub fn bytes_of_bodies(&self) -> u64 {
        let id = self.process.id().expect("nginx runs");
        let workers = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let workers = workers.expect("the workers of nginx");
        let files = workers.split_whitespace().flat_map(|worker| {
            std::fs::read_dir(format!("/proc/{worker}/fd"))
                .expect("the files of a worker")
                .flatten()
        });
        let bodies = self.folder.path().join("client_body");
        let is_body = |file: &PathBuf| {
            std::fs::read_link(file).is_ok_and(|target| target.starts_with(&bodies))
        };
        // A file may be closed meanwhile.
        let sizes =
            files.map(|file| file.path()).filter(is_body).filter_map(|file| file.metadata().ok());
        sizes.map(|metadata| metadata.len()).sum()
    }

    /// Returns its log of errors.
    pub fn errors(&self) -> String {
        self.process.printed()
    }

    /// Returns the `$request_id` of every request: the keys that it made. Only this test's
    /// configuration logs them.
    pub fn keys(&self) -> Vec<String> {
        let keys = std::fs::read_to_string(self.folder.path().join("keys.log"));
        keys.unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

fn config(
    folder: &Path,
    replicas: &[Process],
    failures: Failures,
    [ours, plain, behind_a_proxy]: [&str; 3],
) -> String {
    let rules = programs::workspace().join("deploy/nginx");
    let rules = rules.display();
    let [log, keys] = ["access.log", "keys.log"].map(|name| folder.join(name));
    let max_fails = match failures {
        Failures::TakeOut => "",
        Failures::Forget => " max_fails=0",
    };
    let server = |replica: &Process| {
        format!("server {}{max_fails};\n", replica.url.trim_start_matches("http://"))
    };
    let servers: String = replicas.iter().map(server).collect();
    balancer::configuration(
        folder,
        &format!(
            "log_format statuses '$status $upstream_status';\naccess_log {} statuses;\n\
             log_format keys '$request_id';\naccess_log {} keys;\n\
             include {rules}/http.conf;\nupstream replicas {{\n{servers}keepalive 64;\n}}\n\
             map \"\" $jarvis {{ default replicas; }}\n\
             server {{ listen {ours}; include {rules}/jarvis.conf; }}\n\
             server {{ listen {behind_a_proxy}; set_real_ip_from 127.0.0.1;\n\
             real_ip_header X-Forwarded-For; include {rules}/jarvis.conf; }}\n\
             server {{ listen {plain}; location / {{\nproxy_pass http://replicas;\n\
             proxy_http_version 1.1;\nproxy_set_header Upgrade $http_upgrade;\n\
             proxy_set_header Connection $jarvis_connection;\n}} }}\n",
            log.display(),
            keys.display(),
        ),
    )
}
