//! Checks the Kubernetes files without a cluster.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use testkit::programs::find;

use crate::command::run;
use crate::console::say;
use crate::outcome::Outcome;
use crate::{install, paths};

/// The version of Kubernetes.
const VERSION: &str = "1.30";
const KUSTOMIZATION: &str = "kustomization.yaml";
/// Reads YAML in the virtual environment.
const AS_JSON: &str = "import json, sys, yaml\n\
                       print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";

/// Checks every manifest against the schema, and that all of them are applied.
///
/// # Errors
/// Fails where the checker cannot be installed or a file cannot be read.
pub fn check() -> anyhow::Result<Outcome> {
    let python = install::python_with(&["kubernetes-validate"])?;
    let folder = paths::root().join("k8s");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_yaml = Path::new(&name).extension().is_some_and(|extension| extension == "yaml");
        if is_yaml && name != KUSTOMIZATION {
            names.insert(name);
        }
    }
    let validate =
        run(&python, ["-m", "kubernetes_validate", "--strict", "-k", VERSION, "--quiet"]);
    let mut ok = validate.args(names.iter().map(|name| folder.join(name))).shown()? == 0;
    ok &= all_are_applied(&python, &folder.join(KUSTOMIZATION), &names)?;
    let mut text = format!("{} manifests against Kubernetes {VERSION}", names.len());
    if let Some(kubectl) = find("kubectl") {
        ok &= run(kubectl, ["kustomize"]).arg(&folder).succeeds()?;
        text += ", rendered by kubectl";
    }
    Ok(Outcome { ok, text })
}

/// Returns whether every manifest is applied, and no missing file is.
fn all_are_applied(python: &Path, file: &Path, names: &BTreeSet<String>) -> anyhow::Result<bool> {
    let documents = run(python, ["-c", AS_JSON]).arg(file).output();
    let documents: Value = serde_json::from_str(&documents)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    let resources = documents[0]["resources"].as_array().cloned().unwrap_or_default();
    let applied: BTreeSet<String> =
        resources.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    for name in applied.symmetric_difference(names) {
        let how =
            if applied.contains(name) { "is missing" } else { "is not in kustomization.yaml" };
        say(&format!("k8s/{name} {how}"));
    }
    Ok(applied == *names)
}
