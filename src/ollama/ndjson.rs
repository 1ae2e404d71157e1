//! Decodes newline-delimited JSON from chunks of bytes.

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::error::OllamaError;
use super::reply::{BYTE_ORDER_MARK, Done, Fragment, FragmentEnd, ReplyLine, without_bom};
use super::tolerant::Joiner;
use super::wire::Token;

/// Bytes of a line without its line break, at most.
pub const LINE_LIMIT: usize = 1 << 20;

/// The event of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The next text of the answer.
    Token(Token),
    /// The text of the host's error; not for clients.
    Failed(String),
}

/// Turns bytes into events, wherever the bytes are split.
///
/// Each byte is searched once for a line break, and copied only where a line spans chunks.
#[derive(Debug, Default)]
pub struct Decoder {
    chunk: Bytes,
    /// The beginning of a line whose end has not arrived; holds no line break.
    partial: Vec<u8>,
    /// Halves of characters that were split over lines.
    content: Joiner,
    thinking: Joiner,
    /// The end, where the last line named a reason for it without `done`.
    implied_end: Option<Done>,
}

impl Decoder {
    /// Takes the next bytes. This is cheapest once [`Decoder::next_event`] has returned every event
    /// of the last ones.
    pub fn push(&mut self, bytes: Bytes) {
        self.chunk = if self.chunk.is_empty() {
            bytes
        } else {
            [&self.chunk[..], &bytes[..]].concat().into()
        };
    }

    /// Returns the next event; `None` until more bytes have arrived. Lines without an event are
    /// skipped.
    ///
    /// # Errors
    /// [`OllamaError::Malformed`]: a line is not JSON, not an object, or longer than
    /// [`LINE_LIMIT`]. The caller does not continue then.
    pub fn next_event(&mut self) -> Result<Option<StreamEvent>, OllamaError> {
        while let Some(line) = self.next_line()? {
            if let Some(event) = self.read(&line)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Returns whether the answer has ended unless another line follows.
    pub(super) fn may_have_ended(&self) -> bool {
        self.implied_end.is_some()
    }

    /// Returns the end of a stream that stops here, where its last line named a reason for it.
    pub(super) fn take_implied_end(&mut self) -> Option<Token> {
        let done = self.implied_end.take()?;
        let mut token = Token { done: Some(done), ..Token::default() };
        self.content.end(&mut token.content);
        self.thinking.end(&mut token.thinking);
        Some(token)
    }

    /// Returns the event of the last line, where the bytes ended without a line break. Half a line,
    /// with which a cut stream ends, has no event.
    ///
    /// # Errors
    /// [`OllamaError::Malformed`]: the last line is neither an event nor the beginning of one.
    pub fn finish(&mut self) -> Result<Option<StreamEvent>, OllamaError> {
        let line = std::mem::take(&mut self.partial);
        if is_cut_off(without_bom(&line)) { Ok(None) } else { self.read(&line) }
    }

    fn next_line(&mut self) -> Result<Option<Bytes>, OllamaError> {
        let end = self.chunk.iter().position(|byte| *byte == b'\n');
        if self.partial.len() + end.unwrap_or(self.chunk.len()) > LINE_LIMIT {
            tracing::warn!(limit = LINE_LIMIT, "oversized line of a model host");
            return Err(OllamaError::Malformed);
        }
        let Some(end) = end else {
            self.partial.extend_from_slice(&self.chunk);
            self.chunk = Bytes::new();
            return Ok(None);
        };
        let rest = self.chunk.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.chunk, rest);
        line.truncate(end);
        if self.partial.is_empty() {
            return Ok(Some(line));
        }
        self.partial.extend_from_slice(&line);
        Ok(Some(std::mem::take(&mut self.partial).into()))
    }

    fn read(&mut self, line: &[u8]) -> Result<Option<StreamEvent>, OllamaError> {
        let Some(line) = parse(without_bom(line))? else { return Ok(None) };
        if let Some(text) = line.error() {
            return Ok(Some(StreamEvent::Failed(text)));
        }
        Ok(line.into_fragment().map(|fragment| StreamEvent::Token(self.token(fragment))))
    }

    fn token(&mut self, fragment: Fragment) -> Token {
        let Fragment { content, thinking, tool_calls, end } = fragment;
        let mut token = Token {
            content: self.content.join(content),
            thinking: self.thinking.join(thinking),
            tool_calls,
            done: None,
        };
        match end {
            Some(FragmentEnd::Explicit(done)) => {
                self.content.end(&mut token.content);
                self.thinking.end(&mut token.thinking);
                token.done = Some(done);
            }
            Some(FragmentEnd::Implied(done)) => self.implied_end = Some(done),
            None if token.is_empty() => {}
            None => self.implied_end = None,
        }
        token
    }
}

/// Returns whether the line is the beginning of a JSON object whose rest is missing.
fn is_cut_off(line: &[u8]) -> bool {
    let object = serde_json::from_slice::<IgnoredAny>(line);
    let is_bom = !line.is_empty() && BYTE_ORDER_MARK.starts_with(line);
    is_bom || (line.starts_with(b"{") && object.is_err_and(|error| error.is_eof()))
}

fn parse(line: &[u8]) -> Result<Option<ReplyLine>, OllamaError> {
    if line.is_empty() {
        return Ok(None);
    }
    // serde would accept an empty array as an object without fields.
    if !line.starts_with(b"{") {
        tracing::warn!(bytes = line.len(), "line of a model host is not an object");
        return Err(OllamaError::Malformed);
    }
    ReplyLine::parse(line).map(Some).map_err(|error| {
        tracing::warn!(%error, bytes = line.len(), "malformed line of a model host");
        OllamaError::Malformed
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::reply::DoneReason;
    use super::*;
    use crate::decoded;

    /// Returns all events of chunks, and whether they ended without an error.
    fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<StreamEvent>, bool) {
        let mut decoder = Decoder::default();
        let (mut events, is_whole) = decoded::decode(&mut decoder, chunks);
        if is_whole {
            events.extend(decoder.take_implied_end().map(StreamEvent::Token));
        }
        (events, is_whole)
    }

    fn token(content: &str) -> StreamEvent {
        StreamEvent::Token(Token { content: content.to_owned(), ..Token::default() })
    }

    #[test]
    fn lines_of_chat_and_generate_become_tokens_and_the_last_carries_the_end() {
        let stream = concat!(
            r#"{"model":"m","message":{"role":"assistant","content":"a"},"done":false}"#,
            "\r\n\n",
            r#"{"status":"loading"}"#,
            "\n",
            r#"{"message":{"role":"assistant","content":"","thinking":"hm"},"done":false}"#,
            "\n",
            r#"{"model":"m","response":"b","done":false}"#,
            "\n",
            r#"{"message":{"role":"assistant","content":""},"done":true,"done_reason":"length","#,
            r#""prompt_eval_count":7,"eval_count":3}"#,
            "\n",
        );
        let reasoning = StreamEvent::Token(Token { thinking: "hm".to_owned(), ..Token::default() });
        let done = Done { reason: DoneReason::Length, prompt_eval_count: 7, eval_count: 3 };
        let last = StreamEvent::Token(Token { done: Some(done), ..Token::default() });
        assert_eq!(
            decode([stream.as_bytes()]),
            (vec![token("a"), reasoning, token("b"), last], true)
        );
    }

    /// Returns the text of a stream, and its end.
    fn answer(stream: &[u8]) -> (String, Option<Done>) {
        let (mut text, mut end) = (String::new(), None);
        let (events, is_complete) = decode([stream]);
        assert!(is_complete, "{events:?}");
        for event in events {
            let StreamEvent::Token(token) = event else { panic!("{event:?}") };
            text += &token.content;
            end = token.done.or(end);
        }
        (text, end)
    }

    /// The two halves of a list in lists. Repeated, they would exhaust the stack of a recursive parser.
    const DEEP: [&[u8]; 2] = [b"[", b"]"];

    #[test]
    fn an_error_that_cannot_be_read_is_still_an_error() {
        let deep =
            [b"{\"error\":", &DEEP.map(|depth| depth.repeat(1000)).concat()[..], b"}"].concat();
        let failed = StreamEvent::Failed("an error that cannot be read".to_owned());
        assert_eq!(decode([&deep[..]]), (vec![failed], true));
    }

    #[test]
    fn odd_lines_carry_the_same_answer() {
        let done = |prompt_eval_count, eval_count| {
            Some(Done { reason: DoneReason::Stop, prompt_eval_count, eval_count })
        };
        let text = |text: &str| text.to_owned();
        for (stream, answered) in [
            // A byte order mark, line breaks of two kinds, blank lines.
            (
                &b"\xef\xbb\xbf{\"response\":\"a\"}\r\n\r\n\n \n\xef\xbb\xbf\n{\"done\":true}\r\n"[..],
                (text("a"), done(0, 0)),
            ),
            // A field that is null counts as absent.
            (
                b"{\"error\":null,\"message\":{\"content\":\"a\",\"thinking\":null},\"done\":null}\n\
                  {\"message\":{\"content\":null},\"response\":null,\"done\":false}\n{\"message\":null}\n\
                  {\"done\":true,\"done_reason\":null,\"eval_count\":null,\"prompt_eval_count\":null}\n",
                (text("a"), done(0, 0)),
            ),
            // Counts and flags of other JSON types.
            (
                b"{\"response\":\"a\",\"done\":\"false\",\"eval_count\":{\"a\":[]}}\n\
                  {\"done\":\"true\",\"done_reason\":7,\"eval_count\":\"5\",\"prompt_eval_count\":7.0}\n",
                (text("a"), done(7, 5)),
            ),
            // A field that no reader wants, or that cannot be read, costs itself alone.
            (
                &[
                    &b"{\"response\":\"a\",\"context\":"[..],
                    &DEEP.map(|depth| depth.repeat(100_000)).concat(),
                    b"}\n{\"done\":true,\"eval_count\":1e400,\"prompt_eval_count\":7}",
                ]
                .concat(),
                (text("a"), done(7, 0)),
            ),
            (
                &[
                    &b"{\"response\":\"a\",\"_debug_info\":{\"rendered_template\":"[..],
                    &DEEP.map(|depth| depth.repeat(100_000)).concat(),
                    b"}}\n{\"done\":true,\"eval_count\":",
                    &DEEP.map(|depth| depth.repeat(100_000)).concat(),
                    b",\"prompt_eval_count\":-1e999}",
                ]
                .concat(),
                (text("a"), done(0, 0)),
            ),
            (
                b"{\"message\":{\"content\":\"a\",\"\\ud800\":1},\"\\udc00\":1,\"_debug_info\":7}\n\
                  {\"done\":false,\"done\":true,\"done_reason\":1e400,\"eval_count\":2}",
                (text("a"), done(0, 2)),
            ),
            // A reason for the end, without `done`.
            (b"{\"response\":\"a\"}\n{\"done_reason\":\"stop\",\"eval_count\":1}", (text("a"), done(0, 1))),
            (b"{\"response\":\"a\",\"done\":[],\"done_reason\":\"stop\"}\n", (text("a"), done(0, 0))),
            // A reason in the middle counts as absent.
            (b"{\"response\":\"a\",\"done_reason\":\"stop\"}\n{\"response\":\"b\"}\n", (text("ab"), None)),
            // Surrogates split over lines, lone ones, and an empty error.
            (
                b"{\"response\":\"\\ud83d\"}\n{\"response\":\"\",\"thinking\":\"\\ud83d\"}\n\
                  {\"response\":\"\\ude00b\\ud83d\",\"error\":\"\"}\n{\"done\":true}\n",
                (text("😀b\u{fffd}"), done(0, 0)),
            ),
            // A character split over lines, and a byte that belongs to no character.
            (
                b"{\"response\":\"\xe4\xb8\"}\n{\"response\":\"\x96\xff\"}\n{\"done\":true}\n",
                (text("世\u{fffd}"), done(0, 0)),
            ),
        ] {
            assert_eq!(answer(stream), answered, "{}", String::from_utf8_lossy(stream));
        }
    }

    #[test]
    fn a_last_line_needs_no_line_break_and_half_a_line_has_no_event() {
        let whole = "{\"response\":\"aß\"}".as_bytes();
        assert_eq!(decode([whole]), (vec![token("aß")], true));
        for cut in 0..whole.len() {
            assert_eq!(decode([&whole[..cut]]), (vec![], true), "{cut}");
        }
        assert_eq!(decode([&b"\xef\xbb"[..]]), (vec![], true), "half a byte order mark");
    }

    #[test]
    fn a_last_line_that_is_not_the_beginning_of_an_object_is_malformed() {
        for line in ["<html><body>Bad gateway</body></html>", "upstream error", "[]", "1", "{]"] {
            assert_eq!(decode([line.as_bytes()]), (vec![], false), "{line}");
            let after = format!("{{\"response\":\"a\"}}\n{line}");
            assert_eq!(decode([after.as_bytes()]), (vec![token("a")], false), "{line}");
        }
        assert_eq!(decode([&b"{\"response\":1}"[..]]), (vec![], false));
    }

    #[test]
    fn bytes_that_are_pushed_before_the_last_were_read_are_not_lost() {
        let mut decoder = Decoder::default();
        for part in ["{\"response\":\"a\"}\n{\"resp", "onse\":\"b\"}\n"] {
            decoder.push(Bytes::from_static(part.as_bytes()));
        }
        assert_eq!(decoder.next_event(), Ok(Some(token("a"))));
        assert_eq!(decoder.next_event(), Ok(Some(token("b"))));
        assert_eq!(decoder.next_event(), Ok(None));
    }

    #[test]
    fn a_line_that_is_not_an_object_is_malformed() {
        for line in ["<html>\n", "[]\n", "1\n", "\"a\"\n", "{\"response\":1}\n", "\u{0}\n", "{\n"] {
            assert_eq!(decode([line.as_bytes()]), (vec![], false), "{line:?}");
        }
        // The nesting would exhaust the stack of a recursive parser.
        let deep = "[".repeat(500_000) + "\n";
        assert_eq!(decode([deep.as_bytes()]), (vec![], false));
    }

    #[test]
    fn a_line_is_bounded_in_any_chunks() {
        let line = |length: usize| {
            let frame = json!({"response": ""}).to_string().len();
            json!({"response": "x".repeat(length - frame)}).to_string() + "\n"
        };
        let (fits, exceeds) = (line(LINE_LIMIT), line(LINE_LIMIT + 1));
        for size in [4096, usize::MAX] {
            let chunks = |text: &str| decode(text.as_bytes().chunks(size.min(text.len()))).0.len();
            assert_eq!(chunks(&fits), 1);
            assert_eq!(chunks(&exceeds), 0);
        }
        // Bytes without a line break are refused at the bound.
        let mut decoder = Decoder::default();
        let endless = Bytes::from(vec![b' '; 64 << 10]);
        let refused = (0..1000).find(|_| {
            decoder.push(endless.clone());
            decoder.next_event().is_err()
        });
        assert_eq!(refused, Some(LINE_LIMIT / endless.len()));
    }

    /// Returns streams with every kind of character that a split could damage.
    fn stream() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            8 => "[ -~äß世👩\u{200d}👧\u{301}\"\\\\]{0,12}"
                .prop_map(|text| json!({"message": {"role": "assistant", "content": text}})),
            1 => "\\PC{0,8}".prop_map(|text| json!({"response": text, "thinking": text})),
            1 => Just(json!({"error": "runner: unexpected EOF"})),
            1 => Just(json!({"done": true, "done_reason": "stop", "eval_count": 2})),
            1 => Just(json!({"done": null, "done_reason": "stop", "eval_count": "2.0"})),
            1 => Just(json!({"message": {"content": null, "thinking": null}, "done": "no"})),
        ]
        .prop_map(|line| line.to_string());
        // A pair of surrogates over two lines, as servers send it that only write ASCII.
        let halves = "{\"response\":\"a\\ud83d\"}\n{\"response\":\"\\ude00\"}";
        let line = prop_oneof![9 => line, 1 => Just(halves.to_owned())];
        (prop::collection::vec(line, 0..20), any::<bool>())
            .prop_map(|(lines, ended)| lines.join("\n") + if ended { "\n" } else { "" })
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            stream in stream(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let bytes = stream.as_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut begin = 0;
            let chunks: Vec<_> = cuts
                .into_iter()
                .map(|cut| &bytes[std::mem::replace(&mut begin, cut)..cut])
                .collect();
            let whole = decode([bytes]);
            prop_assert!(whole.1);
            prop_assert_eq!(decode(chunks), whole.clone());
            prop_assert_eq!(decode(bytes.chunks(1)), whole);
        }

        #[test]
        fn any_damage_gives_the_same_error_at_the_same_position_in_any_split(
            stream in stream(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            size in 1_usize..50,
        ) {
            let mut bytes = stream.into_bytes();
            prop_assume!(!bytes.is_empty());
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            prop_assert_eq!(decode(bytes.chunks(size)), decode([&bytes[..]]));
        }

        #[test]
        fn ten_thousand_random_bytes_give_an_error_and_no_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 10_000),
            size in 1_usize..5_000,
        ) {
            bytes.push(b'\n');
            prop_assert_eq!(decode(bytes.chunks(size)), (vec![], false));
        }
    }
}
