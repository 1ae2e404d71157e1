//! The fronts, and the router that serves them. They use neither Ollama nor a key in Redis.

pub mod admin;
mod answer_rules;
pub mod bulk_permits;
mod embedding;
mod idempotency;
mod json_page;
mod large_body;
pub mod message_budget;
pub mod native;
pub mod ollama;
pub mod openai;
mod own_turn;
pub mod permits;
mod problems;
mod responses;
mod sent_text;
pub mod state;
mod streamed_turn;
mod whole_turn;

pub use state::{ApiSettings, AppState, Shared};

use std::sync::Arc;

use admin::docs::ErrorForm;
use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, header};
use axum::response::Response;
use axum::routing::{any, get, post};
use tower_http::normalize_path::NormalizePath;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::middleware::{FrontRules, LimitLayer};
use crate::http::{middleware, problem};
use crate::limits::RequestKind;
use crate::web;

/// Returns the router of all routes, each with and without a trailing slash. Where operators have a
/// listener of their own, their routes are there alone.
pub fn router(shared: &Shared) -> Router {
    let mut description = admin::docs::ApiDoc::openapi();
    description.merge(openai::OpenAiApiDoc::openapi());
    description.merge(ollama::OllamaApiDoc::openapi());
    let mut routes = OpenApiRouter::with_openapi(description)
        .routes(routes!(native::chat::send))
        .routes(routes!(native::sessions::read, native::sessions::update, native::sessions::delete))
        .routes(routes!(native::sessions::cancel))
        .routes(routes!(native::images::image))
        .routes(routes!(native::branches::regenerate))
        .routes(routes!(native::branches::edit))
        .routes(routes!(native::branches::select))
        .routes(routes!(native::ownership::claim))
        .routes(routes!(native::list::list, native::ownership::delete_all))
        .routes(routes!(native::export::export))
        .routes(routes!(native::import::import))
        .routes(routes!(native::event_stream::events))
        .routes(routes!(native::models::chat_models))
        .routes(routes!(native::models::models))
        .routes(routes!(native::usage::usage))
        .routes(routes!(admin::health::chat_health))
        .routes(routes!(admin::health::health))
        .routes(routes!(admin::health::live))
        .routes(routes!(admin::health::ready))
        .routes(routes!(admin::health::root))
        .routes(routes!(native::websocket::upgrade))
        .routes(routes!(openai::models::list))
        .routes(routes!(openai::models::retrieve))
        .routes(routes!(openai::chat::complete))
        .routes(routes!(openai::embeddings::create))
        .routes(routes!(openai::responses::create::create))
        .routes(routes!(openai::responses::stored::retrieve, openai::responses::stored::delete))
        .routes(routes!(openai::responses::stored::cancel))
        .routes(routes!(openai::responses::stored::input_items))
        .routes(routes!(openai::conversations::object::create))
        .routes(routes!(
            openai::conversations::object::retrieve,
            openai::conversations::object::update,
            openai::conversations::object::delete
        ))
        .routes(routes!(openai::conversations::items::list, openai::conversations::items::create))
        .routes(routes!(openai::conversations::items::retrieve))
        .routes(routes!(ollama::models::version))
        .routes(routes!(ollama::models::tags))
        .routes(routes!(ollama::models::ps))
        .routes(routes!(ollama::models::show))
        .routes(routes!(ollama::turns::chat))
        .routes(routes!(ollama::turns::generate))
        .routes(routes!(ollama::embeddings::embed))
        .routes(routes!(ollama::embeddings::embeddings));
    if !shared.settings.has_admin_listener {
        routes =
            routes.routes(routes!(admin::health::detailed)).routes(routes!(admin::health::metrics));
    }
    let (routes, mut openapi) = routes.split_for_parts();
    admin::docs::describe_layers(&mut openapi, error_form);
    // Made once: however many clients do not read it, its bytes are held once.
    let mut openapi = serde_json::to_value(&openapi).unwrap_or_default();
    openai::describe(&mut openapi);
    ollama::describe(&mut openapi);
    let openapi = Bytes::from(openapi.to_string());
    let json = [(header::CONTENT_TYPE, "application/json")];
    let routes = routes
        .route("/api/v1/chat/message", post(native::chat::send))
        .route("/api/v1/chat/send", post(native::chat::send))
        .route("/api/v1/chat/ws", get(native::websocket::upgrade))
        // The name of a model may have a host and a namespace.
        .route("/v1/models/{model}/{name}", get(openai::models::retrieve))
        .route("/v1/models/{model}/{name}/{tag}", get(openai::models::retrieve))
        .route("/api/pull", any(ollama::models::refuse_change))
        .route("/api/push", any(ollama::models::refuse_change))
        .route("/api/create", any(ollama::models::refuse_change))
        .route("/api/copy", any(ollama::models::refuse_change))
        .route("/api/delete", any(ollama::models::refuse_change))
        .route("/api/blobs/{digest}", any(ollama::models::refuse_change))
        .route("/openapi.json", get(async move || (json, openapi.clone())))
        .route("/app/{part}", get(web::part))
        .route("/docs", get(admin::docs::index))
        .route("/docs/{file}", get(admin::docs::file))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::wrong_method)
        .with_state(Arc::clone(shared));
    let lists = Arc::clone(&shared.settings.allow_lists);
    let sign_in = Arc::clone(&shared.sign_in);
    let limits = LimitLayer {
        limits: shared.limits.clone(),
        proxies: shared.settings.trusted_proxies.clone(),
        source_key: shared.source_key.clone(),
        rules: FrontRules { kind: request_kind, sends_placeholder_key: has_dialect, dialect },
    };
    let routes = middleware::stack(
        routes,
        lists,
        sign_in,
        limits,
        shared.room.clone(),
        shared.lifecycle.clone(),
    );
    // A layer of the router would run only after the path was matched.
    Router::new().fallback_service(NormalizePath::trim_trailing_slash(routes))
}

/// Returns what a request to this method and path is, for the limits of its caller.
fn request_kind(method: &Method, path: &str) -> RequestKind {
    if openai::serves(path) {
        openai::request_kind(method, path)
    } else if ollama::serves(path) {
        ollama::request_kind(method, path)
    } else {
        native::request_kind(method, path)
    }
}

/// Returns whether the front at this path is one for another API: it has errors of its own, and its
/// clients send a key also where none is needed.
fn has_dialect(path: &str) -> bool {
    openai::serves(path) || ollama::serves(path)
}

/// Returns the form of the errors of the front at this path, where it is one for another API.
fn error_form(path: &str) -> Option<ErrorForm> {
    let schema = if openai::serves(path) {
        openai::ERROR_SCHEMA
    } else if ollama::serves(path) {
        ollama::ERROR_SCHEMA
    } else {
        return None;
    };
    Some(ErrorForm { schema, content_type: "application/json" })
}

/// Writes a response in the dialect of the front at this path.
fn dialect(path: &str, response: Response) -> Response {
    ollama::dialect(path, openai::dialect(path, response))
}

#[cfg(test)]
mod tests;
