//! Reads the query of a request. Pure.

use serde_json::Value;
use serde_json::value::RawValue;

use super::params::{INVALID_VALUE, UNSUPPORTED_VALUE};
use crate::api::json_page;
use crate::http::extract::fields::{FieldError, Fields};
use crate::http::extract::object::Object;
use crate::http::problem::Problem;

/// Items of a page: the most, and the default.
const ITEMS: (i64, i64) = (100, 20);

/// The page of a list of items that a request asks for.
pub struct PageQuery<'a> {
    /// Items of the page, at most.
    pub limit: usize,
    /// The order of the list.
    pub order: Order,
    /// The id of the last item before the page.
    pub after: Option<&'a str>,
}

/// The order of a list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The oldest first.
    Ascending,
    /// The newest first.
    Descending,
}

impl<'a> PageQuery<'a> {
    /// Reads `limit`, `order` and `after`.
    ///
    /// # Errors
    /// Every field that is not valid, or not known.
    pub fn read(query: &'a Object) -> Result<Self, Problem> {
        let mut fields = Fields::new("query", query);
        check_names(&mut fields, &["limit", "order", "after"], query);
        let limit = fields.integer("limit", 1, ITEMS.0).unwrap_or(ITEMS.1);
        let order = match fields.text("order", usize::MAX) {
            Some("asc") => Order::Ascending,
            None | Some("desc") => Order::Descending,
            Some(_) => {
                fields.refuse("order", INVALID_VALUE, "must be asc or desc");
                Order::Descending
            }
        };
        let after = fields.text("after", usize::MAX);
        fields.finish(())?;
        Ok(Self { limit: usize::try_from(limit).unwrap_or(usize::MAX), order, after })
    }
}

/// A page of a list of items.
pub struct ItemPage {
    /// The items.
    pub data: Vec<Box<RawValue>>,
    /// The id of the first item; empty where there is none.
    pub first_id: String,
    /// The id of the last item; empty where there is none.
    pub last_id: String,
    /// Whether there are items after these.
    pub has_more: bool,
}

impl ItemPage {
    /// Creates a page of the first `limit` items, as far as they fit.
    pub fn of(items: &[Value], limit: usize, has_more: bool) -> Self {
        let data = json_page::fitting(items.iter().take(limit));
        let has_more = has_more || items.len() > data.len();
        let id = |item: Option<&Value>| {
            item.and_then(|item| item["id"].as_str()).unwrap_or_default().to_owned()
        };
        let items = &items[..data.len()];
        Self { first_id: id(items.first()), last_id: id(items.last()), data, has_more }
    }
}

/// Returns the refusal of an `after` that is the id of no item of the list.
pub fn unknown_after(list: &str) -> Problem {
    let msg = format!("must be the id of an item of this {list}");
    vec![FieldError::new("query", "after", INVALID_VALUE, msg)].into()
}

/// Checks that the query has no other fields than these.
pub fn check_names(fields: &mut Fields<'_>, names: &[&str], given: &Object) {
    for name in given.names().filter(|name| !names.contains(name)) {
        if name == "include" || name == "include[]" {
            let msg = "is not supported with another value than []";
            fields.refuse("include", UNSUPPORTED_VALUE, msg);
        } else {
            fields.refuse(name, "unknown_parameter", "is not known");
        }
    }
}
