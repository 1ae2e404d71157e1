//! A client that reads one answer as server-sent events.

use anyhow::bail;
use serde_json::Value;

/// The state of the client.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reader {
    /// The text so far, without what was taken back.
    pub text: String,
    /// Times that text which was read was taken back.
    pub restarts: u32,
    /// Pieces that did not begin where the text ended.
    pub holes: u32,
    /// The cursor after the last event.
    pub cursor: String,
    /// The generation.
    pub generation: String,
    /// The answer of the last event; none before that.
    pub whole: Option<String>,
    data: Option<String>,
    id: Option<String>,
}

impl Reader {
    /// Applies a line of the stream, and returns whether it ended an event.
    ///
    /// # Errors
    /// Fails where the answer ends with an error.
    pub fn line(&mut self, line: &str) -> anyhow::Result<bool> {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        match name {
            "data" => self.data = Some(value.trim().to_owned()),
            "id" => self.id = Some(value.trim().to_owned()),
            // A blank line ends an event; one without it was not received.
            "" if line.is_empty() => {
                let (data, id) = (self.data.take(), self.id.take());
                let Some(data) = data else { return Ok(false) };
                self.event(&serde_json::from_str(&data)?)?;
                self.cursor = id.unwrap_or_else(|| std::mem::take(&mut self.cursor));
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    fn event(&mut self, event: &Value) -> anyhow::Result<()> {
        let text = |field: &str| event[field].as_str().unwrap_or_default();
        let number = |field: &str| event[field].as_u64().unwrap_or_default() as usize;
        if let Some(generation) = event["generation_id"].as_str() {
            generation.clone_into(&mut self.generation);
        }
        match text("type") {
            "stream_chunk" if event["done"] == false => {
                self.holes += u32::from(number("offset") != self.text.len());
                self.text.push_str(text("content"));
            }
            "stream_restart" => {
                let from = number("from").min(self.text.len());
                self.restarts += u32::from(from < self.text.len());
                self.text = String::from_utf8_lossy(&self.text.as_bytes()[..from]).into_owned();
            }
            "stream_end" => self.whole = Some(text("full_response").to_owned()),
            "error" | "cancelled" => bail!("an answer ended with {event}"),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_restarts_and_holes_are_seen_and_an_event_without_its_end_is_not() {
        let mut reader = Reader::default();
        let mut lines = |text: &str| text.split('\n').map(|line| reader.line(line)).last();
        let chunk = |offset: u32, content: &str| {
            format!(
                "id: {offset}\ndata: {{\"type\":\"stream_chunk\",\"done\":false,\
                 \"offset\":{offset},\"content\":\"{content}\",\"generation_id\":\"g\"}}\n"
            )
        };
        assert!(matches!(lines(&chunk(0, "one ")), Some(Ok(true))));
        lines(&chunk(4, "two "));
        lines("data: {\"type\":\"stream_restart\",\"from\":4}\n");
        lines(&chunk(5, "three"));
        lines(": comment");
        lines("id: 99\ndata: {\"type\":\"stream_end\",\"full_response\":\"x\"}");
        assert_eq!((reader.text.as_str(), reader.restarts, reader.holes), ("one three", 1, 1));
        assert_eq!((reader.cursor.as_str(), reader.whole.as_deref()), ("5", None));
        assert!(reader.line("").is_ok() && reader.whole.as_deref() == Some("x"));
        reader.line("data: {\"type\":\"error\"}").expect("a line");
        assert!(reader.line("").is_err());
    }
}
