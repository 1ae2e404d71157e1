//! Extracts the fields of the query.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use serde_json::{Map, Value};

use crate::http::extract::fields::FieldError;
use crate::http::extract::object::Object;
use crate::http::problem::Problem;

/// The fields of the query. Of two fields with one name, the last one counts.
pub struct QueryFields(pub Object);

impl<S: Send + Sync> FromRequestParts<S> for QueryFields {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(fields): Query<HashMap<String, String>> =
            Query::from_request_parts(parts, state).await.map_err(|_| {
                let error = FieldError {
                    loc: vec!["query".to_owned()],
                    msg: "cannot be read".to_owned(),
                    kind: "query_parsing",
                };
                Problem::from(vec![error])
            })?;
        let fields = fields.into_iter().map(|(name, value)| (name, Value::String(value)));
        Ok(Self(fields.collect::<Map<_, _>>().into()))
    }
}
