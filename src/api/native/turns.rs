//! Submits a chat request of the native front as a turn, and follows the turn.

use chrono::Utc;

use crate::api::native::input::{ChatRequest, OnDisconnect};
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::follow::{self, AcceptedTurn, Submission};
use crate::http::extract::fields::FieldError;
use crate::http::problem::Problem;
use crate::limits::TurnPermit;
use crate::session::model::ToolCall;
use crate::session::store::{self, Attached, Found, IdempotencyKey, NewTurn};
use crate::session::{
    Anchor, GenerationId, Message, Owner, Role, SessionId, Status, Store, StoreError, TurnSpec,
};

/// Messages that are searched for a call of a tool, from the newest back, and their bytes.
const NEWEST: u64 = 200;
const NEWEST_BYTES: usize = 512 << 10;

/// Submits a chat request as a turn.
///
/// # Errors
/// A problem for the client.
pub async fn submit(
    shared: &Shared,
    permit: TurnPermit,
    session: SessionId,
    request: &mut ChatRequest,
    key: Option<String>,
) -> Result<AcceptedTurn, Problem> {
    // A turn that Redis accepts and then refuses to run would wait for an operator.
    if let Some(refusal) = shared.readiness.refusal() {
        return Err(refusal.into());
    }
    let default_model = &shared.settings.default_model;
    // Redis keeps the images from here on.
    let images = std::mem::take(&mut request.image_data);
    let question = Message {
        images: request.images.clone(),
        tool_call_id: request.tool_call_id.clone(),
        ..store::message(request.role, Utc::now())
    };
    // As the client sent it: what the named message adds is no part of the request.
    let digest = request.digest(default_model);
    let mut turn = NewTurn {
        spec: TurnSpec { source: permit.subject.source.0.clone(), ..request.spec(default_model) },
        content: request.message.clone(),
        conversation: None,
        attached: Attached { question: Some(Box::new(question)), images },
        key: key.map(|key| IdempotencyKey { key, body: digest }),
    };
    let owner = &permit.subject.owner;
    let completed = match (request.anchor, &request.tool_call_id) {
        // Boxed, because it is rare.
        (Some(anchor), _) => {
            Box::pin(go_beside(shared, owner, session, anchor, request, &mut turn)).await
        }
        (None, Some(id)) => name_tool(shared, owner, session, id, &mut turn).await,
        (None, None) => Ok(()),
    };
    if let Err(problem) = completed {
        permit.give_back().await;
        return Err(problem);
    }
    let cancel_on_disconnect = request.on_disconnect == OnDisconnect::Cancel;
    let submission = Submission { session, turn, permit, cancel_on_disconnect };
    Ok(follow::submit(&shared.generations, submission).await?)
}

/// Completes a turn that goes beside a message: the question that is answered once more, and its model;
/// or the images of the question that another one replaces.
///
/// # Errors
/// Where the session has no such message, or one of another kind, unless this very turn was accepted
/// before.
async fn go_beside(
    shared: &Shared,
    owner: &Owner,
    session: SessionId,
    anchor: Anchor,
    request: &mut ChatRequest,
    turn: &mut NewTurn,
) -> Result<(), Problem> {
    match in_time(named_message(&shared.store, owner, session, anchor)).await {
        Ok(Named { question, model }) if anchor.regenerated().is_some() => {
            turn.content.clone_from(&question.content);
            if let Some(model) = model.filter(|_| request.model.is_none()) {
                turn.spec.model.clone_from(&model);
                request.model = Some(model);
            }
            turn.attached.question = Some(Box::new(question));
            Ok(())
        }
        Ok(Named { question: replaced, .. }) => {
            if let Some(question) = turn.attached.question.as_mut().filter(|_| request.keeps_images)
            {
                question.images = replaced.images;
            }
            Ok(())
        }
        Err(refused) if refused.code == "session_not_found" || turn.key.is_none() => Err(refused),
        Err(refused) => {
            let repeated = shared.generations.repeated(owner, session, turn).await?;
            repeated.map(drop).ok_or(refused)
        }
    }
}

/// The question that a turn answers once more or replaces.
struct Named {
    question: Message,
    /// The model of its answer, where that is regenerated.
    model: Option<String>,
}

async fn named_message(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    anchor: Anchor,
) -> Result<Named, StoreError> {
    let id = anchor.message();
    let Some(Found { message: named, .. }) = store.find_message(owner, session, id).await? else {
        let is_open = store.is_open(owner, session, GenerationId(id)).await?;
        return Err(if is_open { StoreError::ANSWER_RUNS } else { StoreError::MessageAbsent });
    };
    let question = match (anchor, named.role, named.parent_id) {
        (Anchor::BesideAnswer(_), Role::Assistant, Some(parent)) => {
            let found = store.find_message(owner, session, parent).await?;
            let asks = |message: &Message| matches!(message.role, Role::User | Role::Tool);
            found.map(|found| found.message).filter(asks)
        }
        (Anchor::BesideQuestion(_), Role::User, _) => {
            return Ok(Named { question: named, model: None });
        }
        _ => None,
    };
    let question = question.ok_or_else(|| StoreError::wrong_role(anchor))?;
    Ok(Named { question, model: named.model })
}

/// Sets the tool whose result the question is: the call is one of the last answer, or of one that was
/// followed by results only.
///
/// # Errors
/// Where the session has no such call, or a result of it that did not fail, unless this very result
/// was accepted before.
async fn name_tool(
    shared: &Shared,
    owner: &Owner,
    session: SessionId,
    id: &str,
    turn: &mut NewTurn,
) -> Result<(), Problem> {
    let newest = shared.store.newest(owner, session, NEWEST, NEWEST_BYTES);
    let messages = match in_time(newest).await {
        Ok(page) => page.messages,
        Err(problem) if problem.code == "session_not_found" => Vec::new(),
        Err(problem) => return Err(problem),
    };
    if let Some(call) = open_call(&messages, id) {
        if let Some(question) = &mut turn.attached.question {
            question.tool_name = Some(call.name.clone());
        }
        return Ok(());
    }
    if turn.key.is_some() && shared.generations.repeated(owner, session, turn).await?.is_some() {
        return Ok(());
    }
    let msg = "must be the id of a call in the last answer of the session";
    Err(vec![FieldError::new("body", "tool_call_id", "tool_call", msg)].into())
}

/// Returns the call with this identifier that the last messages of a session wait for. A result whose
/// turn failed may be sent again.
fn open_call<'a>(messages: &'a [Message], id: &str) -> Option<&'a ToolCall> {
    let mut has_failed = false;
    for message in messages.iter().rev() {
        match message.role {
            Role::Tool if message.tool_call_id.as_deref() == Some(id) && !has_failed => {
                return None;
            }
            Role::Tool => {}
            Role::Assistant if message.tool_calls.is_empty() && message.content.is_empty() => {
                has_failed |= message.status != Some(Status::Complete);
            }
            Role::Assistant => return message.tool_calls.iter().find(|call| call.id == id),
            Role::System | Role::User => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(calls: &[&str], text: &str, status: Status) -> Message {
        let call = |id: &&str| ToolCall {
            id: (*id).to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        };
        Message {
            content: text.to_owned(),
            tool_calls: calls.iter().map(call).collect(),
            status: Some(status),
            ..store::message(Role::Assistant, Utc::now())
        }
    }

    fn result(id: &str) -> Message {
        let tool_call_id = Some(id.to_owned());
        Message { tool_call_id, ..store::message(Role::Tool, Utc::now()) }
    }

    #[test]
    fn a_call_is_open_until_it_has_a_result_whose_turn_did_not_fail() {
        let user = store::message(Role::User, Utc::now());
        let called = answer(&["1", "2"], "", Status::Complete);
        let empty = answer(&[], "", Status::Complete);
        let failed = answer(&[], "", Status::Failed);
        let answered = answer(&[], "sunny", Status::Complete);
        for (messages, open) in [
            (vec![&user, &called], "12"),
            (vec![&user, &called, &result("1"), &empty], "2"),
            (vec![&user, &called, &result("1"), &failed], "12"),
            (vec![&user, &called, &result("1"), &result("2"), &answered], ""),
            (vec![&user, &called, &user], ""),
            (vec![&user], ""),
        ] {
            let messages: Vec<Message> = messages.into_iter().cloned().collect();
            let is_open = |id: &&str| open_call(&messages, id).is_some();
            let found: String = ["1", "2", "3"].into_iter().filter(is_open).collect();
            assert_eq!(found, open, "{messages:?}");
        }
    }
}
