//! The list of a signed-in caller's sessions: all of them, those with a flag, or those that hold some
//! words.

use axum::Json;
use axum::extract::State;
use futures_util::StreamExt;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::native::ownership::SignedIn;
use crate::api::native::search::{FoundMessage, Search, SearchState};
use crate::api::problems::in_time;
use crate::api::responses::{InvalidFields, Unavailable};
use crate::api::state::Shared;
use crate::budget::{ListEntry, ListOrder, ListPosition};
use crate::http::extract::fields::Fields;
use crate::http::extract::query::QueryFields;
use crate::http::problem::Problem;
use crate::session::{Owner, SessionInfo, StoreError};

/// Pages of the index that one request reads, at most: entries whose sessions are gone are left out.
const PAGES: usize = 4;
/// Entries of such a page, at most, where not each session is listed. Each of them is described, and a
/// search reads its messages.
const SEARCHED_AT_ONCE: usize = 100;
/// Sessions that are described at the same time.
const AT_ONCE: usize = 16;
/// Characters of the words of a search, at most.
const QUERY_CHARACTERS: usize = 200;

/// The caller's sessions, the one that was used last first.
#[derive(Serialize, ToSchema)]
pub struct SessionList {
    sessions: Vec<SessionInfo>,
    /// The number of these sessions.
    count: usize,
    /// The `cursor` of the next page; null on the last one. A page may have less sessions than `limit`.
    next_cursor: Option<String>,
    /// The messages by which these sessions were found; only with `q`. A session that was found by its
    /// title has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    matches: Option<Vec<FoundMessage>>,
    /// Whether older messages were not searched; only with `q`.
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<bool>,
}

/// The flags that a listed session must have; `None` admits both values.
#[derive(Clone, Copy, Default, PartialEq)]
struct FlagFilter {
    pinned: Option<bool>,
    archived: Option<bool>,
}

impl FlagFilter {
    fn admits(self, info: &SessionInfo) -> bool {
        self.pinned.is_none_or(|pinned| pinned == info.pinned)
            && self.archived.is_none_or(|archived| archived == info.archived)
    }
}

/// Lists the caller's sessions, the one that was used last first. With `q`, those whose title or newest
/// messages on the selected branch have all of these words, in any case.
#[utoipa::path(
    get, path = "/api/v1/chat/sessions", tag = "sessions",
    params(
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 500,
            description = "Sessions in the reply, at most; 50"),
        ("cursor" = Option<String>, Query, max_length = 128,
            pattern = r"^([0-9]{1,16}(\.[0-9]{1,8})?_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(~[0-9]{1,5})?)?$",
            description = "`next_cursor` of the page before"),
        ("pinned" = Option<bool>, Query, description = "Only those that are pinned, or are not"),
        ("archived" = Option<bool>, Query, description = "Only those that are archived, or are not"),
        ("q" = Option<String>, Query, max_length = 200, description = "Words to search for"),
    ),
    responses((status = 200, body = SessionList), InvalidFields, Unavailable),
)]
pub async fn list(
    State(shared): State<Shared>,
    SignedIn(owner): SignedIn,
    QueryFields(query): QueryFields,
) -> Result<Json<SessionList>, Problem> {
    let mut fields = Fields::new("query", &query);
    let limit = usize::try_from(fields.page_limit(1)).unwrap_or(1);
    let cursor = fields.text("cursor", 128).filter(|text| !text.is_empty());
    let parsed = cursor.and_then(|text| {
        let (position, searched) = text.split_once('~').unwrap_or((text, "0"));
        Some((ListPosition::parse(position)?, searched.parse::<u64>().ok()?))
    });
    if cursor.is_some() && parsed.is_none() {
        fields.refuse("cursor", "cursor_invalid", "is not a cursor of this list; leave it out");
    }
    let flags =
        FlagFilter { pinned: flag(&mut fields, "pinned"), archived: flag(&mut fields, "archived") };
    let words = fields.text("q", QUERY_CHARACTERS).unwrap_or_default();
    fields.finish(())?;
    let (after, searched) = parsed.map_or((None, 0), |(after, searched)| (Some(after), searched));
    let search = Search::new(words).map(|search| (search, SearchState::after(searched)));
    let looks_for = search.is_some() || flags != FlagFilter::default();
    let _permit = if looks_for { Some(shared.bulk.search(&owner).await?) } else { None };
    let pages = Pages { shared: &shared, owner: &owner, limit, flags };
    Ok(Json(in_time(pages.collect(after, search)).await?))
}

/// Reads a filter by a flag.
fn flag(fields: &mut Fields<'_>, name: &str) -> Option<bool> {
    match fields.text(name, usize::MAX)? {
        "true" => Some(true),
        "false" => Some(false),
        _ => {
            fields.refuse(name, "bool_type", "must be true or false");
            None
        }
    }
}

/// The selection of one request for a list.
struct Pages<'a> {
    shared: &'a Shared,
    owner: &'a Owner,
    limit: usize,
    flags: FlagFilter,
}

impl Pages<'_> {
    /// Collects a page of sessions from as many pages of the index as it takes.
    async fn collect(
        self,
        mut after: Option<ListPosition>,
        mut search: Option<(Search, SearchState)>,
    ) -> Result<SessionList, StoreError> {
        let lists_all = search.is_none() && self.flags == FlagFilter::default();
        let budget = self.shared.generations.budget();
        let (mut sessions, mut matches) = (Vec::new(), Vec::new());
        let mut is_last = false;
        'pages: for _ in 0..PAGES {
            let missing = self.limit - sessions.len();
            let wanted = if lists_all { missing } else { SEARCHED_AT_ONCE };
            let page = budget.list(self.owner, ListOrder::Newest, after.as_ref(), wanted).await?;
            is_last = page.is_last;
            for (position, info) in self.describe(page.entries).await? {
                let info = info.filter(|info| self.flags.admits(info));
                if let (Some(info), Some((search, state))) = (&info, &mut search) {
                    if state.is_spent() {
                        is_last = false;
                        break 'pages;
                    }
                    let store = &self.shared.store;
                    let found = search.look(store, self.owner, info, state).await?;
                    after = Some(position);
                    if !found.is_match {
                        continue;
                    }
                    matches.extend(found.message);
                } else {
                    after = Some(position);
                }
                sessions.extend(info);
                if sessions.len() == self.limit {
                    // The next page may be empty.
                    is_last &= lists_all;
                    break 'pages;
                }
            }
            if is_last {
                break;
            }
        }
        let next = after.filter(|_| !is_last);
        let state = search.map(|(_, state)| state);
        let next_cursor = next.map(|position| match &state {
            Some(state) => format!("{position}~{}", state.searched()),
            None => position.to_string(),
        });
        Ok(SessionList {
            count: sessions.len(),
            sessions,
            next_cursor,
            matches: state.as_ref().map(|_| matches),
            incomplete: state.map(|state| state.is_cut()),
        })
    }

    /// Describes the listed sessions, without those that are gone. The index is repaired where it
    /// differs from the sessions.
    async fn describe(
        &self,
        entries: Vec<ListEntry>,
    ) -> Result<Vec<(ListPosition, Option<SessionInfo>)>, StoreError> {
        let descriptions = futures_util::stream::iter(entries).map(|entry| {
            let (store, owner) = (self.shared.store.clone(), self.owner.clone());
            async move {
                let described = store.describe_listed(&owner, entry.position.session).await;
                (entry, described)
            }
        });
        let mut descriptions = descriptions.buffered(AT_ONCE);
        let (mut found, mut gone, mut unrecorded) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((entry, described)) = descriptions.next().await {
            let session = entry.position.session;
            match described {
                Ok(info) => {
                    found.push((entry.position, info));
                    if !entry.is_recorded {
                        unrecorded.push(session);
                    }
                }
                Err(StoreError::Absent) => {
                    found.push((entry.position, None));
                    gone.push(session);
                }
                Err(error) => return Err(error),
            }
        }
        let budget = self.shared.generations.budget();
        if !gone.is_empty() {
            budget.unlist_gone(self.owner, &gone).await?;
        }
        let unrecorded = futures_util::stream::iter(unrecorded);
        unrecorded.for_each_concurrent(AT_ONCE, |session| budget.record("", session)).await;
        Ok(found)
    }
}
