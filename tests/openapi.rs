//! The description of the API is exact: schemathesis sends what it allows and what it forbids.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use support::setup::{Setup, setup};
use support::tokens::{SECRET, token};
use testkit::folder::Folder;
use testkit::programs::find;

/// How long one run may take.
const RUN_LIMIT: Duration = Duration::from_mins(5);
/// Requests of each operation, besides those that try every bound of its schema once.
const EXAMPLES: &str = "15";

/// Has schemathesis generate requests from the description, and compare every reply with it: the
/// status, the content type and the schema; what the description allows must not be refused, and
/// what it forbids must not be taken.
async fn conforms(settings: &[(&str, &str)], token: Option<&str>) {
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("2000", settings).await;
    let program = find("schemathesis").expect("schemathesis: `make test` installs it from PyPI");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
    let place = Folder::temporary().expect("a folder");
    let mut command = tokio::process::Command::new(program);
    command
        .arg("run")
        .arg(format!("{}/openapi.json", replica.url))
        .args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"])
        .args(["--max-examples", EXAMPLES, "--request-timeout", "30", "--no-shrink"])
        // It cannot speak the protocol that the description of this path upgrades to, nor write the
        // lines of a file.
        .args(["--exclude-path", "/ws", "--exclude-path", "/api/v1/chat/import"])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", OsString::from(&folder))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(place.path())
        .kill_on_drop(true);
    if let Some(token) = token {
        command.arg("--header").arg(format!("Authorization: Bearer {token}"));
    }
    let output = tokio::time::timeout(RUN_LIMIT, command.output());
    let output = output.await.expect("an end in time").expect("a program that runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    let failures = ["= ERRORS =", "= FAILURES ="].iter().filter_map(|title| printed.find(title));
    let failures = failures.min().map_or("", |at| &printed[at..]);
    assert!(output.status.success(), "{}\n{failures}", output.status);
    assert!(printed.contains("generated"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anonymous_caller_meets_nothing_that_the_openapi_document_does_not_describe() {
    conforms(&[], None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_in_caller_meets_nothing_that_the_openapi_document_does_not_describe() {
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_AUTH", "required")];
    conforms(&settings, Some(&token("alice"))).await;
}
