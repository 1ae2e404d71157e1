//! The API's description, and the page that displays it.

use std::sync::Arc;

use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::Type;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, ObjectBuilder, Ref, RefOr, ResponseBuilder};
use utoipa_swagger_ui::Config;

use crate::http::middleware::is_public;
use crate::http::problem::{Problem, ProblemDetails};

/// The parts of the description that belong to no handler.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "jarvis",
        description = "Chat with models behind Ollama, over REST, server-sent events and \
            WebSockets. Errors are RFC 9457 problems whose `code` is stable.",
    ),
    components(schemas(ProblemDetails)),
    tags(
        (name = "chat", description = "Turns"),
        (name = "sessions", description = "Conversations"),
        (name = "models", description = "The models of all hosts"),
        (name = "service", description = "Probes and metrics"),
    ),
)]
pub struct ApiDoc;

/// Adds to every operation with a caller how it signs in, and its response without a valid token.
pub fn describe_sign_in(openapi: &mut utoipa::openapi::OpenApi) {
    let components = openapi.components.get_or_insert_default();
    components
        .add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let problem =
        ContentBuilder::new().schema(Some(Ref::from_schema_name("ProblemDetails"))).build();
    let refusal = ResponseBuilder::new()
        .description("The token is absent, expired or not valid; see `code`")
        .content("application/problem+json", problem)
        .build();
    for (path, item) in &mut openapi.paths.paths {
        if is_public(path) {
            continue;
        }
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let refusal = RefOr::T(refusal.clone());
            operation.responses.responses.insert("401".to_owned(), refusal);
            // Either of them: no token makes an anonymous caller, unless tokens are required.
            operation.security = Some(vec![
                SecurityRequirement::default(),
                SecurityRequirement::new("bearer", std::iter::empty::<String>()),
            ]);
        }
    }
}

/// Adds to every operation with a caller its response where a limit refuses the request.
pub fn describe_limits(openapi: &mut utoipa::openapi::OpenApi) {
    let problem =
        ContentBuilder::new().schema(Some(Ref::from_schema_name("ProblemDetails"))).build();
    let header = |description: &str| {
        HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .description(Some(description))
            .build()
    };
    let refusal = ResponseBuilder::new()
        .description(
            "A limit of the user, of the API key or of the address refuses the request, or an \
             address has as many open sockets and streams as it may have; see `code`",
        )
        .content("application/problem+json", problem)
        .header("Retry-After", header("Seconds until the same request is not refused"))
        .header("RateLimit", header("What is left of each limit, and until when all is back"))
        .header("RateLimit-Policy", header("Each limit, and its window in seconds"))
        .build();
    for (path, item) in &mut openapi.paths.paths {
        if is_public(path) {
            continue;
        }
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.responses.responses.insert("429".to_owned(), RefOr::T(refusal.clone()));
        }
    }
}

/// Serves the page. Its links are relative to `/docs/`, with and without a trailing slash.
pub async fn index() -> Response {
    match utoipa_swagger_ui::serve("index.html", config()) {
        Ok(Some(page)) => {
            let html = String::from_utf8_lossy(&page.bytes).replacen(
                "<head>",
                "<head><base href=\"/docs/\">",
                1,
            );
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
        }
        _ => Problem::internal().into_response(),
    }
}

/// Serves a file of the page.
pub async fn file(Path(name): Path<String>) -> Response {
    match utoipa_swagger_ui::serve(&name, config()) {
        Ok(Some(file)) => {
            let mut response =
                ([(header::CONTENT_TYPE, file.content_type)], file.bytes.into_owned())
                    .into_response();
            if file.gzpipped {
                let gzip = header::HeaderValue::from_static("gzip");
                response.headers_mut().insert(header::CONTENT_ENCODING, gzip);
            }
            response
        }
        Ok(None) => Problem::not_found().into_response(),
        Err(error) => {
            tracing::error!(%error, name, "documentation file not served");
            Problem::internal().into_response()
        }
    }
}

fn config() -> Arc<Config<'static>> {
    Arc::new(Config::from("/openapi.json"))
}
