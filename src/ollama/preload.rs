//! Preloading: models are in the hosts' memory before the first turn.

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
use super::wire::{Always, HostChatBody, Options, Think};
use crate::retry::Backoff;

/// How long preloading waits for hosts that do not reply.
const LIMIT: Duration = Duration::from_mins(5);
/// Pauses before such hosts are asked again.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(2));

impl Fleet {
    /// Loads the models on every host that has them, one after another, with the context window of
    /// generations: the model's own, of `num_ctx_cap` tokens at most. Waits up to five minutes for
    /// hosts that do not reply yet. A failure is only logged: the host loads such a model with its
    /// first request.
    pub async fn preload(&self, models: &[String], num_ctx_cap: u32) {
        let mut backoff = BACKOFF.until(Instant::now() + LIMIT);
        let mut done = HashSet::new();
        let mut missing: HashSet<&str> = models.iter().map(String::as_str).collect();
        loop {
            let members = self.members();
            let new = members.iter().filter(|member| !done.contains(&member.host.id));
            let replies = join_all(new.map(async |member| {
                let listing = member.catalogue.refresh().await?;
                preload_on(member, &listing, models, num_ctx_cap).await;
                Some((member.host.id.clone(), listing))
            }));
            for (id, listing) in replies.await.into_iter().flatten() {
                done.insert(id);
                missing.retain(|model| listing.find(model).is_none());
            }
            // A host that is set by name becomes a member once its address is known.
            let waits = members.iter().any(|member| !done.contains(&member.host.id));
            if !waits && !members.is_empty() {
                break;
            }
            if !backoff.pause().await {
                tracing::warn!("preload without an unreachable model host; start the host");
                break;
            }
        }
        for model in missing {
            tracing::warn!(
                model,
                "preload of a model that no host has; pull it on a host, or leave it out"
            );
        }
    }
}

async fn preload_on(member: &Arc<Member>, listing: &Listing, models: &[String], num_ctx_cap: u32) {
    for model in models.iter().filter_map(|model| listing.find(model)) {
        let host = &member.host.name;
        // The context window of generations: the host would load the model again for another one.
        let started = Instant::now();
        let loaded = match member.catalogue.details(model).await {
            Ok(details) => {
                load(member, model, details.num_ctx.map(|num_ctx| num_ctx.min(num_ctx_cap))).await
            }
            Err(error) => Err(error),
        };
        match loaded {
            Ok(()) => {
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(%host, model = model.name, seconds, "model preloaded");
            }
            Err(error) => tracing::warn!(
                %host, model = model.name, %error,
                "preload of a model failed, and its first request loads it; check that it fits \
                 the host's memory, or raise --first-token-timeout"
            ),
        }
    }
}

/// Loads a model: a conversation without messages generates nothing.
async fn load(member: &Member, model: &Model, num_ctx: Option<u32>) -> Result<(), OllamaError> {
    let options = Options { num_predict: 1, num_ctx, ..Options::default() };
    let body = HostChatBody {
        model: &model.name,
        messages: &[],
        options: &options,
        format: None,
        tools: None,
        stream: false,
        render_only: false,
        always: Always::new(&member.host.keep_alive, Think::No),
    };
    member.host.object("api/chat", &model.name, &body, None).await.map(drop)
}
