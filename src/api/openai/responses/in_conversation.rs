//! Creates a response as a turn of a conversation.

use std::sync::Arc;

use axum::http::HeaderMap;
use chrono::Utc;

use super::super::conversation_id::of_conversation;
use super::super::messages::{CallNames, Messages};
use super::super::newest::newest_messages;
use super::super::params::{INVALID_VALUE, error};
use super::ResponseKey;
use super::created::CreatedResponse;
use super::input::{self, InputItem};
use super::object::StoredRequest;
use super::request::ResponseRequest;
use crate::api::idempotency;
use crate::api::own_turn::TurnOrigin;
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::follow::{self, Submission};
use crate::http::problem::Problem;
use crate::limits::TurnPermit;
use crate::session::model::ToolCall;
use crate::session::store::{ADDED_BYTES, BROUGHT_BYTES, REQUEST_BYTES, json_bytes};
use crate::session::stored_message::json_size;
use crate::session::{Message, Owner, Role, SessionId};

/// The prefix that keeps the idempotency keys of this front apart from those of others in one session.
const KEY_KIND: &str = "openai-response\n";

/// Submits a request as the next turn of a conversation.
///
/// # Errors
/// Why it was not accepted.
pub async fn submit(
    shared: &Shared,
    permit: TurnPermit,
    headers: &HeaderMap,
    session: SessionId,
    request: ResponseRequest,
) -> Result<CreatedResponse, Problem> {
    if let Some(refusal) = shared.readiness.refusal() {
        return Err(refusal.into());
    }
    tracing::Span::current().record("session", session.redacted());
    let subject = Arc::clone(&permit.subject);
    let owner = &subject.owner;
    let key = idempotency::key(headers, owner)?;
    let digest = request.digest();
    in_time(shared.store.conversation(owner, session)).await.map_err(of_conversation)?;
    let ResponseRequest { spec, input, images, shown, .. } = request;
    let calls = calls_before(shared, owner, session, &input).await?;
    let stored = StoredRequest { created_at: Utc::now().timestamp(), earlier: 0, shown };
    let instructions = stored.shown.instructions.as_ref().map_or(0, String::len);
    let images = images.into_images();
    let messages = input::conversation(calls, Vec::new(), &input, instructions, images);
    let Messages { before, question, images } =
        messages.map_err(|error| Problem::from(vec![error]))?;
    drop(input);
    if json_bytes(&before) + json_size(&question.content) > ADDED_BYTES {
        let msg = format!("must have at most {ADDED_BYTES} bytes as JSON in a conversation");
        return Err(vec![error("input", INVALID_VALUE, msg)].into());
    }
    let question = Message { request: serde_json::to_string(&stored).ok(), before, ..question };
    let origin = TurnOrigin {
        kind: KEY_KIND,
        key,
        is_by_proxy: idempotency::is_by_proxy(headers),
        digest,
        is_background: stored.shown.background,
    };
    let cancel_on_disconnect = origin.cancels_on_disconnect();
    let turn = origin.turn(&permit, spec, question, images);
    let size = turn.stored_size();
    if size.is_too_large() || size.question > BROUGHT_BYTES {
        let msg = format!(
            "must be shorter: in a conversation, the items before the last one and the parameters that \
             the response shows may take {REQUEST_BYTES} bytes as they are stored, and {BROUGHT_BYTES} with \
             the last item"
        );
        return Err(vec![error("input", INVALID_VALUE, msg)].into());
    }
    let submission = Submission { session, turn, permit, cancel_on_disconnect };
    let accepted = follow::submit(&shared.generations, submission).await;
    let accepted = accepted.map_err(|refused| of_conversation(refused.into()))?;
    let key = ResponseKey { session, generation: Some(accepted.submitted.generation) };
    CreatedResponse::of(shared, &subject, key, stored, accepted).await
}

/// Returns the calls of the conversation that results in these items may answer.
///
/// # Errors
/// Where the last answer has a call that no item answers; where Redis does not reply.
async fn calls_before(
    shared: &Shared,
    owner: &Owner,
    session: SessionId,
    items: &[InputItem],
) -> Result<CallNames, Problem> {
    let mut calls = CallNames::default();
    if !input::has_result_of_earlier_call(items) {
        return Ok(calls);
    }
    let newest = in_time(newest_messages(&shared.store, owner, session)).await;
    let messages = newest.map_err(of_conversation)?;
    let unanswered = open_calls(&messages).find(|call| !input::has_result_of(items, &call.id));
    if let Some(call) = unanswered {
        let msg = format!("must have an output for every call, and has none for {:?}", call.id);
        return Err(vec![error("input", INVALID_VALUE, msg)].into());
    }
    calls.add_all(&messages);
    Ok(calls)
}

/// Returns the calls of the last answer that have no result yet.
fn open_calls(messages: &[Message]) -> impl Iterator<Item = &ToolCall> {
    let is_result = |message: &&Message| message.role == Role::Tool;
    let results = messages.iter().rev().take_while(is_result).count();
    let (before, results) = messages.split_at(messages.len() - results);
    let has_result = move |call: &&ToolCall| {
        let mut all = results.iter().flat_map(|it| it.before.iter().chain([it]));
        all.any(|result| result.tool_call_id.as_deref() == Some(&*call.id))
    };
    let calls = before.last().map_or(&[][..], |message| &message.tool_calls);
    calls.iter().filter(move |call| !has_result(call))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::message;

    #[test]
    fn the_calls_of_the_last_answer_without_a_result_are_open() {
        let call = |id: &str| ToolCall {
            id: id.to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        };
        let now = Utc::now();
        let answer = Message {
            tool_calls: vec![call("1"), call("2"), call("3")],
            ..message(Role::Assistant, now)
        };
        let result =
            |id: &str| Message { tool_call_id: Some(id.to_owned()), ..message(Role::Tool, now) };
        let open = |messages: &[Message]| {
            open_calls(messages).map(|call| call.id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(open(&[]), Vec::<String>::new());
        assert_eq!(open(&[message(Role::User, now), answer.clone()]), ["1", "2", "3"]);
        let both = Message { before: vec![result("3")], ..result("1") };
        assert_eq!(open(&[answer.clone(), both]), ["2"]);
        assert_eq!(open(&[answer, message(Role::User, now)]), Vec::<String>::new());
    }
}
