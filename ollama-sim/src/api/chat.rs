//! `POST /api/chat`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::response::{IntoResponse, Response};

use super::inference::{Asked, refused};
use super::read;
use crate::net::Connection;
use crate::simulator::Simulator;
use crate::template;
use crate::wire::{ChatRequest, Shape};

/// Answers a conversation.
pub async fn chat(
    State(server): State<Arc<Simulator>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    body: Bytes,
) -> Response {
    let entry = server.journal.open("/api/chat", &body);
    let request: ChatRequest = match read(&body) {
        Ok(request) => request,
        Err(error) => return refused(&entry, error),
    };
    let asked = match Asked::read(&server, Shape::Chat, request.common) {
        Ok(asked) => asked,
        Err(error) => return refused(&entry, error),
    };
    let messages = request.messages.unwrap_or_default();
    if messages.is_empty() {
        return asked.load_only(&server, &entry).await;
    }
    let whole = template::render(&messages, asked.thinking);
    if let Some(rendered) = asked.rendered(&whole) {
        entry.end("rendered");
        return Json(rendered).into_response();
    }
    let fitted = match asked.fit_messages(&server, &messages).await {
        Ok(fitted) => fitted,
        Err(error) => return refused(&entry, error),
    };
    asked.generate(server, connection, entry, fitted, false).await
}
