//! Follows the frames of a client as their bytes pass by, and counts the bytes of the message that
//! has not arrived whole: the library keeps them, and does not show them. Pure.

/// The longest head of a frame: two bytes, the length in eight bytes, and the mask.
const LONGEST_HEAD: usize = 14;

/// The position in a client's stream of frames (RFC 6455, section 5.2).
#[derive(Default)]
pub struct FrameScanner {
    head: [u8; LONGEST_HEAD],
    /// Bytes of the current frame's head that have arrived; the head is whole while
    /// `is_in_payload`.
    head_bytes: usize,
    is_in_payload: bool,
    /// Bytes of the current frame's payload that have not arrived.
    payload_left: u64,
    /// Bytes of the current frame that have arrived.
    frame_bytes: usize,
    /// Bytes of the earlier frames of a message whose last frame has not arrived.
    message_bytes: usize,
    /// Bytes of the largest of those.
    largest_frame: usize,
    /// Bytes of the largest message that has arrived whole since they were taken.
    whole: usize,
}

impl FrameScanner {
    /// Takes the next bytes of the stream. Returns whether a message or a control frame ended with
    /// one of them, so that what is unfinished now began after it.
    pub fn feed(&mut self, mut bytes: &[u8]) -> bool {
        let mut has_ended = false;
        while !bytes.is_empty() {
            if self.is_in_payload {
                let left = usize::try_from(self.payload_left).unwrap_or(usize::MAX);
                let taken = left.min(bytes.len());
                self.payload_left -= taken as u64;
                self.frame_bytes += taken;
                bytes = &bytes[taken..];
            } else {
                self.head[self.head_bytes] = bytes[0];
                self.head_bytes += 1;
                self.frame_bytes += 1;
                bytes = &bytes[1..];
                if self.head_bytes == self.head_length() {
                    self.is_in_payload = true;
                    self.payload_left = self.payload_length();
                }
            }
            if self.is_in_payload && self.payload_left == 0 {
                has_ended |= self.end_frame();
            }
        }
        has_ended
    }

    /// Returns the bytes of the message that has not arrived whole; 0 between two messages.
    pub fn unfinished(&self) -> usize {
        self.message_bytes + self.frame_bytes
    }

    /// Returns the bytes of memory that the library holds for that message: its bytes, and the buffer
    /// in which its largest frame arrived, from which they were copied.
    pub fn held(&self) -> usize {
        self.unfinished() + self.largest_frame
    }

    /// Takes the bytes of the largest message that has arrived whole since the last call; 0 where none has.
    pub fn take_whole(&mut self) -> usize {
        std::mem::take(&mut self.whole)
    }

    fn end_frame(&mut self) -> bool {
        let (is_last, is_control) = (self.head[0] & 0x80 != 0, self.head[0] & 0x08 != 0);
        match (is_control, is_last) {
            // A control frame may stand between the frames of a message.
            (true, _) => {}
            (false, false) => {
                self.message_bytes += self.frame_bytes;
                self.largest_frame = self.largest_frame.max(self.frame_bytes);
            }
            (false, true) => {
                self.whole = self.whole.max(self.message_bytes + self.frame_bytes);
                (self.message_bytes, self.largest_frame) = (0, 0);
            }
        }
        (self.head_bytes, self.is_in_payload, self.frame_bytes) = (0, false, 0);
        self.message_bytes == 0
    }

    /// Returns the length of the head, as far as its bytes show it.
    fn head_length(&self) -> usize {
        if self.head_bytes < 2 {
            return 2;
        }
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        mask + match self.head[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    fn payload_length(&self) -> u64 {
        let length = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        match self.head[1] & 0x7f {
            126 => length(&self.head[2..4]),
            127 => length(&self.head[2..10]),
            short => short.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTINUATION: u8 = 0;
    const TEXT: u8 = 1;
    const PING: u8 = 9;

    /// Returns the bytes of a frame, as a client sends it.
    fn frame(opcode: u8, is_last: bool, payload: usize) -> Vec<u8> {
        let mut bytes = vec![opcode | u8::from(is_last) << 7];
        match payload {
            0..126 => bytes.push(0x80 | payload as u8),
            126..65_536 => {
                bytes.push(0xfe);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0xff);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![0xff; 4 + payload]);
        bytes
    }

    #[test]
    fn the_memory_of_a_message_in_fragments_counts_with_the_buffer_of_its_largest_one() {
        let mut scanner = FrameScanner::default();
        scanner.feed(&frame(TEXT, false, 1000));
        assert_eq!(scanner.held(), 2 * scanner.unfinished());
        let largest = scanner.unfinished();
        scanner.feed(&frame(CONTINUATION, false, 10));
        scanner.feed(&frame(PING, true, 10));
        assert_eq!(scanner.held(), scanner.unfinished() + largest);
        scanner.feed(&frame(CONTINUATION, true, 10));
        assert_eq!(scanner.held(), 0);
    }

    proptest! {
        #[test]
        fn whatever_the_reads_the_unfinished_bytes_are_those_since_the_last_whole_message(
            // Messages in frames of these sizes; a ping after every second frame.
            messages in prop::collection::vec(
                prop::collection::vec(
                    prop_oneof![0usize..4, 120usize..130, 65_530usize..65_540], 1..4
                ),
                1..4,
            ),
            reads in prop::collection::vec(1usize..3000, 1..20),
        ) {
            // Each byte, and how many bytes are unfinished after it where no ping is under way.
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for message in messages {
                let mut held = 0;
                for (index, size) in message.iter().enumerate() {
                    let opcode = if index == 0 { TEXT } else { CONTINUATION };
                    let is_last = index + 1 == message.len();
                    let one = frame(opcode, is_last, *size);
                    for at in 1..=one.len() {
                        let is_end = is_last && at == one.len();
                        expected.push(if is_end { 0 } else { held + at });
                    }
                    held += one.len();
                    bytes.extend(one);
                    if index % 2 == 0 && !is_last {
                        let ping = frame(PING, true, 5);
                        expected.extend((1..ping.len()).map(|at| held + at));
                        expected.push(held);
                        bytes.extend(ping);
                    }
                }
            }
            let mut scanner = FrameScanner::default();
            let (mut at, mut reads) = (0, reads.into_iter().cycle());
            while at < bytes.len() {
                let next = (at + reads.next().expect("a size")).min(bytes.len());
                let has_ended = scanner.feed(&bytes[at..next]);
                prop_assert_eq!(has_ended, expected[at..next].contains(&0));
                prop_assert_eq!(scanner.unfinished(), expected[next - 1]);
                at = next;
            }
            prop_assert_eq!(scanner.unfinished(), 0);
        }
    }
}
