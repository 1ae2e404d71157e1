//! One `redis-server` process.

use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::resp::{Connection, Reply, ask, sign_in_at};
use crate::folder::Folder;
use crate::port::Port;
use crate::process::{Process, Program};
use crate::programs::workspace;
use crate::wait::eventually_blocking;

/// The time that a server may take to answer on a busy machine.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);
/// Starts that are tried: another program may take a port that was free a moment ago.
const STARTS: u32 = 3;
/// Time limit of a command that a test sends.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// The user of replicas, and its password.
const USER: &str = "jarvis";
const PASSWORD: &str = "Pa55-of-the-tests";
/// The user of a test's own commands where the default user is off.
const ADMIN: &str = "tests";
/// The file of Redis users that operators install, and the password in it that they replace.
const ACL_FILE: &str = "deploy/redis.acl";
const ACL_PASSWORD: &str = "CHANGE-THIS-PASSWORD";
/// The text that operators append to the passwords of Redis replicas and of sentinels, by one replacement.
const OF_REPLICAS: &str = "-OF-REPLICAS";
const OF_SENTINELS: &str = "-OF-SENTINELS";
/// The default user of tests that need more than the file gives it.
const DEFAULT_OF_TESTS: &str = "user default on nopass ~* &* +@all";

/// The users of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Users {
    /// Those of the file that operators install, but the default user may do everything.
    #[default]
    DefaultMayAll,
    /// Those of the file that operators install, and one for the commands of a test.
    Installed,
}

/// A server that is alone on its port. Its append-only file brings its data back after a restart.
#[derive(Debug)]
pub struct RedisServer {
    // The order is that of the end: first the process, then its port and its files.
    process: Process,
    port: Port,
    folder: Folder,
}

impl RedisServer {
    /// Starts a server in a temporary folder.
    ///
    /// # Panics
    /// Panics where it does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server in a temporary folder, with arguments of its own.
    ///
    /// # Panics
    /// Panics where it does not start.
    pub fn start_with(arguments: &[&str]) -> Self {
        let folder = Folder::temporary();
        let server = folder.and_then(|folder| Self::start_in(folder, "redis", arguments));
        server.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts a server in a temporary folder, with these users.
    ///
    /// # Panics
    /// Panics where it does not start.
    pub fn start_as(users: Users) -> Self {
        let server =
            Folder::temporary().and_then(|folder| Self::start_in_as(folder, "redis", &[], users));
        server.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts a server with its data and its log in `folder`.
    ///
    /// # Errors
    /// Fails where it does not start.
    pub fn start_in(folder: Folder, name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_in_as(folder, name, arguments, Users::default())
    }

    /// Starts a server with its data and its log in `folder`, and with these users.
    pub(super) fn start_in_as(
        folder: Folder,
        name: &str,
        arguments: &[&str],
        with: Users,
    ) -> anyhow::Result<Self> {
        let data = folder.path().join(name);
        std::fs::create_dir_all(&data)?;
        let data = data.display().to_string();
        let users = folder.path().join(format!("{name}.acl"));
        std::fs::write(&users, acl_of_tests(with)?)?;
        let users = users.display().to_string();
        let masterauth = format!("{PASSWORD}{OF_REPLICAS}");
        Self::run(folder, name, |port| {
            if with == Users::Installed {
                sign_in_at(port, ADMIN, PASSWORD);
            }
            let port = port.to_string();
            let own = ["--port", &port, "--dir", &data, "--bind", "127.0.0.1", "--save", ""];
            let safe = ["--appendonly", "yes", "--appendfsync", "no"];
            // As the deployments have it.
            let lazy = [
                "--lazyfree-lazy-expire",
                "yes",
                "--lazyfree-lazy-server-del",
                "yes",
                "--lazyfree-lazy-user-del",
                "yes",
            ];
            // Replicas come into sync at once, and not after five seconds.
            let replicas = [
                "--repl-diskless-sync-delay",
                "0",
                "--masteruser",
                "replica",
                "--masterauth",
                &masterauth,
            ];
            let users = ["--aclfile", &users];
            let all = own
                .iter()
                .chain(&safe)
                .chain(&lazy)
                .chain(&replicas)
                .chain(&users)
                .chain(arguments);
            Ok(all.map(ToString::to_string).collect())
        })
    }

    /// Starts a sentinel that watches the primary at this port.
    pub(super) fn start_sentinel(
        folder: Folder,
        name: &str,
        service: &str,
        primary: u16,
    ) -> anyhow::Result<Self> {
        let file = folder.path().join(format!("{name}.conf"));
        let data = folder.path().display().to_string();
        Self::run(folder, name, |port| {
            let config = format!(
                "port {port}\nbind 127.0.0.1\ndir {data}\n\
                 sentinel monitor {service} 127.0.0.1 {primary} 2\n\
                 sentinel auth-user {service} sentinel\n\
                 sentinel auth-pass {service} {PASSWORD}{OF_SENTINELS}\n\
                 sentinel down-after-milliseconds {service} 1000\n\
                 sentinel failover-timeout {service} 5000\n"
            );
            std::fs::write(&file, config)?;
            // The server is its own sentinel: no second program has to be installed.
            Ok(vec![file.display().to_string(), "--sentinel".to_owned()])
        })
    }

    fn run(
        folder: Folder,
        name: &str,
        arguments: impl Fn(u16) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<Self> {
        let mut starts = 0;
        loop {
            starts += 1;
            let port = Port::reserve()?;
            let program = Program::new(name, "redis-server", folder.path());
            let process = Process::new(program.args(arguments(port.number())?));
            process.start()?;
            match wait_until_it_answers(&process, port.number()) {
                Ok(()) => return Ok(Self { process, port, folder }),
                Err(error) if starts == STARTS => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Returns the address for jarvis, with the user that operators give it.
    pub fn url(&self) -> String {
        self.url_as(&credentials())
    }

    /// Returns the address with other credentials, as `user:password` or `:password`; without any, of the
    /// default user, which may do everything.
    pub fn url_as(&self, credentials: &str) -> String {
        let at = if credentials.is_empty() { "" } else { "@" };
        format!("redis://{credentials}{at}127.0.0.1:{}", self.port())
    }

    /// Returns the path of a file with the address for jarvis: arguments hold no password.
    ///
    /// # Panics
    /// Panics where it cannot be written.
    pub fn url_file(&self) -> String {
        let path = self.folder().join("redis-url");
        std::fs::write(&path, self.url()).unwrap_or_else(|error| panic!("{error}"));
        path.display().to_string()
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns the folder of the data and the log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the server again on its port and data, and waits until it answers.
    ///
    /// # Panics
    /// Panics where it does not come back.
    pub fn restart(&self) {
        self.try_restart().unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Starts the server again on its port and data, and waits until it answers. It keeps its
    /// former role.
    ///
    /// # Errors
    /// Fails where it does not come back.
    pub fn try_restart(&self) -> anyhow::Result<()> {
        self.process.start()?;
        wait_until_it_answers(&self.process, self.port())
    }

    /// Sends a command and returns the output of `redis-cli`.
    pub fn cli(&self, command: &[&str]) -> String {
        cli(self.port(), command)
    }

    /// Sends a command with a password and returns the output of `redis-cli`.
    pub fn cli_with_password(&self, password: &str, command: &[&str]) -> String {
        let commands: [&[&str]; 2] = [&["AUTH", password], command];
        let replies = Connection::open_with(self.port(), COMMAND_LIMIT)
            .and_then(|mut redis| redis.ask(&commands));
        replies.ok().and_then(|replies| replies.last().map(Reply::to_string)).unwrap_or_default()
    }

    /// Waits until a Redis replica has its primary's data: one that never had it cannot take over.
    ///
    /// # Panics
    /// Panics where that does not come in time.
    pub fn wait_until_in_sync(&self) {
        let in_sync = || self.cli(&["INFO", "replication"]).contains("master_link_status:up");
        assert!(eventually_blocking(START_LIMIT, in_sync), "a replica does not come into sync");
    }

    /// Copies all data, for [`Self::lose_what_came_since`].
    ///
    /// # Panics
    /// Panics where the server refuses.
    pub fn remember(&self) {
        let copy = "for _, key in ipairs(redis.call('KEYS', '*')) do \
                    redis.call('COPY', key, key, 'DB', 1, 'REPLACE') end";
        let commands: [&[&str]; 4] =
            [&["SELECT", "1"], &["FLUSHDB"], &["SELECT", "0"], &["EVAL", copy, "0"]];
        let replies = Connection::open_with(self.port(), COMMAND_LIMIT)
            .and_then(|mut redis| redis.ask(&commands))
            .unwrap_or_else(|error| panic!("{error:#}"));
        let refused = replies.iter().find(|reply| matches!(reply, Reply::Error(_)));
        assert!(refused.is_none(), "{refused:?}");
    }

    /// Acts like a failover to a server that had only the remembered data: connections break, and
    /// later writes are gone.
    pub fn lose_what_came_since(&self) {
        self.cli(&["SWAPDB", "0", "1"]);
        self.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        self.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    }
}

impl Deref for RedisServer {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// Returns the credentials of the user of replicas in a URL.
pub(super) fn credentials() -> String {
    format!("{USER}:{PASSWORD}")
}

/// Returns the file of users with the passwords of the tests.
fn acl_of_tests(users: Users) -> anyhow::Result<String> {
    let installed = std::fs::read_to_string(workspace().join(ACL_FILE)).context(ACL_FILE)?;
    let installed = installed.replace(ACL_PASSWORD, PASSWORD);
    Ok(match users {
        Users::Installed => format!("{installed}user {ADMIN} on >{PASSWORD} ~* &* +@all\n"),
        Users::DefaultMayAll => {
            let others = installed.lines().filter(|line| !line.starts_with("user default "));
            others.fold(format!("{DEFAULT_OF_TESTS}\n"), |file, line| file + line + "\n")
        }
    })
}

fn wait_until_it_answers(process: &Process, port: u16) -> anyhow::Result<()> {
    process
        .wait_until(START_LIMIT, "does not answer", || answers(port))
        .with_context(|| format!("redis-server at port {port}"))
}

fn answers(port: u16) -> bool {
    ask(port, &["PING"]).is_ok_and(|reply| reply.text() == "PONG")
}

/// Sends a command to the server at this port and returns the output of `redis-cli`; empty
/// where it does not answer.
pub fn cli(port: u16, command: &[&str]) -> String {
    let replies =
        Connection::open_with(port, COMMAND_LIMIT).and_then(|mut redis| redis.ask(&[command]));
    replies.map(|replies| replies.iter().map(ToString::to_string).collect()).unwrap_or_default()
}
