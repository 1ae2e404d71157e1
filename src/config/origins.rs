//! Parses the web origins and hosts of the allow-lists into the form that clients send. Pure.

use std::borrow::Cow;

use url::{Position, Url};

/// The entry that stands for any origin, or any host.
pub const ANY: &str = "*";

/// The names that the Host header may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedHosts {
    /// Any name.
    #[default]
    Any,
    /// `localhost` and addresses. A page of the internet whose name its owner has pointed at a loopback
    /// address (DNS rebinding) has neither.
    Loopback,
    /// The names of a list, in the form of [`listed_host`].
    Listed(Vec<String>),
}

/// Parses an origin of the allow-list into the form of browsers: in lower case, and without the
/// default port of its scheme. [`ANY`] stays as it is.
///
/// # Errors
/// The fault, and the right form.
pub fn listed_origin(text: &str) -> Result<String, String> {
    const EXPECTED: &str = "expected a scheme and a host, as in https://app.example, or * for any";
    let text = text.trim();
    if text == ANY {
        return Ok(text.to_owned());
    }
    if text.eq_ignore_ascii_case("null") {
        let reason = "any sandboxed page has the origin null; write * to allow every origin";
        return Err(reason.to_owned());
    }
    let url = Url::parse(text).ok().filter(|url| url.has_host() && text.contains("://"));
    let url = url.ok_or(EXPECTED)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an origin has no user name and no password".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("an origin ends after its host or port, as in https://app.example".to_owned());
    }
    if url.port() == Some(0) || url.host_str().is_some_and(|host| host.contains('*')) {
        return Err(EXPECTED.to_owned());
    }
    let authority = &url[Position::BeforeHost..Position::AfterPort];
    Ok(format!("{}://{authority}", url.scheme()).to_ascii_lowercase())
}

/// Parses a host of the allow-list: a name or an address, with or without a port. A default port is
/// left out, as web clients do. [`ANY`] stays as it is.
///
/// # Errors
/// The fault, and the right form.
pub fn listed_host(text: &str) -> Result<String, String> {
    let expected = || "expected a host name, as in chat.example or chat.example:8443".to_owned();
    let text = text.trim();
    if text == ANY {
        return Ok(text.to_owned());
    }
    if text.contains(['/', '\\', '?', '#', '@', '*']) || text.contains(char::is_whitespace) {
        return Err(expected());
    }
    let url = Url::parse(&format!("http://{text}")).map_err(|_| expected())?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(expected)?;
    Ok(match url.port() {
        Some(0) => return Err(expected()),
        Some(443) | None => host.to_owned(),
        Some(port) => format!("{host}:{port}"),
    })
}

/// Returns an Origin header in the form of the allow-list. A text that is not an origin stays as it
/// is.
pub fn canonical(header: &str) -> Cow<'_, str> {
    listed_origin(header).map_or(Cow::Borrowed(header), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_parsed_into_the_form_of_browsers() {
        for (text, origin) in [
            ("https://app.example", "https://app.example"),
            (" HTTPS://App.Example/ ", "https://app.example"),
            ("https://h:443", "https://h"),
            ("http://h:80/", "http://h"),
            ("http://h:443", "http://h:443"),
            ("https://h:80", "https://h:80"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("tauri://localhost", "tauri://localhost"),
            ("chrome-extension://AbC", "chrome-extension://abc"),
            ("*", "*"),
        ] {
            assert_eq!(listed_origin(text).as_deref(), Ok(origin), "{text}");
            assert_eq!(canonical(text), origin, "{text}");
        }
    }

    #[test]
    fn a_text_that_no_browser_sends_as_an_origin_is_refused() {
        for text in [
            "garbage",
            "",
            "app.example",
            "localhost:3000",
            "https://",
            "https://app.example/path",
            "https://app.example?x=1",
            "https://app.example#x",
            "https://ann@app.example",
            "https://ann:secret@app.example",
            "https://app.example:99999",
            "https://app.example:0",
            "https://*.example",
            "https://a b",
            "mailto:ann@app.example",
            "null",
        ] {
            let error = listed_origin(text).expect_err(text);
            assert!(!error.contains("secret"), "{error}");
            assert_eq!(canonical(text), text);
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for (text, host) in [
            (" Chat.Example ", "chat.example"),
            ("chat.example:8443", "chat.example:8443"),
            ("chat.example:80", "chat.example"),
            ("chat.example:443", "chat.example"),
            ("10.0.0.7", "10.0.0.7"),
            ("[::1]:10200", "[::1]:10200"),
            ("*", "*"),
        ] {
            assert_eq!(listed_host(text).as_deref(), Ok(host), "{text}");
        }
        for text in
            ["", "http://chat.example", "a/b", "a b", "a:b", "a:0", "a@b", "*.example", "[::1"]
        {
            assert!(listed_host(text).is_err(), "{text}");
        }
    }
}
