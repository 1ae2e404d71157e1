//! The fleet: all model hosts, their models, and their states.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until, timeout};

use super::breaker::BreakerState;
use super::catalogue::{CatalogueEntry, LastListing, Listing};
use super::error::OllamaError;
use super::host::{Host, HostId, HostTimeouts, http_client};
use super::pool::{HostState, Member, Slot};
use super::reply::{LoadedModel, Model};
use super::wire::KeepAlive;
use super::{lock, resolve};
use crate::config::check_hosts;
use crate::lifecycle::{Lifecycle, TaskEnd};
use crate::model_name::ModelName;
use crate::tls::TlsOptions;

/// How long a survey that has a match waits for the replies of other hosts.
const GRACE: Duration = Duration::from_millis(100);
/// Hosts that are asked for the description of a model, one after another, at most.
const DESCRIBERS: usize = 3;
/// How long the models of a list are described, at most.
const DESCRIPTION_LIMIT: Duration = Duration::from_secs(1);
/// The age up to which a host's last outcome counts for the fleet's health.
const HEALTH_AGE: Duration = Duration::from_secs(1);

/// The configuration of the fleet.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// The hosts: at least one, each once.
    pub hosts: Vec<HostConfig>,
    /// Time limit of connecting.
    pub connect_timeout: Duration,
    /// Time limit from the request to the first token; loading the model counts.
    pub first_token_timeout: Duration,
    /// Time limit between two tokens.
    pub token_gap_timeout: Duration,
    /// How long an idle model stays loaded, in Ollama's format: `5m`, `1h`, `-1`.
    pub keep_alive: String,
    /// The value of the Authorization header that every host gets; marked as sensitive.
    pub authorization: Option<HeaderValue>,
    /// The certificates of `https://` hosts.
    pub tls: TlsOptions,
}

/// A configured host; its name may stand for several hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// An `http://` or `https://` URL. Its path is a prefix; each address of its name is a host.
    pub url: Url,
    /// Concurrent generations on each of these hosts; at least 1.
    pub slots: usize,
}

/// All model hosts. Cloning is cheap, and clones share everything. The methods need a Tokio runtime.
#[derive(Clone, Debug)]
pub struct Fleet {
    inner: Arc<FleetInner>,
}

#[derive(Debug)]
struct FleetInner {
    config: FleetConfig,
    /// Replaced as a whole where the addresses of a name change.
    members: Mutex<Arc<[Arc<Member>]>>,
}

/// A host, and the models that it listed.
type ListedHost = (Arc<Member>, Arc<Listing>);

impl Fleet {
    /// Creates the fleet without connecting to a host. A host that is set by name has no address
    /// before [`Fleet::follow_names`].
    ///
    /// # Errors
    /// [`OllamaError::Setting`].
    pub fn new(config: FleetConfig) -> Result<Self, OllamaError> {
        let urls: Vec<&Url> = config.hosts.iter().map(|host| &host.url).collect();
        check_hosts(&urls).map_err(OllamaError::Setting)?;
        if config.hosts.iter().any(|host| host.slots == 0) {
            return Err(OllamaError::Setting("an Ollama host needs at least one slot"));
        }
        let inner = FleetInner { config, members: Mutex::new(Arc::new([])) };
        let literal = |host: &HostConfig| resolve::literal(&host.url).map(|address| vec![address]);
        inner.set(&inner.config.hosts.iter().map(literal).collect::<Vec<_>>())?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Starts to look up the hosts that are set by name, if there are any.
    pub fn follow_names(&self, lifecycle: &Lifecycle) {
        let hosts = &self.inner.config.hosts;
        if hosts.iter().any(|host| resolve::literal(&host.url).is_none()) {
            lifecycle.spawn("host names", follow_names(Arc::downgrade(&self.inner)));
        }
    }

    /// Returns the last known state of every host, in order, and requests those that are not fresh.
    pub fn hosts(&self) -> Vec<HostState> {
        self.members().iter().map(|member| member.state()).collect()
    }

    /// Takes a slot of the host for this model. The caller holds a grant for it.
    ///
    /// # Errors
    /// [`OllamaError::Unreachable`], also where the host is no longer in the fleet;
    /// [`OllamaError::ModelNotFound`]; [`OllamaError::ModelFailing`] where the model's breaker is
    /// open; [`OllamaError::Busy`] where every slot stays in use.
    pub async fn slot(&self, host: &HostId, model: &str) -> Result<Slot, OllamaError> {
        let members = self.members();
        let member = members.iter().find(|member| member.host.id == *host);
        let member = member.ok_or(OllamaError::Unreachable)?;
        let listing = member.catalogue.latest().ok_or(OllamaError::Unreachable)?;
        let Some(found) = listing.find(model) else {
            let available = listing.models.values().map(|model| model.name.clone()).collect();
            return Err(OllamaError::ModelNotFound { model: model.to_owned(), available });
        };
        Arc::clone(member).take(found.clone()).await
    }

    /// Returns the digest of a model on a host, by the host's last reply; none where it has none.
    pub fn digest(&self, host: &HostId, model: &str) -> Option<String> {
        let members = self.members();
        let member = members.iter().find(|member| member.host.id == *host)?;
        let digest = member.catalogue.latest()?.find(model)?.digest.clone();
        (!digest.is_empty()).then_some(digest)
    }

    pub(super) fn members(&self) -> Arc<[Arc<Member>]> {
        Arc::clone(&lock(&self.inner.members))
    }

    /// Returns the models of all hosts that reply, by name, at most 5 s old. Where hosts have
    /// different models of one name, it is the one that changed last.
    ///
    /// # Errors
    /// [`OllamaError::NoHost`].
    pub async fn models(&self) -> Result<Vec<Model>, OllamaError> {
        let survey = self.survey(None, |_| true).await;
        if survey.matching.is_empty() {
            return Err(OllamaError::NoHost);
        }
        Ok(merged(&survey.matching))
    }

    /// Returns the models in the memory of the hosts that reply, by name, at most 5 s old. Where
    /// several hosts have a model in memory, it is the one that stays there longest.
    ///
    /// # Errors
    /// [`OllamaError::NoHost`].
    pub async fn loaded(&self) -> Result<Vec<LoadedModel>, OllamaError> {
        let survey = self.survey(None, |_| true).await;
        if survey.matching.is_empty() {
            return Err(OllamaError::NoHost);
        }
        let mut all: BTreeMap<&ModelName, &LoadedModel> = BTreeMap::new();
        for (name, loaded) in survey.matching.iter().flat_map(|(_, listing)| &listing.loaded) {
            let known = all.entry(name).or_insert(loaded);
            if known.expires_at < loaded.expires_at {
                *known = loaded;
            }
        }
        Ok(all.into_values().cloned().collect())
    }

    /// Returns a host's description of a model, as the host sends it.
    ///
    /// # Errors
    /// As [`Fleet::check`], and those of the last host that has the model.
    pub async fn show(&self, model: &str) -> Result<Map<String, Value>, OllamaError> {
        let mut last = OllamaError::NoHost;
        for (member, listing) in self.holders(model).await?.into_iter().take(DESCRIBERS) {
            let Some(found) = listing.find(model) else { continue };
            match member.host.show(&found.name).await {
                Ok(description) => return Ok(description),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Checks that a host that replies has the model, in any spelling.
    ///
    /// # Errors
    /// [`OllamaError::NoHost`]; [`OllamaError::ModelNotFound`], which needs fresh replies of the
    /// hosts, not cached ones.
    pub async fn check(&self, model: &str) -> Result<(), OllamaError> {
        let known = self.members().iter().any(|member| match member.catalogue.entry() {
            CatalogueEntry::Fresh(Some(listing)) => listing.find(model).is_some(),
            _ => false,
        });
        if known {
            return Ok(());
        }
        self.holders(model).await.map(drop)
    }

    /// Returns whether the model takes images, as the hosts that have it describe it.
    ///
    /// # Errors
    /// As [`Fleet::check`], and those of the last host that has the model.
    pub async fn sees(&self, model: &str) -> Result<bool, OllamaError> {
        let mut last = None;
        for (member, listing) in self.holders(model).await?.into_iter().take(DESCRIBERS) {
            let Some(found) = listing.find(model) else { continue };
            match member.catalogue.details(found).await {
                Ok(details) if details.sees => return Ok(true),
                Ok(_) => last = Some(Ok(false)),
                Err(error) => last = last.or(Some(Err(error))),
            }
        }
        last.unwrap_or(Ok(false))
    }

    /// Returns the models as [`Fleet::models`] does, each with whether it takes images on any host: none
    /// where a host did not describe it within a second, and no other says that it does.
    ///
    /// # Errors
    /// [`OllamaError::NoHost`].
    pub async fn described_models(&self) -> Result<Vec<(Model, Option<bool>)>, OllamaError> {
        let survey = self.survey(None, |_| true).await;
        if survey.matching.is_empty() {
            return Err(OllamaError::NoHost);
        }
        let described =
            survey.matching.iter().map(|(member, listing)| member.catalogue.describe(listing));
        // The descriptions that are there by then are cached.
        let _ = timeout(DESCRIPTION_LIMIT, join_all(described)).await;
        let mut all: BTreeMap<&ModelName, Option<bool>> = BTreeMap::new();
        for (member, listing) in &survey.matching {
            for (name, model) in &listing.models {
                let sees = member.catalogue.known_to_see(model);
                let known = all.entry(name).or_insert(sees);
                *known = match (*known, sees) {
                    (Some(true), _) | (_, Some(true)) => Some(true),
                    (Some(false), Some(false)) => Some(false),
                    _ => None,
                };
            }
        }
        let describe = |model: Model| {
            let sees = all.get(&model.key).copied().flatten();
            (model, sees)
        };
        Ok(merged(&survey.matching).into_iter().map(describe).collect())
    }

    /// Returns the largest context window that a host allows for the model, where all hosts that
    /// list the model have replied what they allow.
    pub fn known_num_ctx(&self, model: &str) -> Option<u32> {
        let mut largest = None;
        for member in self.members().iter() {
            let CatalogueEntry::Fresh(Some(listing)) = member.catalogue.entry() else {
                return None;
            };
            if let Some(model) = listing.find(model) {
                largest = largest.max(Some(member.catalogue.known_num_ctx(model)?));
            }
        }
        largest
    }

    /// Returns whether a host other than these has the model, and no breaker keeps it from there.
    pub fn has_other(&self, model: &str, than: &[HostId]) -> bool {
        let Ok(model) = ModelName::parse(model) else { return false };
        self.hosts().iter().any(|host| {
            let is_open = host.breaker == BreakerState::Open
                || host.failed.get(&model) == Some(&BreakerState::Open);
            host.models.contains_key(&model) && !is_open && !than.contains(&host.id)
        })
    }

    /// Returns whether a host that does not reply now had the model when it last replied, so that
    /// the model may come back with it.
    pub fn may_return(&self, model: &str) -> bool {
        self.members().iter().any(|member| member.catalogue.had_before_failure(model))
    }

    /// Returns how many hosts reply.
    pub async fn healthy(&self) -> usize {
        let members = self.members();
        let checks = members.iter().map(|member| member.host.check_alive(HEALTH_AGE));
        join_all(checks).await.into_iter().flatten().count()
    }

    /// Returns the hosts that have the model, in the order of the settings.
    async fn holders(&self, model: &str) -> Result<Vec<ListedHost>, OllamaError> {
        let has_it = |listing: &Listing| listing.find(model).is_some();
        let survey = self.survey(Some(GRACE), has_it).await;
        if !survey.matching.is_empty() {
            return Ok(survey.matching);
        }
        let mut listed = survey.others;
        if survey.used_cache {
            // The model may have been pulled after the cached reply.
            let members = self.members();
            let refreshed = members.iter().map(async |member| {
                let listing = member.catalogue.refresh().await?;
                Some((Arc::clone(member), listing))
            });
            listed = join_all(refreshed).await.into_iter().flatten().collect();
        }
        if listed.is_empty() {
            return Err(OllamaError::NoHost);
        }
        let available = merged(&listed).into_iter().map(|model| model.name).collect();
        listed.retain(|(_, listing)| has_it(listing));
        if listed.is_empty() {
            return Err(OllamaError::ModelNotFound { model: model.to_owned(), available });
        }
        Ok(listed)
    }

    /// Collects the listings of all hosts, and asks the hosts whose cached reply is not fresh. Once
    /// a listing matches, it waits for the others no longer than `grace`. It waits for hosts that
    /// did not reply last time only where no listing matches.
    async fn survey(&self, grace: Option<Duration>, wanted: impl Fn(&Listing) -> bool) -> Survey {
        let members = self.members();
        let mut survey = Survey::default();
        let (likely, unlikely) = (FuturesUnordered::new(), FuturesUnordered::new());
        for member in members.iter() {
            match member.catalogue.entry() {
                CatalogueEntry::Fresh(reply) => {
                    survey.used_cache = true;
                    survey.add(member, reply, &wanted);
                }
                CatalogueEntry::Pending { listing, doubtful } => {
                    let pending = async move { (member, listing.await) };
                    if doubtful { unlikely.push(pending) } else { likely.push(pending) }
                }
            }
        }
        let grace = grace.map(|grace| Instant::now() + grace);
        survey.collect(likely, grace, &wanted).await;
        if survey.matching.is_empty() {
            survey.collect(unlikely, grace, &wanted).await;
        }
        survey
            .matching
            .sort_by(|(a, _), (b, _)| (a.number, &a.host.id).cmp(&(b.number, &b.host.id)));
        survey
    }
}

impl FleetInner {
    /// Replaces the members by those at these addresses: one list for each configured host. A host
    /// without a list keeps its members.
    fn set(&self, found: &[Option<Vec<SocketAddr>>]) -> Result<(), OllamaError> {
        let current = Arc::clone(&lock(&self.members));
        let mut members: Vec<Arc<Member>> = Vec::new();
        for (number, (host, addresses)) in self.config.hosts.iter().zip(found).enumerate() {
            let Some(addresses) = addresses else {
                members.extend(current.iter().filter(|member| member.number == number).cloned());
                continue;
            };
            for address in addresses {
                let id = HostId::of(&host.url, *address);
                if members.iter().any(|member| member.host.id == id) {
                    continue;
                }
                let same =
                    current.iter().find(|member| member.host.id == id && member.number == number);
                members.push(match same {
                    Some(member) => Arc::clone(member),
                    None => Arc::new(self.member(number, host, id, *address)?),
                });
            }
        }
        *lock(&self.members) = members.into();
        Ok(())
    }

    fn member(
        &self,
        number: usize,
        host: &HostConfig,
        id: HostId,
        address: SocketAddr,
    ) -> Result<Member, OllamaError> {
        let config = &self.config;
        let tls = (host.url.scheme() == "https").then_some(&config.tls);
        let pinned = host.url.host_str().map(|name| (name, address));
        let http = http_client(config.connect_timeout, tls, config.authorization.as_ref(), pinned)?;
        let limits = HostTimeouts {
            first_token: config.first_token_timeout,
            token_gap: config.token_gap_timeout,
        };
        let keep_alive = KeepAlive::from(config.keep_alive.as_str());
        let client = Host::new(id, host.url.clone(), http, limits, keep_alive);
        Member::new(number, client, host.slots)
    }
}

async fn follow_names(inner: Weak<FleetInner>) -> TaskEnd {
    loop {
        {
            let Some(inner) = inner.upgrade() else { return TaskEnd::Done };
            let lookups =
                inner.config.hosts.iter().map(async |host| match resolve::literal(&host.url) {
                    Some(address) => Some(vec![address]),
                    None => resolve::addresses(&host.url).await,
                });
            let found = join_all(lookups).await;
            if let Err(error) = inner.set(&found) {
                tracing::warn!(%error, "new address of a model host is not usable");
            }
        }
        tokio::time::sleep(resolve::LOOKUP_INTERVAL).await;
    }
}

/// The listings of all hosts.
#[derive(Default)]
struct Survey {
    matching: Vec<ListedHost>,
    others: Vec<ListedHost>,
    /// Whether a listing came from the cache.
    used_cache: bool,
}

impl Survey {
    fn add(
        &mut self,
        member: &Arc<Member>,
        reply: LastListing,
        wanted: &impl Fn(&Listing) -> bool,
    ) {
        if let Some(listing) = reply {
            let matches = wanted(&listing);
            let listed = (Arc::clone(member), listing);
            if matches { self.matching.push(listed) } else { self.others.push(listed) }
        }
    }

    async fn collect<'a, F: Future<Output = (&'a Arc<Member>, LastListing)>>(
        &mut self,
        mut pending: FuturesUnordered<F>,
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
                next = pending.next() => match next {
                    Some((member, reply)) => self.add(member, reply, wanted),
                    None => return,
                },
                () = grace_over => return,
            }
        }
    }
}

/// Returns one model for each name: the one that changed last.
fn merged(listed: &[ListedHost]) -> Vec<Model> {
    let mut models: BTreeMap<&ModelName, &Model> = BTreeMap::new();
    for (name, model) in listed.iter().flat_map(|(_, listing)| &listing.models) {
        let known = models.entry(name).or_insert(model);
        if known.modified_at < model.modified_at {
            *known = model;
        }
    }
    models.into_values().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn config(hosts: &[&str]) -> FleetConfig {
        samples::hosts(hosts, 1, Duration::from_secs(1))
    }

    #[tokio::test]
    async fn wrong_settings_are_refused_before_a_connection_is_opened() {
        let refused = |config| Fleet::new(config).map(drop).expect_err("refused").code();
        for hosts in [
            &[][..],
            &["ftp://h"],
            &["http://h", "http://h/"],
            &["http://h/?a"],
            &["http://h/a", "http://ann@h:80/a/"],
        ] {
            assert_eq!(refused(config(hosts)), "invalid_setting", "{hosts:?}");
        }
        let mut without_slots = config(&["http://h"]);
        without_slots.hosts[0].slots = 0;
        assert_eq!(refused(without_slots), "invalid_setting");
    }

    #[tokio::test]
    async fn the_hosts_of_a_name_change_with_its_addresses() {
        let mut config = config(&["http://name:1", "http://127.0.0.2:1"]);
        config.hosts[1].slots = 7;
        let fleet = Fleet::new(config).expect("a fleet");
        let of = |last: &[u8]| {
            let addresses = last.iter().map(|last| SocketAddr::from(([127, 0, 0, *last], 1)));
            Some(addresses.collect::<Vec<_>>())
        };
        let now = |found: Option<Vec<SocketAddr>>| {
            fleet.inner.set(&[found, of(&[2])]).expect("members");
            let hosts = fleet.hosts();
            let hosts = hosts.iter().map(|host| (host.id.as_str().to_owned(), host.slots));
            (hosts.collect::<Vec<_>>(), fleet.members())
        };
        let expected = |hosts: &[(u8, usize)]| -> Vec<(String, usize)> {
            hosts.iter().map(|(last, slots)| (format!("http://127.0.0.{last}:1"), *slots)).collect()
        };
        assert_eq!(now(None).0, expected(&[(2, 7)]), "before the first reply");
        let (hosts, before) = now(of(&[1, 2, 3]));
        assert_eq!(hosts, expected(&[(1, 1), (2, 1), (3, 1)]), "each address once");
        let (hosts, after) = now(of(&[3, 4]));
        assert_eq!(hosts, expected(&[(3, 1), (4, 1), (2, 7)]), "one is gone, one is new");
        assert!(Arc::ptr_eq(&before[2], &after[0]), "a host that stays keeps its streams");
        assert_eq!(now(None).0, hosts, "without a reply all stay");
        assert_eq!(now(of(&[])).0, expected(&[(2, 7)]));
    }

    #[tokio::test]
    async fn both_schemes_are_accepted_repeatedly() {
        for _ in 0..2 {
            assert!(Fleet::new(config(&["http://h"])).is_ok());
            assert!(Fleet::new(config(&["https://h:8443/ollama"])).is_ok());
        }
    }
}
