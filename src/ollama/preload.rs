//! Models that are in memory before the first question.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::catalogue::Listing;
use super::error::OllamaError;
use super::fleet::Fleet;
use super::pool::Member;
use super::reply::Model;
use crate::retry::Backoff;

use super::wire::{Always, ChatBody, Options, Think};

/// How long hosts that do not answer are waited for.
const LIMIT: Duration = Duration::from_mins(5);
/// Pauses before they are asked again.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(2));

impl Fleet {
    /// Has every host load those of the models that it has, one after another, with the context
    /// window that generations get: the model's own, of `num_ctx_cap` tokens at most. Waits up to
    /// five minutes for hosts that do not answer yet. What fails is logged, and no loss: such a
    /// model is loaded with its first question.
    pub async fn preload(&self, models: &[String], num_ctx_cap: u32) {
        let mut backoff = BACKOFF.until(Instant::now() + LIMIT);
        let mut asked = HashSet::new();
        let mut missing: HashSet<&str> = models.iter().map(String::as_str).collect();
        loop {
            let members = self.members();
            let new = members.iter().filter(|member| !asked.contains(&member.host.id));
            let answers = join_all(new.map(async |member| {
                let listing = member.catalogue.ask().await?;
                preload_on(member, &listing, models, num_ctx_cap).await;
                Some((member.host.id.clone(), listing))
            }));
            for (id, listing) in answers.await.into_iter().flatten() {
                asked.insert(id);
                missing.retain(|model| listing.find(model).is_none());
            }
            // A host that is given by name is no member before its address is known.
            let waits = members.iter().any(|member| !asked.contains(&member.host.id));
            if !waits && !members.is_empty() {
                break;
            }
            if !backoff.pause().await {
                tracing::warn!("a model host does not answer, and preloads nothing: start it");
                break;
            }
        }
        for model in missing {
            tracing::warn!(
                model,
                "no host has this model to preload: pull it on one, or leave it out"
            );
        }
    }
}

async fn preload_on(member: &Arc<Member>, listing: &Listing, models: &[String], num_ctx_cap: u32) {
    for model in models.iter().filter_map(|model| listing.find(model)) {
        let host = &member.host.name;
        // As for generations: with another window it would be loaded again.
        let started = Instant::now();
        let loaded = match member.catalogue.details(model).await {
            Ok(details) => {
                load(member, model, details.num_ctx.map(|own| own.min(num_ctx_cap))).await
            }
            Err(error) => Err(error),
        };
        match loaded {
            Ok(()) => {
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(%host, model = model.name, seconds, "a model is loaded");
            }
            Err(error) => tracing::warn!(
                %host, model = model.name, %error,
                "a model could not be preloaded, and is loaded with its first question; \
                 see that it fits the host's memory, or raise --first-token-timeout"
            ),
        }
    }
}

/// A conversation without messages loads the model and generates nothing.
async fn load(member: &Member, model: &Model, num_ctx: Option<u32>) -> Result<(), OllamaError> {
    let options =
        Options { temperature: 0.0, num_predict: 1, num_ctx, seed: None, stop: Vec::new() };
    let body = ChatBody {
        model: &model.name,
        messages: &[],
        options: &options,
        stream: false,
        render_only: false,
        always: Always::new(&member.host.keep_alive, Think::No),
    };
    member.host.object("api/chat", &model.name, &body).await.map(drop)
}
