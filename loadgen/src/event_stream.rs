//! Server-sent events, read from bytes however they are cut.

/// The longest line of an event stream; the service sends no longer one.
const LONGEST_LINE: usize = 4 << 20;

/// The bytes as they come, and the lines and events once they are complete.
#[derive(Default)]
pub struct Lines {
    buffer: Vec<u8>,
    id: Option<String>,
    data: String,
}

impl Lines {
    /// Adds bytes that have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns whether the line that has begun is longer than any that the service sends.
    pub fn is_too_long(&self) -> bool {
        self.buffer.len() > LONGEST_LINE
    }

    /// Returns the id and the data of the next event.
    pub fn next_data(&mut self) -> Option<(Option<String>, String)> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            let value = |name| line.strip_prefix(name).map(|value: &str| value.trim_start());
            if let Some(data) = value("data:") {
                self.data.push_str(data);
            } else if let Some(id) = value("id:") {
                self.id = Some(id.to_owned());
            } else if line.is_empty() {
                return Some((self.id.take(), std::mem::take(&mut self.data)));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn events_are_read_however_their_bytes_are_cut() {
        let text = ": beat\n\nid: 1\ndata: {\"type\":\"a\",\"content\":\"世\"}\n\ndata:{\"type\":\"b\"}\n\n";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for part in [&text.as_bytes()[..cut], &text.as_bytes()[cut..]] {
                lines.push(part);
                while let Some((id, data)) = lines.next_data() {
                    let Ok(event) = serde_json::from_str::<Event>(&data) else { continue };
                    seen.push((id, event.kind, event.content));
                }
            }
            let first = (Some("1".to_owned()), "a".to_owned(), Some("世".to_owned()));
            assert_eq!(seen, [first, (None, "b".to_owned(), None)], "cut at {cut}");
        }
    }
}
