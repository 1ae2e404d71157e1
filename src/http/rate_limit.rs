//! The header fields of limits, as draft-ietf-httpapi-ratelimit-headers-10 describes them.

use std::fmt::Write as _;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::limits::{LimitKind, Standing};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The state of limits that a response shows in addition to those of its request, as an extension of the
/// response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standings(pub Vec<Standing>);

/// Adds the header fields of these limits; nothing where no limit applied.
pub fn add_headers(headers: &mut HeaderMap, standings: &[Standing]) {
    let (mut left, mut policies) = (String::new(), String::new());
    for standing in standings {
        for list in [&mut left, &mut policies] {
            if !list.is_empty() {
                list.push_str(", ");
            }
        }
        let (kind, seconds) = (standing.kind, standing.reset.as_micros().div_ceil(1_000_000));
        // Writing to a text does not fail.
        let _ = write!(left, "\"{}\";r={};t={seconds}", kind.name(), standing.remaining());
        let _ = write!(policies, "\"{}\";q={}", kind.name(), standing.quota);
        if let Some(window) = kind.window() {
            let _ = write!(policies, ";w={}", window.as_secs());
        }
        match kind {
            LimitKind::UserRequests | LimitKind::KeyRequests | LimitKind::AddressRequests => {}
            LimitKind::UserSockets | LimitKind::AddressSockets => {
                policies.push_str(";qu=\"concurrent-requests\"");
            }
            kind => {
                let _ = write!(policies, ";qu=\"{}\"", kind.unit());
            }
        }
    }
    for (name, value) in [(RATE_LIMIT, left), (POLICY, policies)] {
        if let Ok(value) = HeaderValue::try_from(value).map_err(drop)
            && !value.is_empty()
        {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_header_fields_name_quota_window_unit_what_is_left_and_when_all_is_back() {
        let standing = |kind, quota, used, reset| Standing {
            kind,
            quota,
            used,
            reset: Duration::from_millis(reset),
        };
        let mut headers = HeaderMap::new();
        add_headers(
            &mut headers,
            &[
                standing(LimitKind::UserRequests, 600, 1, 100),
                standing(LimitKind::UserTurns, 60, 60, 59_001),
                standing(LimitKind::UserTokens, 10, 50, 86_400_000),
                standing(LimitKind::UserSockets, 3, 1, 0),
            ],
        );
        assert_eq!(
            headers["ratelimit"],
            "\"user-requests\";r=599;t=1, \"user-turns\";r=0;t=60, \"user-tokens\";r=0;t=86400, \
             \"user-sockets\";r=2;t=0"
        );
        assert_eq!(
            headers["ratelimit-policy"],
            "\"user-requests\";q=600;w=60, \"user-turns\";q=60;w=60;qu=\"turns\", \
             \"user-tokens\";q=10;w=86400;qu=\"tokens\", \"user-sockets\";q=3;qu=\"concurrent-requests\""
        );
        add_headers(&mut headers, &[]);
        assert_eq!(headers.len(), 2);
        let mut none = HeaderMap::new();
        add_headers(&mut none, &[]);
        assert!(none.is_empty());
    }
}
