//! The API's description, and the page that displays it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::Type;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, ObjectBuilder, OpenApi as OpenApiDocument, Ref, RefOr, ResponseBuilder,
};
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
        (name = "openai", description = "OpenAI's API, with its own errors"),
        (name = "ollama", description = "Ollama's API, with its own errors"),
        (name = "service", description = "Probes and metrics"),
    ),
)]
pub struct ApiDoc;

/// The form in which a front writes its errors.
#[derive(Clone, Copy)]
pub struct ErrorForm {
    /// The name of the schema.
    pub schema: &'static str,
    /// The content type, without parameters.
    pub content_type: &'static str,
}

/// The form of the errors of every path that is none of another API.
const PROBLEM: ErrorForm =
    ErrorForm { schema: "ProblemDetails", content_type: "application/problem+json" };

/// Adds to every operation what the layers before it may answer, and what may be wrong with its body, in
/// the form that its front writes errors in, where that is one of its own.
pub fn describe_layers(
    openapi: &mut OpenApiDocument,
    form_of_dialect: fn(&str) -> Option<ErrorForm>,
) {
    let components = openapi.components.get_or_insert_default();
    components
        .add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    for (path, item) in &mut openapi.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            if !is_public(path) {
                // Either of them: no token makes an anonymous caller, unless tokens are required.
                operation.security = Some(vec![
                    SecurityRequirement::default(),
                    SecurityRequirement::new("bearer", std::iter::empty::<String>()),
                ]);
            }
            describe_errors(operation, is_public(path), form_of_dialect(path).unwrap_or(PROBLEM));
        }
    }
}

fn describe_errors(operation: &mut Operation, is_public: bool, form: ErrorForm) {
    let layers = [
        ("401", form.error("The token is absent, expired or not valid; see `code`")),
        ("429", form.limited()),
        ("403", form.error("This Host, or the page of this Origin, may not call this; see `code`")),
    ];
    let responses = &mut operation.responses.responses;
    for (status, response) in layers.into_iter().skip(if is_public { 2 } else { 0 }) {
        responses.insert(status.to_owned(), RefOr::T(response.build()));
    }
    if operation.request_body.is_none() {
        return;
    }
    for (status, description) in [
        ("400", "The body broke off"),
        ("408", "The body did not arrive in time"),
        ("413", "The body is too large"),
        ("415", "The body is compressed"),
    ] {
        // The handler may say more of it.
        let response = || RefOr::T(form.error(description).build());
        responses.entry(status.to_owned()).or_insert_with(response);
    }
}

impl ErrorForm {
    fn error(self, description: &str) -> ResponseBuilder {
        let schema = Ref::from_schema_name(self.schema);
        let content = ContentBuilder::new().schema(Some(schema)).build();
        ResponseBuilder::new().description(description).content(self.content_type, content)
    }

    /// Returns the response where a limit refuses the request.
    fn limited(self) -> ResponseBuilder {
        let header = |description: &str| {
            HeaderBuilder::new()
                .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
                .description(Some(description))
                .build()
        };
        let description = "A limit of the user, of the API key or of the address refuses the request, \
            an address has as many open sockets and streams as it may have, or as much is stored for the \
            caller as there may be; see `code`";
        self.error(description)
            .header("Retry-After", header("Seconds until the same request is not refused"))
            .header("RateLimit", header("The rest of each limit, and until when all is back"))
            .header("RateLimit-Policy", header("Each limit, and its window in seconds"))
    }
}

/// Serves the page. Its links are relative to `/docs/`, with and without a trailing slash.
pub async fn index() -> Response {
    respond("index.html")
}

/// Serves a file of the page.
pub async fn file(path: Result<Path<String>, PathRejection>) -> Response {
    match path {
        Ok(Path(name)) => respond(&name),
        Err(_) => Problem::not_found().into_response(),
    }
}

/// The names of the page's files.
const FILES: [&str; 9] = [
    "favicon-16x16.png",
    "favicon-32x32.png",
    "index.css",
    "index.html",
    "oauth2-redirect.html",
    "swagger-initializer.js",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-ui.css",
];

/// A file of the page, whose bytes all responses share.
struct DocsFile {
    bytes: Bytes,
    content_type: HeaderValue,
    is_gzipped: bool,
}

/// The files of the page, by name.
static PAGE: LazyLock<HashMap<&str, DocsFile>> = LazyLock::new(|| {
    let config = Arc::new(Config::from("/openapi.json"));
    FILES.iter().filter_map(|name| Some((*name, load(name, Arc::clone(&config))?))).collect()
});

fn load(name: &str, config: Arc<Config<'static>>) -> Option<DocsFile> {
    let file = match utoipa_swagger_ui::serve(name, config) {
        Ok(file) => file?,
        Err(error) => {
            tracing::error!(%error, name, "documentation file not usable");
            return None;
        }
    };
    let bytes = match (name, file.bytes) {
        ("index.html", page) => {
            let page = String::from_utf8_lossy(&page);
            page.replacen("<head>", "<head><base href=\"/docs/\">", 1).into()
        }
        (_, Cow::Borrowed(bytes)) => Bytes::from_static(bytes),
        (_, Cow::Owned(bytes)) => bytes.into(),
    };
    // The page does not say how it is encoded.
    let content_type = match file.content_type.as_str() {
        "text/html" => "text/html; charset=utf-8",
        other => other,
    };
    let content_type = HeaderValue::from_str(content_type).ok()?;
    Some(DocsFile { bytes, content_type, is_gzipped: file.gzpipped })
}

fn respond(name: &str) -> Response {
    let Some(file) = PAGE.get(name) else { return Problem::not_found().into_response() };
    let mut response = Response::new(Body::from(file.bytes.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, file.content_type.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if file.is_gzipped {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_there_and_its_bytes_are_shared() {
        for name in FILES {
            let file = PAGE.get(name).unwrap_or_else(|| panic!("no {name}"));
            assert!(!file.bytes.is_empty(), "{name}");
            assert_eq!(file.bytes.clone().as_ptr(), file.bytes.as_ptr(), "{name} is copied");
        }
    }
}
