//! All hosts together: which models there are, and who takes the next generation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use reqwest::Url;
use tokio::time::{Instant, sleep_until};

use super::catalogue::{Answer, Listing, Look};
use super::error::OllamaError;
use super::host::{Host, HostId, Limits, http_client};
use super::pool::{Member, Slot};
use super::wire::{KeepAlive, Model};

/// How long a caller that has a host already waits to hear of others.
const GRACE: Duration = Duration::from_millis(100);
/// How long a sign of life counts where somebody asks for the fleet's health.
const HEALTH: Duration = Duration::from_secs(1);
/// How long a caller waits for a slot, where it does not say.
const SLOT_WAIT: Duration = Duration::from_mins(1);
/// When to come back after having waited for a slot in vain.
const BUSY_RETRY: Duration = Duration::from_secs(5);

/// The hosts, and how to treat them.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// `http://` or `https://`; at least one, each once. A path is kept as a prefix.
    pub hosts: Vec<Url>,
    /// Generations at a time on each host; at least 1.
    pub slots: usize,
    /// Time limit of connecting.
    pub connect_timeout: Duration,
    /// Time limit from the request to the first piece; loading the model counts.
    pub first_token_timeout: Duration,
    /// Time limit between two pieces.
    pub token_gap_timeout: Duration,
    /// How long an idle model stays loaded, as Ollama writes it: `5m`, `1h`, `-1`.
    pub keep_alive: String,
}

/// The hosts. Cloning is cheap, and clones share everything.
///
/// Its methods need a tokio runtime.
#[derive(Clone, Debug)]
pub struct Fleet {
    members: Arc<[Arc<Member>]>,
    slot_wait: Duration,
}

/// A host, and what it said it has.
type Answered = (Arc<Member>, Arc<Listing>);

impl Fleet {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// [`OllamaError::Setting`].
    pub fn new(config: FleetConfig) -> Result<Self, OllamaError> {
        check(&config)?;
        let tls = config.hosts.iter().any(|url| url.scheme() == "https");
        let http = http_client(config.connect_timeout, tls)?;
        let limits =
            Limits { first_token: config.first_token_timeout, token_gap: config.token_gap_timeout };
        let keep_alive = KeepAlive::from(config.keep_alive.as_str());
        let members: Result<Arc<[_]>, OllamaError> = config
            .hosts
            .into_iter()
            .enumerate()
            .map(|(number, url)| {
                let id = HostId(number);
                let host = Host::new(id, url, http.clone(), limits, keep_alive.clone());
                Ok(Arc::new(Member::new(host, config.slots)?))
            })
            .collect();
        Ok(Self { members: members?, slot_wait: SLOT_WAIT })
    }

    /// The same fleet, where a caller waits at most so long for a slot (60 s otherwise).
    #[must_use]
    pub fn with_slot_wait(self, slot_wait: Duration) -> Self {
        Self { slot_wait, ..self }
    }

    /// The models of all hosts that answer, by name, at most 5 s old. Where hosts have different
    /// models of one name, the last one changed.
    ///
    /// # Errors
    /// [`OllamaError::NoHost`].
    pub async fn models(&self) -> Result<Vec<Model>, OllamaError> {
        let survey = self.survey(&[], None, |_| true).await;
        if survey.matching.is_empty() {
            return Err(OllamaError::NoHost);
        }
        Ok(merged(&survey.matching))
    }

    /// Whether some host that answers has the model; a name without a tag means `:latest`.
    ///
    /// # Errors
    /// [`OllamaError::NoHost`]; [`OllamaError::ModelNotFound`], which is only said after having
    /// asked, not from memory.
    pub async fn check(&self, model: &str) -> Result<(), OllamaError> {
        let known = self.members.iter().any(|member| match member.catalogue.look() {
            Look::Known(Some(listing)) => listing.find(model).is_some(),
            _ => false,
        });
        if known {
            return Ok(());
        }
        self.holders(model, &[]).await.map(drop)
    }

    /// How many hosts answer.
    pub async fn healthy(&self) -> usize {
        let asked = self.members.iter().map(|member| member.host.prove_alive(HEALTH));
        join_all(asked).await.into_iter().flatten().count()
    }

    /// The largest context window that the model allows, in tokens; none where no host tells.
    pub async fn num_ctx(&self, model: &str) -> Option<u32> {
        for (member, listing) in self.holders(model, &[]).await.ok()? {
            if let Some(model) = listing.find(model)
                && let Ok(details) = member.catalogue.details(model).await
            {
                return details.num_ctx;
            }
        }
        None
    }

    /// A slot of a host that has the model.
    ///
    /// # Errors
    /// [`OllamaError::NoHost`], [`OllamaError::ModelNotFound`], [`OllamaError::Busy`].
    pub async fn acquire(&self, model: &str) -> Result<Slot, OllamaError> {
        self.acquire_excluding(model, &[]).await
    }

    /// As [`Fleet::acquire`], of another host than these.
    ///
    /// Free hosts first, among them the one with the fewest generations, then one that has the
    /// model loaded. When all are in use, the first slot that comes free.
    ///
    /// # Errors
    /// As [`Fleet::acquire`]; [`OllamaError::NoHost`] also where only these hosts are left.
    pub async fn acquire_excluding(
        &self,
        model: &str,
        excluded: &[HostId],
    ) -> Result<Slot, OllamaError> {
        let deadline = Instant::now() + self.slot_wait;
        let mut candidates: Vec<_> = self
            .holders(model, excluded)
            .await?
            .into_iter()
            .filter_map(|(member, listing)| {
                let found = listing.find(model)?.clone();
                let load = (member.in_flight(), !listing.has_loaded(model));
                Some((load, member, found))
            })
            .collect();
        candidates.sort_by_key(|(load, ..)| *load);
        let mut full = Vec::new();
        for (_, member, found) in candidates {
            match Arc::clone(&member).take(found.clone(), Duration::ZERO).await {
                Ok(Some(slot)) => return Ok(slot),
                Ok(None) => full.push((member, found)),
                Err(error) => tracing::debug!(host = %member.host.name, %error, "passed over"),
            }
        }
        let wait = deadline.saturating_duration_since(Instant::now());
        let mut waiting: FuturesUnordered<_> =
            full.into_iter().map(|(member, found)| member.take(found, wait)).collect();
        let mut busy = false;
        while let Some(taken) = waiting.next().await {
            match taken {
                Ok(Some(slot)) => return Ok(slot),
                Ok(None) => busy = true,
                Err(error) => {
                    tracing::debug!(%error, "a host failed while its slot was waited for");
                }
            }
        }
        Err(if busy { OllamaError::Busy { retry_after: BUSY_RETRY } } else { OllamaError::NoHost })
    }

    /// The hosts that have the model, in the order of the settings.
    async fn holders(
        &self,
        model: &str,
        excluded: &[HostId],
    ) -> Result<Vec<Answered>, OllamaError> {
        let has_it = |listing: &Listing| listing.find(model).is_some();
        let survey = self.survey(excluded, Some(GRACE), has_it).await;
        if !survey.matching.is_empty() {
            return Ok(survey.matching);
        }
        let mut answered = survey.others;
        if survey.from_memory {
            // It may have been pulled since.
            let asked = self.considered(excluded).map(async |member| {
                let listing = member.catalogue.ask().await?;
                Some((Arc::clone(member), listing))
            });
            answered = join_all(asked).await.into_iter().flatten().collect();
        }
        if answered.is_empty() {
            return Err(OllamaError::NoHost);
        }
        let available = merged(&answered).into_iter().map(|model| model.name).collect();
        answered.retain(|(_, listing)| has_it(listing));
        if answered.is_empty() {
            return Err(OllamaError::ModelNotFound { model: model.to_owned(), available });
        }
        Ok(answered)
    }

    /// Asks the hosts that have not answered lately. Waits for all of them, with `grace` only so
    /// long once there is a match; those that gave no answer last time only where there is none.
    async fn survey(
        &self,
        excluded: &[HostId],
        grace: Option<Duration>,
        wanted: impl Fn(&Listing) -> bool,
    ) -> Survey {
        let mut survey = Survey::default();
        let (hopeful, doubtful) = (FuturesUnordered::new(), FuturesUnordered::new());
        for member in self.considered(excluded) {
            match member.catalogue.look() {
                Look::Known(answer) => {
                    survey.from_memory = true;
                    survey.add(member, answer, &wanted);
                }
                Look::Asked { question, doubtful: in_doubt } => {
                    let asked = async move { (member, question.await) };
                    if in_doubt { doubtful.push(asked) } else { hopeful.push(asked) }
                }
            }
        }
        let grace = grace.map(|grace| Instant::now() + grace);
        survey.gather(hopeful, grace, &wanted).await;
        if survey.matching.is_empty() {
            survey.gather(doubtful, grace, &wanted).await;
        }
        survey.matching.sort_by_key(|(member, _)| member.host.id.0);
        survey
    }

    fn considered(&self, excluded: &[HostId]) -> impl Iterator<Item = &Arc<Member>> {
        self.members.iter().filter(|member| !excluded.contains(&member.host.id))
    }
}

/// What the hosts said.
#[derive(Default)]
struct Survey {
    matching: Vec<Answered>,
    others: Vec<Answered>,
    /// Something of it was said before this survey began.
    from_memory: bool,
}

impl Survey {
    fn add(&mut self, member: &Arc<Member>, answer: Answer, wanted: &impl Fn(&Listing) -> bool) {
        if let Some(listing) = answer {
            let matches = wanted(&listing);
            let answered = (Arc::clone(member), listing);
            if matches { self.matching.push(answered) } else { self.others.push(answered) }
        }
    }

    async fn gather<'a, F: Future<Output = (&'a Arc<Member>, Answer)>>(
        &mut self,
        mut asked: FuturesUnordered<F>,
        grace: Option<Instant>,
        wanted: &impl Fn(&Listing) -> bool,
    ) {
        loop {
            let grace_over = async {
                match grace {
                    Some(end) if !self.matching.is_empty() => sleep_until(end).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                next = asked.next() => match next {
                    Some((member, answer)) => self.add(member, answer, wanted),
                    None => return,
                },
                () = grace_over => return,
            }
        }
    }
}

/// One model a name, the one changed last.
fn merged(answered: &[Answered]) -> Vec<Model> {
    let mut models: BTreeMap<&str, &Model> = BTreeMap::new();
    for model in answered.iter().flat_map(|(_, listing)| &listing.models) {
        let known = models.entry(&model.name).or_insert(model);
        if known.modified_at < model.modified_at {
            *known = model;
        }
    }
    models.into_values().cloned().collect()
}

fn check(config: &FleetConfig) -> Result<(), OllamaError> {
    let wrong = |text| Err(OllamaError::Setting(text));
    if config.hosts.is_empty() {
        return wrong("at least one Ollama host is needed");
    }
    if config.slots == 0 {
        return wrong("an Ollama host needs at least one slot");
    }
    for (number, url) in config.hosts.iter().enumerate() {
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return wrong("an Ollama host is http://host:port or https://host:port");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return wrong("the URL of an Ollama host has no query and no fragment");
        }
        if config.hosts[..number].contains(url) {
            return wrong("each Ollama host is given once");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(hosts: &[&str]) -> FleetConfig {
        FleetConfig {
            hosts: hosts.iter().map(|host| host.parse().expect("a URL")).collect(),
            slots: 1,
            connect_timeout: Duration::from_secs(1),
            first_token_timeout: Duration::from_secs(1),
            token_gap_timeout: Duration::from_secs(1),
            keep_alive: "5m".to_owned(),
        }
    }

    #[test]
    fn wrong_settings_are_refused_before_anything_is_opened() {
        let refused = |config| Fleet::new(config).map(drop).expect_err("refused").code();
        for hosts in [&[][..], &["ftp://h"], &["http://h", "http://h/"], &["http://h/?a"]] {
            assert_eq!(refused(config(hosts)), "invalid_setting", "{hosts:?}");
        }
        assert_eq!(refused(FleetConfig { slots: 0, ..config(&["http://h"]) }), "invalid_setting");
    }

    #[test]
    fn both_schemes_are_accepted_however_often() {
        for _ in 0..2 {
            assert!(Fleet::new(config(&["http://h"])).is_ok());
            assert!(Fleet::new(config(&["https://h:8443/ollama"])).is_ok());
        }
    }
}
