//! Frames of HTTP/2, as bytes.

/// A part of a body.
pub const DATA: u8 = 0;
/// The fields of a request.
pub const HEADERS: u8 = 1;
/// The settings of a connection.
pub const SETTINGS: u8 = 4;
/// A ping.
pub const PING: u8 = 6;
/// The flag of complete fields.
pub const END_HEADERS: u8 = 4;

/// The bytes with which a connection begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Returns a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns the fields of a request, without compression.
///
/// # Panics
/// Panics at another method than GET and POST.
pub fn fields(method: &str, path: &str, forwarded_for: Option<&str>) -> Vec<u8> {
    // Method and `:scheme http` of the static table, then literals without an index: `:authority`,
    // `:path`, and a name that is not in the table.
    let method = match method {
        "GET" => 0x82,
        "POST" => 0x83,
        other => panic!("no method: {other}"),
    };
    let mut fields = vec![method, 0x86];
    let mut literal = |name: u8, texts: &[&str]| {
        fields.push(name);
        for text in texts {
            fields.push(text.len() as u8);
            fields.extend(text.as_bytes());
        }
    };
    literal(0x01, &["127.0.0.1"]);
    literal(0x04, &[path]);
    if let Some(address) = forwarded_for {
        literal(0x00, &["x-forwarded-for", address]);
    }
    fields
}
