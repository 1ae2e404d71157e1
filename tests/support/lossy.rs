//! A way to a Redis on which the reply to one call is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// A proxy before a Redis. It carries the first call of one function to Redis, and closes the
/// connection instead of the reply. It ends with the value.
pub struct ReplyLoser {
    pub url: String,
    was_lost: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl ReplyLoser {
    /// Starts a proxy before the Redis at this URL that loses the reply to this function.
    pub async fn start(redis_url: &str, function: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut url: reqwest::Url = redis_url.parse().expect("a URL");
        let redis = ("127.0.0.1", url.port().expect("a port"));
        url.set_port(Some(address.port())).expect("a port");
        let was_lost = Arc::new(AtomicBool::new(false));
        let lost = Arc::clone(&was_lost);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let lost = Arc::clone(&lost);
                tokio::spawn(async move {
                    let server = TcpStream::connect(redis).await.expect("Redis");
                    carry(client, server, function, &lost).await;
                });
            }
        });
        Self { url: url.into(), was_lost, task }
    }

    /// Returns whether the reply was lost.
    pub fn has_lost(&self) -> bool {
        self.was_lost.load(Ordering::SeqCst)
    }
}

/// Carries one connection until it ends or a reply is to be lost.
async fn carry(mut client: TcpStream, mut server: TcpStream, function: &str, lost: &AtomicBool) {
    let (mut calls, mut replies) = (Vec::new(), Vec::new());
    while !lost.load(Ordering::SeqCst) {
        tokio::select! {
            read = client.read_buf(&mut calls) => {
                if read.unwrap_or(0) == 0 || server.write_all(&calls).await.is_err() {
                    return;
                }
                let is_it = calls.windows(function.len()).any(|part| part == function.as_bytes());
                if is_it && !lost.swap(true, Ordering::SeqCst) {
                    // Redis has carried out a call when it begins to reply.
                    let _ = server.read_buf(&mut replies).await;
                    return;
                }
                calls.clear();
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

impl Drop for ReplyLoser {
    fn drop(&mut self) {
        self.task.abort();
    }
}
