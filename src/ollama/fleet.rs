//! All hosts together: which there are, which models they have, and how each gets on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use reqwest::Url;
use tokio::time::{Instant, sleep_until};

use super::breaker::BreakerState;
use super::catalogue::{CatalogueEntry, LastListing, Listing};
use super::error::OllamaError;
use super::host::{Host, HostId, HostTimeouts, http_client};
use super::pool::{HostState, Member, Slot};
use super::reply::Model;
use super::wire::KeepAlive;
use super::{lock, resolve};
use crate::lifecycle::{Lifecycle, TaskEnd};
use crate::model_name::ModelName;

/// How long a caller that has a host already waits to hear of others.
const GRACE: Duration = Duration::from_millis(100);
/// How long a sign of life counts where somebody asks for the fleet's health.
const HEALTH: Duration = Duration::from_secs(1);
/// The hosts, and how to treat them.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// At least one, each once.
    pub hosts: Vec<HostConfig>,
    /// Time limit of connecting.
    pub connect_timeout: Duration,
    /// Time limit from the request to the first piece; loading the model counts.
    pub first_token_timeout: Duration,
    /// Time limit between two pieces.
    pub token_gap_timeout: Duration,
    /// How long an idle model stays loaded, as Ollama writes it: `5m`, `1h`, `-1`.
    pub keep_alive: String,
}

/// A host, or several of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// `http://` or `https://`. A path is kept as a prefix; each address of a name is a host.
    pub url: Url,
    /// Generations at a time on each of them; at least 1.
    pub slots: usize,
}

/// The hosts. Cloning is cheap, and clones share everything.
///
/// Its methods need a tokio runtime.
#[derive(Clone, Debug)]
pub struct Fleet {
    inner: Arc<FleetInner>,
}

#[derive(Debug)]
struct FleetInner {
    config: FleetConfig,
    /// Replaced whole, where a name has other addresses.
    members: Mutex<Arc<[Arc<Member>]>>,
}

/// A host, and what it said it has.
type Answered = (Arc<Member>, Arc<Listing>);

impl Fleet {
    /// Opens nothing yet. A host that is given by name has no address before
    /// [`Fleet::follow_names`].
    ///
    /// # Errors
    /// [`OllamaError::Setting`].
    pub fn new(config: FleetConfig) -> Result<Self, OllamaError> {
        check_hosts(&config.hosts).map_err(OllamaError::Setting)?;
        let inner = FleetInner { config, members: Mutex::new(Arc::new([])) };
        let literal = |host: &HostConfig| resolve::literal(&host.url).map(|address| vec![address]);
        inner.set(&inner.config.hosts.iter().map(literal).collect::<Vec<_>>())?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Begins to look up the hosts that are given by name, if there are any. To be called inside a
    /// Tokio runtime.
    pub fn follow_names(&self, lifecycle: &Lifecycle) {
        let hosts = &self.inner.config.hosts;
        if hosts.iter().any(|host| resolve::literal(&host.url).is_none()) {
            lifecycle.spawn("host names", follow_names(Arc::downgrade(&self.inner)));
        }
    }

    /// What is known of every host, in order. What is not known freshly is asked for meanwhile.
    pub fn hosts(&self) -> Vec<HostState> {
        self.members().iter().map(|member| member.state()).collect()
    }

    /// A client of the host, to answer with this model. Whoever calls has the right to one.
    ///
    /// # Errors
    /// [`OllamaError::Unreachable`] also where there is no such host any more;
    /// [`OllamaError::ModelNotFound`]; [`OllamaError::ModelFailing`] where it is left alone there;
    /// [`OllamaError::Busy`] where more is under way than may be.
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

    pub(super) fn members(&self) -> Arc<[Arc<Member>]> {
        Arc::clone(&lock(&self.inner.members))
    }

    /// The models of all hosts that answer, by name, at most 5 s old. Where hosts have different
    /// models of one name, the last one changed.
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

    /// Whether some host that answers has the model, however it is spelled.
    ///
    /// # Errors
    /// [`OllamaError::NoHost`]; [`OllamaError::ModelNotFound`], which is only said after having
    /// asked, not from memory.
    pub async fn check(&self, model: &str) -> Result<(), OllamaError> {
        let known = self.members().iter().any(|member| match member.catalogue.look() {
            CatalogueEntry::Known(Some(listing)) => listing.find(model).is_some(),
            _ => false,
        });
        if known {
            return Ok(());
        }
        self.holders(model).await.map(drop)
    }

    /// Whether a host has the model that is none of these, and may be asked now.
    pub fn has_other(&self, model: &str, than: &[HostId]) -> bool {
        let Ok(model) = ModelName::parse(model) else { return false };
        self.hosts().iter().any(|host| {
            let is_open = host.breaker == BreakerState::Open
                || host.failed.get(&model) == Some(&BreakerState::Open);
            host.models.contains_key(&model) && !is_open && !than.contains(&host.id)
        })
    }

    /// Whether a host that does not answer now had the model when it last answered, so that the model
    /// may be back with it.
    pub fn may_return(&self, model: &str) -> bool {
        self.members().iter().any(|member| member.catalogue.had_before_silence(model))
    }

    /// How many hosts answer.
    pub async fn healthy(&self) -> usize {
        let members = self.members();
        let asked = members.iter().map(|member| member.host.prove_alive(HEALTH));
        join_all(asked).await.into_iter().flatten().count()
    }

    /// The hosts that have the model, in the order of the settings.
    async fn holders(&self, model: &str) -> Result<Vec<Answered>, OllamaError> {
        let has_it = |listing: &Listing| listing.find(model).is_some();
        let survey = self.survey(Some(GRACE), has_it).await;
        if !survey.matching.is_empty() {
            return Ok(survey.matching);
        }
        let mut answered = survey.others;
        if survey.from_memory {
            // It may have been pulled since.
            let members = self.members();
            let asked = members.iter().map(async |member| {
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
    async fn survey(&self, grace: Option<Duration>, wanted: impl Fn(&Listing) -> bool) -> Survey {
        let members = self.members();
        let mut survey = Survey::default();
        let (hopeful, doubtful) = (FuturesUnordered::new(), FuturesUnordered::new());
        for member in members.iter() {
            match member.catalogue.look() {
                CatalogueEntry::Known(answer) => {
                    survey.from_memory = true;
                    survey.add(member, answer, &wanted);
                }
                CatalogueEntry::Asked { question, doubtful: in_doubt } => {
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
        survey
            .matching
            .sort_by(|(a, _), (b, _)| (a.number, &a.host.id).cmp(&(b.number, &b.host.id)));
        survey
    }
}

impl FleetInner {
    /// Makes the members of these addresses, one list a host of the settings; without one, those
    /// that it has stay.
    fn set(&self, found: &[Option<Vec<SocketAddr>>]) -> Result<(), OllamaError> {
        let known = Arc::clone(&lock(&self.members));
        let mut members: Vec<Arc<Member>> = Vec::new();
        for (number, (host, addresses)) in self.config.hosts.iter().zip(found).enumerate() {
            let Some(addresses) = addresses else {
                members.extend(known.iter().filter(|member| member.number == number).cloned());
                continue;
            };
            for address in addresses {
                let id = HostId::of(&host.url, *address);
                if members.iter().any(|member| member.host.id == id) {
                    continue;
                }
                let same =
                    known.iter().find(|member| member.host.id == id && member.number == number);
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
        let tls = host.url.scheme() == "https";
        let pinned = host.url.host_str().map(|name| (name, address));
        let http = http_client(config.connect_timeout, tls, pinned)?;
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
            let asked =
                inner.config.hosts.iter().map(async |host| match resolve::literal(&host.url) {
                    Some(address) => Some(vec![address]),
                    None => resolve::addresses(&host.url).await,
                });
            let found = join_all(asked).await;
            if let Err(error) = inner.set(&found) {
                tracing::warn!(%error, "a model host's new address cannot be used");
            }
        }
        tokio::time::sleep(resolve::EVERY).await;
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
    fn add(
        &mut self,
        member: &Arc<Member>,
        answer: LastListing,
        wanted: &impl Fn(&Listing) -> bool,
    ) {
        if let Some(listing) = answer {
            let matches = wanted(&listing);
            let answered = (Arc::clone(member), listing);
            if matches { self.matching.push(answered) } else { self.others.push(answered) }
        }
    }

    async fn gather<'a, F: Future<Output = (&'a Arc<Member>, LastListing)>>(
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
    let mut models: BTreeMap<&ModelName, &Model> = BTreeMap::new();
    for (name, model) in answered.iter().flat_map(|(_, listing)| &listing.models) {
        let known = models.entry(name).or_insert(model);
        if known.modified_at < model.modified_at {
            *known = model;
        }
    }
    models.into_values().cloned().collect()
}

/// Checks the hosts of the settings.
///
/// # Errors
/// What is wrong, and what to do.
pub fn check_hosts(hosts: &[HostConfig]) -> Result<(), &'static str> {
    if hosts.is_empty() {
        return Err("at least one Ollama host is needed");
    }
    for (number, HostConfig { url, slots }) in hosts.iter().enumerate() {
        if *slots == 0 {
            return Err("an Ollama host needs at least one slot");
        }
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("an Ollama host is http://host:port or https://host:port");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the URL of an Ollama host (--ollama-urls) has no query and no fragment; \
                leave out what follows its ? or #");
        }
        if hosts[..number].iter().any(|other| same_place(&other.url, url)) {
            return Err("two Ollama hosts (--ollama-urls) are the same; name each host once, and \
                set how many generations it runs with ;slots=N");
        }
    }
    Ok(())
}

/// Whether two URLs name one host, whoever signs in.
fn same_place(one: &Url, other: &Url) -> bool {
    let path = |url: &Url| url.path().trim_end_matches('/').to_owned();
    one.origin() == other.origin() && path(one) == path(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(hosts: &[&str]) -> FleetConfig {
        FleetConfig {
            hosts: hosts
                .iter()
                .map(|host| HostConfig { url: host.parse().expect("a URL"), slots: 1 })
                .collect(),
            connect_timeout: Duration::from_secs(1),
            first_token_timeout: Duration::from_secs(1),
            token_gap_timeout: Duration::from_secs(1),
            keep_alive: "5m".to_owned(),
        }
    }

    #[tokio::test]
    async fn wrong_settings_are_refused_before_anything_is_opened() {
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
    async fn a_name_is_followed_as_its_addresses_change() {
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
        let told = |hosts: &[(u8, usize)]| -> Vec<(String, usize)> {
            hosts.iter().map(|(last, slots)| (format!("http://127.0.0.{last}:1"), *slots)).collect()
        };
        assert_eq!(now(None).0, told(&[(2, 7)]), "before there is an answer");
        let (hosts, before) = now(of(&[1, 2, 3]));
        assert_eq!(hosts, told(&[(1, 1), (2, 1), (3, 1)]), "each address once");
        let (hosts, after) = now(of(&[3, 4]));
        assert_eq!(hosts, told(&[(3, 1), (4, 1), (2, 7)]), "one went, one came");
        assert!(Arc::ptr_eq(&before[2], &after[0]), "who stays keeps what runs there");
        assert_eq!(now(None).0, hosts, "without an answer all stay");
        assert_eq!(now(of(&[])).0, told(&[(2, 7)]));
    }

    #[tokio::test]
    async fn both_schemes_are_accepted_however_often() {
        for _ in 0..2 {
            assert!(Fleet::new(config(&["http://h"])).is_ok());
            assert!(Fleet::new(config(&["https://h:8443/ollama"])).is_ok());
        }
    }
}
