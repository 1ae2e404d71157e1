//! OpenAI's header fields: what is left of the caller's limits, and what its SDKs send from a page.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;

use crate::http::rate_limit::Standings;
use crate::limits::Standing;

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// The header fields that the SDK for pages may send, and those that it may read; the shared layer names the
/// rest.
const SENT_BY_PAGES: &str = "x-stainless-arch, x-stainless-helper-method, x-stainless-lang, \
    x-stainless-os, x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, \
    x-stainless-runtime-version, x-stainless-timeout, openai-organization, openai-project";
const READ_BY_PAGES: &str = "x-should-retry, x-ratelimit-limit-requests, \
    x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, \
    x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// Lets the pages of listed origins use OpenAI's SDK: extends what the shared layer allows them.
pub fn allow_to_pages(headers: &mut HeaderMap) {
    for (name, more) in [
        (header::ACCESS_CONTROL_ALLOW_HEADERS, SENT_BY_PAGES),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, READ_BY_PAGES),
    ] {
        if headers.contains_key(&name) {
            headers.append(name, HeaderValue::from_static(more));
        }
    }
}

/// Adds the header fields of limits. Requests and turns are both OpenAI's requests: the limit is named that
/// has least left.
pub fn add_limits(response: &mut Response) {
    let Some(Standings(standings)) = response.extensions_mut().remove::<Standings>() else {
        return;
    };
    for (names, units) in [(REQUESTS, &["requests", "turns"][..]), (TOKENS, &["tokens"][..])] {
        let of_units = standings.iter().filter(|standing| units.contains(&standing.kind.unit()));
        let Some(least) = of_units.min_by_key(|standing| standing.remaining()) else { continue };
        for (name, value) in names.into_iter().zip(values(least)) {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

fn values(standing: &Standing) -> [String; 3] {
    [standing.quota.to_string(), standing.remaining().to_string(), duration(standing.reset)]
}

/// Formats a time as OpenAI does, rounded up to seconds: `1s`, `6m0s`, `1h0m0s`.
fn duration(time: Duration) -> String {
    let seconds = time.as_micros().div_ceil(1_000_000);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LimitKind;

    #[test]
    fn a_time_is_written_as_openai_writes_it() {
        for (millis, text) in
            [(0, "0s"), (1, "1s"), (1_000, "1s"), (360_000, "6m0s"), (86_399_500, "24h0m0s")]
        {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn only_what_the_shared_layer_allows_to_a_page_is_extended() {
        let mut headers = HeaderMap::new();
        allow_to_pages(&mut headers);
        assert!(headers.is_empty());
        let allowed = HeaderValue::from_static("authorization");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        allow_to_pages(&mut headers);
        let values = headers.get_all(header::ACCESS_CONTROL_ALLOW_HEADERS).iter();
        assert_eq!(values.collect::<Vec<_>>(), ["authorization", SENT_BY_PAGES]);
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn the_limit_with_least_left_is_named() {
        let standing =
            |kind, quota, used| Standing { kind, quota, used, reset: Duration::from_mins(6) };
        let mut response = Response::default();
        response.extensions_mut().insert(Standings(vec![
            standing(LimitKind::UserRequests, 600, 10),
            standing(LimitKind::UserTurns, 60, 20),
            standing(LimitKind::UserTokens, 1000, 1),
        ]));
        add_limits(&mut response);
        let headers = response.headers();
        assert_eq!(headers["x-ratelimit-limit-requests"], "60");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "40");
        assert_eq!(headers["x-ratelimit-reset-requests"], "6m0s");
        assert_eq!(headers["x-ratelimit-limit-tokens"], "1000");
        assert_eq!(headers["x-ratelimit-remaining-tokens"], "999");
        assert_eq!(headers["x-ratelimit-reset-tokens"], "6m0s");
    }
}
