//! Streams that end before their turn does.

use reqwest::{RequestBuilder, Response};
use serde_json::Value;

use super::client::http;
use super::process::Process;
use super::redis::RedisServer;
use super::store::user_key;

/// Begins two streams, revokes the key of the one, ends the replica under the other, and returns what
/// each has sent.
pub async fn revoked_and_drained(
    replica: &Process,
    redis: &RedisServer,
    path: &str,
    request: &Value,
) -> [String; 2] {
    let (keys, key, id) = user_key(redis, "alice").await;
    let begin = async |key: Option<&str>| -> Response {
        let ask = http().post(format!("{}{path}", replica.url)).json(request);
        let ask = key.into_iter().fold(ask, RequestBuilder::bearer_auth);
        let response = ask.send().await.expect("a response");
        assert_eq!(response.status(), 200);
        response
    };
    let (anonymous, revoked) = (begin(None).await, begin(Some(&key)).await);
    assert!(keys.revoke(&id).await.expect("a reply"));
    let revoked = revoked.text().await.expect("an orderly end");
    replica.terminate();
    [revoked, anonymous.text().await.expect("an orderly end")]
}
