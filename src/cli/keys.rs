//! `jarvis key`: makes, lists and revokes API keys.

use chrono::DateTime;
use jarvis::config::KeyCommand;
use jarvis::redis::{Redis, migrations};
use jarvis::server::redis_options;
use jarvis::session::model::rfc3339;
use jarvis::sign_in::{ApiKeyStore, CreatedKey};

/// Carries out one of the commands.
///
/// # Errors
/// Where Redis cannot be used, there are too many keys, or there is no such key.
pub async fn run(command: &KeyCommand) -> anyhow::Result<()> {
    let redis = Redis::connect(&redis_options(command.redis()))?;
    migrations::apply(&redis).await?;
    let store = ApiKeyStore::new(redis);
    match command {
        KeyCommand::Create { user, .. } => match store.create(user).await? {
            CreatedKey::Key(key, id) => {
                // The key alone goes to the standard output, for scripts.
                println!("{}", key.expose());
                eprintln!("jarvis: key {id} of {user}; it cannot be shown again");
            }
            CreatedKey::Full => anyhow::bail!("there are too many keys; revoke some first"),
        },
        KeyCommand::List { .. } => {
            for key in store.list().await? {
                let used = key.last_used.map_or_else(|| "never".to_owned(), time);
                println!("{}\t{}\t{used}\t{}", key.id, time(key.created), key.user);
            }
        }
        KeyCommand::Revoke { id, .. } => {
            anyhow::ensure!(
                store.revoke(id.trim()).await?,
                "there is no such key; `jarvis key list` names them"
            );
            println!("revoked; it ends on every replica within 5 s");
        }
    }
    Ok(())
}

fn time(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0).map_or_else(String::new, |time| rfc3339(&time))
}
