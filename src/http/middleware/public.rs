//! The paths that are open to everybody.

/// Returns whether a path is open to everybody and has no caller. Its requests' tokens are not read:
/// a probe or a page has to work whatever a browser or a proxy adds.
pub fn is_public(path: &str) -> bool {
    let below = |folder: &str| {
        path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    matches!(path, "" | "/" | "/openapi.json")
        || ["/app", "/docs", "/health", "/metrics"].into_iter().any(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_probes_and_metrics_are_public() {
        for path in ["/", "/health", "/health/ready", "/docs", "/docs/x.css", "/app/x.js"] {
            assert!(is_public(path), "{path}");
        }
        for path in ["/ws", "/api/v1/chat", "/healthy", "/docsx", "/nothing", "/api/v1/chat/health"]
        {
            assert!(!is_public(path), "{path}");
        }
    }
}
