//! The development commands, as `make` calls them: `cargo xtask run`, `cargo xtask test`, …

mod address;
mod check;
mod clean;
mod command;
mod console;
mod deployment;
mod fuzz;
mod install;
mod manifests;
mod models;
mod outcome;
mod paths;
mod proof;
mod redis;
mod replicas;
mod seams;
mod serve;
mod services;
mod signals;
mod state;
mod verify;
mod versions;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use lexopt::{Arg, ValueExt};

use address::Address;
use command::run;
use console::{LABEL, bold, dim, red, say};
use proof::Load;
use signals::Interrupted;

/// The command line.
#[derive(Debug, PartialEq)]
struct Request {
    command: String,
    replicas: usize,
    minutes: Option<f64>,
    sessions: u32,
    seed: Option<u64>,
    redis: String,
    answers: u32,
    filter: String,
    history: bool,
}

fn main() -> ExitCode {
    match signals::install()
        .and_then(|()| parse(lexopt::Parser::from_env()))
        .and_then(|r| perform(&r))
    {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<Interrupted>() => {
            say("");
            ExitCode::from(signals::exit_code())
        }
        Err(error) => {
            let text = format!("{error:#}");
            let mut lines = text.lines();
            say(&format!("\n  {}", red(lines.next().unwrap_or_default())));
            lines.for_each(|line| say(&format!("  {line}")));
            say("");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: lexopt::Parser) -> anyhow::Result<Request> {
    let mut request = Request {
        command: String::new(),
        replicas: 3,
        minutes: None,
        sessions: 200,
        seed: None,
        redis: "sentinel".to_owned(),
        answers: 100,
        filter: String::new(),
        history: false,
    };
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Value(value) if request.command.is_empty() => request.command = value.string()?,
            Arg::Long("replicas") => request.replicas = arguments.value()?.parse()?,
            Arg::Long("minutes") => request.minutes = Some(arguments.value()?.parse()?),
            Arg::Long("sessions") => request.sessions = arguments.value()?.parse()?,
            Arg::Long("seed") => request.seed = Some(arguments.value()?.parse()?),
            Arg::Long("redis") => request.redis = arguments.value()?.string()?,
            Arg::Long("answers") => request.answers = arguments.value()?.parse()?,
            Arg::Long("filter") => request.filter = arguments.value()?.string()?,
            Arg::Long("history") => request.history = true,
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!((1..=32).contains(&request.replicas), "REPLICAS is a number from 1 to 32");
    ensure!(request.sessions >= 1, "SESSIONS is a number from 1 on");
    ensure!(
        request.minutes.is_none_or(|minutes| minutes >= 0.5),
        "MINUTES is a number from 0.5 on"
    );
    ensure!(request.answers >= 1, "ANSWERS is a number from 1 on");
    let kinds = ["sentinel", "cluster"];
    ensure!(kinds.contains(&request.redis.as_str()), "REDIS is one of {}", kinds.join(", "));
    Ok(request)
}

/// Runs the command, and returns whether it succeeded.
fn perform(request: &Request) -> anyhow::Result<bool> {
    let Request { sessions, seed, .. } = *request;
    let load = |minutes| Load { minutes: request.minutes.unwrap_or(minutes), sessions, seed };
    match request.command.as_str() {
        "" | "help" => help()?,
        "run" => serve::serve(None)?,
        "cluster" => serve::serve(Some(request.replicas))?,
        "chat" => chat()?,
        "stop" => {
            let stopped = state::stop()?;
            say(if stopped { "  Stopped." } else { "  Nothing is running from this folder." });
        }
        "test" => return check::everything(&request.filter),
        "verify" => return verify::everything(&request.filter),
        "chaos" => return proof::chaos(&request.redis, load(10.0)),
        "soak" => return proof::soak(load(30.0)),
        "roll" => return proof::roll(load(0.0)),
        "bench" => return proof::bench(),
        "attack" => return proof::attack(request.minutes.unwrap_or(0.5), seed),
        "fuzz" => {
            let minutes = request.minutes.unwrap_or(10.0);
            return fuzz::fuzz((minutes * 60.0).round() as u64);
        }
        "upgrade" => {
            let script = paths::root().join("deploy/upgrade.sh");
            return Ok(run(script, [""; 0]).shown()? == 0);
        }
        "seams" => return seams::seams(request.answers, seed),
        "clean" => clean::clean(request.history)?,
        other => bail!("there is no command {other}; `cargo xtask help` lists them"),
    }
    Ok(true)
}

/// Lists the targets with their descriptions in the Makefile.
fn help() -> anyhow::Result<()> {
    console::title("make …");
    let makefile = std::fs::read_to_string(paths::root().join("Makefile"))?;
    for line in makefile.lines() {
        if let Some((name, text)) = line.split_once("##") {
            let name = name.split(':').next().unwrap_or_default();
            say(&format!("  {}{}", bold(&format!("{name:LABEL$}")), text.trim()));
        }
    }
    say(&dim(
        "\n  Settings are environment variables: JARVIS_LISTEN, JARVIS_REDIS_URL, JARVIS_OLLAMA_URLS,\n  \
         JARVIS_DEFAULT_MODEL; the others are listed by `jarvis serve --help`.\n",
    ));
    Ok(())
}

/// Replaces this process by `jarvis chat` with the server that runs from this folder.
fn chat() -> anyhow::Result<()> {
    let jarvis = paths::release("jarvis");
    if !jarvis.exists() {
        replicas::build(&["jarvis"])?;
    }
    let listen = state::listen().map_or_else(Address::from_environment, Ok)?;
    let error = Command::new(&jarvis).args(["chat", "--url", &listen.url()]).exec();
    Err(error).with_context(|| jarvis.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_makefile_is_a_command() {
        let makefile = std::fs::read_to_string(paths::root().join("Makefile")).expect("a Makefile");
        let main = include_str!("main.rs");
        for line in makefile.lines().filter(|line| line.contains("##")) {
            let name = line.split(':').next().unwrap_or_default();
            let command = if name == "purge" { "clean" } else { name };
            assert!(main.contains(&format!("\"{command}\"")), "{name}");
            assert!(makefile.contains(&format!("\t$(DEV) {command}")), "{name}");
        }
    }

    fn parsed(arguments: &[&str]) -> anyhow::Result<Request> {
        parse(lexopt::Parser::from_args(arguments))
    }

    #[test]
    fn every_argument_of_make_is_understood_and_nonsense_is_refused() {
        let request = parsed(&["chaos", "--minutes", "0.5", "--seed", "7", "--redis", "cluster"]);
        let request = request.expect("a request");
        assert_eq!((request.command.as_str(), request.minutes), ("chaos", Some(0.5)));
        assert_eq!((request.seed, request.redis.as_str()), (Some(7), "cluster"));
        for wrong in [
            &["cluster", "--replicas", "0"][..],
            &["cluster", "--replicas", "33"],
            &["chaos", "--minutes", "0.1"],
            &["chaos", "--redis", "single"],
            &["roll", "--sessions", "0"],
            &["roll", "--seed", "x"],
            &["run", "now"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
