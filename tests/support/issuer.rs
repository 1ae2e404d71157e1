//! An outside issuer of tokens: it serves a key set over HTTP, and signs with its keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value, json};

use super::tokens::{base64url, claims, signed};

/// What stands before the public half of an RSA key of 2,048 bits in the file of a public key (RFC 5280).
const RSA_PREFIX: [u8; 24] = [
    0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01,
    0x01, 0x05, 0x00, 0x03, 0x82, 0x01, 0x0f, 0x00,
];

/// The audience of the service in the tests.
pub const AUDIENCE: &str = "jarvis-tests";

/// The answer of the issuer.
#[derive(Clone)]
pub enum Answer {
    Keys(Vec<Value>),
    Text(String),
    Status(u16),
    Redirect(String),
}

struct Shared {
    answer: Mutex<Answer>,
    fetches: AtomicUsize,
}

/// An issuer that listens on loopback until the test ends.
pub struct Issuer {
    pub url: String,
    shared: Arc<Shared>,
}

impl Issuer {
    /// Starts an issuer with these keys.
    pub async fn start(keys: Vec<Value>) -> Self {
        let answer = Mutex::new(Answer::Keys(keys));
        let shared = Arc::new(Shared { answer, fetches: AtomicUsize::new(0) });
        let routes = Router::new().route("/keys", get(answer_of)).with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, shared }
    }

    /// Changes the answer.
    pub fn answer(&self, answer: Answer) {
        *self.shared.answer.lock().expect("a lock") = answer;
    }

    /// Returns how often the key set was fetched.
    pub fn fetches(&self) -> usize {
        self.shared.fetches.load(Ordering::SeqCst)
    }

    /// Returns the settings of a replica that trusts this issuer.
    pub fn settings(&self) -> [(&'static str, String); 3] {
        [
            ("JARVIS_JWKS_URL", format!("{}/keys", self.url)),
            ("JARVIS_JWT_ISSUER", self.url.clone()),
            ("JARVIS_JWT_AUDIENCE", AUDIENCE.to_owned()),
        ]
    }

    /// Returns the claims of a token of this issuer, valid for an hour.
    pub fn claims(&self, user: &str) -> Value {
        let mut claims = claims(user, 3600);
        claims["iss"] = json!(self.url);
        claims["aud"] = json!(AUDIENCE);
        claims.as_object_mut().expect("an object").remove("type");
        claims
    }
}

async fn answer_of(State(shared): State<Arc<Shared>>) -> Response {
    shared.fetches.fetch_add(1, Ordering::SeqCst);
    let answer = shared.answer.lock().expect("a lock").clone();
    match answer {
        Answer::Keys(keys) => axum::Json(json!({"keys": keys})).into_response(),
        Answer::Text(text) => text.into_response(),
        Answer::Status(status) => StatusCode::from_u16(status).expect("a status").into_response(),
        Answer::Redirect(to) => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
        }
    }
}

/// A key of the issuer.
pub enum Key {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Key {
    /// Returns the RSA key of the tests, as one cannot be made here.
    pub fn rsa() -> Self {
        let key = include_bytes!("issuer_rsa.der");
        Self::Rsa(RsaKeyPair::from_der(key).expect("a key"))
    }

    pub fn p256() -> Self {
        let (random, curve) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(curve, &random).expect("a key");
        Self::P256(EcdsaKeyPair::from_pkcs8(curve, key.as_ref(), &random).expect("a key"))
    }

    pub fn ed25519() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("a key"))
    }

    /// Returns the public half, as a JSON Web Key with this identifier.
    pub fn public(&self, id: &str) -> Value {
        let mut key = match self {
            Self::Rsa(key) => {
                let RsaPublicKeyComponents::<Vec<u8>> { n, e } = key.public().into();
                json!({"kty": "RSA", "n": base64url(&n), "e": base64url(&e)})
            }
            Self::P256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)})
            }
            Self::Ed25519(key) => {
                let x = base64url(key.public_key().as_ref());
                json!({"kty": "OKP", "crv": "Ed25519", "x": x})
            }
        };
        key["kid"] = json!(id);
        key["use"] = json!("sig");
        key
    }

    /// Returns the public half in the forms that strangers know: of an RSA key its bytes, its modulus as text
    /// and as bytes, and the text of its file (PEM); of the others the point.
    pub fn public_forms(&self) -> Vec<Vec<u8>> {
        let key = match self {
            Self::Rsa(key) => key.public(),
            Self::P256(key) => return vec![key.public_key().as_ref().to_vec()],
            Self::Ed25519(key) => return vec![key.public_key().as_ref().to_vec()],
        };
        let RsaPublicKeyComponents::<Vec<u8>> { n, .. } = key.into();
        let file = BASE64_STANDARD.encode([&RSA_PREFIX[..], key.as_ref()].concat());
        let lines: Vec<_> = file.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let lines = lines.join("\n");
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n");
        vec![key.as_ref().to_vec(), base64url(&n).into_bytes(), n, pem.into_bytes()]
    }

    /// Returns the algorithm of the key.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    /// Returns a token with these claims, whose header names this key.
    pub fn token(&self, id: &str, claims: &Value) -> String {
        self.token_as(&json!({"alg": self.algorithm(), "kid": id}), claims)
    }

    /// Returns a token with this header and these claims.
    pub fn token_as(&self, header: &Value, claims: &Value) -> String {
        let random = SystemRandom::new();
        signed(header, claims, |message| match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("a signature");
                signature
            }
            Self::P256(key) => key.sign(&random, message).expect("a signature").as_ref().to_vec(),
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
        })
    }
}
