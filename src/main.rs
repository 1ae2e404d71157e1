//! The binary: parses arguments, and runs a subcommand.

mod cli {
    pub mod chat;
    pub mod keys;
    pub mod sessions;
    pub mod top;
}

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use jarvis::Server;
use jarvis::config::secrets::{is_readable_by_all, may_hold_a_secret};
use jarvis::config::{
    Cli, Command, RedisSettings, SecretSettings, ServerAddress, Settings, settings_table,
};
use jarvis::redis::{Redis, migrations};
use jarvis::server::redis_options;
use jarvis::sign_in;
use jarvis::telemetry::{self, Secrets, Telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// Tokens are many small allocations on all threads, which glibc's allocator serves slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_USAGE` of sysexits.h: a setting is wrong.
const USAGE: u8 = 64;
/// Time limit of `jarvis health`.
const HEALTH_LIMIT: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> ExitCode {
    // HTTP clients need it, and telemetry creates the first one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::from_arguments(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let secrets = Secrets::new(cli.secrets());
    let outcome = match cli.command {
        Command::Serve(settings) => Box::pin(serve(&settings, &secrets)).await,
        Command::Migrate { redis } => migrate(&redis).await,
        Command::Health(server) => health(&server).await,
        Command::Chat { client, session, model, question } => {
            Box::pin(cli::chat::chat(&client, session, model, question)).await
        }
        Command::Sessions { client, limit, words } => {
            cli::sessions::list(&client, limit, &words.join(" ")).await
        }
        Command::Top { redis, interval, once } => {
            Box::pin(cli::top::top(&redis, interval, once)).await
        }
        Command::Key(command) => cli::keys::run(&command).await,
        Command::Token { user, ttl, secret } => token(&user, ttl, &secret),
        Command::Settings => {
            print!("{}", settings_table());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jarvis: {}", secrets.redact(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Prints in one line what is wrong with the arguments or the environment.
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
    let command =
        std::env::args().nth(1).filter(|name| Cli::command().find_subcommand(name).is_some());
    let command = command.map(|name| name + " ").unwrap_or_default();
    eprintln!("jarvis: {} (see jarvis {command}--help)", reason(error));
    ExitCode::from(USAGE)
}

/// Returns what is wrong, without a password that clap would quote.
fn reason(error: &clap::Error) -> String {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => name.as_str(),
        _ => "",
    };
    if let Some(source) = error.source().filter(|_| may_hold_a_secret(argument)) {
        return format!("invalid value for '{argument}': {source}");
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    // The standard library's text does not help the operator.
    let line = line.replace("invalid digit found in string", "expected a whole number");
    without_userinfo(&line)
}

/// Returns a text without a possible user name and password of a URL.
fn without_userinfo(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(from), Some(to)) if from < to => format!("{}***{}", &text[..from + 3], &text[to..]),
        _ => text.to_owned(),
    }
}

async fn serve(settings: &Settings, secrets: &Secrets) -> anyhow::Result<()> {
    let telemetry = Telemetry::start(&settings.telemetry, secrets)?;
    for path in settings.secret_files().into_iter().filter(|path| is_readable_by_all(path)) {
        let path = path.display().to_string();
        tracing::warn!(
            path,
            "every user can read a secret file; remove that permission (chmod o-r)"
        );
    }
    let metrics = if settings.telemetry.records_metrics() {
        telemetry::metrics()?
    } else {
        telemetry::no_metrics()?
    };
    let server = Server::bind(settings, metrics, telemetry.log_filter())?;
    println!("listening on http://{}", server.address());
    if let Some(address) = server.admin_address()? {
        println!("operators: http://{address}");
    }
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
    migrations::apply(&Redis::connect(&redis_options(redis))?).await?;
    println!("the Redis Functions of {} are loaded", env!("CARGO_PKG_VERSION"));
    Ok(())
}

fn token(user: &str, ttl: Duration, secret: &SecretSettings) -> anyhow::Result<()> {
    let secret = secret.secret().ok_or_else(|| {
        anyhow::anyhow!(
            "no secret to sign with; set JARVIS_JWT_SECRET or JARVIS_JWT_SECRET_FILE as for serve"
        )
    })?;
    println!("{}", sign_in::issue(secret, user, ttl)?);
    Ok(())
}

async fn health(server: &ServerAddress) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(HEALTH_LIMIT).no_proxy().build()?;
    let reply = client.get(server.reachable()?.join("/health/ready")?).send().await?;
    let (status, body) = (reply.status(), reply.text().await.unwrap_or_default());
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let detail = problem["detail"].as_str().unwrap_or_default();
    anyhow::ensure!(status.is_success(), "not ready: {status} {detail}");
    println!("ready");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_possible_password_in_a_url_is_left_out() {
        let text = "unexpected argument 'redis://:57 '#@Secret@host' found";
        assert_eq!(without_userinfo(text), "unexpected argument 'redis://***@host' found");
        assert_eq!(without_userinfo("a@b http://c"), "a@b http://c");
    }
}
