//! The store and its turns, for tests that call them without a server.

use std::time::Duration;

use jarvis::redis::{Redis, RedisOptions, migrations};
use jarvis::session::TurnSpec;
use jarvis::session::store::NewTurn;
use jarvis::sign_in::{ApiKeyStore, CreatedKey};
use jarvis::tls::TlsOptions;

use super::eventually;
use super::process::LIMIT;
use super::redis::RedisServer;
pub use super::samples::whole_answer;

/// Returns the connection settings of a Redis.
pub fn options(url: &str) -> RedisOptions {
    let command_timeout = Duration::from_secs(5);
    RedisOptions {
        url: url.to_owned(),
        command_timeout,
        acknowledgements: 0,
        tls: TlsOptions::default(),
    }
}

/// Returns a client of a Redis that has all functions.
pub async fn connect(url: &str) -> Redis {
    let redis = Redis::connect(&options(url)).expect("a client");
    migrations::apply(&redis).await.expect("migrations");
    redis
}

/// Returns the request of a turn at this model, with the least that a turn needs.
pub fn turn_spec(model: &str) -> TurnSpec {
    TurnSpec::least(model, 1000)
}

/// Returns a turn of this text at this model, with the least that a turn needs.
pub fn new_turn(model: &str, text: &str) -> NewTurn {
    NewTurn::of_text(turn_spec(model), text.to_owned())
}

/// Makes an API key of a user. Returns the keys of this Redis, the key and its identifier.
pub async fn user_key(redis: &RedisServer, user: &str) -> (ApiKeyStore, String, String) {
    let keys = ApiKeyStore::new(connect(&redis.url()).await);
    let CreatedKey::Key(key, id) = keys.create(user).await.expect("a reply") else {
        panic!("no room")
    };
    (keys, key.expose().to_owned(), id)
}

/// Repeats a call until it succeeds: a failover breaks connections.
pub async fn retried<T, E>(mut call: impl AsyncFnMut() -> Result<T, E>) -> T {
    let mut reply = None;
    let succeeded = eventually(LIMIT, async || {
        reply = call().await.ok();
        reply.is_some()
    });
    assert!(succeeded.await, "no call succeeds in time");
    reply.expect("a reply")
}
