//! A way to a Redis on which the reply to one call is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// A proxy before a Redis. It carries the first calls of one function to Redis, and closes the
/// connection instead of the reply. It ends with the value.
pub struct ReplyLoser {
    pub url: String,
    /// Replies that are still to be lost.
    left: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl ReplyLoser {
    /// Starts a proxy before the Redis at this URL that loses so many replies to this function.
    pub async fn start(redis_url: &str, function: &'static str, replies: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut url: reqwest::Url = redis_url.parse().expect("a URL");
        let redis = ("127.0.0.1", url.port().expect("a port"));
        url.set_port(Some(address.port())).expect("a port");
        let left = Arc::new(AtomicU32::new(replies));
        let to_lose = Arc::clone(&left);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let left = Arc::clone(&to_lose);
                tokio::spawn(async move {
                    let server = TcpStream::connect(redis).await.expect("Redis");
                    carry(client, server, function, &left).await;
                });
            }
        });
        Self { url: url.into(), left, task }
    }

    /// Returns whether the replies were lost.
    pub fn has_lost(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }
}

/// Carries one connection until it ends or a reply is to be lost.
async fn carry(mut client: TcpStream, mut server: TcpStream, function: &str, left: &AtomicU32) {
    let (mut calls, mut replies) = (Vec::new(), Vec::new());
    // The last bytes that came, because the name may come in parts.
    let mut seen = Vec::new();
    while left.load(Ordering::SeqCst) > 0 {
        tokio::select! {
            read = client.read_buf(&mut calls) => {
                if read.unwrap_or(0) == 0 || server.write_all(&calls).await.is_err() {
                    return;
                }
                seen.append(&mut calls);
                let is_it = seen.windows(function.len()).any(|part| part == function.as_bytes());
                let kept = if is_it { 0 } else { function.len() - 1 };
                seen.drain(..seen.len().saturating_sub(kept));
                let takes = |left: u32| left.checked_sub(1);
                if is_it && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, takes).is_ok() {
                    return lose_reply(client, server).await;
                }
            }
            read = server.read_buf(&mut replies) => {
                if read.unwrap_or(0) == 0 || client.write_all(&replies).await.is_err() {
                    return;
                }
                replies.clear();
            }
        }
    }
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

/// Carries the rest of a call to Redis, and ends the connection once Redis replies: then it has carried out
/// the call.
async fn lose_reply(mut client: TcpStream, mut server: TcpStream) {
    let (mut rest, mut reply) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            _ = server.read_buf(&mut reply) => return,
            read = client.read_buf(&mut rest) => {
                if read.unwrap_or(0) == 0 || server.write_all(&rest).await.is_err() {
                    return;
                }
                rest.clear();
            }
        }
    }
}

impl Drop for ReplyLoser {
    fn drop(&mut self) {
        self.task.abort();
    }
}
