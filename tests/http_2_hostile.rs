//! What a hostile client of HTTP/2 can keep or cost: frames over a real socket, with the server's memory
//! measured.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use support::client::{chat, get};
use support::eventually;
use support::frames::*;
use support::process::{LIMIT, Process};
use support::setup::{Setup, setup, setup_with_large_window};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

const ON: (&str, &str) = ("JARVIS_HTTP2", "true");
/// The identifier of the setting for the window of each stream.
const INITIAL_WINDOW: u16 = 4;
/// The identifier of the setting for the number of streams.
const MOST_STREAMS: u16 = 3;
/// The largest payload of a frame without a setting.
const FRAME: usize = 16 << 10;
const STREAMS: u32 = 16;
const BUNDLE: &str = "/docs/swagger-ui-bundle.js";

/// Returns the identifiers of as many streams as a connection may have.
fn streams() -> impl Iterator<Item = u32> {
    (0..STREAMS).map(|number| 2 * number + 1)
}

async fn impatient() -> Setup {
    setup("0", &[ON, ("JARVIS_READ_TIMEOUT", "3"), ("JARVIS_HEARTBEAT", "1")]).await
}

#[tokio::test]
async fn a_preface_where_http_2_is_off_gets_goaway_and_a_clean_end() {
    const REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0d";
    let Setup { replica, .. } = &setup("0", &[]).await;
    let address = replica.url.trim_start_matches("http://");
    let settings = frame(SETTINGS, 0, 0, &[]);
    let whole = [PREFACE, &settings, &request(1, "GET", "/health/live", false)].concat();
    for split in [0, 1, 10, 23, 24, 30] {
        let mut raw = Frames { stream: TcpStream::connect(address).await.expect("a connection") };
        raw.stream.set_nodelay(true).expect("no delay");
        raw.send(&whole[..split]).await.expect("sent");
        // The server reads the first part by itself, as from a slow network.
        tokio::time::sleep(Duration::from_millis(20)).await;
        raw.send(&whole[split..]).await.expect("sent");
        let mut received = Vec::new();
        let read = tokio::time::timeout(LIMIT, raw.stream.read_to_end(&mut received)).await;
        read.expect("an end in time").expect("an end without a reset");
        assert_eq!(received, REFUSAL, "split at {split}");
    }
    // Bytes that only begin as a preface are HTTP/1.
    for (sent, status) in [
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", ""),
        ("PRI * HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 403"),
        ("PRI /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 405"),
        ("P", ""),
    ] {
        let mut raw = Frames { stream: TcpStream::connect(address).await.expect("a connection") };
        raw.send(sent.as_bytes()).await.expect("sent");
        raw.stream.shutdown().await.expect("one direction ended");
        let mut received = String::new();
        raw.stream.read_to_string(&mut received).await.expect("an end without a reset");
        assert!(received.starts_with(status), "{sent:?}: {received:?}");
    }
}

#[tokio::test]
async fn a_client_that_completes_no_request_is_disconnected_within_the_read_timeout() {
    let Setup { replica, .. } = &impatient().await;
    let half_head = frame(HEADERS, END_STREAM, 1, &fields("GET", "/health/live", None)[..2]);
    let ping = frame(PING, 0, 0, &[7; 8]);
    let ways: [(&str, Vec<u8>, Vec<u8>); 5] = [
        ("the preface", vec![], vec![]),
        ("half a head", half_head.clone(), vec![]),
        ("half a frame", half_head[..11].to_vec(), vec![]),
        ("pings", vec![], ping.clone()),
        ("a head that trickles", half_head, frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'])),
    ];
    let clients = ways.into_iter().map(async |(what, first, again)| {
        let began = Instant::now();
        let Frames { stream } = Frames::open(replica, &[]).await;
        let (mut reading, writing) = stream.into_split();
        let trickle = tokio::spawn(async move {
            let _ = writing.try_write(&first);
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                // The client also confirms what the server sends at the end.
                let _ = writing.try_write(&again);
            }
        });
        let mut received = Vec::new();
        let end = tokio::time::timeout(LIMIT, reading.read_to_end(&mut received)).await;
        let took = began.elapsed();
        trickle.abort();
        assert!(end.is_ok(), "{what} keeps the connection");
        assert!(took < Duration::from_secs(4), "{what}: {took:?}");
    });
    join_all(clients).await;
}

#[tokio::test]
async fn a_connection_has_sixteen_streams_and_says_so() {
    let Setup { replica, .. } = &setup("1", &[ON]).await;
    let mut client = Frames::open(replica, &[]).await;
    let settings = client.next_of(SETTINGS).await.payload;
    let most = settings.chunks(6).find(|pair| pair[..2] == MOST_STREAMS.to_be_bytes());
    assert_eq!(most.map(|pair| &pair[2..]), Some(&STREAMS.to_be_bytes()[..]));
    let mut requests: Vec<u8> =
        streams().flat_map(|stream| request(stream, "POST", "/api/v1/chat/", true)).collect();
    let beyond = 2 * STREAMS + 1;
    requests.extend(request(beyond, "GET", "/health/live", false));
    client.send(&requests).await.expect("an open connection");
    let reset = client.next_of(RESET).await;
    // REFUSED_STREAM: the client may send the request again.
    assert_eq!((reset.stream, &reset.payload[..]), (beyond, &7u32.to_be_bytes()[..]));
}

/// Waits until the server neither takes nor returns memory, and returns how many KiB it holds.
async fn settled_kib(replica: &Process) -> f64 {
    let (mut last, mut same) = (0.0, 0);
    let settled = eventually(LIMIT, async || {
        let now = replica.resident_kib().expect("a figure");
        same = if now.to_bits() == f64::to_bits(last) { same + 1 } else { 0 };
        last = now;
        same == 40
    });
    assert!(settled.await, "{last} KiB and more");
    last
}

/// Returns how many KiB the server holds for each of these connections beyond what it held before.
async fn held_by<T>(replica: &Process, connections: usize, open: impl AsyncFn() -> T) -> f64 {
    // Memory that is needed once, and memory that the allocator keeps.
    drop(join_all((0..2).map(|_| open())).await);
    let before = settled_kib(replica).await;
    let held = join_all((0..connections).map(|_| open())).await;
    let mut most = 0.0f64;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(replica.resident_kib().expect("a figure"));
    }
    assert_eq!(get(replica, "/health/live").await.status, 200);
    drop(held);
    (most - before) / connections as f64
}

#[tokio::test]
async fn replies_that_are_not_read_cost_a_bounded_number_of_bytes_a_connection() {
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup_with_large_window(&[ON]).await;
    let session = Uuid::new_v4().to_string();
    let message = format!("{} [[tokens=1]]", "x".repeat(30_000));
    for _ in 0..34 {
        assert_eq!(chat(replica, &session, &message).await.status, 200);
    }
    let page = format!("/api/v1/chat/sessions/{session}?limit=500");
    // Each of its characters takes six bytes as JSON.
    let escaped = Uuid::new_v4().to_string();
    let message = format!("{} [[tokens=1]]", "\u{1}".repeat(30_000));
    for _ in 0..34 {
        assert_eq!(chat(replica, &escaped, &message).await.status, 200);
    }
    let escaped = format!("/api/v1/chat/sessions/{escaped}?limit=500");
    // 16 x 1.4 MiB, 16 x 1 MiB, and what would be 16 x 6 MiB.
    for (path, has_body, most) in [
        (&*escaped, false, 10.0 * 1024.0),
        (BUNDLE, false, 500.0),
        (&*page, false, 10.0 * 1024.0),
        // A body of one byte changes nothing.
        (&*page, true, 10.0 * 1024.0),
    ] {
        let open = async || {
            let mut client = Frames::open(replica, &[(INITIAL_WINDOW, 0)]).await;
            let one = |stream| {
                let body = has_body.then(|| frame(DATA, END_STREAM, stream, b"x"));
                [request(stream, "GET", path, has_body), body.unwrap_or_default()].concat()
            };
            let requests: Vec<u8> = streams().flat_map(one).collect();
            client.send(&requests).await.expect("an open connection");
            client
        };
        let each = held_by(replica, 8, open).await;
        println!("{path}: {each:.0} KiB a connection");
        assert!(each < most, "{path}: {each:.0} KiB a connection");
    }
}

#[tokio::test]
async fn bodies_that_do_not_end_cost_a_bounded_number_of_bytes_a_connection() {
    let Setup { replica, .. } = &setup("0", &[ON]).await;
    let open = async || {
        let mut client = Frames::open(replica, &[]).await;
        let requests: Vec<u8> =
            streams().flat_map(|stream| request(stream, "POST", "/api/v1/chat/", true)).collect();
        client.send(&requests).await.expect("an open connection");
        let piece = vec![b' '; FRAME];
        let (mut reading, writing) = client.stream.into_split();
        let mut room = [i64::from(u16::MAX); STREAMS as usize];
        let mut of_all = i64::from(u16::MAX);
        let mut sent = [0; STREAMS as usize];
        let mut writing = writing;
        // Every stream gets as much as the server makes room for, at most 500 KiB.
        let fill = async {
            loop {
                for (number, stream) in streams().enumerate() {
                    let next = i64::try_from(FRAME).expect("a small number");
                    while room[number] >= next && of_all >= next && sent[number] < 31 {
                        let bytes = frame(DATA, 0, stream, &piece);
                        let write = writing.write_all(&bytes);
                        write.await.expect("an open connection");
                        (room[number], of_all) = (room[number] - next, of_all - next);
                        sent[number] += 1;
                    }
                }
                let mut head = [0; 9];
                reading.read_exact(&mut head).await.expect("an open connection");
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; length as usize];
                reading.read_exact(&mut payload).await.expect("an open connection");
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                if head[3] == WINDOW_UPDATE {
                    let more = i64::from(u32::from_be_bytes(payload.try_into().expect("a number")));
                    match stream {
                        0 => of_all += more,
                        stream => room[(stream as usize - 1) / 2] += more,
                    }
                }
            }
        };
        // The room ends: the server waits for the ends of the bodies that it reads.
        let filled = tokio::time::timeout(Duration::from_secs(2), fill).await;
        assert!(filled.is_err());
        (reading, writing, sent.iter().sum::<usize>() * FRAME)
    };
    let (_, _, sent) = open().await;
    assert!(sent > 4 << 20, "{sent} bytes were taken");
    let each = held_by(replica, 8, open).await;
    println!("{each:.0} KiB a connection, of {sent} bytes that one sends");
    assert!(each < 8.0 * 1024.0, "{each:.0} KiB a connection");
}

/// A name, and the frames of each step.
type Flood<'a> = (&'a str, Box<dyn Fn(u32) -> Vec<u8> + 'a>);

#[tokio::test]
async fn control_frames_without_end_are_cut_off_and_the_replica_goes_on() {
    // The frames of a flood, at most.
    const MOST: u32 = 200_000;
    let Setup { replica, .. } = &setup("0", &[ON]).await;
    let live = |stream| request(stream, "GET", "/health/live", false);
    let reset = |stream| frame(RESET, 0, stream, &8u32.to_be_bytes());
    let floods: Vec<Flood> = vec![
        ("pings", Box::new(|_| frame(PING, 0, 0, &[1; 8]))),
        ("confirmed pings", Box::new(|_| frame(PING, ACK, 0, &[1; 8]))),
        ("settings", Box::new(|_| frame(SETTINGS, 0, 0, &[]))),
        ("priorities", Box::new(|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]))),
        ("unknown frames", Box::new(|_| frame(0xbe, 0, 0, &[1; 30]))),
        ("room for all streams", Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()))),
        ("resets", Box::new(|stream| [live(stream), reset(stream)].concat())),
        (
            "bodies that are reset",
            Box::new(|stream| {
                let post = request(stream, "POST", "/api/v1/chat/", true);
                [post, frame(DATA, 0, stream, &[b' '; 100]), reset(stream)].concat()
            }),
        ),
    ];
    let before = replica.resident_kib().expect("a figure");
    for (what, flood) in &floods {
        let (mut reading, mut writing) = Frames::open(replica, &[]).await.stream.into_split();
        // The server ends its direction first, and drops for a while what still comes.
        let ended = async {
            let mut dropped = vec![0; 64 << 10];
            while reading.read(&mut dropped).await.is_ok_and(|read| read > 0) {}
        };
        let mut sent = 0u32;
        let flooding = async {
            while sent <= MOST {
                let bytes: Vec<u8> =
                    (sent..sent + 100).flat_map(|number| flood(2 * number + 1)).collect();
                if writing.write_all(&bytes).await.is_err() {
                    return;
                }
                sent += 100;
            }
        };
        tokio::select! {
            () = ended => {}
            () = flooding => {}
        }
        let cut_off = sent <= MOST;
        println!("{what}: cut off after at most {sent}");
        assert!(cut_off, "{what} go on");
        assert_eq!(get(replica, "/health/live").await.status, 200, "after {what}");
    }
    let settled = eventually(LIMIT, async || {
        replica.resident_kib().expect("a figure") - before < 16.0 * 1024.0
    });
    assert!(settled.await, "{before} KiB became {:?}", replica.resident_kib());
}

#[tokio::test]
async fn a_client_that_reads_much_in_small_steps_is_not_cut_off() {
    let Setup { replica, .. } = &setup("0", &[ON]).await;
    // It announces room for every frame, on the stream and on the connection.
    let mut client = Frames::open(replica, &[]).await;
    let mut bytes = 0;
    for stream in (1..).step_by(2).take(20) {
        client.send(&request(stream, "GET", BUNDLE, false)).await.expect("an open connection");
        loop {
            let frame_of_server = client.next().await.expect("an open connection");
            if frame_of_server.kind != DATA {
                continue;
            }
            let length = frame_of_server.payload.len() as u32;
            bytes += length;
            if frame_of_server.flags & END_STREAM != 0 {
                break;
            }
            let more = length.to_be_bytes();
            let updates = [0, stream].map(|stream| frame(WINDOW_UPDATE, 0, stream, &more)).concat();
            client.send(&updates).await.expect("an open connection");
        }
    }
    assert!(bytes > 4 << 20, "{bytes}");
}
