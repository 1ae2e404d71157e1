//! `POST /api/chat`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::response::{IntoResponse, Response};

use super::inference::{Inference, refused};
use super::read;
use crate::net::Connection;
use crate::schema;
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
    let mut inference = match Inference::read(&server, Shape::Chat, request.common) {
        Ok(inference) => inference,
        Err(error) => return refused(&entry, error),
    };
    let messages = request.messages.unwrap_or_default();
    if messages.is_empty() {
        return inference.load_only(&server, &entry).await;
    }
    let images = messages.iter().flat_map(|message| message.images.iter().flatten());
    if let Err(error) = inference.take_images(images) {
        return refused(&entry, error);
    }
    let whole = template::render(&messages, inference.thinking);
    if let Some(rendered) = inference.rendered(&whole) {
        entry.end("rendered");
        return Json(rendered).into_response();
    }
    let fitted = match inference.fit_messages(&server, &messages).await {
        Ok(fitted) => fitted,
        Err(error) => return refused(&entry, error),
    };
    if messages.last().is_some_and(|last| last.role != "tool") {
        let user = template::parse(&whole).user;
        inference.calls = schema::calls(user, &request.tools.unwrap_or_default());
    }
    inference.generate(server, connection, entry, fitted, false).await
}
