//! Frames of HTTP/2 and of WebSockets, as bytes.

/// HTTP/2: a part of a body.
pub const DATA: u8 = 0;
/// HTTP/2: the fields of a request.
pub const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// HTTP/2: a ping.
pub const PING: u8 = 6;
/// HTTP/2: the flag of complete fields.
pub const END_HEADERS: u8 = 4;

/// WebSocket: a further part of a message.
pub const CONTINUATION: u8 = 0;
/// WebSocket: a text.
pub const TEXT: u8 = 1;
/// WebSocket: a ping.
pub const WEBSOCKET_PING: u8 = 9;

/// Returns what begins a connection of HTTP/2.
pub fn preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Returns a frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns the fields of a POST request, without compression.
pub fn fields(path: &str, forwarded_for: &str) -> Vec<u8> {
    // `:method POST` and `:scheme http` of the static table, then literals without an index:
    // `:authority`, `:path`, and a name that is not in the table.
    let mut fields = vec![0x83, 0x86];
    let literals: [(u8, &[&str]); 3] =
        [(0x01, &["127.0.0.1"]), (0x04, &[path]), (0x00, &["x-forwarded-for", forwarded_for])];
    for (name, texts) in literals {
        fields.push(name);
        for text in texts {
            fields.push(text.len() as u8);
            fields.extend(text.as_bytes());
        }
    }
    fields
}

/// Returns a frame of a WebSocket's client.
pub fn masked(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![opcode | if is_last { 0x80 } else { 0 }];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..0x1_0000 => {
            frame.push(0x80 | 0x7e);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 0x7f);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    // A mask of zeros leaves the payload as it is.
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}
