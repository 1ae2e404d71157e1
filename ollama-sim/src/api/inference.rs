//! The part that chat and generate share: the choice of the model, and the check that the prompt
//! fits.

use std::sync::Arc;
use std::time::Instant;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::engine::Task;
use crate::error::ApiError;
use crate::generation::{self, JSON, Job, respond};
use crate::images;
use crate::journal::Entry;
use crate::models::Model;
use crate::net::Connection;
use crate::options::{KeepAlive, Options};
use crate::schema;
use crate::simulator::Simulator;
use crate::stats::count;
use crate::template::{self, Thinking};
use crate::wire::{Common, Message, Shape};

/// Tokens of an image.
const IMAGE_TOKENS: usize = 64;

/// A request whose shared part was checked.
pub struct Inference {
    since: Instant,
    shape: Shape,
    name: String,
    model: Model,
    options: Options,
    num_ctx: usize,
    keep_alive: KeepAlive,
    pub thinking: Thinking,
    common: Common,
    /// The calls of tools that the answer ends with.
    pub calls: Vec<Value>,
    /// The digests of the images.
    images: Vec<String>,
}

/// A prompt after it was fitted to the context.
pub struct Fitted {
    prompt: String,
    tokens: usize,
    beheaded: bool,
}

impl Inference {
    /// Checks the shared part, in Ollama's order.
    pub fn read(server: &Simulator, shape: Shape, common: Common) -> Result<Self, ApiError> {
        let name = common.model.clone().unwrap_or_default();
        if name.is_empty() {
            return Err(ApiError::BadRequest("model is required".to_owned()));
        }
        let model =
            server.models.get(&name).ok_or_else(|| ApiError::ModelNotFound(name.clone()))?;
        if model.embeds() {
            let what = match shape {
                Shape::Chat => "chat",
                Shape::Generate => "generate",
            };
            return Err(ApiError::Unsupported { model: name, what });
        }
        let thinking = thinking(&model, &name, common.think.as_ref())?;
        let keep_alive = KeepAlive::read(common.keep_alive.as_ref())?;
        let options = Options::read(common.options.as_ref())?;
        if let Some(Value::String(format)) = &common.format
            && !matches!(format.as_str(), "" | "json")
        {
            let text = format!(
                "invalid format: \"{format}\"; expected \"json\" or a valid JSON Schema object"
            );
            return Err(ApiError::BadRequest(text));
        }
        if common.format.as_ref().is_some_and(schema::is_unfollowable) {
            return Err(ApiError::Internal("invalid JSON schema in format".to_owned()));
        }
        if server.config.is_too_large(&model.name) {
            return Err(ApiError::TooLarge);
        }
        if model.is_unknown_kind() {
            return Err(ApiError::UnknownKind);
        }
        let num_ctx = options.num_ctx.unwrap_or(server.config.num_ctx).min(server.config.model_ctx);
        Ok(Self {
            since: Instant::now(),
            shape,
            name,
            model,
            options,
            num_ctx,
            keep_alive,
            thinking,
            common,
            calls: Vec::new(),
            images: Vec::new(),
        })
    }

    /// Takes the images of the request, in base64.
    pub fn take_images<'a>(
        &mut self,
        images: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), ApiError> {
        self.images = images::digests(images)?;
        if !self.images.is_empty() && !self.model.sees() {
            let text = "this model is missing data required for image input";
            return Err(ApiError::Internal(text.to_owned()));
        }
        Ok(())
    }

    /// Loads or unloads the model where the request has nothing to generate.
    pub async fn load_only(&self, server: &Simulator, entry: &Entry) -> Response {
        let reason = if self.keep_alive.is_zero() {
            server.models.unload(&self.model);
            count(&server.counters.unloads);
            "unload"
        } else {
            generation::load(server, &self.model, self.num_ctx, self.keep_alive).await;
            "load"
        };
        entry.end(reason);
        let body = self.shape.loaded(&self.name, reason);
        ([(header::CONTENT_TYPE, JSON)], body).into_response()
    }

    /// Returns the rendered prompt instead of an answer where the request wants that.
    pub fn rendered(&self, prompt: &str) -> Option<Value> {
        self.common
            .debug_render_only
            .unwrap_or(false)
            .then(|| self.shape.rendered(&self.name, prompt))
    }

    /// Makes a conversation fit: without `truncate: false` Ollama drops the oldest messages
    /// silently.
    pub async fn fit_messages(
        &self,
        server: &Simulator,
        messages: &[Message],
    ) -> Result<Fitted, ApiError> {
        let mut kept = messages.to_vec();
        loop {
            let prompt = template::render(&kept, self.thinking);
            let tokens = self.count(server, &prompt).await?;
            if tokens <= self.num_ctx {
                return Ok(Fitted { prompt, tokens, beheaded: false });
            }
            let oldest = kept[..kept.len().saturating_sub(1)]
                .iter()
                .position(|message| message.role != "system");
            match oldest {
                Some(at) if self.common.truncate != Some(false) => {
                    kept.remove(at);
                }
                _ => return self.behead(&prompt, tokens),
            }
        }
    }

    /// Makes a prompt fit: without `truncate: false` Ollama drops its beginning silently.
    pub async fn fit_prompt(&self, server: &Simulator, prompt: &str) -> Result<Fitted, ApiError> {
        let tokens = self.count(server, prompt).await?;
        if tokens <= self.num_ctx {
            return Ok(Fitted { prompt: prompt.to_owned(), tokens, beheaded: false });
        }
        self.behead(prompt, tokens)
    }

    async fn count(&self, server: &Simulator, prompt: &str) -> Result<usize, ApiError> {
        let counted = server.engine.count(prompt).await;
        let counted = counted.map_err(|error| ApiError::Internal(error.to_string()))?;
        Ok(counted + self.images.len() * IMAGE_TOKENS)
    }

    /// Cuts the beginning of a prompt off, as the real Ollama does: it keeps half of the context and two
    /// tokens.
    fn behead(&self, prompt: &str, tokens: usize) -> Result<Fitted, ApiError> {
        if self.common.truncate == Some(false) {
            return Err(ApiError::PromptTooLong { prompt_tokens: tokens, num_ctx: self.num_ctx });
        }
        let left = (self.num_ctx / 2 + 2).min(self.num_ctx);
        let bytes = prompt.len() / tokens.max(1) * left;
        let from = prompt.floor_char_boundary(prompt.len().saturating_sub(bytes));
        Ok(Fitted { prompt: prompt[from..].to_owned(), tokens: left, beheaded: true })
    }

    /// Starts the generation and returns its response.
    pub async fn generate(
        self,
        server: Arc<Simulator>,
        connection: Connection,
        entry: Arc<Entry>,
        fitted: Fitted,
        raw: bool,
    ) -> Response {
        let path = match self.shape {
            Shape::Chat => "/api/chat",
            Shape::Generate => "/api/generate",
        };
        if let Err(error) = images::check(&fitted.prompt, self.images.len()) {
            return refused(&entry, error);
        }
        let user = template::parse(&fitted.prompt).user;
        let fault = server.faults.plan(path, &self.name, user);
        let heeds = !self.model.is_heedless();
        let room = (self.common.shift == Some(false) && heeds)
            .then(|| self.num_ctx.saturating_sub(fitted.tokens));
        let num_predict = self.options.num_predict.filter(|_| heeds);
        let prompt: Arc<str> = fitted.prompt.into();
        entry.prompt(Arc::clone(&prompt));
        let job = Job {
            shape: self.shape,
            stream: self.common.stream.unwrap_or(true),
            requested_name: self.name,
            num_ctx: self.num_ctx,
            keep_alive: self.keep_alive,
            task: Task {
                model: self.model.origin.clone(),
                prompt,
                prompt_tokens: fitted.tokens,
                beheaded: fitted.beheaded,
                thinks: self.model.thinks(),
                raw,
                room,
                options: Options { num_predict, ..self.options },
                formatted: self.common.format.as_ref().and_then(schema::answer),
                calls: self.calls,
                images: self.images,
            },
            model: self.model,
            fault,
            entry,
            since: self.since,
        };
        respond(server, connection, job).await
    }
}

fn thinking(model: &Model, name: &str, think: Option<&Value>) -> Result<Thinking, ApiError> {
    let wanted = match think {
        None | Some(Value::Null) => None,
        Some(Value::Bool(think)) => Some(*think),
        Some(Value::String(level)) if matches!(level.as_str(), "low" | "medium" | "high") => {
            Some(true)
        }
        Some(other) => {
            let text = format!("invalid think value: {other}");
            return Err(ApiError::BadRequest(text));
        }
    };
    match (model.thinks(), wanted) {
        (true, Some(false)) => Ok(Thinking::Off),
        (true, _) => Ok(Thinking::On),
        (false, Some(true)) => {
            Err(ApiError::Unsupported { model: name.to_owned(), what: "thinking" })
        }
        (false, _) => Ok(Thinking::Unsupported),
    }
}

/// Turns an error into its response, and writes it to the journal.
pub fn refused(entry: &Entry, error: ApiError) -> Response {
    entry.end(format!("refused: {error}"));
    error.into_response()
}
