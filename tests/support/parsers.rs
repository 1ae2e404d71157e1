//! The properties of each parser of what others send, for any bytes. The fuzz targets assert the same.
#![allow(dead_code, missing_docs, reason = "each target uses a part of it")]

#[path = "decoded.rs"]
mod decoded;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderMap, HeaderValue};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use decoded::decode;
use jarvis::api::native::import_lines::ImportLine;
use jarvis::api::native::input::ChatRequest;
use jarvis::api::native::wire::{self, ClientMessage, parse_client_message};
use jarvis::api::ollama::Shape;
use jarvis::api::ollama::fields::RawJsonObject;
use jarvis::api::ollama::request::{AskedModel, Task};
use jarvis::api::openai::embeddings::Embedding;
use jarvis::api::openai::request::ChatCompletion;
use jarvis::api::openai::{ConversationRequest, ResponseRequest};
use jarvis::config::IssuerOptions;
use jarvis::http::extract::caller::{ClientAddress, TrustedProxies};
use jarvis::http::extract::object::Object;
use jarvis::http::frames::FrameBudget;
use jarvis::ollama::Decoder;
use jarvis::secret::Secret;
use jarvis::session::{Cursor, Role, User};
use jarvis::sign_in::{Issuer, LEEWAY, LocalKey};
use ring::hmac;

/// A secret of tokens that is used nowhere else.
const SECRET: &str = "the secret of the parsers' tests, known to all";

/// Any bytes, split anywhere, decode as they do in one piece.
pub fn ndjson(bytes: &[u8], chunk: usize) {
    let in_pieces = decode(&mut Decoder::default(), bytes.chunks(chunk.max(1)));
    assert_eq!(in_pieces, decode(&mut Decoder::default(), [bytes]));
}

fn check_request(request: &ChatRequest) {
    let length = request.message.chars().count();
    assert!((1..=32_768).contains(&length) && !request.message.trim().is_empty());
    assert!((0.0..=2.0).contains(&request.temperature));
    assert!(request.max_tokens >= 1 && request.stop.len() <= 4);
    assert!(request.system.as_ref().is_none_or(|system| system.chars().count() <= 32_768));
    assert_eq!(request.digest("m").len(), 64);
}

/// Any bytes are the body of a chat request within its bounds, or errors that name their fields.
pub fn chat_body(bytes: &[u8]) {
    let Ok(object) = Object::parse(bytes) else { return };
    match ChatRequest::from_body(&object, bytes) {
        Ok(request) => check_request(&request),
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(error.loc.len() >= 2 && !error.msg.is_empty() && !error.kind.is_empty());
            }
        }
    }
}

/// Any bytes are a request for a completion within its bounds, or an error that names its parameter.
pub fn completion_body(bytes: &[u8]) {
    let Ok(object) = Object::parse(bytes) else { return };
    match ChatCompletion::read(&object, bytes) {
        Ok(request) => {
            let ChatCompletion { spec, messages, .. } = &request;
            assert!(spec.temperature.is_none_or(|it| (0.0..=2.0).contains(&it)));
            assert!(spec.max_tokens >= 1 && spec.stop.len() <= 4);
            assert!(messages.question.role != Role::Assistant && messages.before.len() < 1000);
            for rule in [&spec.rules.format, &spec.rules.tools].into_iter().flatten() {
                assert!(
                    serde_json::from_str::<serde_json::Value>(rule).is_ok()
                        && rule.len() <= 128 << 10
                );
            }
            assert_eq!(request.digest().len(), 64);
        }
        Err(error) => {
            assert!(error.loc.len() == 2 && !error.msg.is_empty() && !error.kind.is_empty());
        }
    }
}

/// Any bytes are a request for a response within its bounds, or an error that names its parameter.
pub fn response_body(bytes: &[u8]) {
    let Ok(object) = Object::parse(bytes) else { return };
    match ResponseRequest::read(&object, bytes) {
        Ok(request) => {
            let spec = &request.spec;
            let temperature = spec.temperature.unwrap_or(0.0);
            assert!((0.0..=2.0).contains(&temperature) && spec.max_tokens >= 1);
            assert!(!spec.is_detached || spec.is_kept, "nobody could find it");
            assert!(!request.input.is_empty());
            assert_eq!(request.digest().len(), 64);
            // It is stored with the question.
            let shown = serde_json::to_vec(&request.shown).expect("JSON");
            assert!(shown.len() <= 1 << 20);
        }
        Err(error) => {
            assert!(error.loc.len() == 2 && !error.msg.is_empty() && !error.kind.is_empty());
        }
    }
}

/// Any bytes are each of the requests about a conversation within its bounds, or an error that names its
/// parameter.
pub fn conversation_body(bytes: &[u8]) {
    let Ok(object) = Object::parse(bytes) else { return };
    for read in [
        ConversationRequest::of_create,
        ConversationRequest::of_update,
        ConversationRequest::of_items,
    ] {
        match read(&object, bytes) {
            Ok(ConversationRequest { metadata, items }) => {
                assert!(items.len() <= 20 && metadata.len() <= 16);
                for (name, value) in metadata {
                    let value = value.as_str().expect("a text");
                    assert!(name.chars().count() <= 64 && value.chars().count() <= 512);
                }
            }
            Err(error) => {
                assert!(error.loc.len() == 2 && !error.msg.is_empty() && !error.kind.is_empty());
            }
        }
    }
}

/// Any bytes are a key set with usable keys within its bounds, or an error.
pub fn key_set(bytes: &[u8]) {
    static ISSUER: LazyLock<Arc<Issuer>> = LazyLock::new(|| {
        let options = IssuerOptions {
            jwks_url: "http://127.0.0.1/keys".parse().expect("a URL"),
            issuer: "the issuer".to_owned(),
            audience: "the audience".to_owned(),
        };
        Issuer::new(options).expect("an issuer")
    });
    if let Ok(ids) = ISSUER.key_ids(bytes) {
        assert!((1..=100).contains(&ids.len()) && ids.iter().all(|id| id.len() <= 256));
        let set: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        let listed = set["keys"].as_array().expect("keys");
        for id in ids {
            let has_id = |key: &&serde_json::Value| key["kid"].as_str().unwrap_or_default() == id;
            let keys: Vec<_> = listed.iter().filter(has_id).collect();
            // A secret that everybody can read signs nobody in.
            assert!(keys.iter().any(|key| key["kty"] != "oct"), "{id}");
        }
    }
}

/// A client of HTTP/2 may send a thousand control frames at once and no more, whatever their bytes and
/// however they are split.
pub fn http_2_frames(bytes: &[u8], chunk: usize) {
    let mut control = 0;
    let mut rest = bytes;
    while let [high, middle, low, kind, flags, _, _, _, _, payload @ ..] = rest {
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        let is_empty_data = *kind == 0 && length == 0 && flags & 1 == 0;
        control += usize::from(is_empty_data || *kind > 1);
        rest = payload.get(length..).unwrap_or_default();
    }
    let mut budget = FrameBudget::new(Arc::default());
    // Nothing comes back in a moment.
    let now = Instant::now();
    let mut verdicts = bytes.chunks(chunk.max(1)).map(|bytes| budget.admits_at(now, bytes));
    assert_eq!(verdicts.all(|admits| admits), control <= 1000, "{control}");
}

/// Any bytes are a request for embeddings within its bounds, or an error that names its parameter.
pub fn embedding_body(bytes: &[u8]) {
    let Ok(object) = Object::parse(bytes) else { return };
    match Embedding::read(&object) {
        Ok(Embedding { request, .. }) => {
            assert!((1..=2048).contains(&request.texts.len()) && !request.truncate);
            assert!(request.texts.iter().all(|text| !text.is_empty()));
            assert!(request.dimensions != Some(0));
        }
        Err(error) => {
            assert!(error.loc.len() == 2 && !error.msg.is_empty() && !error.kind.is_empty());
        }
    }
}

/// Any bytes are a chat or a prompt of Ollama's API within its bounds, or an error of the client.
pub fn ollama_body(bytes: &[u8]) {
    let Ok(body) = RawJsonObject::parse(bytes.to_vec()) else { return };
    for shape in [Shape::Chat, Shape::Generate] {
        match AskedModel::read(shape, &body) {
            Ok(AskedModel { model, task: Task::Answer(question), .. }) => {
                let spec = &question.spec;
                assert!(spec.model == model && !model.trim().is_empty());
                assert!(spec.temperature.is_none_or(|it| (0.0..=2.0).contains(&it)));
                assert!(spec.max_tokens >= 1 && spec.stop.len() <= 4);
                assert!(question.messages.question.role != Role::Assistant);
                assert!(question.messages.before.len() < 1000);
                assert_eq!(question.digest().len(), 64);
            }
            Ok(AskedModel { model, .. }) => assert!(!model.trim().is_empty()),
            Err(problem) => {
                assert!(problem.status.is_client_error() && !problem.detail.is_empty());
            }
        }
    }
}

/// Any bytes are a line of an import within its bounds, or an error that names the line.
pub fn import_line(bytes: &[u8]) {
    match ImportLine::parse(bytes) {
        Ok(ImportLine::Message(message)) => {
            let reasoning = message.thinking.as_ref().map_or(0, String::len);
            assert!(message.content.len() + reasoning <= 500 << 10);
        }
        Ok(ImportLine::Session(session)) => {
            assert!(session.title.is_none_or(|title| title.chars().count() <= 200));
        }
        Ok(_) => {}
        Err(fault) => {
            let problem = fault.at(7, 0);
            assert_eq!((problem.status.as_u16(), &*problem.code), (422, "import_invalid"));
            assert!(problem.detail.contains("Line 7: ") && problem.errors.len() == 1);
        }
    }
}

/// Whatever a client claims in X-Forwarded-For, its address is the one that the nearest trusted proxy
/// saw, and a client that is no proxy has its own. Each line of the bytes is one header.
pub fn forwarded_for(bytes: &[u8]) {
    static PROXIES: LazyLock<TrustedProxies> = LazyLock::new(|| {
        let networks = ["127.0.0.0/8", "10.0.0.0/8", "fd00::/8"];
        TrustedProxies(Arc::from(networks.map(|network| network.parse().expect("a network"))))
    });
    let is_trusted = |address: &IpAddr| PROXIES.0.iter().any(|network| network.contains(address));
    let (proxy, seen) = (IpAddr::from(Ipv4Addr::LOCALHOST), "203.0.113.9");
    let stranger: IpAddr = seen.parse().expect("an address");
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append("x-forwarded-for", value);
        }
    }
    let alone = PROXIES.client(stranger, &headers);
    assert_eq!((alone.address, alone.is_forwarded), (stranger, false));
    let ClientAddress { address: client, is_forwarded } = PROXIES.client(proxy, &headers);
    assert_eq!(client, client.to_canonical());
    assert!(is_forwarded || client == proxy, "{client} was named by nobody");
    // A trusted client is one of a request that no other address is named in.
    if !is_trusted(&client) {
        let last = headers.get_all("x-forwarded-for").iter().next_back();
        assert!(last.is_some(), "{client} was named by nobody");
    }
    headers.append("x-forwarded-for", HeaderValue::from_static(seen));
    let seen = PROXIES.client(proxy, &headers);
    assert_eq!((seen.address, seen.is_forwarded), (stranger, true));
}

/// No bytes are a token without the secret; with it, a token is refused or names a user that may be
/// signed in now. The first line is the header of a token that is signed, the rest are its claims.
pub fn token(bytes: &[u8]) {
    static KEY: LazyLock<LocalKey> =
        LazyLock::new(|| LocalKey::new(&Secret::new(SECRET), Some("the audience")));
    assert!(KEY.verify(&String::from_utf8_lossy(bytes)).is_err());
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (header, claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let message = format!(
        "{}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(header),
        BASE64_URL_SAFE_NO_PAD.encode(claims)
    );
    let secret = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signed = |tag: &[u8]| format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag));
    let tag = hmac::sign(&secret, message.as_bytes());
    let mut other = tag.as_ref().to_vec();
    other[0] ^= 1;
    assert!(KEY.verify(&signed(&other)).is_err());
    if let Ok(claims) = KEY.verify(&signed(tag.as_ref())) {
        let header: serde_json::Value = serde_json::from_slice(header).expect("JSON");
        assert_eq!(header["alg"], "HS256");
        let margin = Duration::from_secs(LEEWAY + 2);
        assert!(claims.expires() + margin >= SystemTime::now());
        let user = User::new(User::LOCAL, &claims.sub);
        assert!(user.is_none() || claims.sub.len() <= 255);
    }
}

/// Any bytes are a message within its bounds, or an error that can be sent to the client.
pub fn client_message(bytes: &[u8]) {
    match parse_client_message(bytes) {
        Ok(ClientMessage::Chat(request)) => check_request(&request),
        Ok(ClientMessage::History { limit, .. }) => assert!((1..=500).contains(&limit)),
        Ok(_) => {}
        Err(bad) => {
            assert!(!bad.problem.code.is_empty() && !bad.problem.detail.is_empty());
            let event = wire::error(&bad.problem, bad.message_id.as_deref());
            let event: serde_json::Value = serde_json::from_str(&event).expect("JSON");
            assert_eq!(event["code"], *bad.problem.code);
        }
    }
}

/// Any text is a cursor that is written in one way, or an error.
pub fn cursor(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(cursor) = text.parse::<Cursor>() {
        let written = cursor.to_string();
        assert!(written.len() <= 128);
        assert_eq!(written.parse(), Ok(cursor));
    }
}
