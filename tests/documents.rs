//! Every test, file, command and link that the documents name exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The documents whose names of tests and files are checked.
const DOCUMENTS: [&str; 21] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "docs/CLIENTS.md",
    "docs/HARDENING.md",
    "docs/LIMITS.md",
    "docs/METRICS.md",
    "docs/OLLAMA.md",
    "docs/OPENAI.md",
    "docs/OPERATIONS.md",
    "docs/PAGE.md",
    "docs/PROMISES.md",
    "docs/PROOF.md",
    "docs/PROTOCOL.md",
    "docs/ROUTES.md",
    "docs/SETTINGS.md",
    "docs/SIGN_IN.md",
    "docs/TRACES.md",
    "migrations/README.md",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns every file below these folders that git would track, as a path from the root.
fn files(folders: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut rest: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = rest.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                rest.push(path);
            } else {
                found.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    found
}

/// Returns the names of all functions that are tests.
fn tests() -> BTreeSet<String> {
    let folders = ["src", "tests", "testkit", "xtask", "loadgen", "ollama-sim"];
    let mut names = BTreeSet::new();
    for path in files(&folders).iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(root().join(path)).expect("a source file");
        let mut is_test = false;
        for line in text.lines() {
            let line = line.trim_start();
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            let function = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
            if let Some(name) = function.and_then(|rest| rest.split(['(', '<']).next()) {
                if is_test {
                    names.insert(name.to_owned());
                }
                is_test = false;
            }
        }
    }
    names
}

/// Returns the texts between backticks, outside of blocks of code.
fn quoted(text: &str) -> Vec<&str> {
    let prose = text.split("\n```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

/// Returns whether a name that may be shortened by `…` at either end is one of `names`.
fn matches_one(pattern: &str, names: &BTreeSet<String>) -> bool {
    let core = pattern.trim_matches('…');
    names.iter().any(|name| {
        let begins = pattern.starts_with('…') || name.starts_with(core);
        let ends = pattern.ends_with('…') || name.ends_with(core);
        begins && ends && name.contains(core)
    })
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let names = tests();
    let mut checked = 0;
    for document in DOCUMENTS {
        let text = read(document);
        for quote in quoted(&text) {
            let is_name = quote.matches('_').count() >= 3
                && quote
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_…".contains(c))
                && !quote.starts_with("jarvis_")
                && !quote.starts_with("gen_ai_")
                && !quote.starts_with("process_")
                // A code of OpenAI's API.
                && quote != "previous_response_not_found";
            if is_name {
                checked += 1;
                assert!(matches_one(quote, &names), "{document} names a test {quote}");
            }
        }
    }
    assert!(checked > 80, "only {checked} names of tests were found");
}

#[test]
fn every_source_file_that_a_document_names_is_there() {
    let mut known =
        files(&["src", "tests", "testkit", "xtask", "loadgen", "migrations", "docs", "fuzz"]);
    known.extend(
        [
            "README.md",
            "ARCHITECTURE.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
            "build.rs",
            "deny.toml",
        ]
        .map(PathBuf::from),
    );
    let mut checked = 0;
    for document in DOCUMENTS {
        let text = read(document);
        for quote in quoted(&text) {
            let is_path = Path::new(quote).extension().is_some_and(|e| e == "rs" || e == "lua")
                && quote.bytes().all(|b| b.is_ascii_alphanumeric() || b"_/.-".contains(&b));
            if is_path {
                checked += 1;
                let named = Path::new(quote);
                assert!(
                    known.iter().any(|path| path.ends_with(named)),
                    "{document} names a file {quote}"
                );
            }
        }
    }
    assert!(checked > 40, "only {checked} names of files were found");
}

/// Returns the anchor that a renderer gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

#[test]
fn every_link_between_documents_leads_to_a_file_and_a_heading() {
    let mut checked = 0;
    for document in DOCUMENTS {
        let text = read(document);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            checked += 1;
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = root().join(document);
            let folder = folder.parent().expect("a folder");
            let file = if path.is_empty() { root().join(document) } else { folder.join(path) };
            assert!(file.exists(), "{document} links to {target}");
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&file).expect("a document");
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|line| anchor(line.trim_start_matches('#')) == heading),
                    "{document} links to {target}"
                );
            }
        }
    }
    assert!(checked > 40, "only {checked} links were found");
}

#[test]
fn every_redis_of_the_deployments_frees_large_values_in_the_background() {
    for file in ["docker-compose.yml", "k8s/components/redis/redis.yaml"] {
        // The arguments of compose are a list in one line, those of Kubernetes one a line.
        let text = read(file).replace(['"', ',', '[', ']'], " ");
        let words: Vec<&str> = text.split_whitespace().filter(|word| *word != "-").collect();
        for name in ["lazy-expire", "lazy-server-del", "lazy-user-del"] {
            let name = format!("--lazyfree-{name}");
            let at = words.iter().position(|word| *word == name);
            let value = at.and_then(|at| words.get(at + 1));
            assert_eq!(value, Some(&"yes"), "{file}: {name}");
        }
    }
}

#[test]
fn the_deployments_for_one_machine_accept_its_own_names_alone() {
    for (file, line) in [
        (
            "docker-compose.yml",
            "JARVIS_ALLOWED_HOSTS: ${JARVIS_ALLOWED_HOSTS:-localhost,127.0.0.1}",
        ),
        ("k8s/overlays/local/kustomization.yaml", "- JARVIS_ALLOWED_HOSTS=localhost,127.0.0.1"),
    ] {
        assert!(read(file).lines().any(|it| it.trim() == line), "{file} has no line {line}");
    }
}

/// Returns the rows of the table below a heading of a document, without its head.
fn rows<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
    let (_, section) = document.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    section.lines().filter(|line| line.starts_with("| ")).skip(2).collect()
}

#[test]
fn the_versions_in_the_pages_about_clients_are_those_that_the_tests_install() {
    let install = read("xtask/src/install.rs");
    let version = |registry: &str, package: &str| -> String {
        let (_, list) = install.split_once(&format!("const {registry}: ")).expect("a list");
        let list = list.split("];").next().unwrap_or_default();
        let entry = list.split_once(&format!("(\"{package}\", \""));
        let (_, rest) = entry.unwrap_or_else(|| panic!("{package} is not in {registry}"));
        rest.split('"').next().unwrap_or_default().to_owned()
    };
    let (python, node) = ("PYTHON_PACKAGES", "NODE_PACKAGES");
    let clients = [
        ("openai, Python", python, &["openai"][..]),
        ("openai, Node.js", node, &["openai"]),
        ("ollama, Python", python, &["ollama"]),
        ("ollama, JavaScript", node, &["ollama"]),
        ("LangChain", python, &["langchain-openai", "langchain-ollama"]),
        ("LiteLLM", python, &["litellm"]),
        ("Vercel's AI SDK", node, &["ai", "@ai-sdk/openai-compatible"]),
    ];
    let page = read("docs/CLIENTS.md");
    let table = rows(&page, "## Supported features");
    for (client, registry, packages) in clients {
        let row = table.iter().find(|row| row.starts_with(&format!("| [{client}]")));
        let row = row.unwrap_or_else(|| panic!("no row of {client}"));
        let wanted = packages.iter().map(|package| match packages.len() {
            1 => version(registry, package),
            _ => format!("{package} {}", version(registry, package)),
        });
        let wanted = wanted.collect::<Vec<_>>().join(", ");
        assert_eq!(row.split(" | ").nth(1), Some(&*wanted), "the version of {client}");
    }
    // The others are of no package that the tests install.
    let others = ["openai, Go", "ollama, the command", "Open WebUI", "curl"];
    assert_eq!(table.len(), clients.len() + others.len(), "a client without a known version");
    let types =
        format!("`openresponses-types` of PyPI, {}", version(python, "openresponses-types"));
    assert!(read("docs/OPENAI.md").contains(&types), "no {types}");
}

#[test]
fn every_threat_and_every_point_of_owasp_names_a_test_that_is_there() {
    let (text, names) = (read("SECURITY.md"), tests());
    for (heading, least) in
        [("## Threats", 25), ("## OWASP API Security Top 10", 10), ("## WebSockets", 10)]
    {
        let rows = rows(&text, heading);
        assert!(rows.len() >= least, "{heading} has {} rows", rows.len());
        for row in rows {
            let last = row.trim_end_matches('|').rsplit(" | ").next().unwrap_or_default();
            let is_test =
                |quote: &&str| quote.matches('_').count() >= 3 && matches_one(quote, &names);
            assert!(quoted(last).iter().any(is_test), "no test in the last cell of {row}");
        }
    }
}

#[test]
fn a_release_needs_crates_without_a_known_hole_and_every_test_run_their_sources() {
    let release = read(".github/workflows/release.yml");
    let (test, build) = release.split_once("\n  build:").expect("two jobs");
    assert!(test.contains("cargo deny --locked check advisories"), "advisories are not checked");
    assert!(build.trim_start().starts_with("needs: test"), "a build does not need the checks");
    let check = read("xtask/src/check.rs");
    assert!(check.contains(r#"["deny", "check", "bans", "licenses", "sources"]"#), "{check}");
}

#[test]
fn the_newest_notes_of_a_release_are_of_this_version_and_layout_and_say_how_to_go_back() {
    let cargo = read("Cargo.toml");
    let version = cargo.lines().find_map(|line| line.strip_prefix("version = \""));
    let version = version.and_then(|rest| rest.strip_suffix('"')).expect("a version");
    let changes = read("CHANGELOG.md");
    let newest = changes.split("\n## ").nth(1).expect("a release");
    assert_eq!(newest.lines().next(), Some(version), "the newest section is of another version");
    for part in ["Upgrade", "Rollback", "Layout"] {
        let text = newest.split_once(&format!("\n### {part}\n")).map(|(_, rest)| rest);
        let text = text.unwrap_or_else(|| panic!("{version} has no {part}"));
        let text = text.split("\n### ").next().unwrap_or_default().trim();
        assert!(text.len() > 50, "{part} of {version}: {text}");
        if part == "Layout" {
            let layout = read("src/redis/layout.rs");
            let (_, layout) = layout.split_once("LAYOUT: &str = \"").expect("a layout");
            let layout = layout.split('"').next().unwrap_or_default();
            assert!(text.contains(&format!("layout {layout}.")), "{text}");
        }
    }
    for (file, line) in [
        ("docker-compose.yml", format!("image: jarvis:{version}")),
        ("Dockerfile", format!("ARG VERSION={version}")),
        ("k8s/kustomization.yaml", format!("newTag: {version}")),
    ] {
        assert!(read(file).contains(&line), "{file} is not of {version}");
    }
}

#[test]
fn the_image_knows_its_revision_and_every_builder_may_choose_the_profile() {
    let (file, compose) = (read("Dockerfile"), read("docker-compose.yml"));
    let (_, last) = file.rsplit_once("cargo auditable build").expect("a build");
    let before = file.split("cargo auditable build").nth(1).expect("two builds");
    assert!(
        last.contains("--profile \"$PROFILE\"") && before.contains("JARVIS_REVISION=$REVISION")
    );
    assert_eq!(file.matches("--profile \"$PROFILE\"").count(), 2, "both have one profile");
    for argument in
        ["REVISION: ${JARVIS_REVISION:-unknown}", "PROFILE: ${JARVIS_BUILD_PROFILE:-dist}"]
    {
        assert!(compose.contains(argument), "{argument}");
    }
    assert!(read("deploy/upgrade.sh").contains("export JARVIS_REVISION"));
    assert!(read("xtask/src/deployment.rs").contains("jarvis_build_info"));
}
