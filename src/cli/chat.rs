//! `jarvis chat`: a chat in the terminal, over a WebSocket. A lost connection loses nothing, because
//! the client reconnects with its cursor, to any replica.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use jarvis::config::ClientSettings;
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
/// Bytes of the input that follows a question, at most: more is no valid message.
const LARGEST_INPUT: u64 = 128 << 10;
/// Lines that are typed ahead, at most.
const TYPED_AHEAD: usize = 16;

type ClientSocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Asks one question, where there is one, and else chats until an empty line, the end of the input, or
/// Ctrl-C while no answer is running.
///
/// # Errors
/// Where no server replies, a lost connection cannot be restored, or the one question has no answer.
pub async fn chat(
    settings: &ClientSettings,
    session: Option<Uuid>,
    model: Option<String>,
    question: Option<String>,
) -> anyhow::Result<()> {
    let url = settings.server.reachable()?;
    let mut client = ChatClient::open(&url, settings.token(), session, model).await?;
    let screen = &mut Screen::new();
    let outcome = match question {
        Some(question) => {
            screen.keeps_answers = !screen.terminal;
            client.answer_once(question, screen).await
        }
        None => client.converse(screen).await,
    };
    let _ = client.socket.close(None).await;
    outcome
}

/// Returns the question, followed by the input where that is not a terminal.
async fn with_input(question: String) -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        return Ok(question);
    }
    let read = || {
        let mut input = String::new();
        std::io::stdin().lock().take(LARGEST_INPUT + 1).read_to_string(&mut input).map(|_| input)
    };
    let input = tokio::task::spawn_blocking(read).await?.context("the input is no text")?;
    ensure!(
        input.len() as u64 <= LARGEST_INPUT,
        "the input is longer than {LARGEST_INPUT} bytes; send less of it"
    );
    let input = input.trim_end();
    Ok(if input.is_empty() { question } else { format!("{question}\n\n{input}") })
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
    /// The model; the server's default where there is none.
    model: Option<String>,
    cursor: String,
    socket: ClientSocket,
}

impl ChatClient {
    async fn open(
        url: &Url,
        token: Option<&Secret>,
        session: Option<Uuid>,
        model: Option<String>,
    ) -> anyhow::Result<Self> {
        let session = session.map(|session| session.to_string()).unwrap_or_default();
        let connecting = connect(url, token, &session, "", CONNECT_LIMIT);
        let (socket, session) = connecting.await.map_err(|error| {
            let wrong = if is_refused_sign_in(&error) {
                format!("{url} needs a valid token; set JARVIS_TOKEN, as jarvis token prints one")
            } else {
                format!(
                    "no server replies at {url}; start one in another terminal: jarvis serve, or \
                     make run"
                )
            };
            error.context(wrong)
        })?;
        let (url, token) = (url.clone(), token.cloned());
        Ok(Self { url, token, session, model, cursor: String::new(), socket })
    }

    /// Asks one question, and displays its answer.
    async fn answer_once(&mut self, question: String, screen: &mut Screen) -> anyhow::Result<()> {
        let question = with_input(question).await?;
        let end = self.ask(question.trim(), screen).await?;
        if screen.terminal {
            screen.note(&format!("go on with: jarvis chat --session {}\n", self.session));
        }
        match end {
            AnswerEnd::Complete => Ok(()),
            AnswerEnd::Cancelled => bail!("the answer was cancelled"),
            AnswerEnd::Failed(message) => bail!(message),
        }
    }

    /// Answers one typed line after another.
    async fn converse(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        let (url, session) = (&self.url, &self.session);
        screen.note(&format!("\n  {url}, session {session}. An empty line or Ctrl-D ends.\n\n"));
        let mut lines = typed_lines();
        loop {
            if screen.terminal {
                screen.plain(&screen.bold("> "));
            }
            let line = tokio::select! {
                line = self.next_line(&mut lines) => line?,
                _ = tokio::signal::ctrl_c() => None,
            };
            let question = line.unwrap_or_default();
            if question.trim().is_empty() {
                if screen.terminal {
                    screen.plain("\n");
                }
                return Ok(());
            }
            if let AnswerEnd::Failed(message) = self.ask(question.trim(), screen).await? {
                screen.note(&format!("\n{message}\n"));
            }
        }
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
    async fn ask(&mut self, question: &str, screen: &mut Screen) -> anyhow::Result<AnswerEnd> {
        // The server runs one turn for an identifier, however often the question is sent.
        let question = json!({"type": "chat", "message": question, "model": self.model,
            "message_id": Uuid::new_v4().to_string()});
        let mut answer = DisplayedAnswer::default();
        let mut lost = send(&mut self.socket, &question).await.err();
        loop {
            if lost.take().is_some() {
                screen.note(" [connection lost; reconnecting] ");
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
                    if let Some(end) = answer.show(&event, screen) {
                        return Ok(end);
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

/// How an answer ended.
#[derive(Debug, PartialEq, Eq)]
enum AnswerEnd {
    Complete,
    Cancelled,
    /// There is none, or not all of it; the text says why.
    Failed(String),
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
    /// Displays an event, and returns the end of the answer where it is that.
    fn show(&mut self, event: &Value, screen: &mut Screen) -> Option<AnswerEnd> {
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
            "stream_thinking" if screen.terminal => {
                self.thinking = true;
                screen.plain(&screen.dim(text("content")));
            }
            "stream_chunk" if !screen.keeps_answers => {
                if std::mem::take(&mut self.thinking) {
                    screen.plain("\n\n");
                }
                self.show_text(text("content"), number("offset").unwrap_or(self.shown), screen);
            }
            "stream_restart" if !screen.keeps_answers => {
                self.shown = number("from").unwrap_or(0);
                screen.note(" [taken back from here] ");
            }
            "stream_end" | "cancelled" => {
                // The events may have left out text.
                self.show_text(text("full_response"), 0, screen);
                let is_cancelled = text("type") == "cancelled";
                if is_cancelled {
                    screen.note(" [cancelled]");
                }
                screen.plain(if screen.terminal { "\n\n" } else { "\n" });
                return Some(if is_cancelled { AnswerEnd::Cancelled } else { AnswerEnd::Complete });
            }
            "error" => return Some(AnswerEnd::Failed(text("message").to_owned())),
            _ => {}
        }
        None
    }

    /// Displays the part of `text`, which begins at `offset`, that is not displayed yet.
    fn show_text(&mut self, text: &str, offset: usize, screen: &mut Screen) {
        if let Some(rest) = self.shown.checked_sub(offset).and_then(|shown| text.get(shown..)) {
            screen.plain(rest);
            self.shown = offset + text.len();
        }
    }
}

/// Standard output, which may be a terminal. Where it is none, it gets answers alone, and everything
/// else goes to standard error.
struct Screen {
    terminal: bool,
    /// Whether an answer is displayed at its end only, because what is taken back would stay.
    keeps_answers: bool,
    /// Whether a status is displayed that the next text replaces.
    status: bool,
}

impl Screen {
    fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { terminal, keeps_answers: false, status: false }
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

    /// Displays a text that is no part of an answer.
    fn note(&mut self, text: &str) {
        if self.terminal {
            let text = self.dim(text);
            self.plain(&text);
        } else {
            eprintln!("{}", text.trim());
        }
    }

    /// Displays a line that the next text replaces; without a terminal, a separate line.
    fn status(&mut self, text: &str) {
        self.note(text);
        self.status = self.terminal;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_displayed_once_though_a_reconnect_repeats_it() {
        let screen = &mut Screen { terminal: false, keeps_answers: false, status: false };
        let mut answer = DisplayedAnswer::default();
        let chunk = |offset: usize, content: &str| json!({"type": "stream_chunk", "content": content, "offset": offset, "done": false});
        let mut shown = |event: Value| {
            let last = answer.show(&event, screen);
            (answer.shown, last)
        };
        assert_eq!(shown(chunk(0, "one ")), (4, None));
        assert_eq!(shown(chunk(0, "one two ")), (8, None));
        assert_eq!(shown(chunk(0, "one ")), (8, None));
        // The end holds the text that a gap left out.
        assert_eq!(shown(chunk(14, "four")), (8, None));
        assert_eq!(shown(json!({"type": "stream_restart", "from": 4})), (4, None));
        let end = json!({"type": "stream_end", "full_response": "one two three four"});
        assert_eq!(shown(end), (18, Some(AnswerEnd::Complete)));
    }
}
