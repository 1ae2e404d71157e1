//! The ids of conversations. Pure.

use axum::http::StatusCode;
use uuid::Uuid;

use crate::http::problem::Problem;
use crate::session::SessionId;

/// How the id of a conversation begins, before that of its session.
const PREFIX: &str = "conv_";

/// Returns the id of the conversation that a session is.
pub fn conversation_id(session: SessionId) -> String {
    format!("{PREFIX}{}", session.0.simple())
}

/// Returns the session of a conversation; none where the text is no id of one.
pub fn parse_conversation_id(id: &str) -> Option<SessionId> {
    parse_simple(id.strip_prefix(PREFIX)?).map(SessionId)
}

/// Returns the identifier that 32 lower-case hexadecimal digits name; none for another text, and for the nil
/// one.
pub fn parse_simple(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok().filter(|id| !id.is_nil())?;
    (id.simple().to_string() == text).then_some(id)
}

/// Returns the error of a conversation that the caller does not have.
pub fn conversation_not_found() -> Problem {
    let detail = "There is no such conversation of this caller, or it is no longer kept.";
    Problem::new(StatusCode::NOT_FOUND, "conversation_not_found", detail)
}

/// Returns the error of a conversation instead of that of its session.
pub fn of_conversation(problem: Problem) -> Problem {
    if problem.code == "session_not_found" { conversation_not_found() } else { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_conversation_is_written_in_one_way_only() {
        let session = SessionId::random();
        let id = conversation_id(session);
        assert_eq!(parse_conversation_id(&id), Some(session));
        for other in [
            "",
            "conv_",
            &id[PREFIX.len()..],
            &id.to_uppercase(),
            &format!("{PREFIX}{}", session.0),
            "conv_00000000000000000000000000000000",
        ] {
            assert_eq!(parse_conversation_id(other), None, "{other}");
        }
    }
}
