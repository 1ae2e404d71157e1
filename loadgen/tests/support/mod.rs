//! Runs of `loadgen` as its users run it.

use std::process::Command;

/// Runs `loadgen` with these arguments over the binaries of this workspace, and prints its report.
pub fn run(arguments: &[&str]) {
    let binaries = testkit::binaries::all().unwrap_or_else(|error| panic!("{error:#}"));
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(arguments)
        .arg("--binaries")
        .arg(binaries)
        .output()
        .expect("loadgen");
    let log = String::from_utf8_lossy(&output.stderr);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}\n{log}\n{report}");
    println!("{report}");
}
