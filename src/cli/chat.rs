//! `jarvis chat`: a chat in the terminal, over a WebSocket. A lost connection loses nothing, because
//! the client reconnects with its cursor, to any replica.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use jarvis::retry::{Backoff, retry};
use jarvis::secret::Secret;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use uuid::Uuid;

/// Time limit of a handshake and the first event.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The time limit of the first attempt to reconnect, which doubles: a replica that is paused accepts
/// connections and does not answer.
const FIRST_RECONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long the client tries to reconnect.
const RECONNECT_LIMIT: Duration = Duration::from_mins(1);
/// Pauses between two attempts.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
/// Lines that are typed ahead, at most.
const TYPED_AHEAD: usize = 16;

type ClientSocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Chats until an empty line, the end of the input, or Ctrl-C while no answer is running.
///
/// # Errors
/// Where no server replies at `url`, and where a lost connection cannot be restored.
pub async fn chat(url: &Url, token: Option<&Secret>) -> anyhow::Result<()> {
    let mut client = ChatClient::open(url, token).await.map_err(|error| {
        let wrong = if is_refused_sign_in(&error) {
            format!("{url} needs a valid token; set JARVIS_TOKEN, as jarvis token prints one")
        } else {
            format!(
                "no server replies at {url}; start one in another terminal: jarvis serve, or make \
                 run"
            )
        };
        error.context(wrong)
    })?;
    let screen = &mut Screen::new();
    screen.line(&format!("\n  {url}, session {}. An empty line or Ctrl-D ends.\n", client.session));
    let mut lines = typed_lines();
    loop {
        screen.plain(&screen.bold("> "));
        let line = tokio::select! {
            line = client.next_line(&mut lines) => line?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let question = line.unwrap_or_default();
        if question.trim().is_empty() {
            screen.plain("\n");
            let _ = client.socket.close(None).await;
            return Ok(());
        }
        client.ask(question.trim(), screen).await?;
    }
}

/// Returns the typed lines. A thread reads them, so that the command ends without another line.
fn typed_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(TYPED_AHEAD);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// The client of one session.
struct ChatClient {
    url: Url,
    token: Option<Secret>,
    session: String,
    cursor: String,
    socket: ClientSocket,
}

impl ChatClient {
    async fn open(url: &Url, token: Option<&Secret>) -> anyhow::Result<Self> {
        let (socket, session) = connect(url, token, "", "", CONNECT_LIMIT).await?;
        let (url, token) = (url.clone(), token.cloned());
        Ok(Self { url, token, session, cursor: String::new(), socket })
    }

    /// Waits for a line, and keeps the connection alive meanwhile.
    async fn next_line(
        &mut self,
        lines: &mut mpsc::Receiver<String>,
    ) -> anyhow::Result<Option<String>> {
        loop {
            tokio::select! {
                line = lines.recv() => return Ok(line),
                event = next_event(&mut self.socket) => match event {
                    Ok(event) => self.remember(&event),
                    Err(_) => self.reconnect().await?,
                },
            }
        }
    }

    /// Sends a question, and displays the answer. Ctrl-C cancels the answer.
    async fn ask(&mut self, question: &str, screen: &mut Screen) -> anyhow::Result<()> {
        // The server runs one turn for an identifier, however often the question is sent.
        let question =
            json!({"type": "chat", "message": question, "message_id": Uuid::new_v4().to_string()});
        let mut answer = DisplayedAnswer::default();
        let mut lost = send(&mut self.socket, &question).await.err();
        loop {
            if let Some(error) = lost.take() {
                screen.remark(&format!("[{error}; reconnecting]"));
                self.reconnect().await?;
                if !answer.accepted {
                    lost = send(&mut self.socket, &question).await.err();
                    continue;
                }
            }
            let event = tokio::select! {
                event = next_event(&mut self.socket) => event,
                _ = tokio::signal::ctrl_c() => {
                    lost = send(&mut self.socket, &json!({"type": "cancel"})).await.err();
                    continue;
                }
            };
            match event {
                Ok(event) => {
                    self.remember(&event);
                    if answer.show(&event, screen) {
                        return Ok(());
                    }
                }
                Err(error) => lost = Some(error),
            }
        }
    }

    fn remember(&mut self, event: &Value) {
        if let Some(cursor) = event["cursor"].as_str() {
            cursor.clone_into(&mut self.cursor);
        }
    }

    async fn reconnect(&mut self) -> anyhow::Result<()> {
        let mut backoff = BACKOFF.until(Instant::now() + RECONNECT_LIMIT);
        // The server was lost just now, so the first attempt waits, too.
        let _ = backoff.pause().await;
        let mut limit = FIRST_RECONNECT_LIMIT;
        let connect = || {
            let connecting =
                connect(&self.url, self.token.as_ref(), &self.session, &self.cursor, limit);
            limit = (limit * 2).min(CONNECT_LIMIT);
            connecting
        };
        let (socket, _) = retry(backoff, connect, |error| !is_refused_sign_in(error))
            .await
            .with_context(|| format!("{} does not reply; check the server", self.url))?;
        self.socket = socket;
        Ok(())
    }
}

/// Connects within a time limit, and returns the socket and its session.
async fn connect(
    url: &Url,
    token: Option<&Secret>,
    session: &str,
    cursor: &str,
    limit: Duration,
) -> anyhow::Result<(ClientSocket, String)> {
    let mut url = url.join("/ws")?;
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    ensure!(url.set_scheme(scheme).is_ok(), "{url} is neither http:// nor https://");
    for (name, value) in [("session_id", session), ("cursor", cursor)] {
        if !value.is_empty() {
            url.query_pairs_mut().append_pair(name, value);
        }
    }
    let mut request = url.as_str().into_client_request()?;
    if let Some(token) = token {
        let bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose()))?;
        request.headers_mut().insert(AUTHORIZATION, bearer);
    }
    let connecting = async {
        let (mut socket, _) = connect_async(request).await?;
        let welcome = next_event(&mut socket).await?;
        let session = welcome["session_id"].as_str().unwrap_or_default().to_owned();
        Ok((socket, session))
    };
    timeout(limit, connecting).await.context("no reply in time")?
}

/// Returns whether the server refused the handshake for the token, or for the lack of one.
fn is_refused_sign_in(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Http(response)) if response.status() == 401)
}

async fn send(socket: &mut ClientSocket, message: &Value) -> anyhow::Result<()> {
    Ok(socket.send(Message::text(message.to_string())).await?)
}

async fn next_event(socket: &mut ClientSocket) -> anyhow::Result<Value> {
    loop {
        match socket.next().await.context("the connection is lost")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(Some(frame)) => bail!("the server closed: {}", frame.code),
            Message::Close(None) => bail!("the server closed"),
            // The library answers pings.
            _ => {}
        }
    }
}

/// The displayed part of an answer.
#[derive(Debug, Default)]
struct DisplayedAnswer {
    /// Whether the server has accepted the question.
    accepted: bool,
    /// Displayed bytes of the answer.
    shown: usize,
    /// Whether the model's reasoning is displayed, and no text of the answer yet.
    thinking: bool,
}

impl DisplayedAnswer {
    /// Displays an event, and returns whether it is the last one.
    fn show(&mut self, event: &Value, screen: &mut Screen) -> bool {
        let text = |field: &str| event[field].as_str().unwrap_or_default();
        let number = |field: &str| event[field].as_u64().and_then(|n| usize::try_from(n).ok());
        match text("type") {
            "message_received" => self.accepted = true,
            "queued" => {
                let position = number("position").unwrap_or_default();
                let eta = event["eta_seconds"].as_f64();
                let eta = eta.map(|eta| format!(", about {eta:.0} s")).unwrap_or_default();
                screen.status(&format!("waiting at position {position}{eta}"));
            }
            "stream_thinking" => {
                self.thinking = true;
                screen.plain(&screen.dim(text("content")));
            }
            "stream_chunk" => {
                if std::mem::take(&mut self.thinking) {
                    screen.plain("\n\n");
                }
                self.show_text(text("content"), number("offset").unwrap_or(self.shown), screen);
            }
            "stream_restart" => {
                self.shown = number("from").unwrap_or(0);
                screen.remark("[taken back from here]");
            }
            "stream_end" | "cancelled" => {
                // The events may have left out text.
                self.show_text(text("full_response"), 0, screen);
                screen.plain(if text("type") == "cancelled" { " [cancelled]\n\n" } else { "\n\n" });
                return true;
            }
            "error" => {
                screen.line(&format!("\n{}\n", text("message")));
                return true;
            }
            _ => {}
        }
        false
    }

    /// Displays the part of `text`, which begins at `offset`, that is not displayed yet.
    fn show_text(&mut self, text: &str, offset: usize, screen: &mut Screen) {
        if let Some(rest) = self.shown.checked_sub(offset).and_then(|shown| text.get(shown..)) {
            screen.plain(rest);
            self.shown = offset + text.len();
        }
    }
}

/// Standard output, which may be a terminal.
struct Screen {
    terminal: bool,
    /// Whether a status is displayed that the next text replaces.
    status: bool,
}

impl Screen {
    fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), status: false }
    }

    fn styled(&self, code: u8, text: &str) -> String {
        if self.terminal { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(&self, text: &str) -> String {
        self.styled(1, text)
    }

    fn dim(&self, text: &str) -> String {
        self.styled(2, text)
    }

    fn plain(&mut self, text: &str) {
        let clear = if std::mem::take(&mut self.status) { "\r\x1b[K" } else { "" };
        let mut out = std::io::stdout().lock();
        // Output that cannot be written has no reader.
        let _ = write!(out, "{clear}{text}").and_then(|()| out.flush());
    }

    fn line(&mut self, text: &str) {
        let text = self.dim(text);
        self.plain(&format!("{text}\n"));
    }

    /// Displays a remark within the answer.
    fn remark(&mut self, text: &str) {
        let text = self.dim(&format!(" {text} "));
        self.plain(&text);
    }

    /// Displays a line that the next text replaces; without a terminal, a separate line.
    fn status(&mut self, text: &str) {
        if self.terminal {
            let text = self.dim(text);
            self.plain(&text);
            self.status = true;
        } else {
            self.line(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_displayed_once_though_a_reconnect_repeats_it() {
        let screen = &mut Screen { terminal: false, status: false };
        let mut answer = DisplayedAnswer::default();
        let chunk = |offset: usize, content: &str| json!({"type": "stream_chunk", "content": content, "offset": offset, "done": false});
        let mut shown = |event: Value| {
            let last = answer.show(&event, screen);
            (answer.shown, last)
        };
        assert_eq!(shown(chunk(0, "one ")), (4, false));
        assert_eq!(shown(chunk(0, "one two ")), (8, false));
        assert_eq!(shown(chunk(0, "one ")), (8, false));
        // The end holds the text that a gap left out.
        assert_eq!(shown(chunk(14, "four")), (8, false));
        assert_eq!(shown(json!({"type": "stream_restart", "from": 4})), (4, false));
        let end = json!({"type": "stream_end", "full_response": "one two three four"});
        assert_eq!(shown(end), (18, true));
    }
}
