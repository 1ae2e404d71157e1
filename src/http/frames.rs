//! The control frames of a client of HTTP/2. Each costs the server work, and none costs the client more
//! than its bytes: a client that sends them without end is cut off.

use std::sync::Arc;
use std::time::Instant;

use crate::http::peer::Http2Connection;

/// Bytes of the head of a frame (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// Control frames that a client may send at once.
const BURST: f64 = 1000.0;
/// Control frames a second that a client may send for as long as it likes.
const RATE: f64 = 100.0;
/// Control frames for each piece of a response: a client announces room on the stream and on the
/// connection, and some do so for every frame that they read.
const FOR_PIECE: f64 = 4.0;

/// The frame types that carry a request or its body, and the flag that ends a body.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Counts the control frames in the bytes of a client.
pub struct FrameBudget {
    connection: Arc<Http2Connection>,
    head: [u8; HEAD],
    /// Bytes of `head` that have arrived.
    filled: usize,
    /// Bytes of the payload that have not arrived.
    payload: usize,
    /// Control frames that the client may send now.
    left: f64,
    counted: Instant,
    pieces: usize,
}

impl FrameBudget {
    /// Creates the budget of a connection whose preface was read.
    pub fn new(connection: Arc<Http2Connection>) -> Self {
        let counted = Instant::now();
        Self { connection, head: [0; HEAD], filled: 0, payload: 0, left: BURST, counted, pieces: 0 }
    }

    /// Counts the frames whose heads end in these bytes. Returns whether the client may go on.
    pub fn admits(&mut self, bytes: &[u8]) -> bool {
        self.admits_at(Instant::now(), bytes)
    }

    /// Does the same as of this moment.
    pub fn admits_at(&mut self, now: Instant, mut bytes: &[u8]) -> bool {
        self.refill(now);
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len());
                self.payload -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD {
                self.filled = 0;
                let [high, middle, low, kind, flags, ..] = self.head;
                self.payload =
                    usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                let is_empty_data = kind == DATA && self.payload == 0 && flags & END_STREAM == 0;
                if is_empty_data || !matches!(kind, DATA | HEADERS) {
                    self.left -= 1.0;
                }
            }
        }
        self.left >= 0.0
    }

    fn refill(&mut self, now: Instant) {
        let pieces = self.connection.pieces();
        let since = now.saturating_duration_since(self.counted).as_secs_f64();
        let for_pieces = FOR_PIECE * pieces.wrapping_sub(self.pieces) as f64;
        (self.counted, self.pieces) = (now, pieces);
        self.left = (self.left + RATE * since + for_pieces).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("a length").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(HEAD + payload, 0xff);
        frame
    }

    /// Returns how many of these frames are admitted at a moment.
    fn admitted(budget: &mut FrameBudget, now: Instant, frame: &[u8]) -> usize {
        (0..3000).take_while(|_| budget.admits_at(now, frame)).count()
    }

    #[test]
    fn control_frames_are_bounded_and_requests_and_bodies_are_not() {
        let connection = Arc::new(Http2Connection::default());
        let mut budget = FrameBudget::new(Arc::clone(&connection));
        let now = budget.counted;
        let harmless = [frame(HEADERS, 4, 30), frame(DATA, 0, 16_384), frame(DATA, END_STREAM, 0)];
        assert_eq!(admitted(&mut budget, now, &harmless.concat()), 3000);
        for (kind, payload) in (2..=12).map(|kind| (kind, 8)).chain([(DATA, 0)]) {
            let mut budget = FrameBudget::new(Arc::clone(&connection));
            let now = budget.counted;
            assert_eq!(admitted(&mut budget, now, &frame(kind, 0, payload)), 1000, "type {kind}");
        }
        // Also where they come byte by byte.
        let mut budget = FrameBudget::new(Arc::clone(&connection));
        let pings: Vec<u8> = frame(6, 0, 8).repeat(1001);
        let bytes = pings.chunks(1).take_while(|byte| budget.admits_at(now, byte)).count();
        assert_eq!(bytes, 1000 * (HEAD + 8) + HEAD - 1);
    }

    #[test]
    fn the_budget_comes_back_with_time_and_with_what_the_client_reads() {
        let connection = Arc::new(Http2Connection::default());
        let mut budget = FrameBudget::new(Arc::clone(&connection));
        let (now, update) = (budget.counted, frame(8, 0, 4));
        assert_eq!(admitted(&mut budget, now, &update), 1000);
        let now = now + Duration::from_secs(1);
        // The frame that was refused counts, too.
        assert_eq!(admitted(&mut budget, now, &update), 99);
        (0..100).for_each(|_| connection.count_piece());
        assert_eq!(admitted(&mut budget, now, &update), 399);
        let now = now + Duration::from_hours(1);
        assert_eq!(admitted(&mut budget, now, &update), 1000);
    }
}
