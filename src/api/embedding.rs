//! Embeddings, for every front that has them: they take slots and limits as turns do.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::large_body::HeldRoom;
use super::state::Shared;
use crate::blocking;
use crate::generation::{EmbedRequest, EmbedRun, EmbedUsage, EmbeddedSlice};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::http::room::{FREE_BYTES, RoomPermit, TakenRoom, no_room};
use crate::lifecycle::Phase;
use crate::limits::TurnPermit;
use crate::source::ShareKey;

/// Texts of one request, at most: as many as a request of Vercel's SDK has.
pub const TEXTS: usize = 2048;
/// Bytes of one reply, at most.
const REPLY_BYTES: usize = 64 << 20;
/// Room is taken for the estimated size of a reply and this part of it.
const MARGIN: usize = 64;

/// Writes the vector of the text with this number behind what there is of a reply.
pub type WriteVector = fn(&VectorForm, usize, &RawValue, &mut Vec<u8>) -> Result<(), Problem>;

/// How a front writes vectors.
#[derive(Clone, Copy, Debug, Default)]
pub struct VectorForm {
    /// The length of the vectors, where the request chooses it.
    pub dimensions: Option<u32>,
    /// Whether they are written as the base64 of single-precision floats.
    pub is_base64: bool,
}

/// The reply to a request for embeddings as it grows: what stands before the vectors, and then each as a
/// front writes it, with commas between them.
pub struct VectorReply {
    text: Vec<u8>,
    head: usize,
    vectors: usize,
    form: VectorForm,
    write: WriteVector,
    room: Option<RoomPermit>,
}

impl VectorReply {
    /// Creates a reply that begins so.
    pub fn new(head: &str, form: VectorForm, write: WriteVector) -> Self {
        let text = head.as_bytes().to_vec();
        Self { text, head: head.len(), vectors: 0, form, write, room: None }
    }

    /// Returns the response, whose text ends so.
    pub fn end(mut self, tail: &str) -> Response {
        self.text.extend_from_slice(tail.as_bytes());
        let json = HeaderValue::from_static("application/json");
        let bytes = self.text.len();
        let mut response = ([(header::CONTENT_TYPE, json)], self.text).into_response();
        if let Some(room) = self.room {
            response.extensions_mut().insert(TakenRoom::new(room.shrink(bytes)));
        }
        response
    }

    /// Adds the vectors of the next texts.
    async fn add(
        mut self,
        slice: EmbeddedSlice,
        network: Option<ShareKey>,
    ) -> Result<Self, Problem> {
        blocking::run(network, slice.bytes, move || {
            for vector in &slice.vectors {
                if self.vectors > 0 {
                    self.text.push(b',');
                }
                (self.write)(&self.form, self.vectors, vector, &mut self.text)?;
                self.vectors += 1;
            }
            Ok(self)
        })
        .await
    }

    /// Returns the estimated bytes of the reply once it has the vectors of so many texts.
    fn estimated(&self, texts: usize) -> usize {
        let written = self.text.len() - self.head;
        self.text.len() + written / self.vectors.max(1) * texts.saturating_sub(self.vectors)
    }

    /// Takes room for the whole reply once its first vectors show how large it will be, and checks its
    /// bound.
    async fn make_room(
        &mut self,
        shared: &Shared,
        permit: &TurnPermit,
        texts: usize,
    ) -> Result<(), Problem> {
        let network = permit.subject.source.widest_network();
        let estimated = self.estimated(texts);
        if estimated > REPLY_BYTES.min(shared.room.most(network)) {
            return Err(too_large(estimated, texts));
        }
        let wanted = estimated + estimated / MARGIN;
        if self.room.is_none() && wanted > FREE_BYTES {
            let taken = shared.room.take(network, wanted).await;
            self.room = Some(taken.ok_or_else(no_room)?);
            self.text.reserve_exact(wanted.saturating_sub(self.text.len()));
        }
        Ok(())
    }
}

/// A request for the vectors of texts, and the room of its body. The texts have that room until they have
/// room of their own.
pub struct HeldRequest {
    /// The request.
    pub request: EmbedRequest,
    /// The room of the body.
    pub room: HeldRoom,
}

/// Returns the vectors of texts from hosts in the reply, and what the hosts report; no host is asked where
/// there is no text. A request for which no host has worked costs the caller no turn.
///
/// # Errors
/// A limit of the caller, what keeps this replica from serving, the host's error, or a reply that would be
/// too large.
pub async fn vectors(
    shared: &Shared,
    permit: TurnPermit,
    last_byte: LastByte,
    model: &str,
    HeldRequest { request, room }: HeldRequest,
    reply: VectorReply,
) -> Result<(VectorReply, EmbedUsage), Problem> {
    if let Some(refusal) = permit.refusal() {
        refusal.count();
        return Err(Problem::limited(refusal));
    }
    let embedded = async {
        if request.texts.is_empty() {
            shared.generations.check_model(model).await?;
            return Ok((reply, EmbedUsage::default()));
        }
        if let Some(refusal) = shared.readiness.refusal() {
            return Err(refusal.into());
        }
        let embedded = embed(shared, &permit, model, (&request, room), reply);
        tokio::select! {
            embedded = timeout(shared.settings.request_timeout, embedded) => {
                embedded.map_err(|_| out_of_time())?
            }
            () = shared.lifecycle.reached(Phase::Stopped) => Err(Problem::draining()),
            // A client that is gone looks like one that has sent its last byte.
            () = last_byte.received() => Err(gone()),
        }
    };
    match Box::pin(embedded).await {
        Ok(embedded) if !request.texts.is_empty() => {
            permit.keep();
            Ok(embedded)
        }
        nothing => {
            permit.give_back().await;
            nothing
        }
    }
}

async fn embed(
    shared: &Shared,
    permit: &TurnPermit,
    model: &str,
    (request, room): (&EmbedRequest, HeldRoom),
    mut reply: VectorReply,
) -> Result<(VectorReply, EmbedUsage), Problem> {
    let mut run: EmbedRun<'_> = shared.generations.embed(permit, model, request).await?;
    let network = permit.subject.source.widest_network();
    // The run holds the room of the texts.
    drop(room);
    while let Some(slice) = run.next().await? {
        reply = reply.add(slice, network).await?;
        reply.make_room(shared, permit, request.texts.len()).await?;
    }
    Ok((reply, run.end().await))
}

/// Returns the error of a vector that cannot be read.
pub fn unreadable() -> Problem {
    let detail = "The model host's reply has vectors that are not lists of numbers.";
    Problem::new(StatusCode::BAD_GATEWAY, "upstream_error", detail)
}

fn too_large(estimated: usize, texts: usize) -> Problem {
    let detail = format!(
        "The vectors of these {texts} texts would take about {} MiB, more than one reply may have; send \
         fewer texts, or ask for fewer dimensions.",
        estimated.div_ceil(1 << 20)
    );
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "reply_too_large", detail)
}

fn out_of_time() -> Problem {
    let detail = "The embeddings took too long; send fewer texts.";
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail)
}

/// Returns the error that nobody reads.
pub fn gone() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "body_unreadable", "The client is gone.")
}
