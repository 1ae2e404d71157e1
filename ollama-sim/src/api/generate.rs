//! `POST /api/generate`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::response::{IntoResponse, Response};

use super::inference::{Inference, refused};
use super::read;
use crate::net::Connection;
use crate::simulator::Simulator;
use crate::template;
use crate::wire::{GenerateRequest, Message, Shape};

/// Completes a prompt.
pub async fn generate(
    State(server): State<Arc<Simulator>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    body: Bytes,
) -> Response {
    let entry = server.journal.open("/api/generate", &body);
    let request: GenerateRequest = match read(&body) {
        Ok(request) => request,
        Err(error) => return refused(&entry, error),
    };
    let mut inference = match Inference::read(&server, Shape::Generate, request.common) {
        Ok(inference) => inference,
        Err(error) => return refused(&entry, error),
    };
    let prompt = request.prompt.unwrap_or_default();
    if prompt.is_empty() {
        return inference.load_only(&server, &entry).await;
    }
    let raw = request.raw.unwrap_or(false);
    let images = request.images.unwrap_or_default();
    if let Err(error) = inference.take_images(&images) {
        return refused(&entry, error);
    }
    let prompt = if raw {
        prompt
    } else {
        let message = |role: &str, content| Message {
            role: role.to_owned(),
            content: Some(content),
            ..Message::default()
        };
        let system = request.system.filter(|system| !system.is_empty());
        let mut messages: Vec<_> = system.map(|s| message("system", s)).into_iter().collect();
        let images = Some(images);
        messages.push(Message { images, ..message("user", prompt) });
        template::render(&messages, inference.thinking)
    };
    if let Some(rendered) = inference.rendered(&prompt) {
        entry.end("rendered");
        return Json(rendered).into_response();
    }
    let fitted = match inference.fit_prompt(&server, &prompt).await {
        Ok(fitted) => fitted,
        Err(error) => return refused(&entry, error),
    };
    inference.generate(server, connection, entry, fitted, raw).await
}
