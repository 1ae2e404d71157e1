//! Checks the Kubernetes files and compose's without a cluster and without an engine.

mod network;
mod resources;
mod rules;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::programs::find;

use crate::command::run;
use crate::console::say;
use crate::outcome::Outcome;
use crate::{install, paths};
use resources::Resources;

/// The oldest version of Kubernetes that is supported, and the newest whose schemas are known.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];
const SECRETS: &str = "k8s/components/redis/written-by-deploy-secrets.sh";
const TLS: &str = "k8s/components/redis-tls/written-by-deploy-redis-tls.sh";
/// The parts that are applied apart from the wholes, and deleted apart.
const GUARD: &str = "k8s/guard";
/// Reads the YAML documents of a file in the virtual environment, and the data of Secrets as text.
const AS_JSON: &str = "import base64, json, sys, yaml\n\
    documents = [d for d in yaml.safe_load_all(open(sys.argv[1])) if d]\n\
    for d in documents:\n\
    \x20   if d.get('kind') == 'Secret':\n\
    \x20       d['data'] = {k: base64.b64decode(v).decode() for k, v in d['data'].items()}\n\
    print(json.dumps(documents))";

/// Checks every whole that can be applied: `k8s` and each overlay.
///
/// # Errors
/// Fails where the checker cannot be installed, or a file cannot be read or written.
pub fn check() -> anyhow::Result<Outcome> {
    let Some(kubectl) = find("kubectl") else {
        // Nothing else renders components: say so, and do not claim that they were checked.
        let text = "NOT CHECKED: there is no kubectl here".to_owned();
        return Ok(Outcome { ok: true, text });
    };
    let python = install::python_with(&["kubernetes-validate"])?;
    let mut complaints = Vec::new();
    let root = copy()?;
    let render = |whole: &str| run(&kubectl, ["kustomize"]).arg(root.join(whole)).read();

    let (code, said) = render("k8s")?;
    if code == 0 || !said.contains("written-by-deploy-secrets.sh") {
        complaints.push("k8s: the build without secrets does not fail and name the script".into());
    }
    write_secrets(&root, &mut complaints)?;

    let known = rules::Known::read(&paths::root())?;
    let wholes = wholes(&root)?;
    let mut files = Vec::new();
    for whole in &wholes {
        let (code, rendered) = render(whole)?;
        if code != 0 {
            complaints.push(format!("{whole} cannot be rendered: {rendered}"));
            continue;
        }
        let file = root.join(format!("{}.yaml", whole.replace('/', "-")));
        fs::write(&file, rendered)?;
        let resources = Resources::new(as_json(&python, &file)?);
        let found = rules::check(&resources, &known).into_iter().chain(network::check(&resources));
        complaints.extend(found.map(|complaint| format!("{whole}: {complaint}")));
        if whole.ends_with("/local") {
            complaints.extend(rules::fits_two_cpus(&resources));
        }
        files.push(file);
    }
    let (code, rendered) = render(GUARD)?;
    if code == 0 && rendered.contains("ValidatingAdmissionPolicyBinding") {
        let file = root.join("k8s-guard.yaml");
        fs::write(&file, rendered)?;
        files.push(file);
    } else {
        complaints.push(format!("{GUARD} cannot be rendered: {rendered}"));
    }
    for version in VERSIONS {
        // It warns of every kind that it has no schema for: those are in the text of the outcome.
        let validate = ["-m", "kubernetes_validate", "--strict", "--quiet", "--no-warn", "-k"];
        if run(&python, validate).arg(version).args(&files).shown()? != 0 {
            complaints.push(format!("not every whole fits the schemas of Kubernetes {version}"));
        }
    }
    let compose = as_json(&python, &paths::root().join("docker-compose.yml"))?;
    complaints.extend(rules::compose(&compose, &known));
    for complaint in &complaints {
        say(complaint);
    }
    let [oldest, newest] = VERSIONS;
    let text = format!(
        "{} wholes against Kubernetes {oldest} and {newest} (custom resources by our own rules \
         alone), and compose",
        wholes.len()
    );
    Ok(Outcome { ok: complaints.is_empty(), text })
}

/// Copies what is rendered, without the secrets of the developer, to a folder of its own.
fn copy() -> anyhow::Result<PathBuf> {
    let to = paths::run().join("manifests");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    let listed = ["ls-files", "--cached", "--others", "--exclude-standard", "k8s", "deploy"];
    let (code, files) = run("git", listed).read()?;
    ensure!(code == 0, "git cannot list the manifests:\n{files}");
    for file in files.lines().filter(|file| paths::root().join(file).is_file()) {
        let copy = to.join(file);
        fs::create_dir_all(copy.parent().context("a file has a folder")?)?;
        fs::copy(paths::root().join(file), copy)?;
    }
    Ok(to)
}

/// Writes the secrets as an operator does, and checks that git ignores them and that a second run
/// changes nothing.
fn write_secrets(root: &Path, complaints: &mut Vec<String>) -> anyhow::Result<()> {
    let files = [
        format!("{SECRETS}/users.acl"),
        format!("{SECRETS}/jarvis.env"),
        ".env".to_owned(),
        format!("{TLS}/tls.crt"),
        format!("{TLS}/tls.key"),
        format!("{TLS}/jarvis.env"),
        "k8s/components/redis-ca/ca.crt".to_owned(),
    ];
    let mut contents: Vec<Vec<String>> = Vec::new();
    for _ in 0..2 {
        for script in ["deploy/secrets.sh", "deploy/redis-tls.sh"] {
            let (code, said) = run("sh", [root.join(script)]).arg(root).read()?;
            ensure!(code == 0, "{script} fails:\n{said}");
        }
        let read = files.iter().map(|file| fs::read_to_string(root.join(file)));
        contents.push(read.collect::<Result<_, _>>().context("the files of secrets")?);
    }
    if contents.first() != contents.last() {
        complaints.push("deploy/secrets.sh or redis-tls.sh changes secrets that exist".into());
    }
    let mut ignored = files.to_vec();
    for entry in fs::read_dir(root.join("k8s/components"))? {
        let example = entry?.path().join("jarvis.env.example");
        if example.exists() {
            let file = example.with_extension("");
            fs::copy(&example, &file)?;
            ignored.push(file.strip_prefix(root)?.display().to_string());
        }
    }
    for file in ignored {
        if !run("git", ["check-ignore", "--quiet", &file]).succeeds()? {
            complaints.push(format!("git does not ignore {file}"));
        }
    }
    Ok(())
}

/// Returns the folders that can be applied.
fn wholes(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut wholes = vec!["k8s".to_owned()];
    for entry in fs::read_dir(root.join("k8s/overlays"))? {
        wholes.push(format!("k8s/overlays/{}", entry?.file_name().to_string_lossy()));
    }
    wholes.sort();
    Ok(wholes)
}

fn as_json(python: &Path, file: &Path) -> anyhow::Result<Vec<Value>> {
    let documents = run(python, ["-c", AS_JSON]).arg(file).output();
    serde_json::from_str(&documents).with_context(|| format!("{} cannot be read", file.display()))
}
