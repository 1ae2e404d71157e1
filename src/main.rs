//! The binary: arguments, start, stop.

use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use jarvis::Server;
use jarvis::config::{Cli, Command, RedisSettings, Settings, settings_table};
use jarvis::redis::{Redis, migrations};
use jarvis::telemetry::{self, Telemetry};
use reqwest::Url;
use tokio::signal::unix::{SignalKind, signal};

/// `EX_USAGE` of sysexits.h: a setting is wrong.
const USAGE: u8 = 64;
const HEALTH_LIMIT: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let outcome = match cli.command {
        Command::Serve(settings) => Box::pin(serve(&settings)).await,
        Command::Migrate { redis } => migrate(&redis).await,
        Command::Health { url } => health(url).await,
        Command::Settings => {
            print!("{}", settings_table());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jarvis: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    // What the standard library says of it helps nobody.
    let line = line.replace("invalid digit found in string", "expected a whole number");
    let command =
        std::env::args().nth(1).filter(|name| Cli::command().find_subcommand(name).is_some());
    let command = command.map(|name| name + " ").unwrap_or_default();
    eprintln!("jarvis: {line} (see jarvis {command}--help)");
    ExitCode::from(USAGE)
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let telemetry = Telemetry::start(settings)?;
    let server = Server::bind(settings, telemetry::metrics()?)?;
    println!("listening on http://{}", server.address());
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let outcome = Box::pin(server.serve(stop)).await;
    telemetry.stop();
    outcome
}

async fn migrate(redis: &RedisSettings) -> anyhow::Result<()> {
    migrations::apply(&Redis::connect(&redis.options())?).await?;
    println!("the Redis Functions of {} are loaded", env!("CARGO_PKG_VERSION"));
    Ok(())
}

async fn health(url: Url) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(HEALTH_LIMIT).no_proxy().build()?;
    let status = client.get(url.join("/health/ready")?).send().await?.status();
    anyhow::ensure!(status.is_success(), "not ready: {status}");
    println!("ready");
    Ok(())
}
